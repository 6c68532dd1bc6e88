//! Tag storage runs out, and is there again; and the end of it all.

use super::*;
use crate::tag_storage::reservation::PoolClientReport;
use crate::tag_storage::reservation::backend::Answer;

#[test]
fn a_touch_waits_for_tag_storage_until_the_guest_gives_some_back() {
    if !may_catch_faults() {
        return;
    }
    for backing in BACKINGS {
        let guest = Guest::new(ram_of(8, backing, false), 1);
        let mut reclaimer = guest.reclaimer();
        guest.ram.write_obj(7u8, at(0, 0)).unwrap();

        thread::scope(|scope| {
            let touch = scope.spawn(|| guest.ram.write_obj(8u8, at(1, 0)).unwrap());
            guest.listener.wait_for(Told::Exhausted(ChunkIndex(1)));
            // Those that have theirs go on.
            assert_eq!(guest.ram.read_obj::<u8>(at(0, 0)).unwrap(), 7);
            assert_eq!((guest.live(), guest.demand.waiting(), touch.is_finished()), (1, 1, false));
            reclaimer.discard(pages(0, 0, 512));
        });

        guest.listener.wait_for(Told::Relieved);
        assert_eq!(guest.listener.all(), [Told::Exhausted(ChunkIndex(1)), Told::Relieved]);
        assert_eq!((guest.live(), guest.demand.waiting()), (1, 0), "{backing}");
        assert_eq!(guest.demand.counters().exhausted.get(), 1);
    }
}

#[test]
fn tag_storage_that_others_free_reaches_those_that_wait() {
    if !may_catch_faults() {
        return;
    }
    for told in [true, false] {
        let guest = Guest::new(ram(8), 0);

        thread::scope(|scope| {
            for chunk in 0..3 {
                let guest = &guest;
                scope.spawn(move || guest.ram.write_obj(1u8, at(chunk, chunk)).unwrap());
            }
            while guest.demand.waiting() < 3 || guest.listener.all().is_empty() {
                thread::yield_now();
            }
            guest.hold.grow(3);
            // Untold, it asks by itself after a while.
            if told {
                guest.demand.retry();
            }
        });

        guest.listener.wait_for(Told::Relieved);
        assert_eq!(guest.live(), 3);
    }
}

#[test]
fn the_threads_that_wait_are_known() {
    if !may_catch_faults() {
        return;
    }
    let guest = Guest::new(ram(8), 0);
    let own = rustix::thread::gettid();

    thread::scope(|scope| {
        let (sender, tids) = std::sync::mpsc::channel();
        for chunk in [1, 2, 2] {
            let (guest, sender) = (&guest, sender.clone());
            scope.spawn(move || {
                sender.send(rustix::thread::gettid()).unwrap();
                guest.ram.write_obj(1u8, at(chunk, 0)).unwrap();
            });
        }
        let tids: Vec<_> = tids.iter().take(3).collect();
        let refused = || !guest.listener.all().is_empty();
        while !refused() || !tids.iter().all(|tid| guest.demand.is_waiting(*tid)) {
            thread::yield_now();
        }
        assert!(!guest.demand.is_waiting(own));
        guest.hold.grow(2);
        guest.listener.wait_for(Told::Relieved);
        assert!(!tids.iter().any(|tid| guest.demand.is_waiting(*tid)));
    });
}

#[test]
fn who_waits_for_too_long_is_told_of_once() {
    if !may_catch_faults() {
        return;
    }
    for deadline in [Duration::ZERO, Duration::from_millis(5)] {
        let mut guest = Guest::with(ram(8), 0, deadline);
        let ram = guest.ram.clone();
        let touch = thread::spawn(move || ram.write_obj(1u8, at(2, 0)).unwrap());

        guest.listener.wait_for(Told::Expired(ChunkIndex(2)));
        // Some more rounds of the thread, which must not tell again.
        let begun = Instant::now();
        while begun.elapsed() < Duration::from_millis(20) {
            guest.demand.retry();
            thread::yield_now();
        }
        assert!(!touch.is_finished());
        guest.demand.stop();

        touch.join().unwrap();
        let expected = [Told::Exhausted(ChunkIndex(2)), Told::Expired(ChunkIndex(2))];
        assert_eq!(guest.listener.all(), expected);
    }
}

