//! A host with its VMs, from their starts to the last day.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, BinaryHeap};

use vmm::tag_storage::LeaseId;

use super::host::{Host, HostError, HostSpec, Lack, Level, Memory};
use super::outcome::{Lacking, Outcome};
use super::trace::{DAY, Phases, Vm};

/// A VM that runs.
struct Running {
    memory: Memory,
    phases: Phases,
    /// Chunks that it wants.
    wanted: u64,
    lack: Lack,
    /// Whether it has ever waited.
    waited: bool,
}

/// A host and the VMs that run on it.
struct Run<'a> {
    host: Host,
    vms: &'a [Vm],
    running: Vec<Option<Running>>,
    /// Of VMs with MTE: their places.
    holders: BTreeMap<LeaseId, usize>,
    /// The places of VMs that wait.
    waiting: BTreeSet<usize>,
    /// Pages that VMs lack, but for what they wait for.
    lacking: u64,
    share: u64,
    seed: u64,
    found: Outcome,
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
    let mut run = Run {
        host: Host::new(spec)?,
        vms,
        running: vms.iter().map(|_| None).collect(),
        holders: BTreeMap::new(),
        waiting: BTreeSet::new(),
        lacking: 0,
        share,
        seed,
        found: Outcome::default(),
    };
    // By time, then by the VM's place: no two are at the same place in this order.
    let mut due: BinaryHeap<Reverse<(u64, usize)>> =
        vms.iter().enumerate().map(|(at, vm)| Reverse((vm.start, at))).collect();
    let (mut now, end) = (0, days * DAY);
    while let Some(Reverse((at, index))) = due.pop().filter(|Reverse((at, _))| *at < end) {
        run.pass(at - now);
        now = at;
        if let Some(next) = run.event(at, index)? {
            due.push(Reverse((next, index)));
        }
    }
    run.pass(end - now);
    run.finish()
}

