#![allow(clippy::unwrap_used)]

use std::cell::Cell;
use std::io;

use proptest::prelude::*;

use super::*;

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

fn count(
    pagemap: &impl ReadAt,
    page_flags: &impl ReadAt,
    addresses: &Range<u64>,
) -> Result<Bytes, Error> {
    tagged(pagemap, page_flags, addresses, PAGE, &AtomicBool::new(false))
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

    let found = count(&pagemap, &flags, &addresses(100, 4)).unwrap();

    assert_eq!(found, Bytes::new(2 * PAGE));
}

#[test]
fn the_page_of_zeroes_is_left_out() {
    let pagemap = Words::new(10, |_| PRESENT | 1);
    let flags = Words::new(2, |_| TAGGED | ZERO_PAGE);

    let found = count(&pagemap, &flags, &addresses(0, 10)).unwrap();

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

    let found = count(&pagemap, &flags, &addresses(0, 1024)).unwrap();

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

    let found = count(&pagemap, &flags, &addresses(0, 512)).unwrap();

    assert_eq!(found, Bytes::new(2 * PAGE));
}

#[test]
fn large_memory_is_read_in_pieces_and_neighbouring_frames_together() {
    let pages = 1 << 20;
    let pagemap = Words::new(pages, |page| PRESENT | (page + 1));
    let flags = Words::new(pages + 1, |_| TAGGED);

    let found = count(&pagemap, &flags, &addresses(0, pages)).unwrap();

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

    let found = count(&pagemap, &flags, &addresses(0, 20)).unwrap();

    assert_eq!(found, Bytes::new(10 * PAGE));
}

#[test]
fn frames_that_are_withheld_are_told_apart_from_memory_without_tags() {
    let pagemap = Words::new(20, |_| PRESENT);
    let flags = Words::new(20, |_| 0);

    let error = count(&pagemap, &flags, &addresses(0, 20)).unwrap_err();

    assert!(matches!(error, Error::NoFrames), "{error:?}");
    assert_eq!(flags.reads.get(), 0);
}

#[test]
fn files_that_end_early_are_errors() {
    let pagemap = Words::new(20, |page| PRESENT | (page + 1));
    let short = Words::new(10, |_| 0);

    let no_flags = count(&pagemap, &short, &addresses(0, 20)).unwrap_err();
    let no_pages = count(&short, &short, &addresses(0, 20)).unwrap_err();

    assert!(matches!(no_flags, Error::PageFlags(_)), "{no_flags:?}");
    assert!(matches!(no_pages, Error::Pagemap(_)), "{no_pages:?}");
}

#[test]
fn a_count_ends_when_it_is_to_stop() {
    let pagemap = Words::new(20, |_| PRESENT | 1);

    let stopped = tagged(&pagemap, &pagemap, &addresses(0, 20), PAGE, &AtomicBool::new(true));

    assert!(matches!(stopped, Err(Error::Stopped)));
    assert_eq!(pagemap.reads.get(), 0);
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
}
