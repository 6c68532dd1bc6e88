//! What a pool must answer to any sequence of requests, while its supply fails on the way.

use std::collections::{BTreeMap, BTreeSet};

use arch::mte::geometry::BlockIndex;
use arch::units::Bytes;

use super::examine::{self, books};
use super::{Bench, terms};
use crate::tag_storage::pool::slots::Place;
use crate::tag_storage::pool::{BlockState, LeaseId, Order, Pool, ReserveError, SlotIndex};

/// A request, of one of four leases, about one of the slots.
#[derive(Clone, Debug)]
pub(crate) enum Step {
    Open {
        lease: usize,
        min: u32,
        max: u32,
    },
    Reserve(usize),
    ReserveMany(usize, u32),
    Free(usize, u32),
    Adopt(usize, Vec<u32>),
    Close(usize),
    Lend(u64),
    RetryPinned,
    /// From now on these blocks do not move.
    Pin(Vec<u64>),
    /// So many calls find memory in the way.
    Busy(u32),
    Broken(bool),
}

/// A lease as the test knows it.
struct Known {
    id: LeaseId,
    min: u32,
    max: u32,
    slots: BTreeSet<SlotIndex>,
}

pub(crate) struct Model {
    pub(crate) bench: Bench,
    leases: BTreeMap<usize, Known>,
    gone: Vec<LeaseId>,
}

impl Model {
    /// A pool without leases.
    pub(crate) fn new(page: Bytes, block: Bytes, chunks: u32, instant: bool) -> Self {
        let bench = Bench::new(page, block, chunks, instant);
        Self { bench, leases: BTreeMap::new(), gone: Vec::new() }
    }

    fn total(&self) -> u32 {
        self.bench.pool.snapshot().chunks.total
    }

    /// How many chunks there are for this lease, or for a new one.
    fn room(&self, lease: Option<usize>) -> u32 {
        let used: u32 = self
            .leases
            .iter()
            .map(|(number, known)| match (known.slots.len() as u32, Some(*number) == lease) {
                (held, true) => held,
                (held, false) => held.max(known.min),
            })
            .sum();
        self.total() - used
    }

    fn id(&self, lease: usize) -> LeaseId {
        let gone = self.gone.last().copied();
        let known = self.leases.get(&lease).map(|known| known.id);
        known.or(gone).unwrap_or_else(|| self.any_gone())
    }

    /// The id of a lease that is closed.
    fn any_gone(&self) -> LeaseId {
        let lease = self.bench.pool.open_lease(terms(0, 1)).unwrap();
        self.bench.pool.close_lease(lease).unwrap();
        lease
    }

    /// Whether a failure may be the supply's: it has faults, or not enough slots can be emptied.
    fn supply_may_fail(&self, chunks: u32) -> bool {
        let fake = self.bench.fake.books();
        if fake.busy > 0 || fake.broken {
            return true;
        }
        let state = self.bench.pool.lock();
        let stuck = |block: usize| {
            let (is, _) = state.blocks.get(BlockIndex(block as u64)).unwrap();
            is == BlockState::Pinned
                || is == BlockState::Lent && fake.pinned.contains(&(block as u64))
        };
        let good = (0..state.slots.len()).map(SlotIndex).filter(|slot| {
            let free = !matches!(state.slots.place(*slot), Some(Place::Held(_)));
            let span = state.blocks.span(*slot);
            free && (span.first()..span.first() + span.len()).all(|block| !stuck(block))
        });
        (good.count() as u32) < chunks
    }

    /// Checks why a request for so many chunks failed.
    fn check_failure(&self, lease: usize, chunks: u32, may_fail: bool, error: &ReserveError) {
        let Some(known) = self.leases.get(&lease) else {
            assert!(matches!(error, ReserveError::UnknownLease(_)), "{error}");
            return;
        };
        let over = known.slots.len() as u32 + chunks > known.max;
        match error {
            ReserveError::OverMax { .. } => assert!(over),
            ReserveError::Exhausted { .. } => {
                assert!(!over && (chunks > self.room(Some(lease)) || may_fail), "{error}");
            }
            ReserveError::Supply { .. } => assert!(!over && may_fail, "{error}"),
            error => panic!("{error}"),
        }
    }

    fn add(&mut self, lease: usize, slots: &[SlotIndex]) {
        for slot in slots {
            let holders = self.leases.values().filter(|known| known.slots.contains(slot));
            assert_eq!(holders.count(), 0, "{slot} is given twice");
            assert!(self.leases.get_mut(&lease).unwrap().slots.insert(*slot));
        }
    }

    fn reserve(&mut self, lease: usize, chunks: u32, request: impl Fn(&Pool, LeaseId) -> Many) {
        let (id, may_fail) = (self.id(lease), self.supply_may_fail(chunks));
        let before = books(&self.bench.pool);
        match request(&self.bench.pool, id) {
            Ok(slots) => {
                assert_eq!(slots.len() as u32, chunks);
                assert!(chunks <= self.room(Some(lease)));
                self.add(lease, &slots);
                let known = &self.leases[&lease];
                assert!(known.slots.len() as u32 <= known.max);
            }
            Err(error) => {
                self.check_failure(lease, chunks, may_fail, &error);
                self.check_unchanged(before);
            }
        }
    }

    /// Nothing has changed but that lent blocks may have turned out to be pinned.
    fn check_unchanged(&self, mut before: examine::Books) {
        let after = books(&self.bench.pool);
        for (before, after) in before.blocks.iter_mut().zip(&after.blocks) {
            if (before.0, after.0) == (BlockState::Lent, BlockState::Pinned) {
                before.0 = BlockState::Pinned;
            }
        }
        assert_eq!(after, before);
    }