impl Run<'_> {
    /// So many seconds pass.
    fn pass(&mut self, seconds: u64) {
        let mut lacking = Lacking { pages: self.lacking, ..Lacking::default() };
        for index in &self.waiting {
            let Some(own) = &self.running[*index] else { continue };
            lacking.chunks += own.lack.chunks;
            lacking.unfair += self.host.below_share(&own.memory, own.wanted);
        }
        self.found.pass(self.host.level(), lacking, seconds);
    }

    /// A VM starts, changes or ends. Returns when it does so next, if it does.
    fn event(&mut self, at: u64, index: usize) -> Result<Option<u64>, HostError> {
        self.found.events += 1;
        let vm = &self.vms[index];
        if self.running[index].is_some() && at >= vm.end {
            self.end(index)?;
            self.serve()?;
            return Ok(None);
        }
        if self.running[index].is_none() {
            self.start(index)?;
        }
        let Some(own) = &mut self.running[index] else { return Ok(None) };
        let (chunks, seconds) = own.phases.draw();
        own.wanted = chunks;
        let lack = self.host.resize(&mut own.memory, chunks)?;
        self.lacks(index, lack);
        self.serve()?;
        Ok(Some((at + seconds).min(vm.end).max(at + 1)))
    }

    fn start(&mut self, index: usize) -> Result<(), HostError> {
        let vm = &self.vms[index];
        let memory = self.host.start(vm.mark < self.share)?;
        if let Some(lease) = memory.lease() {
            self.holders.insert(lease, index);
            self.found.tagged += 1;
        }
        let (phases, lack) = (Phases::of(self.seed, vm), Lack::default());
        self.running[index] = Some(Running { memory, phases, wanted: 0, lack, waited: false });
        Ok(())
    }

    fn end(&mut self, index: usize) -> Result<(), HostError> {
        self.lacks(index, Lack::default());
        let Some(own) = self.running[index].take() else { return Ok(()) };
        own.memory.lease().map(|lease| self.holders.remove(&lease));
        self.host.end(own.memory)
    }

    /// A VM lacks this from now on.
    fn lacks(&mut self, index: usize, lack: Lack) {
        let Some(own) = &mut self.running[index] else { return };
        self.lacking = self.lacking + lack.pages - own.lack.pages;
        own.lack = lack;
        match lack.chunks {
            0 => self.waiting.remove(&index),
            _ => self.waiting.insert(index),
        };
        if lack.chunks > 0 && !std::mem::replace(&mut own.waited, true) {
            self.found.waited += 1;
        }
    }

    /// Lets VMs that wait ask again, in the pool's order, until there is nothing for any.
    fn serve(&mut self) -> Result<(), HostError> {
        let mut has_moved = !self.waiting.is_empty();
        while std::mem::take(&mut has_moved) {
            for lease in self.host.next_waiters() {
                let Some(index) = self.holders.get(&lease).copied() else { continue };
                let Some(own) = &mut self.running[index] else { continue };
                let lack = self.host.offer(&mut own.memory, own.wanted)?;
                has_moved |= lack != own.lack;
                self.lacks(index, lack);
            }
        }
        Ok(())
    }

    /// Ends all VMs.
    fn finish(mut self) -> Result<Outcome, HostError> {
        let counters = self.host.check()?.counters;
        self.found.reserved = counters.metadata_reserve_success;
        self.found.failed = counters.metadata_reserve_fail;
        self.found.evictions = counters.evictions;
        (0..self.vms.len()).try_for_each(|index| self.end(index))?;
        let report = self.host.check()?;
        match self.host.level() == Level::default() && report.blocks.free == report.blocks.total {
            true => Ok(self.found),
            false => Err(HostError::Books("VMs have ended and something is still in use")),
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use arch::units::Bytes;
    use vmm::tag_storage::LendPolicy;

    use super::super::host::Kernel;
    use super::super::trace::{Scale, place};
    use super::*;

    fn spec(policy: LendPolicy) -> HostSpec {
        let (ordinary, tags, block) = (Bytes::gib(31), Bytes::gib(1), Bytes::kib(64));
        HostSpec { ordinary, tags, block, policy, kernel: Kernel::default() }
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
            tagged: 1,
            reserved_sum: 16 * 3000,
            tags_sum: 16 * 3000,
            ..Outcome::default()
        };
        assert_eq!(found, expected);
    }

    /// By hand: a pool of two chunks, and three VMs of one chunk. The third waits until the first ends, and again a fourth
    /// until the second does.
    #[test]
    fn sums_of_vms_that_wait_are_known() {
        let vm = |number, start, end| Vm { number, start, end, most: 1, mark: 0 };
        let vms = [vm(0, 0, 1000), vm(1, 0, 3000), vm(2, 400, 3500), vm(3, 2000, 3400)];
        let two = HostSpec { tags: Bytes::kib(128), ..spec(LendPolicy::Never) };

        let found = run(two, &vms, 1, 1, 3).unwrap();

        assert_eq!((found.tagged, found.waited, found.reserved), (4, 2, 4));
        assert_eq!(found.waiting_sum, 600 + 1000);
        // A share is two chunks by the VMs that run, three at first, and then again three: no chunk.
        assert_eq!((found.unfair_sum, found.lacking_sum), (0, 0));
        assert_eq!(found.tags_sum, 16 * (1000 + 3000 + 2500 + 400));
        // The same with room for all: nobody waits.
        let roomy = run(spec(LendPolicy::Never), &vms, 1, 1, 3).unwrap();
        assert_eq!((roomy.waited, roomy.waiting_sum), (0, 0));
    }

    #[test]
    fn who_has_less_than_a_share_comes_first() {
        let vm = |number, start, end, most| Vm { number, start, end, most, mark: 0 };
        // A share of 4 chunks by 2 is 2. The small one waits below its share, until the large one ends.
        let vms = [vm(0, 0, 1000, 1), vm(1, 0, 900, 1), vm(2, 10, 1000, 1)];
        let two = HostSpec { tags: Bytes::kib(128), ..spec(LendPolicy::Never) };

        let found = run(two, &vms, 1, 1, 3).unwrap();

        assert_eq!((found.waited, found.waiting_sum), (1, 890));
    }

    #[test]
    fn a_small_pool_is_always_in_use_while_vms_wait() {
        let vms = place(&SCALE, 1).vms.remove(0);
        let half = HostSpec { tags: Bytes::mib(496), ..spec(LendPolicy::Never) };

        let found = run(half, &vms, 100, 1, 3).unwrap();

        let pool = u128::from(Bytes::mib(496).get() / 4096 * DAY);
        assert!(found.tags_sum <= pool && found.tags_sum * 100 > pool * 95, "{found:?}");
        assert!(found.waited > 0 && found.waiting_sum > found.unfair_sum, "{found:?}");
        assert_eq!(found, run(half, &vms, 100, 1, 3).unwrap());
    }
}
