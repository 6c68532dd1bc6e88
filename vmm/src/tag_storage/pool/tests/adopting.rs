//! What VMs have again of a pool that was started again.

use super::*;

fn slots(numbers: &[u32]) -> Vec<SlotIndex> {
    numbers.iter().copied().map(SlotIndex).collect()
}

fn adopted(bench: &Bench, lease: LeaseId, wanted: &[u32]) -> (Vec<Option<u32>>, bool) {
    let Adopted { slots, shortfall } =
        bench.pool.adopt(lease, &slots(wanted), Order::First).unwrap();
    (slots.iter().map(|slot| slot.map(|slot| slot.0)).collect(), shortfall.is_some())
}

#[test]
fn free_slots_are_the_same_again() {
    for instant in [true, false] {
        let bench = Bench::small(8, instant);
        let lease = bench.lease();

        let result = adopted(&bench, lease, &[7, 0, 3]);

        assert_eq!(result, (vec![Some(7), Some(0), Some(3)], false));
        assert_eq!(bench.examine().holders.len(), 3);
        assert_eq!(numbers(&bench.pool.reserve_many(lease, 5).unwrap()), [1, 2, 4, 5, 6]);
        bench.examine();
    }
}

#[test]
fn others_stand_in_for_those_that_are_not_free() {
    for instant in [true, false] {
        let bench = Bench::small(6, instant);
        let (other, lease) = (bench.lease(), bench.lease());
        bench.pool.reserve_many(other, 2).unwrap();

        // One of another's, one there is not, one twice. None is taken in place of one that is wanted.
        let result = adopted(&bench, lease, &[1, 99, 4, 2, 4]);

        assert_eq!(result, (vec![Some(3), Some(5), Some(4), Some(2), None], true));
        assert_eq!(bench.examine().holders.len(), 6);
    }
}

#[test]
fn what_is_short_is_adopted_later() {
    let bench = Bench::small(3, false);
    let (other, lease) = (bench.lease(), bench.lease());
    let taken = bench.pool.reserve_many(other, 2).unwrap();
    assert_eq!(adopted(&bench, lease, &[0, 1, 2]), (vec![None, None, Some(2)], true));
    assert_eq!(adopted(&bench, lease, &[0, 1]), (vec![None, None], true));

    bench.pool.free(other, taken[1]).unwrap();
    assert_eq!(adopted(&bench, lease, &[0, 1]), (vec![None, Some(1)], true));
    bench.pool.close_lease(other).unwrap();
    assert_eq!(adopted(&bench, lease, &[0]), (vec![Some(0)], false));
    bench.examine();
}

#[test]
fn a_maximum_holds_for_what_is_adopted() {
    let bench = Bench::small(8, true);
    let lease = bench.pool.open_lease(terms(0, 2)).unwrap();

    let result = bench.pool.adopt(lease, &slots(&[5, 6, 7]), Order::First).unwrap();

    assert_eq!(result.slots, [Some(SlotIndex(5)), Some(SlotIndex(6)), None]);
    assert!(matches!(result.shortfall, Some(ReserveError::OverMax { .. })));
    bench.examine();
}

#[test]
fn pinned_and_refused_memory_is_not_adopted() {
    for instant in [true, false] {
        let bench = Bench::small(4, instant);
        let lease = bench.lease();
        bench.pool.lend(64);
        bench.fake.books().pinned.extend([0]);
        assert_eq!(adopted(&bench, lease, &[0, 1]), (vec![Some(2), Some(1)], false));

        bench.fake.books().broken = true;
        let result = bench.pool.adopt(lease, &slots(&[3]), Order::First).unwrap();
        assert!(matches!(result.shortfall, Some(ReserveError::Supply { .. })));
        bench.examine();
    }
}

#[test]
fn an_unknown_lease_adopts_nothing() {
    let bench = Bench::small(4, false);
    let lease = bench.lease();
    bench.pool.close_lease(lease).unwrap();

    let result = bench.pool.adopt(lease, &slots(&[1]), Order::First);

    assert!(matches!(result, Err(ReserveError::UnknownLease(_))));
    assert_eq!(bench.examine().holders.len(), 0);
}
