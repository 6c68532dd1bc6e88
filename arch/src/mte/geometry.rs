//! Which blocks of tag storage hold the tags of which pages.
//!
//! A page of tags covers 32 pages of memory. Tag storage is reserved in blocks: the least common
//! multiple of the page size and of the hardware's `block-size`, for a tag that is written back with
//! its neighbours must not hit memory that serves as something else.
//!
//! Pages and blocks are counted from the start of the memory that is covered, so that the same
//! arithmetic serves a region of the device tree and a pool that only counts.
//!
//! # References
//! Linux mail, "Add support for arm64 MTE dynamic tag storage reuse"
//! (`arch/arm64/kernel/mte_tag_storage.c`: get_block_size_pages, tag_storage_find_block_in_region)

use std::fmt;
use std::ops::Range;

use thiserror::Error;

use super::granule::MEMORY_PER_TAG_STORAGE;
use crate::units::Bytes;

/// The page sizes of arm64.
const PAGE_SIZES: [Bytes; 3] = [Bytes::kib(4), Bytes::kib(16), Bytes::kib(64)];

/// Why there is no such geometry.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
pub enum Error {
    /// Not a page size of arm64.
    #[error("{0} is no page size of arm64: it is 4, 16 or 64 KiB")]
    PageSize(Bytes),
    /// A block of no bytes.
    #[error("a tag storage block of no bytes: block-size must be at least 1")]
    EmptyBlock,
    /// The block is larger than any tag storage.
    #[error("a tag storage block of {block} beside pages of {page} is larger than any tag storage")]
    HugeBlock {
        /// `block-size`.
        block: Bytes,
        /// The page size.
        page: Bytes,
    },
}

/// The index of a page of covered memory, counted from its start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PageIndex(pub u64);

/// The index of a block of tag storage, counted from its start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct BlockIndex(pub u64);

impl fmt::Display for BlockIndex {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "block {}", self.0)
    }
}

/// The sizes that everything else follows from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Geometry {
    page: Bytes,
    block_pages: u32,
}

impl Geometry {
    /// The geometry of a host with pages of `page` whose tag storage has a `block-size` of `block`.
    ///
    /// # Errors
    /// When arm64 has no such pages, or the block is empty or beyond all measure.
    pub fn new(page: Bytes, block: Bytes) -> Result<Self, Error> {
        if !PAGE_SIZES.contains(&page) {
            return Err(Error::PageSize(page));
        }
        if block.is_zero() {
            return Err(Error::EmptyBlock);
        }
        // lcm(page, block) / page = block / gcd(page, block).
        let block_pages = u32::try_from(block.get() / gcd(page.get(), block.get()))
            .map_err(|_| Error::HugeBlock { block, page })?;
        Ok(Self { page, block_pages })
    }

    /// The page size.
    pub const fn page(&self) -> Bytes {
        self.page
    }

    /// Pages of tag storage in one block: 1 to 2^32 - 1.
    pub const fn block_pages(&self) -> u32 {
        self.block_pages
    }

    /// The size of a block.
    pub const fn block(&self) -> Bytes {
        // At most 2^32 pages of 2^16 bytes.
        Bytes::new(self.page.get() * self.block_pages as u64)
    }

    /// Pages of memory whose tags are in one block; as many can refer to it.
    pub const fn covered_pages(&self) -> u64 {
        MEMORY_PER_TAG_STORAGE * self.block_pages as u64
    }

    /// The block with the tags of a page.
    pub const fn block_of(&self, page: PageIndex) -> BlockIndex {
        BlockIndex(page.0 / self.covered_pages())
    }

    /// The blocks with the tags of these pages.
    pub fn blocks_of(&self, pages: Range<PageIndex>) -> Range<BlockIndex> {
        let first = self.block_of(pages.start);
        if pages.start >= pages.end {
            return first..first;
        }
        let last = self.block_of(PageIndex(pages.end.0 - 1));
        first..BlockIndex(last.0 + 1)
    }

    /// How many of these pages have their tags in a block: the references they hold on it.
    pub fn references(&self, block: BlockIndex, pages: &Range<PageIndex>) -> u64 {
        let covered = self.covered_pages();
        // A block beyond 2^64 pages covers none that has an index.
        let Some(start) = block.0.checked_mul(covered) else { return 0 };
        let end = start.saturating_add(covered);
        pages.end.0.min(end).saturating_sub(pages.start.0.max(start))
    }

    /// How many whole blocks `size` of tag storage has.
    pub const fn blocks_in(&self, size: Bytes) -> u64 {
        size.get() / self.block().get()
    }
}

fn gcd(mut a: u64, mut b: u64) -> u64 {
    while b != 0 {
        (a, b) = (b, a % b);
    }
    a
}

#[cfg(test)]
mod tests;
