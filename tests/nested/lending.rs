//! Tag storage that is a NUMA node, lent and taken back.

use std::sync::Arc;

use arch::mte::geometry::Geometry;
use arch::units::Bytes;
use testing::borrower::{Borrower, serve};
use testing::free_lists::{self, LISTS};
use testing::lab::Lab;
use testing::memory::{oom_kills, pages_on_node};
use testing::wait::until;
use vmm::tag_storage::supply::node::{NodeError, Topology, TopologyError};
use vmm::tag_storage::{
    LeaseId, LeaseTerms, LendPolicy, Node, Pool, PoolReport, ReserveError, TAGS_OF_CHUNK,
};

const PAGE: Bytes = Bytes::kib(4);
/// Pages of one chunk's tags.
const CHUNK_PAGES: u64 = 16;
/// How far the kernel's count of free pages may be off, and what it may take for itself meanwhile.
const NOISE: u64 = 128;

struct Host {
    node: Arc<Node>,
    pool: Pool,
    lease: LeaseId,
}

impl Host {
    fn new() -> Self {
        Self::with_blocks(PAGE)
    }

    fn with_blocks(block: Bytes) -> Self {
        let geometry = Geometry::new(PAGE, block).unwrap();
        let node = Node::new(1, &Topology::default(), None, geometry.block());
        let node = Arc::new(node.unwrap());
        let pool = Pool::new(geometry, node.capacity(), Box::new(node.clone())).unwrap();
        let lease = open_lease(&pool);
        println!("capacity {} of node:1", node.capacity());
        Self { node, pool, lease }
    }

    fn lend_to(&self, borrower: &Borrower) {
        self.node.borrowers().add(borrower.pid()).unwrap();
        self.report();
    }

    /// The pool as it is now; its states sum to the total.
    fn report(&self) -> PoolReport {
        self.pool.follow();
        let report = self.pool.snapshot();
        let blocks = report.blocks;
        let used = blocks.reserved + blocks.lent + blocks.pinned;
        assert_eq!(blocks.free + used + blocks.disabled, blocks.total, "{report:?}");
        report
    }

    fn reserve(&self, chunks: u64) -> Result<(), ReserveError> {
        (0..chunks).try_for_each(|_| self.pool.reserve(self.lease).map(drop))
    }

    /// Reserves until nothing is left. Returns how many chunks that were.
    fn reserve_all(&self) -> u64 {
        let mut chunks = 0;
        loop {
            match self.pool.reserve(self.lease) {
                Ok(_) => chunks += 1,
                Err(ReserveError::Exhausted { .. }) => return chunks,
                Err(error) => panic!("{error:?}"),
            }
        }
    }
}

/// Reserves all that is left, but for what the kernel has taken of the node since it became a supply. The last
/// pages may be with a processor, which gives them up when it has not used its list for a while.
fn reserve_rest(host: &Host) {
    until("the rest of the node", || {
        host.reserve_all();
        let blocks = host.report().blocks;
        (blocks.reserved + NOISE >= blocks.total).then_some(())
    });
    has_own(host.report().blocks.reserved);
}

/// Nothing is reserved, and all of the node is free.
fn free_again(host: &Host) {
    until("a free node", || {
        let blocks = host.report().blocks;
        (blocks.reserved == 0 && blocks.free + NOISE >= blocks.total).then_some(())
    });
}

fn open_lease(pool: &Pool) -> LeaseId {
    let terms = LeaseTerms { name: "holder".to_owned(), min: Bytes::ZERO, max: Bytes::MAX };
    pool.open_lease(terms).unwrap()
}

/// Waits until a process has so many pages of the node. numa_maps counts present pages only (can_gather_numa_stats in
/// fs/proc/task_mmu.c): one that compaction moves within the node is not counted for that moment.
fn has(pid: u32, pages: u64) {
    until(&format!("{pages} pages of process {pid} on the node"), || {
        (pages_on_node(pid, 1) == pages).then_some(())
    });
}

/// The same of this process.
fn has_own(pages: u64) {
    has(std::process::id(), pages);
}

