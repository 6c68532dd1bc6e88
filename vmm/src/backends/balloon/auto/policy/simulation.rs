//! Guests on one host, simulated: each has a policy of its own, and they know nothing of each other.

use super::*;

/// MiB: of the host, of it what its kernel and processes have at first, and of each guest.
const HOST: u64 = 2048;
const OWN: u64 = 250;
const MEMORY: u64 = 1024;
const FLOOR: u64 = 256;
const LOAD: u64 = 800;

/// MiB in a look: what a guest takes at most (a GiB in a second), what its driver gives and takes at most, and what it
/// takes back from the balloon where it would kill a process.
const TAKES: u64 = 256;
const INFLATES: u64 = 192;
const DEFLATES: u64 = 512;
const RESCUES: u64 = 48;

/// MiB of a guest that caches of disks cannot have (Linux's CMA).
const CONTIGUOUS: u64 = 64;

/// Looks between two reports of free memory, half of which goes each time.
const REPORTS: u32 = 2 * LOOKS_A_SECOND;

/// What a guest is loaded with.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Load {
    None,
    /// Memory of programs, freed afterwards.
    Programs(u64),
    /// A file that is read again and again, whose pages stay.
    Caches(u64),
}

/// A guest, in MiB.
#[derive(Clone, Debug)]
struct Guest {
    kernel: u64,
    programs: u64,
    caches: u64,
    /// Free, with the host's memory behind it, and without.
    freed: u64,
    absent: u64,
    balloon: u64,
    reworked: u64,
    load: Load,
    /// MiB in a look at most: as fast as its disk and its programs are.
    takes: u64,
    policy: Policy,
    lowest: u64,
}

impl Guest {
    fn new() -> Self {
        let (kernel, freed) = (70, 30);
        Self {
            kernel,
            programs: 0,
            caches: 0,
            freed,
            absent: MEMORY - kernel - freed,
            balloon: 0,
            reworked: 0,
            load: Load::None,
            takes: TAKES,
            policy: Policy::new(Bytes::mib(MEMORY), Bytes::mib(FLOOR), Bytes::ZERO),
            lowest: MEMORY,
        }
    }

    fn resident(&self) -> u64 {
        self.kernel + self.programs + self.caches + self.freed
    }

    fn says(&self) -> super::Guest {
        super::Guest {
            available: Bytes::mib(self.freed + self.absent + self.caches),
            actual: Bytes::mib(self.balloon),
            reworked: Bytes::mib(self.reworked),
        }
    }

    /// Takes free memory, up to `wanted` and all but so much; what it got.
    fn take(&mut self, wanted: u64, but: u64) -> u64 {
        let wanted = wanted.min((self.freed + self.absent).saturating_sub(but));
        let freed = wanted.min(self.freed);
        let absent = (wanted - freed).min(self.absent);
        (self.freed, self.absent) = (self.freed - freed, self.absent - absent);
        freed + absent
    }

    /// Drops caches, up to `wanted`, which are taken at once; what it got.
    fn reclaim(&mut self, wanted: u64, keep: u64) -> u64 {
        let got = wanted.min(self.caches.saturating_sub(keep));
        self.caches -= got;
        self.reworked += got;
        got
    }

    /// The driver's turn. It takes pages that the host does not know first, which help the host least.
    fn balance(&mut self) {
        let target = self.policy.target().as_mib();
        if self.balloon > target {
            let back = (self.balloon - target).min(DEFLATES);
            (self.balloon, self.absent) = (self.balloon - back, self.absent + back);
            return;
        }
        let mut wanted = (target - self.balloon).min(INFLATES);
        let absent = wanted.min(self.absent);
        self.absent -= absent;
        wanted -= absent;
        let freed = wanted.min(self.freed);
        self.freed -= freed;
        wanted -= freed;
        self.balloon += absent + freed + self.reclaim(wanted, 16);
    }

