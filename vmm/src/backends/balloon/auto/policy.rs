//! What a guest is asked to give up, by how its host and its guest do: a state machine without a clock and without
//! system calls. One [step](Policy::step) is one look.
//!
//! # Marks
//! Of the host's memory, or that of a control group, a part is to stay available: [`Marks`]. Below `low` the host is
//! short; each guest gives its share until `goal` is available. From `ease` up the guest gets back what it gave. In
//! between it gets nothing back and is not asked for a share, so that what it takes after it was given to does not make
//! it give at once. Only the rule of growth can ask it there.
//!
//! # Growth
//! A guest whose memory is free is of no use to a host that has none behind it, but it may take all of it within a
//! second. So no guest may grow by more than the host has available above `low`. What the guest itself takes changes
//! nothing there: it is less that it may grow by, and less that is available.
//!
//! # What a guest can do without
//! Its statistics tell how much it has available, caches of files included. A part stays with it, its `reserve`. A
//! guest that takes memory gives no share for two seconds, and one whose programs were short nothing for ten, unless the
//! host is below `critical`. One whose caches were short, as it reads again what it had to drop, gives nothing for ten
//! seconds unless the host is below `pressed`.

use arch::units::Bytes;

/// Looks in a second.
pub(super) const LOOKS_A_SECOND: u32 = 4;

/// Looks for which a guest that was short, or could not give, is not asked for more: ten seconds.
const COOLING: u32 = 10 * LOOKS_A_SECOND;

/// Looks for which a guest that grew counts as at work: two seconds.
const AT_WORK: u32 = 2 * LOOKS_A_SECOND;

/// Looks for which the host has to be at ease before the guest gets memory back: two seconds.
const EASED: u32 = 2 * LOOKS_A_SECOND;

/// Looks without a page from the driver after which a larger balloon is given up: two seconds. Linux tries again each
/// fifth of a second when it finds no page.
const STUCK: u32 = 2 * LOOKS_A_SECOND;

/// Looks after an inflation for which what the guest reclaims is the balloon's doing.
const ECHO: u32 = 4;

/// Looks without a change after which the target has settled: two seconds.
const SETTLED: u32 = 2 * LOOKS_A_SECOND;

/// Thousandths of the time in which tasks waited for memory, from which the host is short whatever is available:
/// what counts as available may be caches that are in use.
const STALLED: u16 = 100;

/// The part of the host's memory that is to be available, and the most of it in bytes: a host fills it in some looks at
/// the speed at which guests take memory, and not faster because it is larger.
const LOW_SHARE: u64 = 8;
const LOW_MOST: u64 = 4 << 30;

/// The part of a guest's memory that it may be given beyond what it touches, as it cannot use all that it has.
const UNTOUCHED_SHARE: u64 = 8;

/// The part of a guest's memory that stays available to it, and its bounds in bytes.
const RESERVE_SHARE: u64 = 16;
const RESERVE: std::ops::RangeInclusive<u64> = (16 << 20)..=(1 << 30);

/// Parts of the guest's memory: what the target changes by in a look at most; what is no change worth a request; what a
/// guest takes or reads again in a look when it is at work.
const STEP_SHARE: u64 = 4;
const BAND_SHARE: u64 = 64;
const WORK_SHARE: u64 = 128;

/// The most of what a guest takes in a look that is not at work, in bytes: 64 MiB in a second, however large it is.
const WORK_MOST: u64 = 16 << 20;

/// Looks after which an answer of the guest's is too old: two seconds.
const STALE: u32 = 2 * LOOKS_A_SECOND;

/// The unit of a target.
const UNIT: Bytes = Bytes::mib(1);

/// The host at a look, or the control group that has the least left.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) struct Host {
    /// All its memory, or the group's limit.
    pub(super) total: Bytes,
    /// What programs could have.
    pub(super) available: Bytes,
    /// Thousandths of the time since the last look for which tasks of the host waited for memory, or of a group, where
    /// that is not [at ease](is_at_ease). 0 where that is not known.
    pub(super) stalled: u16,
}

