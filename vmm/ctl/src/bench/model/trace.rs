//! What VMs come, how large they are, how long they stay, and on which host.
//!
//! From publications:
//! - *Sizes* are those of the trace AzurePublicDatasetV1, of "Resource Central: Understanding and Predicting Workloads for
//!   Improved Resource Management in Large Cloud Platforms" (Cortez and others, SOSP 2017); some of them, by cores and memory.
//! - *Means*: that trace has 2,013,767 VMs, 104,371,713 hours of VMs and 237,815,104 hours of cores: 51.8 hours a VM, and 2.28
//!   cores.
//! - *Touched memory*: "∼50% of all VMs never touch 50% of their rented memory" (Li and others, "First-generation Memory
//!   Disaggregation for Cloud Platforms", abstract).
//!
//! Assumptions: the weights of the sizes and of the spans of lifetimes, which are chosen for those means; that what a VM
//! touches at most is uniform between nothing and all; the phases; arrivals at an even rate; that of two hosts the emptier
//! one is taken; which VMs have MTE.

use super::dice::Dice;

/// Seconds of a day.
pub const DAY: u64 = 24 * HOUR;
const HOUR: u64 = 3600;
const MINUTE: u64 = 60;

/// Weight in thousandths, cores, chunks of 2 MiB.
const SIZES: [(u64, u64, u64); 9] = [
    (120, 1, 384),
    (370, 1, 896),
    (280, 2, 1792),
    (120, 4, 3584),
    (60, 8, 7168),
    (20, 2, 7168),
    (15, 4, 14_336),
    (10, 8, 28_672),
    (5, 16, 57_344),
];

/// Weight in thousandths, and shortest and longest time in seconds.
const LIFETIMES: [(u64, (u64, u64)); 5] = [
    (500, (5 * MINUTE, HOUR)),
    (300, (HOUR, 8 * HOUR)),
    (100, (8 * HOUR, 2 * DAY)),
    (60, (2 * DAY, 14 * DAY)),
    (40, (14 * DAY, LONGEST)),
];
const LONGEST: u64 = 60 * DAY + 19 * HOUR;

/// How long a VM uses the same amount of memory.
const PHASE: (u64, u64) = (HOUR, 11 * HOUR);

/// Hosts that are looked at for a VM.
const LOOKS: u32 = 8;

/// What is modelled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Scale {
    /// Hosts.
    pub hosts: u64,
    /// Days.
    pub days: u64,
    /// Ordinary memory of a host, in chunks.
    pub chunks: u64,
    /// What the VMs of a host touch at most, together, in percent of that.
    pub load: u64,
    /// Where all numbers come from.
    pub seed: u64,
}

/// A VM.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Vm {
    /// Its number, which no other has.
    pub number: u64,
    /// When it starts, in seconds.
    pub start: u64,
    /// When it ends.
    pub end: u64,
    /// The chunks that it ever touches: one at least.
    pub most: u64,
    /// It has MTE where the share of such VMs, in percent, is above this.
    pub mark: u64,
}

fn pick<T: Copy>(dice: &mut Dice, weighted: impl IntoIterator<Item = (u64, T)>, rest: T) -> T {
    let mut at = dice.below(1000);
    for (weight, value) in weighted {
        if at < weight {
            return value;
        }
        at -= weight;
    }
    rest
}

fn lifetime(dice: &mut Dice) -> u64 {
    let span = pick(dice, LIFETIMES, LIFETIMES[0].1);
    dice.between(span)
}

/// The cores and chunks of a VM.
fn size(dice: &mut Dice) -> (u64, u64) {
    let sizes = SIZES.map(|(weight, cores, chunks)| (weight, (cores, chunks)));
    pick(dice, sizes, sizes[0].1)
}

/// Chunks that a VM touches on average at most, in hundredths; and seconds that it lives, in hundredths.
fn means() -> (u64, u64) {
    let chunks: u64 = SIZES.iter().map(|(weight, _, chunks)| weight * chunks).sum();
    let seconds: u64 = LIFETIMES.iter().map(|(weight, (low, high))| weight * (low + high)).sum();
    (chunks / 20, seconds / 20)
}

/// Where the VMs of a few hosts are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Placed {
    /// The VMs of each host that was asked for, in the order of their starts.
    pub vms: Vec<Vec<Vm>>,
    /// VMs of all hosts.
    pub placed: u64,
    /// VMs for which there was no host.
    pub refused: u64,
}

