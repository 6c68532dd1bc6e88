#![allow(clippy::unwrap_used)]

use std::collections::VecDeque;
use std::fs;
use std::sync::Mutex;

use arch::layout::{CHUNK, RAM_BASE};
use proptest::prelude::*;
use vm_memory::Bytes as _;

use super::*;
use crate::memory::{Attributes, Backing, Error, Footprint};

const PAGE: u64 = 4096;

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Event {
    Before(MemoryRange),
    Discard(MemoryRange),
    After(MemoryRange, Outcome),
    Renew(MemoryRange),
}

/// What happened to memory and reservations, in order.
#[derive(Clone, Default)]
struct Trace(Arc<Mutex<Vec<Event>>>);

impl Trace {
    fn add(&self, event: Event) {
        self.0.lock().unwrap().push(event);
    }

    fn take(&self) -> Vec<Event> {
        std::mem::take(&mut self.0.lock().unwrap())
    }
}

impl DiscardHooks for Trace {
    fn before(&mut self, range: MemoryRange) {
        self.add(Event::Before(range));
    }

    fn after(&mut self, range: MemoryRange, outcome: Outcome) {
        self.add(Event::After(range, outcome));
    }

    fn renewal(&self) -> Renewal {
        Renewal::AtOnce
    }
}

/// A hook for memory whose touches are watched.
struct Watched(Renewal);

impl DiscardHooks for Watched {
    fn before(&mut self, _: MemoryRange) {}

    fn after(&mut self, _: MemoryRange, _: Outcome) {}

    fn renewal(&self) -> Renewal {
        self.0
    }
}

/// Memory that answers from a list, and then always well.
struct FakePages {
    trace: Trace,
    ranges: Vec<MemoryRange>,
    answers: Mutex<VecDeque<i32>>,
}

impl Pages for FakePages {
    fn ranges(&self) -> Vec<MemoryRange> {
        self.ranges.clone()
    }

    fn page_size(&self) -> Bytes {
        Bytes::new(PAGE)
    }

    fn discard(&self, range: MemoryRange) -> io::Result<Bytes> {
        self.trace.add(Event::Discard(range));
        match self.answers.lock().unwrap().pop_front() {
            None | Some(0) => Ok(range.size),
            Some(errno) => Err(io::Error::from_raw_os_error(errno)),
        }
    }

    fn huge_page_size(&self) -> Option<Bytes> {
        Some(Bytes::new(4 * PAGE))
    }

    fn renew(&self, range: MemoryRange) -> io::Result<Bytes> {
        self.trace.add(Event::Renew(range));
        Ok(range.size)
    }
}

fn pages(first: u64, count: u64) -> MemoryRange {
    MemoryRange::new(GuestAddress(first * PAGE), Bytes::new(count * PAGE))
}

fn guest(start: u64, length: u64) -> GuestRange {
    GuestRange { start: GuestAddress(start), length }
}

/// A reclaimer of two pieces of memory, pages 10 to 19 and 30 to 39.
fn reclaimer(answers: &[i32]) -> (Reclaimer, Trace) {
    let trace = Trace::default();
    (over(answers, &trace, Box::new(trace.clone())), trace)
}

fn over(answers: &[i32], trace: &Trace, hooks: Box<dyn DiscardHooks>) -> Reclaimer {
    let memory = FakePages {
        trace: trace.clone(),
        ranges: vec![pages(10, 10), pages(30, 10)],
        answers: Mutex::new(answers.iter().copied().collect()),
    };
    Reclaimer::over(Box::new(memory), hooks)
}

/// What is to happen to a range that is discarded in so many tries.
fn discarded(range: MemoryRange, tries: u32, outcome: Outcome) -> Vec<Event> {
    let mut events = vec![Event::Before(range)];
    events.extend((0..tries).map(|_| Event::Discard(range)));
    events.push(Event::After(range, outcome));
    events
}

