//! Why a command did not succeed: a message, and the exit status that scripts look at.

use std::error::Error as _;

use agent::transfer;
use vmm::error::{chain, printable};
use vmm::registry;

use crate::{client, guest};

/// The VM refused, or did not do what it was asked.
pub const EXIT_REFUSED: u8 = 1;
/// The command line is wrong (EX_USAGE of sysexits.h).
pub const EXIT_USAGE: u8 = 64;
/// A file is not what it should be (EX_DATAERR of sysexits.h).
pub const EXIT_DATA: u8 = 65;
/// The VM cannot be reached (EX_UNAVAILABLE of sysexits.h).
pub const EXIT_UNREACHABLE: u8 = 69;
/// A signal ended it before it was done, as a shell reports SIGINT.
pub const EXIT_INTERRUPTED: u8 = 130;

/// What a command ends with when it has not done what it was asked.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Failure {
    /// The exit status.
    pub code: u8,
    /// The reason and what to do next, on one line.
    pub message: String,
}

impl Failure {
    /// It was refused, or not done.
    pub fn refused(message: impl Into<String>) -> Self {
        Self { code: EXIT_REFUSED, message: message.into() }
    }

    /// The command line is wrong.
    pub fn usage(message: impl Into<String>) -> Self {
        Self { code: EXIT_USAGE, message: message.into() }
    }

    /// A file is not what it should be.
    pub fn data(message: impl Into<String>) -> Self {
        Self { code: EXIT_DATA, message: message.into() }
    }

    /// The VM cannot be reached.
    pub fn unreachable(message: impl Into<String>) -> Self {
        Self { code: EXIT_UNREACHABLE, message: message.into() }
    }
}

impl From<client::Error> for Failure {
    fn from(error: client::Error) -> Self {
        use client::Error;

        let code = match error {
            Error::Refused { .. } | Error::StillRunning(_) | Error::Body(_) => EXIT_REFUSED,
            Error::Unreachable { .. }
            | Error::TimedOut(_)
            | Error::Unanswered
            | Error::Closed
            | Error::Transport(_)
            | Error::Malformed(_) => EXIT_UNREACHABLE,
        };
        let mut message = printable(&error.to_string());
        if let Some(source) = error.source() {
            message.push_str(&format!(" ({source})"));
        }
        if let Error::StillRunning(_) = error {
            message.push_str(
                "; `stop --force` ends it without asking the guest, `kill` without asking the VMM",
            );
        }
        Self { code, message }
    }
}

impl From<guest::Error> for Failure {
    fn from(error: guest::Error) -> Self {
        let code = match &error {
            guest::Error::Sides => EXIT_USAGE,
            guest::Error::Transfer(transfer::Error::Stopped) => EXIT_INTERRUPTED,
            error if error.is_unreachable() => EXIT_UNREACHABLE,
            _ => EXIT_REFUSED,
        };
        Self { code, message: error.line() }
    }
}

impl From<registry::Error> for Failure {
    fn from(error: registry::Error) -> Self {
        let code = match error {
            registry::Error::NoPlace | registry::Error::NotAbsolute(_) | registry::Error::Id(_) => {
                EXIT_USAGE
            }
            registry::Error::Ended | registry::Error::OtherNamespace(_) => EXIT_UNREACHABLE,
            _ => EXIT_REFUSED,
        };
        Self { code, message: printable(&chain(&error)) }
    }
}
