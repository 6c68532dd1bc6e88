//! Amounts of memory as QEMU takes them.

use std::fmt;
use std::str::FromStr;

/// An amount of memory in MiB, at least 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Mib(u32);

/// Why a text is no amount of memory.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("'{0}' is no amount of memory: write it as 512M or 4G, at least 1M and at most 1024G")]
pub(crate) struct ParseMibError(String);

impl Mib {
    /// `mib` MiB; for constants.
    pub(crate) const fn new(mib: u32) -> Self {
        Self(mib)
    }

    /// The amount in MiB.
    pub(crate) fn get(self) -> u32 {
        self.0
    }

    /// What is left of this amount without `other`, where something is left.
    pub(crate) fn less(self, other: Self) -> Option<Self> {
        self.0.checked_sub(other.0).filter(|left| *left > 0).map(Self)
    }
}

impl fmt::Display for Mib {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}M", self.0)
    }
}

impl FromStr for Mib {
    type Err = ParseMibError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let refuse = || ParseMibError(text.to_owned());
        let (digits, factor) = match text.strip_suffix(['M', 'm']) {
            Some(digits) => (digits, 1),
            None => (text.strip_suffix(['G', 'g']).ok_or_else(refuse)?, 1024),
        };
        let number: u32 = digits.parse().map_err(|_| refuse())?;
        // 1 TiB is the most that fits the physical addresses of QEMU's virt machine.
        number
            .checked_mul(factor)
            .filter(|mib| (1..=1 << 20).contains(mib))
            .map(Self)
            .ok_or_else(refuse)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn units_are_read() {
        assert_eq!("512M".parse::<Mib>().unwrap(), Mib::new(512));
        assert_eq!("4G".parse::<Mib>().unwrap(), Mib::new(4096));
    }

    #[test]
    fn zero_unitless_signed_and_overflowing_texts_are_refused() {
        for text in ["0M", "512", "", "M", "-1M", "+G", "2048G", "99999999999G", "1T"] {
            assert!(text.parse::<Mib>().is_err(), "{text}");
        }
    }

    #[test]
    fn the_rest_of_an_amount_is_never_empty() {
        assert_eq!(Mib::new(4096).less(Mib::new(128)), Some(Mib::new(3968)));
        assert_eq!(Mib::new(128).less(Mib::new(128)), None);
        assert_eq!(Mib::new(64).less(Mib::new(128)), None);
    }
}
