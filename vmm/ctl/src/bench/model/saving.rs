//! What lending saves, and by which policy most.
//!
//! A policy saves memory that VMs lack where nothing is lent and do not lack under it. Said for all hosts of a plan, it is
//! the memory of so many hosts that need not be there.

use vmm::tag_storage::LendPolicy;

use super::figures::{Plan, figure, ratio};
use super::outcome::Outcome;
use super::trace::DAY;
use crate::bench::{Better, Figure};

/// Pages of a host of 1 TiB.
const HOST_PAGES: i128 = 1 << 28;

/// What all modelled hosts came to under one policy, with so many percent of VMs with MTE.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lent {
    /// The policy.
    pub policy: LendPolicy,
    /// Percent of VMs with MTE.
    pub share: u64,
    /// What came of it.
    pub outcome: Outcome,
}

/// What a policy saves on average over the shares of VMs with MTE.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Saving {
    policy: LendPolicy,
    /// Pages times seconds on the modelled hosts.
    sum: i128,
    /// Blocks that were emptied for a chunk that was reserved.
    evictions: f64,
}

/// Pages times seconds that are saved, where VMs lacked `never` without lending.
fn saved(never: &Outcome, found: &Outcome) -> i128 {
    // Sums are below 2^80.
    never.lacking_sum as i128 - found.lacking_sum as i128
}

/// Hosts of 1 TiB that have so much memory, of all hosts of a plan: with two digits behind the point.
fn hosts_of(plan: &Plan, sum: i128) -> f64 {
    let seconds = i128::from(plan.days * DAY * plan.modelled.min(plan.hosts));
    let hundredths = sum * 100 * i128::from(plan.hosts) / (seconds.max(1) * HOST_PAGES);
    hundredths as f64 / 100.0
}

/// Those of each policy that lends, at each share, with what nothing lent came to there.
fn pairs(all: &[Lent]) -> impl Iterator<Item = (&Lent, &Lent)> {
    let never = |share| {
        all.iter().find(move |lent| lent.policy == LendPolicy::Never && lent.share == share)
    };
    let lending = all.iter().filter(|lent| lent.policy != LendPolicy::Never);
    lending.filter_map(move |lent| Some((lent, never(lent.share)?)))
}

/// Figures of what each policy saves.
pub fn figures(plan: &Plan, all: &[Lent]) -> Vec<Figure> {
    let of = |case: &str, sum: i128| {
        let name = ("memory that lending saves", "hosts of 1 TiB, of all");
        figure(plan, name, case, Better::More, hosts_of(plan, sum))
    };
    let each = pairs(all).map(|(lent, never)| {
        let case = format!("{}, {} % with MTE", lent.policy, lent.share);
        of(&case, saved(&never.outcome, &lent.outcome))
    });
    let means = savings(all)
        .into_iter()
        .map(|saving| of(&format!("{}, on average over the shares", saving.policy), saving.sum));
    each.chain(means).collect()
}

/// Of each policy that lends, the best first: the one that saves most; of those that save as much to 1 %, the one that empties
/// the fewest blocks.
fn savings(all: &[Lent]) -> Vec<Saving> {
    let of_policy = |policy| {
        let mut sums = Vec::new();
        let mut outcome = Outcome::default();
        for (lent, never) in pairs(all).filter(|(lent, _)| lent.policy == policy) {
            sums.push(saved(&never.outcome, &lent.outcome));
            outcome = outcome.and(lent.outcome);
        }
        let sum = sums.iter().sum::<i128>().checked_div(sums.len() as i128)?;
        let evictions = ratio(outcome.evictions.into(), outcome.reserved.into());
        Some(Saving { policy, sum, evictions })
    };
    let mut found: Vec<Saving> = LendPolicy::ALL.into_iter().filter_map(of_policy).collect();
    let most = found.iter().map(|saving| saving.sum).max().unwrap_or_default();
    let is_less = |saving: &Saving| saving.sum * 100 < most * 99;
    found.sort_by(|one, other| {
        let of_evictions = one.evictions.total_cmp(&other.evictions);
        let of_memory = other.sum.cmp(&one.sum);
        match (is_less(one), is_less(other)) {
            (false, false) => of_evictions.then(of_memory),
            (less, lesser) => less.cmp(&lesser).then(of_memory),
        }
    });
    found
}

