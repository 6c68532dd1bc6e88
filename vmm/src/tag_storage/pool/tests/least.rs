//! Requests for some chunks, or for the least of them.

use std::time::Instant;

use proptest::prelude::*;

use super::*;

#[derive(Clone, Debug)]
enum Step {
    /// A lease asks for so many at least, and so many beside them. Where it gets none it waits for the least.
    Ask(usize, u32, u32),
    Free(usize),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        3 => (0usize..3, 1u32..4, 0u32..9).prop_map(|(lease, least, more)| {
            Step::Ask(lease, least, more)
        }),
        2 => (0usize..3).prop_map(Step::Free),
    ]
}

fn failures(pool: &Pool) -> u64 {
    let counters = pool.snapshot().counters;
    counters.metadata_reserve_fail + counters.denied
}

proptest! {
    #[test]
    fn a_request_fails_only_where_its_least_would(
        limits in prop::array::uniform3((0u32..3, 4u32..16)),
        instant: bool,
        steps in prop::collection::vec(step(), 1..100),
    ) {
        let bench = Bench::small(12, instant);
        let pool = &bench.pool;
        let mut leases: Vec<(LeaseId, Vec<SlotIndex>)> = limits
            .iter()
            .map(|(min, max)| (pool.open_lease(terms(*min, *max)).unwrap(), Vec::new()))
            .collect();
        for step in steps {
            match step {
                Step::Free(at) => {
                    let (lease, slots) = &mut leases[at];
                    if let Some(slot) = slots.pop() {
                        pool.free(*lease, slot).unwrap();
                    }
                }
                Step::Ask(at, least, more) => {
                    let (lease, slots) = &mut leases[at];
                    let failed = failures(pool);
                    let result = pool.reserve_at_least(*lease, (least, least + more), None);
                    prop_assert_eq!(failures(pool) - failed, u64::from(result.is_err()));
                    match result {
                        Ok(had) if had.len() as u32 == least => {
                            slots.extend(had);
                            // All of them would have been too many.
                            prop_assert!(more == 0 || pool.reserve_many(*lease, more).is_err());
                        }
                        Ok(had) => {
                            prop_assert_eq!(had.len() as u32, least + more);
                            slots.extend(had);
                        }
                        Err(_) => {
                            prop_assert!(pool.reserve_many(*lease, least).is_err());
                            pool.wait_for(*lease, least, Instant::now());
                        }
                    }
                }
            }
        }
        bench.examine();
    }
}

#[test]
fn a_request_that_runs_out_of_time_keeps_its_least_and_has_not_failed() {
    let bench = Bench::small(8, false);
    let lease = bench.lease();
    let over = Some(Instant::now());

    let had = bench.pool.reserve_at_least(lease, (1, 3), over).unwrap();
    assert_eq!((had.len(), failures(&bench.pool)), (1, 0));
    assert_eq!(bench.pool.snapshot().leases[0].reserved_bytes, 64 << 10);
    assert!(!bench.pool.lock().may_settle());
    bench.examine();

    let error = bench.pool.reserve_at_least(lease, (2, 3), over).unwrap_err();
    assert!(error.to_string().contains("128 KiB"), "{error}");
    assert_eq!(failures(&bench.pool), 1);
    bench.examine();
}

#[test]
fn where_the_supply_has_no_more_than_the_least_that_is_kept() {
    let bench = Bench::small(8, false);
    let lease = bench.lease();
    let pool = std::sync::Arc::clone(&bench.pool);
    let fake = std::sync::Arc::clone(&bench.fake);
    // From its third call on the supply has nothing.
    let hook = move || fake.books().busy = u32::MAX;
    let call = bench.fake.books().calls + 2;
    bench.fake.books().hook = Some((call, Box::new(hook)));

    let had = pool.reserve_at_least(lease, (1, 4), None).unwrap();

    assert_eq!((had.len(), failures(&pool)), (1, 0));
    assert_eq!(pool.snapshot().leases[0].reserved_bytes, 64 << 10);
    bench.examine();
}
