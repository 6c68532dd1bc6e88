//! Everything that ends a VM by itself: its vCPUs, signals, the loss of its output.

use std::cell::RefCell;
use std::rc::Rc;

use event_manager::{EventOps, Events, MutEventSubscriber};
use rustix::fd::AsRawFd;

use super::ending::Ending;
use super::finish::Finish;
use super::watch::watch;
use crate::console::Lost;
use crate::machine::Machine;
use crate::sys::signals::Signals;

/// Watches for each of them.
pub(super) struct Endings {
    machine: Rc<RefCell<Machine>>,
    signals: Signals,
    lost: Lost,
    finish: Finish,
}

impl Endings {
    pub(super) fn new(
        machine: &Rc<RefCell<Machine>>,
        signals: Signals,
        lost: Lost,
        finish: Finish,
    ) -> Self {
        Self { machine: Rc::clone(machine), signals, lost, finish }
    }

    fn look(&self) {
        if let Some(end) = self.machine.borrow().vcpus().end() {
            self.finish.with(Ending::Guest(end));
        }
        if let Some(status) = self.signals.take() {
            self.finish.with(Ending::Signal(status));
        }
        if let Some(error) = self.lost.take() {
            self.finish.with(Ending::OutputLost(error));
        }
    }
}

impl MutEventSubscriber for Endings {
    fn init(&mut self, ops: &mut EventOps<'_>) {
        let vcpus = self.machine.borrow().vcpus().end_event().as_raw_fd();
        for fd in [vcpus, self.signals.as_raw_fd(), self.lost.event().as_raw_fd()] {
            watch(fd, ops, &self.finish);
        }
    }

    fn process(&mut self, _: Events, _: &mut EventOps<'_>) {
        // Each event comes once and ends the loop, so none needs to be reset.
        self.look();
    }
}
