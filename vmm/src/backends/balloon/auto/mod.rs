//! The VMM's own choice of the balloon's target (`--balloon auto`): looks at host and guest four times a second, and has
//! the [policy] decide.

mod host;
mod policy;

use std::io;
use std::time::Duration;

use arch::units::Bytes;
use devices::virtio::balloon::Statistics;
use serde_json::{Value, json};

pub use self::host::READ;
use self::host::Watch;
use self::policy::{Guest, Input, LOOKS_A_SECOND, Policy};
pub use self::policy::{Reason, State};
use crate::events::{Event, EventLog};
use crate::sys::timer::Timer;

/// The size of a page in the guest's count of faults. Guests with larger ones read more again than is counted.
const FAULT: u64 = 4 << 10;

/// A balloon at a look.
#[derive(Clone, Copy, Debug)]
pub(super) struct Look {
    /// Whether the guest has a driver that serves it.
    pub(super) has_driver: bool,
    /// What is in it.
    pub(super) actual: Bytes,
    /// What the guest is asked for besides, for other VMs.
    pub(super) needed: Bytes,
    /// What the guest last said, if anything.
    pub(super) statistics: Option<Statistics>,
    /// What was in it when the guest said that.
    pub(super) actual_then: Bytes,
    /// How often it has said something.
    pub(super) answers: u64,
}

/// What follows from a look.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) struct Decision {
    /// What the guest is to be asked for.
    pub(super) target: Bytes,
    /// Whether it is to be asked for its statistics.
    pub(super) ask: bool,
}

/// The choice, if it is on.
#[derive(Debug)]
pub(super) struct Auto {
    memory: Bytes,
    floor: Bytes,
    policy: Option<Policy>,
    timer: Timer,
    watch: Watch,
    /// Answers of the guest that have been looked at.
    answers: Option<u64>,
    told: Option<State>,
    log: EventLog,
    changes: u64,
}

impl Auto {
    /// Off, for a guest with this much memory, which keeps `floor` of it once it is on.
    ///
    /// # Errors
    /// When the host gives no timer.
    pub(super) fn new(memory: Bytes, floor: Bytes, log: EventLog) -> io::Result<Self> {
        Ok(Self {
            memory,
            floor,
            policy: None,
            timer: Timer::new()?,
            watch: Watch::default(),
            answers: None,
            told: None,
            log,
            changes: 0,
        })
    }

    /// What goes off when a look is due.
    pub(super) fn timer(&self) -> &Timer {
        &self.timer
    }

    /// What the guest keeps.
    pub(super) fn floor(&self) -> Bytes {
        self.floor
    }

    /// What it does and why, if it is on.
    pub(super) fn choice(&self) -> Option<(State, Reason)> {
        self.policy.as_ref().map(|policy| (policy.state(), policy.reason()))
    }

    /// Switches it on, beginning from a target: the one that the floor allows. `None` if it cannot be.
    ///
    /// # Errors
    /// When the host refuses the timer: then it is as before.
    pub(super) fn start(&mut self, target: Bytes) -> io::Result<Bytes> {
        self.timer.every(Duration::from_secs(1) / LOOKS_A_SECOND)?;
        self.watch.forget();
        self.answers = None;
        let policy = Policy::new(self.memory, self.floor, target);
        let target = policy.target();
        self.policy = Some(policy);
        Ok(target)
    }

    /// Switches it off. The target stays where it is.
    pub(super) fn stop(&mut self) {
        if self.policy.take().is_some() {
            // A timer that goes off nevertheless finds nothing to do.
            let _ = self.timer.every(Duration::ZERO);
            self.told = None;
            self.log.publish(&Event::BalloonAuto { state: "off", reason: None, target_mib: None });
        }
    }

    /// Sets what the guest keeps, beginning from a target if it is on.
    pub(super) fn set_floor(&mut self, floor: Bytes) {
        self.floor = floor;
        if let Some(policy) = &mut self.policy {
            *policy = Policy::new(self.memory, floor, policy.target());
        }
    }

    /// Forgets what was seen: the guest is paused.
    pub(super) fn forget(&mut self) {
        self.watch.forget();
        if let Some(policy) = &mut self.policy {
            policy.forget();
        }
    }

    /// Looks at the host, and decides. `None` if it is off, or the kernel does not tell how the host does.
    pub(super) fn look(&mut self, look: &Look) -> Option<Decision> {
        let policy = self.policy.as_mut()?;
        let host = self.watch.look()?;
        // The answer that is there at the first look may be as old as the VM.
        let is_new = self.answers.replace(look.answers).is_some_and(|last| last != look.answers);
        let before = policy.target();
        policy.step(&Input {
            host,
            guest: look
                .statistics
                .filter(|_| is_new)
                .and_then(|said| guest(&said, look.actual_then)),
            has_driver: look.has_driver,
            actual: look.actual,
            resident: host::resident(),
            needed: look.needed,
        });
        let target = policy.target();
        self.changes += u64::from(target != before);
        let (state, reason) = (policy.state(), policy.reason());
        if self.told.replace(state) != Some(state) {
            let (reason, target_mib) = (Some(reason.as_str()), Some(target.as_mib()));
            self.log.publish(&Event::BalloonAuto { state: state.as_str(), reason, target_mib });
        }
        Some(Decision { target, ask: policy.wants_guest(&host) })
    }

    /// Its figures: what it does and why are labels of the numbers.
    pub(super) fn metrics(&self) -> Value {
        let (state, reason) = self
            .choice()
            .map_or(("off", "off"), |(state, reason)| (state.as_str(), reason.as_str()));
        json!({
            "state": state,
            "reason": reason,
            "on": self.policy.is_some(),
            "floor_bytes": self.floor.get(),
            "target_bytes": self.policy.as_ref().map_or(0, |policy| policy.target().get()),
            "changes_total": self.changes,
        })
    }
}

/// What a guest says of itself, with so much in its balloon; `None` from a driver that does not say what it has available.
fn guest(said: &Statistics, actual: Bytes) -> Option<Guest> {
    let reworked = [
        said.async_reclaim,
        said.direct_reclaim,
        said.swap_in,
        said.major_faults.map(|faults| faults.saturating_mul(FAULT)),
    ];
    Some(Guest {
        available: Bytes::new(said.available_memory?),
        actual,
        reworked: Bytes::new(reworked.into_iter().flatten().fold(0, u64::saturating_add)),
    })
}
