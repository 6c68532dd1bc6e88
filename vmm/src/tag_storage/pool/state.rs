//! The books of a pool, all under its lock. Nothing here calls the supply.

mod at_once;
mod fairness;

use super::blocks::{self, BlockState, BlockTable, Span};
use super::counters::Counters;
use super::error::{FreeError, ReserveError};
use super::lease::{Lease, LeaseTerms, Leases};
use super::pending::{Outcome, PendingReservation, Release, Why};
use super::requests::Order;
use super::slots::{Candidate, Place, Slots};
use super::status::{BlocksReport, ChunksReport, LeaseReport, PoolReport};
use super::units::{LeaseId, SlotIndex, tags_of};
use super::waiters::Waiters;
use crate::tag_storage::supply::{SupplyName, TakeError};

/// Which part of what is available a lease may have before it uses it.
const SPARE_PART: u32 = 8;

#[derive(Debug)]
pub(crate) struct State {
    supply: SupplyName,
    pub blocks: BlockTable,
    pub slots: Slots,
    pub leases: Leases,
    pub counters: Counters,
    /// Slots that are reserved, being reserved or being freed.
    held: u32,
    /// Slots beyond those that are promised to leases.
    set_aside: u32,
    /// Slots that requests under way will still take.
    claimed: u32,
    /// Calls of the supply under way, and leases being closed: what fails now may succeed after them.
    pub settling: u32,
    /// Threads that wait for one of those to end.
    pub waiting: u32,
    /// Leases that wait for chunks.
    pub waiters: Waiters,
    /// The share of each open lease.
    share: u32,
}

impl State {
    pub(crate) fn new(supply: SupplyName, blocks: BlockTable, slots: Slots) -> Self {
        Self {
            supply,
            blocks,
            slots,
            leases: Leases::default(),
            counters: Counters::default(),
            held: 0,
            set_aside: 0,
            claimed: 0,
            settling: 0,
            waiting: 0,
            waiters: Waiters::default(),
            share: u32::MAX,
        }
    }

    /// How many slots have been taken so far: it tells whether an observation of the supply is out of date.
    pub(crate) fn taken(&self) -> u64 {
        self.counters.metadata_reserve_success
    }

    /// Slots that are neither held nor promised.
    fn available(&self) -> u32 {
        self.slots.len().saturating_sub(self.held).saturating_sub(self.set_aside)
    }

    /// A part of what is available, within a lease's maximum. Nothing while others' memory is in some of the pool.
    pub(crate) fn headroom(&mut self, id: LeaseId) -> u32 {
        let lent = [BlockState::Lent, BlockState::Evicting, BlockState::Pinned];
        if lent.iter().any(|state| self.blocks.total(*state) > 0) {
            return 0;
        }
        let part = self.available() / SPARE_PART;
        let index = self.leases.find(id);
        let lease = index.and_then(|index| self.leases.get_mut(index));
        lease.map_or(0, |lease| part.min(lease.max.saturating_sub(lease.held)))
    }

    /// Changes a lease, and what is set aside with it.
    #[inline]
    fn change(&mut self, index: u32, change: impl FnOnce(&mut Lease)) {
        let Some(lease) = self.leases.get_mut(index) else { return };
        let (aside, claimed) = (lease.aside(), lease.claimed);
        change(lease);
        self.set_aside = self.set_aside - aside + lease.aside();
        self.claimed = self.claimed - claimed + lease.claimed;
    }

    /// Opens a lease and sets its minimum aside.
    pub(crate) fn open(&mut self, terms: LeaseTerms) -> Result<LeaseId, ReserveError> {
        let lease = Lease::new(terms).map_err(ReserveError::Terms)?;
        let min = lease.aside();
        if min > self.available() {
            return Err(self.exhausted(min));
        }
        let id = self.leases.add(lease).ok_or(ReserveError::TooManyLeases)?;
        self.set_aside += min;
        self.divide();
        Ok(id)
    }

    /// Promises `chunks` more slots to a lease: no other lease can have them until they are reserved, or
    /// the promise is [taken back](Self::retract). In [`Order::Fair`] what leases wait for that rank before this
    /// one is left for them.
    pub(crate) fn promise(
        &mut self,
        id: LeaseId,
        chunks: u32,
        order: Order,
    ) -> Result<(), ReserveError> {
        let index = self.may_promise(id, chunks, order)?;
        self.change(index, |lease| lease.claimed += chunks);
        self.waiters.promised(index);
        Ok(())
    }

