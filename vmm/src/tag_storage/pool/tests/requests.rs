//! What single requests get.

use super::*;

#[test]
fn impossible_pools_are_refused() {
    let geometry = Geometry::new(Bytes::kib(4), Bytes::kib(4)).unwrap();
    let huge = Geometry::new(Bytes::kib(4), Bytes::gib(100)).unwrap();
    let new = |geometry, capacity| {
        let fake = Box::new(Shared(Fake::new(true)));
        Pool::new(geometry, capacity, fake).err()
    };

    for capacity in [Bytes::ZERO, Bytes::kib(4), Bytes::kib(63)] {
        assert!(matches!(new(geometry, capacity), Some(PoolError::TooSmall { .. })));
    }
    let above = Bytes::new(MAX_CAPACITY.get() + 1);
    for capacity in [above, Bytes::MAX] {
        assert_eq!(new(geometry, capacity), Some(PoolError::TooLarge(capacity)));
    }
    let error = new(huge, Bytes::gib(200));
    assert_eq!(error, Some(PoolError::HugeBlock(Bytes::gib(100))));
    assert_eq!(new(geometry, Bytes::kib(64)), None);
    assert_eq!(new(geometry, MAX_CAPACITY), None);
}

#[test]
fn blocks_beyond_the_last_whole_chunk_are_out_of_use() {
    // Twelve blocks of 20 KiB, of which three chunks' 192 KiB take ten.
    let bench = Bench::new(Bytes::kib(4), Bytes::kib(20), 4, true);

    let report = bench.pool.snapshot();

    assert_eq!((report.chunks.total, report.blocks.total, report.blocks.disabled), (3, 12, 2));
    assert_eq!(bench.pool.lend(100), 10);
    bench.examine();
}

#[test]
fn chunks_of_an_exhausted_pool_are_refused_and_its_memory_serves_again() {
    for instant in [true, false] {
        let bench = Bench::small(3, instant);
        let lease = bench.lease();
        let slots = bench.pool.reserve_many(lease, 3).unwrap();
        let before = bench.examine();

        let error = bench.pool.reserve(lease).unwrap_err();

        assert!(matches!(error, ReserveError::Exhausted { .. }), "{error}");
        assert!(error.to_string().contains("node:7"), "{error}");
        assert_eq!(bench.examine(), before);
        assert_eq!(bench.pool.snapshot().counters.metadata_reserve_fail, 1);
        bench.pool.free(lease, slots[1]).unwrap();
        assert_eq!(bench.pool.reserve(lease).unwrap(), slots[1]);
    }
}

#[test]
fn a_slot_is_freed_once() {
    for instant in [true, false] {
        let bench = Bench::small(3, instant);
        let lease = bench.lease();
        let slot = bench.pool.reserve(lease).unwrap();
        bench.pool.free(lease, slot).unwrap();
        let before = bench.examine();

        let again = bench.pool.free(lease, slot);

        assert_eq!(again, Err(FreeError::NotHeld { lease, slot }));
        assert_eq!(bench.examine(), before);
    }
}

#[test]
fn nobody_frees_what_is_another_leases() {
    let bench = Bench::small(3, true);
    let (owner, hostile) = (bench.lease(), bench.lease());
    let slot = bench.pool.reserve(owner).unwrap();
    let before = bench.examine();

    for slot in [slot, SlotIndex(1), SlotIndex(3), SlotIndex(u32::MAX)] {
        let result = bench.pool.free(hostile, slot);
        assert_eq!(result, Err(FreeError::NotHeld { lease: hostile, slot }));
    }

    assert_eq!(bench.examine(), before);
}

#[test]
fn a_closed_lease_is_unknown() {
    let bench = Bench::small(3, true);
    let lease = bench.lease();
    let slot = bench.pool.reserve(lease).unwrap();
    bench.pool.close_lease(lease).unwrap();

    let next = bench.lease();

    assert_ne!(next, lease);
    let counted = bench.pool.snapshot().counters;
    assert!(matches!(bench.pool.reserve(lease), Err(ReserveError::UnknownLease(_))));
    assert_eq!(bench.pool.snapshot().counters, counted, "it is no request of a lease");
    assert_eq!(bench.pool.free(lease, slot), Err(FreeError::UnknownLease(lease)));
    assert_eq!(bench.pool.close_lease(lease), Err(FreeError::UnknownLease(lease)));
    assert_eq!(bench.pool.snapshot().chunks.reserved, 0);
}

#[test]
fn each_counter_has_its_name() {
    let counters = Counters {
        metadata_reserve_success: 1,
        metadata_reserve_fail: 2,
        metadata_reserve_free: 3,
        evictions: 4,
        tail_retries: 5,
        pinned: 6,
        denied: 7,
    };

    assert_eq!(counters.named().map(|(_, value)| value), [1, 2, 3, 4, 5, 6, 7]);
    let names = counters.named().map(|(name, _)| name);
    assert_eq!((names[1], names[6]), ("metadata_reserve_fail", "denied"));
}

