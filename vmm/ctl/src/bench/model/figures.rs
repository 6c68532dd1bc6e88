//! What is modelled, and the figures of it.

use arch::mte::granule::MEMORY_PER_TAG_STORAGE;
use arch::units::Bytes;
use vmm::tag_storage::LendPolicy;

use super::host::{HostError, HostSpec, Kernel};
use super::outcome::Outcome;
use super::run::run;
use super::saving::{self, Lent};
use super::trace::{DAY, Placed, Scale, place};
use crate::bench::{Better, Figure, Host, Method, OWN, Setting, Vmm};

/// Tag storage of a host of 1 TiB, and the rest of it.
const TAGS: Bytes = Bytes::gib(32);
const ORDINARY: Bytes = Bytes::gib(992);
/// The block of what is not about blocks.
const BLOCK: Bytes = Bytes::kib(64);
/// Percent of VMs that have MTE.
const SHARES: [u64; 5] = [0, 25, 50, 75, 100];
/// The same where there is one.
const SHARE: u64 = 50;
const BLOCKS: [Bytes; 5] =
    [Bytes::kib(4), Bytes::kib(64), Bytes::kib(256), Bytes::mib(1), Bytes::mib(4)];
/// Pools, in percent of the tags of all memory.
const POOLS: [u64; 4] = [60, 50, 40, 30];
const SUPPLY: &str = "node:1";
const BENCH: &str = "model";
const HOUR: u64 = 3600;

/// What is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Plan {
    /// Hosts that VMs are placed on.
    pub hosts: u64,
    /// How many of them, from the first on, are modelled.
    pub modelled: u64,
    /// Days.
    pub days: u64,
    /// What VMs touch at most together, in percent of the hosts' ordinary memory.
    pub load: u64,
    /// Where all numbers come from.
    pub seed: u64,
}

/// The figures, and how much was done for them.
#[derive(Clone, Debug, PartialEq)]
pub struct Modelled {
    /// One a case and kind.
    pub figures: Vec<Figure>,
    /// Events of VMs, and requests for a chunk, in all cases.
    pub events: u64,
    /// Chunks that were reserved.
    pub reserved: u64,
    /// VMs that were placed, and that found no host.
    pub vms: (u64, u64),
    /// Which policy is best, and what it saves.
    pub best: String,
}

/// A case: all that tells it from the others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Case {
    policy: LendPolicy,
    block: Bytes,
    /// The pool.
    tags: Bytes,
    /// Percent of VMs with MTE.
    share: u64,
}

const CASE: Case = Case { policy: LendPolicy::Never, block: BLOCK, tags: TAGS, share: SHARE };

/// Models all cases. `progress` is called for each.
///
/// # Errors
/// As [`run`].
pub fn model(plan: &Plan, mut progress: impl FnMut(&str)) -> Result<Modelled, HostError> {
    let chunks = ORDINARY.get() / arch::layout::CHUNK.get();
    let Plan { hosts, days, load, seed, .. } = *plan;
    let kept = plan.modelled.min(hosts);
    let placed = place(&Scale { hosts, days, chunks, load, seed }, kept as usize);
    let vms = (placed.placed, placed.refused);
    let mut all =
        Modelled { figures: Vec::new(), events: 0, reserved: 0, vms, best: String::new() };
    let mut found = |all: &mut Modelled, name: &str, case| {
        progress(name);
        let found = hosts_of(plan, &placed, case)?;
        all.events += found.events;
        all.reserved += found.reserved;
        Ok::<_, HostError>(found)
    };
    let policies = LendPolicy::ALL.map(|policy| SHARES.map(|share| (policy, share)));
    let mut lent = Vec::new();
    for (policy, share) in policies.into_iter().flatten() {
        let name = format!("{policy}, {share} % with MTE");
        let outcome = found(&mut all, &name, Case { policy, share, ..CASE })?;
        all.figures.extend(lending(plan, &name, &outcome));
        lent.push(Lent { policy, share, outcome });
    }
    all.figures.extend(saving::figures(plan, &lent));
    all.best = saving::sentence(plan, &lent).unwrap_or_default();
    for block in BLOCKS {
        let name = format!("blocks of {block}, {SHARE} % with MTE");
        let outcome = found(&mut all, &name, Case { block, ..CASE })?;
        all.figures.push(blocks(plan, &name, &outcome));
    }
    for percent in POOLS {
        let name = format!("pool of {percent} %, {SHARE} % with MTE");
        let tags = Bytes::new(ORDINARY.get() / MEMORY_PER_TAG_STORAGE / 100 * percent);
        let outcome = found(&mut all, &name, Case { tags, ..CASE })?;
        all.figures.extend(waiting(plan, &name, &outcome));
    }
    Ok(all)
}

/// All modelled hosts in one case.
fn hosts_of(plan: &Plan, placed: &Placed, case: Case) -> Result<Outcome, HostError> {
    let Case { policy, block, tags, share } = case;
    let spec = HostSpec { ordinary: ORDINARY, tags, block, policy, kernel: Kernel::default() };
    placed.vms.iter().try_fold(Outcome::default(), |sum, vms| {
        Ok(sum.and(run(spec, vms, share, plan.days, plan.seed)?))
    })
}

