//! Why a broker does not do what it was asked.

use arch::units::Bytes;
use std::fmt;

use super::limits::{MAX_TEXT, VERSION};
use crate::error::{chain, printable};
use crate::tag_storage::pool::ReserveError;
use crate::tag_storage::supply::SupplyName;

/// The kind of a refusal, with the figures that a client computes with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    /// There is not so much tag storage now.
    Exhausted {
        /// What was asked for.
        wanted: Bytes,
        /// What is neither reserved nor set aside.
        free: Bytes,
        /// What is promised to leases.
        set_aside: Bytes,
    },
    /// The lease has all that its terms allow.
    OverMax {
        /// What was asked for.
        wanted: Bytes,
        /// The most it can have.
        max: Bytes,
    },
    /// There are as many connections or leases as there can be.
    Full,
    /// The broker speaks this version.
    Version(u32),
    /// That was no message, or not one for this moment. The connection ends.
    Protocol,
    /// The terms make no lease, or another cause that lasts.
    Other,
    /// The broker was started again and serves only VMs that come back, for some seconds. A lack that ends by
    /// itself: wait as for [`Exhausted`](Self::Exhausted) and ask again.
    Recovering,
    /// There was enough tag storage, and it was not reserved in time. Wait as for
    /// [`Exhausted`](Self::Exhausted) and ask again.
    TimedOut {
        /// What was asked for.
        wanted: Bytes,
    },
}

impl Reason {
    pub(crate) fn code(self) -> u32 {
        match self {
            Self::Exhausted { .. } => 1,
            Self::OverMax { .. } => 2,
            Self::Full => 3,
            Self::Version(_) => 4,
            Self::Protocol => 5,
            Self::Other => 6,
            Self::Recovering => 7,
            Self::TimedOut { .. } => 8,
        }
    }

    pub(crate) fn of(code: u32, [a, b, c]: [u64; 3]) -> Option<Self> {
        let (first, second, third) = (Bytes::new(a), Bytes::new(b), Bytes::new(c));
        Some(match code {
            1 => Self::Exhausted { wanted: first, free: second, set_aside: third },
            2 => Self::OverMax { wanted: first, max: second },
            3 => Self::Full,
            4 => Self::Version(u32::try_from(a).ok()?),
            5 => Self::Protocol,
            6 => Self::Other,
            7 => Self::Recovering,
            8 => Self::TimedOut { wanted: first },
            _ => return None,
        })
    }
}

/// A refusal: its reason, and a text for people.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// The reason.
    pub reason: Reason,
    text: String,
}

impl Refusal {
    /// A refusal. What cannot be printed of the text is left out, and so is what is too long.
    pub fn new(reason: Reason, text: impl Into<String>) -> Self {
        let mut text = printable(&text.into());
        let end = (0..=text.len().min(MAX_TEXT)).rev().find(|at| text.is_char_boundary(*at));
        text.truncate(end.unwrap_or(0));
        Self { reason, text }
    }

    /// The answer to a client of another version.
    pub(crate) fn version(theirs: u32) -> Self {
        let text = format!(
            "it speaks version {VERSION} of the broker's protocol, and was spoken to in version \
             {theirs}: use programs of one release"
        );
        Self::new(Reason::Version(VERSION), text)
    }

    /// The answer to requests that wait until the VMs of a broker before this one have come back.
    pub(crate) fn recovering() -> Self {
        let text = "it was started again and waits some seconds for VMs to come back with the tag \
                    storage that they use: try again after that";
        Self::new(Reason::Recovering, text)
    }

    /// The text for people.
    pub fn text(&self) -> &str {
        &self.text
    }

    pub(crate) fn figures(&self) -> [u64; 3] {
        match self.reason {
            Reason::Exhausted { wanted, free, set_aside } => {
                [wanted.get(), free.get(), set_aside.get()]
            }
            Reason::OverMax { wanted, max } => [wanted.get(), max.get(), 0],
            Reason::TimedOut { wanted } => [wanted.get(), 0, 0],
            Reason::Version(version) => [version.into(), 0, 0],
            Reason::Full | Reason::Protocol | Reason::Other | Reason::Recovering => [0; 3],
        }
    }

    /// What it is to a request for slots, where the pool could have said the same.
    pub(crate) fn as_reserve_error(&self, supply: SupplyName) -> Option<ReserveError> {
        match self.reason {
            Reason::Exhausted { wanted, free, set_aside } => {
                Some(ReserveError::Exhausted { wanted, free, set_aside, supply })
            }
            Reason::OverMax { wanted, max } => Some(ReserveError::OverMax { wanted, max, supply }),
            Reason::TimedOut { wanted } => Some(ReserveError::TimedOut { wanted, supply }),
            _ => None,
        }
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl From<&ReserveError> for Refusal {
    fn from(error: &ReserveError) -> Self {
        let reason = match *error {
            ReserveError::Exhausted { wanted, free, set_aside, .. } => {
                Reason::Exhausted { wanted, free, set_aside }
            }
            ReserveError::OverMax { wanted, max, .. } => Reason::OverMax { wanted, max },
            ReserveError::TimedOut { wanted, .. } => Reason::TimedOut { wanted },
            ReserveError::TooManyLeases => Reason::Full,
            _ => Reason::Other,
        };
        Self::new(reason, chain(error))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_text_is_cut_between_characters() {
        let refusal = Refusal::new(Reason::Other, "ä".repeat(MAX_TEXT));

        assert_eq!(refusal.text().len(), MAX_TEXT);
        assert!(refusal.text().chars().all(|letter| letter == 'ä'));
    }

    #[test]
    fn a_text_has_nothing_that_a_terminal_would_obey() {
        let refusal = Refusal::new(Reason::Other, "\u{1b}[2Jgone");

        assert!(!refusal.text().contains('\u{1b}'));
    }

    #[test]
    fn what_the_pool_says_arrives_as_the_pool_said_it() {
        let (wanted, supply) = (Bytes::kib(64), SupplyName::Ledger);
        let (max, free, set_aside) = (Bytes::mib(1), Bytes::ZERO, Bytes::kib(128));
        for said in [
            ReserveError::OverMax { wanted, max, supply },
            ReserveError::Exhausted { wanted, free, set_aside, supply },
            ReserveError::TimedOut { wanted, supply },
        ] {
            let refusal = Refusal::from(&said);
            let reason = Reason::of(refusal.reason.code(), refusal.figures());

            assert_eq!(reason, Some(refusal.reason));
            let heard = refusal.as_reserve_error(supply);
            assert_eq!(heard.map(|error| error.to_string()), Some(said.to_string()));
        }
    }
}