#[test]
fn a_long_deadline_does_not_expire() {
    if !may_catch_faults() {
        return;
    }
    for deadline in [Duration::from_secs(3600), Duration::MAX] {
        let guest = Guest::with(ram(4), 0, deadline);

        thread::scope(|scope| {
            scope.spawn(|| guest.ram.write_obj(1u8, at(0, 0)).unwrap());
            guest.listener.wait_for(Told::Exhausted(ChunkIndex(0)));
            guest.hold.grow(1);
        });

        guest.listener.wait_for(Told::Relieved);
        assert_eq!(guest.listener.all(), [Told::Exhausted(ChunkIndex(0)), Told::Relieved]);
    }
}

#[test]
fn what_does_not_fit_while_the_guest_is_loaded_is_refused() {
    if !may_catch_faults() {
        return;
    }
    for capacity in [2, 3] {
        let (hold, listener) = (FakeHold::new(capacity), Arc::new(Listener::default()));
        let ram = ram(8);
        let demand =
            Demand::start(ram.clone(), hold.clone(), Duration::MAX, listener.clone()).unwrap();

        ram.write_slice(&[1; 6 << 20], RAM_BASE).unwrap();
        let loaded = demand.finish_loading();

        assert_eq!(loaded.is_ok(), capacity == 3, "{loaded:?}");
        assert_eq!((hold.live(), listener.all()), (capacity, vec![]));
    }
}

#[test]
fn the_end_lets_everybody_go_who_waits() {
    if !may_catch_faults() {
        return;
    }
    for backing in BACKINGS {
        let Guest { ram, hold, demand, listener } = Guest::new(ram_of(8, backing, false), 1);
        ram.write_obj(1u8, at(0, 0)).unwrap();
        let touches: Vec<_> = (1..4)
            .map(|chunk| {
                let ram = ram.clone();
                thread::spawn(move || ram.write_obj(1u8, at(chunk, 0)).unwrap())
            })
            .collect();
        while demand.waiting() < 3 {
            thread::yield_now();
        }

        drop(demand);

        for touch in touches {
            touch.join().unwrap();
        }
        assert_eq!(hold.live(), 1);
        assert!(!listener.all().contains(&Told::Failed));
    }
}

#[test]
fn after_the_end_nobody_is_stopped_and_nothing_freed() {
    if !may_catch_faults() {
        return;
    }
    for backing in BACKINGS {
        let mut guest = Guest::new(ram_of(8, backing, false), 4);
        let mut reclaimer = guest.reclaimer();
        guest.ram.write_obj(1u8, at(0, 0)).unwrap();
        guest.demand.stop();
        guest.demand.stop();

        let done = reclaimer.discard(pages(0, 0, 2 * 512 + 1));
        guest.ram.write_slice(&[1; 8 << 20], RAM_BASE).unwrap();

        assert_eq!((done.failed, guest.live(), mappings(&guest.ram)), (0, 1, 1), "{backing}");
    }
}

/// A hold that panics.
struct Broken;

impl PoolClient for Broken {
    fn reserve(&self, _: &[ChunkIndex], _: usize) -> Answer {
        panic!("on purpose")
    }

    fn free(&self, _: &[ChunkIndex]) {}

    fn report(&self) -> PoolClientReport {
        FakeHold::new(0).report()
    }
}

#[test]
fn a_thread_that_dies_leaves_nobody_waiting_and_says_so() {
    if !may_catch_faults() {
        return;
    }
    let (ram, listener) = (ram(4), Arc::new(Listener::default()));
    let demand =
        Demand::start(ram.clone(), Arc::new(Broken), Duration::MAX, listener.clone()).unwrap();

    ram.write_obj(7u8, at(1, 0)).unwrap();

    listener.wait_for(Told::Failed);
    assert_eq!(ram.read_obj::<u8>(at(1, 0)).unwrap(), 7);
    drop(demand);
}