/// A guest by its own account.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) struct Guest {
    /// What its programs could have.
    pub(super) available: Bytes,
    /// What was in its balloon then.
    pub(super) actual: Bytes,
    /// What it has reclaimed and read again, ever. Kernels before 6.11 tell only what they read again.
    pub(super) reworked: Bytes,
}

/// What a step goes by.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) struct Input {
    /// The host.
    pub(super) host: Host,
    /// The guest, if it has answered lately.
    pub(super) guest: Option<Guest>,
    /// Whether it has a driver for its balloon. Without one it can neither give nor refuse.
    pub(super) has_driver: bool,
    /// What is in the balloon.
    pub(super) actual: Bytes,
    /// What the guest has of the host's memory, with what little the VMM has.
    pub(super) resident: Bytes,
    /// What the guest is asked for beside the target, for other VMs.
    pub(super) needed: Bytes,
}

/// Why the target is what it is.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub enum Reason {
    /// The host has enough.
    #[default]
    AtEase,
    /// The host is short of memory.
    HostShort,
    /// Tasks of the host wait for memory.
    HostStalls,
    /// The guest could take more at once than the host has.
    Growth,
    /// The guest is short of memory.
    GuestShort,
    /// Neither is short, or both are.
    Balanced,
    /// The guest can give no more than this: its floor, or what it uses.
    AtBottom,
    /// The driver finds no page to give, or has taken some back.
    Refused,
    /// Other VMs need tag storage of this one.
    Others,
    /// The guest does not tell how it does.
    Silent,
}

impl Reason {
    /// In a word.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::AtEase => "host_at_ease",
            Self::HostShort => "host_short",
            Self::HostStalls => "host_stalls",
            Self::Growth => "growth",
            Self::GuestShort => "guest_short",
            Self::Balanced => "balanced",
            Self::AtBottom => "at_bottom",
            Self::Refused => "refused",
            Self::Others => "others",
            Self::Silent => "no_statistics",
        }
    }
}

/// What the policy does.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub enum State {
    /// The target has not changed for two seconds.
    #[default]
    Settled,
    /// The guest is asked for more and more.
    Taking,
    /// It gets back what it gave.
    Returning,
}

impl State {
    /// In a word.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Settled => "settled",
            Self::Taking => "taking",
            Self::Returning => "returning",
        }
    }
}

/// Below so much available of a host of this size, it is short.
pub(super) fn low_mark(total: Bytes) -> Bytes {
    Bytes::new((total.get() / LOW_SHARE).min(LOW_MOST))
}

/// Whether so much available of a host of this size leaves nothing to be desired.
pub(super) fn is_at_ease(total: Bytes, available: Bytes) -> bool {
    available >= Marks::of(total).ease
}

/// How much of a host is to be available.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
struct Marks {
    /// Below it, a guest gives though it is at work.
    critical: Bytes,
    /// Below it, a guest gives though its caches were short.
    pressed: Bytes,
    /// Down to it, a guest gets back what its caches lack: so far below the next mark that the others begin to give.
    tight: Bytes,
    /// Below it, the host is short.
    low: Bytes,
    /// A host that was short has enough.
    goal: Bytes,
    /// From here on a guest gets memory back.
    ease: Bytes,
}

impl Marks {
    fn of(total: Bytes) -> Self {
        let low = low_mark(total).get();
        let eighth = low / 8;
        let [critical, pressed, tight, low, goal, ease] =
            [4, 5, 6, 8, 12, 16].map(|eighths| Bytes::new(eighth * eighths));
        Self { critical, pressed, tight, low, goal, ease }
    }
}

