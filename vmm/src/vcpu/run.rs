//! The run loop: enter the guest, serve the exit, until it is interrupted or the VM ends.

use std::fmt;
use std::io;
use std::sync::atomic::Ordering;

use vm_memory::GuestAddress;

use super::{Entry, Exit, Registers, Services, Unhandled, Vcpu};
use crate::error::say;

/// Why the VM ends.
#[derive(Debug)]
pub enum VcpuExit {
    /// The guest powered off.
    PowerOff,
    /// The guest asked for a reset.
    Reset,
    /// The guest's kernel panicked.
    GuestPanic,
    /// The host cannot give a page of guest memory.
    MemoryFault(Box<Fault>),
    /// Guest memory can no longer be loaded, for this reason.
    MemoryLost(String),
    /// A vCPU cannot continue.
    Fault(Box<Fault>),
}

/// A vCPU that cannot continue, with all that is known about it.
#[derive(Debug)]
pub struct Fault {
    /// Which vCPU.
    pub vcpu: u32,
    /// What happened.
    pub what: Unhandled,
    /// The registers, if the hypervisor still gives them.
    pub registers: Option<Registers>,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "vCPU {} stopped: {}", self.vcpu, self.what)?;
        let Some(registers) = &self.registers else {
            return write!(f, "\n  registers: not available");
        };
        write!(
            f,
            "\n  pc  {:016x}  sp  {:016x}  pstate {:08x}",
            registers.pc, registers.sp, registers.pstate
        )?;
        for (n, value) in registers.x.iter().enumerate() {
            let gap = if n % 4 == 0 { "\n  " } else { "  " };
            write!(f, "{gap}{:<3} {value:016x}", format!("x{n}"))?;
        }
        Ok(())
    }
}

/// Runs a vCPU until it is asked to leave the guest (`None`) or the VM ends.
pub fn run(index: u32, vcpu: &mut dyn Vcpu, services: &Services) -> Option<VcpuExit> {
    let counters = &services.counters;
    // A pause may have cut a wait short.
    services.wait_for_output();
    let mut entry = Entry::Resume;
    loop {
        let exit = vcpu.enter(entry);
        counters.exits.add(1);
        entry = Entry::Resume;
        let unserved = match exit {
            Ok(Exit::MmioRead { address, length }) => {
                counters.mmio_reads.add(1);
                let mut data = [0; 8];
                match services.bus.read(address, &mut data[..length.min(8)]) {
                    Ok(()) => {
                        entry = Entry::MmioData(data);
                        continue;
                    }
                    Err(_) => unclaimed("a load of", length, address),
                }
            }
            Ok(Exit::MmioWrite { address, data, length }) => {
                counters.mmio_writes.add(1);
                match services.bus.write(address, &data[..length.min(8)]) {
                    Ok(()) => {
                        services.wait_for_output();
                        continue;
                    }
                    Err(_) => unclaimed("a store of", length, address),
                }
            }
            Ok(Exit::Undecoded(access)) => access,
            Ok(Exit::Interrupted) => return None,
            Ok(Exit::PowerOff) => return Some(VcpuExit::PowerOff),
            Ok(Exit::Reset) => return Some(VcpuExit::Reset),
            Ok(Exit::WarmReset) => return Some(VcpuExit::GuestPanic),
            Ok(Exit::MemoryFault(what)) => {
                return Some(VcpuExit::MemoryFault(fault(index, vcpu, what)));
            }
            Ok(Exit::Unhandled(what)) => return Some(VcpuExit::Fault(fault(index, vcpu, what))),
            Err(error) => {
                return Some(VcpuExit::Fault(fault(index, vcpu, cannot_enter(&error))));
            }
        };
        if let Err(unserved) = abort(index, vcpu, services, unserved) {
            return Some(VcpuExit::Fault(fault(index, vcpu, unserved)));
        }
    }
}

/// Has the guest take an external abort for an access that nothing serves, which is what hardware answers.
///
/// # Errors
/// The access, when the hypervisor cannot inject one.
fn abort(
    index: u32,
    vcpu: &mut dyn Vcpu,
    services: &Services,
    access: Unhandled,
) -> Result<(), Unhandled> {
    if vcpu.inject_abort().is_err() {
        return Err(access);
    }
    services.counters.aborts.add(1);
    if !services.reported.swap(true, Ordering::Relaxed) {
        say(&format!(
            "vCPU {index} of the guest takes an external abort for {access}; further ones are only counted \
             (external_aborts_total)"
        ));
    }
    Ok(())
}

fn fault(vcpu: u32, state: &dyn Vcpu, what: Unhandled) -> Box<Fault> {
    Box::new(Fault { vcpu, what, registers: state.registers().ok() })
}

fn unclaimed(access: &str, length: usize, address: GuestAddress) -> Unhandled {
    let what = format!("{access} {length} bytes where there is neither memory nor a device");
    Unhandled { what, address: Some(address) }
}

fn cannot_enter(error: &io::Error) -> Unhandled {
    Unhandled { what: format!("KVM cannot run it: {error}"), address: None }
}

#[cfg(test)]
mod tests;
