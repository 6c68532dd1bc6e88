//! Files that are damaged, cut short or something else.

use std::fs;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::Path;

use super::super::super::error::{Error, Part};
use super::super::header::HEADER;
use super::super::table::ENTRY;
use super::*;

/// Loads all of a file into memory of this kind.
fn load(path: &Path, kind: &FakeMemory) -> Result<FakeMemory, Error> {
    let memory = like(kind);
    load_memory(&memory, &MemoryReader::open(path)?, &mut |_| {})?;
    Ok(memory)
}

/// A file with two chunks that have all kinds of pages, and what it is of.
fn example() -> (FakeMemory, File) {
    let all = ALL.iter().flat_map(|data| ALL.iter().map(|tags| Page::Present(*data, *tags)));
    let pages: Vec<_> = all.collect();
    let memory = FakeMemory::with(&[pages.clone(), vec![], pages], Bytes::kib(4), true);
    let file = File::of(&memory);
    (memory, file)
}

/// Where data and maps are.
fn used(reader: &MemoryReader) -> Vec<Range<u64>> {
    let page = reader.about().page_size.get();
    let ranges = reader.chunks().flat_map(|chunk| {
        let entry = *reader.entry(chunk).unwrap();
        let data = entry.data..entry.data + u64::from(entry.pages) * page;
        [data, entry.map..entry.map + u64::from(entry.map_length)]
    });
    ranges.collect()
}

/// Flips each of these bits, one at a time.
fn flip(path: &Path, bits: impl Iterator<Item = usize>, mut check: impl FnMut(u64)) {
    let whole = fs::read(path).unwrap();
    let open = fs::File::options().write(true).open(path).unwrap();
    for bit in bits {
        let (byte, at) = (whole[bit / 8], bit as u64 / 8);
        open.write_all_at(&[byte ^ (1 << (bit % 8))], at).unwrap();
        check(at);
        open.write_all_at(&[byte], at).unwrap();
    }
}

#[test]
fn each_bit_of_header_and_table_matters() {
    let (memory, file) = example();
    let length = file.saved.length as usize;
    let (header, table) = (0..HEADER * 8, (length - 2 * ENTRY) * 8..length * 8);

    flip(&file.path(), header.chain(table), |at| {
        let error = load(&file.path(), &memory).unwrap_err();
        let is_start = at < 12;
        let expected = match error.fault {
            Fault::Damaged { part } => part == if at < 128 { Part::Header } else { Part::Table },
            Fault::NotASnapshot { .. } | Fault::Version { .. } => is_start,
            _ => false,
        };
        assert!(expected, "byte {at}: {error:?}");
    });
}

#[test]
fn a_bit_anywhere_else_is_found_if_it_means_anything() {
    let (memory, file) = example();
    let used = used(&file.open());
    let table = file.saved.length as usize - 2 * ENTRY;
    let mut state = 1u64;
    let bits = std::iter::from_fn(|| {
        // Knuth's generator.
        state =
            state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        Some(HEADER * 8 + (state >> 20) as usize % ((table - HEADER) * 8))
    });
    // Maps are small, and would hardly be met.
    let maps = used.iter().skip(1).step_by(2).flat_map(|map| map.start * 8..map.end * 8);
    let maps = maps.step_by(31).map(|bit| bit as usize);

    let mut found = 0;
    flip(&file.path(), bits.take(2000).chain(maps), |at| match load(&file.path(), &memory) {
        Err(error) => {
            assert!(used.iter().any(|range| range.contains(&at)), "byte {at}: {error:?}");
            assert!(matches!(error.fault, Fault::Damaged { .. }), "byte {at}: {error:?}");
            found += 1;
        }
        Ok(loaded) => {
            assert!(!used.iter().any(|range| range.contains(&at)), "byte {at}");
            assert!(loaded.same(&memory));
        }
    });
    assert!(found > 1000, "{found}");
}

#[test]
fn a_file_that_is_cut_anywhere_is_refused_when_it_is_opened() {
    let (_, file) = example();
    let whole = fs::read(file.path()).unwrap();
    let boundaries = used(&file.open()).into_iter().flat_map(|range| [range.start, range.end]);
    let tenths = (0..10).map(|tenth| whole.len() as u64 * tenth / 10);
    let others = [1, 8, 11, 12, 127, 128, whole.len() as u64 - 40, whole.len() as u64 - 1];

    for length in boundaries.chain(tenths).chain(others) {
        fs::write(file.path(), &whole[..length as usize]).unwrap();
        let error = MemoryReader::open(&file.path()).unwrap_err();
        let cut = match error.fault {
            Fault::CutShort { .. } => length >= 12,
            Fault::NotASnapshot { .. } => length < 12,
            _ => false,
        };
        assert!(cut, "{length}: {error:?}");
    }
}

