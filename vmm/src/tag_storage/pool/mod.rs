//! The pool: who may have which tag storage, and the order of what that takes.
//!
//! One mutex guards the books. It is not held while the supply is called, unless the supply needs no time:
//! the blocks that a call is for are marked, and everybody else takes other slots, or waits where there
//! are no others. So a request fails only for reasons that still hold when all that was under way has
//! ended, and every request, lease and close takes effect at one moment.
//!
//! # References
//! Linux mail, "Add support for arm64 MTE dynamic tag storage reuse" (tail retry, exhaustion),
//! `arch/arm64/kernel/mte_tag_storage.c` (reserve_tag_storage, free_tag_storage)

mod adopt;
pub(crate) mod blocks;
pub(crate) mod counters;
pub(crate) mod error;
pub(crate) mod lease;
mod lending;
pub(crate) mod pending;
pub(crate) mod slots;
mod state;
pub(crate) mod status;
pub(crate) mod sync;

use std::sync::PoisonError;
use std::time::{Duration, Instant};

use arch::layout::CHUNK;
use arch::mte::geometry::Geometry;
use arch::units::Bytes;

use super::supply::{Supply, SupplyName, TakeError};
pub use adopt::Adopted;
pub use blocks::{BlockState, Error as BlockError};
use blocks::{BlockTable, Mask};
pub use counters::Counters;
pub use error::{FreeError, PoolError, ReserveError};
pub use lease::{LeaseId, LeaseTerms, MAX_LEASES, MAX_NAME, TAGS_OF_CHUNK, TermsError, tags_of};
use pending::Release;
pub use slots::SlotIndex;
use slots::{Candidate, Slots};
use state::State;
pub use status::{BlocksReport, ChunksReport, LeaseReport, PoolReport};
use sync::{Condvar, Mutex, MutexGuard};

/// The largest pool: the tags of 16 TiB of memory, more than an arm64 host has. The tables then take half a
/// GiB of addresses, and memory as they are used.
pub const MAX_CAPACITY: Bytes = Bytes::gib(512);

/// Pages that can refer to one block, so that the table has room for the count: 2 TiB of the smallest.
const MAX_REFERENCES: u64 = (1 << 29) - 1;

/// Slots that one request tries with the supply. Each may cost three migrations of up to 64 KiB; the next
/// request goes on with other slots.
const ATTEMPTS: u32 = 32;

/// How long one slot is tried for, where trying takes time: others' memory can be hard to search and to
/// move. Far less than a client of a broker waits for its answer.
const AT_MOST: Duration = Duration::from_secs(10);

/// How often one request waits for what others have under way. Each time one of them gets on; this
/// bounds how long a lease that takes and frees without end can keep out another.
const WAITS: u32 = 256;

/// Slots of one request that are reserved or freed before others get their turn.
const TURN: u32 = 256;

type Guard<'a> = MutexGuard<'a, State>;

type Reserved = Result<SlotIndex, ReserveError>;

/// A slot that was reserved.
struct Had {
    slot: SlotIndex,
    /// Blocks of it that were lent before.
    evicted: Mask,
}

/// What came of trying a slot.
enum Attempt {
    Had(Had),
    /// The supply does not have it. It is at the tail.
    Failed(TakeError),
}

/// The tag storage of a host and the slots that have their tags there.
pub struct Pool {
    state: Mutex<State>,
    /// Something under way has ended, while somebody waits for that.
    settled: Condvar,
    supply: Box<dyn Supply>,
    instant: bool,
    /// Held while the pool follows what other memory does.
    following: Mutex<()>,
}

impl Pool {
    /// A pool with `capacity` of tag storage, rounded down to whole blocks, all of it free.
    ///
    /// # Errors
    /// When that is less than one chunk's tags or beyond [`MAX_CAPACITY`], or blocks are beyond all
    /// measure.
    pub fn new(
        geometry: Geometry,
        capacity: Bytes,
        supply: Box<dyn Supply>,
    ) -> Result<Self, PoolError> {
        let block = geometry.block();
        if capacity > MAX_CAPACITY {
            return Err(PoolError::TooLarge(capacity));
        }
        if geometry.covered_pages() > MAX_REFERENCES {
            return Err(PoolError::HugeBlock(block));
        }
        // At most 2^27 blocks, 2^32 pages and 2^23 slots.
        let blocks = geometry.blocks_in(capacity);
        let slot_pages = CHUNK.get() / geometry.page().get();
        let slots = (blocks * geometry.covered_pages() / slot_pages) as u32;
        if slots == 0 {
            return Err(PoolError::TooSmall { capacity, block });
        }
        let table = BlockTable::new(geometry, blocks as usize, slots);
        let state = State::new(supply.name(), table, Slots::new(slots));
        let instant = supply.is_instant();
        Ok(Self {
            state: Mutex::new(state),
            settled: Condvar::new(),
            supply,
            instant,
            following: Mutex::new(()),
        })
    }