/// Places the VMs of all hosts, and keeps those of the first `kept` of them.
pub fn place(scale: &Scale, kept: usize) -> Placed {
    let mut dice = Dice::new(scale.seed);
    let (chunks, seconds) = means();
    // As many VMs as touch the load at a time, each of which is replaced within its lifetime.
    let vms = scale.hosts * scale.chunks * scale.load / chunks;
    let every = (seconds / 100 * 1000 / vms.max(1)).max(1);
    let room = scale.chunks * scale.load / 100 * 21 / 20;
    let mut hosts = vec![0; scale.hosts as usize];
    let mut ends: std::collections::BinaryHeap<std::cmp::Reverse<(u64, u64, u64)>> =
        Default::default();
    let mut found = Placed { vms: vec![Vec::new(); kept], placed: 0, refused: 0 };
    // Milliseconds since the longest lifetime before the start, so that VMs of every age are there at the start.
    let (mut now, end) = (0, (LONGEST + scale.days * DAY) * 1000);
    for number in 0.. {
        now += dice.below(2 * every);
        if now >= end {
            break;
        }
        let mut own = Dice::of(scale.seed, number);
        let (starts, ends_at) = (now / 1000, now / 1000 + lifetime(&mut own));
        let (_, size) = size(&mut own);
        let most = own.between((1, size));
        let mark = own.below(100);
        if ends_at <= LONGEST {
            continue;
        }
        while let Some(std::cmp::Reverse((at, host, chunks))) = ends.peek().copied() {
            if at > starts {
                break;
            }
            ends.pop();
            hosts[host as usize] -= chunks;
        }
        let look = |_| {
            let [one, two] = [own.below(scale.hosts), own.below(scale.hosts)];
            let host = if hosts[two as usize] < hosts[one as usize] { two } else { one };
            (hosts[host as usize] + most <= room).then_some(host)
        };
        let Some(host) = (0..LOOKS).find_map(look) else {
            found.refused += 1;
            continue;
        };
        found.placed += 1;
        hosts[host as usize] += most;
        ends.push(std::cmp::Reverse((ends_at, host, most)));
        if let Some(vms) = found.vms.get_mut(host as usize) {
            let [start, end] = [starts, ends_at].map(|at| at.saturating_sub(LONGEST));
            vms.push(Vm { number, start, end, most, mark });
        }
    }
    found
}

/// What a VM uses, from phase to phase.
#[derive(Clone, Debug)]
pub struct Phases {
    dice: Dice,
    most: u64,
}

impl Phases {
    /// Those of a VM.
    pub fn of(seed: u64, vm: &Vm) -> Self {
        Self { dice: Dice::of(!seed, vm.number), most: vm.most }
    }

    /// How many chunks it uses from now on, and for how many seconds.
    pub fn draw(&mut self) -> (u64, u64) {
        (self.dice.between((self.most.div_ceil(4), self.most)), self.dice.between(PHASE))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SCALE: Scale = Scale { hosts: 4, days: 2, chunks: 20_000, load: 100, seed: 1 };

    #[test]
    fn means_are_those_that_were_published() {
        assert_eq!(SIZES.iter().map(|size| size.0).sum::<u64>(), 1000);
        assert_eq!(LIFETIMES.iter().map(|span| span.0).sum::<u64>(), 1000);
        let hours = means().1 as f64 / 100.0 / HOUR as f64;
        assert!((hours / (104_371_713.0 / 2_013_767.0) - 1.0).abs() < 0.01, "{hours}");
        let cores: u64 = SIZES.iter().map(|(weight, cores, _)| weight * cores).sum();
        let published = 237_815_104.0 / 104_371_713.0;
        assert!((cores as f64 / 1000.0 / published - 1.0).abs() < 0.01, "{cores}");
    }

    #[test]
    fn no_host_has_more_than_it_has_room_for_and_its_load_is_near_what_was_asked_for() {
        let placed = place(&SCALE, 4);

        for vms in &placed.vms {
            for at in [0, DAY, 2 * DAY - 1] {
                let there = vms.iter().filter(|vm| vm.start <= at && at < vm.end);
                let chunks: u64 = there.map(|vm| vm.most).sum();
                assert!((8_000..=21_000).contains(&chunks), "{chunks} at {at}");
            }
        }
        assert_eq!(placed, place(&SCALE, 4));
        assert_ne!(placed, place(&Scale { seed: 2, ..SCALE }, 4));
        assert_eq!(placed.vms[..1], place(&SCALE, 1).vms);
    }

    #[test]
    fn a_vm_uses_a_quarter_of_its_most_at_least() {
        let vm = Vm { number: 7, start: 0, end: 1, most: 10, mark: 0 };
        let mut phases = Phases::of(1, &vm);
        for _ in 0..100 {
            let (chunks, seconds) = phases.draw();
            assert!((3..=10).contains(&chunks) && (HOUR..=11 * HOUR).contains(&seconds));
        }
    }
}
