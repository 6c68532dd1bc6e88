//! What becomes of tag storage that is not needed for tags.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use thiserror::Error;

/// When VMs without MTE live in tag storage.
///
/// # References
/// Linux mail, "Add support for arm64 MTE dynamic tag storage reuse": the fallback-only policy of the
/// series, and Hyesoo Yu's concern that other memory runs out first
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, Hash, PartialEq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum LendPolicy {
    /// Never: it lies idle.
    #[default]
    Never,
    /// When there is no other memory: the policy of the kernel series.
    LastResort,
    /// While more than half of the host's free memory is there, so that what cannot be in it does not run out
    /// of memory first.
    Balanced,
    /// Before any other memory.
    Eager,
}

impl LendPolicy {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Never, Self::LastResort, Self::Balanced, Self::Eager];

    /// Its number in the broker's protocol.
    pub(crate) fn code(self) -> u32 {
        self as u32
    }

    /// The policy with this number.
    pub(crate) fn of(code: u32) -> Option<Self> {
        Self::ALL.into_iter().find(|policy| policy.code() == code)
    }
}

impl fmt::Display for LendPolicy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Never => "never",
            Self::LastResort => "last-resort",
            Self::Balanced => "balanced",
            Self::Eager => "eager",
        })
    }
}

/// Why a text names no policy.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
#[error("{0:?} is no way to lend tag storage: write never, last-resort, balanced or eager")]
pub struct UnknownPolicy(String);

impl FromStr for LendPolicy {
    type Err = UnknownPolicy;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let found = Self::ALL.into_iter().find(|policy| policy.to_string() == text);
        found.ok_or_else(|| UnknownPolicy(text.to_owned()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_policy_reads_as_it_is_written_and_keeps_its_number() {
        for policy in LendPolicy::ALL {
            assert_eq!(policy.to_string().parse(), Ok(policy));
            assert_eq!(LendPolicy::of(policy.code()), Some(policy));
            assert_eq!(serde_json::json!(policy), policy.to_string());
        }
        for text in ["", "Never", "last_resort", "eager ", "always"] {
            assert_eq!(text.parse::<LendPolicy>(), Err(UnknownPolicy(text.to_owned())));
        }
        assert_eq!(LendPolicy::of(4), None);
    }
}
