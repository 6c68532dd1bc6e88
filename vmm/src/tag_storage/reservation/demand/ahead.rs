//! Chunks that are reserved for before they are touched, and taken back when they are not.
//!
//! A touch that is caught costs switches between threads and calls of the kernel. A chunk that is ahead costs none of
//! that: no touch of it is caught. Until it is looked at nothing tells whether it was touched, so it keeps its slot unless
//! it is armed first and is still without a page then.

use std::ops::Range;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use arch::layout::CHUNK;
use arch::range::MemoryRange;
use arch::units::Bytes;

use super::Shared;
use crate::memory::GuestRam;
use crate::tag_storage::chunk::{ChunkIndex, each, one};
use crate::tag_storage::reservation::chunk_table::State;

/// Chunks for which tag storage is left to touches, at least, when a chunk is loaded that is not touched: 16 MiB of memory.
pub(super) const LEFT_TO_TOUCHES: u64 = 8;

/// When chunks may be ahead, and for how long.
#[derive(Clone, Copy, Debug)]
pub(super) struct AheadLimits {
    /// How many at once.
    pub most: u64,
    /// How long none is after the pool was short.
    pub calm: Duration,
    /// One that is not touched within one to two of these is taken back.
    pub idle: Duration,
}

impl AheadLimits {
    /// 2 MiB of tag storage, where the host gives this memory huge pages. Elsewhere a caught touch costs little, and one
    /// call for all of a chunk's pages less than a fault for each.
    pub(super) fn of(ram: &GuestRam) -> Self {
        let most = if ram.huge_page_size() == Some(CHUNK) { 32 } else { 0 };
        Self { most, calm: Duration::from_secs(10), idle: Duration::from_secs(2) }
    }
}

/// What the fault thread knows of the chunks that are ahead.
#[derive(Debug)]
pub(super) struct Ahead {
    limits: AheadLimits,
    /// None is ahead until then.
    calm_until: Option<Instant>,
    /// Those that were ahead at the last look.
    seen: Vec<ChunkIndex>,
    next_look: Option<Instant>,
    /// Touches that found no room since all that are ahead were looked at for one.
    in_vain: u64,
}

impl Ahead {
    pub(super) fn new(limits: AheadLimits) -> Self {
        Self { limits, calm_until: None, seen: Vec::new(), next_look: None, in_vain: 0 }
    }

    /// How many more chunks may be ahead when one is touched. Those that have been touched meanwhile make room once they
    /// are looked at. Where a guest's free memory is in pieces, all that is ahead may be untouched for long: it is looked at
    /// once in as many touches without room as may be ahead, so that a touch costs one look.
    pub(super) fn room(&mut self, shared: &Shared) -> u64 {
        if self.limits.most == 0 || self.calm_until.is_some_and(|until| Instant::now() < until) {
            return 0;
        }
        self.calm_until = None;
        let left = || self.limits.most.saturating_sub(shared.table().ahead().len() as u64);
        let mut room = left();
        if room == 0 {
            self.in_vain += 1;
            if self.in_vain >= self.limits.most {
                shared.settle_ahead();
                (room, self.in_vain) = (left(), 0);
            }
        }
        room.min(shared.pool.headroom())
    }

    /// Whether a chunk may be loaded before it is touched: where the pool has plenty, and has been short of nothing. It is
    /// not taken back as one that is ahead is, so that some are left for touches.
    pub(super) fn has_plenty(&self, shared: &Shared) -> bool {
        let is_calm = self.calm_until.is_some_and(|until| Instant::now() < until);
        !is_calm && shared.pool.headroom() > LEFT_TO_TOUCHES
    }

    /// Some have been reserved for.
    pub(super) fn opened(&mut self) {
        self.next_look = self.next_look.or_else(|| self.after_idle());
    }

    /// The pool is short: takes back all that are not touched, and reserves for none for a while. Returns how many it was.
    pub(super) fn yield_all(&mut self, shared: &Shared) -> u64 {
        self.calm_until = Instant::now().checked_add(self.limits.calm);
        let all = shared.table().ahead().to_vec();
        shared.take_back(&all)
    }

    /// How long until the next look, if there is any reason for one.
    pub(super) fn until_look(&self) -> Option<Duration> {
        Some(self.next_look?.saturating_duration_since(Instant::now()))
    }

    /// Takes back, if it is time, what was ahead at the last look and has not been touched since.
    pub(super) fn look(&mut self, shared: &Shared) {
        if self.until_look().is_none_or(|left| !left.is_zero()) {
            return;
        }
        let seen = std::mem::take(&mut self.seen);
        let is_ahead = |chunk: &ChunkIndex| shared.table().state(*chunk) == Some(State::Ahead);
        let idle: Vec<ChunkIndex> = seen.into_iter().filter(is_ahead).collect();
        shared.take_back(&idle);
        shared.settle_ahead();
        self.seen = shared.table().ahead().to_vec();
        self.next_look = if self.seen.is_empty() { None } else { self.after_idle() };
    }

    /// The time of the next look. One beyond all clocks is none.
    fn after_idle(&self) -> Option<Instant> {
        Instant::now().checked_add(self.limits.idle)
    }
}

impl Shared {
    /// Has those that are ahead and have been touched be populated. For the fault thread: no other reserves for chunks, so
    /// that one that is found touched has the same slot still, or none.
    fn settle_ahead(&self) {
        let ahead = self.table().ahead().to_vec();
        self.settle_touched(ahead.into_iter());
    }

    /// The same for those of a walk.
    pub(super) fn settle_walk(&self, given: &Range<ChunkIndex>) {
        let is_ahead = |chunk: &ChunkIndex| self.table().state(*chunk) == Some(State::Ahead);
        self.settle_touched(each(given).filter(is_ahead));
    }

    fn settle_touched(&self, ahead: impl Iterator<Item = ChunkIndex>) {
        for chunk in ahead.filter(|chunk| !self.is_untouched(*chunk)) {
            self.table().settle(chunk);
        }
    }

    /// Frees those of these chunks that are ahead and have no page: those with one are populated, and those that cannot
    /// be armed stay ahead. Returns how many are free.
    fn take_back(&self, chunks: &[ChunkIndex]) -> u64 {
        let before = self.counters.taken_back.get();
        for chunk in chunks {
            if !self.is_untouched(*chunk) {
                self.table().settle(*chunk);
            } else if self.free_if_absent(*chunk) {
                self.counters.taken_back.add(1);
            }
        }
        self.counters.taken_back.get() - before
    }

    /// How many chunks are ahead, without those that turn out to be touched.
    pub(super) fn count_ahead(&self) -> u64 {
        let ahead = self.table().ahead().to_vec();
        ahead.into_iter().filter(|chunk| self.is_untouched(*chunk)).count() as u64
    }

    /// The pool is short: what is ahead is to be taken back.
    pub(super) fn yield_ahead(&self) {
        self.yields.store(true, Ordering::SeqCst);
        self.signal();
    }

    /// Whether a chunk has no page as far as the host tells. A huge page shows in the entry of its first page, so that one
    /// is read before the others.
    fn is_untouched(&self, chunk: ChunkIndex) -> bool {
        let page = Bytes::new(rustix::param::page_size() as u64);
        let first = MemoryRange::new(self.faults.range_of(&one(chunk)).base, page);
        let absent =
            |range| self.residency.is_absent(range).is_ok_and(|absent| absent == Some(true));
        absent(first) && self.is_absent(chunk)
    }
}
