//! Tag storage that is the memory of a NUMA node without processors.
//!
//! A program cannot choose physical pages. So a block is no particular page of the node but a share of its
//! memory: a reserved block is a block's worth of the node's pages that this process holds, a lent one as
//! much that others have. The pool's states are true of the node as a whole: what is free of it is free in
//! the pool, what others have is lent or pinned, and the rest of it is the kernel's own and no part of the
//! capacity.
//!
//! Others come and go without a word: a borrower's page is given to it by the kernel. So the node is looked
//! at from time to time ([`observe`](Supply::observe)), and whenever something is not as expected.
//!
//! | File | Responsibility |
//! |---|---|
//! | `topology` | the host's nodes, and which will do |
//! | `usage` | how much of the node is free |
//! | `memory` | the pages that are held |
//! | `borrowers`, `process`, `maps` | who is lent memory, and where it is |
//! | `borrower` | one borrower's pages, moved off the node |

mod borrower;
mod borrowers;
mod maps;
mod memory;
mod process;
#[cfg(test)]
mod tests;
mod topology;
mod usage;

use std::collections::BTreeSet;
use std::io;
use std::ops::Range;
use std::sync::{Mutex, MutexGuard, PoisonError, TryLockError};
use std::time::Instant;

use arch::layout::CHUNK;
use arch::mte::geometry::BlockIndex;
use arch::mte::granule::tag_storage_for;
use arch::units::Bytes;
use serde::{Deserialize, Serialize};
use thiserror::Error;

use super::{Observation, Supply, SupplyName, TakeError};
use crate::sys::huge_pages::huge_page_size;
use borrower::{Effort, Route, Stop};
use borrowers::Act;
pub use borrowers::{BorrowerError, BorrowerProcesses, MAX_BORROWERS};
use memory::{HostMemory, Memory};
pub use topology::{Error as TopologyError, Topology};
use usage::{Refresh, Usage};

/// How often one request waits for pages that are free and out of reach. Each time they have come within reach,
/// and others may have been faster.
const WAITS: u32 = 2;

/// Why a node's memory cannot be tag storage.
#[derive(Debug, Error)]
pub enum NodeError {
    /// The node will not do.
    #[error(transparent)]
    Topology(#[from] TopologyError),
    /// How much is free cannot be seen.
    #[error("cannot see how much memory NUMA node {node} has")]
    Usage {
        /// The node.
        node: u32,
        /// The system's reason.
        #[source]
        source: io::Error,
    },
    /// It has less than was asked for.
    #[error(
        "{asked} of tag storage is more than NUMA node {node} can give, {most}: give a smaller --capacity, or auto"
    )]
    Capacity {
        /// The node.
        node: u32,
        /// What was asked for.
        asked: Bytes,
        /// What there is besides the kernel's own.
        most: Bytes,
    },
    /// There is nothing to hold.
    #[error(
        "NUMA node {node} can give {most}, less than one chunk's tags: free memory on it, or use --supply ledger"
    )]
    Nothing {
        /// The node.
        node: u32,
        /// What there is.
        most: Bytes,
    },
    /// This user may not lock memory.
    #[error(
        "{size} of tag storage is more than may be kept in memory: raise the limit on locked memory \
         (ulimit -l, LimitMEMLOCK=), or give the broker CAP_IPC_LOCK"
    )]
    LockLimit {
        /// What was to be locked.
        size: Bytes,
        /// The system's reason.
        #[source]
        source: io::Error,
    },
    /// The pages of the node cannot be held.
    #[error("cannot hold memory of NUMA node {node}: Linux 5.18 or newer is needed")]
    Take {
        /// The node.
        node: u32,
        /// The system's reason.
        #[source]
        source: io::Error,
    },
}

/// Pages of a node that are free.
///
/// # Errors
/// When the host does not tell.
pub(crate) fn free_pages(node: u32) -> io::Result<u64> {
    Usage::read(node, false).map(|usage| usage.free)
}

/// What has happened on a node since it became a supply.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
pub struct NodeReport {
    /// Pages of borrowers that were moved off the node.
    pub moved_pages: u64,
    /// Pages of borrowers that would not move when last tried and are still there.
    pub stuck_pages: u64,
    /// Pages that are held.
    pub held_pages: u64,
    /// Pages that are free and may be had.
    pub free_pages: u64,
}