    fn adopt(&mut self, lease: usize, wanted: &[SlotIndex]) {
        let (id, before) = (self.id(lease), books(&self.bench.pool));
        let may_fail = self.supply_may_fail(wanted.len() as u32);
        let sound = !self.supply_may_fail(self.total() - before.holders.len() as u32);
        match self.bench.pool.adopt(id, wanted, Order::First) {
            Err(error) => {
                assert!(!self.leases.contains_key(&lease), "{error}");
                self.check_unchanged(before);
            }
            Ok(adopted) => {
                assert_eq!(adopted.slots.len(), wanted.len());
                let missing = adopted.slots.iter().filter(|slot| slot.is_none()).count();
                assert_eq!(missing > 0, adopted.shortfall.is_some());
                let slots: Vec<SlotIndex> = adopted.slots.into_iter().flatten().collect();
                self.add(lease, &slots);
                if let Some(error) = adopted.shortfall {
                    self.check_failure(lease, 1, may_fail, &error);
                    return;
                }
                // Where nothing can fail, all that were free are the same.
                for slot in wanted.iter().filter(|_| sound) {
                    let was_there = slot.0 < self.total() && !before.holders.contains_key(slot);
                    assert!(!was_there || slots.contains(slot), "{slot}");
                }
            }
        }
    }

    /// Does a step, and checks what comes of it.
    pub(crate) fn apply(&mut self, step: Step) {
        match step {
            Step::Open { lease, min, max } if !self.leases.contains_key(&lease) => {
                self.open(lease, min, max);
            }
            Step::Open { .. } => {}
            Step::Reserve(lease) => {
                self.reserve(lease, 1, |pool, id| pool.reserve(id).map(|slot| vec![slot]));
            }
            Step::ReserveMany(lease, chunks) => {
                self.reserve(lease, chunks, |pool, id| pool.reserve_many(id, chunks));
            }
            Step::Free(lease, slot) => self.free(lease, SlotIndex(slot)),
            Step::Adopt(lease, wanted) => {
                let wanted: Vec<SlotIndex> = wanted.into_iter().map(SlotIndex).collect();
                self.adopt(lease, &wanted);
            }
            Step::Close(lease) => {
                let (id, known) = (self.id(lease), self.leases.remove(&lease));
                assert_eq!(self.bench.pool.close_lease(id).is_ok(), known.is_some());
                self.gone.push(id);
            }
            Step::Lend(blocks) => {
                let free = self.bench.pool.snapshot().blocks.free;
                assert_eq!(self.bench.pool.lend(blocks), blocks.min(free));
            }
            Step::RetryPinned => {
                let pinned = self.bench.pool.snapshot().blocks.pinned;
                assert_eq!(self.bench.pool.retry_pinned(), pinned);
            }
            Step::Pin(blocks) => self.bench.fake.books().pinned = blocks.into_iter().collect(),
            Step::Busy(calls) => self.bench.fake.books().busy = calls,
            Step::Broken(broken) => self.bench.fake.books().broken = broken,
        }
    }

    fn open(&mut self, lease: usize, min: u32, max: u32) {
        match self.bench.pool.open_lease(terms(min, max)) {
            Ok(id) => {
                assert!(min <= self.room(None) && min <= max && max > 0);
                let slots = BTreeSet::new();
                self.leases.insert(lease, Known { id, min, max, slots });
            }
            Err(ReserveError::Terms(_)) => assert!(min > max || max == 0),
            Err(error) => {
                assert!(matches!(error, ReserveError::Exhausted { .. }), "{error}");
                assert!(min > self.room(None));
            }
        }
    }

    fn free(&mut self, lease: usize, slot: SlotIndex) {
        let before = books(&self.bench.pool);
        let id = self.id(lease);
        let known = self.leases.get_mut(&lease);
        let held = known.is_some_and(|known| known.slots.remove(&slot));
        assert_eq!(self.bench.pool.free(id, slot).is_ok(), held);
        if !held {
            self.check_unchanged(before);
        }
    }

    /// The pool's books agree with what the test knows.
    pub(crate) fn check(&self) {
        let books = self.bench.examine();
        let held: Vec<usize> = books.leases.iter().map(|(_, held)| *held as usize).collect();
        let mut known: Vec<(LeaseId, usize)> =
            self.leases.values().map(|known| (known.id, known.slots.len())).collect();
        known.sort_by_key(|(id, _)| books.leases.iter().position(|(lease, _)| lease == id));
        assert_eq!(held, known.iter().map(|(_, held)| *held).collect::<Vec<_>>());
        let slots: BTreeSet<SlotIndex> =
            self.leases.values().flat_map(|known| known.slots.iter().copied()).collect();
        assert_eq!(books.holders.keys().copied().collect::<BTreeSet<_>>(), slots);
    }
}

type Many = Result<Vec<SlotIndex>, ReserveError>;

/// Page and block sizes in KiB and bytes of each kind: one block a slot or many, shared in pairs, shared at odd places.
pub(crate) const SIZES: [(u64, u64); 11] = [
    (4, 64),
    (4, 8 << 10),
    (4, 20 << 10),
    (4, 64 << 10),
    (4, 96 << 10),
    (4, 128 << 10),
    (4, 320 << 10),
    (16, 16 << 10),
    (16, 48 << 10),
    (64, 64),
    (64, 192 << 10),
];
