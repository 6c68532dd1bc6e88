//! What shares must be, whatever the leases.
#![allow(clippy::unwrap_used)]

use proptest::prelude::*;

use super::*;

fn limits() -> impl Strategy<Value = Limits> {
    (0u32..20, prop_oneof![0u32..40, Just(u32::MAX - 20)])
        .prop_map(|(min, more)| Limits { min, max: min + more })
}

/// Leases whose minimums the pool has, and its size.
fn pool() -> impl Strategy<Value = (u32, Vec<Limits>)> {
    (prop::collection::vec(limits(), 1..12), 0u32..200).prop_map(|(leases, more)| {
        let min: u32 = leases.iter().map(|limits| limits.min).sum();
        (min + more, leases)
    })
}

fn entitlements(capacity: u32, leases: &[Limits]) -> Vec<u32> {
    let share = share(capacity, leases.iter().copied());
    leases.iter().map(|limits| limits.entitlement(share)).collect()
}

proptest! {
    #[test]
    fn entitlements_are_within_the_limits_and_the_pool((capacity, leases) in pool()) {
        let entitled = entitlements(capacity, &leases);

        for (limits, entitled) in leases.iter().zip(&entitled) {
            prop_assert!((limits.min..=limits.max).contains(entitled));
        }
        let sum: u64 = entitled.iter().copied().map(u64::from).sum();
        prop_assert!(sum <= u64::from(capacity));
        // What does not divide is less than one chunk a lease, unless all have their maximum.
        let all_max = leases.iter().zip(&entitled).all(|(limits, is)| *is == limits.max);
        prop_assert!(all_max || sum + leases.len() as u64 > u64::from(capacity));
    }

    #[test]
    fn without_maximums_the_share_is_what_the_minimums_leave_by_the_number_of_leases(
        mins in prop::collection::vec(0u32..20, 1..12),
        more in 0u32..200,
    ) {
        let min: u32 = mins.iter().sum();
        let leases = mins.iter().map(|min| Limits { min: *min, max: u32::MAX });

        prop_assert_eq!(share(min + more, leases), more / mins.len() as u32);
    }

    #[test]
    fn a_larger_pool_and_fewer_leases_entitle_nobody_to_less((capacity, leases) in pool()) {
        let before = entitlements(capacity, &leases);

        let larger = entitlements(capacity + 1, &leases);
        let fewer = entitlements(capacity, &leases[1..]);

        prop_assert!(before.iter().zip(&larger).all(|(before, after)| before <= after));
        prop_assert!(before[1..].iter().zip(&fewer).all(|(before, after)| before <= after));
    }

    #[test]
    fn a_lease_that_holds_less_ranks_no_later(
        limits in limits(), share in 0u32..50, held in 0u32..50, arrival: u64,
    ) {
        let rank = |held| Rank::new(limits.distance(share, held), arrival);

        prop_assert!(rank(held) < rank(held + 1));
        // One below its share comes before one at or above it.
        let entitled = limits.entitlement(share);
        prop_assert!(held >= entitled || rank(held) < Rank::new(0, 0));
    }

    #[test]
    fn no_more_is_asked_than_is_lacking_and_than_each_can_give(
        lacking in 0u32..100, can_give in prop::collection::vec(0u32..40, 0..12),
    ) {
        let asks = asks(lacking, &can_give);

        let all: u32 = can_give.iter().sum();
        prop_assert_eq!(asks.iter().sum::<u32>(), lacking.min(all));
        for (ask, can) in asks.iter().zip(&can_give) {
            prop_assert!(ask <= can);
            // In proportion, within one chunk.
            let exact = f64::from(*can) * f64::from(lacking.min(all)) / f64::from(all.max(1));
            prop_assert!((f64::from(*ask) - exact).abs() < 1.0);
        }
    }
}

#[test]
fn the_longest_wait_comes_first_among_equals() {
    assert!(Rank::new(3, 1) < Rank::new(3, 2));
    assert!(Rank::new(3, 2) < Rank::new(2, 1));
}

#[test]
fn the_largest_figures_do_not_overflow() {
    let most = Limits { min: u32::MAX, max: u32::MAX };

    assert_eq!(share(u32::MAX, [most, most].into_iter()), 0);
    assert_eq!(most.entitlement(u32::MAX), u32::MAX);
    let asked: u64 = asks(u32::MAX, &[u32::MAX; 3]).into_iter().map(u64::from).sum();
    assert_eq!(asked, u64::from(u32::MAX));
}