/// The policy of one VM.
#[derive(Clone, Debug)]
pub(super) struct Policy {
    memory: Bytes,
    floor: Bytes,
    target: Bytes,
    reason: Reason,
    state: State,
    /// The host was short, and its goal has not been reached since.
    host_is_short: bool,
    /// What the guest cannot give, as of its last answer.
    used: Option<Bytes>,
    guest_is_short: Option<Shortage>,
    last: Option<Last>,
    /// Looks that are left for which the guest is not asked for more, as its programs were short.
    cooling: u32,
    /// The same, as its caches were.
    caching: u32,
    /// Looks that are left for which it is not, as its driver had no more.
    refused: u32,
    /// Looks that are left for which it counts as at work.
    at_work: u32,
    /// Looks for which the host has been at ease.
    eased: u32,
    /// Looks since the driver gave a page.
    idle: u32,
    /// Looks since the guest answered.
    silent: u32,
    /// Looks since the target changed.
    unchanged: u32,
}

/// What a guest is short of.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Shortage {
    /// Of memory for its programs.
    Programs,
    /// Of memory for its caches.
    Caches,
}

/// What the last look saw.
#[derive(Clone, Copy, Debug)]
struct Last {
    actual: Bytes,
    resident: Bytes,
    reworked: Option<Bytes>,
}

impl Policy {
    /// The policy of a guest with this much memory, whose balloon has been asked for `target`. What it has beside its
    /// balloon never goes below `floor`.
    pub(super) fn new(memory: Bytes, floor: Bytes, target: Bytes) -> Self {
        Self {
            memory,
            floor,
            target: target.min(memory.saturating_sub(floor)).align_down(UNIT),
            reason: Reason::default(),
            state: State::default(),
            host_is_short: false,
            used: None,
            guest_is_short: None,
            last: None,
            cooling: 0,
            caching: 0,
            refused: 0,
            at_work: 0,
            eased: 0,
            idle: 0,
            silent: 0,
            unchanged: SETTLED,
        }
    }

    /// What the guest is asked for.
    pub(super) fn target(&self) -> Bytes {
        self.target
    }

    /// Why.
    pub(super) fn reason(&self) -> Reason {
        self.reason
    }

    /// What it does.
    pub(super) fn state(&self) -> State {
        self.state
    }

    /// Whether the next step should know how the guest does: not where nothing is in its balloon, and the host could
    /// give it all its memory.
    pub(super) fn wants_guest(&self, host: &Host) -> bool {
        let enough = self.memory.get().saturating_add(Marks::of(host.total).ease.get());
        !self.target.is_zero() || host.available.get() < enough || host.stalled >= STALLED
    }

    /// Forgets what the last look saw: the guest was paused since.
    pub(super) fn forget(&mut self) {
        (self.last, self.used, self.guest_is_short) = (None, None, None);
        self.eased = 0;
    }

    /// One look: the target is new after it, or as before.
    pub(super) fn step(&mut self, input: &Input) {
        let marks = Marks::of(input.host.total);
        self.observe(input, marks);
        let (limit, reason) = match input.has_driver {
            true => self.limit(input, marks),
            false => (self.memory.saturating_sub(self.target), Reason::Silent),
        };
        self.reason = reason;
        self.aim(limit);
    }

    /// Takes in what has changed since the last look.
    fn observe(&mut self, input: &Input, marks: Marks) {
        let Host { available, stalled, .. } = input.host;
        let stalled = stalled >= STALLED;
        self.host_is_short = match self.host_is_short {
            true => stalled || available < marks.goal,
            false => stalled || available < marks.low,
        };
        self.eased =
            if available >= marks.ease && !stalled { self.eased.saturating_add(1) } else { 0 };
        self.cooling = self.cooling.saturating_sub(1);
        self.caching = self.caching.saturating_sub(1);
        self.refused = self.refused.saturating_sub(1);
        self.at_work = self.at_work.saturating_sub(1);
        // A driver that comes has its time to give.
        self.idle = if input.has_driver { self.idle.saturating_add(1) } else { 0 };
        let reworked = input.guest.map(|guest| guest.reworked);
        let last =
            self.last.replace(Last { actual: input.actual, resident: input.resident, reworked });
        if let Some(last) = last {
            if input.actual > last.actual {
                self.idle = 0;
            }
            if input.resident.get() >= last.resident.get().saturating_add(self.work()) {
                self.at_work = AT_WORK;
            }
        }
        if let Some(guest) = input.guest {
            let rest = self.memory.saturating_sub(guest.actual);
            self.used = Some(rest.saturating_sub(guest.available));
            let before = last.and_then(|last| last.reworked).unwrap_or(guest.reworked);
            let reworks = guest.reworked.get() >= before.get().saturating_add(self.work());
            self.guest_is_short = match () {
                () if guest.available < self.reserve() => Some(Shortage::Programs),
                () if reworks && self.idle > ECHO => Some(Shortage::Caches),
                () => None,
            };
            self.silent = 0;
        } else {
            self.silent = self.silent.saturating_add(1);
            if let (Some(last), Some(now)) = (last, &mut self.last) {
                now.reworked = last.reworked;
            }
            if self.silent >= STALE {
                (self.used, self.guest_is_short) = (None, None);
            }
        }
        match self.guest_is_short {
            Some(Shortage::Programs) => self.cooling = COOLING,
            Some(Shortage::Caches) => self.caching = COOLING,
            None => {}
        }
    }