/// A sentence that says which policy is best and what it saves, by the figures.
pub fn sentence(plan: &Plan, all: &[Lent]) -> Option<String> {
    let savings = savings(all);
    let (best, others) = savings.split_first()?;
    let hosts = |saving: &Saving| format!("{:.2}", hosts_of(plan, saving.sum));
    let others: Vec<String> = others
        .iter()
        .map(|other| format!("{} {} and {}", other.policy, hosts(other), other.evictions))
        .collect();
    Some(format!(
        "the best policy is {}: on average over the shares of VMs with MTE it saves the memory of {} of {} hosts of 1 TiB, \
         by {} of them modelled, and empties {} blocks for a reserved chunk; the others: {}",
        best.policy,
        hosts(best),
        plan.hosts,
        plan.modelled.min(plan.hosts),
        best.evictions,
        others.join(", "),
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    const PLAN: Plan = Plan { hosts: 1000, modelled: 2, days: 1, load: 150, seed: 1 };
    /// One page of each modelled host, all day.
    const PAGE: u128 = 2 * DAY as u128;

    fn lent(policy: LendPolicy, share: u64, gib: u128, evictions: u64) -> Lent {
        let lacking_sum = PAGE * (gib << 18);
        let outcome = Outcome { lacking_sum, evictions, reserved: 100, ..Outcome::default() };
        Lent { policy, share, outcome }
    }

    #[test]
    fn what_is_saved_is_the_memory_of_memory() {
        let [never, some] = [(LendPolicy::Never, 32), (LendPolicy::Eager, 22)]
            .map(|(policy, gib)| lent(policy, 0, gib, 0));

        // 10 GiB of each of 1000 hosts are 9.765625 hosts of 1024 GiB.
        let hosts = |one: Lent, other: Lent| hosts_of(&PLAN, saved(&one.outcome, &other.outcome));
        assert_eq!((hosts(never, some), hosts(some, never)), (9.76, -9.76));
    }

    #[test]
    fn the_best_saves_most_and_among_equals_empties_least() {
        let all = |eager, balanced| {
            [
                lent(LendPolicy::Never, 0, 32, 0),
                lent(LendPolicy::Never, 50, 20, 0),
                lent(LendPolicy::LastResort, 0, 12, 0),
                lent(LendPolicy::LastResort, 50, 20, 30),
                lent(LendPolicy::Balanced, 0, balanced, 0),
                lent(LendPolicy::Balanced, 50, 20, 20),
                lent(LendPolicy::Eager, 0, eager, 0),
                lent(LendPolicy::Eager, 50, 20, 90),
            ]
        };
        let best = |all: &[Lent]| savings(all).first().map(|saving| saving.policy);

        assert_eq!(best(&all(12, 12)), Some(LendPolicy::Balanced));
        assert_eq!(best(&all(12, 13)), Some(LendPolicy::LastResort));
        assert_eq!(best(&all(1, 12)), Some(LendPolicy::Eager));
        let said = sentence(&PLAN, &all(1, 12)).unwrap_or_default();
        // 31 GiB at one share of two.
        assert!(said.contains("eager: on average"), "{said}");
        assert!(said.contains("the memory of 15.13 of 1000 hosts"), "{said}");
        assert!(said.contains("empties 0.45 blocks"), "{said}");
        assert!(said.chars().count() < crate::bench::MAX_TEXT, "{said}");
        assert_eq!(sentence(&PLAN, &[]), None);
        assert_eq!(figures(&PLAN, &all(1, 12)).len(), 3 * 2 + 3);
    }
}
