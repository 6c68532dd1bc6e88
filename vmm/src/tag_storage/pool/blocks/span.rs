//! The few blocks that have a slot's tags.

use std::ops::Range;

use arch::mte::geometry::{BlockIndex, Geometry, PageIndex};

use crate::tag_storage::pool::units::SlotIndex;

/// A set of a span's blocks: bit 0 is its first.
///
/// A slot's tags take 64 KiB, 16 pages at most, and start at a page: never more than 16 blocks.
pub(crate) type Mask = u32;

/// The blocks of a slot, and how many of its pages refer to each.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Span {
    first: usize,
    len: usize,
    /// References to the first block, to each between, to the last.
    references: [u32; 3],
}

impl Span {
    /// The span of a slot of `slot_pages` pages.
    pub(crate) fn new(geometry: &Geometry, slot_pages: u64, slot: SlotIndex) -> Self {
        let start = u64::from(slot.0) * slot_pages;
        let pages = PageIndex(start)..PageIndex(start + slot_pages);
        let blocks = geometry.blocks_of(pages.clone());
        // A slot has 512 pages at most.
        let references = |block| geometry.references(block, &pages) as u32;
        Self {
            first: blocks.start.0 as usize,
            len: (blocks.end.0 - blocks.start.0) as usize,
            references: [
                references(blocks.start),
                geometry.covered_pages().min(slot_pages) as u32,
                references(BlockIndex(blocks.end.0 - 1)),
            ],
        }
    }

    /// The span of a slot whose `blocks` blocks have no other slot's tags: `covered` pages' each.
    #[inline(always)]
    pub(crate) fn separate(blocks: u32, covered: u32, slot: SlotIndex) -> Self {
        let (first, len) = (slot.0 as usize * blocks as usize, blocks as usize);
        // Written out: code that is to be small makes a loop of an array.
        Self { first, len, references: [covered, covered, covered] }
    }

    pub(crate) fn first(&self) -> usize {
        self.first
    }

    pub(crate) fn len(&self) -> usize {
        self.len
    }

    pub(crate) fn end(&self) -> usize {
        self.first + self.len
    }

    pub(crate) fn range(&self) -> Range<usize> {
        self.first..self.end()
    }

    /// The block at a place of the span.
    pub(crate) fn block(&self, at: usize) -> BlockIndex {
        BlockIndex((self.first + at) as u64)
    }

    /// All its blocks.
    pub(crate) fn blocks(&self) -> Range<BlockIndex> {
        self.block(0)..self.block(self.len)
    }

    /// The blocks of a run of bits.
    pub(crate) fn run(&self, run: &Range<u32>) -> Range<BlockIndex> {
        self.block(run.start as usize)..self.block(run.end as usize)
    }

    /// The part of `blocks` that is in this span.
    pub(crate) fn mask(&self, blocks: &Range<BlockIndex>) -> Mask {
        (0..self.len)
            .filter(|at| blocks.contains(&self.block(*at)))
            .fold(0, |mask, at| mask | 1 << at)
    }

    /// How many of the slot's pages have their tags in the block at a place.
    pub(crate) fn references(&self, at: usize) -> u32 {
        match at {
            0 => self.references[0],
            at if at + 1 == self.len => self.references[2],
            _ => self.references[1],
        }
    }
}

/// The runs of bits that are set, lowest first.
pub(crate) fn runs(mut mask: Mask) -> impl Iterator<Item = Range<u32>> {
    std::iter::from_fn(move || {
        let start = mask.trailing_zeros();
        let length = mask.checked_shr(start)?.trailing_ones();
        let end = start + length;
        mask &= Mask::MAX.checked_shl(end).unwrap_or(0);
        Some(start..end)
    })
}
