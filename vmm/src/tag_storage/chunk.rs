//! Chunks of guest memory: the unit in which tag storage is reserved.

use std::fmt;
use std::ops::Range;

use arch::layout::CHUNK;
use arch::range::MemoryRange;

/// A chunk of guest memory, counted from the start of its RAM.
#[derive(Clone, Copy, Debug, Default, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct ChunkIndex(pub u64);

impl fmt::Display for ChunkIndex {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "chunk {}", self.0)
    }
}

/// The chunks that a range of guest memory covers from end to end, and those that it covers in part.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct Covered {
    /// From end to end.
    pub(crate) whole: Range<ChunkIndex>,
    /// In part: the one in which the range begins, and the one in which it ends if that is another.
    pub(crate) partly: [Option<ChunkIndex>; 2],
}

impl Covered {
    /// What `range` covers of the chunks of `ram`. Nothing if it does not lie in it.
    pub(crate) fn by(range: MemoryRange, ram: MemoryRange) -> Self {
        let chunk = CHUNK.get();
        if range.size.is_zero() || !ram.encloses(&range) {
            return Self { whole: ChunkIndex(0)..ChunkIndex(0), partly: [None, None] };
        }
        let start = range.base.0 - ram.base.0;
        let end = range.end().0 - ram.base.0;
        let (first, last) = (start.div_ceil(chunk), end / chunk);
        let in_part = |at: u64| (!at.is_multiple_of(chunk)).then_some(ChunkIndex(at / chunk));
        let (begins, ends) = (in_part(start), in_part(end));
        Self {
            whole: ChunkIndex(first)..ChunkIndex(last.max(first)),
            partly: [begins, ends.filter(|chunk| begins != Some(*chunk))],
        }
    }
}

/// The chunks of a range, one by one.
pub(crate) fn each(chunks: &Range<ChunkIndex>) -> impl Iterator<Item = ChunkIndex> + use<> {
    (chunks.start.0..chunks.end.0).map(ChunkIndex)
}

/// The range of one chunk.
pub(crate) fn one(chunk: ChunkIndex) -> Range<ChunkIndex> {
    chunk..ChunkIndex(chunk.0.saturating_add(1))
}

#[cfg(test)]
mod tests;