    /// Whether `chunks` more slots can be [promised](Self::promise) to a lease. Returns its index.
    pub(crate) fn may_promise(
        &self,
        id: LeaseId,
        chunks: u32,
        order: Order,
    ) -> Result<u32, ReserveError> {
        let index = self.leases.find(id).ok_or(ReserveError::UnknownLease(id))?;
        let lease = self.leases.get(index).ok_or(ReserveError::UnknownLease(id))?;
        let room = lease.max.saturating_sub(lease.held).saturating_sub(lease.claimed);
        if chunks > room {
            let (wanted, max, supply) = (tags_of(chunks), tags_of(lease.max), self.supply);
            return Err(ReserveError::OverMax { wanted, max, supply });
        }
        let growth = lease.growth(chunks);
        let ahead = match order {
            Order::Fair if growth > 0 => self.ahead_of(index),
            Order::Fair | Order::First => 0,
        };
        if growth.saturating_add(ahead) > self.available() {
            return Err(self.exhausted(chunks));
        }
        Ok(index)
    }

    /// Takes back a promise.
    pub(crate) fn retract(&mut self, id: LeaseId, chunks: u32) {
        if let Some(index) = self.leases.find(id) {
            self.change(index, |lease| lease.claimed = lease.claimed.saturating_sub(chunks));
        }
    }

    pub(crate) fn exhausted(&self, chunks: u32) -> ReserveError {
        ReserveError::Exhausted {
            wanted: tags_of(chunks),
            free: tags_of(self.available()),
            set_aside: tags_of(self.set_aside),
            supply: self.supply,
        }
    }

    pub(crate) fn timed_out(&self, chunks: u32) -> ReserveError {
        ReserveError::TimedOut { wanted: tags_of(chunks), supply: self.supply }
    }

    /// Whether something is under way that may end in more being available: a call of the supply, a
    /// lease being closed, or a request whose promise may come to nothing.
    pub(crate) fn may_settle(&self) -> bool {
        self.settling > 0 || self.claimed > 0
    }

    /// The same for one lease.
    pub(crate) fn lease_may_settle(&mut self, id: LeaseId) -> bool {
        let index = self.leases.find(id);
        let lease = index.and_then(|index| self.leases.get_mut(index));
        lease.is_some_and(|lease| lease.moving > 0 || lease.claimed > 0)
    }

    /// Counts a request that failed.
    pub(crate) fn count_failure(&mut self, error: &ReserveError) {
        match error {
            error if error.is_lack() => self.counters.metadata_reserve_fail += 1,
            ReserveError::UnknownLease(_) | ReserveError::Blocks(_) => {}
            _ => self.counters.denied += 1,
        }
    }

    pub(crate) fn choose(&mut self) -> Option<Candidate> {
        self.slots.choose(&self.blocks)
    }

    #[inline]
    fn hold(&mut self, index: u32, slot: SlotIndex) {
        self.slots.hold(slot, index);
        self.slots.warm_neighbours(slot, &self.blocks);
        self.counters.metadata_reserve_success += 1;
    }

    /// The slot failed before anything was marked.
    pub(crate) fn defer(&mut self, slot: SlotIndex) {
        self.slots.postpone(slot);
        self.counters.tail_retries += 1;
    }

    /// Starts to reserve a slot.
    pub(crate) fn begin(
        &mut self,
        index: u32,
        candidate: &Candidate,
    ) -> Result<PendingReservation, blocks::Error> {
        let Candidate { slot, span, .. } = *candidate;
        let work = self.blocks.start(&span)?;
        self.slots.take(slot);
        self.held += 1;
        self.settling += 1;
        self.change(index, |lease| {
            lease.held += 1;
            lease.claimed = lease.claimed.saturating_sub(1);
            lease.moving += 1;
        });
        Ok(PendingReservation { index, slot, span, work })
    }

    /// The supply has done its work: the slot is reserved. If its lease was closed while it did, it is to be
    /// released at once.
    pub(crate) fn commit(
        &mut self,
        pending: &PendingReservation,
    ) -> Result<Option<Release>, blocks::Error> {
        let PendingReservation { index, slot, span, work } = *pending;
        let completed = self.blocks.complete(&span, work);
        self.end_on_error(index, completed)?;
        if self.leases.get_mut(index).is_none_or(|lease| lease.closing) {
            let released = self.blocks.release(&span);
            let blocks = self.end_on_error(index, released)?;
            return Ok(Some(Release { index, slot, span, blocks, why: Why::Late }));
        }
        self.settling -= 1;
        self.change(index, |lease| lease.moving -= 1);
        self.hold(index, slot);
        Ok(None)
    }

    /// The supply could not do its work.
    pub(crate) fn abort(
        &mut self,
        pending: &PendingReservation,
        pinned: u32,
    ) -> Result<Release, blocks::Error> {
        let PendingReservation { index, slot, span, work } = *pending;
        let aborted = self.blocks.abort(&span, work, pinned);
        let blocks = self.end_on_error(index, aborted)?;
        Ok(Release { index, slot, span, blocks, why: Why::Failed })
    }