/// GiB of a host, on average over time.
fn mean(plan: &Plan, sum: u128) -> f64 {
    let seconds = plan.days * DAY * plan.modelled.min(plan.hosts);
    // Thousandths of a MiB: below 2^53 for any host there is.
    (sum * 1000 / 256 / u128::from(seconds.max(1))) as f64 / 1000.0 / 1024.0
}

/// A quotient with three digits behind the point: 0 where there is nothing to divide by.
pub(super) fn ratio(one: u128, other: u128) -> f64 {
    (one * 1000).checked_div(other).unwrap_or_default() as f64 / 1000.0
}

fn lending(plan: &Plan, case: &str, found: &Outcome) -> [Figure; 4] {
    let of = |name, unit, better, value| figure(plan, (name, unit), case, better, value);
    let evicted = u128::from(found.evictions);
    [
        of(
            "tag storage that borrowers live in",
            "GiB a host",
            Better::More,
            mean(plan, found.lent_sum),
        ),
        of("memory that VMs lack", "GiB a host", Better::Less, mean(plan, found.lacking_sum)),
        of(
            "evictions a reserved chunk",
            "blocks of 64 KiB",
            Better::Less,
            ratio(evicted, u128::from(found.reserved)),
        ),
        of(
            "requests that fail",
            "a thousand chunks",
            Better::Less,
            ratio(u128::from(found.failed) * 1000, u128::from(found.reserved)),
        ),
    ]
}

fn blocks(plan: &Plan, case: &str, found: &Outcome) -> Figure {
    let value = ratio(found.reserved_sum, found.tags_sum);
    figure(plan, ("reserved blocks", "times the tags in them"), case, Better::Less, value)
}

/// What waiting came to. A chunk-hour is one chunk that a VM waits for, for an hour.
fn waiting(plan: &Plan, case: &str, found: &Outcome) -> [Figure; 3] {
    let of = |name, unit, value| figure(plan, (name, unit), case, Better::Less, value);
    let days = u128::from(plan.days * plan.modelled.min(plan.hosts) * HOUR);
    let hours = |sum: u128| ratio(sum, days);
    [
        of("tag storage waited for", "chunk-hours a host and day", hours(found.waiting_sum)),
        of("of that within a fair share", "chunk-hours a host and day", hours(found.unfair_sum)),
        of(
            "VMs that waited",
            "percent of VMs with MTE",
            ratio(u128::from(found.waited) * 100, found.tagged.into()),
        ),
    ]
}

/// A figure of the model's: a name and a unit, the row, which way is good.
pub(super) fn figure(
    plan: &Plan,
    (name, unit): (&str, &str),
    case: &str,
    better: Better,
    value: f64,
) -> Figure {
    let Plan { hosts, modelled, days, load, seed } = plan;
    let options =
        format!("{modelled} of {hosts} hosts of 1 TiB, {days} days, load {load} %, seed {seed}");
    Figure {
        bench: BENCH.to_owned(),
        name: name.to_owned(),
        case: case.to_owned(),
        vmm: Vmm {
            name: OWN.to_owned(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            variant: String::new(),
        },
        value: Some(value),
        cannot: None,
        unit: unit.to_owned(),
        better,
        method: Method::Model,
        supply: Some(SUPPLY.to_owned()),
        setting: Setting { options, ..Setting::default() },
        host: Host { machine: "any: no guest runs".to_owned(), ..Host::default() },
        samples: Vec::new(),
        aim: None,
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn figures_say_that_they_are_modelled_and_pass_as_figures() {
        let plan = Plan { hosts: 1, modelled: 1, days: 1, load: 1, seed: 1 };

        let mut cases = 0;
        let found = model(&plan, |_| cases += 1).unwrap();

        assert_eq!(cases, 29);
        // Of each policy and share, of what three policies save, of blocks, and of pools.
        assert_eq!(found.figures.len(), 20 * 4 + 3 * 6 + 5 + 4 * 3);
        assert!(found.best.starts_with("the best policy is "), "{}", found.best);
        for figure in &found.figures {
            assert_eq!(figure.check(), Ok(()));
            assert_eq!(figure.method, Method::Model);
            assert_eq!(figure.supply.as_deref(), Some(SUPPLY));
        }
        assert_eq!(model(&plan, |_| ()).unwrap(), found);
    }

    #[test]
    fn means_and_ratios_are_those_of_the_sums() {
        let plan = Plan { hosts: 2, modelled: 2, days: 1, load: 1, seed: 1 };
        // 2^18 pages, 1 GiB, all day on one host of two.
        assert_eq!(mean(&plan, u128::from(DAY) << 18), 0.5);
        assert_eq!(ratio(3, 2), 1.5);
        assert_eq!(ratio(1, 0), 0.0);
    }
}