#[test]
fn a_discard_is_announced_and_done_before_its_reservation_is_freed() {
    let (mut reclaimer, trace) = reclaimer(&[]);

    let done = reclaimer.discard(guest(12 * PAGE, 3 * PAGE));

    assert_eq!(trace.take(), discarded(pages(12, 3), 1, Outcome::Gone));
    assert_eq!(done, Discarded { discarded: 3 * PAGE, failed: 0 });
}

#[test]
fn a_failed_discard_frees_nothing_and_is_counted_with_its_reason() {
    let (mut reclaimer, trace) = reclaimer(&[libc::EINVAL]);

    let done = reclaimer.discard(guest(12 * PAGE, 3 * PAGE));

    assert_eq!(trace.take(), discarded(pages(12, 3), 1, Outcome::Failed));
    assert_eq!(done, Discarded { discarded: 0, failed: 3 * PAGE });
    let counters = reclaimer.counters();
    assert_eq!(counters.last_error().unwrap().raw_os_error(), Some(libc::EINVAL));
}

#[test]
fn a_host_without_time_is_asked_again() {
    let (mut reclaimer, trace) = reclaimer(&[libc::EINTR, libc::EAGAIN]);

    let done = reclaimer.discard(guest(12 * PAGE, PAGE));

    assert_eq!(trace.take(), discarded(pages(12, 1), 3, Outcome::Gone));
    assert_eq!(done.discarded, PAGE);
    assert_eq!(reclaimer.counters().retries.get(), 2);
    assert!(reclaimer.counters().last_error().is_none());
}

#[test]
fn a_host_that_never_has_time_is_given_up() {
    let (mut reclaimer, trace) = reclaimer(&[libc::EINTR; 100]);

    let done = reclaimer.discard(guest(12 * PAGE, PAGE));

    assert_eq!(trace.take(), discarded(pages(12, 1), TRIES, Outcome::Failed));
    assert_eq!(done, Discarded { discarded: 0, failed: PAGE });
}

#[test]
fn a_range_over_two_pieces_of_memory_is_split_and_one_may_fail() {
    let (mut reclaimer, trace) = reclaimer(&[libc::ENOMEM]);

    let done = reclaimer.discard(guest(15 * PAGE, 20 * PAGE));

    let mut expected = discarded(pages(15, 5), 1, Outcome::Failed);
    expected.extend(discarded(pages(30, 5), 1, Outcome::Gone));
    assert_eq!(trace.take(), expected);
    assert_eq!(done, Discarded { discarded: 5 * PAGE, failed: 5 * PAGE });
}

#[test]
fn ranges_outside_memory_or_less_than_a_page_touch_nothing() {
    let (mut reclaimer, trace) = reclaimer(&[]);
    for (start, length) in [
        (0, 0),
        (0, 10 * PAGE),
        (20 * PAGE, 10 * PAGE),
        (40 * PAGE, u64::MAX),
        (u64::MAX, u64::MAX),
        (12 * PAGE, 0),
        (12 * PAGE, PAGE - 1),
        (12 * PAGE + 1, 2 * PAGE - 2),
        (0, 10 * PAGE + PAGE - 1),
    ] {
        assert_eq!(reclaimer.discard(guest(start, length)), Discarded::default());
    }
    assert_eq!(trace.take(), []);
}

#[test]
fn a_range_that_passes_the_end_of_the_address_space_ends_there() {
    let (mut reclaimer, _) = reclaimer(&[]);

    let done = reclaimer.discard(guest(35 * PAGE, u64::MAX));

    assert_eq!(done.discarded, 5 * PAGE);
}

