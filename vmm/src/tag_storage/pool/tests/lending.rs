//! Lent blocks: in the way, pinned.

use arch::mte::geometry::BlockIndex;

use super::super::requests::ATTEMPTS;
use super::*;
use crate::tag_storage::supply::Observation;

#[test]
fn what_is_lent_is_evicted_for_whoever_needs_it() {
    for instant in [true, false] {
        let bench = Bench::small(4, instant);
        let lease = bench.lease();
        assert_eq!(bench.pool.lend(1000), 64);
        assert_eq!(bench.pool.lend(1), 0);

        bench.pool.reserve_many(lease, 2).unwrap();

        let report = bench.pool.snapshot();
        assert_eq!((report.blocks.lent, report.blocks.reserved), (32, 32));
        assert_eq!(report.counters.evictions, 32);
        bench.examine();
    }
}

#[test]
fn what_is_free_goes_before_what_is_lent() {
    let bench = Bench::small(4, false);
    let lease = bench.lease();
    bench.pool.lend(40);

    bench.pool.reserve(lease).unwrap();
    assert_eq!(bench.pool.snapshot().counters.evictions, 0);
    bench.pool.reserve(lease).unwrap();
    assert_eq!(bench.pool.snapshot().counters.evictions, 8);
    bench.examine();
}

#[test]
fn pinned_memory_is_passed_over_and_counted() {
    for instant in [true, false] {
        let bench = Bench::small(4, instant);
        let lease = bench.lease();
        bench.pool.lend(64);
        bench.fake.books().pinned.extend([3, 17, 18]);

        let slots = bench.pool.reserve_many(lease, 2).unwrap();

        assert_eq!(numbers(&slots), [2, 3]);
        let report = bench.pool.snapshot();
        assert_eq!((report.blocks.pinned, report.counters.pinned), (3, 3));
        assert_eq!(report.counters.tail_retries, 2);
        bench.examine();
        let error = bench.pool.reserve(lease).unwrap_err();
        assert!(matches!(error, ReserveError::Exhausted { .. }), "{error}");

        bench.fake.books().pinned.clear();
        assert_eq!(bench.pool.retry_pinned(), 3);
        bench.pool.reserve_many(lease, 2).unwrap();
        bench.examine();
    }
}

#[test]
fn all_lent_memory_pinned_is_a_bounded_error() {
    for instant in [true, false] {
        let bench = Bench::small(200, instant);
        let lease = bench.lease();
        bench.pool.lend(u64::MAX);
        bench.fake.books().pinned.extend(0..200 * 16);
        let mut slots = 0;

        for request in 1.. {
            let calls = bench.fake.books().calls;
            let error = bench.pool.reserve(lease).unwrap_err();

            assert!(matches!(error, ReserveError::Exhausted { .. }), "{error}");
            let calls = bench.fake.books().calls - calls;
            assert!(calls <= ATTEMPTS, "{calls}");
            bench.examine();
            slots += calls;
            if calls == 0 {
                break;
            }
            assert!(request < 10);
        }
        assert_eq!((slots, bench.pool.snapshot().blocks.pinned), (200, 3200));
    }
}

#[test]
fn memory_that_always_comes_back_is_a_bounded_error() {
    for instant in [true, false] {
        let bench = Bench::small(200, instant);
        let lease = bench.lease();
        bench.pool.lend(u64::MAX);
        let before = bench.examine();
        bench.fake.books().busy = u32::MAX;

        let error = bench.pool.reserve(lease).unwrap_err();

        assert!(matches!(error, ReserveError::Exhausted { .. }), "{error}");
        assert_eq!(bench.examine(), before);
        // Three tries each.
        assert_eq!(bench.fake.books().calls, ATTEMPTS * 3);
    }
}

#[test]
fn eviction_is_tried_three_times() {
    let bench = Bench::small(1, false);
    let lease = bench.lease();
    bench.pool.lend(16);

    bench.fake.books().busy = 2;
    bench.pool.reserve(lease).unwrap();

    assert_eq!(bench.fake.books().calls, 4);
    bench.examine();
}

/// A supply that is looked at while something else happens.
struct Observed {
    supply: Shared,
    /// What it shows.
    free: u64,
    /// Done after the look.
    after: std::sync::Mutex<Option<Box<dyn FnOnce() + Send>>>,
}

struct Looked(Arc<Observed>);

impl Supply for Looked {
    fn name(&self) -> SupplyName {
        self.0.supply.name()
    }

    fn take(&self, blocks: std::ops::Range<BlockIndex>) -> Result<(), TakeError> {
        self.0.supply.take(blocks)
    }

    fn release(&self, blocks: std::ops::Range<BlockIndex>) {
        self.0.supply.release(blocks);
    }

    fn evict(&self, blocks: std::ops::Range<BlockIndex>) -> Result<(), TakeError> {
        self.0.supply.evict(blocks)
    }

    fn observe(&self) -> Option<Observation> {
        let after = self.0.after.lock().unwrap().take();
        after.into_iter().for_each(|after| after());
        Some(Observation { free: self.0.free, pinned: 0 })
    }

    fn is_instant(&self) -> bool {
        false
    }
}

#[test]
fn what_was_taken_after_a_look_makes_no_lent_block_free() {
    let geometry = Geometry::new(Bytes::kib(4), Bytes::kib(4)).unwrap();
    let supply = Shared(Fake::new(false));
    let supply = Arc::new(Observed { supply, free: 32, after: std::sync::Mutex::default() });
    let pool = Pool::new(geometry, Bytes::kib(256), Box::new(Looked(Arc::clone(&supply)))).unwrap();
    let pool = Arc::new(pool);
    let lease = pool.open_lease(terms(0, 4)).unwrap();
    pool.lend(32);
    let taker = Arc::clone(&pool);
    *supply.after.lock().unwrap() = Some(Box::new(move || {
        taker.reserve(lease).unwrap();
    }));

    pool.follow();

    let blocks = pool.snapshot().blocks;
    assert_eq!((blocks.free, blocks.lent, blocks.reserved), (16, 32, 16));
}
