//! One host: the pool that the broker runs, a node of tag storage that exists in figures alone, and VMs that take and give
//! memory.
//!
//! Pages are of 4 KiB. The host has ordinary memory and the node. VMs with MTE live in ordinary memory, and have a slot of the
//! pool for each chunk; borrowers live where the policy puts them, and move when tags need the room.

mod waiting;

use std::sync::Arc;
use std::time::Instant;

use arch::layout::CHUNK;
use arch::mte::granule::MEMORY_PER_TAG_STORAGE;
use vmm::tag_storage::{
    Bytes, FreeError, Geometry, LeaseId, LeaseTerms, LendPolicy, Pool, PoolError, PoolReport,
    ReserveError, SlotIndex,
};

use super::node::Node;

/// A page.
pub const PAGE: Bytes = Bytes::kib(4);
/// Pages of a chunk.
pub const CHUNK_PAGES: u64 = CHUNK.get() / PAGE.get();

/// What a host is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HostSpec {
    /// Memory that is not tag storage.
    pub ordinary: Bytes,
    /// Tag storage: whole blocks.
    pub tags: Bytes,
    /// A block.
    pub block: Bytes,
    /// How tag storage is lent.
    pub policy: LendPolicy,
    /// What a kernel does with the memory of its own.
    pub kernel: Kernel,
}

/// What a host's kernel does beside what the pool knows. By default nothing, which is no loss where memory is large.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Kernel {
    /// Of the node and not of the pool: borrowers may have it.
    pub beyond: Bytes,
    /// Of ordinary memory, free and for no VM; beside `ordinary`.
    pub kept_ordinary: Bytes,
    /// The same of the node.
    pub kept_node: Bytes,
    /// When a borrower under `balanced` looks where free memory is.
    pub looks: Looks,
}

/// When a borrower under `balanced` looks where free memory is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Looks {
    /// All the time: what it takes between two looks is little beside the host.
    #[default]
    Always,
    /// Before it takes memory, and not while it does: it takes it faster than it looks.
    BeforeRequests,
}

