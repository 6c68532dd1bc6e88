//! Beyond one machine: the very code of the pool, without KVM, driven by VMs that come, use more and less, and go.
//!
//! | File | Responsibility |
//! |---|---|
//! | `dice` | numbers that a seed decides |
//! | `trace` | the VMs, and on which host each is |
//! | `host` | a host: the pool, a node, memory |
//! | `figures` | what is modelled, and the figures of it |
//!
//! One host is modelled at a time: nothing that happens on one changes another, once the VMs have their places.
//! docs/benchmarks.md says what is taken from where.

pub mod dice;
pub mod figures;
pub mod host;
pub mod trace;

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use host::{Host, HostError, HostSpec, Memory};
use trace::{DAY, Phases, Vm};

/// What has come of a host, all of it exact: sums are of pages of 4 KiB times seconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Outcome {
    /// Starts, changes and ends of VMs.
    pub events: u64,
    /// Chunks that were reserved.
    pub reserved: u64,
    /// Requests for a chunk that failed for lack of tag storage.
    pub failed: u64,
    /// Blocks that had been lent and were emptied.
    pub evictions: u64,
    /// Reserved blocks.
    pub reserved_sum: u128,
    /// Tags that chunks needed.
    pub tags_sum: u128,
    /// Tag storage that borrowers were in.
    pub lent_sum: u128,
    /// What VMs wanted and did not have.
    pub lacking_sum: u128,
}

impl Outcome {
    fn pass(&mut self, level: host::Level, lacking: u64, seconds: u64) {
        let sum = |pages: u64| u128::from(pages) * u128::from(seconds);
        self.reserved_sum += sum(level.reserved);
        self.tags_sum += sum(level.tags);
        self.lent_sum += sum(level.lent);
        self.lacking_sum += sum(lacking);
    }

    /// Both together.
    #[must_use]
    pub fn and(self, other: Self) -> Self {
        Self {
            events: self.events + other.events,
            reserved: self.reserved + other.reserved,
            failed: self.failed + other.failed,
            evictions: self.evictions + other.evictions,
            reserved_sum: self.reserved_sum + other.reserved_sum,
            tags_sum: self.tags_sum + other.tags_sum,
            lent_sum: self.lent_sum + other.lent_sum,
            lacking_sum: self.lacking_sum + other.lacking_sum,
        }
    }
}

/// A VM that runs.
struct Running {
    memory: Memory,
    phases: Phases,
    lacking: u64,
}

/// Runs the VMs of a host for so many days. Those with a mark below `share` have MTE. In the end all are ended, whatever
/// time they had left, and the host must have all it had.
///
/// # Errors
/// When a host is impossible, or something was lost.
pub fn run(
    spec: HostSpec,
    vms: &[Vm],
    share: u64,
    days: u64,
    seed: u64,
) -> Result<Outcome, HostError> {
    let mut host = Host::new(spec)?;
    let mut running: Vec<Option<Running>> = vms.iter().map(|_| None).collect();
    // By time, then by the VM's place: no two are at the same place in this order.
    let mut due: BinaryHeap<Reverse<(u64, usize)>> =
        vms.iter().enumerate().map(|(at, vm)| Reverse((vm.start, at))).collect();
    let (mut found, mut now, mut lacking, end) = (Outcome::default(), 0, 0, days * DAY);
    while let Some(Reverse((at, index))) = due.pop().filter(|Reverse((at, _))| *at < end) {
        found.pass(host.level(), lacking, at - now);
        (now, found.events) = (at, found.events + 1);
        let (vm, entry) = (&vms[index], &mut running[index]);
        if entry.is_some() && at >= vm.end {
            if let Some(ended) = entry.take() {
                lacking -= ended.lacking;
                host.end(ended.memory)?;
            }
            continue;
        }
        let own = match entry {
            Some(own) => own,
            None => entry.insert(Running {
                memory: host.start(vm.mark < share)?,
                phases: Phases::of(seed, vm),
                lacking: 0,
            }),
        };
        let (chunks, seconds) = own.phases.draw();
        let lacks = host.resize(&mut own.memory, chunks)?;
        lacking = lacking + lacks - own.lacking;
        own.lacking = lacks;
        due.push(Reverse(((at + seconds).min(vm.end).max(at + 1), index)));
    }
    found.pass(host.level(), lacking, end - now);
    let counters = host.check()?.counters;
    (found.reserved, found.failed) =
        (counters.metadata_reserve_success, counters.metadata_reserve_fail);
    found.evictions = counters.evictions;
    running.into_iter().flatten().try_for_each(|own| host.end(own.memory))?;
    let report = host.check()?;
    match host.level() == host::Level::default() && report.blocks.free == report.blocks.total {
        true => Ok(found),
        false => Err(HostError::Books("VMs have ended and something is still in use")),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use arch::units::Bytes;
    use vmm::tag_storage::LendPolicy;

    use super::trace::{Scale, place};
    use super::*;

    fn spec(policy: LendPolicy) -> HostSpec {
        HostSpec { ordinary: Bytes::gib(31), tags: Bytes::gib(1), block: Bytes::kib(64), policy }
    }

    const SCALE: Scale = Scale { hosts: 2, days: 1, chunks: 31 << 9, load: 160, seed: 3 };

    #[test]
    fn the_same_seed_gives_the_same_to_the_last_digit() {
        let one = |seed| {
            let vms = place(&Scale { seed, ..SCALE }, 1).vms.remove(0);
            run(spec(LendPolicy::Eager), &vms, 50, 1, seed).unwrap()
        };

        assert_eq!(one(3), one(3));
        assert_ne!(one(3), one(4));
        assert!(one(3).evictions > 0 && one(3).lent_sum > 0, "{:?}", one(3));
    }

    #[test]
    fn what_is_lent_is_lacking_without_it() {
        let vms = place(&SCALE, 1).vms.remove(0);
        let with = |policy, share| run(spec(policy), &vms, share, 1, 3).unwrap();

        let [never, eager] = [LendPolicy::Never, LendPolicy::Eager].map(|policy| with(policy, 0));

        assert_eq!((never.lent_sum, never.evictions, eager.evictions), (0, 0, 0));
        assert!(never.lacking_sum > eager.lacking_sum, "{never:?} {eager:?}");
        // Where all have MTE no policy has a borrower.
        assert_eq!(with(LendPolicy::Never, 100), with(LendPolicy::Eager, 100));
    }

    /// By hand: from second 0 to 3600 and on, one VM of one chunk, which is always all it uses.
    #[test]
    fn sums_of_a_vm_of_one_chunk_are_known() {
        let vm = Vm { number: 0, start: 100, end: 3100, most: 1, mark: 0 };

        let found = run(spec(LendPolicy::Never), &[vm], 1, 1, 3).unwrap();

        let expected = Outcome {
            events: 2,
            reserved: 1,
            reserved_sum: 16 * 3000,
            tags_sum: 16 * 3000,
            ..Outcome::default()
        };
        assert_eq!(found, expected);
    }
}
