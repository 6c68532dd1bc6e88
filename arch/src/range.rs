//! Ranges of addresses.

use std::fmt;

use vm_memory::{Address, GuestAddress};

use crate::units::Bytes;

/// A range of guest-physical addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MemoryRange {
    /// The first address.
    pub base: GuestAddress,
    /// The length; `base + size` at most 2^64 - 1 in every range that this crate makes.
    pub size: Bytes,
}

impl MemoryRange {
    /// The range of `size` from `base`.
    pub const fn new(base: GuestAddress, size: Bytes) -> Self {
        MemoryRange { base, size }
    }

    /// The first address after the range; saturates at 2^64 - 1.
    pub fn end(&self) -> GuestAddress {
        GuestAddress(self.base.raw_value().saturating_add(self.size.get()))
    }

    /// Whether `address` lies in the range.
    pub fn contains(&self, address: GuestAddress) -> bool {
        self.base <= address && address < self.end()
    }

    /// Whether all of `other` lies in this range. An empty range does if its base is in it or at
    /// its end.
    pub fn encloses(&self, other: &MemoryRange) -> bool {
        self.base <= other.base && other.end() <= self.end()
    }

    /// Whether the two share an address. An empty range shares none.
    pub fn overlaps(&self, other: &MemoryRange) -> bool {
        let start = self.base.max(other.base);
        start < self.end() && start < other.end()
    }
}

impl fmt::Display for MemoryRange {
    /// First address, first address after it, and length.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (base, end) = (self.base.raw_value(), self.end().raw_value());
        write!(f, "{base:#x}..{end:#x} ({})", self.size)
    }
}
