//! The books of a pool, all under its lock. Nothing here calls the supply.

mod at_once;

use super::blocks::{self, BlockState, BlockTable, Span};
use super::counters::Counters;
use super::error::{FreeError, ReserveError};
use super::lease::{Lease, LeaseId, LeaseTerms, Leases, tags_of};
use super::pending::{Flight, Outcome, Release, Why};
use super::slots::{Candidate, FrameIndex, Frames, Place};
use super::status::{BlocksReport, ChunksReport, LeaseReport, PoolReport};
use crate::tag_storage::supply::{SupplyName, TakeError};

#[derive(Debug)]
pub(crate) struct State {
    supply: SupplyName,
    pub blocks: BlockTable,
    pub frames: Frames,
    pub leases: Leases,
    pub counters: Counters,
    /// Frames that are reserved, being reserved or being freed.
    held: u32,
    /// Frames beyond those that are promised to leases.
    set_aside: u32,
    /// Frames that requests under way will still take.
    claimed: u32,
    /// Calls of the supply under way, and leases being closed: what fails now may succeed after them.
    pub settling: u32,
    /// Threads that wait for one of those to end.
    pub waiting: u32,
}

impl State {
    pub(crate) fn new(supply: SupplyName, blocks: BlockTable, frames: Frames) -> Self {
        Self {
            supply,
            blocks,
            frames,
            leases: Leases::default(),
            counters: Counters::default(),
            held: 0,
            set_aside: 0,
            claimed: 0,
            settling: 0,
            waiting: 0,
        }
    }

    /// Frames that are neither held nor promised.
    fn available(&self) -> u32 {
        self.frames.len().saturating_sub(self.held).saturating_sub(self.set_aside)
    }

    /// Changes a lease, and what is set aside with it.
    #[inline]
    fn change(&mut self, slot: u32, change: impl FnOnce(&mut Lease)) {
        let Some(lease) = self.leases.get_mut(slot) else { return };
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
        Ok(id)
    }

    /// Promises `chunks` more frames to a lease: nobody else can have them until they are reserved, or
    /// the promise is [taken back](Self::retract).
    pub(crate) fn promise(&mut self, id: LeaseId, chunks: u32) -> Result<(), ReserveError> {
        let available = self.available();
        let slot = self.leases.find(id).ok_or(ReserveError::UnknownLease(id))?;
        let lease = self.leases.get_mut(slot).ok_or(ReserveError::UnknownLease(id))?;
        let room = lease.max.saturating_sub(lease.held).saturating_sub(lease.claimed);
        if chunks > room {
            let (wanted, max, supply) = (tags_of(chunks), tags_of(lease.max), self.supply);
            return Err(ReserveError::OverMax { wanted, max, supply });
        }
        let before = lease.aside();
        lease.claimed += chunks;
        let growth = lease.aside() - before;
        if growth > available {
            lease.claimed -= chunks;
            return Err(self.exhausted(chunks));
        }
        self.set_aside += growth;
        self.claimed += chunks;
        Ok(())
    }