    /// Opens a lease. Its minimum is set aside from now on.
    ///
    /// # Errors
    /// When its terms contradict themselves, its minimum is not to be had, or there are too many leases.
    pub fn open_lease(&self, terms: LeaseTerms) -> Result<LeaseId, ReserveError> {
        let mut state = self.lock();
        let mut waits = WAITS;
        loop {
            let error = match state.open(terms.clone()) {
                Ok(id) => return Ok(id),
                Err(error) => error,
            };
            let lacking = matches!(error, ReserveError::Exhausted { .. });
            if !lacking || waits == 0 || !state.may_settle() {
                state.counters.denied += 1;
                return Err(error);
            }
            waits -= 1;
            state = self.wait(state);
        }
    }

    /// Reserves the tag storage of one chunk.
    ///
    /// # Errors
    /// When the lease is unknown or has its maximum, or no tag storage can be had. Then nothing has changed
    /// but counters, the order of the tail, and lent blocks that turned out to be pinned.
    pub fn reserve(&self, lease: LeaseId) -> Result<SlotIndex, ReserveError> {
        let mut state = self.lock();
        if self.instant {
            match state.reserve_at_once(lease, |blocks| self.supply.take(blocks)) {
                Some(Ok(slot)) => return Ok(slot),
                Some(Err((slot, error))) => self.fail_at_once(&mut state, slot, error)?,
                None => {}
            }
        }
        self.reserve_long(state, lease)
    }

    /// Reserves the tag storage of `chunks` chunks, or of none.
    ///
    /// # Errors
    /// As [`reserve`](Self::reserve). What had been reserved is free again.
    pub fn reserve_many(
        &self,
        lease: LeaseId,
        chunks: u32,
    ) -> Result<Vec<SlotIndex>, ReserveError> {
        let (mut state, promised) = self.promise(self.lock(), lease, chunks);
        promised?;
        // The promise is within the pool's size, and so is this.
        let mut had = Vec::with_capacity(chunks as usize);
        while had.len() < chunks as usize {
            let result;
            (state, result) = self.acquire(state, lease);
            match result {
                Ok(more) => had.push(more),
                Err(error) => {
                    let unmet = chunks - had.len() as u32;
                    state = self.roll_back(state, lease, had);
                    state.retract(lease, unmet);
                    state.count_failure(&error);
                    self.wake(&state);
                    return Err(error);
                }
            }
            if (had.len() as u32).is_multiple_of(TURN) {
                state = self.let_others(state);
            }
        }
        self.wake(&state);
        Ok(had.into_iter().map(|had| had.slot).collect())
    }

    /// Frees the tag storage of a chunk. Two threads with the same lease must not free what the other was
    /// not given yet: a [`reserve_many`](Self::reserve_many) may have it already.
    ///
    /// # Errors
    /// When the lease is unknown or does not hold the slot. Then nothing has changed.
    pub fn free(&self, lease: LeaseId, slot: SlotIndex) -> Result<(), FreeError> {
        let mut state = self.lock();
        if self.instant
            && let Some(span) = state.free_at_once(lease, slot)
        {
            self.supply.give(span.blocks());
            return Ok(());
        }
        self.free_long(state, lease, slot)
    }

    /// Closes a lease and frees all it has. What other threads have under way for it is freed by them,
    /// soon after.
    ///
    /// # Errors
    /// When the lease is unknown.
    pub fn close_lease(&self, lease: LeaseId) -> Result<(), FreeError> {
        let mut state = self.lock();
        let index = state.begin_close(lease)?;
        let (mut from, mut turn) = (0, 0);
        while let Some((next, after)) = state.slots.held_by(index, from) {
            (from, turn) = (after, turn + 1);
            if let Some(slot) = next {
                let result;
                (state, result) = self.release(state, index, slot);
                result?;
            }
            if next.is_none() || turn == TURN {
                turn = 0;
                state = self.let_others(state);
            }
        }
        state.end_close(index);
        self.wake(&state);
        Ok(())
    }

