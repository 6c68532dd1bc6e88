//! Which huge pages of guest memory have gone in pieces, and whether they may be mapped anew.
//!
//! The kernel merges a new mapping with its neighbours if nothing touches it before it has their attributes. A guest
//! that stores to it meanwhile keeps them apart, for good. So mappings are counted now and then, of which a process has
//! a bounded number.

use arch::range::MemoryRange;
use arch::units::Bytes;
use vm_memory::GuestAddress;

use crate::sys::mappings;

/// Mappings are counted each time that so many huge pages were mapped anew. Each adds two at most.
const COUNTED_EACH: u32 = 1024;

/// Huge pages that went in pieces since they were mapped.
#[derive(Debug)]
pub(super) struct SplitPages {
    size: Bytes,
    /// A bit for each, by its number from the beginning of guest memory, up to the last that ever was among them.
    bits: Vec<u64>,
    /// So many may be mapped anew before mappings are counted.
    left: u32,
}

impl SplitPages {
    /// None, of huge pages of this size.
    pub(super) fn new(size: Bytes) -> Self {
        Self { size, bits: Vec::new(), left: 0 }
    }

    /// The size of a huge page.
    pub(super) fn size(&self) -> Bytes {
        self.size
    }

    /// Adds the one around an address of memory.
    pub(super) fn insert(&mut self, address: GuestAddress, memory: MemoryRange) {
        let number = (address.0 - memory.base.0) / self.size.get();
        let word = (number / u64::from(u64::BITS)) as usize;
        if self.bits.len() <= word {
            self.bits.resize(word + 1, 0);
        }
        if let Some(word) = self.bits.get_mut(word) {
            *word |= 1 << (number % u64::from(u64::BITS));
        }
    }

    /// Takes out those of a range of whole ones that may be mapped anew.
    pub(super) fn take(&mut self, range: MemoryRange, memory: MemoryRange) -> Vec<MemoryRange> {
        let first = (range.base.0 - memory.base.0) / self.size.get();
        let count = range.size.get() / self.size.get();
        let mut taken = Vec::new();
        for number in first..first + count {
            if self.has(number) && self.may_map() {
                self.remove(number);
                let start = GuestAddress(memory.base.0 + number * self.size.get());
                taken.push(MemoryRange::new(start, self.size));
            }
        }
        taken
    }

    fn has(&self, number: u64) -> bool {
        let word = self.bits.get((number / u64::from(u64::BITS)) as usize);
        word.is_some_and(|word| word & 1 << (number % u64::from(u64::BITS)) != 0)
    }

    fn remove(&mut self, number: u64) {
        if let Some(word) = self.bits.get_mut((number / u64::from(u64::BITS)) as usize) {
            *word &= !(1 << (number % u64::from(u64::BITS)));
        }
    }

    /// Takes one of those that may be mapped anew. A quarter of the process's mappings are left for other things.
    fn may_map(&mut self) -> bool {
        if self.left == 0 {
            let most = mappings::most() / 4 * 3;
            let counted = mappings::count().map(|now| now + 2 * u64::from(COUNTED_EACH));
            self.left = if counted.is_some_and(|then| then <= most) { COUNTED_EACH } else { 0 };
        }
        let may = self.left > 0;
        self.left = self.left.saturating_sub(1);
        may
    }
}