proptest! {
    #[test]
    fn whole_pages_are_those_whose_every_byte_is_in_both(
        page in prop_oneof![Just(1u64), Just(4), Just(16)],
        base in 0u64..8,
        count in 1u64..12,
        start in 0u64..400,
        length in 0u64..400,
        top: bool,
    ) {
        // The highest memory there can be ends one page below 2^64.
        let offset = if top { u64::MAX - 15 - 20 * 16 } else { 0 };
        let memory = MemoryRange::new(
            GuestAddress(offset + base * page),
            Bytes::new(count * page),
        );
        let range = guest(offset.saturating_add(start), length);
        let last = range.start.0.saturating_add(length);
        let named = |byte: u64| range.start.0 <= byte && byte < last;
        let expected: Vec<u64> = (0..count)
            .map(|index| memory.base.0 + index * page)
            .filter(|first| (0..page).all(|byte| named(first + byte)))
            .collect();

        let found = whole_pages(range, memory, Bytes::new(page));

        let found = found.map_or(vec![], |found| {
            (found.base.0..found.end().0).step_by(page as usize).collect()
        });
        prop_assert_eq!(found, expected);
    }

    #[test]
    fn whatever_the_host_answers_each_discard_has_its_announcement_and_its_end(
        answers in prop::collection::vec(
            prop_oneof![Just(0), Just(libc::EINTR), Just(libc::EAGAIN), Just(libc::EBUSY)],
            0..40,
        ),
        ranges in prop::collection::vec((0..45 * PAGE, 0..45 * PAGE), 1..6),
    ) {
        let (mut reclaimer, trace) = reclaimer(&answers);

        let mut sum = Discarded::default();
        for (start, length) in ranges {
            let done = reclaimer.discard(guest(start, length));
            sum.discarded += done.discarded;
            sum.failed += done.failed;
        }

        let mut found = Discarded::default();
        let mut open = None;
        for event in trace.take() {
            match (event, open) {
                (Event::Before(range), None) => open = Some(range),
                (Event::Discard(range), Some(announced)) => prop_assert_eq!(range, announced),
                (Event::Renew(range), Some(announced)) => {
                    prop_assert!(announced.encloses(&range));
                }
                (Event::After(range, outcome), Some(announced)) => {
                    prop_assert_eq!(range, announced);
                    match outcome {
                        Outcome::Gone => found.discarded += range.size.get(),
                        Outcome::Failed => found.failed += range.size.get(),
                    }
                    open = None;
                }
                (event, open) => prop_assert!(false, "{event:?} while {open:?} is announced"),
            }
        }
        prop_assert_eq!((open, found), (None, sum));
    }

    #[test]
    fn any_range_is_split_into_whole_pages_of_memory(start: u64, length: u64, near: bool) {
        let (mut reclaimer, trace) = reclaimer(&[]);
        let range = match near {
            true => guest(start % (50 * PAGE), length % (50 * PAGE)),
            false => guest(start, length),
        };

        let done = reclaimer.discard(range);

        let mut sum = 0;
        for event in trace.take() {
            let Event::Discard(part) = event else { continue };
            let inside = [pages(10, 10), pages(30, 10)].iter().any(|all| all.encloses(&part));
            prop_assert!(inside && range.start <= part.base);
            prop_assert!(part.base.0.is_multiple_of(PAGE) && part.size.get().is_multiple_of(PAGE));
            prop_assert!(u128::from(part.end().0) <= u128::from(range.start.0) + u128::from(range.length));
            sum += part.size.get();
        }
        prop_assert_eq!(done, Discarded { discarded: sum, failed: 0 });
    }
}

