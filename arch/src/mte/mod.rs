//! Memory Tagging Extension.
//!
//! # References
//! Arm DDI 0487, *The Memory Tagging Extension*; ID_AA64PFR1_EL1

use std::fmt;

pub mod binding;
pub mod codec;
pub mod geometry;
pub mod granule;

/// How much of MTE a CPU has: the MTE field of ID_AA64PFR1_EL1, bits 8 to 11.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    /// Nothing.
    None,
    /// FEAT_MTE: the instructions, but no tag storage and no checks.
    Instructions,
    /// FEAT_MTE2: tags in memory, synchronous and asynchronous checks.
    Full,
    /// FEAT_MTE3: asymmetric checks as well.
    Asymmetric,
}

impl Level {
    /// Reads the field of a value of ID_AA64PFR1_EL1. Values of the future count as the highest
    /// known: the fields of ID registers grow upwards (Arm DDI 0487, "Principles of the ID
    /// scheme").
    pub const fn from_pfr1(value: u64) -> Level {
        match value >> 8 & 0xf {
            0 => Level::None,
            1 => Level::Instructions,
            2 => Level::Full,
            _ => Level::Asymmetric,
        }
    }

    /// Whether memory has tags that are checked.
    pub const fn has_tags(self) -> bool {
        matches!(self, Level::Full | Level::Asymmetric)
    }
}

impl fmt::Display for Level {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Level::None => "none",
            Level::Instructions => "MTE (instructions only)",
            Level::Full => "MTE2",
            Level::Asymmetric => "MTE3",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_value_of_the_field_has_a_level() {
        let levels: Vec<_> =
            (0..16u64).map(|field| Level::from_pfr1(!0xf00 | field << 8)).collect();

        assert_eq!(levels[..3], [Level::None, Level::Instructions, Level::Full]);
        assert!(levels[3..].iter().all(|level| *level == Level::Asymmetric));
    }

    #[test]
    fn only_mte2_and_later_have_tags() {
        assert!(!Level::None.has_tags() && !Level::Instructions.has_tags());
        assert!(Level::Full.has_tags() && Level::Asymmetric.has_tags());
    }
}
