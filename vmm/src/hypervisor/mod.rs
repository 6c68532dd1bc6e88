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

use crate::memory::{GuestRam, SharedPage};
use crate::vcpu::Vcpu;
use state::{GicState, VcpuState};

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
    /// interrupt controller. It is called once, before [`irq`](Self::irq).
    ///
    /// # Errors
    /// When the hypervisor refuses, or there are more vCPUs than the interrupt controller takes.
    fn create_vcpus(&mut self, wanted: &CpuRequest<'_>) -> Result<Vcpus, Error>;

    /// The state of the interrupt controller. All vCPUs are out of the guest.
    ///
    /// # Errors
    /// When the hypervisor does not give it.
    fn save_gic(&self) -> Result<GicState, Error>;

    /// Gives the interrupt controller a state: after the vCPUs have [theirs](Vcpu::restore), and before one of them
    /// runs.
    ///
    /// # Errors
    /// When it is the state of another interrupt controller, or the hypervisor refuses.
    fn restore_gic(&self, state: &GicState) -> Result<(), Error>;

    /// Shows the guest a page at an address where there is none. The guest can only read it.
    ///
    /// # Errors
    /// When the hypervisor refuses.
    fn show(&mut self, at: GuestAddress, page: SharedPage) -> Result<(), Error>;

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

    /// How fast the guest's counter counts, in Hz (CNTFRQ_EL0).
    fn counter_frequency(&self) -> u32;

    /// Has the pages logged that vCPUs write to from now on, data or tags. Nothing happens if they are already. No vCPU
    /// runs.
    ///
    /// # Errors
    /// When the hypervisor refuses.
    fn log_writes(&self) -> Result<(), Error>;

    /// Adds the pages of the log to the [changes](GuestRam::add_changes) of guest memory, and begins another log. No
    /// vCPU runs.
    ///
    /// # Errors
    /// When the hypervisor does not give the log. What it has given is added.
    fn collect_writes(&self) -> Result<(), Error>;

    /// Guest memory.
    fn ram(&self) -> &GuestRam;
}

/// Which vCPUs a VM is to have.
#[derive(Clone, Copy, Debug, Default)]
pub struct CpuRequest<'a> {
    /// How many.
    pub count: u32,
    /// Whether each has performance monitors.
    pub pmu: bool,
    /// How many interrupts their controller has ([`arch::gic::interrupt_count`]). One that is restored has as many as it
    /// had.
    pub interrupts: u32,
    /// The saved state of one of them, and of their interrupt controller, if they are to be restored: they have what
    /// those had. Else they have all that the host offers.
    pub saved: Option<(&'a VcpuState, &'a GicState)>,
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
