//! Chunks that are reserved for before they are touched.

use std::sync::atomic::{AtomicBool, Ordering};

use super::*;
use crate::tag_storage::broker::testing::Scripted;

/// What is ahead stays so for as long as a test lasts.
const LIMITS: AheadLimits =
    AheadLimits { most: 16, calm: Duration::from_secs(3600), idle: Duration::MAX };

/// 64 chunks, and a pool for so many.
fn guest(backing: Backing, capacity: u64) -> Guest {
    Guest::ahead(ram_of(128, backing, false), capacity, Duration::MAX, LIMITS)
}

fn write(guest: &Guest, chunk: u64) {
    guest.ram.write_obj(chunk as u8 | 1, at(chunk, 7)).unwrap();
}

/// Touches a chunk, and waits until the fault thread is done with it and those beside it.
fn touch(guest: &Guest, chunk: u64) {
    write(guest, chunk);
    let is_settled = |chunk| guest.state(chunk) != State::Populating;
    until("the end of a fault", || (0..guest.demand.chunks()).all(is_settled));
}

/// Waits until the fault thread has done what it was asked for.
fn until(what: &str, mut done: impl FnMut() -> bool) {
    let start = Instant::now();
    while !done() {
        assert!(start.elapsed() < Duration::from_secs(60), "{what} does not come");
        thread::yield_now();
    }
}

#[test]
fn a_walk_is_stopped_a_few_times_and_reserves_in_a_few_requests() {
    if !may_catch_faults() {
        return;
    }
    for backing in BACKINGS {
        for walk in [Vec::from_iter(0..64), Vec::from_iter((0..64).rev())] {
            let guest = guest(backing, 64);
            walk.iter().for_each(|chunk| touch(&guest, *chunk));

            // 1, 2, 4, 8, 16 and 16 more, with what is touched among them.
            assert!(guest.touches() <= 8, "{}", guest.touches());
            let requests = guest.hold.requests();
            assert_eq!(requests.iter().sum::<usize>(), 64, "{requests:?}");
            assert!(requests.iter().all(|chunks| *chunks <= 17), "{requests:?}");
            assert_eq!((guest.live(), guest.demand.ahead()), (64, 0), "{backing}");
            for chunk in 0..64 {
                assert_eq!(guest.ram.read_obj::<u8>(at(chunk, 7)).unwrap(), chunk as u8 | 1);
            }
            assert_eq!(mappings(&guest.ram), 1);
        }
    }
}

#[test]
fn touches_in_no_order_reserve_for_nothing_else() {
    if !may_catch_faults() {
        return;
    }
    let guest = guest(Backing::Anonymous, 64);
    for chunk in [40, 3, 20, 11, 60, 33] {
        touch(&guest, chunk);
    }
    assert_eq!((guest.live(), guest.touches(), guest.demand.ahead()), (6, 6, 0));
}

#[test]
fn what_is_ahead_is_reserved_and_counted_apart() {
    if !may_catch_faults() {
        return;
    }
    for backing in BACKINGS {
        let guest = guest(backing, 64);
        (0..4).for_each(|chunk| touch(&guest, chunk));
        // 0; 1 and 2; 3 to 6.
        assert_eq!((guest.live(), guest.demand.ahead()), (7, 3), "{backing}");
        assert_eq!(guest.demand.counters().ahead.get(), 4);

        touch(&guest, 5);

        assert_eq!((guest.live(), guest.demand.ahead(), guest.touches()), (7, 2, 3));
        assert_eq!(guest.state(5), State::Ahead, "it is looked at, not told");
    }
}

#[test]
fn a_touch_looks_at_what_its_own_walk_was_given() {
    if !may_catch_faults() {
        return;
    }
    let guest = guest(Backing::Anonymous, 64);
    (0..4).for_each(|chunk| touch(&guest, chunk));
    touch(&guest, 5);

    touch(&guest, 40);
    assert_eq!(guest.state(5), State::Ahead);

    touch(&guest, 7);
    assert_eq!((guest.state(4), guest.state(5)), (State::Ahead, State::Populated));
}

#[test]
fn all_that_is_ahead_is_looked_at_once_in_as_many_touches_without_room() {
    if !may_catch_faults() {
        return;
    }
    let limits = AheadLimits { most: 3, ..LIMITS };
    let guest = Guest::ahead(ram(128), 64, Duration::MAX, limits);
    // 0; 1 and 2; 3 to 6.
    (0..4).for_each(|chunk| touch(&guest, chunk));
    touch(&guest, 5);

    for chunk in [20, 40] {
        touch(&guest, chunk);
        assert_eq!(guest.state(5), State::Ahead);
    }
    touch(&guest, 60);

    assert_eq!((guest.state(4), guest.state(5)), (State::Ahead, State::Populated));
}

