//! What the main thread does about tag storage that runs out.

use std::cell::RefCell;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use event_manager::{EventOps, Events, MutEventSubscriber};
use rustix::fd::{AsFd, AsRawFd};

use super::exit_reason::ExitReason;
use super::shutdown::ShutdownRequest;
use super::watch::watch;
use crate::config::OnExhausted;
use crate::error::{chain, say};
use crate::machine::Machine;
use crate::spec::ReservationMode;
use crate::tag_storage::{ExhaustionSnapshot, ExhaustionStatus};

/// A guest at the edge of its tag storage can run out of it a thousand times a second. What happened in
/// between is in the counters.
const SAY_EVERY: Duration = Duration::from_secs(10);

/// Hears of exhaustion, says so, and does what `--on-exhausted` says.
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
}

impl TagEvents {
    /// The events of a machine whose tag storage can run out.
    pub(super) fn of(machine: &Rc<RefCell<Machine>>, shutdown: ShutdownRequest) -> Option<Self> {
        let (when, notices) = {
            let machine = machine.borrow();
            let tags = machine.tag_storage()?;
            (tags.spec().when, tags.notices())
        };
        let ReservationMode::Demand { on_exhausted: action, .. } = when else { return None };
        let machine = Rc::clone(machine);
        Some(Self { machine, notices, action, shutdown, spoken: None, open: false, acted: false })
    }

    fn act_on(&mut self, news: ExhaustionSnapshot) {
        if let Some(why) = news.failed {
            return self.shutdown.with(ExitReason::Unreserved(why));
        }
        match news.lacking {
            None => self.relieved(),
            Some(why) => {
                self.say_lacking(&why);
                if news.expired && !self.acted {
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
        }
    }

    fn expired(&mut self, why: String) {
        match self.action {
            OnExhausted::Wait if self.open => {
                say("it has waited until the deadline, and goes on waiting")
            }
            OnExhausted::Wait => {}
            OnExhausted::Pause => {
                let held = self.machine.borrow_mut().hold(&why);
                match held {
                    Ok(()) if self.open => say("the VM is paused until there is tag storage"),
                    Ok(()) => {}
                    Err(error) => say(&format!("the VM cannot be paused: {}", chain(&error))),
                }
            }
            OnExhausted::Kill => self.shutdown.with(ExitReason::Exhausted(why)),
        }
    }

    fn relieved(&mut self) {
        self.acted = false;
        if let Err(error) = self.machine.borrow_mut().let_go() {
            say(&format!("the VM cannot go on, and stays paused: {}", chain(&error)));
        }
        if std::mem::take(&mut self.open) {
            say("the guest has its tag storage, and goes on");
        }
    }
}

impl MutEventSubscriber for TagEvents {
    fn init(&mut self, ops: &mut EventOps<'_>) {
        watch(self.notices.as_fd().as_raw_fd(), ops, &self.shutdown);
    }

    fn process(&mut self, _: Events, _: &mut EventOps<'_>) {
        let news = self.notices.take();
        self.act_on(news);
    }
}