/// The supply `node:N`.
pub struct Node {
    number: u32,
    memory: Box<dyn Memory>,
    /// All blocks.
    blocks: u64,
    block: Bytes,
    page: u64,
    /// Pages of the node that are no part of the capacity: they are left free.
    floor: u64,
    borrowers: BorrowerProcesses,
    /// Held while blocks are taken or evicted: one at a time, as in the kernel series. Two that take the last
    /// pages would take them from each other.
    work: Mutex<()>,
    /// Held for moments only.
    books: Mutex<Books>,
    /// When figures for reports were last exact.
    refresh: Refresh,
}

#[derive(Debug, Default)]
struct Books {
    /// Blocks that are held.
    held: u64,
    /// Blocks that the pool has for free, or that were evicted and are about to be taken.
    vacant: u64,
    /// Those of them that were evicted: they are lent again unless they are taken.
    evicted: BTreeSet<u64>,
    /// Pages that were moved off the node.
    moved: u64,
    /// Pages that were free and could not be had, and how long that is to be believed.
    unready: Option<(u64, Instant)>,
}

impl Books {
    /// Pages that are free and cannot be had: on the list of a processor, which keeps it for a while.
    fn unready(&self) -> u64 {
        self.unready.filter(|(_, until)| Instant::now() < *until).map_or(0, |(pages, _)| pages)
    }
}

impl Node {
    /// The memory of this node as tag storage in blocks of `block`: `capacity` of it, or all that can be
    /// had. That is what is free and what can move, less what the kernel keeps free for itself; its own
    /// pages are not in it. Nothing is held yet.
    ///
    /// # Errors
    /// When the node will not do, has less than that, or this user may not hold it.
    pub fn new(
        number: u32,
        topology: &Topology,
        capacity: Option<Bytes>,
        block: Bytes,
    ) -> Result<Self, NodeError> {
        let others = topology.others(number)?;
        let usage = Usage::read(number, true)
            .map_err(|source| NodeError::Usage { node: number, source })?;
        let page = rustix::param::page_size() as u64;
        let plan = Plan::new(number, usage, capacity, (block, page))?;
        // Only where no block has more than it needs by it.
        let huge = huge_page_size().is_some_and(|huge| block.get().is_multiple_of(huge.get()));
        let size = plan.capacity;
        let memory = HostMemory::new(number, others, size, huge);
        let memory = memory.map_err(|source| match source.raw_os_error() {
            Some(libc::ENOMEM | libc::EPERM | libc::EAGAIN) => {
                NodeError::LockLimit { size, source }
            }
            _ => NodeError::Take { node: number, source },
        })?;
        Ok(Self::with(number, plan, Box::new(memory)))
    }

    fn with(number: u32, plan: Plan, memory: Box<dyn Memory>) -> Self {
        let Plan { capacity, block, page, floor } = plan;
        let blocks = capacity.get() / block.get();
        let books = Mutex::new(Books { vacant: blocks, ..Books::default() });
        let borrowers = BorrowerProcesses::default();
        let work = Mutex::new(());
        let refresh = Refresh::default();
        Self { number, memory, blocks, block, page, floor, borrowers, work, books, refresh }
    }

    /// What it has for tags.
    pub fn capacity(&self) -> Bytes {
        Bytes::new(self.blocks * self.block.get())
    }

    /// The processes that may have memory of it. One that is not in this list and has some is in the way.
    pub fn borrowers(&self) -> BorrowerProcesses {
        self.borrowers.clone()
    }

    /// What has happened so far.
    pub fn report(&self) -> NodeReport {
        let exact = self.refresh.is_due(Instant::now());
        let free = self.memory.usage(exact).map_or(0, |usage| usage.free);
        let stuck_pages = self.stuck_pages();
        let books = self.books();
        NodeReport {
            moved_pages: books.moved,
            stuck_pages,
            held_pages: books.held * self.block_pages(),
            free_pages: free.saturating_sub(self.floor),
        }
    }

    fn work(&self) -> MutexGuard<'_, ()> {
        self.work.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn books(&self) -> MutexGuard<'_, Books> {
        self.books.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn block_pages(&self) -> u64 {
        (self.block.get() / self.page).max(1)
    }