    /// What the guest may have, and why.
    fn limit(&mut self, input: &Input, marks: Marks) -> (Bytes, Reason) {
        let now = self.memory.saturating_sub(self.target);
        let available = input.host.available;
        if let Some(taken) = self.refusal(input) {
            self.refused = COOLING;
            return (taken, Reason::Refused);
        }
        // What it gives to other VMs is not what it gives here.
        let mine = self.held(input).saturating_add(input.needed.get());
        // A host at its last takes caches, those in use as well.
        let keep = match self.guest_is_short {
            Some(Shortage::Programs) => Some(marks.critical),
            Some(Shortage::Caches) if available >= marks.critical => Some(marks.tight),
            _ => None,
        };
        if let Some(keep) = keep {
            let room = available.saturating_sub(keep).get();
            // What it has of its own and does not touch even now, it cannot use: Linux puts no cache of a disk where it
            // keeps memory for devices (CMA). Half of the room, as it may not have taken yet what it got at the last look.
            let touched = mine.saturating_add(room);
            let more = match input.actual.saturating_sub(input.needed) <= self.target {
                true => now.get().saturating_add(room / 2),
                false => 0,
            };
            let most = more.clamp(touched, touched.saturating_add(self.share(UNTOUCHED_SHARE)));
            return (self.more(now, most), Reason::GuestShort);
        }
        if self.host_is_short {
            let reason = match available < marks.goal {
                true => Reason::HostShort,
                false => Reason::HostStalls,
            };
            // More than that would be taken back at once by those whose caches are short.
            let enough = if self.caching > 0 { marks.tight } else { marks.goal };
            let lacks = enough.saturating_sub(available).get().max(marks.low.get() / LOW_SHARE);
            let share = self.part_of(lacks, input.host.total);
            return self.less(now, Bytes::new(mine.saturating_sub(share)), input, marks, reason);
        }
        let spare = available.saturating_sub(marks.low).get();
        let most = Bytes::new(mine.saturating_add(spare)).min(self.memory);
        let wide = self.share(RESERVE_SHARE);
        if now.get() > most.get().saturating_add(wide) {
            return self.less(now, most, input, marks, Reason::Growth);
        }
        let wanted = most.get() >= now.get().saturating_add(wide) || most == self.memory;
        match self.eased >= EASED {
            true if wanted => (self.more(now, most.get()), Reason::AtEase),
            true => (now, Reason::Growth),
            false => (now, Reason::Balanced),
        }
    }

    /// What the guest has instead where its driver has given less than it was asked for, and gives no more.
    fn refusal(&self, input: &Input) -> Option<Bytes> {
        let asked = self.target.get().saturating_add(input.needed.get());
        let lacks = asked.saturating_sub(input.actual.get());
        // What others ask for is their matter, once the guest has given what it was to give here.
        let is_own = input.needed.is_zero() || input.actual < self.target;
        let is_stuck = is_own && self.idle >= STUCK && self.unchanged >= STUCK;
        let own = input.actual.saturating_sub(input.needed).align_down(UNIT);
        (is_stuck && lacks > self.share(BAND_SHARE)).then(|| self.memory.saturating_sub(own))
    }

