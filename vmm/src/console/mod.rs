//! Where the guest's serial port goes: the terminal, a file, a socket, or nowhere.

#[cfg(test)]
mod fake;
mod input;
mod output;
mod socket;
mod terminal;

use std::io;
use std::path::PathBuf;

use thiserror::Error;

use crate::exit_status::ExitStatus;
use crate::sys::unix_socket;

pub(crate) use input::{Input, Keys, Verb};
pub(crate) use output::{Lost, Output, Quiesce};
pub(crate) use socket::Listener;
pub(crate) use terminal::RawTerminal;

/// Why a console cannot be had.
#[derive(Debug, Error)]
pub enum Error {
    /// The output file cannot be opened.
    #[error("cannot open {} for the guest's console: {hint}", path.display())]
    Open {
        /// The file.
        path: PathBuf,
        /// What to do.
        hint: &'static str,
        /// The system's reason.
        #[source]
        source: io::Error,
    },
    /// The socket cannot be made.
    #[error("cannot serve the guest's console on a socket")]
    Listen(#[from] unix_socket::Error),
    /// Standard input or output is not usable.
    #[error(
        "cannot use standard input and output as the guest's console: close neither, or give --serial none"
    )]
    Stdio(#[source] io::Error),
    /// An event could not be made.
    #[error("cannot create an event for the guest's console: look at ulimit -n")]
    Event(#[source] io::Error),
}

impl Error {
    /// The status that the process ends with.
    pub fn status(&self) -> ExitStatus {
        match self {
            Self::Listen(error) => error.status(),
            Self::Open { source, .. } => ExitStatus::for_output(source.kind()),
            Self::Stdio(_) => ExitStatus::Io,
            Self::Event(_) => ExitStatus::Unavailable,
        }
    }
}
