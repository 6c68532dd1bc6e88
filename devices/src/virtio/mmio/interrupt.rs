//! The interrupts that the driver has not acknowledged (InterruptStatus and InterruptACK, 4.2.2).

use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::registers::{self, USED_BUFFER};
use crate::ports::Acknowledgements;

/// The pending interrupts of one transport. Clones are the same status.
///
/// Its lock is never held for the turn of a queue, so an interrupt handler in the guest does not wait for one.
///
/// # Order
/// What the device writes before [`raise`](Self::raise) is visible to a driver that reads the bit. A bit
/// raised after an acknowledgement survives it, and the edge that follows starts the handler again. That holds for
/// acknowledgements that the hypervisor takes as well: they are applied before the bits are read or changed, and no
/// bit is looked at in between.
#[derive(Clone, Default)]
pub struct InterruptStatus(Arc<Inner>);

#[derive(Default)]
struct Inner {
    pending: Mutex<u32>,
    taken: Option<Box<dyn Acknowledgements>>,
}

impl InterruptStatus {
    /// Nothing is pending. The hypervisor takes acknowledgements of [`USED_BUFFER`] alone.
    pub(super) fn acknowledged_through(taken: Box<dyn Acknowledgements>) -> Self {
        Self(Arc::new(Inner { pending: Mutex::default(), taken: Some(taken) }))
    }

    /// The pending events.
    pub(super) fn pending(&self) -> u32 {
        *self.settled()
    }

    /// Makes an event pending. Raise the edge after it.
    pub(super) fn raise(&self, event: u32) {
        *self.settled() |= event;
    }

    /// The driver has handled these events.
    pub(super) fn acknowledge(&self, events: u32) {
        *self.settled() &= !events;
    }

    /// Makes exactly these events pending.
    pub(super) fn set(&self, events: u32) {
        *self.settled() = events;
    }

    /// The pending events, without those that have been acknowledged.
    fn settled(&self) -> MutexGuard<'_, u32> {
        let mut pending = self.0.pending.lock().unwrap_or_else(PoisonError::into_inner);
        if self.0.taken.as_ref().is_some_and(|taken| taken.take()) {
            *pending &= !USED_BUFFER;
        }
        pending
    }

    /// Reads the register at `offset`, if it is the status.
    pub(super) fn read(&self, offset: u64, data: &mut [u8]) -> bool {
        let Ok(data) = <&mut [u8; 4]>::try_from(data) else { return false };
        if offset != registers::INTERRUPT_STATUS {
            return false;
        }
        *data = self.pending().to_le_bytes();
        true
    }

    /// Writes the register at `offset`, if it is the acknowledgement.
    pub(super) fn write(&self, offset: u64, data: &[u8]) -> bool {
        let Ok(data) = <[u8; 4]>::try_from(data) else { return false };
        if offset != registers::INTERRUPT_ACK {
            return false;
        }
        self.acknowledge(u32::from_le_bytes(data));
        true
    }
}

impl fmt::Debug for InterruptStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("InterruptStatus").field(&self.0.pending).finish()
    }
}
