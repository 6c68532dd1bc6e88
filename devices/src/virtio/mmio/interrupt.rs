//! The interrupts that the driver has not acknowledged (InterruptStatus and InterruptACK, 4.2.2).

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use super::registers;

/// The pending interrupts of one transport. Clones are the same status.
///
/// Needs no lock, so an interrupt handler in the guest never waits for the turn of a queue.
///
/// # Order
/// What the device writes before [`raise`](Self::raise) is visible to a driver that reads the bit. A bit
/// raised after an acknowledgement survives it, and the edge that follows starts the handler again.
#[derive(Clone, Debug, Default)]
pub struct InterruptStatus(Arc<AtomicU32>);

impl InterruptStatus {
    /// The pending events.
    pub(super) fn pending(&self) -> u32 {
        self.0.load(Ordering::Acquire)
    }

    /// Makes an event pending. Raise the edge after it.
    pub(super) fn raise(&self, event: u32) {
        self.0.fetch_or(event, Ordering::AcqRel);
    }

    /// The driver has handled these events.
    pub(super) fn acknowledge(&self, events: u32) {
        self.0.fetch_and(!events, Ordering::AcqRel);
    }

    /// Makes exactly these events pending.
    pub(super) fn set(&self, events: u32) {
        self.0.store(events, Ordering::Release);
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
