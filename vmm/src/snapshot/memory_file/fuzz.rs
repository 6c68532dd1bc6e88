//! Memory files of any header, table, maps and data, with right checksums.
#![allow(clippy::unwrap_used)]

use std::cell::RefCell;
use std::collections::BTreeMap;

use arch::layout::CHUNK;
use arch::units::Bytes;

use super::super::format;
use super::super::id::SnapshotId;
use super::super::testing::FakeMemory;
use super::header::{HEADER, Header};
use super::table::{ENTRY, Entry};
use super::{About, MemoryReader, load_memory};
use crate::fuzz::scratch::with_file;

/// Chunks of the memory that is loaded.
const CHUNKS: u64 = 2;
/// The most entries of a table.
const MOST_ENTRIES: u8 = 4;
/// Of an entry in the input: chunk, pages, where the data is, where the map is and how long.
const FIELDS: usize = 1 + 2 + 1 + 2 + 2;

/// Options, how much is between header and table, entries, and what is there from the start on.
pub(crate) fn memory(data: &[u8]) {
    let [options, count, a, b, rest @ ..] = data else { return };
    let room = usize::from(u16::from_le_bytes([*a, *b]));
    let about = About {
        id: SnapshotId([7; 16]),
        base: (options & 1 != 0).then_some(SnapshotId([8; 16])),
        size: Bytes::new(CHUNK.get() * if options & 2 != 0 { u64::from(*count) } else { CHUNKS }),
        page_size: Bytes::kib([4, 16, 64, 5][usize::from(options >> 2 & 3)]),
        tagged: options & 16 == 0,
    };
    let length = usize::from(count % (MOST_ENTRIES + 1)) * FIELDS;
    let (fields, middle) = rest.split_at(length.min(rest.len()));
    let mut file = vec![0; HEADER];
    file.extend_from_slice(middle);
    file.resize(HEADER + room, 0);
    let entries: Vec<Entry> =
        fields.chunks_exact(FIELDS).map(|fields| entry(fields, &file, &about)).collect();
    let mut table = Vec::new();
    entries.iter().for_each(|entry| entry.encode(&mut table));
    let header = Header {
        about,
        table: file.len() as u64,
        entries: (table.len() / ENTRY) as u32,
        table_crc: format::crc(&table),
    };
    file[..HEADER].copy_from_slice(&header.encode());
    file.extend(table);
    load(&file, &about);
}

/// An entry, with the checksums of what it names.
fn entry(fields: &[u8], file: &[u8], about: &About) -> Entry {
    let number = |at: usize| u64::from(u16::from_le_bytes([fields[at], fields[at + 1]]));
    let pages = number(1) as u32;
    let data = u64::from(fields[3]) * about.page_size.get() + number(4) % 3 / 2;
    let (map, map_length) = (number(4), number(6) as u32);
    let crc = |start: u64, length: u64| {
        let end = start.saturating_add(length).min(file.len() as u64);
        format::crc(&file[start.min(end) as usize..end as usize])
    };
    Entry {
        chunk: fields[0].into(),
        pages,
        data,
        map,
        map_length,
        map_crc: crc(map, map_length.into()),
        data_crc: crc(data, u64::from(pages) * about.page_size.get()),
    }
}

/// Reads all of the file. Memory of each kind is mapped once, as that takes longer than most files.
fn load(file: &[u8], about: &About) {
    thread_local! {
        static MEMORY: RefCell<BTreeMap<(u64, bool), FakeMemory>> = const { RefCell::new(BTreeMap::new()) };
    }
    let Ok(reader) = with_file(file, MemoryReader::open) else { return };
    assert_eq!(reader.about(), about);
    for chunk in reader.chunks() {
        let entry = *reader.entry(chunk).unwrap();
        if !entry.is_hole() {
            let _ = reader.map(&entry);
        }
    }
    MEMORY.with_borrow_mut(|all| {
        let kind = (about.page_size.get(), about.tagged);
        let memory = all
            .entry(kind)
            .or_insert_with(|| FakeMemory::new(CHUNKS, about.page_size, about.tagged));
        let _ = load_memory(memory, &reader, &mut |_| {});
    });
}

pub(crate) fn memory_seeds() -> Vec<Vec<u8>> {
    // Extents: 511 holes and a page with data and packed tags; all of one tag; runs.
    let packed = [&[0, 0xfe, 1, 0x0e, 0, 0][..], &[0x21; 128]].concat();
    let one = [0x35, 0xff, 1];
    let runs = [&[0, 0xfe, 1, 0x0a, 0, 0, 2, 0, 0, 0][..], &[0xf5, 0x1f]].concat();
    let file = |options: u8, entry: [u8; FIELDS], map: &[u8]| {
        let start = [options, 1, 0x80, 0x1f];
        [&start[..], &entry, map].concat()
    };
    let entry = |pages: u8, length: usize| [1, pages, 0, 1, 128, 0, length as u8, 0];
    vec![
        file(0, entry(1, packed.len()), &packed),
        file(0, entry(0, one.len()), &one),
        file(0, entry(1, runs.len()), &runs),
        file(1, entry(0, 6), &[3, 0xfe, 1, 0, 0, 0]),
        file(1, [1, 0, 0, 0, 0, 0, 0, 0], &[]),
        file(16, entry(1, 6), &[0, 0xfe, 1, 2, 0, 0]),
        file(4, entry(1, 6), &[0, 0x7e, 0, 2, 0, 0]),
    ]
}
