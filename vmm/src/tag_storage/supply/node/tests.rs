//! A pool over a node that is made up: its pages, who has them, and which of them will not move.
#![allow(clippy::unwrap_used)]

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use arch::mte::geometry::Geometry;
use proptest::prelude::*;

use super::process::Process;
use super::*;
use crate::tag_storage::pool::{LeaseId, LeaseTerms, Pool, ReserveError, SlotIndex};

const PAGE: u64 = 4096;
/// Pages of one chunk's tags.
const CHUNK: u64 = 16;
/// Pages that the kernel keeps free.
const KEPT: u64 = 8;

/// A borrower's memory, page by page.
#[derive(Debug, Default)]
struct Owned {
    here: BTreeSet<u64>,
    stuck: BTreeSet<u64>,
    dead: bool,
}

#[derive(Default)]
struct World {
    pages: u64,
    held: BTreeSet<u64>,
    owned: BTreeMap<u32, Owned>,
    /// Pages that fit on other nodes.
    room: u64,
    /// Pages of borrowers that were moved away.
    moved: u64,
    /// Questions where pages are.
    looks: u64,
    /// The host refuses to give pages.
    broken: bool,
    /// Calls that find pages that are free and cannot be had.
    out_of_reach: u32,
    /// Done while pages of a borrower are being moved.
    while_moving: Option<Box<dyn FnOnce() + Send>>,
    /// Done while one waits for such pages.
    while_waiting: Option<Box<dyn FnOnce() + Send>>,
}

impl World {
    fn used(&self) -> u64 {
        self.held.len() as u64 + self.lent()
    }

    fn lent(&self) -> u64 {
        self.owned.values().map(|owned| owned.here.len() as u64).sum()
    }

    fn free(&self) -> u64 {
        self.pages - self.used()
    }
}

type Shared = Arc<Mutex<World>>;

fn lock(world: &Shared) -> MutexGuard<'_, World> {
    world.lock().unwrap()
}

struct FakeMemory(Shared);

fn pages_of(part: &Range<Bytes>) -> Range<u64> {
    part.start.get() / PAGE..part.end.get() / PAGE
}

impl Memory for FakeMemory {
    fn usage(&self, _: bool) -> io::Result<Usage> {
        Ok(Usage { free: lock(&self.0).free(), ..Usage::default() })
    }

    fn take(&self, part: &Range<Bytes>) -> io::Result<bool> {
        let mut world = lock(&self.0);
        if world.broken {
            return Err(io::Error::other("broken"));
        }
        if world.out_of_reach > 0 {
            world.out_of_reach -= 1;
            return Ok(false);
        }
        let pages = pages_of(part);
        // As the kernel does, it gives away what it would rather keep.
        let has = world.free() >= pages.end - pages.start;
        for page in pages.filter(|_| has) {
            assert!(world.held.insert(page), "page {page} is taken twice");
        }
        Ok(has)
    }

    fn release(&self, part: &Range<Bytes>) -> io::Result<()> {
        for page in pages_of(part) {
            assert!(lock(&self.0).held.remove(&page), "page {page} is given and was not taken");
        }
        Ok(())
    }

    fn wait(&self, _: u64) -> io::Result<bool> {
        let meanwhile = lock(&self.0).while_waiting.take();
        let waited = meanwhile.is_some();
        meanwhile.into_iter().for_each(|meanwhile| meanwhile());
        Ok(waited)
    }

    fn patience(&self) -> Duration {
        Duration::ZERO
    }

    fn refuges(&self) -> Vec<u32> {
        vec![0]
    }
}

struct FakeProcess(Shared, u32);

impl FakeProcess {
    fn owned<R>(&self, look: impl FnOnce(&Owned) -> R) -> io::Result<R> {
        let world = lock(&self.0);
        let owned = world.owned.get(&self.1).filter(|owned| !owned.dead);
        owned.map(look).ok_or_else(|| io::Error::from_raw_os_error(libc::ESRCH))
    }
}

impl Process for FakeProcess {
    fn pid(&self) -> u32 {
        self.1
    }

