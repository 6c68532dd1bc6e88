//! What the machine needs of a hypervisor. `kvm` provides it; a fake runs the same machine in tests.
//!
//! The traits are objects, so that `machine` and `run` are compiled once.

mod error;
#[cfg(test)]
pub(crate) mod fake;
pub mod state;

use arch::caches::Clidr;
use arch::gic::Gic;
use arch::irq::Spi;
use arch::regs::Mpidr;
use arch::units::Bytes;
use devices::ports::{IrqLine, LevelLine};
use vm_memory::GuestAddress;
use vmm_sys_util::eventfd::EventFd;

use crate::memory::GuestRam;
use crate::vcpu::Vcpu;

pub use error::Error;

/// A hypervisor of this host.
pub trait Hypervisor {
    /// Whether guests can have MTE.
    ///
    /// # Errors
    /// Why they cannot, as the end of a sentence.
    fn mte(&self) -> Result<(), &'static str>;

    /// Checks a number of vCPUs against the limit of the hypervisor.
    ///
    /// # Errors
    /// When there are too many.
    fn check_cpus(&self, asked: u32) -> Result<(), Error>;

    /// The fewest guest-physical address bits that reach the end of guest memory.
    ///
    /// # Errors
    /// When the addresses of this host do not reach that far.
    fn ipa_bits_for(&self, memory: Bytes) -> Result<u8, Error>;

    /// Creates a VM around its memory, with guest-physical addresses of so many bits.
    ///
    /// # Errors
    /// When the hypervisor refuses.
    fn create_vm(&self, ipa_bits: u8, ram: GuestRam, mte: bool) -> Result<Box<dyn Vm>, Error>;
}

/// A VM. Dropped, it is gone: its vCPUs are dropped before it.
pub trait Vm {
    /// Creates the vCPUs, the first ready to run and the others waiting for PSCI CPU_ON, and the
    /// interrupt controller; with `pmu` each vCPU has performance monitors. It is called once, before [`irq`](Self::irq).
    ///
    /// # Errors
    /// When the hypervisor refuses, or there are more vCPUs than the interrupt controller takes.
    fn create_vcpus(&mut self, count: u32, pmu: bool) -> Result<Vcpus, Error>;

    /// An edge-triggered interrupt line of the guest.
    ///
    /// # Errors
    /// When the host has no event for it.
    fn irq(&self, spi: Spi) -> Result<Box<dyn IrqLine>, Error>;

    /// An interrupt line of the guest that carries a level.
    fn level_irq(&self, spi: Spi) -> Box<dyn LevelLine>;

    /// An event that is written when the guest stores the 32-bit `value` at `address`; the store ends
    /// there, and other values go to the bus.
    ///
    /// # Errors
    /// When the host has no event for it.
    fn doorbell(&self, address: GuestAddress, value: u32) -> Result<EventFd, Error>;

    /// Guest memory.
    fn ram(&self) -> &GuestRam;
}

/// The vCPUs of a VM, and what the device tree says of them.
pub struct Vcpus {
    /// The vCPUs, by index.
    pub vcpus: Vec<Box<dyn Vcpu>>,
    /// Their affinities, by index.
    pub affinities: Vec<Mpidr>,
    /// The caches that they show, if the hypervisor gives them.
    pub clidr: Option<Clidr>,
    /// The interrupt controller.
    pub gic: Gic,
}
