#![allow(clippy::unwrap_used)]

use std::cell::Cell;

use proptest::prelude::*;
use vm_memory::{Bytes as _, GuestAddress};

use super::*;
use crate::memory::{Attributes, Backing};

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

#[test]
fn the_mappings_of_guest_memory_are_added_up() {
    let both = resident(SMAPS.as_bytes(), &(0x7f00_0000_0000..0x7f00_00c0_0000)).unwrap();
    let first = resident(SMAPS.as_bytes(), &(0x7f00_0000_0000..0x7f00_0080_0000)).unwrap();

    assert_eq!(first, Resident { resident: kib(6144), huge: kib(4096) });
    let resident = kib(6144 + 3072 + 1024 + 512);
    assert_eq!(both, Resident { resident, huge: kib(4096 + 2048 + 1024 + 512) });
}

#[test]
fn memory_that_smaps_does_not_show_as_it_is_has_no_number() {
    for (start, end) in [
        (0x7f00_0000_0000, 0x7f00_0080_1000),
        (0x7f00_0000_1000, 0x7f00_0080_0000),
        (0x7f00_0040_0000, 0x7f00_0060_0000),
        (0x1000, 0x2000),
    ] {
        let error = resident(SMAPS.as_bytes(), &(start..end)).unwrap_err();
        assert!(matches!(error, Error::Torn { .. }), "{error:?}");
    }
}

#[test]
fn names_of_any_bytes_are_passed_over() {
    let mut text = b"1000-2000 r--p 00000000 00:01 7 /srv/\xff\xfe: 12 kB\nRss: 4 kB\n".to_vec();
    text.extend(SMAPS.as_bytes());

    let found = resident(&*text, &(0x7f00_0000_0000..0x7f00_0080_0000)).unwrap();

    assert_eq!(found.resident, kib(6144));
}

/// A file of 64-bit words that counts its reads, and gives no more than `most` bytes at once.
struct Words<F> {
    word: F,
    count: u64,
    most: usize,
    reads: Cell<u64>,
    largest: Cell<usize>,
}

impl<F: Fn(u64) -> u64> Words<F> {
    fn new(count: u64, word: F) -> Self {
        Self { word, count, most: usize::MAX, reads: Cell::new(0), largest: Cell::new(0) }
    }
}

impl<F: Fn(u64) -> u64> ReadAt for Words<F> {
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        self.reads.set(self.reads.get() + 1);
        self.largest.set(self.largest.get().max(buffer.len()));
        let mut done = 0;
        while done < buffer.len().min(self.most) && offset + (done as u64) < self.count * 8 {
            let at = offset + done as u64;
            buffer[done] = (self.word)(at / 8).to_ne_bytes()[(at % 8) as usize];
            done += 1;
        }
        Ok(done)
    }
}

const PAGE: u64 = 4096;

fn addresses(first: u64, count: u64) -> Range<u64> {
    first * PAGE..(first + count) * PAGE
}

#[test]
fn tagged_pages_are_those_whose_frames_have_the_flag() {
    // Pages 100 to 103: frame 7, absent, frame 3, frame 4.
    let pagemap = Words::new(1000, |page| match page {
        100 => PRESENT | 7,
        // Swapped out: its low bits are no frame.
        101 => 1 << 62 | 9,
        // Soft-dirty and exclusive beside the frame.
        102 => PRESENT | 1 << 55 | 1 << 56 | 3,
        103 => PRESENT | 4,
        _ => PRESENT | 9,
    });
    let flags = Words::new(10, |frame| if [3, 7, 9].contains(&frame) { TAGGED } else { 1 << 5 });

    let found = tagged(&pagemap, &flags, &addresses(100, 4), PAGE).unwrap();

    assert_eq!(found, Bytes::new(2 * PAGE));
}

#[test]
fn the_page_of_zeroes_is_nobodys() {
    let pagemap = Words::new(10, |_| PRESENT | 1);
    let flags = Words::new(2, |_| TAGGED | ZERO_PAGE);

    let found = tagged(&pagemap, &flags, &addresses(0, 10), PAGE).unwrap();

    assert_eq!(found, Bytes::ZERO);
}

#[test]
fn a_page_of_hugetlbfs_is_tagged_as_its_head_is() {
    // Two of 512: the second one is.
    let pagemap = Words::new(1024, |page| PRESENT | (page + 1024));
    let flags = Words::new(2048, |frame| match frame {
        1024 => HUGETLB | COMPOUND_HEAD,
        1536 => HUGETLB | COMPOUND_HEAD | TAGGED,
        _ => HUGETLB | COMPOUND_TAIL,
    });

    let found = tagged(&pagemap, &flags, &addresses(0, 1024), PAGE).unwrap();

    assert_eq!(found, Bytes::mib(2));
}