    fn is_alive(&self) -> bool {
        self.owned(|_| ()).is_ok()
    }

    fn mappings(&self, node: u32) -> io::Result<Vec<Range<u64>>> {
        assert_eq!(node, 1);
        self.owned(|owned| {
            let first = owned.here.first().copied();
            let last = owned.here.last().copied();
            first.zip(last).map(|(first, last)| first..last + PAGE).into_iter().collect()
        })
    }

    fn locate(&self, pages: &[u64]) -> io::Result<Vec<i32>> {
        assert!(pages.len() <= 512);
        lock(&self.0).looks += 1;
        self.owned(|owned| {
            let place = |page| if owned.here.contains(page) { 1 } else { -libc::ENOENT };
            pages.iter().map(place).collect()
        })
    }

    fn relocate(&self, pages: &[u64], node: u32) -> io::Result<()> {
        assert_eq!(node, 0);
        let meanwhile = lock(&self.0).while_moving.take();
        meanwhile.into_iter().for_each(|meanwhile| meanwhile());
        self.owned(|_| ())?;
        let mut world = lock(&self.0);
        for page in pages {
            let room = world.room;
            let owned = world.owned.get_mut(&self.1).unwrap();
            if owned.stuck.contains(page) || !owned.here.contains(page) {
                // The kernel leaves out what comes behind.
                return Ok(());
            }
            if room == 0 {
                return Err(io::Error::from_raw_os_error(libc::ENOMEM));
            }
            owned.here.remove(page);
            world.room -= 1;
            world.moved += 1;
        }
        Ok(())
    }
}

struct Rig {
    world: Shared,
    node: Arc<Node>,
    pool: Pool,
    lease: LeaseId,
    slots: Vec<SlotIndex>,
}

impl Rig {
    /// A node with so many chunks' tags in blocks of so many pages.
    fn new(chunks: u64, block_pages: u64) -> Self {
        let block = Bytes::new(block_pages * PAGE);
        let geometry = Geometry::new(Bytes::new(PAGE), block).unwrap();
        let capacity = Bytes::new(chunks * CHUNK * PAGE);
        let pages = chunks * CHUNK + KEPT;
        let world = World { pages, room: u64::MAX, ..World::default() };
        let world = Arc::new(Mutex::new(world));
        let plan = Plan { capacity, block, page: PAGE, floor: KEPT };
        let node = Arc::new(Node::with(1, plan, Box::new(FakeMemory(world.clone()))));
        let pool = Pool::new(geometry, capacity, Box::new(node.clone())).unwrap();
        let terms = LeaseTerms { name: "a".to_owned(), min: Bytes::ZERO, max: Bytes::MAX };
        let lease = pool.open_lease(terms).unwrap();
        Self { world, node, pool, lease, slots: Vec::new() }
    }

    /// A borrower touches pages: as many as the kernel gives.
    fn borrow(&self, pid: u32, pages: u64) {
        let known = lock(&self.world).owned.contains_key(&pid);
        if !known {
            lock(&self.world).owned.entry(pid).or_default();
            self.node.borrowers.admit(FakeProcess(self.world.clone(), pid)).unwrap();
        }
        let mut world = lock(&self.world);
        let pages = pages.min(world.free().saturating_sub(KEPT));
        let here = &mut world.owned.get_mut(&pid).unwrap().here;
        let first = here.last().map_or(u64::from(pid) << 30, |last| last + PAGE);
        here.extend((0..pages).map(|page| first + page * PAGE));
    }

    fn pin(&self, pid: u32, pages: u64) {
        if let Some(owned) = lock(&self.world).owned.get_mut(&pid) {
            owned.stuck = owned.here.iter().copied().take(pages as usize).collect();
        }
    }

    fn kill(&self, pid: u32) {
        lock(&self.world).owned.remove(&pid);
    }

    fn reserve(&mut self) -> Result<(), ReserveError> {
        self.pool.reserve(self.lease).map(|slot| self.slots.push(slot))
    }

