//! Why the VM ends, and what there is to say about it.

use std::io;

use crate::exit_status::ExitStatus;
use crate::vcpu::VcpuExit;

/// Why the VM ends.
#[derive(Debug)]
pub enum ExitReason {
    /// A vCPU says so.
    Guest(VcpuExit),
    /// The host says so: the control socket or the escape key.
    Stopped,
    /// A signal.
    Signal(ExitStatus),
    /// The guest's output can no longer be written.
    OutputLost(io::Error),
    /// The VMM's own events cannot be watched.
    NoEvents(io::Error),
    /// The guest has waited for tag storage for as long as it may, for this reason.
    Exhausted(String),
    /// Tag storage can no longer be reserved, for this reason.
    Unreserved(String),
}

impl ExitReason {
    /// How the VM ends, in a word.
    pub(super) fn word(&self) -> &'static str {
        match self {
            Self::Guest(VcpuExit::PowerOff) => "power_off",
            Self::Guest(VcpuExit::Reset) => "reset",
            Self::Guest(VcpuExit::GuestPanic) => "guest_panic",
            Self::Guest(VcpuExit::Fault(_)) => "fault",
            Self::Guest(VcpuExit::MemoryFault(_)) => "memory_fault",
            Self::Guest(VcpuExit::MemoryLost(_)) => "memory_lost",
            Self::Stopped => "stopped",
            Self::Signal(_) => "signal",
            Self::OutputLost(_) => "output_lost",
            Self::NoEvents(_) => "no_events",
            Self::Exhausted(_) | Self::Unreserved(_) => "tag_storage",
        }
    }

    /// How the process ends, and what there is to say about it.
    pub fn report(&self) -> (ExitStatus, Option<String>) {
        match self {
            Self::Guest(VcpuExit::PowerOff) => (ExitStatus::Success, None),
            Self::Guest(VcpuExit::Reset) => {
                (ExitStatus::GuestReset, Some("the guest asked for a reset".to_owned()))
            }
            Self::Guest(VcpuExit::GuestPanic) => {
                (ExitStatus::GuestPanic, Some("the guest's kernel panicked".to_owned()))
            }
            Self::Guest(VcpuExit::Fault(fault)) => {
                (ExitStatus::VmmFault, Some(format!("the VM cannot go on\n{fault}")))
            }
            Self::Guest(VcpuExit::MemoryLost(why)) => (
                ExitStatus::MemoryFault,
                Some(format!("the VM ends, as its memory can no longer be loaded: {why}")),
            ),
            Self::Guest(VcpuExit::MemoryFault(fault)) => (
                ExitStatus::MemoryFault,
                Some(format!(
                    "the VM ends, as the host cannot give a page of its memory: it is poisoned, the pool of huge \
                     pages is empty, or it cannot be read back from swap; see the log of the host's kernel\n{fault}"
                )),
            ),
            Self::Stopped => (ExitStatus::Stopped, None),
            Self::Signal(status) => (*status, None),
            Self::OutputLost(error) => {
                let what = format!("the guest's console output cannot be written: {error}");
                (ExitStatus::Io, Some(what))
            }
            Self::NoEvents(error) => {
                (ExitStatus::VmmFault, Some(format!("cannot watch the VM's events: {error}")))
            }
            Self::Exhausted(why) => {
                let what =
                    format!("the VM ends as it lacks tag storage (--on-exhausted kill): {why}");
                (ExitStatus::TagStorage, Some(what))
            }
            Self::Unreserved(why) => {
                let what = format!("the VM ends as no tag storage can be reserved any more: {why}");
                (ExitStatus::TagStorage, Some(what))
            }
        }
    }
}