    fn stuck_pages(&self) -> u64 {
        self.borrowers.stuck()
    }

    fn part(&self, blocks: &Range<BlockIndex>) -> Range<Bytes> {
        let bytes = |block: BlockIndex| Bytes::new(block.0.saturating_mul(self.block.get()));
        bytes(blocks.start)..bytes(blocks.end)
    }

    /// Pages that have to leave so that this many more blocks can be had, when so many that are free cannot.
    fn lacking(&self, blocks: u64, unready: u64) -> io::Result<u64> {
        let free = self.memory.usage(false)?.free;
        let wanted = (self.books().vacant + blocks) * self.block_pages() + self.floor + unready;
        // What others take from what is left free is not evicted for one who wants these blocks.
        Ok(wanted.saturating_sub(free).min(blocks * self.block_pages()))
    }

    /// Moves pages of borrowers off the node. Returns how many have gone, which are counted.
    ///
    /// # Errors
    /// When not as many as are wanted have gone, and others might.
    fn move_off(&self, wanted: u64) -> Result<u64, TakeError> {
        let refuges = self.memory.refuges();
        let route = Route { from: self.number, to: &refuges, page: self.page };
        let (mut moved, mut effort) = (0, Effort::new());
        let mut failure = None;
        self.borrowers.each(|borrower| {
            let mut keep = true;
            match borrower.move_off(route, wanted, &mut moved, &mut effort) {
                Ok(()) => {}
                Err(Stop::Gone) => keep = false,
                Err(Stop::Full(error)) => {
                    let text = "no other NUMA node has room for what is in these blocks";
                    failure.get_or_insert(io::Error::new(error.kind(), text));
                }
                Err(Stop::Refused(error)) => {
                    failure.get_or_insert(error);
                }
            }
            // The next eviction begins with others.
            let begin_behind = effort.is_spent();
            Act { keep, enough: moved >= wanted || begin_behind, begin_behind }
        });
        self.books().moved += moved;
        match failure {
            _ if moved >= wanted => Ok(moved),
            Some(error) => Err(TakeError::Host(error)),
            None if effort.is_spent() => Err(TakeError::Busy),
            None => Ok(moved),
        }
    }
}

impl Supply for Node {
    fn name(&self) -> SupplyName {
        SupplyName::Node(self.number)
    }

    fn take(&self, blocks: Range<BlockIndex>) -> Result<(), TakeError> {
        let part = self.part(&blocks);
        let pages = (blocks.end.0 - blocks.start.0) * self.block_pages();
        let mut waits = WAITS;
        let mut alone = self.work();
        let taken = loop {
            match self.memory.take(&part) {
                Ok(false) if waits > 0 => {
                    waits -= 1;
                    drop(alone);
                    let again = self.memory.wait(pages);
                    alone = self.work();
                    if !matches!(again, Ok(true)) {
                        break again;
                    }
                }
                taken => break taken,
            }
        };
        self.count_take(&blocks, taken).map_err(TakeError::Host)?.ok_or(TakeError::Busy)
    }

    fn release(&self, blocks: Range<BlockIndex>) {
        let count = blocks.end.0.saturating_sub(blocks.start.0);
        // It was tried when the node was opened. Were it to fail, the pages are still held, and the next
        // look at the node finds them in use.
        let mut books = self.books();
        let _ = self.memory.release(&self.part(&blocks));
        books.held = books.held.saturating_sub(count);
        books.vacant += count;
    }

    fn evict(&self, blocks: Range<BlockIndex>) -> Result<(), TakeError> {
        let count = blocks.end.0.saturating_sub(blocks.start.0);
        let _alone = self.work();
        let unready = self.books().unready();
        let wanted = self.lacking(count, unready).map_err(TakeError::Host)?;
        let moved = match wanted {
            0 => 0,
            wanted => self.move_off(wanted)?,
        };
        // A borrower that has ended, or freed memory by itself, has helped as well. And where no borrower is left
        // to help, what was out of reach may be within it by now.
        let short = match moved < wanted {
            true => self.lacking(count, 0).map_err(TakeError::Host)?.min(wanted - moved),
            false => 0,
        };
        if short > 0 {
            let pinned = short.div_ceil(self.block_pages()).min(count);
            return Err(TakeError::Pinned(BlockIndex(blocks.end.0 - pinned)..blocks.end));
        }
        let mut books = self.books();
        let before = books.evicted.len();
        books.evicted.extend(blocks.start.0..blocks.end.0);
        // Those of an eviction before this one that were not taken are counted already.
        books.vacant += (books.evicted.len() - before) as u64;
        Ok(())
    }