    /// What is behind the blocks.
    pub fn supply(&self) -> SupplyName {
        self.supply.name()
    }

    /// The pool at this moment.
    pub fn snapshot(&self) -> PoolReport {
        self.lock().report()
    }

    /// The supply does not have the blocks of the slot that was next.
    ///
    /// # Errors
    /// Where other slots would not help.
    #[cold]
    fn fail_at_once(
        &self,
        state: &mut State,
        slot: SlotIndex,
        error: TakeError,
    ) -> Result<(), ReserveError> {
        state.defer(slot);
        if matches!(error, TakeError::Busy | TakeError::Pinned(_)) {
            return Ok(());
        }
        let error = self.refused(error);
        state.count_failure(&error);
        Err(error)
    }

    /// Reserves a slot whatever it takes.
    #[inline(never)]
    fn reserve_long(&self, state: Guard<'_>, lease: LeaseId) -> Reserved {
        let (mut state, promised) = self.promise(state, lease, 1);
        promised?;
        let result;
        (state, result) = self.acquire(state, lease);
        if let Err(error) = &result {
            state.retract(lease, 1);
            state.count_failure(error);
        }
        self.wake(&state);
        result.map(|had| had.slot)
    }

    /// Frees a slot whatever it takes.
    #[inline(never)]
    fn free_long(
        &self,
        state: Guard<'_>,
        lease: LeaseId,
        slot: SlotIndex,
    ) -> Result<(), FreeError> {
        let index = state.holder(lease, slot)?;
        self.release(state, index, slot).1
    }

