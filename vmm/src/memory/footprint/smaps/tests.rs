#![allow(clippy::unwrap_used)]

use std::cell::Cell;

use proptest::prelude::*;

use super::*;

/// Lines as Linux 6.12 writes them, shortened; guest memory is in two mappings of 8 and 4 MiB.
const SMAPS: &str = "\
7f0000000000-7f0000800000 rw-p 00000000 00:00 0 
Size:               8192 kB
KernelPageSize:        4 kB
MMUPageSize:           4 kB
Rss:                6144 kB
Pss:                6144 kB
Private_Dirty:      6144 kB
Anonymous:          6144 kB
AnonHugePages:      4096 kB
ShmemPmdMapped:        0 kB
FilePmdMapped:         0 kB
Shared_Hugetlb:        0 kB
Private_Hugetlb:       0 kB
Swap:                  0 kB
THPeligible:           1
VmFlags: rd wr mr mw me nr dd hg mt 
7f0000800000-7f0000c00000 rw-s 00000000 00:01 1029                       /memfd:tessera-ram (deleted)
Size:               4096 kB
Rss:                3072 kB
AnonHugePages:         0 kB
ShmemPmdMapped:     2048 kB
Swap:                 12 kB
SwapPss:               6 kB
Shared_Hugetlb:     1024 kB
Private_Hugetlb:     512 kB
VmFlags: rd wr sh mr mw me ms nr dd 
7ffd00000000-7ffd00021000 rw-p 00000000 00:00 0                          [stack]
Rss:                  16 kB
AnonHugePages:       128 kB
VmFlags: rd wr mr mw me gd ac 
";

fn kib(count: u64) -> Bytes {
    Bytes::kib(count)
}

fn once(text: &[u8], addresses: Range<u64>) -> Resident {
    read_once(text, &addresses).unwrap().unwrap()
}

#[test]
fn the_mappings_of_guest_memory_are_added_up() {
    let both = once(SMAPS.as_bytes(), 0x7f00_0000_0000..0x7f00_00c0_0000);
    let first = once(SMAPS.as_bytes(), 0x7f00_0000_0000..0x7f00_0080_0000);

    let of_files = Bytes::ZERO;
    assert_eq!(
        first,
        Resident { resident: kib(6144), huge: kib(4096), of_files, ..Resident::default() }
    );
    let (resident, of_files) = (kib(6144 + 3072 + 1024 + 512), kib(3072));
    let (swapped, huge) = (kib(12), kib(4096 + 2048 + 1024 + 512));
    assert_eq!(both, Resident { resident, swapped, huge, of_files });
}

/// What smaps shows in one pass after another, each torn in its own way: the second mapping merged
/// with the first one once that was shown, the first one gone into its neighbour before it, a hole.
struct Changing {
    passes: Vec<String>,
    begun: Cell<usize>,
}

impl ReadAt for Changing {
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        if offset == 0 {
            self.begun.set(self.begun.get() + 1);
        }
        let text = &self.passes[(self.begun.get() - 1).min(self.passes.len() - 1)];
        let rest = text.as_bytes().get(offset as usize..).unwrap_or_default();
        // As much as the kernel gives at once, and less.
        let n = rest.len().min(buffer.len()).min(100);
        buffer[..n].copy_from_slice(&rest[..n]);
        Ok(n)
    }
}

const BOTH: Range<u64> = 0x7f00_0000_0000..0x7f00_00c0_0000;

/// SMAPS with the addresses of its first two mappings changed.
fn shown_as(first: &str, second: &str) -> String {
    SMAPS.replace("7f0000000000-7f0000800000", first).replace("7f0000800000-7f0000c00000", second)
}

#[test]
fn a_list_that_changes_while_it_is_read_is_read_again() {
    let shown_twice = shown_as("7f0000000000-7f0000800000", "7f0000000000-7f0000c00000");
    let in_part_twice = shown_as("7f0000000000-7f0000800000", "7f0000400000-7f0000c00000");
    let without_the_end = shown_as("7f0000000000-7f0000800000", "7f0000800000-7f0000a00000");
    let without_the_start = shown_as("7f0000400000-7f0000800000", "7f0000800000-7f0000c00000");
    // As much as there is, but other memory.
    let moved = shown_as("7f0000000000-7f0000400000", "7f0000800000-7f0001000000");
    let passes =
        vec![shown_twice, in_part_twice, without_the_end, without_the_start, moved, SMAPS.into()];
    let count = passes.len();
    let smaps = Changing { passes, begun: Cell::new(0) };

    let found = resident(&smaps, &BOTH, &AtomicBool::new(false)).unwrap();

    assert_eq!(found.resident, kib(6144 + 3072 + 1024 + 512));
    assert_eq!(smaps.begun.get(), count, "all of the torn ones were refused");
}

#[test]
fn a_list_that_never_shows_all_of_memory_is_given_up() {
    for addresses in [
        0x7f00_0000_0000..0x7f00_0080_1000,
        0x7f00_0000_1000..0x7f00_0080_0000,
        0x7f00_0040_0000..0x7f00_0060_0000,
        0x1000..0x2000,
    ] {
        let smaps = Changing { passes: vec![SMAPS.into()], begun: Cell::new(0) };
        let error = resident(&smaps, &addresses, &AtomicBool::new(false)).unwrap_err();
        assert!(matches!(error, Error::Torn { .. }), "{error:?}");
    }
}

#[test]
fn names_of_any_bytes_are_passed_over() {
    let mut text = b"1000-2000 r--p 00000000 00:01 7 /srv/\xff\xfe: 12 kB\nRss: 4 kB\n".to_vec();
    text.extend(SMAPS.as_bytes());

    let found = once(&text, 0x7f00_0000_0000..0x7f00_0080_0000);

    assert_eq!(found.resident, kib(6144));
}

proptest! {
    #[test]
    fn no_text_in_the_place_of_smaps_panics(
        text in "([0-9a-f]{0,20}-?[0-9a-fx]{0,20} ?(Rss:)?[0-9]{0,21}\n?){0,9}"
    ) {
        let _ = read_once(text.as_bytes(), &(0..4096));
    }
}