#[test]
fn a_minimum_is_there_whatever_others_take() {
    let bench = Bench::small(4, true);
    let first = bench.pool.open_lease(terms(2, 4)).unwrap();
    let second = bench.pool.open_lease(terms(0, 4)).unwrap();

    let taken = bench.pool.reserve_many(second, 2).unwrap();
    assert!(matches!(bench.pool.reserve(second), Err(ReserveError::Exhausted { .. })));
    assert!(matches!(bench.pool.open_lease(terms(1, 4)), Err(ReserveError::Exhausted { .. })));

    bench.pool.reserve_many(first, 2).unwrap();
    assert!(matches!(bench.pool.reserve(first), Err(ReserveError::Exhausted { .. })));
    bench.pool.free(second, taken[0]).unwrap();
    assert_eq!(bench.pool.reserve(first).unwrap(), taken[0]);
    bench.examine();
}

#[test]
fn a_maximum_is_enforced() {
    let bench = Bench::small(4, true);
    let lease = bench.pool.open_lease(terms(0, 2)).unwrap();
    assert!(matches!(bench.pool.reserve_many(lease, 3), Err(ReserveError::OverMax { .. })));
    bench.pool.reserve_many(lease, 2).unwrap();

    let error = bench.pool.reserve(lease).unwrap_err();

    assert!(matches!(error, ReserveError::OverMax { .. }), "{error}");
    assert_eq!(bench.pool.snapshot().counters.denied, 2);
    bench.examine();
}

#[test]
fn many_are_reserved_or_none() {
    for instant in [true, false] {
        let bench = Bench::small(600, instant);
        let lease = bench.lease();
        for chunks in [601, u32::MAX] {
            assert!(bench.pool.reserve_many(lease, chunks).is_err());
            assert_eq!(bench.examine().holders.len(), 0);
        }

        assert_eq!(bench.pool.reserve_many(lease, 600).unwrap().len(), 600);

        bench.examine();
        bench.pool.close_lease(lease).unwrap();
        assert_eq!(bench.examine().holders.len(), 0);
    }
}

#[test]
fn a_host_that_refuses_ends_the_request_at_once() {
    for instant in [true, false] {
        let bench = Bench::small(4, instant);
        let lease = bench.lease();
        bench.pool.reserve(lease).unwrap();
        let before = bench.examine();
        let calls = bench.fake.books().calls;
        bench.fake.books().broken = true;

        let error = bench.pool.reserve_many(lease, 2).unwrap_err();

        assert!(matches!(error, ReserveError::Supply { .. }) && error.is_lack(), "{error}");
        assert_eq!((bench.examine(), bench.fake.books().calls), (before, calls + 1));
        bench.fake.books().broken = false;
        assert!(bench.pool.reserve_many(lease, 3).is_ok());
    }
}

#[test]
fn a_slot_that_fails_waits_at_the_tail() {
    for instant in [true, false] {
        let bench = Bench::small(3, instant);
        let lease = bench.lease();
        bench.fake.books().busy = 1;

        let slots = bench.pool.reserve_many(lease, 3).unwrap();

        assert_eq!(numbers(&slots), [1, 2, 0]);
        assert_eq!(bench.pool.snapshot().counters.tail_retries, 1);
        bench.examine();
    }
}

#[test]
fn slots_fill_blocks_before_they_open_new_ones() {
    // A block has the tags of four chunks.
    for instant in [true, false] {
        let bench = Bench::new(Bytes::kib(4), Bytes::kib(256), 12, instant);
        let lease = bench.lease();
        let slots = bench.pool.reserve_many(lease, 12).unwrap();
        for at in [1, 5, 6, 8, 9, 10, 11] {
            bench.pool.free(lease, slots[at]).unwrap();
        }
        assert_eq!(bench.pool.snapshot().blocks.reserved, 2);

        let again = bench.pool.reserve_many(lease, 3).unwrap();

        let mut numbers = numbers(&again);
        numbers.sort_unstable();
        assert_eq!(numbers, [1, 5, 6]);
        assert_eq!(bench.pool.snapshot().blocks.reserved, 2);
        bench.examine();
    }
}

#[test]
fn a_report_says_what_is_where() {
    let bench = Bench::small(4, true);
    let lease = bench.pool.open_lease(terms(1, 3)).unwrap();
    bench.pool.reserve_many(lease, 2).unwrap();
    bench.pool.lend(3);

    let report = bench.pool.snapshot();

    let json = serde_json::to_value(&report).unwrap();
    assert_eq!(json["supply"], "node:7");
    assert_eq!(json["blocks"]["reserved"], 32);
    assert_eq!(json["blocks"]["lent"], 3);
    assert_eq!(json["leases"][0]["reserved_bytes"], 128 << 10);
    assert_eq!(json["leases"][0]["min_bytes"], 64 << 10);
    assert_eq!(serde_json::from_value::<PoolReport>(json).unwrap(), report);
}