    /// What the guest does in a look.
    fn work(&mut self) {
        match self.load {
            Load::None => self.freed += std::mem::take(&mut self.programs),
            Load::Programs(size) => {
                let wanted = (size - self.programs).min(self.takes);
                let mut got = self.take(wanted, 0);
                got += self.reclaim(wanted - got, 0);
                let rescued = (wanted - got).min(self.balloon).min(RESCUES);
                self.balloon -= rescued;
                self.programs += got + rescued;
            }
            Load::Caches(size) => {
                let wanted = size.saturating_sub(self.caches).min(self.takes);
                self.caches += self.take(wanted, CONTIGUOUS);
                // What does not fit pushes out what is read next.
                self.reworked += size.saturating_sub(self.caches).min(self.takes);
            }
        }
    }

    fn report(&mut self) {
        let goes = self.freed / 2;
        (self.freed, self.absent) = (self.freed - goes, self.absent + goes);
    }

    fn is_served(&self) -> bool {
        match self.load {
            Load::None => true,
            Load::Programs(size) => self.programs == size,
            Load::Caches(size) => self.caches == size,
        }
    }
}

struct World {
    guests: Vec<Guest>,
    /// What the host's kernel and processes have.
    own: u64,
    looks: u32,
    has_policy: bool,
    /// The host had nothing left, and killed a VM.
    killed: bool,
    least: u64,
}

impl World {
    fn new(guests: usize, has_policy: bool) -> Self {
        let guests = (0..guests).map(|_| Guest::new()).collect();
        Self { guests, own: OWN, looks: 0, has_policy, killed: false, least: HOST }
    }

    fn available(&self) -> Option<u64> {
        let taken: u64 = self.guests.iter().map(Guest::resident).sum();
        (HOST - self.own).checked_sub(taken)
    }

    fn look(&mut self) {
        self.looks += 1;
        let reports = self.looks.is_multiple_of(REPORTS);
        for at in 0..self.guests.len() {
            let said = self.guests[at].says();
            self.guests[at].balance();
            self.guests[at].work();
            if reports {
                self.guests[at].report();
            }
            let Some(available) = self.available() else {
                self.killed = true;
                return;
            };
            self.least = self.least.min(available);
            let host =
                Host { total: Bytes::mib(HOST), available: Bytes::mib(available), stalled: 0 };
            let guest = &mut self.guests[at];
            let input = Input {
                host,
                guest: guest.policy.wants_guest(&host).then_some(said),
                has_driver: true,
                actual: Bytes::mib(guest.balloon),
                resident: Bytes::mib(guest.resident()),
                needed: Bytes::ZERO,
            };
            if self.has_policy {
                guest.policy.step(&input);
                guest.lowest = guest.lowest.min(MEMORY - guest.policy.target().as_mib());
            }
        }
    }

    fn targets(&self) -> Vec<u64> {
        self.guests.iter().map(|guest| guest.policy.target().as_mib()).collect()
    }

    fn run(&mut self, looks: u32) {
        (0..looks).for_each(|_| self.look());
    }

    /// How often targets change in a turn.
    fn swings(&mut self) -> u32 {
        let mut last = self.targets();
        let looks = (0..TURN).map(|_| {
            self.look();
            let now = self.targets();
            u32::from(std::mem::replace(&mut last, now.clone()) != now)
        });
        looks.sum()
    }
}

/// Loads that take turns, each of another guest.
const TURNS: [(usize, Load); 9] = [
    (0, Load::Caches(LOAD)),
    (1, Load::Caches(LOAD)),
    (2, Load::Caches(LOAD)),
    (0, Load::Programs(LOAD)),
    (1, Load::Programs(LOAD)),
    (2, Load::Caches(LOAD)),
    (1, Load::Caches(LOAD)),
    (0, Load::Caches(LOAD)),
    (2, Load::Programs(LOAD)),
];

/// How long a turn takes, and how much of it until everything stands still: half a minute, and fifteen seconds.
const TURN: u32 = 30 * LOOKS_A_SECOND;
const SETTLES: u32 = 15 * LOOKS_A_SECOND;

