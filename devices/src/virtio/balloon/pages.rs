//! The pages in the balloon, and when they make a page of the host.
//!
//! A driver names pages of 4 KiB, whatever its own pages are (5.5.6). The host may have larger ones,
//! of 16 or 64 KiB, or of 2 MiB and more behind hugetlbfs: such a page can be given back once all of
//! it is in the balloon, and that is when its last 4 KiB arrive. By then the driver may have taken other
//! parts back and written to them: unless it has promised to wait for an answer, only a page of the
//! host that comes in one list can be given back.
//!
//! The same promise makes it known when all of a huge page is in the balloon, although its pages went one by one.

use std::ops::Range;

use serde::{Deserialize, Serialize};
use vm_memory::GuestAddress;

use super::ranges;
use crate::ports::GuestRange;
use crate::state::{RestoreError, check};

/// Size of the pages that a driver names, in bytes.
pub(super) const PAGE: u64 = 1 << PAGE_SHIFT;
const PAGE_SHIFT: u32 = 12;
/// Bits in a word of the map, as a power of two.
const WORD_SHIFT: u32 = u64::BITS.ilog2();

/// The number of a page: its guest-physical address divided by 4 KiB. It is the driver's, and may be
/// any.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub(super) struct Pfn(pub(super) u32);

/// How long the device may change a page after its inflation (5.5.6.2).
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Held {
    /// Until the list that brought it is answered.
    UntilAnswered,
    /// Until its deflation is answered: MUST_TELL_HOST is acknowledged.
    UntilDeflated,
}

/// What came of a list of pages.
#[derive(Debug, Default, Eq, PartialEq)]
pub(super) struct Change {
    /// Bytes that are in the balloon now and were not before, or the other way round.
    pub(super) changed: u64,
    /// Bytes named outside guest memory.
    pub(super) outside: u64,
    /// Pages of the host that are in the balloon with all of their bytes now and were not before, and
    /// that may be changed: as few ranges as possible, in ascending order.
    pub(super) whole: Vec<GuestRange>,
    /// Huge pages of the host that are in the balloon with all of their bytes now and were not before, and stay until
    /// they are deflated: ranges as above.
    pub(super) huge: Vec<GuestRange>,
}

/// The pages in the balloon, as they are saved: as runs, or as the map where that may be shorter. So no guest makes them
/// longer than a bit for each page of its memory.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub(super) enum Saved {
    /// In ascending order, with a gap between each two.
    Runs(Vec<Run>),
    /// A bit for each page, in words as the set has them.
    Map(Vec<[u8; 8]>),
}

impl Saved {
    /// Whether there are none.
    pub(super) fn is_empty(&self) -> bool {
        match self {
            Self::Runs(runs) => runs.is_empty(),
            Self::Map(map) => map.iter().all(|word| *word == [0; 8]),
        }
    }
}

/// Pages in the balloon that follow each other.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub(super) struct Run {
    /// The number of the first page.
    pub(super) first: u32,
    /// How many pages: all of the 2^32 are possible.
    pub(super) count: u64,
}

/// The most bytes that a run takes: 7 bits of a number in each (postcard's varint).
const LONGEST_RUN: usize = 5 + 5;

/// A set of guest pages: a bit for each page of guest memory, 32 KiB a GiB of it. There is no map
/// before the first page.
#[derive(Debug)]
pub(super) struct Pages {
    /// The pages of guest memory.
    ram: Range<u64>,
    /// The page of the first bit: where the host's page begins in which guest memory does, so that
    /// the bits of a page of the host lie side by side.
    base: u64,
    /// Pages in a page of the host, as a power of two.
    order: u32,
    /// The same of a huge page, if the host has them.
    huge_order: Option<u32>,
    map: Vec<u64>,
    count: u64,
}

impl Pages {
    /// The empty set, for guest memory at `ram` in pages of the host of `page_size` bytes, and in huge ones.
    pub(super) fn new(ram: GuestRange, page_size: u64, huge_page_size: Option<u64>) -> Self {
        let order = order_of(page_size);
        let huge_order = huge_page_size.map(order_of).filter(|huge| *huge > order);
        let first = ram.start.0.div_ceil(PAGE);
        // Page numbers have 32 bits: none reaches the memory beyond 16 TiB.
        let last = (ranges::end(ram) >> PAGE_SHIFT).min(1 << u32::BITS).max(first);
        let aligned = huge_order.unwrap_or(order);
        let base = first >> aligned << aligned;
        Self { ram: first..last, base, order, huge_order, map: Vec::new(), count: 0 }
    }