    /// A limit above this one, up to `most`, by a step at most. A small change waits, but for the last one.
    fn more(&self, now: Bytes, most: u64) -> Bytes {
        let step = now.get().saturating_add(self.share(STEP_SHARE));
        let limit = Bytes::new(most.min(step)).min(self.memory);
        let is_small = limit.get() < now.get().saturating_add(self.share(BAND_SHARE));
        if is_small && limit < self.memory { now } else { now.max(limit) }
    }

    /// A limit below this one, down to `wanted`, by a step at most: never below the floor, nor below what the guest uses
    /// and its reserve.
    fn less(
        &self,
        now: Bytes,
        wanted: Bytes,
        input: &Input,
        marks: Marks,
        reason: Reason,
    ) -> (Bytes, Reason) {
        let Some(used) = self.used else { return (now, Reason::Silent) };
        if !input.needed.is_zero() {
            return (now, Reason::Others);
        }
        if self.refused > 0 {
            return (now, Reason::Refused);
        }
        let available = input.host.available;
        let critical = available < marks.critical;
        let is_at_work = self.at_work > 0 && reason != Reason::Growth;
        let is_busy = self.cooling > 0 || is_at_work;
        if (is_busy && !critical) || (self.caching > 0 && available >= marks.pressed) {
            return (now, Reason::Balanced);
        }
        // So that what is taken does not make the guest short at once, unless all are.
        let reserve = if critical { self.reserve() } else { Bytes::new(self.reserve().get() * 2) };
        let bottom = Bytes::new(used.get().saturating_add(reserve.get())).max(self.floor);
        let step = Bytes::new(now.get().saturating_sub(self.share(STEP_SHARE)));
        let limit = wanted.max(bottom).max(step);
        match limit.get().saturating_add(self.share(BAND_SHARE)) <= now.get() {
            true => (limit, reason),
            false if bottom >= wanted => (now, Reason::AtBottom),
            false => (now, Reason::Balanced),
        }
    }

    fn aim(&mut self, limit: Bytes) {
        let target = self.memory.saturating_sub(limit.max(self.floor)).align_down(UNIT);
        self.unchanged = self.unchanged.saturating_add(1);
        let before = std::mem::replace(&mut self.target, target);
        match target.cmp(&before) {
            std::cmp::Ordering::Greater => (self.state, self.unchanged) = (State::Taking, 0),
            std::cmp::Ordering::Less => (self.state, self.unchanged) = (State::Returning, 0),
            std::cmp::Ordering::Equal if self.unchanged >= SETTLED => self.state = State::Settled,
            std::cmp::Ordering::Equal => {}
        }
    }

    /// What the guest has of the host's memory: what it uses at least, as it may be swapped out or in huge pages that
    /// are not counted, and what its balloon leaves at most.
    fn held(&self, input: &Input) -> u64 {
        let most = self.memory.saturating_sub(input.actual);
        input.resident.max(self.used.unwrap_or_default()).min(most).get()
    }

    /// Of what the host lacks, the part that this guest's memory is of the host's, a band at least.
    fn part_of(&self, lacks: u64, total: Bytes) -> u64 {
        let part =
            u128::from(lacks) * u128::from(self.memory.get()) / u128::from(total.get().max(1));
        u64::try_from(part).unwrap_or(u64::MAX).clamp(self.share(BAND_SHARE).min(lacks), lacks)
    }

    fn reserve(&self) -> Bytes {
        Bytes::new(self.share(RESERVE_SHARE).clamp(*RESERVE.start(), *RESERVE.end()))
    }

    /// What a guest takes or reads again in a look that is at work.
    fn work(&self) -> u64 {
        self.share(WORK_SHARE).min(WORK_MOST)
    }

    /// A part of the guest's memory, a unit at least.
    fn share(&self, of: u64) -> u64 {
        (self.memory.get() / of).max(UNIT.get())
    }
}

#[cfg(test)]
mod simulation;
#[cfg(test)]
mod tests;
