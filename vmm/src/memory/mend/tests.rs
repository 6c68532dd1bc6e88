#![allow(clippy::unwrap_used)]

use arch::layout::{CHUNK, RAM_BASE};
use arch::units::Bytes;
use devices::ports::{GuestRange, Reclaim};
use vm_memory::{Bytes as _, GuestAddress};

use super::*;
use crate::memory::{Attributes, Backing, Footprint, NoHooks, Reclaimer};
use crate::testing::{Means, skip};

const PAGE: u64 = 4096;
const PAGES: u64 = 512;

fn looked(present: u16) -> PagesInMemory {
    PagesInMemory { present, of: 512, first: 0 }
}

fn seen(present: u16, is_given_up: bool) -> SplitPage {
    SplitPage { present: Some(present), is_given_up, ..SplitPage::default() }
}

#[test]
fn a_page_is_mended_when_hardly_any_is_missing_and_given_up_when_half_has_gone() {
    for (present, expected) in [
        (512, Plan::Mend),
        (480, Plan::Mend),
        (479, Plan::Leave),
        (257, Plan::Leave),
        (256, Plan::GiveUp),
        (1, Plan::GiveUp),
        (0, Plan::Leave),
    ] {
        assert_eq!(plan(&looked(present), seen(present, false)), expected, "{present}");
    }
}

#[test]
fn a_page_is_left_alone_while_it_changes_and_given_up_once() {
    assert_eq!(plan(&looked(512), SplitPage::default()), Plan::Leave);
    assert_eq!(plan(&looked(512), seen(511, false)), Plan::Leave);
    assert_eq!(plan(&looked(100), seen(100, true)), Plan::Leave);
    assert_eq!(plan(&looked(512), seen(512, true)), Plan::Mend);
}

/// Three chunks of memory in huge pages, the chunk in the middle being split.
struct Bench {
    ram: GuestRam,
    reclaimer: Reclaimer,
    mender: Mender,
}

impl Bench {
    /// `None` where the host has no huge pages of this size.
    fn new() -> Option<Self> {
        let attributes = Attributes { tags: false, backing: Backing::Anonymous, huge_pages: true };
        let ram = GuestRam::new(Bytes::new(3 * CHUNK.get()), attributes).unwrap();
        let reclaimer = Reclaimer::new(ram.clone(), Box::new(NoHooks));
        let mender = reclaimer.mender(ram.clone())?;
        let bench = Self { ram, reclaimer, mender };
        (0..3 * PAGES).for_each(|page| bench.write(page));
        Some(bench)
    }

    fn write(&self, page: u64) {
        self.ram.write_obj(page, GuestAddress(RAM_BASE.0 + page * PAGE)).unwrap();
    }

    fn read(&self, page: u64) -> u64 {
        self.ram.read_obj(GuestAddress(RAM_BASE.0 + page * PAGE)).unwrap()
    }

    fn discard(&mut self, page: u64, count: u64) {
        let start = GuestAddress(RAM_BASE.0 + page * PAGE);
        self.reclaimer.discard(GuestRange { start, length: count * PAGE });
    }

    /// Chunks that are huge pages.
    fn huge(&self) -> u64 {
        Footprint::of(&self.ram).unwrap().huge.get() / CHUNK.get()
    }

    /// Enough turns for what is at rest.
    fn turns(&mut self) {
        (0..4).for_each(|_| self.mender.turn());
    }

    fn split_and_mended(&self) -> (u64, u64) {
        (self.mender.counters.split.get(), self.mender.counters.mended.get())
    }
}

#[test]
fn a_chunk_that_went_by_half_is_split_and_is_huge_again_when_it_is_full() {
    let Some(mut bench) = Bench::new() else {
        return skip(Means::HugePages, "huge pages are off, or have another size");
    };

    let huge = bench.huge();

    bench.discard(PAGES + 100, 300);
    bench.turns();
    assert_eq!(bench.split_and_mended(), (1, 0));
    assert!(bench.huge() <= 2);

    (PAGES + 100..PAGES + 400).for_each(|page| bench.write(page));
    bench.turns();

    // Before Linux 6.1 it does not know how.
    if bench.mender.can_mend {
        assert_eq!((bench.split_and_mended(), bench.huge()), ((1, 1), huge));
        assert!(bench.mender.split.lock().is_empty());
    }
    for page in 0..3 * PAGES {
        assert_eq!(bench.read(page), page);
    }
}

#[test]
fn what_is_missing_of_a_mended_chunk_reads_zero() {
    let Some(mut bench) = Bench::new() else {
        return skip(Means::HugePages, "huge pages are off, or have another size");
    };

    bench.discard(PAGES + 7, 20);
    bench.turns();

    for page in PAGES..2 * PAGES {
        let expected = if (PAGES + 7..PAGES + 27).contains(&page) { 0 } else { page };
        assert_eq!(bench.read(page), expected);
    }
}

#[test]
fn a_turn_comes_after_the_first_piece_and_none_when_no_page_is_split() {
    let Some(mut bench) = Bench::new() else {
        return skip(Means::HugePages, "huge pages are off, or have another size");
    };
    assert!(!bench.mender.timer().is_set());

    bench.discard(PAGES, 1);
    assert!(bench.mender.timer().is_set());
    bench.discard(PAGES, PAGES);
    bench.mender.timer().once(Duration::ZERO).unwrap();
    bench.turns();

    assert!(!bench.mender.timer().is_set());
}
