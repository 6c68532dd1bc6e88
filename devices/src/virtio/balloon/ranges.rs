//! Ranges of guest memory: clipped to it, and merged into as few as possible.

use vm_memory::GuestAddress;

use crate::ports::GuestRange;

/// One past its last byte. A range that passes the end of the address space ends there.
pub(super) fn end(range: GuestRange) -> u64 {
    range.start.0.saturating_add(range.length)
}

/// The part of `range` that lies in `ram`, if there is one.
pub(super) fn clip(range: GuestRange, ram: GuestRange) -> Option<GuestRange> {
    let start = range.start.0.max(ram.start.0);
    let length = end(range).min(end(ram)).checked_sub(start).filter(|length| *length > 0)?;
    Some(GuestRange { start: GuestAddress(start), length })
}

/// Adds a range that begins no earlier than those before it, into the last one if they touch.
pub(super) fn append(ranges: &mut Vec<GuestRange>, range: GuestRange) {
    match ranges.last_mut() {
        Some(last) if range.start.0 <= end(*last) => {
            last.length = end(*last).max(end(range)) - last.start.0;
        }
        _ => ranges.push(range),
    }
}

/// The same bytes in as few ranges as possible, in ascending order.
pub(super) fn merge(mut ranges: Vec<GuestRange>) -> Vec<GuestRange> {
    ranges.sort_unstable_by_key(|range| range.start);
    let mut merged = Vec::with_capacity(ranges.len());
    ranges.into_iter().for_each(|range| append(&mut merged, range));
    merged
}

/// Bytes in ranges that do not overlap.
pub(super) fn total(ranges: &[GuestRange]) -> u64 {
    ranges.iter().fold(0, |sum, range| sum.saturating_add(range.length))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    fn range(start: u64, length: u64) -> GuestRange {
        GuestRange { start: GuestAddress(start), length }
    }

    #[test]
    fn a_range_that_passes_the_end_of_the_address_space_ends_there() {
        let wrapping = range(u64::MAX - 0xfff, 0x2000);

        assert_eq!(clip(wrapping, range(0, 0x10_0000)), None);
        assert_eq!(
            clip(wrapping, range(u64::MAX - 0x1fff, 0x1800)),
            Some(range(u64::MAX - 0xfff, 0x800))
        );
    }

    #[test]
    fn an_empty_range_is_nowhere() {
        assert_eq!(clip(range(0x1000, 0), range(0, 0x10_0000)), None);
        assert_eq!(clip(range(0x1000, 0x1000), range(0x1800, 0)), None);
    }

    proptest! {
        #[test]
        fn a_clip_has_the_bytes_of_both(a in (0_u64..60, 0_u64..60), b in (0_u64..60, 0_u64..60)) {
            let both = (0..200)
                .filter(|byte| (a.0..a.0 + a.1).contains(byte) && (b.0..b.0 + b.1).contains(byte));

            let clipped = clip(range(a.0, a.1), range(b.0, b.1));

            let bytes: Vec<u64> =
                clipped.map(|range| (range.start.0..end(range)).collect()).unwrap_or_default();
            prop_assert_eq!(bytes, both.collect::<Vec<_>>());
        }

        #[test]
        fn merging_keeps_the_bytes_and_leaves_gaps_between(
            parts in prop::collection::vec((0_u64..200, 1_u64..20), 0..40),
        ) {
            let bytes: BTreeSet<u64> =
                parts.iter().flat_map(|(start, length)| *start..start + length).collect();

            let merged = merge(parts.iter().map(|(start, length)| range(*start, *length)).collect());

            let found: BTreeSet<u64> =
                merged.iter().flat_map(|range| range.start.0..end(*range)).collect();
            prop_assert_eq!(total(&merged), bytes.len() as u64);
            prop_assert_eq!(found, bytes);
            prop_assert!(merged.windows(2).all(|pair| end(pair[0]) < pair[1].start.0));
        }

        #[test]
        fn no_range_is_too_odd(parts in prop::collection::vec((any::<u64>(), any::<u64>()), 0..20)) {
            let parts: Vec<_> =
                parts.into_iter().map(|(start, length)| range(start, length)).collect();
            parts.windows(2).for_each(|pair| { clip(pair[0], pair[1]); });

            let merged = merge(parts);

            total(&merged);
        }
    }
}
