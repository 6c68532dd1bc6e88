//! Files whose checksums are right and whose numbers are not.

use std::fs;

use super::super::super::error::Error;
use super::super::super::format;
use super::super::header::{HEADER, Header};
use super::super::table::{ENTRY, Entry};
use super::*;

/// A memory file in pieces, of 3 chunks of which the second has one page with data and one with tags alone.
struct Forged {
    file: File,
    header: Header,
    entries: Vec<Entry>,
    /// What is between header and table.
    middle: Vec<u8>,
}

fn small() -> FakeMemory {
    let data = Page::Present(Filling::One(3), Filling::Runs(3, 9));
    let zero = Page::Present(Filling::Zero, Filling::One(0x77));
    FakeMemory::with(&[vec![], vec![data, zero], vec![]], Bytes::kib(4), true)
}

impl Forged {
    fn new() -> Self {
        let file = File::of(&small());
        let bytes = fs::read(file.path()).unwrap();
        let header = Header::decode(&bytes, bytes.len() as u64).unwrap();
        let entries = vec![*file.open().entry(1).unwrap()];
        let middle = bytes[HEADER..bytes.len() - ENTRY].to_vec();
        Self { file, header, entries, middle }
    }

    /// Puts it together with right checksums, and loads it. What is beyond the second chunk stays as it is.
    fn load(mut self) -> Result<FakeMemory, Error> {
        let mut table = Vec::new();
        self.entries.iter().for_each(|entry| entry.encode(&mut table));
        self.header.table_crc = format::crc(&table);
        let bytes = [&self.header.encode()[..], &self.middle, &table].concat();
        self.load_bytes(&bytes)
    }

    fn load_bytes(&self, bytes: &[u8]) -> Result<FakeMemory, Error> {
        fs::write(self.file.path(), bytes).unwrap();
        let reader = MemoryReader::open(&self.file.path())?;
        let memory = FakeMemory::new(3, Bytes::kib(4), true);
        let loaded = load_memory(&memory, &reader, &mut |_| {});
        let chunk = CHUNK.get() as usize;
        let (data, tags) = (memory.data(), memory.tags());
        for at in [0, 2] {
            assert!(data[at * chunk..(at + 1) * chunk] == vec![0; chunk]);
            assert!(tags[at * chunk / 32..(at + 1) * chunk / 32] == vec![0; chunk / 32]);
        }
        loaded.map(|()| memory)
    }

    /// With another map of the chunk.
    fn with_map(mut self, map: &[u8]) -> Self {
        // It takes the place of what follows the data.
        let end = self.header.table as usize - HEADER;
        let start = end - 4096;
        let map = &map[..map.len().min(4096)];
        self.middle.truncate(start);
        self.middle.extend_from_slice(map);
        self.middle.resize(end, 0);
        let entry = &mut self.entries[0];
        entry.map = (HEADER + start) as u64;
        entry.map_length = map.len() as u32;
        entry.map_crc = format::crc(map);
        self
    }
}

