//! A transport on the bus.

use std::fmt;
use std::ops::Deref;
use std::sync::{Arc, Mutex, PoisonError};

use vm_memory::GuestMemory;

use super::interrupt::InterruptStatus;
use super::{Device, Transport};
use crate::bus::{BusDevice, MmioDevice};

/// A shared transport as a device of the bus.
///
/// The transport's lock is held for a whole turn of a queue, which can take long: a balloon discards up
/// to 16384 ranges in one. The registers of the interrupt handler, InterruptStatus and InterruptACK, are
/// served without that lock, all others with it.
pub struct Window<D, S> {
    interrupts: InterruptStatus,
    transport: Arc<Mutex<Transport<D, S>>>,
}

impl<D: Device, S: Deref<Target: GuestMemory + Sized> + Send> Window<D, S> {
    /// The registers of `transport`.
    pub fn new(transport: Arc<Mutex<Transport<D, S>>>) -> Self {
        let interrupts =
            transport.lock().unwrap_or_else(PoisonError::into_inner).interrupt_status();
        Self { interrupts, transport }
    }
}

impl<D: Device, S: Deref<Target: GuestMemory + Sized> + Send> BusDevice for Window<D, S> {
    fn read(&self, offset: u64, data: &mut [u8]) {
        if !self.interrupts.read(offset, data) {
            self.transport.lock().unwrap_or_else(PoisonError::into_inner).read(offset, data);
        }
    }

    fn write(&self, offset: u64, data: &[u8]) {
        if !self.interrupts.write(offset, data) {
            self.transport.lock().unwrap_or_else(PoisonError::into_inner).write(offset, data);
        }
    }
}

impl<D, S> fmt::Debug for Window<D, S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Window").field("interrupts", &self.interrupts).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;
