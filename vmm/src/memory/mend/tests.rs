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
    PagesInMemory { present, of: 512 }
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
        let mut mender = reclaimer.mender(ram.clone())?;
        mender.has_room = || true;
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

    /// Turns until this holds: a try may find a page in use.
    fn turns_until(&mut self, done: impl Fn(&Self) -> bool) {
        for _ in 0..1000 {
            self.mender.turn();
            if done(self) {
                return;
            }
        }
        panic!("split and mended: {:?}", self.split_and_mended());
    }

    /// Whether the kernel does not know how to make huge pages.
    fn cannot_mend(&self) -> bool {
        let cannot = !self.mender.can_mend;
        if cannot {
            skip(Means::Collapse, "the kernel has no MADV_COLLAPSE, which came with Linux 6.1");
        }
        cannot
    }

    fn split_and_mended(&self) -> (u64, u64) {
        (self.mender.counters.split.get(), self.mender.counters.mended.get())
    }
}

/// Huge pages that the host's kernel has split.
fn splits() -> u64 {
    let text = std::fs::read_to_string("/proc/vmstat").unwrap();
    let line = text.lines().find_map(|line| line.strip_prefix("thp_split_page "));
    line.map_or(0, |number| number.parse().unwrap())
}

#[test]
fn the_huge_page_of_a_chunk_that_went_by_half_is_split_wherever_it_is_used_again() {
    let Some(mut bench) = Bench::new() else {
        return skip(Means::HugePages, "huge pages are off, or have another size");
    };
    let (before, is_huge) = (splits(), bench.huge() == 3);

    bench.discard(PAGES, 300);
    bench.write(PAGES);
    bench.turns_until(|bench| bench.split_and_mended() == (1, 0));

    // Others may split theirs, and none is split that never was one.
    assert!(splits() > before || !is_huge);
    (PAGES + 300..3 * PAGES).chain(0..=PAGES).for_each(|page| assert_eq!(bench.read(page), page));
}

#[test]
fn a_chunk_that_went_by_half_is_huge_again_when_it_is_full() {
    let Some(mut bench) = Bench::new() else {
        return skip(Means::HugePages, "huge pages are off, or have another size");
    };
    if bench.cannot_mend() {
        return;
    }
    let huge = bench.huge();

    bench.discard(PAGES + 100, 300);
    bench.turns_until(|bench| bench.split_and_mended() == (1, 0));
    (PAGES + 100..PAGES + 400).for_each(|page| bench.write(page));
    bench.turns_until(|bench| bench.split_and_mended() == (1, 1));

    assert!(bench.huge() >= huge);
    assert!(bench.mender.split.lock().is_empty());
    (0..3 * PAGES).for_each(|page| assert_eq!(bench.read(page), page));
}

#[test]
fn what_is_missing_of_a_mended_chunk_reads_zero() {
    let Some(mut bench) = Bench::new() else {
        return skip(Means::HugePages, "huge pages are off, or have another size");
    };
    if bench.cannot_mend() {
        return;
    }

    bench.discard(PAGES + 7, 20);
    bench.turns_until(|bench| bench.split_and_mended() == (0, 1));

    for page in PAGES..2 * PAGES {
        let expected = if (PAGES + 7..PAGES + 27).contains(&page) { 0 } else { page };
        assert_eq!(bench.read(page), expected);
    }
}

#[test]
fn a_host_without_room_mends_nothing() {
    let Some(mut bench) = Bench::new() else {
        return skip(Means::HugePages, "huge pages are off, or have another size");
    };
    bench.mender.has_room = || false;

    bench.discard(PAGES, 1);
    (0..10).for_each(|_| bench.mender.turn());

    assert_eq!(bench.split_and_mended(), (0, 0));
    assert!(!bench.mender.split.lock().is_empty());
}

#[test]
fn what_cannot_be_mended_is_tried_less_and_less_often() {
    let Some(mut bench) = Bench::new() else {
        return skip(Means::HugePages, "huge pages are off, or have another size");
    };
    bench.discard(PAGES, 1);
    let (number, _, page) = bench.mender.split.lock().next(0).unwrap();
    // No chunk of this memory.
    bench.mender.split.lock().insert(GuestAddress(RAM_BASE.0 + 5 * CHUNK.get()));

    let mut rests = Vec::new();
    let mut failed = page;
    for _ in 0..10 {
        let (number, range, _) = bench.mender.split.lock().next(2).unwrap();
        bench.mender.mend(number, range, failed);
        failed = bench.mender.split.lock().next(2).unwrap().2;
        rests.push(failed.rest);
    }

    assert_eq!(rests, [1, 2, 4, 8, 16, 32, 64, 128, 256, 256]);
    assert_eq!(bench.mender.split.lock().next(0).unwrap().0, number);
}

#[test]
fn rounds_are_rarer_the_longer_they_take() {
    let Some(mut bench) = Bench::new() else {
        return skip(Means::HugePages, "huge pages are off, or have another size");
    };
    for (millis, seconds) in [(0, 0), (40, 2), (200, 10), (6_000, 300), (u64::MAX, 300)] {
        assert_eq!(rest_after(Duration::from_millis(millis)), Duration::from_secs(seconds));
    }
    let left = |bench: &Bench| bench.mender.timer().left();
    // A turn may end early, without a look.
    let round = |bench: &mut Bench| {
        bench.mender.turn();
        while !bench.mender.looked.is_zero() {
            bench.mender.turn();
        }
    };
    // So that the page stays among those that are looked at.
    bench.mender.has_room = || false;
    bench.discard(PAGES, 1);
    round(&mut bench);
    assert!(left(&bench) <= SOON, "{:?}", left(&bench));

    bench.mender.looked = Duration::from_secs(1);
    round(&mut bench);

    let rest = left(&bench);
    assert!(rest > Duration::from_secs(45) && rest <= Duration::from_secs(51), "{rest:?}");
    assert_eq!(bench.mender.looked, Duration::ZERO);
    round(&mut bench);
    assert!(left(&bench) <= LATE, "{:?}", left(&bench));
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
    (0..4).for_each(|_| bench.mender.turn());

    assert!(!bench.mender.timer().is_set());
}