/// A name, and what makes it.
type Lie<T> = (&'static str, fn(&mut T));

fn is_refused(loaded: Result<FakeMemory, Error>) -> bool {
    matches!(loaded.map_err(|error| error.fault), Err(Fault::Malformed { .. }))
}

#[test]
fn what_is_put_together_again_is_the_same() {
    assert!(Forged::new().load().unwrap().same(&small()));
}

#[test]
fn entries_that_lie_are_refused() {
    let lies: [Lie<Entry>; 14] = [
        ("chunk", |entry| entry.chunk = 3),
        ("far chunk", |entry| entry.chunk = u32::MAX),
        ("pages", |entry| entry.pages = 513),
        ("many pages", |entry| entry.pages = u32::MAX),
        ("no pages", |entry| entry.pages = 0),
        ("more pages than the map", |entry| entry.pages = 2),
        ("data at no page", |entry| entry.data += 16),
        ("data in the header", |entry| entry.data = 0),
        ("data behind the end", |entry| entry.data = 1 << 40),
        ("data at the end of all", |entry| entry.data = u64::MAX - 4095),
        ("map behind the end", |entry| entry.map = 1 << 40),
        ("map at the end of all", |entry| entry.map = u64::MAX),
        ("map in the header", |entry| entry.map = 64),
        ("long map", |entry| entry.map_length = u32::MAX),
    ];
    for (name, lie) in lies {
        let mut forged = Forged::new();
        lie(&mut forged.entries[0]);
        assert!(is_refused(forged.load()), "{name}");
    }
}

#[test]
fn tables_that_lie_are_refused() {
    let mut twice = Forged::new();
    twice.entries.push(twice.entries[0]);
    twice.header.entries = 2;
    assert!(is_refused(twice.load()));

    let mut unordered = Forged::new();
    unordered.entries.push(Entry { chunk: 0, ..unordered.entries[0] });
    unordered.header.entries = 2;
    assert!(is_refused(unordered.load()));

    let mut hole = Forged::new();
    hole.entries[0] = Entry::hole(1);
    assert!(is_refused(hole.load()));

    let mut many = Forged::new();
    many.header.entries = u32::MAX;
    assert!(is_refused(many.load()));
}

#[test]
fn headers_that_lie_are_refused() {
    let lies: [Lie<Header>; 8] = [
        ("no memory", |header| header.about.size = Bytes::ZERO),
        ("part of a chunk", |header| header.about.size = Bytes::mib(3)),
        ("all memory of the world", |header| header.about.size = Bytes::new(u64::MAX << 21)),
        ("pages of 8 KiB", |header| header.about.page_size = Bytes::kib(8)),
        ("pages of none", |header| header.about.page_size = Bytes::ZERO),
        ("table in the header", |header| header.table = 64),
        ("table at the end of all", |header| header.table = u64::MAX),
        ("a diff of nothing", |header| header.about.base = Some(SnapshotId([0; 16]))),
    ];
    for (name, lie) in lies {
        let mut forged = Forged::new();
        lie(&mut forged.header);
        assert!(is_refused(forged.load()), "{name}");
    }
    let mut diff = Forged::new();
    diff.header.about.base = Some(SnapshotId([9; 16]));
    let fault = diff.load().map_err(|error| error.fault);
    assert!(matches!(fault, Err(Fault::Diff { base: SnapshotId([9, ..]) })));
}

#[test]
fn fields_of_the_header_have_no_other_values() {
    // Flags, base without a flag for it, size of a chunk, what is reserved.
    for at in [12, 13, 15, 40, 60, 63, 80, 123] {
        let forged = Forged::new();
        let mut bytes = fs::read(forged.file.path()).unwrap();
        bytes[at] ^= 0x40;
        let crc = format::crc(&bytes[..HEADER - 4]);
        bytes[HEADER - 4..HEADER].copy_from_slice(&crc.to_le_bytes());
        assert!(is_refused(forged.load_bytes(&bytes)), "{at}");
    }
}

/// An extent: contents, form of the tags, tag and number of pages.
fn extent(contents: u8, form: u8, tag: u8, pages: u16) -> Vec<u8> {
    let mut bytes = vec![contents | form << 2 | tag << 4];
    bytes.extend((pages - 1).to_le_bytes());
    bytes
}

#[test]
fn maps_that_lie_are_refused() {
    let data = extent(2, 0, 0, 1);
    let rest = extent(0, 0, 0, 511);
    assert!(Forged::new().with_map(&[&data[..], &rest].concat()).load().is_ok());
    let lies = [
        ("nothing behind", data.clone()),
        ("too few pages", [&data[..], &extent(0, 0, 0, 510)].concat()),
        ("too many pages", [&data[..], &extent(0, 0, 0, 512)].concat()),
        ("far too many pages", [&data[..], &extent(0, 0, 0, u16::MAX)].concat()),
        ("two pages of data", [&extent(2, 0, 0, 2)[..], &extent(0, 0, 0, 510)].concat()),
        ("an extent cut short", [&data[..], &rest, &[2]].concat()),
        ("unchanged", [&data[..], &extent(3, 0, 0, 511)].concat()),
        ("a hole with a tag", [&data[..], &extent(0, 1, 5, 511)].concat()),
        ("zero data without tags", [&data[..], &extent(1, 0, 0, 511)].concat()),
        ("one tag that is zero", [&extent(2, 1, 0, 1)[..], &rest].concat()),
        ("a tag that is not used", [&extent(2, 0, 3, 1)[..], &rest].concat()),
        ("tags cut short", [&data[..], &extent(1, 3, 0, 511), &[0; 99]].concat()),
        ("no runs", [&extent(2, 2, 0, 1)[..], &[0; 4], &rest].concat()),
        ("runs cut short", [&extent(2, 2, 0, 1)[..], &[9, 0, 0, 0, 1]].concat()),
        ("runs of no end", [&extent(2, 2, 0, 1)[..], &[255; 4], &rest].concat()),
        (
            "a run too long",
            [&extent(2, 2, 0, 1)[..], &[3, 0, 0, 0, 0xf0, 0xff, 0x7f], &rest].concat(),
        ),
        (
            "a run without end",
            [&extent(2, 2, 0, 1)[..], &[10, 0, 0, 0], &[0xff; 9], &[1], &rest].concat(),
        ),
    ];
    for (name, map) in lies {
        assert!(is_refused(Forged::new().with_map(&map).load()), "{name}");
    }
}

#[test]
fn tags_of_memory_without_tags_are_refused() {
    let mut forged = Forged::new();
    forged.header.about.tagged = false;
    assert!(matches!(
        forged.load().map_err(|error| error.fault),
        Err(Fault::Untagged | Fault::Malformed { .. })
    ));
    let about = About { tagged: false, ..Forged::new().header.about };
    let map = [&extent(2, 1, 5, 1)[..], &extent(0, 0, 0, 511)].concat();
    assert!(Map::decode(&map, &about, 1).is_err());
}

/// Bytes that are a map now and then.
fn map() -> impl Strategy<Value = Vec<u8>> {
    let one = (any::<u8>(), 0u16..600, prop::collection::vec(any::<u8>(), 0..20));
    prop::collection::vec(one, 0..8).prop_map(|extents| {
        let bytes = extents.into_iter().flat_map(|(kind, pages, more)| {
            let [low, high] = pages.to_le_bytes();
            // Without tags that follow, so that some are right.
            let (kind, more) = if kind & 8 == 0 { (kind, Vec::new()) } else { (kind, more) };
            [kind, low, high].into_iter().chain(more)
        });
        bytes.collect()
    })
}

proptest! {
    #![proptest_config(cases(128))]

    #[test]
    fn any_map_is_loaded_into_its_chunk_or_refused(map in map(), pages in 0u32..3) {
        let mut forged = Forged::new().with_map(&map);
        forged.entries[0].pages = pages;
        // It may be loaded, and then has written nothing elsewhere.
        let _ = forged.load();
    }

    #[test]
    fn any_entry_is_loaded_into_its_chunk_or_refused(
        pages in prop_oneof![0u32..3, any::<u32>()],
        data in prop_oneof![(0u64..4).prop_map(|page| page * 4096), any::<u64>()],
        map in prop_oneof![0u64..9000, any::<u64>()],
        map_length in prop_oneof![0u32..99, any::<u32>()],
    ) {
        let mut forged = Forged::new();
        let entry = &mut forged.entries[0];
        (entry.pages, entry.data, entry.map, entry.map_length) = (pages, data, map, map_length);
        let _ = forged.load();
    }

    #[test]
    fn any_bytes_are_a_map_or_none(bytes: Vec<u8>, pages in 0u32..600) {
        let about = Forged::new().header.about;
        if let Ok(map) = Map::decode(&bytes, &about, pages) {
            prop_assert_eq!(map.pages().count(), 512);
        }
    }
}
