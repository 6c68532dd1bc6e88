//! The MMIO bus: which device an access belongs to.
//!
//! A [`Bus`] is filled while the machine is built and shared from then on. A lookup takes no lock. An
//! access takes the lock of the device it belongs to, unless the device serves it without
//! ([`BusDevice`]).

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

use thiserror::Error;
use vm_memory::{Address, GuestAddress};

/// A device behind a window of guest-physical addresses.
///
/// `offset` counts bytes from the start of the window; the access lies in the window as a whole.
/// The guest chooses offset, width and data: a model takes any of them without panicking.
pub trait MmioDevice: Send {
    /// Reads `data.len()` bytes at `offset` into `data`, in the guest's (little-endian) order.
    fn read(&mut self, offset: u64, data: &mut [u8]);

    /// Writes `data` at `offset`, in the guest's (little-endian) order.
    fn write(&mut self, offset: u64, data: &[u8]);
}

/// A device as the vCPUs share it. A [`MmioDevice`] behind a mutex is one; a device that can serve some
/// registers without its lock implements this trait itself.
pub trait BusDevice: Send + Sync {
    /// As [`MmioDevice::read`].
    fn read(&self, offset: u64, data: &mut [u8]);

    /// As [`MmioDevice::write`].
    fn write(&self, offset: u64, data: &[u8]);
}

impl<D: MmioDevice> BusDevice for Mutex<D> {
    // A model is a set of registers without an invariant that a panic elsewhere could break.
    fn read(&self, offset: u64, data: &mut [u8]) {
        self.lock().unwrap_or_else(PoisonError::into_inner).read(offset, data);
    }

    fn write(&self, offset: u64, data: &[u8]) {
        self.lock().unwrap_or_else(PoisonError::into_inner).write(offset, data);
    }
}

/// A device that is on a bus and may be held by others, such as the event loop, as well.
pub type SharedDevice = Arc<dyn BusDevice>;

/// Why a device cannot be put on the bus. Each is a defect of the machine's layout.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum Error {
    /// The window has no size.
    #[error("the device at {base:#x} has a window of no size: give it one", base = .0.raw_value())]
    Empty(GuestAddress),
    /// The window passes the end of the address space.
    #[error(
        "the device at {base:#x} with {size:#x} bytes passes the end of the address space: move it \
         down", base = .base.raw_value()
    )]
    Wraps {
        /// Start of the window.
        base: GuestAddress,
        /// Length of the window in bytes.
        size: u64,
    },
    /// The window shares addresses with that of another device.
    #[error(
        "the device at {base:#x} overlaps the one at {other:#x}: move one of them",
        base = .base.raw_value(), other = .other.raw_value()
    )]
    Overlap {
        /// Start of the new window.
        base: GuestAddress,
        /// Start of the window that was there before.
        other: GuestAddress,
    },
}

/// An access that belongs to no device, or to more than one.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
#[error(
    "no device claims the {length} bytes at guest address {address:#x}",
    address = .address.raw_value()
)]
pub struct Unclaimed {
    /// First address of the access.
    pub address: GuestAddress,
    /// Its length in bytes.
    pub length: usize,
}

struct Window {
    base: u64,
    /// Last address of the window: unlike the first one after it, always a u64.
    last: u64,
    device: SharedDevice,
}

/// The devices of a machine, by address.
#[derive(Default)]
pub struct Bus {
    /// Sorted by base, without overlaps.
    windows: Vec<Window>,
}

impl Bus {
    /// A bus without devices.
    pub fn new() -> Bus {
        Bus::default()
    }

    /// Puts `device` on the bus, at the `size` bytes from `base`.
    ///
    /// # Errors
    /// When the window is empty, wraps or overlaps another one. The bus is as before then.
    pub fn insert(
        &mut self,
        base: GuestAddress,
        size: u64,
        device: SharedDevice,
    ) -> Result<(), Error> {
        let first = base.raw_value();
        let Some(reach) = size.checked_sub(1) else {
            return Err(Error::Empty(base));
        };
        let last = first.checked_add(reach).ok_or(Error::Wraps { base, size })?;
        let index = self.windows.partition_point(|window| window.last < first);
        if let Some(other) = self.windows.get(index).filter(|window| window.base <= last) {
            return Err(Error::Overlap { base, other: GuestAddress(other.base) });
        }
        self.windows.insert(index, Window { base: first, last, device });
        Ok(())
    }

    /// Reads `data.len()` bytes at `address`.
    ///
    /// # Errors
    /// [`Unclaimed`] when the access is empty or not wholly in the window of one device; `data` is
    /// as before then.
    pub fn read(&self, address: GuestAddress, data: &mut [u8]) -> Result<(), Unclaimed> {
        let (device, offset) = self.find(address, data.len())?;
        device.read(offset, data);
        Ok(())
    }

    /// Writes `data` at `address`.
    ///
    /// # Errors
    /// [`Unclaimed`] when the access is empty or not wholly in the window of one device.
    pub fn write(&self, address: GuestAddress, data: &[u8]) -> Result<(), Unclaimed> {
        let (device, offset) = self.find(address, data.len())?;
        device.write(offset, data);
        Ok(())
    }

    fn find(
        &self,
        address: GuestAddress,
        length: usize,
    ) -> Result<(&SharedDevice, u64), Unclaimed> {
        let first = address.raw_value();
        let claim = || {
            let reach = u64::try_from(length).ok()?.checked_sub(1)?;
            let last = first.checked_add(reach)?;
            let index = self.windows.partition_point(|window| window.last < first);
            let window = self.windows.get(index)?;
            let offset = first.checked_sub(window.base)?;
            (last <= window.last).then_some((&window.device, offset))
        };
        claim().ok_or(Unclaimed { address, length })
    }
}

impl fmt::Debug for Bus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let windows =
            self.windows.iter().map(|window| format!("{:#x}..={:#x}", window.base, window.last));
        f.debug_list().entries(windows).finish()
    }
}

#[cfg(test)]
mod tests;
