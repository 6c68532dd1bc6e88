//! Why a vCPU leaves the guest, and how it goes back.

use std::fmt;

use vm_memory::GuestAddress;

/// What the vCPU takes back into the guest.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Entry {
    /// Nothing.
    Resume,
    /// The answer to an [`Exit::MmioRead`]; as many bytes count as were asked for.
    MmioData([u8; 8]),
}

/// Why the guest was left.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Exit {
    /// A load from an address without memory.
    MmioRead {
        /// Where.
        address: GuestAddress,
        /// 1, 2, 4 or 8 bytes.
        length: usize,
    },
    /// A store to an address without memory.
    MmioWrite {
        /// Where.
        address: GuestAddress,
        /// The bytes, little endian.
        data: [u8; 8],
        /// How many of them count: 1, 2, 4 or 8.
        length: usize,
    },
    /// PSCI SYSTEM_OFF.
    PowerOff,
    /// PSCI SYSTEM_RESET.
    Reset,
    /// PSCI SYSTEM_RESET2: with `reboot=panic_warm` on its command line, a Linux guest asks for this
    /// reset when its kernel has panicked, and else only if its user chose warm or soft reboots.
    WarmReset,
    /// The vCPU was asked to leave the guest; pending MMIO is finished.
    Interrupted,
    /// An access outside memory that the hypervisor cannot decode: pairs, vectors, atomics.
    Undecoded(Unhandled),
    /// The host cannot give a page of guest memory: it is poisoned, the pool of huge pages is empty, or it
    /// cannot be read back from swap.
    MemoryFault(Unhandled),
    /// Something that this VMM does not handle.
    Unhandled(Unhandled),
}

/// An exit that is not handled.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Unhandled {
    /// What happened, in the hypervisor's words.
    pub what: String,
    /// The guest-physical address it concerns, if any.
    pub address: Option<GuestAddress>,
}

impl fmt::Display for Unhandled {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.address {
            Some(address) => write!(f, "{} at guest-physical address {:#x}", self.what, address.0),
            None => f.write_str(&self.what),
        }
    }
}