/// Real memory of 8 MiB: what is discarded inside it reads zero and is no longer resident, and its
/// neighbours stay as they are.
fn discards_and_refaults(ram: &GuestRam) {
    let page = ram.backing().page_size().get();
    let size = ram.range().size.get();
    let pattern: Vec<u8> = (0..size).map(|at| (at / 7 + at / 4096) as u8 | 1).collect();
    ram.write_slice(&pattern, RAM_BASE).unwrap();
    let full = Footprint::of(ram).unwrap();
    let mut reclaimer = Reclaimer::new(ram.clone(), Box::new(NoHooks));
    // From within the first page to within the last: those two stay.
    let inner = size - 2 * page;

    let done = reclaimer.discard(guest(RAM_BASE.0 + 1, size - 2));

    assert_eq!(done, Discarded { discarded: inner, failed: 0 });
    let left = Footprint::of(ram).unwrap();
    assert_eq!(full.resident.get(), size);
    assert_eq!(left.resident.get(), 2 * page);
    let mut bytes = vec![1; size as usize];
    ram.read_slice(&mut bytes, RAM_BASE).unwrap();
    let (first, rest) = bytes.split_at(page as usize);
    let (middle, last) = rest.split_at(inner as usize);
    assert!(first == &pattern[..page as usize], "the first page has changed");
    assert!(middle.iter().all(|byte| *byte == 0), "discarded bytes are left");
    assert!(last == &pattern[(size - page) as usize..], "the last page has changed");

    ram.write_slice(&pattern, RAM_BASE).unwrap();
    ram.read_slice(&mut bytes, RAM_BASE).unwrap();
    assert!(bytes == pattern, "memory cannot be used again");
    assert_eq!(Footprint::of(ram).unwrap().resident.get(), size);
}

fn ram(backing: Backing, huge_pages: bool) -> Result<GuestRam, Error> {
    GuestRam::new(Bytes::mib(8), Attributes { tags: false, huge_pages, backing })
}

#[test]
fn anonymous_memory_goes_back() {
    for huge_pages in [false, true] {
        discards_and_refaults(&ram(Backing::Anonymous, huge_pages).unwrap());
    }
}

#[test]
fn memory_of_a_memfd_goes_back() {
    for huge_pages in [false, true] {
        discards_and_refaults(&ram(Backing::Memfd, huge_pages).unwrap());
    }
}

/// With a pool of four pages or more this shows the discard, and otherwise that the refusal comes when
/// memory is made, and not as a signal later.
#[test]
fn memory_of_hugetlbfs_goes_back_or_is_refused_at_once() {
    match ram(Backing::Hugetlbfs { page: Bytes::mib(2) }, false) {
        Ok(ram) => discards_and_refaults(&ram),
        Err(Error::HugePages { free, .. }) => assert!(free.is_none_or(|free| free < 4), "{free:?}"),
        Err(Error::File { .. } | Error::NoSuchHugePages { .. }) => {
            assert!(!std::path::Path::new("/sys/kernel/mm/hugepages/hugepages-2048kB").exists());
        }
        Err(other) => panic!("{other:?}"),
    }
}

#[test]
fn small_pages_of_a_huge_page_go_back_one_by_one() {
    for backing in [Backing::Anonymous, Backing::Memfd] {
        let ram = ram(backing, true).unwrap();
        ram.write_slice(&[1; 4 << 20], RAM_BASE).unwrap();
        let page = backing.page_size().get();
        let mut reclaimer = Reclaimer::new(ram.clone(), Box::new(NoHooks));

        for index in (1..64).step_by(2) {
            let done = reclaimer.discard(guest(RAM_BASE.0 + index * page, page));
            assert_eq!(done.discarded, page, "{index}");
        }

        for index in 0..64 {
            let byte: u8 = ram.read_obj(GuestAddress(RAM_BASE.0 + index * page)).unwrap();
            assert_eq!(u64::from(byte), 1 - index % 2, "page {index}");
        }
    }
}

/// What has been renewed.
fn renewed(trace: &Trace) -> Vec<MemoryRange> {
    let renewed = trace.take().into_iter().filter_map(|event| match event {
        Event::Renew(range) => Some(range),
        _ => None,
    });
    renewed.collect()
}