#[track_caller]
fn about(what: &str, found: u64, expected: u64) {
    within(NOISE, what, found, expected);
}

#[track_caller]
fn within(noise: u64, what: &str, found: u64, expected: u64) {
    println!("{what}: {found}, expected {expected}");
    assert!(found.abs_diff(expected) <= noise, "{what}: {found}, expected {expected}");
}

#[test]
#[ignore = "long"]
fn evictions_are_exact_and_leave_contents_intact() {
    Lab::new().second_node("128M").run(|| {
        if serve() {
            return;
        }
        let _lists = free_lists::short();
        let host = Host::new();
        let mut borrower = Borrower::start(
            "lending::evictions_are_exact_and_leave_contents_intact",
            64,
            LendPolicy::Eager,
            false,
        );
        host.lend_to(&borrower);
        let before = pages_on_node(borrower.pid(), 1);
        about("lent", host.report().blocks.lent, before);

        // What is free goes first, and evicts nothing, but for the last pages of it, which may be with a
        // processor.
        let free = host.report().blocks.free / CHUNK_PAGES;
        let sure = free - LISTS.div_ceil(CHUNK_PAGES);
        host.reserve(sure).unwrap();
        let report = host.report();
        assert_eq!(report.counters.evictions, 0, "{report:?}");
        has(borrower.pid(), before);
        has_own(sure * CHUNK_PAGES);

        // Then each chunk evicts what it needs, while the borrower uses its memory.
        let watched = std::thread::scope(|scope| {
            let watching = scope.spawn(|| borrower.order("watch 3"));
            host.reserve(free - sure + 100).unwrap();
            watching.join().unwrap()
        });
        assert_eq!(watched, "intact");
        let report = host.report();
        println!("{:?} {:?}", report.counters, host.node.report());
        let moved = host.node.report().moved_pages;
        has(borrower.pid(), before - moved);
        within(NOISE + LISTS, "evicted", report.counters.evictions, 100 * CHUNK_PAGES);
        // What was moved for a slot that was then put off, as the kernel took the page for its own floor, is no
        // eviction.
        within(2 * NOISE, "moved", moved, report.counters.evictions);
        has_own((free + 100) * CHUNK_PAGES);

        // All of it can be had.
        reserve_rest(&host);
        assert_eq!(borrower.order("check"), "intact");
        assert_eq!(oom_kills(), 0);
        about("left to the borrower", pages_on_node(borrower.pid(), 1), 0);

        host.pool.close_lease(host.lease).unwrap();
        has_own(0);
        free_again(&host);
    });
}

#[test]
#[ignore = "long"]
fn a_node_that_is_full_of_a_borrower_is_taken_from_it_whole() {
    Lab::new().second_node("128M").run(|| {
        if serve() {
            return;
        }
        for huge in [false, true] {
            let host = Host::new();
            // More than the node has.
            let mut borrower = Borrower::start(
                "lending::a_node_that_is_full_of_a_borrower_is_taken_from_it_whole",
                160,
                LendPolicy::Eager,
                huge,
            );
            host.lend_to(&borrower);
            let before = pages_on_node(borrower.pid(), 1);
            println!("huge {huge}: {before} pages lent, {:?}", host.report().blocks);

            reserve_rest(&host);

            let moved = host.node.report().moved_pages;
            println!("huge {huge}: {:?} {:?}", host.report(), host.node.report());
            has(borrower.pid(), before - moved);
            assert_eq!(borrower.order("check"), "intact");
            assert_eq!(oom_kills(), 0);
        }
    });
}

