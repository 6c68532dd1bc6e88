//! What ends a guest by itself: its vCPUs, the loss of its output.

use std::cell::RefCell;
use std::rc::Rc;

use event_manager::{EventOps, Events, MutEventSubscriber};
use rustix::fd::AsRawFd;

use super::exit_reason::ExitReason;
use super::shutdown::ShutdownRequest;
use super::watch::watch;
use crate::console::Lost;
use crate::machine::Machine;

/// Watches for each of them.
pub(super) struct ExitWatcher {
    machine: Rc<RefCell<Machine>>,
    lost: Lost,
    shutdown: ShutdownRequest,
}

impl ExitWatcher {
    pub(super) fn new(
        machine: &Rc<RefCell<Machine>>,
        lost: Lost,
        shutdown: ShutdownRequest,
    ) -> Self {
        Self { machine: Rc::clone(machine), lost, shutdown }
    }

    fn look(&self) {
        if let Some(end) = self.machine.borrow().vcpus().end() {
            self.shutdown.with(ExitReason::Guest(end));
        }
        if let Some(error) = self.lost.take() {
            self.shutdown.with(ExitReason::OutputLost(error));
        }
    }
}

impl MutEventSubscriber for ExitWatcher {
    fn init(&mut self, ops: &mut EventOps<'_>) {
        let vcpus = self.machine.borrow().vcpus().end_event().as_raw_fd();
        for fd in [vcpus, self.lost.event().as_raw_fd()] {
            watch(fd, ops, &self.shutdown);
        }
    }

    fn process(&mut self, _: Events, _: &mut EventOps<'_>) {
        // Each event comes once and ends the loop, so none needs to be reset.
        self.look();
    }
}
