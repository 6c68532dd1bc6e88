//! Requests for slots: the promise, the search for slots that can be had, and the way back.

use std::time::{Duration, Instant};

use super::blocks::Mask;
use super::slots::Candidate;
use super::{Guard, LeaseId, Pool, ReserveError, SlotIndex, State, TURN, TakeError, WAITS};

/// Slots that one request tries with the supply. Each may cost three migrations of up to 64 KiB; the next
/// request continues with other slots.
pub(super) const ATTEMPTS: u32 = 32;

/// How long one request may take, where trying takes time: others' memory can be hard to search and to
/// move. Far less than a client of a broker waits for its answer.
const AT_MOST: Duration = Duration::from_secs(10);

/// How much longer for each of its chunks: an emulated host that is busy has been seen to move the pages of
/// twenty a second.
const A_CHUNK: Duration = Duration::from_millis(100);

/// How long a request for so many chunks may take.
pub(crate) fn at_most(chunks: u32) -> Duration {
    AT_MOST.saturating_add(A_CHUNK.saturating_mul(chunks))
}

/// Whose turn it is when several leases want the same slots.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Order {
    /// Leases that wait and rank before this one come first.
    Fair,
    /// This request comes first: it is for memory that is in use already, as its VM says.
    First,
}

type Reserved = Result<SlotIndex, ReserveError>;

/// A slot that was reserved.
pub(super) struct Had {
    pub slot: SlotIndex,
    /// Blocks of it that were lent before.
    evicted: Mask,
}

/// What came of trying a slot.
pub(super) enum Attempt {
    Had(Had),
    /// The supply does not have it. It is at the tail.
    Failed(TakeError),
}

/// Whether the time for a request is over.
pub(super) fn is_late(deadline: Option<Instant>) -> bool {
    deadline.is_some_and(|deadline| Instant::now() >= deadline)
}

impl Pool {
    /// Reserves the tag storage of one chunk.
    ///
    /// # Errors
    /// When the lease is unknown or has its maximum, or no tag storage can be had. Then nothing has changed
    /// but counters, the order of the tail, and lent blocks that turned out to be pinned.
    pub fn reserve(&self, lease: LeaseId) -> Result<SlotIndex, ReserveError> {
        self.reserve_one(lease, self.deadline(1))
    }

    /// The time by which a request for so many chunks is to be answered; none where none takes long.
    pub(crate) fn deadline(&self, chunks: u32) -> Option<Instant> {
        (!self.instant).then(|| Instant::now() + at_most(chunks))
    }

    fn reserve_one(&self, lease: LeaseId, deadline: Option<Instant>) -> Reserved {
        let mut state = self.lock();
        if self.instant && state.waiters.len() == 0 {
            match state.reserve_at_once(lease, |blocks| self.supply.take(blocks)) {
                Some(Ok(slot)) => return Ok(slot),
                Some(Err((slot, error))) => self.fail_at_once(&mut state, slot, error)?,
                None => {}
            }
        }
        let (mut state, result) = self.reserve_long(state, (lease, Order::Fair), deadline);
        if result.is_ok() {
            state.end_wait(lease);
            self.count_waiters(&state);
        }
        result
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
        self.reserve_by(lease, chunks, self.deadline(chunks))
    }

    /// Reserves the tag storage of `chunks` chunks or, where there is not enough for so many or not in time, of `least`,
    /// which is no more; or of none. A request that gets the least has not failed.
    ///
    /// # Errors
    /// As [`reserve_by`](Self::reserve_by), where not even the least can be had.
    pub(crate) fn reserve_at_least(
        &self,
        lease: LeaseId,
        (least, chunks): (u32, u32),
        deadline: Option<Instant>,
    ) -> Result<Vec<SlotIndex>, ReserveError> {
        if least >= chunks {
            return self.reserve_by(lease, least, deadline);
        }
        let mut state = self.lock();
        match state.promise(lease, chunks, Order::Fair) {
            Ok(()) => self.fulfil(state, lease, (least, chunks), deadline),
            Err(_) => {
                drop(state);
                self.reserve_by(lease, least, deadline)
            }
        }
    }

    /// As [`reserve_many`](Self::reserve_many), and starts nothing that may take long after this time.
    ///
    /// # Errors
    /// As [`reserve_many`](Self::reserve_many), and when the time is over.
    pub(crate) fn reserve_by(
        &self,
        lease: LeaseId,
        chunks: u32,
        deadline: Option<Instant>,
    ) -> Result<Vec<SlotIndex>, ReserveError> {
        if chunks == 1 {
            return self.reserve_one(lease, deadline).map(|slot| vec![slot]);
        }
        let (state, promised) = self.promise(self.lock(), (lease, Order::Fair), chunks);
        promised?;
        self.fulfil(state, lease, (chunks, chunks), deadline)
    }