// Huge pages have four pages, counted from where each piece of memory begins: 10 to 13, 14 to 17; 30 to 33, 34 to 37.
#[test]
fn huge_pages_that_went_in_pieces_are_renewed_when_they_are_whole() {
    let (mut reclaimer, trace) = reclaimer(&[]);
    assert_eq!(reclaimer.huge_page_size(), Some(4 * PAGE));

    // Whole at once: the host has kept nothing.
    reclaimer.discard(guest(10 * PAGE, 8 * PAGE));
    reclaimer.renew(guest(0, 40 * PAGE));
    assert_eq!(renewed(&trace), []);

    // In pieces, and whole with the last, of which only the caller knows; or all of it once more.
    reclaimer.discard(guest(11 * PAGE, 4 * PAGE));
    reclaimer.renew(guest(10 * PAGE, 4 * PAGE));
    assert_eq!(renewed(&trace), [pages(10, 4)]);
    reclaimer.discard(guest(13 * PAGE, 6 * PAGE));
    assert_eq!(renewed(&trace), [pages(14, 4)]);
    reclaimer.discard(guest(33 * PAGE, PAGE));
    reclaimer.discard(guest(30 * PAGE, 8 * PAGE));
    assert_eq!(renewed(&trace), [pages(30, 4)]);

    assert_eq!(reclaimer.counters().renewed.get(), 3);
}

#[test]
fn nothing_is_renewed_where_touches_are_watched_or_the_host_kept_a_page() {
    let (mut kept, trace) = reclaimer(&[0, 0, 1]);
    kept.discard(guest(30 * PAGE, PAGE));
    kept.discard(guest(10 * PAGE, PAGE));
    kept.discard(guest(10 * PAGE, 4 * PAGE));
    assert_eq!(renewed(&trace), []);

    for renewal in [Renewal::Never, Renewal::ByHooks] {
        let is_looked_at = renewal == Renewal::ByHooks;
        let mut watched = over(&[], &trace, Box::new(Watched(renewal)));
        assert_eq!(watched.huge_page_size(), is_looked_at.then_some(4 * PAGE));
        watched.discard(guest(10 * PAGE, PAGE));
        watched.discard(guest(10 * PAGE, 4 * PAGE));
        watched.discard(guest(14 * PAGE, PAGE));
        watched.renew(guest(0, 40 * PAGE));
        assert_eq!(renewed(&trace), []);
        assert_eq!(watched.counters().renewed.get(), if is_looked_at { 2 } else { 0 });
    }
}

#[test]
fn a_chunk_that_went_in_pieces_is_renewed_as_zeroes_in_the_mapping_that_it_was_in() {
    let ram = ram(Backing::Anonymous, true).unwrap();
    let range = MemoryRange::new(GuestAddress(RAM_BASE.0 + CHUNK.get()), CHUNK);
    let lines_of_ram = || {
        let of_ram = ram.host_range();
        let start = |line: &str| u64::from_str_radix(line.split('-').next().unwrap(), 16).unwrap();
        let maps = fs::read_to_string("/proc/self/maps").unwrap();
        maps.lines().filter(|line| of_ram.contains(&start(line))).count()
    };
    let before = lines_of_ram();
    ram.write_obj(0xa5_u8, range.base).unwrap();
    ram.write_obj(0xa5_u8, RAM_BASE).unwrap();

    assert_eq!(ram.renew(range).unwrap(), CHUNK);

    assert_eq!(lines_of_ram(), before);
    assert_eq!(ram.read_obj::<u8>(range.base).unwrap(), 0);
    assert_eq!(ram.read_obj::<u8>(RAM_BASE).unwrap(), 0xa5);
    assert!(ram.renew(MemoryRange::new(RAM_BASE, Bytes::new(u64::MAX - (1 << 40)))).is_err());
}

#[test]
fn locked_memory_fails_to_go_and_stays() {
    for backing in [Backing::Anonymous, Backing::Memfd] {
        let ram = ram(backing, false).unwrap();
        // Hosts whose limit is lower are the business of the lock's own test.
        if ram.lock().is_err() {
            assert!(!ram.is_locked());
            continue;
        }
        ram.write_obj(7u8, RAM_BASE).unwrap();
        let mut reclaimer = Reclaimer::new(ram.clone(), Box::new(NoHooks));

        let done = reclaimer.discard(guest(RAM_BASE.0, 8 << 20));

        assert_eq!(done, Discarded { discarded: 0, failed: 8 << 20 });
        assert_eq!(ram.read_obj::<u8>(RAM_BASE).unwrap(), 7);
    }
}
