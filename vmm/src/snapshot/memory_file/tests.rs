#![allow(clippy::unwrap_used)]

use std::path::PathBuf;

use proptest::prelude::*;
use tempfile::TempDir;

use super::super::testing::{FakeMemory, Filling, Page, memory};
use super::*;

/// A memory file in a directory of its own.
struct File {
    folder: TempDir,
    saved: Saved,
}

impl File {
    fn of(view: &FakeMemory) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let about = About::of(view, SnapshotId([1; 16]), None);
        let file = std::fs::File::create(folder.path().join("memory")).unwrap();
        let saved = save_memory(view, &about, &file, &mut |_| {}).unwrap();
        Self { folder, saved }
    }

    fn path(&self) -> PathBuf {
        self.folder.path().join("memory")
    }

    fn open(&self) -> MemoryReader {
        MemoryReader::open(&self.path()).unwrap()
    }
}

/// An empty memory of the same kind.
fn like(memory: &FakeMemory) -> FakeMemory {
    FakeMemory::new(memory.size().get() / CHUNK.get(), memory.page_size(), memory.has_tags())
}

fn cases(count: u32) -> ProptestConfig {
    ProptestConfig { cases: count, ..ProptestConfig::default() }
}

proptest! {
    #![proptest_config(cases(48))]

    #[test]
    fn what_is_saved_is_loaded((pages, size) in memory(), tagged: bool) {
        let saved = FakeMemory::with(&pages, size, tagged);
        let file = File::of(&saved);
        let loaded = like(&saved);

        load_memory(&loaded, &file.open(), &mut |_| {}).unwrap();

        prop_assert!(loaded.same(&saved));
    }

    #[test]
    fn a_chunk_is_loaded_by_itself((pages, size) in memory(), at: prop::sample::Index) {
        let saved = FakeMemory::with(&pages, size, true);
        let (file, chunk) = (File::of(&saved), at.index(pages.len()));
        let aside = FakeMemory::new(1, size, true);

        file.open().load_chunk(chunk as u64, &aside, 0).unwrap();

        let alone = FakeMemory::with(&pages[chunk..chunk + 1], size, true);
        prop_assert!(aside.same(&alone));
    }
}

const ALL: [Filling; 5] = [
    Filling::Zero,
    Filling::Last(0x20),
    Filling::One(0x33),
    Filling::Runs(1, 30),
    Filling::Random(99),
];

/// A chunk with each kind of page, and two that have none.
fn every_kind(size: Bytes) -> FakeMemory {
    let mut pages: Vec<Page> = ALL
        .iter()
        .flat_map(|data| ALL.iter().map(|tags| Page::Present(*data, *tags)))
        .chain([Page::Absent])
        .collect();
    pages.truncate(pages_per_chunk(size));
    FakeMemory::with(
        &[vec![], pages, vec![Page::Present(Filling::Zero, Filling::Zero)]],
        size,
        true,
    )
}

#[test]
fn only_what_has_contents_is_in_the_file() {
    let memory = every_kind(Bytes::kib(4));
    let file = File::of(&memory);
    let reader = file.open();

    assert_eq!(reader.chunks().collect::<Vec<_>>(), [1]);
    let map = reader.map(reader.entry(1).unwrap()).unwrap();
    let pages = |contents| map.runs(contents).flatten().collect::<Vec<_>>();
    assert_eq!(pages(Contents::Data), Vec::from_iter(5..25));
    assert_eq!(pages(Contents::Zero), Vec::from_iter(1..5));
    assert_eq!(reader.entry(2), None);
    assert_eq!((file.saved.chunks, file.saved.pages), (1, 20));
    assert_eq!(file.path().metadata().unwrap().len(), file.saved.length);
}

#[test]
fn memory_without_contents_is_a_header() {
    let memory = FakeMemory::new(4, Bytes::kib(4), true);
    let file = File::of(&memory);

    assert_eq!(file.saved, Saved { length: 128, ..Saved::default() });
    assert_eq!(file.path().metadata().unwrap().len(), 128);
}

#[test]
fn pages_of_one_tag_are_one_extent() {
    let pages = vec![Page::Present(Filling::One(9), Filling::One(0x55)); 512];
    let file = File::of(&FakeMemory::with(&[pages], Bytes::kib(4), true));

    assert_eq!((file.saved.pages, file.saved.maps), (512, 3));
}

#[test]
fn pages_beyond_a_chunk_are_left_out() {
    let size = Bytes::kib(16);
    let page = |tag| Page::Present(Filling::One(7), Filling::One(tag));
    let chunk = |tag| vec![page(tag); pages_per_chunk(size)];
    let mut memory = FakeMemory::with(&[chunk(0x11), chunk(0x22)], size, true);
    memory.present = vec![PageSet::of(0..512); 2];
    let (file, loaded) = (File::of(&memory), like(&memory));

    load_memory(&loaded, &file.open(), &mut |_| {}).unwrap();

    assert!(loaded.same(&memory));
}

/// A change here is another version of the format.
#[test]
fn the_format_is_as_it_is_written_down() {
    let kinds = [
        Page::Present(Filling::Zero, Filling::One(0x77)),
        Page::Present(Filling::One(1), Filling::Zero),
        Page::Present(Filling::One(2), Filling::Runs(0x10, 99)),
        Page::Present(Filling::One(3), Filling::Random(5)),
    ];
    let file = File::of(&FakeMemory::with(&[vec![], kinds.to_vec()], Bytes::kib(4), true));
    let bytes = std::fs::read(file.path()).unwrap();
    let number = |at: usize, length: usize| {
        bytes[at..at + length]
            .iter()
            .rev()
            .fold(0u64, |number, byte| number << 8 | u64::from(*byte))
    };

    // Magic, version, flags, id, base.
    assert_eq!(bytes[..16], *b"\x8fTESME\r\n\x01\0\0\0\x01\0\0\0");
    assert_eq!(bytes[16..48], [[1; 16], [0; 16]].concat());
    let table = bytes.len() - 40;
    let numbers = [number(48, 8), number(56, 4), number(60, 4), number(64, 8), number(72, 4)];
    assert_eq!(numbers, [4 << 20, 4 << 10, 2 << 20, table as u64, 1]);
    // Chunk, pages, data, map and its length.
    let entry =
        [(0, 4), (4, 4), (8, 8), (16, 8), (24, 4)].map(|(at, size)| number(table + at, size));
    assert_eq!(entry, [1, 3, 4096, 16384, 3 + 3 + 3 + 4 + 6 + 3 + 128 + 3]);
    // Zero data of one tag, data, data with three runs, data with packed tags, and the hole.
    let map = &bytes[16384..table];
    assert_eq!(map[..6], [0x75, 0, 0, 0x02, 0, 0]);
    assert_eq!(map[6..19], [0x0a, 0, 0, 6, 0, 0, 0, 0xb0, 0x0c, 0xb1, 0x0c, 0xf2, 0x06]);
    assert_eq!(map[19..22], [0x0e, 0, 0]);
    assert_eq!(map[150..153], [0x00, 0xfb, 0x01]);
}

mod damage;
mod full;
mod lies;
