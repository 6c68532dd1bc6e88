//! Who gets what is freed when several leases wait.

use std::time::{Duration, Instant};

use proptest::prelude::*;

use super::super::waiters::FORGET_AFTER;
use super::*;

/// Three leases without limits in a pool of 12: each is entitled to 4.
fn three() -> (Bench, [LeaseId; 3]) {
    let bench = Bench::small(12, true);
    let leases = [bench.lease(), bench.lease(), bench.lease()];
    (bench, leases)
}

fn is_exhausted(result: Result<SlotIndex, ReserveError>) -> bool {
    matches!(result, Err(ReserveError::Exhausted { .. }))
}

#[test]
fn the_one_furthest_below_its_share_comes_first() {
    let (bench, [leaking, other, poor]) = three();
    let (pool, now) = (&bench.pool, Instant::now());
    pool.reserve_many(leaking, 8).unwrap();
    let slots = pool.reserve_many(other, 4).unwrap();
    pool.wait_for(leaking, 1, now);
    pool.wait_for(poor, 1, now);

    pool.free(other, slots[0]).unwrap();

    assert_eq!(pool.next_waiters(9), [poor]);
    assert!(is_exhausted(pool.reserve(leaking)));
    // One that does not wait yet is no better off.
    assert!(is_exhausted(pool.reserve(other)));
    pool.reserve(poor).unwrap();
    pool.free(other, slots[1]).unwrap();
    assert_eq!(pool.next_waiters(9), [leaking]);
    pool.reserve(leaking).unwrap();
    assert!(!pool.has_waiters());
    bench.examine();
}

#[test]
fn among_equals_the_longest_wait_comes_first_however_often_it_asks() {
    let (bench, [holder, second, first]) = three();
    let (pool, now) = (&bench.pool, Instant::now());
    let slots = pool.reserve_many(holder, 12).unwrap();
    for _ in 0..3 {
        pool.wait_for(first, 1, now);
        pool.wait_for(second, 1, now);
    }

    pool.free(holder, slots[0]).unwrap();

    assert!(is_exhausted(pool.reserve(second)));
    pool.reserve(first).unwrap();
}

#[test]
fn what_is_enough_for_all_is_kept_from_nobody() {
    let (bench, [leaking, other, poor]) = three();
    let (pool, now) = (&bench.pool, Instant::now());
    pool.reserve_many(leaking, 8).unwrap();
    let slots = pool.reserve_many(other, 4).unwrap();
    pool.wait_for(poor, 2, now);

    slots.iter().take(3).for_each(|slot| pool.free(other, *slot).unwrap());

    pool.reserve(leaking).unwrap();
    assert!(is_exhausted(pool.reserve(leaking)));
    pool.reserve_many(poor, 2).unwrap();
}

#[test]
fn one_that_waits_for_more_than_there_is_keeps_one_chunk() {
    let (bench, [holder, greedy, other]) = three();
    let (pool, now) = (&bench.pool, Instant::now());
    // It never gives any back.
    pool.reserve_many(holder, 8).unwrap();
    pool.wait_for(greedy, 64, now);

    pool.reserve_many(other, 3).unwrap();

    assert!(is_exhausted(pool.reserve(other)));
    pool.wait_for(other, 1, now);
    assert_eq!(pool.next_waiters(9), [greedy]);
    pool.reserve(greedy).unwrap();
    bench.examine();
}

#[test]
fn the_first_chunk_of_each_that_waits_goes_by_rank() {
    let (bench, [leaking, poor, other]) = three();
    let (pool, now) = (&bench.pool, Instant::now());
    pool.reserve_many(leaking, 8).unwrap();
    let slots = pool.reserve_many(other, 4).unwrap();
    pool.wait_for(leaking, 1, now);
    pool.wait_for(poor, 4, now);

    pool.free(other, slots[0]).unwrap();

    assert_eq!(pool.next_waiters(9), [poor]);
    assert!(is_exhausted(pool.reserve(leaking)));
    pool.reserve(poor).unwrap();
}

#[test]
fn a_minimum_comes_before_all_that_wait() {
    let bench = Bench::small(12, true);
    let pool = &bench.pool;
    let (holder, poor) = (bench.lease(), bench.lease());
    let guaranteed = pool.open_lease(terms(4, 12)).unwrap();
    pool.reserve_many(holder, 8).unwrap();
    pool.wait_for(poor, 1, Instant::now());

    pool.reserve_many(guaranteed, 4).unwrap();

    assert!(is_exhausted(pool.reserve(guaranteed)));
    bench.examine();
}