    #[inline(always)]
    fn lock(&self) -> Guard<'_> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wait<'a>(&'a self, mut state: Guard<'a>) -> Guard<'a> {
        state.waiting += 1;
        let mut state = self.settled.wait(state).unwrap_or_else(PoisonError::into_inner);
        state.waiting -= 1;
        state
    }

    fn wake(&self, state: &State) {
        if state.waiting > 0 {
            self.settled.notify_all();
        }
    }

    fn let_others<'a>(&'a self, state: Guard<'a>) -> Guard<'a> {
        drop(state);
        self.lock()
    }

    /// Calls the supply; without the lock, unless it needs no time.
    fn call<'a, R>(
        &'a self,
        state: Guard<'a>,
        call: impl FnOnce(&dyn Supply) -> R,
    ) -> (Guard<'a>, R) {
        if self.instant {
            let result = call(&*self.supply);
            return (state, result);
        }
        drop(state);
        let result = call(&*self.supply);
        (self.lock(), result)
    }

    fn promise<'a>(
        &'a self,
        mut state: Guard<'a>,
        lease: LeaseId,
        chunks: u32,
    ) -> (Guard<'a>, Result<(), ReserveError>) {
        let mut waits = WAITS;
        loop {
            let Err(error) = state.promise(lease, chunks) else { return (state, Ok(())) };
            let may_settle = match error {
                ReserveError::Exhausted { .. } => state.may_settle(),
                ReserveError::OverMax { .. } => state.lease_may_settle(lease),
                _ => false,
            };
            if waits == 0 || !may_settle {
                state.count_failure(&error);
                return (state, Err(error));
            }
            waits -= 1;
            state = self.wait(state);
        }
    }

    /// Reserves one of the slots that were promised.
    fn acquire<'a>(
        &'a self,
        mut state: Guard<'a>,
        lease: LeaseId,
    ) -> (Guard<'a>, Result<Had, ReserveError>) {
        let (mut attempts, mut waits) = (ATTEMPTS, WAITS);
        // The tail is a queue: who meets this one again has been through it.
        let mut first_failed = None;
        let mut followed = false;
        let deadline = (!self.instant).then(|| Instant::now() + AT_MOST);
        loop {
            let Some(index) = state.leases.find(lease) else {
                return (state, Err(ReserveError::UnknownLease(lease)));
            };
            let next = state.choose().filter(|next| Some(next.slot) != first_failed);
            let Some(candidate) = next.filter(|_| attempts > 0) else {
                if attempts == 0 || waits == 0 || state.settling == 0 {
                    let error = state.exhausted(1);
                    return (state, Err(error));
                }
                (waits, first_failed) = (waits - 1, None);
                state = self.wait(state);
                continue;
            };
            let result;
            (state, result) = self.attempt(state, index, &candidate);
            match result {
                Ok(Attempt::Had(had)) => return (state, Ok(had)),
                // Other memory may have come into free blocks unnoticed: those are to be evicted.
                Ok(Attempt::Failed(TakeError::Busy)) if !std::mem::replace(&mut followed, true) => {
                    drop(state);
                    self.follow();
                    state = self.lock();
                    (attempts, first_failed) = (attempts - 1, None);
                    continue;
                }
                Ok(Attempt::Failed(TakeError::Busy | TakeError::Pinned(_))) => {}
                Ok(Attempt::Failed(source)) => return (state, Err(self.refused(source))),
                Err(error) => return (state, Err(error)),
            }
            let is_late = deadline.is_some_and(|deadline| Instant::now() >= deadline);
            attempts = if is_late { 0 } else { attempts - 1 };
            first_failed = first_failed.or(Some(candidate.slot));
        }
    }

    fn refused(&self, source: TakeError) -> ReserveError {
        ReserveError::Supply { supply: self.supply.name(), source }
    }

    /// Tries to reserve a slot. A lease that was closed meanwhile has none.
    fn attempt<'a>(
        &'a self,
        mut state: Guard<'a>,
        index: u32,
        candidate: &Candidate,
    ) -> (Guard<'a>, Result<Attempt, ReserveError>) {
        let slot = candidate.slot;
        let pending = match state.begin(index, candidate) {
            Ok(pending) => pending,
            Err(error) => return (state, Err(error.into())),
        };
        let (mut state, outcome) = self.call(state, |supply| pending.fill(supply));
        state.count_outcome(&outcome);
        let release = match &outcome.error {
            None => state.commit(&pending),
            Some(_) => state.abort(&pending, outcome.pinned).map(Some),
        };
        match release {
            Ok(None) => {
                self.wake(&state);
                (state, Ok(Attempt::Had(Had { slot, evicted: pending.work.evict })))
            }
            Ok(Some(release)) => {
                let (state, result) = self.give_back(state, &release);
                // Without an error it was reserved too late. The lease is looked up again next.
                let error = outcome.error.unwrap_or(TakeError::Busy);
                let failed = result.map(|()| Attempt::Failed(error));
                (state, failed.map_err(ReserveError::from))
            }
            Err(error) => (state, Err(error.into())),
        }
    }

    /// Frees what a request had reserved that cannot be met, and lends again what was lent. Its promise for
    /// the rest stands meanwhile, so that nobody fails for want of these.
    fn roll_back<'a>(&'a self, mut state: Guard<'a>, lease: LeaseId, had: Vec<Had>) -> Guard<'a> {
        // The last one first: whoever evicted a block that they share lets go of it last.
        for (turn, Had { slot, evicted }) in (1..).zip(had.into_iter().rev()) {
            // Where the lease was closed, the slot is free already.
            let Ok(index) = state.holder(lease, slot) else { continue };
            // What fails here are the books, which were right when the slot was reserved.
            (state, _) = self.release(state, index, slot);
            state.lend_again(slot, evicted);
            if u32::is_multiple_of(turn, TURN) {
                state = self.let_others(state);
            }
        }
        state
    }

    /// Frees a slot that the lease at this index holds.
    fn release<'a>(
        &'a self,
        mut state: Guard<'a>,
        index: u32,
        slot: SlotIndex,
    ) -> (Guard<'a>, Result<(), FreeError>) {
        let span = state.blocks.span(slot);
        match state.release(index, slot, span) {
            Ok(release) => {
                let (state, result) = self.give_back(state, &release);
                (state, result.map_err(FreeError::from))
            }
            Err(error) => (state, Err(error.into())),
        }
    }

    fn give_back<'a>(
        &'a self,
        state: Guard<'a>,
        release: &Release,
    ) -> (Guard<'a>, Result<(), self::blocks::Error>) {
        let give = |supply: &dyn Supply| pending::give(supply, &release.span, release.blocks);
        let (mut state, ()) = match release.blocks {
            0 => (state, ()),
            _ => self.call(state, give),
        };
        let result = state.finish(release);
        self.wake(&state);
        (state, result)
    }
}

#[cfg(test)]
mod tests;
