//! One host: the pool that the broker runs, a node of tag storage that exists in figures alone, and VMs that take and give
//! memory.
//!
//! Pages are of 4 KiB. The host has ordinary memory and the node. VMs with MTE live in ordinary memory, and have a slot of the
//! pool for each chunk; borrowers live where the policy puts them, and move when tags need the room.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use arch::layout::CHUNK;
use arch::mte::geometry::BlockIndex;
use vmm::tag_storage::{
    Bytes, FreeError, Geometry, LeaseId, LeaseTerms, LendPolicy, Observation, Pool, PoolError,
    PoolReport, ReserveError, SlotIndex, Supply, SupplyName, TakeError,
};

const PAGE: Bytes = Bytes::kib(4);
/// Pages of a chunk.
const CHUNK_PAGES: u64 = CHUNK.get() / PAGE.get();
/// The node's number: it stands for any.
const NODE: u32 = 1;

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

/// The node: pages of it that hold tags and that others have borrowed, and pages of ordinary memory in use. One thread
/// uses it; the pool wants to share it.
#[derive(Debug)]
struct Node {
    pages: u64,
    block_pages: u64,
    ordinary: u64,
    taken: AtomicU64,
    borrowed: AtomicU64,
    used: AtomicU64,
}

impl Node {
    fn get(of: &AtomicU64) -> u64 {
        of.load(Ordering::Relaxed)
    }

    fn add(of: &AtomicU64, pages: u64) {
        of.fetch_add(pages, Ordering::Relaxed);
    }

    fn sub(of: &AtomicU64, pages: u64) {
        of.fetch_sub(pages, Ordering::Relaxed);
    }

    fn free(&self) -> u64 {
        self.pages - Self::get(&self.taken) - Self::get(&self.borrowed)
    }

    fn ordinary_free(&self) -> u64 {
        self.ordinary - Self::get(&self.used)
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
        let lacking = self.pages_of(&blocks).saturating_sub(self.free());
        if lacking > Self::get(&self.borrowed).min(self.ordinary_free()) {
            return Err(TakeError::Busy);
        }
        Self::sub(&self.borrowed, lacking);
        Self::add(&self.used, lacking);
        Ok(())
    }

    fn observe(&self) -> Option<Observation> {
        Some(Observation { free: self.free() / self.block_pages, pinned: 0 })
    }

    fn is_instant(&self) -> bool {
        true
    }
}

/// What a VM has.
#[derive(Debug)]
pub enum Memory {
    /// With MTE: a slot for each chunk.
    Tagged {
        /// Its hold on the pool.
        lease: LeaseId,
        /// One a chunk.
        slots: Vec<SlotIndex>,
    },
    /// Without, in pages.
    Borrower(u64),
}

/// A host.
pub struct Host {
    pool: Pool,
    node: Arc<Node>,
    policy: LendPolicy,
    /// Pages of all borrowers, wherever they are.
    borrowers: u64,
    /// Chunks of all VMs with MTE.
    tagged: u64,
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

impl Host {
    /// A host without VMs.
    ///
    /// # Errors
    /// When there is no such pool.
    pub fn new(spec: HostSpec) -> Result<Self, HostError> {
        let geometry = Geometry::new(PAGE, spec.block)?;
        let pages = |size: Bytes| size.get() / PAGE.get();
        let node = Arc::new(Node {
            pages: geometry.blocks_in(spec.tags) * pages(geometry.block()),
            block_pages: pages(geometry.block()),
            ordinary: pages(spec.ordinary),
            taken: AtomicU64::new(0),
            borrowed: AtomicU64::new(0),
            used: AtomicU64::new(0),
        });
        let pool = Pool::new(geometry, spec.tags, Box::new(Arc::clone(&node)))?;
        Ok(Self { pool, node, policy: spec.policy, borrowers: 0, tagged: 0 })
    }

    /// Starts a VM, which has nothing yet.
    ///
    /// # Errors
    /// When there are too many.
    pub fn start(&self, has_mte: bool) -> Result<Memory, HostError> {
        if !has_mte {
            return Ok(Memory::Borrower(0));
        }
        let terms = LeaseTerms { name: "vm".to_owned(), min: Bytes::ZERO, max: Bytes::MAX };
        Ok(Memory::Tagged { lease: self.pool.open_lease(terms)?, slots: Vec::new() })
    }

