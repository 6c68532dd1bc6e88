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
