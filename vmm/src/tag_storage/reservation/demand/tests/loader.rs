//! Chunks whose contents something else loads: they have their slots first, and touches come before what is not touched.

use super::*;
use crate::memory::{DiscardHooks as _, Outcome};
use crate::tag_storage::broker::testing::Scripted;
use crate::tag_storage::reservation::demand::ahead::LEFT_TO_TOUCHES;

/// Writes down what it is told.
#[derive(Default)]
struct Told {
    granted: Mutex<Vec<u64>>,
    released: AtomicBool,
}

impl ChunkLoader for Told {
    fn grant(&self, chunk: ChunkIndex) {
        self.granted.lock().unwrap().push(chunk.0);
    }

    fn release(&self) {
        self.released.store(true, Ordering::SeqCst);
    }
}

impl Told {
    fn granted(&self) -> Vec<u64> {
        self.granted.lock().unwrap().clone()
    }
}

/// Eight chunks, of which something loads the first four.
fn guest(capacity: u64) -> (Guest, LoaderReservation, Arc<Told>) {
    let guest = Guest::new(ram(16), capacity);
    let told = Arc::new(Told::default());
    let left = (0..4).map(ChunkIndex);
    let reservation = guest.demand.leave_to_loader(left, told.clone()).unwrap();
    (guest, reservation, told)
}

fn until(what: &str, mut done: impl FnMut() -> bool) {
    let start = Instant::now();
    while !done() {
        assert!(start.elapsed() < Duration::from_secs(60), "{what} does not come");
        thread::yield_now();
    }
}

/// Has a chunk touched and loaded, so that it has a page.
fn load(guest: &Guest, loader: &LoaderReservation, told: &Told, chunk: u64) {
    assert!(!loader.touched(ChunkIndex(chunk), None));
    until("a slot", || told.granted().contains(&chunk));
    assert_eq!(guest.state(chunk), State::Loading);
    guest.ram.write_obj(1u8, at(chunk, 3)).unwrap();
    loader.loaded(ChunkIndex(chunk), false);
    assert_eq!(guest.state(chunk), State::Populated);
}

#[test]
fn a_chunk_has_its_slot_before_it_is_loaded_and_one_event_for_all_its_touches() {
    if !may_catch_faults() {
        return;
    }
    let (guest, loader, told) = guest(8);
    assert_eq!((guest.live(), guest.state(3), guest.state(4)), (0, State::Unloaded, State::Absent));
    assert!(!loader.may_load(ChunkIndex(1)));

    load(&guest, &loader, &told, 1);
    guest.ram.write_obj(1u8, at(5, 0)).unwrap();

    assert_eq!((guest.live(), told.granted()), (2, vec![1]));
    // It is as any other from then on.
    assert!(loader.touched(ChunkIndex(1), None) && !loader.may_load(ChunkIndex(1)));
    guest.reclaimer().discard(pages(1, 0, 512));
    assert_eq!((guest.live(), guest.state(1)), (1, State::Absent));
    guest.ram.write_obj(1u8, at(1, 0)).unwrap();
    assert_eq!(guest.live(), 2);
}

#[test]
fn a_touch_of_what_is_not_loaded_waits_as_any_touch_does() {
    if !may_catch_faults() {
        return;
    }
    let (guest, loader, told) = guest(1);
    let own = rustix::thread::gettid();
    guest.ram.write_obj(1u8, at(6, 0)).unwrap();

    assert!(!loader.touched(ChunkIndex(2), Some(own)));
    guest.listener.wait_for(super::Told::Exhausted(ChunkIndex(2)));
    assert!(guest.demand.is_waiting(own) && guest.demand.waiting() == 1);
    assert_eq!((told.granted(), guest.state(2)), (vec![], State::Unloaded));
    // Nothing is taken from what waits.
    for refused in [loader.reserve_ahead(ChunkIndex(0)), loader.reserve_to_save(ChunkIndex(0))] {
        assert!(matches!(refused, Err(Unreserved::Short)), "{refused:?}");
    }
    guest.reclaimer().discard(pages(6, 0, 512));

    guest.listener.wait_for(super::Told::Relieved);
    assert_eq!((told.granted(), guest.state(2)), (vec![2], State::Loading));
    assert!(!guest.demand.is_waiting(own));
    assert_eq!(guest.live(), 1);
}

#[test]
fn a_touch_of_what_was_loaded_meanwhile_waits_for_nothing() {
    if !may_catch_faults() {
        return;
    }
    let (guest, loader, told) = guest(8);
    load(&guest, &loader, &told, 1);
    told.granted.lock().unwrap().clear();

    // As if it had been loaded between the look at its state and the fault thread's.
    guest.demand.shared.loader.lock().touches.push((ChunkIndex(1), None));
    guest.demand.shared.signal();

    until("an answer", || told.granted() == [1]);
    assert!(!loader.may_load(ChunkIndex(1)));
    assert_eq!(guest.live(), 1);
}

#[test]
fn what_is_not_touched_is_reserved_for_where_there_is_plenty_or_for_a_save() {
    if !may_catch_faults() {
        return;
    }
    let (guest, loader, told) = guest(2);
    assert!(matches!(loader.reserve_ahead(ChunkIndex(0)), Err(Unreserved::Short)));
    guest.hold.allow_ahead(LEFT_TO_TOUCHES);
    assert!(matches!(loader.reserve_ahead(ChunkIndex(0)), Err(Unreserved::Short)));
    guest.hold.allow_ahead(LEFT_TO_TOUCHES + 1);
    loader.reserve_ahead(ChunkIndex(0)).unwrap();
    assert_eq!((guest.live(), guest.state(0)), (1, State::Loading));
    // It has one, and so has what is no loader's.
    loader.reserve_ahead(ChunkIndex(0)).unwrap();
    loader.reserve_ahead(ChunkIndex(7)).unwrap();
    assert_eq!(guest.live(), 1);

    loader.reserve_to_save(ChunkIndex(1)).unwrap();
    let refused = loader.reserve_to_save(ChunkIndex(2));

    assert!(matches!(refused, Err(Unreserved::Refused(PoolClientError::Pool(_)))), "{refused:?}");
    assert_eq!((guest.live(), guest.state(2)), (2, State::Unloaded));
    // The guest does not wait for it.
    assert_eq!((guest.listener.all(), told.granted()), (vec![], vec![]));
}