    fn observe(&self) -> Option<Observation> {
        self.look(&self.work(), true)
    }

    fn observe_at_once(&self) -> Option<Observation> {
        match self.work.try_lock() {
            Ok(alone) => self.look(&alone, self.refresh.is_due(Instant::now())),
            Err(TryLockError::Poisoned(alone)) => {
                self.look(&alone.into_inner(), self.refresh.is_due(Instant::now()))
            }
            Err(TryLockError::WouldBlock) => None,
        }
    }

    fn forget_pinned(&self) {
        self.borrowers.forget_stuck();
    }

    fn is_instant(&self) -> bool {
        false
    }
}

impl Node {
    /// Counts what came of taking these blocks: nothing when the node did not have them.
    fn count_take(
        &self,
        blocks: &Range<BlockIndex>,
        taken: io::Result<bool>,
    ) -> io::Result<Option<()>> {
        let count = blocks.end.0 - blocks.start.0;
        let mut books = self.books();
        let mut evicted = 0;
        for block in blocks.start.0..blocks.end.0 {
            evicted += u64::from(books.evicted.remove(&block));
        }
        match taken {
            Ok(true) => {
                books.held += count;
                books.vacant = books.vacant.saturating_sub(count);
                Ok(Some(()))
            }
            Ok(false) => {
                books.vacant = books.vacant.saturating_sub(count);
                drop(books);
                // What is free now cannot be had: only what leaves the node from now on can.
                let free = self.memory.usage(false)?.free;
                let unready = free.saturating_sub(self.floor);
                self.books().unready = Some((unready, Instant::now() + self.memory.patience()));
                Ok(None)
            }
            Err(error) => {
                // The pool has those that were evicted as lent again, the others as free.
                books.vacant = books.vacant.saturating_sub(evicted);
                Err(error)
            }
        }
    }

    /// How the node is now. Nothing is half taken or half moved.
    fn look(&self, _alone: &MutexGuard<'_, ()>, exact: bool) -> Option<Observation> {
        let all = Act { keep: true, enough: false, begin_behind: false };
        self.borrowers.each(|borrower| {
            borrower.review_stuck(self.number);
            all
        });
        let stuck = self.stuck_pages();
        let free = self.memory.usage(exact).ok()?.free;
        let mut books = self.books();
        let free = free.saturating_sub(self.floor).saturating_sub(books.unready());
        let untaken = self.blocks.saturating_sub(books.held);
        let vacant = (free / self.block_pages()).min(untaken);
        let pinned = (stuck / self.block_pages()).min(untaken - vacant);
        books.vacant = vacant;
        Some(Observation { free: vacant, pinned })
    }
}

/// How a node's memory is divided.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Plan {
    capacity: Bytes,
    block: Bytes,
    page: u64,
    /// Pages that are left free.
    floor: u64,
}

impl Plan {
    fn new(
        node: u32,
        usage: Usage,
        asked: Option<Bytes>,
        (block, page): (Bytes, u64),
    ) -> Result<Self, NodeError> {
        // What is in use by programs and files can be moved off the node. Not so what the kernel has for
        // itself: 14 of 116 MiB of a node of the lab.
        let all = usage.free.saturating_add(usage.movable);
        let room = all.saturating_sub(usage.spared(page)).saturating_mul(page);
        let unit = tag_storage_for(CHUNK).get().max(block.get());
        let most = Bytes::new(room / unit * unit);
        if most.is_zero() {
            return Err(NodeError::Nothing { node, most: Bytes::new(room) });
        }
        let capacity = match asked {
            Some(asked) if asked > most => return Err(NodeError::Capacity { node, asked, most }),
            Some(asked) => Bytes::new(asked.get() / block.get() * block.get()),
            None => most,
        };
        if capacity.is_zero() {
            return Err(NodeError::Nothing { node, most: capacity });
        }
        Ok(Self { capacity, block, page, floor: all.saturating_sub(most.get() / page) })
    }
}