    fn reserve_all(&mut self) -> u64 {
        let before = self.slots.len();
        while self.reserve().is_ok() {}
        (self.slots.len() - before) as u64
    }

    /// What holds of a pool that has just been followed.
    fn check(&self) {
        self.pool.follow();
        let report = self.pool.snapshot();
        let blocks = report.blocks;
        let size = report.block_bytes / PAGE;
        let states = blocks.free + blocks.reserved + blocks.lent + blocks.pinned + blocks.disabled;
        assert_eq!(states, blocks.total, "{report:?}");
        let moved = self.node.report().moved_pages;
        let world = lock(&self.world);
        assert_eq!(world.held.len() as u64, blocks.reserved * size, "{report:?}");
        let room = world.free().saturating_sub(KEPT) / size;
        let untaken = blocks.total - blocks.disabled - blocks.reserved;
        assert_eq!(blocks.free, room.min(untaken), "{report:?}");
        assert_eq!(moved, world.moved);
        let c = report.counters;
        let live = c.metadata_reserve_success - c.metadata_reserve_free;
        assert_eq!(live, self.slots.len() as u64);
    }
}

#[test]
fn what_is_free_goes_first_and_then_each_chunk_evicts_what_it_needs() {
    let mut rig = Rig::new(10, 1);
    rig.borrow(7, 6 * CHUNK);
    rig.check();
    assert_eq!(rig.pool.snapshot().blocks.lent, 6 * CHUNK);

    (0..4).for_each(|_| rig.reserve().unwrap());
    assert_eq!(lock(&rig.world).moved, 0);
    (0..3).for_each(|_| rig.reserve().unwrap());

    rig.check();
    assert_eq!(lock(&rig.world).moved, 3 * CHUNK);
    let report = rig.pool.snapshot();
    assert_eq!(report.counters.evictions, 3 * CHUNK);
    assert_eq!(report.blocks.lent, 3 * CHUNK);
}

#[test]
fn a_borrower_with_vast_and_empty_memory_keeps_nobody_waiting() {
    let mut rig = Rig::new(4, 1);
    rig.borrow(7, 1);
    lock(&rig.world).owned.get_mut(&7).unwrap().here.insert(1 << 46);
    rig.borrow(8, 4 * CHUNK);

    rig.reserve().unwrap();

    let looks = lock(&rig.world).looks;
    assert!(looks < 20_000, "{looks} calls of the kernel");
    assert_eq!(rig.pool.snapshot().counters.tail_retries, 1);
    assert_eq!(lock(&rig.world).owned[&8].here.len() as u64, 3 * CHUNK - 1);
}

#[test]
fn memory_that_came_unnoticed_is_evicted_as_well() {
    let mut rig = Rig::new(4, 1);
    // No call has looked since.
    rig.borrow(7, 4 * CHUNK);

    assert_eq!(rig.reserve_all(), 4);

    assert_eq!(lock(&rig.world).lent(), 0);
    rig.check();
}

#[test]
fn pinned_pages_are_counted_and_the_rest_is_had() {
    let mut rig = Rig::new(8, 1);
    rig.borrow(7, 8 * CHUNK);
    rig.pin(7, 2 * CHUNK);
    rig.check();

    assert_eq!(rig.reserve_all(), 6);

    rig.check();
    let report = rig.pool.snapshot();
    assert_eq!(report.blocks.pinned, 2 * CHUNK, "{report:?}");
    rig.pin(7, 0);
    rig.pool.retry_pinned();
    assert_eq!(rig.reserve_all(), 2);
    rig.check();
}

#[test]
fn all_pinned_is_an_error_and_changes_nothing() {
    let mut rig = Rig::new(8, 1);
    rig.borrow(7, 8 * CHUNK);
    rig.pin(7, 8 * CHUNK);

    for _ in 0..3 {
        assert!(matches!(rig.reserve(), Err(ReserveError::Exhausted { .. })));
        rig.check();
    }

    assert_eq!(lock(&rig.world).moved, 0);
    assert_eq!(rig.pool.snapshot().blocks.pinned, 8 * CHUNK);
}

