//! Pages of a chunk.

use std::ops::Range;

/// The most pages of a chunk: of 4 KiB.
const MOST: usize = 512;
const BITS: usize = u64::BITS as usize;

/// A set of pages of one chunk, counted from its start.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct PageSet([u64; MOST / BITS]);

impl PageSet {
    /// No page.
    pub const EMPTY: Self = Self([0; MOST / BITS]);

    /// These pages. Those beyond a chunk are left out.
    pub fn of(pages: Range<usize>) -> Self {
        let mut set = Self::EMPTY;
        set.insert_range(pages);
        set
    }

    /// The pages of a chunk that are set in a bitmap of all pages of memory: `count` pages from
    /// `first` on.
    pub fn of_bits(bitmap: &[u64], first: usize, count: usize) -> Self {
        let word =
            |at: usize| bitmap.get(first / BITS + at).copied().unwrap_or(0) >> (first % BITS);
        // A chunk has whole words, or lies within one.
        Self(std::array::from_fn(|at| match count.saturating_sub(at * BITS) {
            0 => 0,
            left if left < BITS => word(at) & ((1 << left) - 1),
            _ => word(at),
        }))
    }

    /// Adds a page. One beyond a chunk is left out.
    pub fn insert(&mut self, page: usize) {
        if let Some(word) = self.0.get_mut(page / BITS) {
            *word |= 1 << (page % BITS);
        }
    }

    /// Adds pages.
    pub fn insert_range(&mut self, pages: Range<usize>) {
        pages.for_each(|page| self.insert(page));
    }

    /// Takes a page out.
    pub fn remove(&mut self, page: usize) {
        if let Some(word) = self.0.get_mut(page / BITS) {
            *word &= !(1 << (page % BITS));
        }
    }

    /// The pages that are in both.
    #[must_use]
    pub fn intersection(&self, other: &Self) -> Self {
        Self(std::array::from_fn(|word| self.0[word] & other.0[word]))
    }

    /// The pages that are not in the other.
    #[must_use]
    pub fn difference(&self, other: &Self) -> Self {
        Self(std::array::from_fn(|word| self.0[word] & !other.0[word]))
    }

    /// Whether it has a page.
    pub fn contains(&self, page: usize) -> bool {
        self.0.get(page / BITS).is_some_and(|word| word >> (page % BITS) & 1 == 1)
    }

    /// How many pages it has.
    pub fn len(&self) -> usize {
        self.0.iter().map(|word| word.count_ones() as usize).sum()
    }

    /// Whether it has none.
    pub fn is_empty(&self) -> bool {
        *self == Self::EMPTY
    }

    /// Its pages that are next to each other, as ranges in order.
    pub fn runs(&self) -> impl Iterator<Item = Range<usize>> + '_ {
        let mut at = 0;
        std::iter::from_fn(move || {
            let start = self.next(at, true)?;
            let end = self.next(start, false).unwrap_or(MOST);
            at = end;
            Some(start..end)
        })
    }

    /// The first page from here on that is in it, or is not.
    fn next(&self, from: usize, inside: bool) -> Option<usize> {
        let mut at = from;
        while at < MOST {
            let word = self.0[at / BITS];
            let word = if inside { word } else { !word } >> (at % BITS);
            if word != 0 {
                return Some(at + word.trailing_zeros() as usize);
            }
            at = (at / BITS + 1) * BITS;
        }
        None
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a_set_is_one(pages: BTreeSet<u16>, removed: BTreeSet<u16>) {
            let small = |pages: &BTreeSet<u16>| -> BTreeSet<usize> {
                pages.iter().map(|page| usize::from(page % 520)).collect()
            };
            let (pages, removed) = (small(&pages), small(&removed));
            let set_of = |pages: &BTreeSet<usize>| {
                let mut set = PageSet::EMPTY;
                pages.iter().for_each(|page| set.insert(*page));
                set
            };
            let (all, others) = (set_of(&pages), set_of(&removed));
            let mut set = all;
            removed.iter().for_each(|page| set.remove(*page));
            prop_assert_eq!(all.difference(&others), set);
            prop_assert_eq!(all.difference(&set), all.intersection(&others));

            let expected: Vec<usize> =
                pages.difference(&removed).copied().filter(|page| *page < MOST).collect();

            prop_assert_eq!(set.len(), expected.len());
            prop_assert_eq!(set.is_empty(), expected.is_empty());
            prop_assert!((0..MOST + 9).all(|page| set.contains(page) == expected.contains(&page)));
            prop_assert_eq!(set.runs().flatten().collect::<Vec<_>>(), expected);
            let ends: Vec<_> = set.runs().map(|run| run.end).collect();
            prop_assert!(set.runs().skip(1).zip(ends).all(|(run, end)| run.start > end));
        }
    }

    #[test]
    fn a_chunk_is_a_piece_of_a_bitmap() {
        let bitmap: Vec<u64> =
            (0..24).map(|word: u64| word.wrapping_mul(0x9e37_79b9_7f4a_7c15)).collect();
        let is_set =
            |page: usize| bitmap.get(page / 64).is_some_and(|word| word >> (page % 64) & 1 == 1);
        for pages in [512, 128, 32] {
            for chunk in 0..5 {
                let set = PageSet::of_bits(&bitmap, chunk * pages, pages);
                let expected: Vec<_> =
                    (0..pages).filter(|page| is_set(chunk * pages + page)).collect();
                assert_eq!(set.runs().flatten().collect::<Vec<_>>(), expected, "{pages} {chunk}");
            }
        }
    }

    #[test]
    fn a_whole_chunk_is_one_run() {
        assert_eq!(PageSet::of(0..600).runs().collect::<Vec<_>>(), vec![0..512]);
    }
}