    /// Bytes in the set.
    pub(super) fn bytes(&self) -> u64 {
        self.count * PAGE
    }

    /// Takes all pages out.
    pub(super) fn clear(&mut self) {
        self.map = Vec::new();
        self.count = 0;
    }

    /// The pages, as they are saved.
    pub(super) fn save(&self) -> Saved {
        match self.runs(size_of_val(self.map.as_slice()) / LONGEST_RUN) {
            Some(runs) => Saved::Runs(runs),
            None => Saved::Map(self.map.iter().map(|word| word.to_le_bytes()).collect()),
        }
    }

    /// The pages as runs, if there are not more of them than this.
    fn runs(&self, most: usize) -> Option<Vec<Run>> {
        let mut runs: Vec<Run> = Vec::new();
        for (index, word) in self.map.iter().enumerate() {
            let mut rest = *word;
            while rest != 0 {
                let bit = u64::from(rest.trailing_zeros());
                rest &= rest - 1;
                // A set bit is a page of guest memory, whose number has 32 bits.
                let page = (self.base + ((index as u64) << WORD_SHIFT) + bit) as u32;
                let count = runs.len();
                match runs.last_mut() {
                    Some(last) if u64::from(last.first) + last.count == u64::from(page) => {
                        last.count += 1;
                    }
                    _ if count == most => return None,
                    _ => runs.push(Run { first: page, count: 1 }),
                }
            }
        }
        Some(runs)
    }

    /// Replaces the set by one that was saved. An error leaves it as it is.
    pub(super) fn restore(&mut self, saved: &Saved) -> Result<(), RestoreError> {
        match saved {
            Saved::Runs(runs) => self.restore_runs(runs),
            Saved::Map(map) => self.restore_map(map),
        }
    }

    fn restore_runs(&mut self, runs: &[Run]) -> Result<(), RestoreError> {
        let mut end = None;
        for run in runs {
            let first = u64::from(run.first);
            let last = first.saturating_add(run.count);
            check(run.count > 0, "a run of pages in the balloon", "is empty")?;
            check(
                end.is_none_or(|end| end < first),
                "a run of pages in the balloon",
                "is not behind the one before it",
            )?;
            if first < self.ram.start || last > self.ram.end {
                let problem = "is not in guest memory";
                return Err(RestoreError::configuration("a run of pages in the balloon", problem));
            }
            end = Some(last);
        }
        self.clear();
        for run in runs {
            let first = u64::from(run.first) - self.base;
            for bit in first..first + run.count {
                self.set(bit);
            }
        }
        Ok(())
    }

    fn restore_map(&mut self, map: &[[u8; 8]]) -> Result<(), RestoreError> {
        const FIELD: &str = "the map of pages in the balloon";
        if map.len() != self.words() {
            return Err(RestoreError::configuration(FIELD, "is not of all guest memory"));
        }
        let map: Vec<_> = map.iter().map(|word| u64::from_le_bytes(*word)).collect();
        let is_set = |bit: u64| map.get(word(bit)).is_some_and(|word| word & mask(bit) != 0);
        let before = 0..self.ram.start - self.base;
        let behind = self.ram.end - self.base..(map.len() as u64) << WORD_SHIFT;
        if before.chain(behind).any(is_set) {
            return Err(RestoreError::configuration(FIELD, "has more than guest memory"));
        }
        self.count = map.iter().map(|word| u64::from(word.count_ones())).sum();
        self.map = map;
        Ok(())
    }