#[test]
fn a_wrong_block_leaves_nothing_that_other_requests_wait_for() {
    let bench = Bench::small(4, false);
    let (lease, other) = (bench.lease(), bench.lease());
    let slots = bench.pool.reserve_many(lease, 3).unwrap();
    let pool = Arc::clone(&bench.pool);
    let spoil = move || {
        pool.lock().blocks.turn((BlockState::Releasing, BlockState::Lent), 1, 0);
    };
    let call = bench.fake.books().calls + 1;
    bench.fake.books().hook = Some((call, Box::new(spoil)));

    assert!(matches!(bench.pool.free(lease, slots[0]), Err(FreeError::Blocks(_))));

    assert!(!bench.pool.lock().may_settle());
    // Closing frees what can be freed, whatever the state of the rest.
    let span = bench.pool.lock().blocks.span(slots[1]);
    bench.pool.lock().blocks.free_reserved(&span);
    assert!(matches!(bench.pool.close_lease(lease), Err(FreeError::Blocks(_))));
    assert!(!bench.pool.lock().may_settle());
    assert!(bench.pool.reserve(other).is_ok());
    assert!(bench.pool.snapshot().leases.iter().all(|known| known.id == other));
}

#[test]
fn a_request_that_is_late_fails_and_keeps_nothing() {
    let bench = Bench::small(8, false);
    let lease = bench.lease();
    let over = Some(std::time::Instant::now());

    let many = bench.pool.reserve_by(lease, 3, over);
    assert!(matches!(many, Err(ReserveError::TimedOut { .. })));
    let adopted =
        bench.pool.adopt_by(lease, &[SlotIndex(1), SlotIndex(2)], Order::First, over).unwrap();
    assert_eq!(adopted.slots, [None, None]);
    assert!(adopted.shortfall.is_some_and(|error| error.is_lack()));
    bench.examine();
    // One slot is not tried again and again.
    bench.fake.books().busy = u32::MAX;
    let before = bench.fake.books().calls;
    bench.pool.reserve_by(lease, 1, over).unwrap_err();

    assert!(bench.fake.books().calls - before <= 2);
    assert_eq!(bench.pool.reserve_by(lease, 0, over).unwrap(), []);
}

#[test]
fn a_request_that_runs_out_of_time_is_not_for_want_of_tag_storage() {
    let bench = Bench::small(8, false);
    let lease = bench.lease();
    let over = Some(std::time::Instant::now());
    let many = bench.pool.reserve_by(lease, 3, over).unwrap_err();
    let adopted =
        bench.pool.adopt_by(lease, &[SlotIndex(1)], Order::First, over).unwrap().shortfall.unwrap();
    bench.fake.books().busy = u32::MAX;
    let one = bench.pool.reserve_by(lease, 1, over).unwrap_err();

    for (error, wanted) in [(many, "192 KiB"), (adopted, "64 KiB"), (one, "64 KiB")] {
        let text = error.to_string();
        assert!(text.contains(wanted) && text.contains("ran out of time"), "{text}");
        assert!(error.is_lack() && !text.contains("exhausted"), "{text}");
    }
}

#[test]
fn headroom_is_a_part_of_what_is_free_within_the_maximum() {
    let bench = Bench::small(64, true);
    let lease = bench.lease();
    let small = bench.pool.open_lease(terms(0, 3)).unwrap();
    let gone = bench.pool.open_lease(terms(0, 3)).unwrap();
    bench.pool.close_lease(gone).unwrap();
    assert_eq!([lease, small, gone].map(|lease| bench.pool.headroom(lease)), [8, 3, 0]);

    bench.pool.reserve_many(lease, 30).unwrap();
    bench.pool.reserve_many(small, 2).unwrap();
    assert_eq!([lease, small].map(|lease| bench.pool.headroom(lease)), [4, 1]);

    bench.pool.reserve_many(lease, 28).unwrap();
    assert_eq!([lease, small].map(|lease| bench.pool.headroom(lease)), [0, 0]);
}

#[test]
fn a_pool_that_lends_or_in_which_a_lease_waits_has_no_headroom() {
    let bench = Bench::small(64, true);
    let lease = bench.lease();
    bench.pool.wait_for(lease, 1, std::time::Instant::now());
    assert_eq!(bench.pool.headroom(lease), 0);

    let bench = Bench::small(64, true);
    let lease = bench.lease();
    bench.pool.lend(1);
    assert_eq!(bench.pool.headroom(lease), 0);
}
