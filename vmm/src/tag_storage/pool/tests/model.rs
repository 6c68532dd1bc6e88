//! Any sequence of requests, against what they must get, with a supply that fails on the way.

use proptest::prelude::*;

use super::*;
use crate::tag_storage::pool::testing::model::{Model, SIZES, Step};

fn step() -> impl Strategy<Value = Step> {
    let lease = 0usize..4;
    let slot = 0u32..14;
    prop_oneof![
        3 => (lease.clone(), 0u32..4, 0u32..14)
            .prop_map(|(lease, min, max)| Step::Open { lease, min, max }),
        8 => lease.clone().prop_map(Step::Reserve),
        3 => (lease.clone(), 0u32..8).prop_map(|(lease, chunks)| Step::ReserveMany(lease, chunks)),
        8 => (lease.clone(), slot.clone()).prop_map(|(lease, slot)| Step::Free(lease, slot)),
        2 => (lease.clone(), prop::collection::vec(slot, 0..6))
            .prop_map(|(lease, slots)| Step::Adopt(lease, slots)),
        1 => lease.prop_map(Step::Close),
        2 => prop_oneof![0u64..40, Just(u64::MAX)].prop_map(Step::Lend),
        1 => Just(Step::RetryPinned),
        2 => prop::collection::vec(0u64..60, 0..5).prop_map(Step::Pin),
        1 => (0u32..8).prop_map(Step::Busy),
        1 => prop::bool::weighted(0.3).prop_map(Step::Broken),
    ]
}

fn sizes() -> impl Strategy<Value = (Bytes, Bytes)> {
    prop::sample::select(SIZES.to_vec())
        .prop_map(|(page, block)| (Bytes::kib(page), Bytes::new(block)))
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn requests_get_what_they_must_and_the_books_are_right(
        (page, block) in sizes(),
        chunks in 10u32..13,
        instant: bool,
        steps in prop::collection::vec(step(), 1..50),
    ) {
        let mut model = Model::new(page, block, chunks, instant);
        for step in steps {
            model.apply(step);
            model.check();
        }
    }

    #[test]
    fn closing_all_leases_after_any_step_restores_the_totals(
        (page, block) in sizes(),
        instant: bool,
        steps in prop::collection::vec(step(), 1..12),
    ) {
        for end in 0..=steps.len() {
            let mut model = Model::new(page, block, 12, instant);
            let whole = model.bench.pool.snapshot();
            for step in &steps[..end] {
                model.apply(step.clone());
            }
            model.bench.fake.books().broken = false;
            model.bench.fake.books().busy = 0;
            model.bench.fake.books().pinned.clear();

            for lease in 0..4 {
                model.apply(Step::Close(lease));
            }
            model.bench.pool.retry_pinned();
            model.bench.pool.lock().blocks.turn((BlockState::Lent, BlockState::Free), u64::MAX, 0);

            model.check();
            let report = model.bench.pool.snapshot();
            prop_assert_eq!((report.blocks, report.chunks), (whole.blocks, whole.chunks));
            prop_assert!(model.bench.fake.books().taken.is_empty());
        }
    }
}

/// Has a lease closed in the middle of each call of the supply in turn.
#[test]
fn a_lease_that_is_closed_in_the_middle_of_any_call_leaves_nothing() {
    for block in [4, 20, 64, 128] {
        for call in 1.. {
            let bench = Bench::new(Bytes::kib(4), Bytes::kib(block), 12, false);
            let (lease, other) = (bench.lease(), bench.lease());
            bench.pool.lend(8);
            let pool = Arc::clone(&bench.pool);
            let hook = Box::new(move || pool.close_lease(lease).unwrap());
            bench.fake.books().hook = Some((call, hook));

            let first = bench.pool.reserve(lease);
            let kept = bench.pool.reserve(other).unwrap();
            let many = bench.pool.reserve_many(lease, 4);
            if let Ok(slot) = first {
                let _ = bench.pool.free(lease, slot);
            }
            let rest = bench.pool.reserve_many(lease, 6);

            if bench.fake.books().hook.is_some() {
                assert!(many.is_ok() && rest.is_ok(), "{block}");
                break;
            }
            let books = bench.examine();
            let report = bench.pool.snapshot();
            assert_eq!(books.holders.keys().copied().collect::<Vec<_>>(), [kept], "{call}");
            assert_eq!((report.leases.len(), report.chunks.free), (1, report.chunks.total - 1));
            assert_eq!(bench.pool.reserve_many(other, report.chunks.free).map(drop).ok(), Some(()));
            assert_eq!(bench.pool.snapshot().blocks.lent, 0);
        }
    }
}
