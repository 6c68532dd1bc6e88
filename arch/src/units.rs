//! Units of measure.
//!
//! A size never crosses a boundary of this project as a bare integer: it is a [`Bytes`].

use std::fmt;
use std::str::FromStr;

use thiserror::Error;

/// The binary units, largest first: suffix letter and the power of two it stands for.
const UNITS: [(char, u32); 6] = [('E', 60), ('P', 50), ('T', 40), ('G', 30), ('M', 20), ('K', 10)];

/// A number of bytes.
///
/// Text uses binary units only: [`Display`](fmt::Display) prints the largest unit that divides the
/// value exactly ("512 MiB", "17 B"), [`FromStr`] reads what people write on a command line
/// ("512M", "512MiB", "2G", "64K") and everything that `Display` prints.
///
/// ```
/// use arch::units::Bytes;
/// assert_eq!("512M".parse(), Ok(Bytes::mib(512)));
/// assert_eq!(Bytes::kib(4).to_string(), "4 KiB");
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Bytes(u64);

impl Bytes {
    /// No bytes.
    pub const ZERO: Bytes = Bytes(0);
    /// The largest value, 2^64 - 1.
    pub const MAX: Bytes = Bytes(u64::MAX);

    /// `count` bytes.
    pub const fn new(count: u64) -> Self {
        Bytes(count)
    }

    /// `count` KiB (2^10 bytes); saturates at [`Bytes::MAX`].
    pub const fn kib(count: u64) -> Self {
        Bytes(count.saturating_mul(1 << 10))
    }

    /// `count` MiB (2^20 bytes); saturates at [`Bytes::MAX`].
    pub const fn mib(count: u64) -> Self {
        Bytes(count.saturating_mul(1 << 20))
    }

    /// `count` MiB, or `None` beyond [`Bytes::MAX`]: for a count from user input.
    pub const fn checked_mib(count: u64) -> Option<Self> {
        match count.checked_mul(1 << 20) {
            Some(bytes) => Some(Bytes(bytes)),
            None => None,
        }
    }

    /// `count` GiB (2^30 bytes); saturates at [`Bytes::MAX`].
    pub const fn gib(count: u64) -> Self {
        Bytes(count.saturating_mul(1 << 30))
    }

    /// The bare count, for the interfaces that take nothing else.
    pub const fn get(self) -> u64 {
        self.0
    }

    /// Whole MiB, rounded down.
    pub const fn as_mib(self) -> u64 {
        self.0 >> 20
    }

    /// Whether this is [`Bytes::ZERO`].
    pub const fn is_zero(self) -> bool {
        self.0 == 0
    }

    /// The sum, or `None` beyond [`Bytes::MAX`].
    pub const fn checked_add(self, other: Bytes) -> Option<Bytes> {
        match self.0.checked_add(other.0) {
            Some(sum) => Some(Bytes(sum)),
            None => None,
        }
    }

    /// The difference, or `None` below zero.
    pub const fn checked_sub(self, other: Bytes) -> Option<Bytes> {
        match self.0.checked_sub(other.0) {
            Some(difference) => Some(Bytes(difference)),
            None => None,
        }
    }

    /// The difference, or [`Bytes::ZERO`] where it would be negative.
    pub const fn saturating_sub(self, other: Bytes) -> Bytes {
        Bytes(self.0.saturating_sub(other.0))
    }

    /// The next multiple of `alignment` at or above this value, or `None` beyond [`Bytes::MAX`].
    ///
    /// `alignment` is meant to be a power of two; any other non-zero value works too, and zero
    /// leaves the value as it is.
    pub const fn align_up(self, alignment: Bytes) -> Option<Bytes> {
        match self.0.checked_next_multiple_of(alignment.0) {
            Some(aligned) => Some(Bytes(aligned)),
            None if alignment.0 == 0 => Some(self),
            None => None,
        }
    }

    /// The last multiple of `alignment` at or below this value; see [`Bytes::align_up`] for
    /// `alignment`.
    pub const fn align_down(self, alignment: Bytes) -> Bytes {
        match self.0.checked_rem(alignment.0) {
            Some(rest) => Bytes(self.0 - rest),
            None => self,
        }
    }

    /// Whether `unit` divides this value; zero divides only zero.
    pub const fn is_multiple_of(self, unit: Bytes) -> bool {
        match self.0.checked_rem(unit.0) {
            Some(rest) => rest == 0,
            None => self.0 == 0,
        }
    }
}

impl fmt::Display for Bytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let exact =
            UNITS.iter().find(|(_, shift)| self.0 != 0 && self.0.trailing_zeros() >= *shift);
        match exact {
            Some((letter, shift)) => write!(f, "{} {letter}iB", self.0 >> shift),
            None => write!(f, "{} B", self.0),
        }
    }
}

/// Why a text is not a size.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum ParseBytesError {
    /// There is nothing to read.
    #[error("a size is missing: write a number with a binary unit, such as 512M or 2G")]
    Empty,
    /// The text does not start with digits.
    #[error("{text:?} is not a size: start with a whole number, such as 512M or 2G")]
    NotANumber {
        /// The text as given.
        text: String,
    },
    /// The letters after the number name no unit.
    #[error(
        "{unit:?} is not a unit of size: use K, M, G or T (powers of 1024), or no unit for bytes"
    )]
    UnknownUnit {
        /// The letters after the number.
        unit: String,
    },
    /// The value is 2^64 or more.
    #[error("{text:?} is more than 64 bits can count: give a smaller size")]
    TooLarge {
        /// The text as given.
        text: String,
    },
}

impl FromStr for Bytes {
    type Err = ParseBytesError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let trimmed = text.trim();
        if trimmed.is_empty() {
            return Err(ParseBytesError::Empty);
        }
        let digits = trimmed.len() - trimmed.trim_start_matches(|c: char| c.is_ascii_digit()).len();
        let (number, unit) = trimmed.split_at(digits);
        if number.is_empty() {
            return Err(ParseBytesError::NotANumber { text: text.to_owned() });
        }
        let unit = unit.trim_start();
        let shift = unit_shift(unit)
            .ok_or_else(|| ParseBytesError::UnknownUnit { unit: unit.to_owned() })?;
        number
            .parse::<u64>()
            .ok()
            .and_then(|count| count.checked_mul(1 << shift))
            .map(Bytes)
            .ok_or_else(|| ParseBytesError::TooLarge { text: text.to_owned() })
    }
}

/// The power of two that `unit` stands for: "", "B", or a letter of [`UNITS`] alone or followed by
/// "iB".
///
/// "MB" is refused: it means 10^6 to some and 2^20 to others.
fn unit_shift(unit: &str) -> Option<u32> {
    if unit.is_empty() || unit.eq_ignore_ascii_case("b") {
        return Some(0);
    }
    let mut letters = unit.chars();
    let letter = letters.next()?.to_ascii_uppercase();
    let (_, shift) = UNITS.iter().find(|(name, _)| *name == letter)?;
    let rest = letters.as_str();
    (rest.is_empty() || rest.eq_ignore_ascii_case("ib")).then_some(*shift)
}

#[cfg(test)]
mod tests;