#[test]
fn without_room_elsewhere_nothing_is_evicted() {
    let mut rig = Rig::new(4, 1);
    rig.borrow(7, 4 * CHUNK);
    lock(&rig.world).room = 0;

    let error = rig.reserve().unwrap_err();

    assert!(matches!(error, ReserveError::Supply { .. }), "{error:?}");
    assert!(error.is_lack());
    rig.check();
    lock(&rig.world).room = u64::MAX;
    assert_eq!(rig.reserve_all(), 4);
}

#[test]
fn a_borrower_that_has_ended_is_forgotten_and_left_alone() {
    let mut rig = Rig::new(4, 1);
    rig.borrow(7, 2 * CHUNK);
    rig.borrow(8, 2 * CHUNK);
    rig.check();
    rig.kill(7);

    assert_eq!(rig.reserve_all(), 4);

    assert_eq!(lock(&rig.world).moved, 2 * CHUNK);
    rig.borrow(9, 0);
    assert_eq!(rig.node.borrowers().len(), 2);
    rig.check();
}

#[test]
fn capacity_leaves_out_what_the_kernel_has_and_keeps() {
    let usage = Usage { free: 26_000, movable: 1_000, kept: 758, ready: 0 };
    let plan = |asked, block| Plan::new(1, usage, asked, (Bytes::new(block), PAGE));
    let room = 27_000 - 758 - 128;

    let auto = plan(None, PAGE).unwrap();
    assert_eq!(auto.capacity.get(), room / CHUNK * CHUNK * PAGE);
    assert_eq!(auto.floor + auto.capacity.get() / PAGE, 27_000);
    let less = plan(Some(Bytes::mib(32)), PAGE).unwrap();
    assert_eq!((less.capacity, less.floor), (Bytes::mib(32), auto.floor));
    assert_eq!(plan(None, 2 << 20).unwrap().capacity, Bytes::mib(((room * PAGE) >> 21) << 1));
    let error = plan(Some(Bytes::gib(1)), PAGE).unwrap_err();
    assert!(matches!(error, NodeError::Capacity { most, .. } if most == auto.capacity));
    assert!(matches!(plan(Some(Bytes::new(1)), PAGE), Err(NodeError::Nothing { .. })));
    let none = Plan::new(1, Usage { kept: 5, ..Usage::default() }, None, (Bytes::new(PAGE), PAGE));
    assert!(matches!(none, Err(NodeError::Nothing { .. })));
}

#[derive(Clone, Debug)]
enum Step {
    Reserve,
    ReserveMany(u32),
    Free(prop::sample::Index),
    Borrow(u32, u64),
    Pin(u32, u64),
    Kill(u32),
    Retry,
    Room(u64),
    Follow,
}

fn step() -> impl Strategy<Value = Step> {
    let pid = 1u32..4;
    prop_oneof![
        4 => Just(Step::Reserve),
        1 => (1u32..6).prop_map(Step::ReserveMany),
        3 => any::<prop::sample::Index>().prop_map(Step::Free),
        3 => (pid.clone(), 0u64..80).prop_map(|(pid, pages)| Step::Borrow(pid, pages)),
        1 => (pid.clone(), 0u64..80).prop_map(|(pid, pages)| Step::Pin(pid, pages)),
        1 => pid.prop_map(Step::Kill),
        1 => Just(Step::Retry),
        1 => (0u64..100).prop_map(Step::Room),
        2 => Just(Step::Follow),
    ]
}

