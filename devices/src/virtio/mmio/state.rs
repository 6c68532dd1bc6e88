//! The state of a transport with its device and its queues, saved and restored.

use std::ops::Deref;

use serde::{Deserialize, Serialize};
use vm_memory::GuestMemory;

use super::queue::QueueState;
use super::registers::{CONFIGURATION_CHANGE, DRIVER_OK, FAILED, FEATURES_OK, STEPS, USED_BUFFER};
use super::{Broken, Device, Features, Negotiation, Transport};
use crate::state::{RestoreError, Stateful, check};

/// The state of a transport, with that of its device.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct State<D> {
    pub(super) status: u32,
    /// The driver has broken the device.
    pub(super) broken: bool,
    /// The device has been activated since the reset. One that was broken before DRIVER_OK is not.
    pub(super) activated: bool,
    pub(super) features: Negotiation,
    pub(super) queue_sel: u32,
    pub(super) queues: Vec<QueueState>,
    pub(super) interrupts: u32,
    pub(super) config_generation: u32,
    pub(super) device: D,
}

impl<D: Device, S: Deref<Target: GuestMemory + Sized> + Send> Stateful for Transport<D, S> {
    type State = State<D::State>;

    fn quiesce(&mut self) -> bool {
        self.device.quiesce()
    }

    fn save(&self) -> Self::State {
        State {
            status: self.status,
            broken: self.broken.is_some(),
            activated: self.activated,
            features: self.features,
            queue_sel: self.queue_sel,
            queues: self.slots.iter().map(super::queue::Slot::save).collect(),
            interrupts: self.interrupts.pending(),
            config_generation: self.config_generation,
            device: self.device.save(),
        }
    }

    /// Rings for every queue of a device that is in use, as rings are not saved, and raises an edge for
    /// interrupts that are pending: one too many is harmless, one too few stops the driver.
    fn restore(&mut self, state: Self::State) -> Result<(), RestoreError> {
        self.clear();
        let restored = self.take(state);
        if restored.is_err() {
            self.clear();
        } else {
            self.resume();
        }
        restored
    }
}

impl<D: Device, S: Deref<Target: GuestMemory + Sized> + Send> Transport<D, S> {
    /// Takes a state over, after a reset.
    fn take(&mut self, state: State<D::State>) -> Result<(), RestoreError> {
        let State { status, broken, activated, features, queues, interrupts, .. } = state;
        check_status(status)?;
        let settled = status & FEATURES_OK != 0;
        if settled && !features.is_acceptable(self.offered()) {
            let problem = "are more than the device offers";
            return Err(RestoreError::configuration("the acknowledged features", problem));
        }
        let started = status & DRIVER_OK != 0;
        let activatable = if started { activated || broken } else { !activated };
        check(activatable, "the activation", "does not fit the device status")?;
        check(
            interrupts & !(USED_BUFFER | CONFIGURATION_CHANGE) == 0,
            "the interrupt status",
            "has bits that do not exist",
        )?;
        if queues.len() != self.slots.len() {
            let problem = "is not that of the device";
            return Err(RestoreError::configuration("the number of queues", problem));
        }
        self.status = status;
        self.features = features;
        let event_idx = started && self.acked().contains(Features::EVENT_IDX);
        for (slot, queue) in self.slots.iter_mut().zip(queues) {
            check(
                activated || !queue.is_advanced(),
                "a queue",
                "was served before the driver was ready",
            )?;
            slot.restore(queue, &*self.memory, event_idx)?;
        }
        self.queue_sel = state.queue_sel;
        self.config_generation = state.config_generation;
        self.broken = broken.then_some(Broken::Restored);
        self.interrupts.set(interrupts);
        if activated {
            self.activate();
        }
        self.device.restore(state.device)
    }

    fn resume(&mut self) {
        if self.is_active() {
            (0..self.slots.len()).for_each(|queue| self.notify(queue));
        }
        let pending = self.interrupts.pending();
        if pending != 0 && self.is_driven() {
            self.interrupt(pending);
        }
    }
}

/// The steps of the driver are taken in their order, and nothing but FAILED is beside them.
fn check_status(status: u32) -> Result<(), RestoreError> {
    let mut prefix = 0;
    let mut valid = status & !FAILED == 0;
    for step in STEPS {
        prefix |= step;
        valid |= status & !FAILED == prefix;
    }
    check(valid, "the device status", "has steps that do not follow each other")
}

#[cfg(test)]
mod tests;