    /// Ends what is under way for a lease if the blocks are not as they should be. The slot stays out of use; no
    /// other request waits for it.
    fn end_on_error<T>(
        &mut self,
        index: u32,
        result: Result<T, blocks::Error>,
    ) -> Result<T, blocks::Error> {
        if result.is_err() {
            self.settling -= 1;
            self.change(index, |lease| lease.moving -= 1);
            self.remove_if_closed(index);
        }
        result
    }

    /// Counts what the supply did.
    pub(crate) fn count_outcome(&mut self, outcome: &Outcome) {
        self.counters.evictions += outcome.evicted;
        self.counters.pinned += u64::from(outcome.pinned.count_ones());
    }

    /// Starts to free a slot.
    pub(crate) fn release(
        &mut self,
        index: u32,
        slot: SlotIndex,
        span: Span,
    ) -> Result<Release, blocks::Error> {
        let blocks = self.blocks.release(&span)?;
        self.slots.start_release(slot);
        self.settling += 1;
        self.change(index, |lease| lease.moving += 1);
        Ok(Release { index, slot, span, blocks, why: Why::Freed })
    }

    /// The supply has the blocks again: the slot is free.
    pub(crate) fn finish(&mut self, release: &Release) -> Result<(), blocks::Error> {
        let Release { index, slot, span, blocks, why } = *release;
        let settled = self.blocks.settle(&span, blocks);
        self.end_on_error(index, settled)?;
        match why {
            Why::Failed => self.defer(slot),
            Why::Freed | Why::Late => self.slots.recycle(slot, &self.blocks),
        }
        self.counters.metadata_reserve_free += u64::from(why == Why::Freed);
        self.held -= 1;
        self.settling -= 1;
        self.change(index, |lease| {
            lease.held -= 1;
            lease.moving -= 1;
            // Its request continues with another slot.
            lease.claimed += u32::from(why == Why::Failed && !lease.closing);
        });
        self.remove_if_closed(index);
        Ok(())
    }

    /// The index of a lease that holds this slot.
    pub(crate) fn holder(&self, id: LeaseId, slot: SlotIndex) -> Result<u32, FreeError> {
        let index = self.leases.find(id).ok_or(FreeError::UnknownLease(id))?;
        match self.slots.place(slot) {
            Some(Place::Held(holder)) if holder == index => Ok(index),
            _ => Err(FreeError::NotHeld { lease: id, slot }),
        }
    }

    /// The lease's id is unknown from here on; its slots are to be freed.
    pub(crate) fn begin_close(&mut self, id: LeaseId) -> Result<u32, FreeError> {
        let index = self.leases.find(id).ok_or(FreeError::UnknownLease(id))?;
        self.leases.forget_id(index);
        self.waiters.leave(index);
        self.settling += 1;
        self.change(index, |lease| {
            lease.closing = true;
            lease.claimed = 0;
            lease.moving += 1;
        });
        self.divide();
        Ok(index)
    }

    /// All its slots are free, but for those that calls under way will free.
    pub(crate) fn end_close(&mut self, index: u32) {
        self.settling -= 1;
        self.change(index, |lease| lease.moving -= 1);
        self.remove_if_closed(index);
    }

    fn remove_if_closed(&mut self, index: u32) {
        let is_closed = |lease: &mut Lease| lease.closing && lease.moving == 0;
        if self.leases.get_mut(index).is_some_and(is_closed) {
            self.leases.remove(index);
        }
    }

    /// Lends those blocks of a slot again that were lent before it was reserved and are free.
    pub(crate) fn lend_again(&mut self, slot: SlotIndex, lent: u32) {
        let span = self.blocks.span(slot);
        self.blocks.lend_again(&span, lent);
    }

    pub(crate) fn report(&self) -> PoolReport {
        let total = |state| self.blocks.total(state);
        let blocks = self.blocks.len() as u64;
        let block = self.blocks.block().get();
        PoolReport {
            supply: self.supply.to_string(),
            capacity_bytes: blocks * block,
            block_bytes: block,
            blocks: BlocksReport {
                total: blocks,
                free: total(BlockState::Free),
                reserving: total(BlockState::Reserving),
                reserved: total(BlockState::Reserved),
                releasing: total(BlockState::Releasing),
                lent: total(BlockState::Lent),
                evicting: total(BlockState::Evicting),
                pinned: total(BlockState::Pinned),
                disabled: total(BlockState::Disabled),
            },
            chunks: ChunksReport {
                total: self.slots.len(),
                reserved: self.held,
                set_aside: self.set_aside,
                free: self.available(),
            },
            leases: self.leases.iter().map(lease_report).collect(),
            counters: self.counters,
        }
    }
}

fn lease_report(lease: &Lease) -> LeaseReport {
    LeaseReport {
        id: lease.id,
        name: lease.name.clone(),
        chunks: lease.held,
        reserved_bytes: tags_of(lease.held).get(),
        min_bytes: tags_of(lease.min).get(),
        max_bytes: tags_of(lease.max).get(),
        closing: lease.closing,
    }
}