#[test]
fn a_chunk_that_is_given_back_before_it_is_loaded_or_meanwhile_keeps_no_slot() {
    if !may_catch_faults() {
        return;
    }
    let (guest, loader, told) = guest(8);
    let mut reclaimer = guest.reclaimer();
    // Before: nothing is reserved, and a touch gets a slot and no contents.
    reclaimer.discard(pages(0, 0, 512));
    assert_eq!((guest.live(), guest.state(0)), (0, State::Unloaded));
    assert!(!loader.touched(ChunkIndex(0), None));
    until("a slot", || told.granted() == [0]);
    loader.loaded(ChunkIndex(0), true);
    until("no slot", || guest.live() == 0);
    assert_eq!(guest.state(0), State::Absent);

    // Meanwhile, whole or in part.
    for (chunk, count) in [(1, 512), (2, 100)] {
        loader.reserve_to_save(ChunkIndex(chunk)).unwrap();
        reclaimer.discard(pages(chunk, 0, count));
        assert_eq!((guest.live(), guest.state(chunk)), (1, State::Loading));
        loader.loaded(ChunkIndex(chunk), false);
        until("no slot", || guest.live() == 0);
    }

    // It is loaded between the order and the host's answer.
    let mut hooks = guest.demand.releaser();
    let whole = guest.demand.shared.faults.range_of(&one(ChunkIndex(3)));
    hooks.before(whole);
    load(&guest, &loader, &told, 3);
    guest.ram.discard(whole).unwrap();
    hooks.after(whole, Outcome::Gone);
    assert_eq!((guest.live(), guest.state(3)), (0, State::Absent));
}

#[test]
fn at_the_end_nothing_is_waited_for_and_what_is_not_loaded_stays_watched() {
    if !may_catch_faults() {
        return;
    }
    let (mut guest, loader, told) = guest(0);
    // What loads it has watched it since.
    let uffd = uffd::Uffd::new().unwrap();
    let start = guest.ram.host_address();
    let addresses = start + CHUNK.get()..start + 2 * CHUNK.get();
    uffd.arm(&addresses).unwrap();
    assert!(!loader.touched(ChunkIndex(1), None));
    guest.listener.wait_for(super::Told::Exhausted(ChunkIndex(1)));

    guest.demand.stop();

    assert!(told.released.load(Ordering::SeqCst));
    assert!(loader.touched(ChunkIndex(1), None) && loader.may_load(ChunkIndex(1)));
    loader.reserve_to_save(ChunkIndex(2)).unwrap();
    thread::scope(|scope| {
        let touch = scope.spawn(|| guest.ram.read_obj::<u8>(at(1, 0)).unwrap());
        let mut faults = Vec::new();
        until("an event", || {
            uffd.read(&mut faults).unwrap();
            !faults.is_empty()
        });
        assert!(!touch.is_finished());
        uffd.disarm(&addresses).unwrap();
    });
    // The others are not.
    guest.ram.write_obj(1u8, at(6, 0)).unwrap();
}

#[test]
fn a_broker_that_does_not_answer_holds_up_what_is_not_touched_for_a_while_only() {
    if !may_catch_faults() {
        return;
    }
    let (client, side) = Scripted::new().client();
    let (ram, listener) = (ram(16), Arc::new(Listener::default()));
    let limits = Limits::new(Duration::MAX, NONE_AHEAD);
    let demand =
        Demand::with_limits(ram.clone(), Arc::new(client), limits, listener.clone()).unwrap();
    demand.finish_loading().unwrap();
    let told = Arc::new(Told::default());
    let loader = demand.leave_to_loader((0..4).map(ChunkIndex), told.clone()).unwrap();

    let unanswered = loader.reserve_ahead(ChunkIndex(0));
    assert!(matches!(unanswered, Err(Unreserved::Unanswered)), "{unanswered:?}");
    // A touch is asked for once the answer is there, and the slot that came with it is not lost.
    assert!(!loader.touched(ChunkIndex(1), None));
    assert_eq!([side.serve(0), side.serve(1)], [1, 1]);

    until("both slots", || told.granted() == [0, 1]);
    assert_eq!(demand.reserved(), 2);
    assert!(loader.touched(ChunkIndex(0), None) && loader.may_load(ChunkIndex(0)));

    // One that is touched while it is asked for has one slot.
    let unanswered = loader.reserve_ahead(ChunkIndex(2));
    assert!(matches!(unanswered, Err(Unreserved::Unanswered)), "{unanswered:?}");
    assert!(!loader.touched(ChunkIndex(2), None));
    thread::sleep(Duration::from_millis(50));
    assert_eq!(side.serve(2), 1);
    until("its slot", || told.granted() == [0, 1, 2]);
    assert!(!loader.touched(ChunkIndex(3), None));
    assert_eq!(side.serve(3), 1);
    until("the next", || told.granted().last() == Some(&3));
    assert_eq!(demand.reserved(), 4);
    assert!(loader.may_load(ChunkIndex(2)));
    drop(side);
}
