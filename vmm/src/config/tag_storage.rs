//! Tag storage, as the configuration file and the flags describe it.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use arch::units::Bytes;
use clap::ValueEnum;
use serde::{Deserialize, Serialize};
use thiserror::Error;

/// A section of Tessera's own. Every field may be left out.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct TagStorageSection {
    /// When tag storage is reserved.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mode: Option<TagStorageMode>,
    /// The broker's socket; without it the VM has a pool of its own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub broker: Option<PathBuf>,
    /// Tag storage that is set aside for this VM, in KiB.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub min_kib: Option<u64>,
    /// The same as `--tag-min` gave it; it replaces `min_kib`.
    #[serde(skip)]
    pub min: Option<Bytes>,
    /// The most tag storage that this VM can have, in KiB.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_kib: Option<u64>,
    /// The same as `--tag-max` gave it; it replaces `max_kib`.
    #[serde(skip)]
    pub max: Option<Bytes>,
    /// What happens when a guest waits for tag storage that is not to be had.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub on_exhausted: Option<OnExhausted>,
    /// How many seconds it waits before that. The type bounds it to 18 hours.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub deadline_s: Option<u16>,
}

/// When tag storage is reserved for a guest's memory.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, PartialEq, Serialize, ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum TagStorageMode {
    /// Never: the host's firmware or hardware has it for all memory.
    #[default]
    Off,
    /// For all of it when the VM is created, which is refused where there is not enough.
    Strict,
    /// For each 2 MiB of it when the guest first touches them.
    Demand,
}

impl fmt::Display for TagStorageMode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Off => "off",
            Self::Strict => "strict",
            Self::Demand => "demand",
        })
    }
}

/// What happens when a touch has waited for tag storage as long as it may.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum OnExhausted {
    /// It keeps waiting, and the VMM reports that.
    #[default]
    Wait,
    /// The VM is paused until there is some.
    Pause,
    /// The VM ends.
    Kill,
}

impl fmt::Display for OnExhausted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Wait => "wait",
            Self::Pause => "pause",
            Self::Kill => "kill",
        })
    }
}

/// The value of `--on-exhausted`: `wait`, `pause` or `kill`, and perhaps `,deadline=SECONDS`.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct ExhaustedFlag {
    action: OnExhausted,
    deadline: Option<u16>,
}

/// Why the value of `--on-exhausted` is not understood.
#[derive(Clone, Debug, Error, Eq, PartialEq)]
pub enum ParseExhaustedError {
    /// Not one of the three.
    #[error("'{0}' is not known: use wait, pause or kill, and ,deadline=SECONDS after it")]
    Action(String),
    /// Not a deadline.
    #[error("'{0}' is not understood: use deadline=SECONDS, whole seconds up to {max}", max = u16::MAX)]
    Deadline(String),
}

impl FromStr for ExhaustedFlag {
    type Err = ParseExhaustedError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (action, deadline) = match text.split_once(',') {
            Some((action, deadline)) => (action, Some(deadline)),
            None => (text, None),
        };
        let action = match action {
            "wait" => OnExhausted::Wait,
            "pause" => OnExhausted::Pause,
            "kill" => OnExhausted::Kill,
            _ => return Err(ParseExhaustedError::Action(action.to_owned())),
        };
        let parse = |text: &str| {
            let seconds = text.strip_prefix("deadline=").and_then(|seconds| seconds.parse().ok());
            seconds.ok_or_else(|| ParseExhaustedError::Deadline(text.to_owned()))
        };
        Ok(Self { action, deadline: deadline.map(parse).transpose()? })
    }
}

impl ExhaustedFlag {
    /// Replaces those fields of a section that the flag names.
    pub(super) fn lay_over(self, section: &mut TagStorageSection) {
        section.on_exhausted = Some(self.action);
        section.deadline_s = self.deadline.or(section.deadline_s);
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_flag_is_an_action_with_or_without_a_deadline() {
        for (text, action, deadline) in [
            ("wait", OnExhausted::Wait, None),
            ("pause,deadline=0", OnExhausted::Pause, Some(0)),
            ("kill,deadline=65535", OnExhausted::Kill, Some(65535)),
        ] {
            assert_eq!(text.parse(), Ok(ExhaustedFlag { action, deadline }), "{text}");
        }
    }

    #[test]
    fn what_is_wrong_is_named() {
        for text in ["", "stop", "Wait", "deadline=3", " wait"] {
            let complaint = text.parse::<ExhaustedFlag>().unwrap_err();
            assert!(matches!(complaint, ParseExhaustedError::Action(_)), "{text:?}");
        }
        for text in ["wait,", "wait,3", "wait,deadline=", "wait,deadline=65536", "kill,deadline=1s"]
        {
            let complaint = text.parse::<ExhaustedFlag>().unwrap_err();
            assert!(matches!(complaint, ParseExhaustedError::Deadline(_)), "{text:?}");
        }
    }

    proptest! {
        #[test]
        fn no_text_panics_the_parser(text in "[a-z=,0-9-]{0,40}|.{0,40}") {
            let _ = text.parse::<ExhaustedFlag>();
        }
    }
}
