//! Pages of the balloon that are to be given back with the rest of their huge page.
//!
//! A driver lists single pages, and a huge page of the host comes in several lists. Given back list by list, it is split
//! first, and the host gets it page by page. In one piece it costs the host a tenth. So the pages of a huge page that
//! is not complete wait, for as long as the driver is about to list more, and only where they stay in the balloon until
//! the device has answered their deflation.

use vm_memory::GuestAddress;

use super::ranges;
use crate::ports::GuestRange;

/// Huge pages of which pages wait, at most: a driver takes its pages from a few blocks of free memory at a time, and
/// what waits is not given back yet.
const MOST: usize = 4;

/// The pages that wait.
#[derive(Debug, Default)]
pub(super) struct Gathered {
    /// The huge pages, the one whose pages came last behind.
    parts: Vec<Part>,
}

/// Pages of one huge page.
#[derive(Debug)]
struct Part {
    /// The huge page's number.
    number: u64,
    pages: Vec<GuestRange>,
}

impl Gathered {
    /// Adds pages, in ascending order, of huge pages of this size, and returns what is to be given back: the pages of
    /// huge pages that are complete, and of those that have waited longest where there are too many.
    pub(super) fn add(
        &mut self,
        pages: &[GuestRange],
        complete: &[GuestRange],
        huge: u64,
    ) -> Vec<GuestRange> {
        let mut due = Vec::new();
        for piece in pages.iter().flat_map(|range| pieces(*range, huge)) {
            let mut part = self.part(piece.start.0 / huge);
            part.pages.push(piece);
            match is_in(piece.start, complete) {
                true => due.append(&mut part.pages),
                false => self.parts.push(part),
            }
            if self.parts.len() > MOST {
                due.append(&mut self.parts.remove(0).pages);
            }
        }
        ranges::merge(due)
    }

    /// Takes the part of a huge page out, or begins one.
    fn part(&mut self, number: u64) -> Part {
        match self.parts.iter().position(|part| part.number == number) {
            Some(index) => self.parts.remove(index),
            None => Part { number, pages: Vec::new() },
        }
    }

    /// Whether no page waits.
    pub(super) fn is_empty(&self) -> bool {
        self.parts.is_empty()
    }

    /// Takes all pages that wait, in as few ranges as possible.
    pub(super) fn take(&mut self) -> Vec<GuestRange> {
        ranges::merge(self.parts.drain(..).flat_map(|part| part.pages).collect())
    }
}

/// Whether an address is in ranges that are in ascending order.
fn is_in(address: GuestAddress, sorted: &[GuestRange]) -> bool {
    let behind = sorted.partition_point(|range| range.start <= address);
    sorted[..behind].last().is_some_and(|range| address.0 < ranges::end(*range))
}

/// The parts of a range in each huge page.
fn pieces(range: GuestRange, huge: u64) -> impl Iterator<Item = GuestRange> {
    let end = ranges::end(range);
    let mut start = range.start.0;
    std::iter::from_fn(move || {
        let next = (start / huge + 1).saturating_mul(huge).min(end);
        let piece = GuestRange { start: GuestAddress(start), length: next.saturating_sub(start) };
        start = next;
        (piece.length > 0).then_some(piece)
    })
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    const HUGE: u64 = 16;

    fn range(start: u64, length: u64) -> GuestRange {
        GuestRange { start: GuestAddress(start), length }
    }

    #[test]
    fn a_huge_page_goes_in_one_piece_once_it_is_complete() {
        let mut gathered = Gathered::default();

        let first = gathered.add(&[range(16, 6), range(30, 6)], &[], HUGE);
        let last = gathered.add(&[range(22, 8)], &[range(16, 16)], HUGE);

        assert_eq!((first, last), (vec![], vec![range(16, 16)]));
        assert_eq!(gathered.take(), [range(32, 4)]);
        assert_eq!(gathered.take(), []);
    }

    #[test]
    fn what_came_last_waits_where_there_is_too_much() {
        let mut gathered = Gathered::default();
        let most = MOST as u64;

        let none =
            gathered.add(&(0..most).map(|n| range(n * HUGE, 1)).collect::<Vec<_>>(), &[], HUGE);
        let again = gathered.add(&[range(8, 1)], &[], HUGE);
        let second = gathered.add(&[range(most * HUGE, 1)], &[], HUGE);

        assert_eq!((none, again, second), (vec![], vec![], vec![range(HUGE, 1)]));
    }

    #[test]
    fn a_range_at_the_end_of_the_address_space_is_cut_there() {
        let last = range(u64::MAX - 20, 40);

        let pieces: Vec<_> = pieces(last, HUGE).collect();

        assert_eq!(ranges::total(&pieces), 20);
    }

    proptest! {
        #[test]
        fn every_page_is_given_back_once(
            lists in prop::collection::vec(prop::collection::btree_set(0_u64..200, 1..40), 1..10),
        ) {
            let mut gathered = Gathered::default();
            let mut all = BTreeSet::new();
            let mut given = Vec::new();
            for list in lists {
                let new: Vec<u64> = list.difference(&all).copied().collect();
                all.extend(new.iter().copied());
                let complete: Vec<_> = (0..200 / HUGE)
                    .filter(|n| (n * HUGE..(n + 1) * HUGE).all(|page| all.contains(&page)))
                    .map(|n| range(n * HUGE, HUGE))
                    .collect();
                let mut pages = Vec::new();
                new.iter().for_each(|page| ranges::append(&mut pages, range(*page, 1)));

                let due = gathered.add(&pages, &complete, HUGE);

                given.extend(due.iter().flat_map(|range| range.start.0..ranges::end(*range)));
                prop_assert!(gathered.parts.len() <= MOST);
            }
            let left = gathered.take();
            given.extend(left.iter().flat_map(|range| range.start.0..ranges::end(*range)));
            given.sort_unstable();
            prop_assert_eq!(given, all.into_iter().collect::<Vec<_>>());
        }
    }
}
