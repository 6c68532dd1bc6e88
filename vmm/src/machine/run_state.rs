//! Whether the guest is to run, and whether it does.

use std::collections::BTreeMap;

use crate::events::{Event, PauseCause};

/// Why the guest does not run. More than one reason can hold at a time.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub enum PauseReason {
    /// By request. A VM starts with this reason.
    Request,
    /// A vCPU waits for tag storage (`--on-exhausted pause`).
    TagStorage,
}

/// What makes the guest as it is to be.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Change {
    Quiesce,
    Unquiesce,
}

/// The reasons for a pause, each with a text for the user, and whether the guest runs. It is to run while
/// there is no reason. The two differ after a change that failed, until it is tried again.
#[derive(Debug)]
pub(super) struct RunState {
    reasons: BTreeMap<PauseReason, String>,
    running: bool,
    started: bool,
}

impl RunState {
    /// A guest that waits for its first [`release`](Self::release).
    pub(super) fn new() -> Self {
        let reasons = BTreeMap::from([(PauseReason::Request, String::new())]);
        Self { reasons, running: false, started: false }
    }

    /// One more reason; a text replaces the one before.
    pub(super) fn pause_for(&mut self, reason: PauseReason, text: &str) {
        self.reasons.insert(reason, text.to_owned());
    }

    /// One reason less.
    pub(super) fn release(&mut self, reason: PauseReason) {
        self.reasons.remove(&reason);
    }

    /// What is to be done, if anything; [`done`](Self::done) says that it has been.
    pub(super) fn pending(&self) -> Option<Change> {
        match (self.reasons.is_empty(), self.running) {
            (true, false) => Some(Change::Unquiesce),
            (false, true) => Some(Change::Quiesce),
            _ => None,
        }
    }

    /// Notes that a change has been made; what that is to those who follow the VM.
    pub(super) fn done(&mut self, change: Change) -> Event {
        self.running = change == Change::Unquiesce;
        if self.running {
            return match std::mem::replace(&mut self.started, true) {
                true => Event::Resumed,
                false => Event::Started,
            };
        }
        match self.reason(PauseReason::TagStorage).filter(|_| self.reasons.len() == 1) {
            Some(why) => Event::Paused { reason: PauseCause::TagStorage, detail: Some(why.into()) },
            None => Event::Paused { reason: PauseCause::Request, detail: None },
        }
    }

    /// Whether the vCPUs may be in the guest.
    pub(super) fn is_running(&self) -> bool {
        self.running
    }

    /// The text of a reason that holds.
    pub(super) fn reason(&self, reason: PauseReason) -> Option<&str> {
        self.reasons.get(&reason).map(String::as_str)
    }
}

#[cfg(test)]
mod tests;