#[test]
fn pages_of_a_transparent_huge_page_are_tagged_each_for_itself() {
    let pagemap = Words::new(512, |page| PRESENT | (page + 512));
    let flags = Words::new(1024, |frame| match frame {
        512 => COMPOUND_HEAD | TAGGED,
        600 => COMPOUND_TAIL | TAGGED,
        _ => COMPOUND_TAIL,
    });

    let found = tagged(&pagemap, &flags, &addresses(0, 512), PAGE).unwrap();

    assert_eq!(found, Bytes::new(2 * PAGE));
}

#[test]
fn large_memory_is_read_in_pieces_and_neighbouring_frames_together() {
    let pages = 1 << 20;
    let pagemap = Words::new(pages, |page| PRESENT | (page + 1));
    let flags = Words::new(pages + 1, |_| TAGGED);

    let found = tagged(&pagemap, &flags, &addresses(0, pages), PAGE).unwrap();

    assert_eq!(found, Bytes::gib(4));
    for file in [(&pagemap.reads, &pagemap.largest), (&flags.reads, &flags.largest)] {
        assert_eq!(file.0.get(), pages / PIECE as u64);
        assert_eq!(file.1.get(), PIECE * ENTRY);
    }
}

#[test]
fn short_reads_are_continued() {
    let mut pagemap = Words::new(20, |page| PRESENT | (page + 1));
    let mut flags = Words::new(21, |frame| if frame % 2 == 0 { TAGGED } else { 0 });
    (pagemap.most, flags.most) = (5, 3);

    let found = tagged(&pagemap, &flags, &addresses(0, 20), PAGE).unwrap();

    assert_eq!(found, Bytes::new(10 * PAGE));
}

#[test]
fn frames_that_are_withheld_are_told_apart_from_memory_without_tags() {
    let pagemap = Words::new(20, |_| PRESENT);
    let flags = Words::new(20, |_| 0);

    let error = tagged(&pagemap, &flags, &addresses(0, 20), PAGE).unwrap_err();

    assert!(matches!(error, Error::NoFrames), "{error:?}");
    assert_eq!(flags.reads.get(), 0);
}

#[test]
fn files_that_end_early_are_errors() {
    let pagemap = Words::new(20, |page| PRESENT | (page + 1));
    let short = Words::new(10, |_| 0);

    let no_flags = tagged(&pagemap, &short, &addresses(0, 20), PAGE).unwrap_err();
    let no_pages = tagged(&short, &short, &addresses(0, 20), PAGE).unwrap_err();

    assert!(matches!(no_flags, Error::PageFlags(_)), "{no_flags:?}");
    assert!(matches!(no_pages, Error::Pagemap(_)), "{no_pages:?}");
}

proptest! {
    #[test]
    fn runs_are_the_present_frames_in_order(
        pages in proptest::collection::vec((any::<bool>(), 0u64..6), 0..40),
    ) {
        let entries: Vec<u8> = pages
            .iter()
            .flat_map(|(present, frame)| (u64::from(*present) << 63 | frame).to_ne_bytes())
            .collect();

        let found: Vec<u64> = runs(&entries).flatten().collect();

        let expected: Vec<u64> =
            pages.iter().filter(|(present, _)| *present).map(|(_, frame)| *frame).collect();
        prop_assert_eq!(found, expected);
    }

    #[test]
    fn no_text_in_the_place_of_smaps_panics(text in "([0-9a-f]{0,20}-?[0-9a-fx]{0,20} ?(Rss:)?\n?){0,9}") {
        let _ = resident(text.as_bytes(), &(0..4096));
    }
}

#[test]
fn touched_memory_is_resident_and_the_rest_is_not() {
    for backing in [Backing::Anonymous, Backing::Memfd] {
        let attributes = Attributes { backing, ..Attributes::default() };
        let ram = GuestRam::new(Bytes::mib(4), attributes).unwrap();
        let base = ram.range().base;
        let page = backing.page_size();
        assert_eq!(Footprint::of(&ram).unwrap().resident, Bytes::ZERO);

        for index in [0, 3, 4] {
            ram.write_obj(1u8, GuestAddress(base.0 + index * page.get())).unwrap();
        }

        let footprint = Footprint::of(&ram).unwrap();
        assert_eq!(footprint.resident, Bytes::new(3 * page.get()));
        assert_eq!(footprint.huge, Bytes::ZERO);
        // No guest has touched it: no tags are in use, where they can be counted.
        assert!(footprint.tagged.is_err() || footprint.tagged.is_ok_and(|tagged| tagged.is_zero()));
    }
}
