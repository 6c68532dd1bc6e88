//! What happens to a VM, as a stream of lines for those who follow it (`GET /events`).
//!
//! Writers of any thread append to a ring of bounded size and never wait. A reader has a position of its own: one
//! that is slower than the ring finds a gap in the sequence numbers.

mod log;

pub use log::{EventLog, Line};

use serde::Serialize;

use crate::error::printable;

/// The longest text in an event, in bytes.
const MAX_DETAIL: usize = 1 << 10;

/// One thing that happened, by its name in the stream.
#[derive(Clone, Debug, Eq, PartialEq, Serialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum Event {
    /// The vCPUs run for the first time.
    Started,
    /// They are held.
    Paused {
        /// By request, or for want of tag storage.
        reason: PauseCause,
        /// Why, in words.
        #[serde(skip_serializing_if = "Option::is_none")]
        detail: Option<Detail>,
    },
    /// They run again.
    Resumed,
    /// The VM was saved.
    Saved {
        /// The file of the machine's state.
        path: Detail,
    },
    /// The VM of a snapshot is there, and its vCPUs have not run since.
    Restored,
    /// The guest's kernel panicked. The VM ends.
    GuestPanic,
    /// A vCPU waits for tag storage.
    TagStorageExhausted {
        /// What is lacking, and what to do about it.
        detail: Detail,
    },
    /// No vCPU waits for tag storage any more.
    TagStorageRelieved,
    /// The guest's driver broke a rule of its device, which waits for a reset.
    DeviceBroken {
        /// The device's name.
        device: Detail,
        /// The rule.
        detail: Detail,
    },
    /// The broker of tag storage is gone.
    BrokerLost,
    /// The broker of tag storage is back.
    BrokerBack,
    /// The VMM's choice of the balloon's target takes another course.
    BalloonAuto {
        /// `off`, or what it does.
        state: &'static str,
        /// Why, in a word.
        #[serde(skip_serializing_if = "Option::is_none")]
        reason: Option<&'static str>,
        /// What the guest is asked for, in MiB.
        #[serde(skip_serializing_if = "Option::is_none")]
        target_mib: Option<u64>,
    },
    /// The VM has ended: the last event.
    Ended {
        /// The exit status of the process.
        status: u8,
        /// How, in a word.
        reason: &'static str,
        /// The last message on standard error.
        #[serde(skip_serializing_if = "Option::is_none")]
        message: Option<Detail>,
    },
}

/// For what a VM is held.
#[derive(Clone, Copy, Debug, Eq, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum PauseCause {
    /// A client of the control socket asked for it.
    Request,
    /// A vCPU waits for tag storage (`--on-exhausted pause`).
    TagStorage,
}

/// A text in an event: without control characters, and cut where it is too long.
#[derive(Clone, Debug, Eq, PartialEq, Serialize)]
pub struct Detail(String);

impl From<&str> for Detail {
    fn from(text: &str) -> Self {
        let mut text = printable(text);
        let end = (0..=MAX_DETAIL).rfind(|end| text.is_char_boundary(*end));
        text.truncate(end.unwrap_or_default().min(text.len()));
        Self(text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_detail_is_one_bounded_printable_line() {
        let long = format!("a\n\u{1b}[2J{}", "é".repeat(MAX_DETAIL));

        let Detail(text) = Detail::from(&*long);

        assert!(text.starts_with("a\u{fffd}\u{fffd}[2Jé"), "{text}");
        assert!(text.len() <= MAX_DETAIL);
        assert!(!text.chars().any(char::is_control));
    }
}
