//! Which parts of guest memory a template has.

use std::ops::Range;

use arch::layout::CHUNK;

/// The extents of the chunks that a memory file has anything of, which are in order: offsets in guest memory, apart
/// from one another, no more than `most` and at least one where there is a chunk. To be so few, they take in what lies
/// between them, the smallest gaps first.
///
/// All pages of an extent are in the template's file: a touch of a hole would make it grow.
pub(super) fn extents(chunks: impl Iterator<Item = u64>, most: usize) -> Vec<Range<u64>> {
    let mut extents: Vec<Range<u64>> = Vec::new();
    for chunk in chunks {
        match extents.last_mut() {
            Some(last) if last.end == chunk => last.end += 1,
            _ => extents.push(chunk..chunk + 1),
        }
    }
    let mut gap = 1;
    while extents.len() > most.max(1) {
        extents = merged(&extents, gap);
        gap *= 2;
    }
    let bytes = |chunk: u64| chunk * CHUNK.get();
    extents.into_iter().map(|extent| bytes(extent.start)..bytes(extent.end)).collect()
}

/// The same without gaps of so many chunks or fewer.
fn merged(extents: &[Range<u64>], gap: u64) -> Vec<Range<u64>> {
    let mut fewer: Vec<Range<u64>> = Vec::new();
    for extent in extents {
        match fewer.last_mut() {
            Some(last) if extent.start - last.end <= gap => last.end = extent.end,
            _ => fewer.push(extent.clone()),
        }
    }
    fewer
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn extents_have_all_chunks_and_are_few(chunks: BTreeSet<u16>, most in 1usize..20) {
            let all = extents(chunks.iter().map(|chunk| u64::from(*chunk)), most);
            let exact = extents(chunks.iter().map(|chunk| u64::from(*chunk)), usize::MAX);

            prop_assert!(all.len() <= most);
            prop_assert!(all.windows(2).all(|two| two[0].end < two[1].start));
            for chunk in &chunks {
                let at = u64::from(*chunk) * CHUNK.get();
                prop_assert!(all.iter().any(|extent| extent.contains(&at)));
            }
            let size: u64 = exact.iter().map(|extent| extent.end - extent.start).sum();
            prop_assert_eq!(size, chunks.len() as u64 * CHUNK.get());
            // They begin and end where there is something.
            for extent in &all {
                let is_there = |at: u64| chunks.contains(&((at / CHUNK.get()) as u16));
                prop_assert!(is_there(extent.start) && is_there(extent.end - 1));
            }
        }
    }

    #[test]
    fn small_gaps_go_first() {
        let chunks = [0, 2, 10, 11, 100];
        let of = |most| extents(chunks.into_iter(), most);
        let bytes = |parts: &[Range<u64>]| -> Vec<Range<u64>> {
            parts.iter().map(|part| part.start * CHUNK.get()..part.end * CHUNK.get()).collect()
        };

        assert_eq!(of(4), bytes(&[0..1, 2..3, 10..12, 100..101]));
        assert_eq!(of(3), bytes(&[0..3, 10..12, 100..101]));
        assert_eq!(of(2), bytes(&[0..12, 100..101]));
    }
}