#[test]
fn without_a_policy_the_host_has_nothing_left() {
    let mut world = World::new(3, false);
    for (guest, load) in TURNS {
        world.guests[guest].load = load;
        world.run(TURN);
        world.guests[guest].load = Load::None;
    }

    assert!(world.killed);
}

#[test]
fn loads_that_take_turns_are_served_and_nothing_swings() {
    let mut world = World::new(3, true);
    for (turn, (guest, load)) in TURNS.into_iter().enumerate() {
        world.guests[guest].load = load;
        world.run(SETTLES);

        let served = world.guests[guest].is_served();
        let targets = world.targets();
        println!(
            "turn {turn}: {:?} of guest {guest}: {targets:?}, {:?} available, {} at least",
            world.guests[guest].load,
            world.available(),
            world.least
        );
        assert!(!world.killed, "turn {turn}");
        assert!(served, "turn {turn}: {:?}", world.guests[guest]);
        for _ in SETTLES..TURN {
            world.look();
            assert_eq!(world.targets(), targets, "turn {turn}");
        }
        world.guests[guest].load = Load::None;
    }
    let lowest: Vec<u64> = world.guests.iter().map(|guest| guest.lowest).collect();
    assert!(lowest.iter().all(|lowest| (FLOOR..MEMORY).contains(lowest)), "{lowest:?}");
}

#[test]
fn guests_get_all_back_once_the_host_is_at_ease() {
    let mut world = World::new(3, true);
    for guest in 0..3 {
        world.guests[guest].load = Load::Programs(500);
    }
    world.run(TURN);
    assert!(world.targets().iter().any(|target| *target > 0));

    for guest in 0..3 {
        world.guests[guest].load = Load::None;
    }
    world.run(TURN);

    assert_eq!(world.targets(), [0, 0, 0]);
}

/// Three guests whose caches of disks do not fit, of this speed.
fn beyond_the_host(takes: u64, between: u32) -> World {
    let mut world = World::new(3, true);
    for guest in 0..3 {
        world.guests[guest].takes = takes;
        world.guests[guest].load = Load::Caches(LOAD);
        world.run(between);
    }
    world.run(3 * TURN);
    world
}

fn is_at_rest(world: &mut World, what: &str) {
    let (swings, available) = (world.swings(), world.available());
    assert!(swings <= TURN / 20, "{what}: {swings} changes in {TURN} looks");
    assert!(available.is_some_and(|left| left >= HOST / 32), "{what}: {available:?} available");
}

#[test]
fn loads_beyond_the_host_come_to_rest_above_their_floors() {
    for takes in [8, 32, 128, TAKES] {
        let mut world = beyond_the_host(takes, TURN);

        is_at_rest(&mut world, &format!("{takes} MiB in a look"));
        assert!(!world.killed);
        let lowest: Vec<u64> = world.guests.iter().map(|guest| guest.lowest).collect();
        assert!(lowest.iter().all(|lowest| *lowest >= FLOOR), "{lowest:?}");
    }
}

#[test]
fn loads_that_begin_together_come_to_rest() {
    for takes in [8, 32] {
        let mut world = beyond_the_host(takes, 0);

        is_at_rest(&mut world, &format!("{takes} MiB in a look"));
    }
}

#[test]
fn guests_come_to_rest_after_the_host_has_taken_memory_itself() {
    for (more, looks) in [(40, 10 * LOOKS_A_SECOND), (50, TURN), (150, TURN)] {
        for takes in [8, 32, TAKES] {
            let mut world = beyond_the_host(takes, TURN);

            for _ in 0..more / 10 {
                world.own += 10;
                world.look();
            }
            world.run(looks);
            is_at_rest_after(&mut world, more, takes, "with it");
            world.own -= more;
            world.run(TURN);

            is_at_rest_after(&mut world, more, takes, "without it");
        }
    }
}

fn is_at_rest_after(world: &mut World, more: u64, takes: u64, when: &str) {
    is_at_rest(world, &format!("{more} MiB more, {takes} MiB in a look, {when}"));
}