    /// Gives a VM chunks, as it touches them, or takes them back, until it has so many. Returns how many pages it lacks: for
    /// want of memory, or of tag storage.
    ///
    /// # Errors
    /// When the pool does not know what it gave.
    pub fn resize(&mut self, memory: &mut Memory, chunks: u64) -> Result<u64, HostError> {
        match memory {
            Memory::Borrower(pages) => {
                let wanted = chunks * CHUNK_PAGES;
                let given = wanted.saturating_sub(*pages);
                let had = self.borrow(given);
                let back = pages.saturating_sub(wanted);
                self.give_back(back);
                *pages = *pages + had - back;
                Ok(given - had)
            }
            Memory::Tagged { lease, slots } => {
                self.follow();
                while slots.len() as u64 > chunks {
                    // The last one touched goes first.
                    let Some(slot) = slots.pop() else { break };
                    self.pool.free(*lease, slot)?;
                    Node::sub(&self.node.used, CHUNK_PAGES);
                    self.tagged -= 1;
                }
                while (slots.len() as u64) < chunks && self.node.ordinary_free() >= CHUNK_PAGES {
                    // Memory that tags push out of the node may need what this chunk does.
                    Node::add(&self.node.used, CHUNK_PAGES);
                    match self.pool.reserve(*lease) {
                        Ok(slot) => slots.push(slot),
                        Err(error) => {
                            Node::sub(&self.node.used, CHUNK_PAGES);
                            if !error.is_lack() {
                                return Err(error.into());
                            }
                            break;
                        }
                    }
                    self.tagged += 1;
                }
                Ok((chunks - slots.len() as u64) * CHUNK_PAGES)
            }
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
            Memory::Tagged { lease, slots } => {
                self.pool.close_lease(lease)?;
                Node::sub(&self.node.used, slots.len() as u64 * CHUNK_PAGES);
                self.tagged -= slots.len() as u64;
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
            LendPolicy::Balanced => balanced(pages, node, ordinary),
        };
        let elsewhere = (pages - on_node).min(ordinary);
        Node::add(&self.node.borrowed, on_node);
        Node::add(&self.node.used, elsewhere);
        self.borrowers += on_node + elsewhere;
        on_node + elsewhere
    }

    /// Takes pages back from borrowers. Which of them are on the node is not kept for each: its part of all is taken.
    fn give_back(&mut self, pages: u64) {
        if pages == 0 {
            return;
        }
        let borrowed = Node::get(&self.node.borrowed);
        let part = u128::from(borrowed) * u128::from(pages) / u128::from(self.borrowers);
        // A part of what is borrowed; what is left of the borrowers' memory is enough for the rest of it.
        let on_node = part as u64;
        Node::sub(&self.node.borrowed, on_node);
        Node::sub(&self.node.used, pages - on_node);
        self.borrowers -= pages;
    }

    /// The host now.
    pub fn level(&self) -> Level {
        Level {
            reserved: Node::get(&self.node.taken),
            tags: self.tagged * CHUNK_PAGES / arch::mte::granule::MEMORY_PER_TAG_STORAGE,
            lent: Node::get(&self.node.borrowed),
            used: Node::get(&self.node.used),
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
            (blocks.lent * size >= level.lent, "more is borrowed than the pool has lent"),
            (level.reserved >= level.tags, "chunks are without tag storage"),
            (level.reserved + level.lent <= self.node.pages, "the node has more than its size"),
            (
                level.used + level.lent == self.tagged * CHUNK_PAGES + self.borrowers,
                "the memory of the VMs is not the memory in use",
            ),
            (level.used <= self.node.ordinary, "more memory is in use than there is"),
        ];
        match is_whole.iter().find(|(holds, _)| !holds) {
            Some((_, what)) => Err(HostError::Books(what)),
            None => Ok(report),
        }
    }
}

/// Pages for the node of a request: those for which more than half of what is free is there.
fn balanced(pages: u64, node: u64, ordinary: u64) -> u64 {
    let first = node.abs_diff(ordinary).min(pages);
    // From here on both have as much free, and each gets every other page.
    let rest = (pages - first) / 2;
    let fair = if node > ordinary { first + rest } else { rest };
    // What one has no room for is for the other.
    fair.max(pages.saturating_sub(ordinary)).min(node)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// 16 chunks of ordinary memory, and as much tag storage as that needs twice over: 256 pages.
    fn host(policy: LendPolicy, block: Bytes) -> Host {
        let (ordinary, tags) = (Bytes::mib(32), Bytes::mib(2));
        Host::new(HostSpec { ordinary, tags, block, policy }).unwrap()
    }

    /// Worked out by hand: a chunk is 512 pages, its tags are 16; the node has 512 pages, other memory 8192.
    #[test]
    fn two_vms_on_a_small_host() {
        let mut host = host(LendPolicy::Eager, PAGE);
        let mut borrower = host.start(false).unwrap();
        let mut owner = host.start(true).unwrap();

        // 1024 pages: the node's 512 first, 512 of other memory.
        assert_eq!(host.resize(&mut borrower, 2).unwrap(), 0);
        assert_eq!(host.level(), Level { lent: 512, used: 512, ..Level::default() });
        // Three chunks: 1536 pages, and 48 pages of tags for which 48 borrowed ones move.
        assert_eq!(host.resize(&mut owner, 3).unwrap(), 0);
        let level = Level { reserved: 48, tags: 48, lent: 464, used: 512 + 48 + 1536 };
        assert_eq!(host.level(), level);
        assert_eq!(host.check().unwrap().counters.evictions, 48);
        // One chunk goes: 16 pages of the node lie idle.
        assert_eq!(host.resize(&mut owner, 2).unwrap(), 0);
        assert_eq!(
            host.level(),
            Level { reserved: 32, tags: 32, lent: 464, used: 512 + 48 + 1024 }
        );
        // Half of the borrower's memory goes, and half of what it has on the node.
        assert_eq!(host.resize(&mut borrower, 1).unwrap(), 0);
        assert_eq!(host.level(), Level { reserved: 32, tags: 32, lent: 232, used: 280 + 1024 });
        host.check().unwrap();
        host.end(owner).unwrap();
        host.end(borrower).unwrap();
        let report = host.check().unwrap();
        assert_eq!(host.level(), Level::default());
        assert_eq!(report.blocks.free, 512);
        assert_eq!(report.counters.evictions, 48);
    }

    #[test]
    fn policies_choose_as_they_are_described() {
        for (policy, small, large) in [
            (LendPolicy::Never, 0, 0),
            (LendPolicy::LastResort, 0, 288),
            (LendPolicy::Balanced, 0, 288),
            (LendPolicy::Eager, 512, 272),
        ] {
            let mut host = host(policy, PAGE);
            let mut borrower = host.start(false).unwrap();
            host.resize(&mut borrower, 1).unwrap();
            assert_eq!(host.level().lent, small, "{policy}");
            // Of other memory a chunk is left free. The tags of the rest take 224 pages, or 240 under `eager`.
            let mut filler = host.start(true).unwrap();
            let free = host.node.ordinary_free() / CHUNK_PAGES;
            host.resize(&mut filler, free - 1).unwrap();
            // More than there is.
            host.resize(&mut borrower, 3).unwrap();
            host.check().unwrap();
            assert_eq!(host.level().lent, large, "{policy}");
        }
        assert_eq!(balanced(10, 50, 60), 0);
        assert_eq!(balanced(100, 50, 60), 45);
        assert_eq!(balanced(100, 0, 60), 0);
        assert_eq!(balanced(100, 160, 60), 100);
        assert_eq!(balanced(100, 80, 60), 60);
    }

    #[test]
    fn a_vm_for_which_there_is_no_tag_storage_lacks_it() {
        let spec = HostSpec {
            ordinary: Bytes::mib(32),
            tags: Bytes::kib(128),
            block: PAGE,
            policy: LendPolicy::Never,
        };
        let mut host = Host::new(spec).unwrap();
        let mut vm = host.start(true).unwrap();

        assert_eq!(host.resize(&mut vm, 5).unwrap(), 3 * CHUNK_PAGES);
        assert_eq!(host.check().unwrap().counters.metadata_reserve_fail, 1);
    }

    proptest! {
        #[test]
        fn nothing_is_lost_and_the_end_of_all_gives_all_back(
            policy in proptest::sample::select(LendPolicy::ALL.to_vec()),
            block in proptest::sample::select(vec![4u64, 16, 64, 128, 256]),
            steps in proptest::collection::vec((0usize..5, 0u64..20), 1..60),
        ) {
            let mut host = host(policy, Bytes::kib(block));
            let mut vms = (0..5).map(|at| host.start(at % 2 == 0).unwrap()).collect::<Vec<_>>();
            for (vm, chunks) in steps {
                if chunks == 0 {
                    let new = host.start(vm % 2 == 0).unwrap();
                    host.end(std::mem::replace(&mut vms[vm], new)).unwrap();
                } else {
                    host.resize(&mut vms[vm], chunks).unwrap();
                }
                host.check().unwrap();
            }
            vms.into_iter().for_each(|vm| host.end(vm).unwrap());
            let report = host.check().unwrap();
            prop_assert_eq!(host.level(), Level::default());
            prop_assert_eq!(report.blocks.free, report.blocks.total);
            let counters = report.counters;
            prop_assert_eq!(counters.metadata_reserve_success, counters.metadata_reserve_free);
        }
    }
}
