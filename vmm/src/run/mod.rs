//! `tessera run`: from a configuration to a guest that has ended.

#[cfg(target_arch = "aarch64")]
mod broker_events;
#[cfg(target_arch = "aarch64")]
mod handle;
#[cfg(target_arch = "aarch64")]
mod start;
#[cfg(target_arch = "aarch64")]
mod tag_events;

use std::cell::RefCell;
use std::io;
use std::rc::Rc;

use thiserror::Error;

use crate::config::{self, RunArgs};
use crate::console;
use crate::exit_status::ExitStatus;
#[cfg(target_arch = "aarch64")]
use crate::machine;
use crate::spec::{self, Spec};
use crate::sys::unix_socket;
use crate::vcpu::{self, End};

/// Why a VM did not start, or could not go on.
#[derive(Debug, Error)]
pub enum Error {
    /// The configuration cannot be read.
    #[error(transparent)]
    Config(#[from] config::Error),
    /// The configuration makes no sense.
    #[error(transparent)]
    Spec(#[from] spec::Error),
    /// This is not an arm64 machine.
    #[error(
        "this machine is not arm64, and guests run on arm64 hosts only: `make run` in the source tree boots one nested in QEMU"
    )]
    NotArm64,
    /// The machine cannot be made.
    #[cfg(target_arch = "aarch64")]
    #[error(transparent)]
    Machine(#[from] machine::Error),
    /// The console cannot be had.
    #[error(transparent)]
    Console(#[from] console::Error),
    /// The control socket cannot be had.
    #[error(transparent)]
    Control(#[from] unix_socket::Error),
    /// The terminal cannot be put into raw mode.
    #[error("cannot put the terminal into raw mode: give --serial file:PATH or --serial none")]
    Terminal(#[source] io::Error),
    /// The host gives no descriptors for events.
    #[error("cannot set up the event loop: look at ulimit -n")]
    Events(#[source] io::Error),
    /// The event loop itself failed.
    #[error("the event loop failed")]
    Loop(#[source] event_manager::Error),
    /// The vCPUs cannot be started.
    #[error(transparent)]
    Vcpus(#[from] vcpu::Error),
}

/// Why the VM ends.
#[derive(Debug)]
pub enum Ending {
    /// A vCPU says so.
    Guest(End),
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

/// Where those who may end the VM say so; the first one counts.
#[derive(Clone, Debug, Default)]
pub struct Finish(Rc<RefCell<Option<Ending>>>);

impl Finish {
    /// Ends the VM after the present turn of the event loop.
    pub fn with(&self, ending: Ending) {
        self.0.borrow_mut().get_or_insert(ending);
    }

    /// How the VM ends, if somebody has said so.
    #[cfg(target_arch = "aarch64")]
    fn take(&self) -> Option<Ending> {
        self.0.borrow_mut().take()
    }
}

/// Runs a guest to its end.
///
/// # Errors
/// When it cannot be started; nothing is left behind then.
pub fn run(args: &RunArgs) -> Result<Ending, Error> {
    let spec = Spec::new(args.merge()?, args.command_line_only())?;
    #[cfg(target_arch = "aarch64")]
    return start::start(&spec, args.api_sock.as_deref());
    #[cfg(not(target_arch = "aarch64"))]
    {
        drop(spec);
        Err(Error::NotArm64)
    }
}

impl Ending {
    /// How the process ends, and what there is to say about it.
    pub fn report(&self) -> (ExitStatus, Option<String>) {
        match self {
            Self::Guest(End::PowerOff) => (ExitStatus::Success, None),
            Self::Guest(End::Reset) => {
                (ExitStatus::GuestReset, Some("the guest asked for a reset".to_owned()))
            }
            Self::Guest(End::GuestPanic) => {
                (ExitStatus::GuestPanic, Some("the guest's kernel panicked".to_owned()))
            }
            Self::Guest(End::Fault(fault)) => {
                (ExitStatus::VmmFault, Some(format!("the VM cannot go on\n{fault}")))
            }
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

impl Error {
    /// The status that the process ends with.
    pub fn status(&self) -> ExitStatus {
        match self {
            Self::Config(error) => error.status(),
            Self::Spec(_) => ExitStatus::Config,
            Self::NotArm64 => ExitStatus::Unavailable,
            #[cfg(target_arch = "aarch64")]
            Self::Machine(error) => error.status(),
            Self::Console(error) => error.status(),
            Self::Control(error) => error.status(),
            Self::Terminal(_) => ExitStatus::Io,
            Self::Events(_) | Self::Loop(_) | Self::Vcpus(_) => ExitStatus::Unavailable,
        }
    }
}

#[cfg(test)]
mod tests;
