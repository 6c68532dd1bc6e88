//! Pools that take their time, and listeners that do not listen.

use super::*;
use crate::tag_storage::broker::testing::Scripted;

/// Does not read what is reported.
#[derive(Default)]
struct Deaf(Listener);

impl Exhaustion for Deaf {
    fn exhausted(&self, chunk: ChunkIndex, why: &PoolClientError) {
        self.0.exhausted(chunk, why);
    }

    fn relieved(&self) {
        self.0.relieved();
    }

    fn expired(&self, chunk: ChunkIndex) {
        self.0.expired(chunk);
    }

    fn is_taken(&self) -> bool {
        false
    }

    fn failed(&self, why: &Error) {
        assert!(matches!(why, Error::Unheard), "{why}");
        self.0.failed(why);
    }
}

fn limits(deadline: Duration, listen: Duration) -> Limits {
    Limits { deadline, answer: Duration::ZERO, listen, ahead: NONE_AHEAD }
}

#[test]
fn a_broker_that_does_not_answer_holds_up_no_deadline_and_no_other_fault() {
    if !may_catch_faults() {
        return;
    }
    let (client, side) = Scripted::new().client();
    let (ram, listener) = (ram(8), Arc::new(Listener::default()));
    let limits = limits(Duration::from_millis(5), Duration::MAX);
    let demand =
        Demand::with_limits(ram.clone(), Arc::new(client), limits, listener.clone()).unwrap();
    demand.finish_loading().unwrap();

    thread::scope(|scope| {
        let touch = |chunk| {
            let ram = &ram;
            scope.spawn(move || ram.write_obj(1u8, at(chunk, 0)).unwrap())
        };
        touch(1);
        listener.wait_for(Told::Exhausted(ChunkIndex(1)));
        listener.wait_for(Told::Expired(ChunkIndex(1)));
        touch(2);
        while demand.waiting() < 2 {
            thread::yield_now();
        }
        assert_eq!((side.serve(0), side.serve(1)), (1, 1));
    });

    listener.wait_for(Told::Relieved);
    assert_eq!((demand.reserved(), demand.counters().expired.get()), (2, 1));
}

#[test]
fn a_vm_that_is_loaded_waits_for_its_broker() {
    if !may_catch_faults() {
        return;
    }
    let (client, side) = Scripted::new().client();
    let (ram, listener) = (ram(8), Arc::new(Listener::default()));
    let limits = limits(Duration::ZERO, Duration::MAX);
    let demand =
        Demand::with_limits(ram.clone(), Arc::new(client), limits, listener.clone()).unwrap();

    thread::scope(|scope| {
        scope.spawn(|| ram.write_obj(1u8, at(1, 0)).unwrap());
        while demand.waiting() < 1 {
            thread::yield_now();
        }
        for _ in 0..100 {
            demand.retry();
        }
        side.serve(0);
    });

    demand.finish_loading().unwrap();
    assert_eq!(listener.all(), []);
}

#[test]
fn chunks_that_are_touched_at_once_are_reserved_together() {
    if !may_catch_faults() {
        return;
    }
    let guest = Guest::new(ram(16), 0);

    thread::scope(|scope| {
        for chunk in 0..4 {
            let guest = &guest;
            scope.spawn(move || guest.ram.write_obj(1u8, at(chunk, 0)).unwrap());
        }
        while guest.demand.waiting() < 4 || guest.listener.all().is_empty() {
            thread::yield_now();
        }
        guest.hold.grow(4);
    });

    // One after the refusals, and more as that succeeds.
    assert!(guest.hold.requests().ends_with(&[1, 1, 2, 1]), "{:?}", guest.hold.requests());
    assert_eq!(guest.live(), 4);
}

#[test]
fn a_listener_that_is_busy_ends_no_vm() {
    if !may_catch_faults() {
        return;
    }
    let (ram, listener) = (ram(4), Arc::new(Deaf::default()));
    let (hold, limits) = (FakeHold::new(0), limits(Duration::ZERO, Duration::ZERO));
    let mut demand = Demand::with_limits(ram.clone(), hold, limits, listener.clone()).unwrap();
    demand.finish_loading().unwrap();

    thread::scope(|scope| {
        scope.spawn(|| ram.write_obj(1u8, at(1, 0)).unwrap());
        // It is reported again and again, to a listener that waits for no chunk.
        let expired =
            || listener.0.all().iter().filter(|told| matches!(told, Told::Expired(_))).count();
        while expired() < 3 && !listener.0.all().contains(&Told::Failed) {
            demand.retry();
            thread::yield_now();
        }
        demand.stop();
    });

    assert!(!listener.0.all().contains(&Told::Failed));
}

#[test]
fn a_listener_that_waits_for_tag_storage_itself_ends_the_vm() {
    if !may_catch_faults() {
        return;
    }
    let (ram, listener) = (ram(4), Arc::new(Deaf::default()));
    let (hold, limits) = (FakeHold::new(0), limits(Duration::ZERO, Duration::ZERO));
    let demand = Demand::with_limits(ram.clone(), hold, limits, listener.clone()).unwrap();
    demand.finish_loading().unwrap();

    // The thread that has started it is the one that listens.
    ram.write_obj(1u8, at(1, 0)).unwrap();

    listener.0.wait_for(Told::Failed);
}