    /// Takes back a promise.
    pub(crate) fn retract(&mut self, id: LeaseId, chunks: u32) {
        if let Some(slot) = self.leases.find(id) {
            self.change(slot, |lease| lease.claimed = lease.claimed.saturating_sub(chunks));
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

    /// Whether something is under way that may end in more being available: a call of the supply, a
    /// lease being closed, or a request whose promise may come to nothing.
    pub(crate) fn may_settle(&self) -> bool {
        self.settling > 0 || self.claimed > 0
    }

    /// The same for one lease.
    pub(crate) fn lease_may_settle(&mut self, id: LeaseId) -> bool {
        let slot = self.leases.find(id);
        let lease = slot.and_then(|slot| self.leases.get_mut(slot));
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
        self.frames.choose(&self.blocks)
    }

    #[inline]
    fn hold(&mut self, slot: u32, frame: FrameIndex) {
        self.frames.hold(frame, slot);
        self.frames.warm_neighbours(frame, &self.blocks);
        self.counters.metadata_reserve_success += 1;
    }

    /// The frame failed before anything was marked.
    pub(crate) fn defer(&mut self, frame: FrameIndex) {
        self.frames.postpone(frame);
        self.counters.tail_retries += 1;
    }

    /// Starts to reserve a frame.
    pub(crate) fn begin(
        &mut self,
        slot: u32,
        candidate: &Candidate,
    ) -> Result<Flight, blocks::Error> {
        let Candidate { frame, span, .. } = *candidate;
        let work = self.blocks.start(&span)?;
        self.frames.take(frame);
        self.held += 1;
        self.settling += 1;
        self.change(slot, |lease| {
            lease.held += 1;
            lease.claimed = lease.claimed.saturating_sub(1);
            lease.moving += 1;
        });
        Ok(Flight { slot, frame, span, work })
    }

    /// The supply has done its work: the frame is reserved. If its lease was closed meanwhile, it is to be
    /// released at once.
    pub(crate) fn land(&mut self, flight: &Flight) -> Result<Option<Release>, blocks::Error> {
        let Flight { slot, frame, span, work } = *flight;
        self.blocks.complete(&span, work)?;
        if self.leases.get_mut(slot).is_none_or(|lease| lease.closing) {
            let blocks = self.blocks.release(&span)?;
            return Ok(Some(Release { slot, frame, span, blocks, why: Why::Late }));
        }
        self.settling -= 1;
        self.change(slot, |lease| lease.moving -= 1);
        self.hold(slot, frame);
        Ok(None)
    }

    /// The supply could not do its work.
    pub(crate) fn undo(&mut self, flight: &Flight, pinned: u32) -> Result<Release, blocks::Error> {
        let Flight { slot, frame, span, work } = *flight;
        let blocks = self.blocks.undo(&span, work, pinned)?;
        Ok(Release { slot, frame, span, blocks, why: Why::Failed })
    }

    /// Counts what the supply did.
    pub(crate) fn count_outcome(&mut self, outcome: &Outcome) {
        self.counters.evictions += outcome.evicted;
        self.counters.pinned += u64::from(outcome.pinned.count_ones());
    }

    /// Starts to free a frame.
    pub(crate) fn release(
        &mut self,
        slot: u32,
        frame: FrameIndex,
        span: Span,
    ) -> Result<Release, blocks::Error> {
        let blocks = self.blocks.release(&span)?;
        self.frames.let_go(frame);
        self.settling += 1;
        self.change(slot, |lease| lease.moving += 1);
        Ok(Release { slot, frame, span, blocks, why: Why::Freed })
    }

    /// The supply has the blocks again: the frame is free.
    pub(crate) fn finish(&mut self, release: &Release) -> Result<(), blocks::Error> {
        let Release { slot, frame, span, blocks, why } = *release;
        self.blocks.settle(&span, blocks)?;
        match why {
            Why::Failed => self.defer(frame),
            Why::Freed | Why::Late => self.frames.recycle(frame, &self.blocks),
        }
        self.counters.metadata_reserve_free += u64::from(why == Why::Freed);
        self.held -= 1;
        self.settling -= 1;
        self.change(slot, |lease| {
            lease.held -= 1;
            lease.moving -= 1;
            // It goes on with another frame.
            lease.claimed += u32::from(why == Why::Failed && !lease.closing);
        });
        self.remove_if_closed(slot);
        Ok(())
    }

    /// The slot of a lease that holds this frame.
    pub(crate) fn holder(&self, id: LeaseId, frame: FrameIndex) -> Result<u32, FreeError> {
        let slot = self.leases.find(id).ok_or(FreeError::UnknownLease(id))?;
        match self.frames.place(frame) {
            Some(Place::Held(holder)) if holder == slot => Ok(slot),
            _ => Err(FreeError::NotHeld { lease: id, frame }),
        }
    }

    /// Nobody knows the lease any more; its frames are to be freed.
    pub(crate) fn begin_close(&mut self, id: LeaseId) -> Result<u32, FreeError> {
        let slot = self.leases.find(id).ok_or(FreeError::UnknownLease(id))?;
        self.leases.forget_id(slot);
        self.settling += 1;
        self.change(slot, |lease| {
            lease.closing = true;
            lease.claimed = 0;
            lease.moving += 1;
        });
        Ok(slot)
    }

    /// All its frames are free, but for those that calls under way will free.
    pub(crate) fn end_close(&mut self, slot: u32) {
        self.settling -= 1;
        self.change(slot, |lease| lease.moving -= 1);
        self.remove_if_closed(slot);
    }

    fn remove_if_closed(&mut self, slot: u32) {
        let is_closed = |lease: &mut Lease| lease.closing && lease.moving == 0;
        if self.leases.get_mut(slot).is_some_and(is_closed) {
            self.leases.remove(slot);
        }
    }

    /// Lends those blocks of a frame again that were lent before it was reserved and are free.
    pub(crate) fn lend_again(&mut self, frame: FrameIndex, lent: u32) {
        let span = self.blocks.span(frame);
        self.blocks.lend_again(&span, lent);
    }

    /// Ends the calling back of lent blocks. Returns how many are free.
    pub(crate) fn recalled(
        &mut self,
        run: std::ops::Range<usize>,
        result: &Result<(), TakeError>,
        pinned: std::ops::Range<usize>,
    ) -> Result<u64, blocks::Error> {
        self.settling -= 1;
        let count = run.len() as u64;
        if result.is_ok() {
            self.counters.evictions += count;
            self.frames.leave_tail(self.blocks.frames(&run));
            return self.blocks.recalled(run, BlockState::Free).map(|()| count);
        }
        self.counters.pinned += pinned.len() as u64;
        self.blocks.recalled(run.start..pinned.start, BlockState::Lent)?;
        self.blocks.recalled(pinned.clone(), BlockState::Pinned)?;
        self.blocks.recalled(pinned.end..run.end, BlockState::Lent)?;
        Ok(0)
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
                total: self.frames.len(),
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