#[test]
fn one_that_stops_asking_or_is_closed_keeps_nothing() {
    let (bench, [holder, stopped, gone]) = three();
    let (pool, now) = (&bench.pool, Instant::now());
    let slots = pool.reserve_many(holder, 12).unwrap();
    pool.wait_for(stopped, 1, now);
    pool.wait_for(gone, 1, now);
    slots.iter().take(2).for_each(|slot| pool.free(holder, *slot).unwrap());
    assert!(is_exhausted(pool.reserve(holder)));

    pool.close_lease(gone).unwrap();
    pool.reserve(holder).unwrap();
    assert!(is_exhausted(pool.reserve(holder)));
    pool.expire_waiters(now + FORGET_AFTER - Duration::from_millis(1));
    assert!(is_exhausted(pool.reserve(holder)));
    pool.expire_waiters(now + FORGET_AFTER);
    assert!(!pool.has_waiters());

    pool.reserve(holder).unwrap();
}

#[test]
fn memory_that_is_in_use_already_comes_before_all_that_wait() {
    let (bench, [holder, poor, returning]) = three();
    let (pool, now) = (&bench.pool, Instant::now());
    let slots = pool.reserve_many(holder, 12).unwrap();
    pool.wait_for(poor, 1, now);
    pool.free(holder, slots[0]).unwrap();

    let adopted = pool.adopt(returning, &slots[1..2], Order::First).unwrap();

    assert_eq!(adopted.slots, [Some(slots[0])]);
}

#[test]
fn what_is_adopted_in_the_fair_order_is_left_for_those_that_rank_before() {
    for instant in [true, false] {
        let bench = Bench::small(12, instant);
        let [holder, poor, returning, late] = [(); 4].map(|()| bench.lease());
        let (pool, now) = (&bench.pool, Instant::now());
        pool.reserve(late).unwrap();
        let slots = pool.reserve_many(holder, 11).unwrap();
        pool.wait_for(poor, 1, now);
        pool.wait_for(returning, 3, now);

        pool.free(holder, slots[0]).unwrap();
        let adopted = pool.adopt(returning, &slots[..2], Order::Fair).unwrap();
        assert_eq!(adopted.slots, [None, None]);
        assert!(adopted.shortfall.is_some_and(|error| error.is_lack()));

        // One is left for it, which is not one of those that it had.
        pool.free(holder, slots[1]).unwrap();
        let adopted = pool.adopt(returning, &slots[5..7], Order::Fair).unwrap();
        assert_eq!(adopted.slots.iter().flatten().count(), 1);

        // For the rest it waits from when it began to wait.
        pool.wait_for(returning, 1, now);
        pool.wait_for(late, 1, now);
        pool.reserve(poor).unwrap();
        pool.free(holder, slots[2]).unwrap();
        assert_eq!(pool.next_waiters(9), [returning]);
        bench.examine();
    }
}

#[test]
fn those_that_wait_are_not_among_those_that_can_give() {
    let bench = Bench::small(12, true);
    let pool = &bench.pool;
    let (rich, waiting) = (bench.lease(), bench.lease());
    let guaranteed = pool.open_lease(terms(3, 12)).unwrap();
    pool.reserve_many(rich, 5).unwrap();
    pool.reserve_many(waiting, 4).unwrap();
    pool.reserve_many(guaranteed, 3).unwrap();
    pool.wait_for(waiting, 2, Instant::now());

    let pressure = pool.pressure();

    let can_give = vec![CanGive { lease: rich, chunks: 5, held: 5 }];
    assert_eq!((pressure.lacking, pressure.can_give), (2, can_give));
}

#[test]
fn one_that_waits_gives_what_is_above_its_entitlement_for_those_before_it() {
    let bench = Bench::small(12, true);
    let (pool, now) = (&bench.pool, Instant::now());
    // Each is entitled to 6.
    let (leaking, poor) = (bench.lease(), bench.lease());
    pool.reserve_many(leaking, 8).unwrap();
    pool.reserve_many(poor, 4).unwrap();
    pool.wait_for(leaking, 5, now);
    // There is none that it could give for.
    assert!(pool.pressure().can_give.iter().all(|can| can.lease == poor));

    pool.wait_for(poor, 2, now);

    let pressure = pool.pressure();
    assert_eq!(pressure.can_give, [CanGive { lease: leaking, chunks: 2, held: 8 }]);
    // No more than the other is entitled to, and asks for.
    pool.wait_for(poor, 64, now);
    assert_eq!(pool.pressure().can_give, [CanGive { lease: leaking, chunks: 2, held: 8 }]);
    pool.wait_for(poor, 1, now);
    assert_eq!(pool.pressure().can_give, [CanGive { lease: leaking, chunks: 1, held: 8 }]);
}