proptest! {
    #[test]
    fn whatever_happens_the_states_are_true_of_the_node(
        steps in prop::collection::vec(step(), 0..60),
        block_pages in prop::sample::select(vec![1u64, 2, 3, 16, 40]),
    ) {
        let mut rig = Rig::new(15, block_pages);
        for step in steps {
            match step {
                Step::Reserve => drop(rig.reserve()),
                Step::ReserveMany(chunks) => {
                    if let Ok(slots) = rig.pool.reserve_many(rig.lease, chunks) {
                        rig.slots.extend(slots);
                    }
                }
                Step::Free(_) if rig.slots.is_empty() => {}
                Step::Free(index) => {
                    let slot = rig.slots.swap_remove(index.index(rig.slots.len()));
                    rig.pool.free(rig.lease, slot).unwrap();
                }
                Step::Borrow(pid, pages) => rig.borrow(pid, pages),
                Step::Pin(pid, pages) => rig.pin(pid, pages),
                Step::Kill(pid) => rig.kill(pid),
                Step::Retry => drop(rig.pool.retry_pinned()),
                Step::Room(room) => lock(&rig.world).room = room,
                Step::Follow => rig.check(),
            }
        }
        rig.check();

        // Without anybody else all of it can be had, and given back.
        (1..4).for_each(|pid| rig.kill(pid));
        rig.pool.retry_pinned();
        rig.check();
        rig.reserve_all();
        let report = rig.pool.snapshot();
        prop_assert_eq!(report.chunks.free, 0, "{:?}", report);
        rig.slots.clear();
        rig.pool.close_lease(rig.lease).unwrap();
        prop_assert!(lock(&rig.world).held.is_empty());
    }
}

#[test]
fn blocks_that_were_evicted_and_could_not_be_taken_are_not_vacant() {
    let rig = Rig::new(4, 1);
    rig.borrow(7, 4 * CHUNK);
    rig.check();
    assert_eq!(rig.node.books().vacant, 0);
    let blocks = BlockIndex(0)..BlockIndex(4);
    lock(&rig.world).broken = true;

    rig.node.evict(blocks.clone()).unwrap();
    assert!(matches!(rig.node.take(blocks.clone()), Err(TakeError::Host(_))));

    assert_eq!(rig.node.books().vacant, 0);
    // What was free before is as free as it was.
    lock(&rig.world).broken = false;
    rig.node.evict(blocks.clone()).unwrap();
    rig.node.take(blocks.clone()).unwrap();
    rig.node.release(blocks.clone());
    lock(&rig.world).broken = true;
    assert!(matches!(rig.node.take(blocks), Err(TakeError::Host(_))));
    assert_eq!(rig.node.books().vacant, 4);
}

#[test]
fn other_requests_are_served_while_one_waits_for_pages_out_of_reach() {
    let rig = Rig::new(4, 1);
    let node = Arc::clone(&rig.node);
    let done = Arc::new(Mutex::new(false));
    let mark = Arc::clone(&done);
    // In the middle of the wait another request takes and gives, on this very thread.
    lock(&rig.world).out_of_reach = 1;
    lock(&rig.world).while_waiting = Some(Box::new(move || {
        node.take(BlockIndex(20)..BlockIndex(21)).unwrap();
        node.release(BlockIndex(20)..BlockIndex(21));
        assert!(node.observe_at_once().is_some());
        *mark.lock().unwrap() = true;
    }));

    rig.node.take(BlockIndex(0)..BlockIndex(4)).unwrap();

    assert!(*done.lock().unwrap());
    assert_eq!(rig.node.books().held, 4);
}

#[test]
fn borrowers_come_and_go_and_figures_are_had_while_one_is_being_moved() {
    let rig = Rig::new(4, 1);
    rig.borrow(7, 2 * CHUNK);
    rig.borrow(8, 2 * CHUNK);
    rig.check();
    let (node, world) = (Arc::clone(&rig.node), rig.world.clone());
    // On the very thread that moves: it must hold no lock that these take.
    lock(&rig.world).while_moving = Some(Box::new(move || {
        assert_eq!(node.report().stuck_pages, 0);
        lock(&world).owned.entry(9).or_default();
        node.borrowers().admit(FakeProcess(world, 9)).unwrap();
        node.borrowers().remove(7);
        node.forget_pinned();
    }));

    rig.node.evict(BlockIndex(0)..BlockIndex(4)).unwrap();

    assert!(lock(&rig.world).while_moving.is_none());
    // Those that are left are 8 and 9: the one that was removed did not come back.
    assert_eq!(rig.node.borrowers().len(), 2);
    rig.node.borrowers().remove(7);
    assert_eq!(rig.node.borrowers().len(), 2);
}