    /// Reserves what was promised for `chunks` chunks. Where not all of it can be had, what is beyond the least of them is
    /// given up, and where not even those can, all.
    fn fulfil<'a>(
        &'a self,
        mut state: Guard<'a>,
        lease: LeaseId,
        (least, chunks): (u32, u32),
        deadline: Option<Instant>,
    ) -> Result<Vec<SlotIndex>, ReserveError> {
        // The promise is within the pool's size, and so is this.
        let mut had = Vec::with_capacity(chunks as usize);
        while had.len() < chunks as usize {
            let result;
            (state, result) = match is_late(deadline) && !had.is_empty() {
                true => (state, Err(None)),
                false => {
                    let (state, result) = self.acquire(state, lease, deadline);
                    (state, result.map_err(Some))
                }
            };
            match result {
                Ok(more) => had.push(more),
                Err(error) => {
                    let unmet = chunks - had.len() as u32;
                    let error = error.unwrap_or_else(|| state.timed_out(least));
                    let is_met = had.len() >= least as usize && error.is_lack();
                    let kept = if is_met { least as usize } else { 0 };
                    state = self.roll_back(state, lease, had.split_off(kept));
                    state.retract(lease, unmet);
                    if is_met {
                        break;
                    }
                    state.count_failure(&error);
                    self.wake(&state);
                    return Err(error);
                }
            }
            if (had.len() as u32).is_multiple_of(TURN) {
                state = self.let_others(state);
            }
        }
        state.end_wait(lease);
        self.count_waiters(&state);
        self.wake(&state);
        Ok(had.into_iter().map(|had| had.slot).collect())
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
    pub(super) fn reserve_long<'a>(
        &'a self,
        state: Guard<'a>,
        (lease, order): (LeaseId, Order),
        deadline: Option<Instant>,
    ) -> (Guard<'a>, Reserved) {
        let (mut state, promised) = self.promise(state, (lease, order), 1);
        if let Err(error) = promised {
            return (state, Err(error));
        }
        let result;
        (state, result) = self.acquire(state, lease, deadline);
        if let Err(error) = &result {
            state.retract(lease, 1);
            state.count_failure(error);
        }
        self.wake(&state);
        (state, result.map(|had| had.slot))
    }

    pub(super) fn promise<'a>(
        &'a self,
        mut state: Guard<'a>,
        (lease, order): (LeaseId, Order),
        chunks: u32,
    ) -> (Guard<'a>, Result<(), ReserveError>) {
        let mut waits = WAITS;
        loop {
            let Err(error) = state.promise(lease, chunks, order) else { return (state, Ok(())) };
            let may_settle = match error {
                ReserveError::Exhausted { .. } => state.may_settle(),
                ReserveError::OverMax { .. } => state.lease_may_settle(lease),
                _ => false,
            };
            if waits == 0 || !may_settle {
                state.count_failure(&error);
                return (state, Err(error));
            }
            let settled;
            (state, settled) = self.wait(state);
            waits = if settled { waits - 1 } else { 0 };
        }
    }

    /// Reserves one of the slots that were promised.
    fn acquire<'a>(
        &'a self,
        mut state: Guard<'a>,
        lease: LeaseId,
        deadline: Option<Instant>,
    ) -> (Guard<'a>, Result<Had, ReserveError>) {
        let (mut attempts, mut waits) = (ATTEMPTS, WAITS);
        // The tail is a queue: who meets this one again has been through it.
        let mut first_failed = None;
        let (mut followed, mut late) = (false, false);
        loop {
            let Some(index) = state.leases.find(lease) else {
                return (state, Err(ReserveError::UnknownLease(lease)));
            };
            let next = state.choose().filter(|next| Some(next.slot) != first_failed);
            let Some(candidate) = next.filter(|_| attempts > 0) else {
                if attempts == 0 || waits == 0 || state.settling == 0 {
                    let error = match late || waits == 0 {
                        true => state.timed_out(1),
                        false => state.exhausted(1),
                    };
                    return (state, Err(error));
                }
                let settled;
                (state, settled) = self.wait(state);
                (waits, first_failed) = (if settled { waits - 1 } else { 0 }, None);
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
            late = is_late(deadline);
            attempts = if late { 0 } else { attempts - 1 };
            first_failed = first_failed.or(Some(candidate.slot));
        }
    }

    pub(super) fn refused(&self, source: TakeError) -> ReserveError {
        ReserveError::Supply { supply: self.supply.name(), source }
    }

    /// Tries to reserve a slot. A lease that was closed during the attempt has none.
    pub(super) fn attempt<'a>(
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
                let (state, result) = self.release_blocks(state, &release);
                // Without an error it was reserved too late. The lease is looked up again next.
                let error = outcome.error.unwrap_or(TakeError::Busy);
                let failed = result.map(|()| Attempt::Failed(error));
                (state, failed.map_err(ReserveError::from))
            }
            Err(error) => (state, Err(error.into())),
        }
    }

    /// Frees what a request had reserved that cannot be met, and lends again what was lent. Its promise for
    /// the rest stands until then, so that no other request of it fails for want of these.
    fn roll_back<'a>(&'a self, mut state: Guard<'a>, lease: LeaseId, had: Vec<Had>) -> Guard<'a> {
        // The last one first: the slot that evicted a block that they share releases it last.
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
}
