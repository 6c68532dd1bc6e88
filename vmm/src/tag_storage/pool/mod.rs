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
pub(crate) mod pressure;
mod requests;
pub(crate) mod share;
pub(crate) mod slots;
mod state;
pub(crate) mod status;
pub(crate) mod sync;
pub(crate) mod units;
mod waiters;

use std::sync::PoisonError;
use std::sync::atomic::AtomicUsize;
use std::time::Duration;

use arch::layout::CHUNK;
use arch::mte::geometry::Geometry;
use arch::units::Bytes;

use super::supply::{Supply, SupplyName, TakeError};
pub use adopt::Adopted;
use blocks::BlockTable;
pub use blocks::{BlockState, Error as BlockError};
pub use counters::Counters;
pub use error::{FreeError, PoolError, ReserveError};
pub use lease::{LeaseTerms, MAX_LEASES, MAX_NAME, TermsError};
use pending::Release;
pub(crate) use requests::{Order, at_most};
use slots::Slots;
use state::State;
pub use status::{BlocksReport, ChunksReport, LeaseReport, PoolReport};
use sync::{Condvar, Mutex, MutexGuard};
pub use units::{LeaseId, MAX_CAPACITY, SlotIndex, TAGS_OF_CHUNK, tags_of};
#[cfg(test)]
pub(crate) use waiters::FORGET_AFTER;

/// Pages that can refer to one block, so that the table has room for the count: 2 TiB of the smallest.
const MAX_REFERENCES: u64 = (1 << 29) - 1;

/// How often one request waits for what others have under way. Each time one of them gets on; this
/// bounds how long a lease that takes and frees without end can keep out another.
const WAITS: u32 = 256;

/// How long one wait for what others have under way may last: longer than a call of the supply takes. It ends
/// then without result, so that no fault in the pool's figures stops all requests for ever.
const SETTLE_WITHIN: Duration = Duration::from_secs(15);

/// Slots of one request that are reserved or freed before others get their turn.
const TURN: u32 = 256;

type Guard<'a> = MutexGuard<'a, State>;

/// The tag storage of a host and the slots that have their tags there.
pub struct Pool {
    state: Mutex<State>,
    /// Something under way has ended, and a thread waits for that.
    settled: Condvar,
    supply: Box<dyn Supply>,
    instant: bool,
    /// How many leases wait, for a look without the lock.
    waiting_leases: AtomicUsize,
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
            waiting_leases: AtomicUsize::new(0),
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
            let settled;
            (state, settled) = self.wait(state);
            waits = if settled { waits - 1 } else { 0 };
        }
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
            self.supply.release(span.blocks());
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
        self.count_waiters(&state);
        let mut result = Ok(());
        let (mut from, mut turn) = (0, 0);
        while let Some((next, after)) = state.slots.held_by(index, from) {
            (from, turn) = (after, turn + 1);
            if let Some(slot) = next {
                let freed;
                (state, freed) = self.release(state, index, slot);
                // The others are freed all the same.
                result = result.and(freed);
            }
            if next.is_none() || turn == TURN {
                turn = 0;
                state = self.let_others(state);
            }
        }
        state.end_close(index);
        self.wake(&state);
        result
    }

    /// What is behind the blocks.
    pub fn supply(&self) -> SupplyName {
        self.supply.name()
    }

    /// The pool at this moment.
    pub fn snapshot(&self) -> PoolReport {
        self.lock().report()
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

    /// Waits for something under way to end. Returns whether that happened in time.
    fn wait<'a>(&'a self, mut state: Guard<'a>) -> (Guard<'a>, bool) {
        state.waiting += 1;
        let waited = self.settled.wait_timeout(state, SETTLE_WITHIN);
        let (mut state, waited) = waited.unwrap_or_else(PoisonError::into_inner);
        state.waiting -= 1;
        (state, !waited.timed_out())
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
                let (state, result) = self.release_blocks(state, &release);
                (state, result.map_err(FreeError::from))
            }
            Err(error) => (state, Err(error.into())),
        }
    }

    fn release_blocks<'a>(
        &'a self,
        state: Guard<'a>,
        release: &Release,
    ) -> (Guard<'a>, Result<(), self::blocks::Error>) {
        let call = |supply: &dyn Supply| pending::release(supply, &release.span, release.blocks);
        let (mut state, ()) = match release.blocks {
            0 => (state, ()),
            _ => self.call(state, call),
        };
        let result = state.finish(release);
        self.wake(&state);
        (state, result)
    }
}

#[cfg(any(test, fuzzing))]
pub(crate) mod testing;
#[cfg(test)]
mod tests;
