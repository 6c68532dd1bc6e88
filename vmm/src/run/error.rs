//! Why a VM did not start, or could not go on.

use std::io;
use std::path::PathBuf;

use thiserror::Error;

use super::snapshots::LoadError;
use crate::config;
use crate::console;
use crate::exit_status::ExitStatus;
use crate::jail;
use crate::machine;
use crate::registry;
use crate::sandbox;
use crate::spec;
use crate::sys::unix_socket;
use crate::vcpu;

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
    #[error(transparent)]
    Machine(#[from] machine::Error),
    /// The snapshot cannot be restored.
    #[error("cannot restore the VM")]
    Restore(#[from] LoadError),
    /// The console cannot be had.
    #[error(transparent)]
    Console(#[from] console::Error),
    /// The control socket cannot be had.
    #[error(transparent)]
    Control(#[from] unix_socket::Error),
    /// A VM of this id runs.
    #[error(transparent)]
    Registry(#[from] registry::Error),
    /// The terminal cannot be put into raw mode.
    #[error("cannot put the terminal into raw mode: give --serial file:PATH or --serial none")]
    Terminal(#[source] io::Error),
    /// The log or the file of counters cannot be opened.
    #[error("cannot open {} for the {what}: name a file or a FIFO that can be written", path.display())]
    Output {
        /// The file.
        path: PathBuf,
        /// What it is for.
        what: &'static str,
        /// The system's reason.
        #[source]
        source: io::Error,
    },
    /// The process cannot be confined.
    #[error(transparent)]
    Sandbox(#[from] sandbox::Error),
    /// There can be no jail.
    #[error(transparent)]
    Jail(#[from] jail::Error),
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

impl Error {
    /// The status that the process ends with.
    pub fn status(&self) -> ExitStatus {
        match self {
            Self::Config(error) => error.status(),
            Self::Spec(_) => ExitStatus::Config,
            Self::NotArm64 => ExitStatus::Unavailable,
            Self::Machine(error) => error.status(),
            Self::Restore(error) => error.status(),
            Self::Console(error) => error.status(),
            Self::Control(error) => error.status(),
            Self::Sandbox(error) => error.status(),
            Self::Jail(error) => error.status(),
            Self::Registry(_) => ExitStatus::CannotCreate,
            Self::Terminal(_) => ExitStatus::Io,
            Self::Output { source, .. } => ExitStatus::for_output(source.kind()),
            Self::Events(_) | Self::Loop(_) | Self::Vcpus(_) => ExitStatus::Unavailable,
        }
    }
}