/// Why a host does not do what its VMs ask. All but the first are faults of the program.
#[derive(Debug, thiserror::Error)]
pub enum HostError {
    /// There is no such pool.
    #[error("this host has no pool")]
    Pool(#[from] PoolError),
    /// There is no such block.
    #[error("this host has no blocks")]
    Geometry(#[from] arch::mte::geometry::Error),
    /// The pool has no room for another lease.
    #[error("a VM has no lease")]
    Lease(#[from] ReserveError),
    /// The pool does not know what it gave.
    #[error("a VM gives back what it does not hold")]
    Free(#[from] FreeError),
    /// Something was lost.
    #[error("the books of a host do not add up: {0}")]
    Books(&'static str),
}

/// What a VM has.
#[derive(Debug)]
pub enum Memory {
    /// With MTE: a slot for each chunk.
    Tagged(Tagged),
    /// Without, in pages.
    Borrower(u64),
}

/// What a VM with MTE has.
#[derive(Debug)]
pub struct Tagged {
    /// Its hold on the pool.
    lease: LeaseId,
    /// One a chunk.
    slots: Vec<SlotIndex>,
    /// Chunks that it waits for.
    waits: u64,
}

/// What a VM wants and does not have.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Lack {
    /// Pages, for want of memory or, where the policy lends, of blocks that can be emptied.
    pub pages: u64,
    /// Chunks, for want of a slot of the pool: the VM waits for them.
    pub chunks: u64,
}

/// A host.
pub struct Host {
    pool: Pool,
    node: Arc<Node>,
    policy: LendPolicy,
    kernel: Kernel,
    /// Pages of all borrowers, wherever they are.
    borrowers: u64,
    /// Pages of ordinary memory that the host has in use itself.
    own: u64,
    /// Chunks of all VMs with MTE.
    tagged: u64,
    /// Chunks that the pool has tags for.
    slots: u64,
    /// Open leases.
    leases: u64,
    /// The moment at which all happens, for the pool.
    now: Instant,
}

/// A host at one moment, in pages of 4 KiB.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Level {
    /// Of blocks that are reserved.
    pub reserved: u64,
    /// Of tags that chunks need.
    pub tags: u64,
    /// Of the node that borrowers are in.
    pub lent: u64,
    /// Of ordinary memory in use.
    pub used: u64,
}

/// Pages of so much memory.
pub(super) fn pages(size: Bytes) -> u64 {
    size.get() / PAGE.get()
}

impl Host {
    /// A host without VMs.
    ///
    /// # Errors
    /// When there is no such pool.
    pub fn new(spec: HostSpec) -> Result<Self, HostError> {
        let HostSpec { ordinary, tags, block, policy, kernel } = spec;
        let geometry = Geometry::new(PAGE, block)?;
        let block_pages = pages(geometry.block());
        let of_pool = geometry.blocks_in(tags) * block_pages;
        let node = Node::new((of_pool, pages(kernel.beyond)), block_pages, pages(ordinary));
        let node = Arc::new(node);
        let pool = Pool::new(geometry, tags, Box::new(Arc::clone(&node)))?;
        let slots = pool.snapshot().chunks.total.into();
        let (borrowers, own, tagged, leases, now) = (0, 0, 0, 0, Instant::now());
        Ok(Self { pool, node, policy, kernel, borrowers, own, tagged, slots, leases, now })
    }

    /// Starts a VM, which has nothing yet.
    ///
    /// # Errors
    /// When there are too many.
    pub fn start(&mut self, has_mte: bool) -> Result<Memory, HostError> {
        if !has_mte {
            return Ok(Memory::Borrower(0));
        }
        let terms = LeaseTerms { name: "vm".to_owned(), min: Bytes::ZERO, max: Bytes::MAX };
        let lease = self.pool.open_lease(terms)?;
        self.leases += 1;
        Ok(Memory::Tagged(Tagged { lease, slots: Vec::new(), waits: 0 }))
    }

    /// Gives a VM chunks, as it touches them, or takes them back, until it has so many. Returns what it lacks.
    ///
    /// # Errors
    /// When the pool does not know what it gave.
    pub fn resize(&mut self, memory: &mut Memory, chunks: u64) -> Result<Lack, HostError> {
        match memory {
            Memory::Borrower(had) => {
                let wanted = chunks * CHUNK_PAGES;
                let lacking = match wanted.checked_sub(*had) {
                    Some(more) => more - self.borrow(more),
                    None => {
                        self.give_back(*had - wanted);
                        0
                    }
                };
                *had = wanted - lacking;
                Ok(Lack { pages: lacking, chunks: 0 })
            }
            Memory::Tagged(tagged) => {
                self.follow();
                self.shrink(tagged, chunks)?;
                self.grow(tagged, chunks)
            }
        }
    }

    /// Gives a VM so many pages of the node and of ordinary memory, which are free, whatever the policy: what it has had
    /// before. Nothing for a VM with MTE.
    pub fn settle(&mut self, memory: &mut Memory, on_node: u64, elsewhere: u64) {
        if let Memory::Borrower(pages) = memory {
            *pages += on_node + elsewhere;
            self.lodge(on_node, elsewhere);
        }
    }

    /// Gives a borrower up to so many pages more, by the policy. Nothing for a VM with MTE.
    pub fn touch(&mut self, memory: &mut Memory, wanted: u64) {
        if let Memory::Borrower(pages) = memory {
            *pages += self.borrow(wanted);
        }
    }

    /// The host has so many pages of ordinary memory in use itself, which are free or were its own before.
    pub fn hold(&mut self, pages: u64) {
        self.node.empty(self.own);
        self.node.fill(pages);
        self.own = pages;
    }

    /// Pages that the kernel shows as free: outside the node, and on it.
    pub fn free(&self) -> (u64, u64) {
        let Kernel { kept_ordinary, kept_node, .. } = self.kernel;
        (self.node.ordinary_free() + pages(kept_ordinary), self.node.free() + pages(kept_node))
    }

    /// Frees what is beyond so many chunks.
    fn shrink(&mut self, tagged: &mut Tagged, chunks: u64) -> Result<(), HostError> {
        while tagged.slots.len() as u64 > chunks {
            // The last one touched goes first.
            let Some(slot) = tagged.slots.pop() else { break };
            self.pool.free(tagged.lease, slot)?;
            self.node.empty(CHUNK_PAGES);
            self.tagged -= 1;
        }
        Ok(())
    }

    /// Reserves up to so many chunks.
    fn grow(&mut self, tagged: &mut Tagged, chunks: u64) -> Result<Lack, HostError> {
        let missing = |tagged: &Tagged| chunks - tagged.slots.len() as u64;
        while missing(tagged) > 0 && self.node.ordinary_free() >= CHUNK_PAGES {
            if self.reserve(tagged, 1)? {
                continue;
            }
            // A policy that lends leaves the pool what it has: its blocks are there, and cannot be emptied.
            if self.policy == LendPolicy::Never {
                return Ok(self.wait(tagged, missing(tagged)));
            }
            break;
        }
        self.wait(tagged, 0);
        Ok(Lack { pages: missing(tagged) * CHUNK_PAGES, chunks: 0 })
    }

    /// Reserves so many chunks, or none. Returns whether tag storage was there.
    fn reserve(&mut self, tagged: &mut Tagged, chunks: u32) -> Result<bool, HostError> {
        let size = u64::from(chunks) * CHUNK_PAGES;
        // Memory that tags push out of the node may need what this chunk does.
        self.node.fill(size);
        let had = match chunks {
            1 => self.pool.reserve(tagged.lease).map(|slot| tagged.slots.push(slot)),
            _ => {
                self.pool.reserve_many(tagged.lease, chunks).map(|slots| tagged.slots.extend(slots))
            }
        };
        match had {
            Ok(()) => {
                self.tagged += u64::from(chunks);
                Ok(true)
            }
            Err(error) if error.is_lack() => {
                self.node.empty(size);
                Ok(false)
            }
            Err(error) => Err(error.into()),
        }
    }

    /// Ends a VM, which gives all back.
    ///
    /// # Errors
    /// When the pool does not know it.
    pub fn end(&mut self, memory: Memory) -> Result<(), HostError> {
        match memory {
            Memory::Borrower(pages) => {
                self.give_back(pages);
            }
            Memory::Tagged(Tagged { lease, slots, .. }) => {
                self.pool.close_lease(lease)?;
                self.node.empty(slots.len() as u64 * CHUNK_PAGES);
                self.tagged -= slots.len() as u64;
                self.leases -= 1;
            }
        }
        Ok(())
    }

    /// Lets the pool see what borrowers have done, as the broker does once a second.
    fn follow(&self) {
        if self.policy != LendPolicy::Never {
            self.pool.follow();
        }
    }

    /// Gives borrowers up to so many pages, by the policy.
    fn borrow(&mut self, pages: u64) -> u64 {
        let (node, ordinary) = (self.node.free(), self.node.ordinary_free());
        let on_node = match self.policy {
            LendPolicy::Never => 0,
            LendPolicy::LastResort => pages.saturating_sub(ordinary).min(node),
            LendPolicy::Eager => pages.min(node),
            LendPolicy::Balanced => self.kernel.balanced(pages, node, ordinary),
        };
        let elsewhere = (pages - on_node).min(ordinary);
        self.lodge(on_node, elsewhere);
        on_node + elsewhere
    }

    /// Borrowers have so many pages more, which are free.
    fn lodge(&mut self, on_node: u64, elsewhere: u64) {
        self.node.lend(on_node, elsewhere);
        self.borrowers += on_node + elsewhere;
    }

    /// Takes pages back from borrowers. Which of them are on the node is not kept for each: its part of all is taken.
    fn give_back(&mut self, pages: u64) {
        if pages == 0 {
            return;
        }
        let borrowed = self.node.borrowed();
        let part = u128::from(borrowed) * u128::from(pages) / u128::from(self.borrowers);
        // A part of what is borrowed; what is left of the borrowers' memory is enough for the rest of it.
        let on_node = part as u64;
        self.node.unlend(on_node, pages - on_node);
        self.borrowers -= pages;
    }

    /// The host now.
    pub fn level(&self) -> Level {
        Level {
            reserved: self.node.taken(),
            tags: self.tagged * CHUNK_PAGES / MEMORY_PER_TAG_STORAGE,
            lent: self.node.borrowed(),
            used: self.node.used(),
        }
    }

    /// The pool's own books.
    pub fn report(&self) -> PoolReport {
        self.follow();
        self.pool.snapshot()
    }

    /// Looks whether anything was lost: what is reserved, lent and free is the pool, and the memory of all VMs is the memory in
    /// use. Returns the pool's books.
    ///
    /// # Errors
    /// When they do not add up.
    pub fn check(&self) -> Result<PoolReport, HostError> {
        let report = self.report();
        let (blocks, level, size) = (report.blocks, self.level(), self.node.block_pages);
        let under_way =
            blocks.reserving + blocks.releasing + blocks.evicting + blocks.pinned + blocks.disabled;
        let all = blocks.free + blocks.reserved + blocks.lent + under_way;
        let node = self.node.pages + self.node.beyond;
        let is_whole = [
            (all == blocks.total, "blocks are missing"),
            (blocks.reserving + blocks.releasing + blocks.evicting == 0, "calls do not end"),
            (
                blocks.reserved * size == level.reserved,
                "the pool and the node differ in what is reserved",
            ),
            (
                u64::from(report.chunks.reserved) == self.tagged,
                "the pool and the VMs differ in chunks",
            ),
            (
                blocks.lent * size + self.node.beyond >= level.lent,
                "more is borrowed than the pool has lent",
            ),
            (level.reserved >= level.tags, "chunks are without tag storage"),
            (level.reserved + level.lent <= node, "the node has more than its size"),
            (
                level.used + level.lent == self.tagged * CHUNK_PAGES + self.borrowers + self.own,
                "the memory of VMs and host is not the memory in use",
            ),
            (level.used <= self.node.ordinary, "more memory is in use than there is"),
        ];
        match is_whole.iter().find(|(holds, _)| !holds) {
            Some((_, what)) => Err(HostError::Books(what)),
            None => Ok(report),
        }
    }
}

impl Kernel {
    /// Pages for the node of a request under `balanced`, when so many are free there and elsewhere.
    fn balanced(&self, wanted: u64, node: u64, ordinary: u64) -> u64 {
        let (here, elsewhere) =
            (node + pages(self.kept_node), ordinary + pages(self.kept_ordinary));
        let fair = match self.looks {
            Looks::Always => fair(wanted, here, elsewhere),
            Looks::BeforeRequests if here > elsewhere => wanted,
            Looks::BeforeRequests => 0,
        };
        // What one has no room for is for the other.
        fair.max(wanted.saturating_sub(ordinary)).min(node)
    }
}

/// Pages for the node of a request: those for which more than half of what is free is there.
fn fair(wanted: u64, node: u64, ordinary: u64) -> u64 {
    let first = node.abs_diff(ordinary).min(wanted);
    // From here on both have as much free, and each gets every other page.
    let rest = (wanted - first) / 2;
    if node > ordinary { first + rest } else { rest }
}

#[cfg(test)]
mod tests;