    /// Puts a list of pages in. It is sorted on the way; some pages may be in it twice, or be in the
    /// balloon already.
    pub(super) fn insert(&mut self, pfns: &mut [Pfn], held: Held) -> Change {
        pfns.sort_unstable();
        let order = self.order;
        let host_page = |pfn: &Pfn| u64::from(pfn.0) >> order;
        let mut change = Change::default();
        let mut added = Vec::new();
        for pages in pfns.chunk_by(|a, b| host_page(a) == host_page(b)) {
            let before = change.changed;
            for pfn in pages {
                match self.bit(*pfn) {
                    None => change.outside += PAGE,
                    Some(bit) if self.set(bit) => change.changed += PAGE,
                    Some(_) => {}
                }
            }
            if change.changed > before {
                added.extend(pages.first());
            }
            let may_change = held == Held::UntilDeflated || distinct(pages) == 1 << self.order;
            let Some(pfn) = pages.first().filter(|_| may_change && change.changed > before) else {
                continue;
            };
            if let Some(bit) = self.bit(*pfn).filter(|bit| self.is_whole(*bit, order)) {
                ranges::append(&mut change.whole, self.unit(bit, order));
            }
        }
        if held == Held::UntilDeflated {
            change.huge = self.whole_huge_pages(&added);
        }
        change
    }

    /// The huge pages that are in with all of their bytes, of those that a sorted list has pages of.
    fn whole_huge_pages(&self, pfns: &[Pfn]) -> Vec<GuestRange> {
        let mut whole = Vec::new();
        let Some(order) = self.huge_order else { return whole };
        for pages in pfns.chunk_by(|a, b| a.0 >> order == b.0 >> order) {
            let first = pages.first().and_then(|pfn| self.bit(*pfn));
            if let Some(bit) = first.filter(|bit| self.is_whole(*bit, order)) {
                ranges::append(&mut whole, self.unit(bit, order));
            }
        }
        whole
    }

    /// Takes pages out, those that are in.
    pub(super) fn remove(&mut self, pfns: &[Pfn]) -> Change {
        let mut change = Change::default();
        for pfn in pfns {
            match self.bit(*pfn) {
                None => change.outside += PAGE,
                Some(bit) if self.unset(bit) => change.changed += PAGE,
                Some(_) => {}
            }
        }
        change
    }

    /// Where the page's bit is, if it is a page of guest memory.
    fn bit(&self, pfn: Pfn) -> Option<u64> {
        let pfn = u64::from(pfn.0);
        self.ram.contains(&pfn).then(|| pfn - self.base)
    }

    fn set(&mut self, bit: u64) -> bool {
        if self.map.is_empty() {
            self.map = vec![0; self.words()];
        }
        let Some(word) = self.map.get_mut(word(bit)) else { return false };
        let new = *word & mask(bit) == 0;
        *word |= mask(bit);
        self.count += u64::from(new);
        new
    }

    /// How long the map is.
    fn words(&self) -> usize {
        let words = (self.ram.end - self.base).div_ceil(u64::from(u64::BITS));
        usize::try_from(words).unwrap_or(0)
    }

    fn unset(&mut self, bit: u64) -> bool {
        let Some(word) = self.map.get_mut(word(bit)) else { return false };
        let old = *word & mask(bit) != 0;
        *word &= !mask(bit);
        self.count -= u64::from(old);
        old
    }

    /// Whether all of the host's page of this order around a bit is in. A page of the host that guest memory has
    /// only a part of never is.
    fn is_whole(&self, bit: u64, order: u32) -> bool {
        let first = bit >> order << order;
        let words = word(first)..=word(first + (1 << order) - 1);
        let all = match order < WORD_SHIFT {
            true => ((1 << (1_u64 << order)) - 1) << (first % u64::from(u64::BITS)),
            false => u64::MAX,
        };
        self.map.get(words).is_some_and(|words| words.iter().all(|word| word & all == all))
    }

    /// The host's page of this order around a bit.
    fn unit(&self, bit: u64, order: u32) -> GuestRange {
        let first = self.base + (bit >> order << order);
        GuestRange { start: GuestAddress(first << PAGE_SHIFT), length: PAGE << order }
    }
}

/// Pages of 4 KiB in a page of this size, as a power of two.
fn order_of(size: u64) -> u32 {
    size.max(PAGE).ilog2() - PAGE_SHIFT
}

/// Pages in a sorted list, each once.
fn distinct(pages: &[Pfn]) -> u64 {
    pages.chunk_by(|a, b| a == b).count() as u64
}

fn word(bit: u64) -> usize {
    // A map has no more than 2^26 words, for 2^32 pages.
    usize::try_from(bit >> WORD_SHIFT).unwrap_or(usize::MAX)
}

fn mask(bit: u64) -> u64 {
    1 << (bit % u64::from(u64::BITS))
}

#[cfg(test)]
mod tests;