#[test]
fn what_is_ahead_and_not_touched_is_taken_back_when_others_lack_it() {
    if !may_catch_faults() {
        return;
    }
    for backing in BACKINGS {
        let guest = guest(backing, 64);
        (0..4).for_each(|chunk| touch(&guest, chunk));
        touch(&guest, 5);

        guest.demand.yield_ahead();

        until("the rest", || guest.demand.counters().taken_back.get() == 2);
        until("the slots", || guest.hold.live() == 5);
        assert_eq!((guest.live(), guest.demand.ahead()), (5, 0), "{backing}");
        // Touched now they wait for a slot like any other, and none is reserved for ahead.
        touch(&guest, 4);
        touch(&guest, 6);
        touch(&guest, 7);
        assert_eq!((guest.live(), guest.touches()), (8, 6));
        assert_eq!(guest.ram.read_obj::<u8>(at(5, 7)).unwrap(), 5);
    }
}

#[test]
fn what_is_ahead_and_not_touched_for_a_while_is_taken_back() {
    if !may_catch_faults() {
        return;
    }
    let limits = AheadLimits { idle: Duration::from_millis(1), ..LIMITS };
    let guest = Guest::ahead(ram(128), 64, Duration::MAX, limits);
    (0..4).for_each(|chunk| touch(&guest, chunk));

    until("its end", || guest.hold.live() == 4);

    assert_eq!((guest.live(), guest.demand.ahead()), (4, 0));
}

#[test]
fn what_is_ahead_serves_a_touch_for_which_there_is_nothing_else() {
    if !may_catch_faults() {
        return;
    }
    // 0; 1 and 2; 3 to 6: that is all.
    let guest = guest(Backing::Anonymous, 7);
    (0..4).for_each(|chunk| touch(&guest, chunk));
    assert_eq!((guest.live(), guest.demand.ahead()), (7, 3));

    for chunk in [40, 50, 60] {
        touch(&guest, chunk);
    }

    assert_eq!((guest.live(), guest.demand.ahead()), (7, 0));
    assert_eq!(guest.listener.all(), [], "no touch waited");
}

#[test]
fn a_pool_with_less_than_a_step_serves_the_touch() {
    if !may_catch_faults() {
        return;
    }
    let guest = guest(Backing::Anonymous, 6);
    (0..6).for_each(|chunk| touch(&guest, chunk));
    assert_eq!((guest.live(), guest.listener.all()), (6, vec![]));
}

#[test]
fn what_is_ahead_and_not_discarded_is_still_taken_back() {
    if !may_catch_faults() {
        return;
    }
    use crate::memory::DiscardHooks as _;
    let guest = guest(Backing::Anonymous, 64);
    (0..4).for_each(|chunk| touch(&guest, chunk));
    let mut releaser = guest.demand.releaser();
    let chunks = MemoryRange::new(at(4, 0), Bytes::new(3 * CHUNK.get()));
    releaser.before(chunks);
    drop(releaser);
    assert_eq!((guest.live(), guest.demand.ahead()), (7, 3));

    guest.demand.yield_ahead();

    until("the rest", || guest.demand.counters().taken_back.get() == 3);
}

#[test]
fn what_others_lack_while_it_is_asked_for_is_freed_with_the_answer() {
    if !may_catch_faults() {
        return;
    }
    let (client, side) = Scripted::new().client();
    let (ram, listener) = (ram(16), Arc::new(Listener::default()));
    let limits = Limits { answer: Duration::MAX, ..Limits::new(Duration::MAX, LIMITS) };
    let demand = Demand::with_limits(ram.clone(), Arc::new(client), limits, listener).unwrap();
    demand.finish_loading().unwrap();

    thread::scope(|scope| {
        scope.spawn(|| (0..2).for_each(|chunk| ram.write_obj(1u8, at(chunk, 0)).unwrap()));
        assert_eq!(side.serve(0), 1);
        until("the second touch", || demand.counters().requests.get() == 2);

        demand.yield_ahead();
        until("its order", || !demand.shared.yields.load(Ordering::SeqCst));

        assert_eq!(side.serve(1), 2, "one of them is ahead");
    });

    assert_eq!((demand.reserved(), demand.ahead()), (2, 0));
}

