//! A vCPU as the run loop sees it, free of the hypervisor: a fake one runs the same loop in tests.

mod exit;
#[cfg(test)]
pub(crate) mod fake;
mod hold;
mod run;
mod set;
mod thread;

use std::io;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use devices::bus::Bus;
use vm_memory::GuestAddress;

use crate::hypervisor::state::{VcpuState, VcpuStateError};
use crate::metrics::VcpuCounters;

pub use exit::{Entry, Exit, Unhandled};
pub use hold::{Held, Hold};
pub use run::{Fault, VcpuExit, run};
pub use set::{Error, VcpuSet};

/// The registers that a fault report shows.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Registers {
    /// x0 to x30.
    pub x: [u64; 31],
    /// Stack pointer of EL1, the guest kernel's.
    pub sp: u64,
    /// Program counter.
    pub pc: u64,
    /// Processor state.
    pub pstate: u64,
}

/// One vCPU.
///
/// # Contract
/// `enter` is called by the vCPU's own thread only. The other methods may be called from any thread
/// while no thread is in `enter`; the lock around the vCPU sees to that.
pub trait Vcpu: Send {
    /// Runs the guest until it needs something, after completing what the last exit asked for.
    ///
    /// # Errors
    /// When the hypervisor cannot run the vCPU.
    fn enter(&mut self, entry: Entry) -> io::Result<Exit>;

    /// Has the guest take a synchronous external abort in place of the access of the last exit, as from
    /// hardware at an address to which nothing answers. The access is not finished.
    ///
    /// # Errors
    /// When the hypervisor cannot.
    fn inject_abort(&mut self) -> io::Result<()>;

    /// The general registers.
    ///
    /// # Errors
    /// When the hypervisor does not give them.
    fn registers(&self) -> io::Result<Registers>;

    /// Its state, without what all vCPUs of the VM share.
    ///
    /// # Errors
    /// When the hypervisor does not give it.
    fn save(&self) -> io::Result<VcpuState>;

    /// Takes a state over. No vCPU of the VM has run.
    ///
    /// # Errors
    /// When the hypervisor does not take all of it.
    fn restore(&mut self, state: &VcpuState) -> Result<(), VcpuStateError>;

    /// The guest's virtual counter (CNTVCT_EL0), which all vCPUs share.
    ///
    /// # Errors
    /// When the hypervisor does not give it.
    fn counter(&self) -> io::Result<u64>;

    /// Sets the guest's virtual counter for all vCPUs.
    ///
    /// # Errors
    /// When the hypervisor refuses.
    fn set_counter(&mut self, value: u64) -> io::Result<()>;

    /// Sets where the vCPU starts and what it finds: the address of the device tree in x0
    /// (Documentation/arch/arm64/booting.rst). Everything else is as after a reset: EL1, MMU off,
    /// interrupts masked.
    ///
    /// # Errors
    /// When the hypervisor refuses.
    fn set_boot_state(&mut self, entry: GuestAddress, fdt: GuestAddress) -> io::Result<()>;

    /// A handle with which any thread can make `enter` return.
    ///
    /// # Errors
    /// When the host gives none.
    fn kicker(&self) -> io::Result<Box<dyn Kick>>;
}

/// Delays a vCPU after a store until what it wrote has been taken.
pub trait OutputThrottle: Send + Sync {
    /// Returns when the vCPU may continue, or when it is to be paused. Called without any device's lock.
    fn wait(&self);
}

/// What the run loop serves exits with, shared by all vCPUs.
pub struct Services {
    /// The devices.
    pub bus: Bus,
    /// What a vCPU waits for after a store, if anything.
    pub throttle: Option<Arc<dyn OutputThrottle>>,
    /// What is counted.
    pub counters: Arc<VcpuCounters>,
    /// An access that nothing serves has been reported: a guest can make thousands in a second.
    pub reported: AtomicBool,
}

impl Services {
    /// Serves exits with these devices.
    pub fn new(
        bus: Bus,
        throttle: Option<Arc<dyn OutputThrottle>>,
        counters: Arc<VcpuCounters>,
    ) -> Self {
        Self { bus, throttle, counters, reported: AtomicBool::new(false) }
    }

    fn wait_for_output(&self) {
        if let Some(throttle) = &self.throttle {
            throttle.wait();
        }
    }
}

/// Makes a vCPU leave the guest.
pub trait Kick: Send + Sync {
    /// The next `enter`, or the present one once a signal reaches its thread, returns
    /// [`Exit::Interrupted`] after finishing what the last exit asked for.
    fn leave_guest(&self);

    /// Takes `leave_guest` back.
    fn clear(&self);
}
