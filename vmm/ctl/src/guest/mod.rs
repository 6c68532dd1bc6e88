//! Work in a guest over the VM's vsock device: commands, files, and connections to any port.
//!
//! The guest is not trusted: what its agent says is bounded by the protocol (`agent::protocol`), its messages
//! are shown without control characters, and only the output of a command reaches the terminal as it is.

pub mod args;
pub mod connect;
pub mod copy;
pub mod exec;
mod progress;
pub mod proxy;
pub(crate) mod stdio;

use std::io;
use std::path::PathBuf;
use std::time::Duration;

use agent::protocol;
use agent::protocol::message::{Reason, Refusal};
use agent::transfer;
use vmm::error::{chain, printable};

/// The client's own failures, as with env(1), nohup(1) and the container tools.
pub const EXIT_OWN: u8 = 125;
/// The program cannot be executed.
pub const EXIT_NOT_EXECUTABLE: u8 = 126;
/// There is no such program.
pub const EXIT_NOT_FOUND: u8 = 127;

/// Why something in a guest was not done.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The VM's configuration has no vsock device.
    #[error(
        "this VM has no vsock device, over which the guest's agent is reached: start it with --vsock"
    )]
    NoVsock,
    /// It waits to be configured.
    #[error("the VM waits to be configured and started: PUT /actions with InstanceStart starts it")]
    NotStarted,
    /// The vCPUs are held.
    #[error("the VM is paused: `tesseractl resume VM` lets its guest answer")]
    Paused,
    /// The device's Unix socket.
    #[error(
        "cannot reach the VM's vsock socket {path:?}: a relative path is one of the VMM's working directory; name the socket itself, vsock:PATH in the place of the VM"
    )]
    Unreachable {
        /// Its path.
        path: PathBuf,
        /// The kernel's reason.
        #[source]
        source: io::Error,
    },
    /// Nothing listens at the port.
    #[error("nothing in the guest listened at vsock port {port} within {timeout:?}: {hint}")]
    NotListening {
        /// The port.
        port: u32,
        /// How long it was tried.
        timeout: Duration,
        /// What to look at.
        hint: &'static str,
    },
    /// The answer to CONNECT.
    #[error("{path:?} does not answer as the vsock socket of a VM does: name that one, vsock:PATH")]
    NoHandshake {
        /// Its path.
        path: PathBuf,
    },
    /// The agent will not.
    #[error("{}", printable(&.0.message))]
    Refused(Refusal),
    /// What the agent says is not understood.
    #[error("the guest's agent is not understood")]
    Protocol(#[from] protocol::Error),
    /// The agent has gone.
    #[error(
        "the guest's agent closed the connection: it or the VM has ended, or the agent serves no connections of this kind"
    )]
    Closed,
    /// The request cannot be sent.
    #[error(
        "arguments and environment are longer than a request may be (64 KiB): pass them in a file"
    )]
    TooLong,
    /// A copy.
    #[error(transparent)]
    Transfer(#[from] transfer::Error),
    /// A copy from where to where.
    #[error(
        "one side of a copy is the guest's, with a colon: `cp VM FILE :/root/` or `cp VM :/etc DIR`"
    )]
    Sides,
    /// The command's output cannot be written here.
    #[error("cannot write {0}")]
    Output(&'static str, #[source] io::Error),
    /// Something of this machine.
    #[error("cannot {0}")]
    System(&'static str, #[source] io::Error),
}

impl Error {
    /// The exit status of `exec` and `shell`.
    pub fn exec_status(&self) -> u8 {
        match self {
            Self::Refused(refusal) => match refusal.reason {
                Reason::NotFound => EXIT_NOT_FOUND,
                Reason::NotExecutable => EXIT_NOT_EXECUTABLE,
                _ => EXIT_OWN,
            },
            _ => EXIT_OWN,
        }
    }

    /// Whether the guest was reached at all.
    pub fn is_unreachable(&self) -> bool {
        matches!(
            self,
            Self::NotStarted
                | Self::Paused
                | Self::Unreachable { .. }
                | Self::NotListening { .. }
                | Self::NoHandshake { .. }
                | Self::Closed
        )
    }

    /// The error and its sources on one line, for a terminal.
    pub fn line(&self) -> String {
        printable(&chain(self))
    }
}