#[test]
fn bytes_behind_the_table_are_refused() {
    let (_, file) = example();
    let mut bytes = fs::read(file.path()).unwrap();
    bytes.push(0);
    fs::write(file.path(), bytes).unwrap();

    let error = MemoryReader::open(&file.path()).unwrap_err();

    assert!(matches!(error.fault, Fault::TooLong { .. }), "{error:?}");
}

#[test]
fn a_file_that_shrinks_while_it_is_read_is_an_error() {
    let (memory, file) = example();
    let reader = file.open();
    fs::File::options().write(true).open(file.path()).unwrap().set_len(30_000).unwrap();

    let error = load_memory(&like(&memory), &reader, &mut |_| {}).unwrap_err();

    assert!(matches!(error.fault, Fault::CutShort { .. }), "{error:?}");
}

#[test]
fn a_file_that_is_replaced_under_its_name_stays_open() {
    let (memory, file) = example();
    let reader = file.open();
    let other = file.folder.path().join("other");
    fs::write(&other, "something else").unwrap();
    fs::rename(&other, file.path()).unwrap();
    let loaded = like(&memory);

    load_memory(&loaded, &reader, &mut |_| {}).unwrap();

    assert!(loaded.same(&memory));
}

#[test]
fn another_version_is_named() {
    let (_, file) = example();
    for (at, version) in [(8, "2.0"), (10, "1.1")] {
        let mut bytes = fs::read(file.path()).unwrap();
        bytes[at] += 1;
        let path = file.folder.path().join("newer");
        fs::write(&path, bytes).unwrap();

        let error = MemoryReader::open(&path).unwrap_err();

        let text = crate::error::chain(&error);
        assert!(text.contains(&format!("has version {version}")), "{text}");
        assert!(text.contains("version 1.0 only") && text.contains("newer"), "{text}");
    }
}

#[test]
fn what_is_no_memory_file_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("file");
    let fault = || MemoryReader::open(&path).unwrap_err().fault;
    assert!(matches!(fault(), Fault::Open(_)));
    for text in
        ["", "text", "a text that is longer than a header has to be to be one".repeat(3).as_str()]
    {
        fs::write(&path, text).unwrap();
        assert!(matches!(fault(), Fault::NotASnapshot { wanted: Role::Memory }), "{text}");
    }
    fs::write(&path, b"\x8fTESST\r\n\x01\0\0\0").unwrap();
    assert!(matches!(fault(), Fault::OtherRole { found: Role::State, wanted: Role::Memory }));
    fs::remove_file(&path).unwrap();
    fs::create_dir(&path).unwrap();
    assert!(matches!(fault(), Fault::NotRegular));
    fs::remove_dir(&path).unwrap();
    rustix::fs::mknodat(
        rustix::fs::CWD,
        &path,
        rustix::fs::FileType::Fifo,
        rustix::fs::Mode::RWXU,
        0,
    )
    .unwrap();
    assert!(matches!(fault(), Fault::NotRegular));
}

#[test]
fn memory_of_another_kind_does_not_take_it() {
    let (_, file) = example();
    let reader = file.open();
    let fault = |chunks, page, tagged| {
        let memory = FakeMemory::new(chunks, Bytes::kib(page), tagged);
        let error = load_memory(&memory, &reader, &mut |_| {}).unwrap_err();
        assert!(memory.data().iter().all(|byte| *byte == 0));
        error.fault
    };
    assert!(matches!(fault(2, 4, true), Fault::MemorySize { .. }));
    assert!(matches!(fault(4, 4, true), Fault::MemorySize { .. }));
    assert!(matches!(fault(3, 16, true), Fault::PageSize { .. }));
    assert!(matches!(fault(3, 4, false), Fault::Tagged));

    let untagged = File::of(&FakeMemory::new(1, Bytes::kib(4), false));
    let tagged = FakeMemory::new(1, Bytes::kib(4), true);
    let error = load_memory(&tagged, &untagged.open(), &mut |_| {}).unwrap_err();
    assert!(matches!(error.fault, Fault::Untagged));
}