/// What a history of leases does.
#[derive(Clone, Debug)]
enum Step {
    Ask(usize),
    Free(usize),
    /// So many milliseconds pass.
    Pass(u64),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => (0usize..4).prop_map(Step::Ask),
        2 => (0usize..4).prop_map(Step::Free),
        1 => (0u64..4000).prop_map(Step::Pass),
    ]
}

/// A lease of the history below.
struct Known {
    id: LeaseId,
    limits: (u32, u32),
    slots: Vec<SlotIndex>,
    /// When it last asked in vain.
    waits: Option<Instant>,
}

impl Known {
    fn distance(&self, share: u32) -> i64 {
        let (min, max) = self.limits;
        i64::from((min + share).min(max)) - self.slots.len() as i64
    }

    fn is_below_min(&self) -> bool {
        (self.slots.len() as u32) < self.limits.0
    }
}

proptest! {
    #[test]
    fn freed_slots_go_where_they_must(
        mins in prop::array::uniform4(0u32..3),
        separate: bool,
        steps in prop::collection::vec(step(), 1..200),
    ) {
        let block = if separate { 4 } else { 96 };
        let bench = Bench::new(Bytes::kib(4), Bytes::kib(block), 12, separate);
        let pool = &bench.pool;
        let total = pool.snapshot().chunks.total;
        let share = (total - mins.iter().sum::<u32>()) / 4;
        let mut now = Instant::now();
        let mut leases: Vec<Known> = mins
            .iter()
            .map(|min| {
                let id = pool.open_lease(terms(*min, 100)).unwrap();
                Known { id, limits: (*min, 100), slots: Vec::new(), waits: None }
            })
            .collect();
        for step in steps {
            match step {
                Step::Pass(millis) => {
                    now += Duration::from_millis(millis);
                    pool.expire_waiters(now);
                    for lease in &mut leases {
                        lease.waits = lease.waits.filter(|at| now.duration_since(*at) < FORGET_AFTER);
                    }
                }
                Step::Free(at) => {
                    if let Some(slot) = leases[at].slots.pop() {
                        pool.free(leases[at].id, slot).unwrap();
                    }
                }
                Step::Ask(at) => {
                    let free = pool.snapshot().chunks.free;
                    let own = leases[at].distance(share);
                    let below_min = leases[at].is_below_min();
                    let others: Vec<i64> = (0..leases.len())
                        .filter(|other| *other != at && leases[*other].waits.is_some())
                        .filter(|other| !leases[*other].is_below_min())
                        .map(|other| leases[other].distance(share))
                        .collect();
                    match pool.reserve(leases[at].id) {
                        Ok(slot) => {
                            // Never in place of another that waits and is further below its share.
                            let before = others.iter().filter(|other| **other > own).count() as u32;
                            prop_assert!(below_min || before < free);
                            leases[at].slots.push(slot);
                            leases[at].waits = None;
                        }
                        Err(error) => {
                            prop_assert!(error.is_lack(), "{error}");
                            // Nothing of its minimum, and nothing free that others do not wait for.
                            let before = others.iter().filter(|other| **other >= own).count() as u32;
                            prop_assert!(!below_min && free <= before);
                            pool.wait_for(leases[at].id, 1, now);
                            leases[at].waits = Some(now);
                        }
                    }
                }
            }
            let held: usize = leases.iter().map(|lease| lease.slots.len()).sum();
            prop_assert!(held as u32 <= total);
            // Some lease that waits gets what is free.
            let waiting = leases.iter().filter(|lease| lease.waits.is_some());
            let (own, rest): (Vec<_>, Vec<_>) = waiting.partition(|lease| lease.is_below_min());
            let free = pool.snapshot().chunks.free as usize;
            prop_assert_eq!(pool.next_waiters(9).len(), own.len() + rest.len().min(free));
        }
        bench.examine();
    }
}
