//! What the main thread does about tag storage that runs out.

use std::cell::RefCell;
use std::io;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use event_manager::{EventOps, EventSet, Events, MutEventSubscriber};
use rustix::fd::{AsFd, AsRawFd};

use super::exit_reason::ExitReason;
use super::shutdown::ShutdownRequest;
use super::watch::watch;
use crate::config::OnExhausted;
use crate::error::{chain, say};
use crate::events::Event;
use crate::machine::{Machine, PauseReason};
use crate::spec::ReservationMode;
use crate::sys::timer::Timer;
use crate::tag_storage::{ExhaustionSnapshot, ExhaustionStatus};

/// A guest at the edge of its tag storage can run out of it a thousand times a second. What happened in
/// between is in the counters.
const SAY_EVERY: Duration = Duration::from_secs(10);

/// A pause or its end that failed is tried again this much later.
const RETRY_AFTER: Duration = Duration::from_secs(1);

/// Reports exhaustion, and does what `--on-exhausted` says.
pub(super) struct TagEvents {
    machine: Rc<RefCell<Machine>>,
    notices: Arc<ExhaustionStatus>,
    action: OnExhausted,
    shutdown: ShutdownRequest,
    /// When something was last said of a touch that began to wait.
    spoken: Option<Instant>,
    /// What was said last is not true any more once the guest is relieved.
    open: bool,
    acted: bool,
    retry: Timer,
}

impl TagEvents {
    /// The events of a machine whose tag storage can run out.
    ///
    /// # Errors
    /// When the host gives no timer.
    pub(super) fn of(
        machine: &Rc<RefCell<Machine>>,
        shutdown: ShutdownRequest,
    ) -> io::Result<Option<Self>> {
        let (when, notices) = match machine.borrow().tag_storage() {
            Some(tags) => (tags.spec().when, tags.notices()),
            None => return Ok(None),
        };
        let ReservationMode::Demand { on_exhausted: action, .. } = when else { return Ok(None) };
        Self::new(Rc::clone(machine), notices, action, shutdown).map(Some)
    }

    fn new(
        machine: Rc<RefCell<Machine>>,
        notices: Arc<ExhaustionStatus>,
        action: OnExhausted,
        shutdown: ShutdownRequest,
    ) -> io::Result<Self> {
        let (spoken, open, acted) = (None, false, false);
        let retry = Timer::new()?;
        Ok(Self { machine, notices, action, shutdown, spoken, open, acted, retry })
    }

    fn act_on(&mut self, snapshot: ExhaustionSnapshot) {
        if let Some(why) = snapshot.failed {
            return self.shutdown.with(ExitReason::Unreserved(why));
        }
        match snapshot.lacking {
            None => self.relieved(),
            Some(why) => {
                self.say_lacking(&why);
                if snapshot.expired && !self.acted {
                    self.acted = true;
                    self.expired(why);
                }
            }
        }
    }

    fn say_lacking(&mut self, why: &str) {
        if !self.open && self.spoken.is_none_or(|at| at.elapsed() >= SAY_EVERY) {
            (self.open, self.spoken) = (true, Some(Instant::now()));
            say(&format!("a vCPU waits for tag storage: {why}"));
            self.machine.borrow().log().publish(&Event::TagStorageExhausted { detail: why.into() });
        }
    }

    fn expired(&mut self, why: String) {
        match self.action {
            OnExhausted::Wait if self.open => {
                say("it has waited until the deadline, and keeps waiting")
            }
            OnExhausted::Wait => {}
            OnExhausted::Pause => {
                let paused = self.machine.borrow_mut().pause_for(PauseReason::TagStorage, &why);
                match paused {
                    Ok(()) if self.open => say("the VM is paused until there is tag storage"),
                    Ok(()) => {}
                    Err(error) => self.try_again(&format!(
                        "the VM cannot be paused, and is asked again: {}",
                        chain(&error)
                    )),
                }
            }
            OnExhausted::Kill => self.shutdown.with(ExitReason::Exhausted(why)),
        }
    }

    fn relieved(&mut self) {
        self.acted = false;
        let open = std::mem::take(&mut self.open);
        if open {
            self.machine.borrow().log().publish(&Event::TagStorageRelieved);
        }
        let released = self.machine.borrow_mut().release_pause(PauseReason::TagStorage);
        if let Err(error) = released {
            self.try_again(&format!(
                "the VM cannot be resumed yet, and stays paused: {}",
                chain(&error)
            ));
        }
        if open {
            say("the guest has its tag storage, and runs on");
        }
    }
}

impl TagEvents {
    fn try_again(&self, message: &str) {
        say(message);
        self.wind();
    }

    fn wind(&self) {
        // It cannot fail with such a time; if it does, the next event tries again.
        let _ = self.retry.once(RETRY_AFTER);
    }

    /// Tries again what failed: a pause, or its end.
    fn settle(&mut self) {
        let settled = self.machine.borrow_mut().settle();
        if settled.is_err() {
            self.wind();
        }
    }
}

impl MutEventSubscriber for TagEvents {
    fn init(&mut self, ops: &mut EventOps<'_>) {
        // Without its event the next change of tag storage tries again.
        let _ = ops.add(Events::new_raw(self.retry.as_raw_fd(), EventSet::IN));
        watch(self.notices.as_fd().as_raw_fd(), ops, &self.shutdown);
    }

    fn process(&mut self, events: Events, _: &mut EventOps<'_>) {
        if events.fd() == self.retry.as_raw_fd() {
            if self.retry.take() {
                self.settle();
            }
            return;
        }
        let snapshot = self.notices.take();
        self.act_on(snapshot);
    }
}

#[cfg(test)]
mod tests;
