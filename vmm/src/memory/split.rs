//! Which huge pages of guest memory have gone in pieces, and what is known of each.
//!
//! The kernel merges a new mapping with its neighbours if nothing touches it before it has their attributes. A guest
//! that stores to it meanwhile keeps them apart, for good. So mappings are counted now and then, of which a process has
//! a bounded number.

use std::ops::Range;

use arch::range::MemoryRange;
use arch::units::Bytes;
use vm_memory::GuestAddress;

use crate::sys::mappings;

/// Mappings are counted each time that so many huge pages were mapped anew. Each adds two at most.
const COUNTED_EACH: u32 = 1024;

/// Huge pages that went in pieces since they were mapped, or since they were made of small ones.
#[derive(Debug)]
pub(super) struct SplitPages {
    memory: MemoryRange,
    size: Bytes,
    /// Of each, by its number from the beginning of guest memory, up to the last that ever was among them.
    pages: Vec<SplitPage>,
    /// How many are among them.
    count: u64,
    /// So many may be mapped anew before mappings are counted.
    left: u32,
}

/// What is known of one.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub(super) struct SplitPage {
    /// It went in pieces.
    pub(super) is_split: bool,
    /// The host has been made to give up the huge page.
    pub(super) is_given_up: bool,
    /// How many of its small pages were in memory at the last look, if there was one.
    pub(super) present: Option<u16>,
    /// How often in a row it could not be made of small pages.
    pub(super) failures: u8,
    /// Looks at which that is not tried.
    pub(super) rest: u16,
}

impl SplitPages {
    /// None, of guest memory in huge pages of this size.
    pub(super) fn new(memory: MemoryRange, size: Bytes) -> Self {
        Self { memory, size, pages: Vec::new(), count: 0, left: 0 }
    }

    /// The size of a huge page.
    pub(super) fn size(&self) -> Bytes {
        self.size
    }

    /// Whether there are none.
    pub(super) fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// Adds the one around an address of memory. Whether there were none.
    pub(super) fn insert(&mut self, address: GuestAddress) -> bool {
        let number = ((address.0 - self.memory.base.0) / self.size.get()) as usize;
        if self.pages.len() <= number {
            self.pages.resize(number + 1, SplitPage::default());
        }
        if let Some(page) = self.pages.get_mut(number)
            && !page.is_split
        {
            *page = SplitPage { is_split: true, ..SplitPage::default() };
            self.count += 1;
            return self.count == 1;
        }
        false
    }

    /// Takes out those of a range of whole ones. Returns how many it was.
    pub(super) fn forget(&mut self, range: MemoryRange) -> u64 {
        let before = self.count;
        self.numbers(range).for_each(|number| self.remove(number));
        before - self.count
    }

    /// Takes out those of a range of whole ones that may be mapped anew.
    pub(super) fn take(&mut self, range: MemoryRange) -> Vec<MemoryRange> {
        let mut taken = Vec::new();
        for number in self.numbers(range) {
            if self.get(number).is_some() && self.may_map() {
                self.remove(number);
                taken.push(self.range(number));
            }
        }
        taken
    }

    /// The first from this number on: its number, where it is, and what is known of it.
    pub(super) fn next(&self, from: usize) -> Option<(usize, MemoryRange, SplitPage)> {
        let rest = self.pages.get(from..)?;
        let number = from + rest.iter().position(|page| page.is_split)?;
        self.get(number).map(|page| (number, self.range(number), page))
    }

    fn numbers(&self, range: MemoryRange) -> Range<usize> {
        let first = ((range.base.0 - self.memory.base.0) / self.size.get()) as usize;
        first..first + (range.size.get() / self.size.get()) as usize
    }

    fn range(&self, number: usize) -> MemoryRange {
        let start = GuestAddress(self.memory.base.0 + number as u64 * self.size.get());
        MemoryRange::new(start, self.size)
    }

    fn get(&self, number: usize) -> Option<SplitPage> {
        self.pages.get(number).copied().filter(|page| page.is_split)
    }

    /// Notes what is known of one, if it still is among them.
    pub(super) fn note(&mut self, number: usize, known: SplitPage) {
        if let Some(page) = self.pages.get_mut(number).filter(|page| page.is_split) {
            *page = known;
        }
    }

    /// Takes one out.
    pub(super) fn remove(&mut self, number: usize) {
        if let Some(page) = self.pages.get_mut(number).filter(|page| page.is_split) {
            *page = SplitPage::default();
            self.count -= 1;
        }
    }

    /// Puts one back that was taken out, unless it has gone in pieces since.
    pub(super) fn put_back(&mut self, number: usize, known: SplitPage) {
        if let Some(page) = self.pages.get_mut(number).filter(|page| !page.is_split) {
            *page = known;
            self.count += 1;
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
