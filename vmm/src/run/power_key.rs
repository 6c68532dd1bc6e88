//! The power key: how long a press lasts.

use std::cell::RefCell;
use std::io;
use std::rc::{Rc, Weak};
use std::time::Duration;

use event_manager::{EventOps, EventSet, Events, MutEventSubscriber};
use rustix::fd::AsRawFd;

use crate::machine::Machine;
use crate::sys::timer::Timer;

/// How long the power key is held. Guests debounce it: Linux reads the key 5 ms after its interrupt
/// unless configured otherwise (drivers/input/keyboard/gpio_keys.c).
const KEY_HELD: Duration = Duration::from_millis(100);

/// Lets the power key go a moment after it was pressed.
#[derive(Clone)]
pub(super) struct PowerKeyTimer {
    machine: Weak<RefCell<Machine>>,
    timer: Rc<Timer>,
}

impl PowerKeyTimer {
    pub(super) fn new(machine: &Rc<RefCell<Machine>>) -> io::Result<Self> {
        Ok(Self { machine: Rc::downgrade(machine), timer: Rc::new(Timer::new()?) })
    }

    /// Lets the key go after the time that a press lasts.
    ///
    /// # Errors
    /// When the host refuses the timer.
    pub(super) fn start(&self) -> io::Result<()> {
        self.timer.once(KEY_HELD)
    }
}

impl MutEventSubscriber for PowerKeyTimer {
    fn init(&mut self, ops: &mut EventOps<'_>) {
        // Without its event the key would stay pressed, which does the guest no harm.
        let _ = ops.add(Events::new_raw(self.timer.as_raw_fd(), EventSet::IN));
    }

    fn process(&mut self, _: Events, _: &mut EventOps<'_>) {
        if !self.timer.take() {
            return;
        }
        let Some(machine) = self.machine.upgrade() else { return };
        if machine.borrow().is_paused() {
            // A guest that stands still has not felt the press. If the timer fails, it stays pressed.
            let _ = self.start();
        } else {
            machine.borrow().set_power_key(false);
        }
    }
}