#[test]
fn what_is_ahead_goes_with_a_discard() {
    if !may_catch_faults() {
        return;
    }
    for backing in BACKINGS {
        let guest = guest(backing, 64);
        let mut reclaimer = guest.reclaimer();
        (0..4).for_each(|chunk| touch(&guest, chunk));
        touch(&guest, 4);

        // All of 4 and 5, a page of 6.
        reclaimer.discard(pages(4, 0, 2 * 512 + 1));

        assert_eq!((guest.live(), guest.demand.ahead()), (4, 0), "{backing}");
        assert_eq!(guest.ram.read_obj::<u8>(at(4, 7)).unwrap(), 0);
        touch(&guest, 6);
        assert_eq!(guest.touches(), 5, "both are caught again");
        guest.live();
    }
}

#[test]
fn a_touch_of_what_is_about_to_be_ahead_waits_for_nothing_else() {
    if !may_catch_faults() {
        return;
    }
    for backing in BACKINGS {
        // A pool that refuses would have the fault thread take back what it does not know to be touched.
        let (client, _silent) = Scripted::new().client();
        let (ram, listener) = (ram_of(32, backing, false), Arc::new(Listener::default()));
        let limits = Limits { answer: Duration::MAX, ..Limits::new(Duration::MAX, LIMITS) };
        let demand = Demand::with_limits(ram.clone(), Arc::new(client), limits, listener).unwrap();
        demand.finish_loading().unwrap();
        thread::scope(|scope| {
            let touch = scope.spawn(|| ram.write_obj(1u8, at(9, 7)).unwrap());
            until("the touch", || demand.counters().requests.get() == 1);

            // With no neighbour that is touched.
            demand.shared.provide(&[ChunkIndex(9)], &[]).unwrap();

            let start = Instant::now();
            while !touch.is_finished() && start.elapsed() < Duration::from_secs(60) {
                thread::yield_now();
            }
            let is_served = touch.is_finished();
            demand.shared.close();
            assert!(is_served, "{backing}: the touch waits for good");
        });
    }
}

/// A guest that walks and jumps, memory that goes back, what is ahead taken back all the time, and an observer: a chunk
/// with a page has a slot at every look.
#[test]
fn no_touch_escapes_while_what_is_ahead_is_taken_back() {
    if !may_catch_faults() {
        return;
    }
    const LOOKS: u64 = 10_000;
    for backing in BACKINGS {
        let limits = AheadLimits { calm: Duration::ZERO, ..LIMITS };
        let guest = Guest::ahead(ram_of(128, backing, false), 64, Duration::MAX, limits);
        let done = AtomicBool::new(false);
        thread::scope(|scope| {
            for seed in 0..2u64 {
                let (guest, done) = (&guest, &done);
                scope.spawn(move || {
                    let mut state = seed;
                    while !done.load(Ordering::Relaxed) {
                        state = state.wrapping_mul(6364136223846793005).wrapping_add(1);
                        let (start, count) = (state >> 58, (state >> 40) % 16);
                        (start..(start + count).min(64)).for_each(|chunk| write(guest, chunk));
                    }
                });
            }
            scope.spawn(|| {
                let mut reclaimer = guest.reclaimer();
                let mut chunk = 0;
                while !done.load(Ordering::Relaxed) {
                    chunk = (chunk + 13) % 56;
                    reclaimer.discard(pages(chunk, 0, 512 * 8));
                    guest.demand.yield_ahead();
                }
            });
            let residency = Residency::new(guest.ram.clone()).unwrap();
            let taken_back = || guest.demand.counters().taken_back.get();
            for look in 0.. {
                if look >= LOOKS && taken_back() >= 20 {
                    break;
                }
                let chunk = ChunkIndex(look % 64);
                let (before, granted) = guest.hold.look(chunk);
                let range = guest.demand.shared.faults.range_of(&one(chunk));
                let absent = residency.is_absent(range).unwrap() == Some(true);
                // A chunk without a slot has had none meanwhile if no request was granted.
                if !absent && !before && guest.hold.look(chunk) == (false, granted) {
                    done.store(true, Ordering::Relaxed);
                    panic!("{backing}: {chunk} has a page and no slot");
                }
            }
            done.store(true, Ordering::Relaxed);
        });
        guest.live();
        assert_eq!(guest.listener.all(), []);
    }
}