#[test]
#[ignore = "long"]
fn pinned_pages_are_skipped_counted_and_had_once_they_are_let_go() {
    Lab::new().second_node("128M").run(|| {
        if serve() {
            return;
        }
        let _lists = free_lists::short();
        let host = Host::new();
        let total = host.report().blocks.total;
        let mut borrower = Borrower::start(
            "lending::pinned_pages_are_skipped_counted_and_had_once_they_are_let_go",
            64,
            LendPolicy::Eager,
            false,
        );
        host.lend_to(&borrower);
        assert_eq!(borrower.order("pin 512"), "pinned");

        let chunks = host.reserve_all();

        let report = host.report();
        println!("{report:?} {:?}", host.node.report());
        about("pinned", report.blocks.pinned, 512);
        within(NOISE + LISTS, "had", chunks * CHUNK_PAGES, total - 512);
        assert_eq!(host.node.report().stuck_pages, pages_on_node(borrower.pid(), 1));
        assert!(report.counters.pinned >= 512 - NOISE, "{report:?}");
        assert_eq!(oom_kills(), 0);
        assert!(borrower.order("unlend 1").contains("would not leave"));

        assert_eq!(borrower.order("unpin"), "unpinned");
        host.pool.retry_pinned();
        reserve_rest(&host);
        assert_eq!(borrower.order("check"), "intact");
        assert_eq!(borrower.order("unlend 64"), "unlent");
        assert_eq!(pages_on_node(borrower.pid(), 1), 0);
    });
}

#[test]
#[ignore = "long"]
fn a_borrower_that_is_killed_leaves_the_node_to_the_pool() {
    Lab::new().second_node("128M").run(|| {
        if serve() {
            return;
        }
        let mut host = Host::new();
        let total = host.report().blocks.total;
        for round in 0..5 {
            let borrower = Borrower::start(
                "lending::a_borrower_that_is_killed_leaves_the_node_to_the_pool",
                96,
                LendPolicy::Eager,
                round % 2 == 1,
            );
            host.lend_to(&borrower);
            let taken = std::thread::scope(|scope| {
                let taking = scope.spawn(|| host.reserve_all());
                borrower.kill();
                taking.join().unwrap()
            });

            println!("round {round}: {taken} of {} at once", total / CHUNK_PAGES);
            reserve_rest(&host);
            host.pool.close_lease(host.lease).unwrap();
            free_again(&host);
            has_own(0);
            assert_eq!(oom_kills(), 0);
            host.lease = open_lease(&host.pool);
        }
    });
}

#[test]
fn each_policy_places_memory_as_it_says() {
    Lab::new().second_node("128M").run(|| {
        if serve() {
            return;
        }
        let pages = 32 << 8;
        for (policy, expected) in [
            (LendPolicy::Never, 0),
            (LendPolicy::LastResort, 0),
            // Nearly all of the free memory is elsewhere.
            (LendPolicy::Balanced, 0),
            (LendPolicy::Eager, pages),
        ] {
            let mut borrower =
                Borrower::start("lending::each_policy_places_memory_as_it_says", 32, policy, false);

            has(borrower.pid(), expected);
            assert_eq!(borrower.order("rebalance"), (policy == LendPolicy::Eager).to_string());
            assert_eq!(borrower.order("unlend 8"), "unlent");
            let left = expected - expected / 4;
            has(borrower.pid(), left);
            assert_eq!(borrower.order("check"), "intact");
        }
    });
}

#[test]
fn nodes_and_capacities_that_will_not_do_are_refused_by_name() {
    Lab::new().second_node("128M").run(|| {
        let topology = Topology::default();
        let refused = |node, capacity| Node::new(node, &topology, capacity, PAGE).err().unwrap();

        assert!(matches!(
            refused(0, None),
            NodeError::Topology(TopologyError::HasCpus { node: 0, .. })
        ));
        assert!(matches!(
            refused(2, None),
            NodeError::Topology(TopologyError::Missing { node: 2, .. })
        ));
        assert!(matches!(refused(1, Some(Bytes::gib(1))), NodeError::Capacity { node: 1, .. }));
        assert!(matches!(refused(1, Some(Bytes::ZERO)), NodeError::Nothing { node: 1, .. }));
        let some = Node::new(1, &topology, Some(Bytes::mib(32)), PAGE).unwrap();
        assert_eq!(some.capacity(), Bytes::mib(32));
        assert!(some.capacity() > TAGS_OF_CHUNK);
    });
}
