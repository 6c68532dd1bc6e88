//! A node of tag storage that exists in figures alone, and the ordinary memory beside it.

use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};

use arch::mte::geometry::BlockIndex;
use vmm::tag_storage::{Observation, Supply, SupplyName, TakeError};

/// The node's number: it stands for any.
const NODE: u32 = 1;

/// The node: pages of it that hold tags and that others have borrowed, and pages of ordinary memory in use. All of it is
/// pages of 4 KiB. One thread uses it; the pool wants to share it.
#[derive(Debug)]
pub struct Node {
    /// Of the pool.
    pub pages: u64,
    /// Of the node and not of the pool: borrowers may have them, and tags not.
    pub beyond: u64,
    /// Of a block.
    pub block_pages: u64,
    /// Of memory that is not tag storage.
    pub ordinary: u64,
    taken: AtomicU64,
    borrowed: AtomicU64,
    used: AtomicU64,
}

impl Node {
    /// A node of which nothing is in use.
    pub fn new((pages, beyond): (u64, u64), block_pages: u64, ordinary: u64) -> Self {
        let [taken, borrowed, used] = [0; 3].map(AtomicU64::new);
        Self { pages, beyond, block_pages, ordinary, taken, borrowed, used }
    }

    fn get(of: &AtomicU64) -> u64 {
        of.load(Ordering::Relaxed)
    }

    fn add(of: &AtomicU64, pages: u64) {
        of.fetch_add(pages, Ordering::Relaxed);
    }

    fn sub(of: &AtomicU64, pages: u64) {
        of.fetch_sub(pages, Ordering::Relaxed);
    }

    /// Of the node, with tags.
    pub fn taken(&self) -> u64 {
        Self::get(&self.taken)
    }

    /// Of the node, with memory of borrowers.
    pub fn borrowed(&self) -> u64 {
        Self::get(&self.borrowed)
    }

    /// Of ordinary memory, in use.
    pub fn used(&self) -> u64 {
        Self::get(&self.used)
    }

    /// Of the node, for borrowers.
    pub fn free(&self) -> u64 {
        self.pages + self.beyond - self.taken() - self.borrowed()
    }

    /// Of ordinary memory.
    pub fn ordinary_free(&self) -> u64 {
        self.ordinary - self.used()
    }

    /// Borrowers have so many more.
    pub fn lend(&self, on_node: u64, elsewhere: u64) {
        Self::add(&self.borrowed, on_node);
        self.fill(elsewhere);
    }

    /// Borrowers have so many less.
    pub fn unlend(&self, on_node: u64, elsewhere: u64) {
        Self::sub(&self.borrowed, on_node);
        self.empty(elsewhere);
    }

    /// So much more ordinary memory is in use.
    pub fn fill(&self, pages: u64) {
        Self::add(&self.used, pages);
    }

    /// So much less ordinary memory is in use.
    pub fn empty(&self, pages: u64) {
        Self::sub(&self.used, pages);
    }

    fn pages_of(&self, blocks: &Range<BlockIndex>) -> u64 {
        (blocks.end.0 - blocks.start.0) * self.block_pages
    }
}

impl Supply for Node {
    fn name(&self) -> SupplyName {
        SupplyName::Node(NODE)
    }

    fn take(&self, blocks: Range<BlockIndex>) -> Result<(), TakeError> {
        let pages = self.pages_of(&blocks);
        if pages > self.free() {
            return Err(TakeError::Busy);
        }
        Self::add(&self.taken, pages);
        Ok(())
    }

    fn release(&self, blocks: Range<BlockIndex>) {
        Self::sub(&self.taken, self.pages_of(&blocks));
    }

    /// What is lent is a share of the node and no page in particular: only what is lacking moves, as with a node that is real.
    fn evict(&self, blocks: Range<BlockIndex>) -> Result<(), TakeError> {
        let pages = self.pages_of(&blocks);
        let lacking = (pages + self.beyond).saturating_sub(self.free()).min(pages);
        if lacking > self.borrowed().min(self.ordinary_free()) {
            return Err(TakeError::Busy);
        }
        Self::sub(&self.borrowed, lacking);
        self.fill(lacking);
        Ok(())
    }

    fn observe(&self) -> Option<Observation> {
        let free = self.free().saturating_sub(self.beyond) / self.block_pages;
        Some(Observation { free, pinned: 0 })
    }

    fn is_instant(&self) -> bool {
        true
    }
}
