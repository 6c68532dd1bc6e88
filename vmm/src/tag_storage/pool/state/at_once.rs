//! The usual request at the usual supply: blocks that no two frames share, a supply that needs no time, a
//! frame whose blocks are free. Then nothing is marked, promised or undone, and the cost is that of the
//! books themselves. Whatever else there is takes the long way, which ends in the same books.

use std::ops::Range;

use arch::mte::geometry::BlockIndex;

use super::{FrameIndex, LeaseId, Span, State, TakeError};

impl State {
    /// Reserves the next frame for a lease if that needs nothing but taking its blocks. `None` where there
    /// is more to be done, and nothing has changed.
    #[inline(always)]
    pub(crate) fn reserve_at_once(
        &mut self,
        id: LeaseId,
        take: impl FnOnce(Range<BlockIndex>) -> Result<(), TakeError>,
    ) -> Option<Result<FrameIndex, (FrameIndex, TakeError)>> {
        let lease = self.leases.open(id)?;
        // With a promise outstanding what is set aside follows other rules.
        if lease.claimed > 0 || lease.held >= lease.max {
            return None;
        }
        let is_aside = lease.held < lease.min;
        if !is_aside && self.held + self.set_aside >= self.frames.len() {
            return None;
        }
        let frame = self.frames.next_at_once()?;
        let span = self.blocks.separate_span(frame)?;
        if !self.blocks.is_free(&span) {
            return None;
        }
        if let Err(error) = take(span.blocks()) {
            return Some(Err((frame, error)));
        }
        self.set_aside -= u32::from(is_aside);
        lease.held += 1;
        self.held += 1;
        self.counters.metadata_reserve_success += 1;
        self.blocks.reserve_free(&span);
        self.frames.hold_at_once(frame, id.slot());
        Some(Ok(frame))
    }

    /// Frees a frame if that needs nothing but giving its blocks back: these are returned.
    #[inline(always)]
    pub(crate) fn free_at_once(&mut self, id: LeaseId, frame: FrameIndex) -> Option<Span> {
        let span = self.blocks.separate_span(frame)?;
        let lease = self.leases.open(id)?;
        if lease.claimed > 0 || !self.frames.is_held_by(frame, id.slot()) {
            return None;
        }
        lease.held -= 1;
        self.set_aside += u32::from(lease.held < lease.min);
        self.held -= 1;
        self.counters.metadata_reserve_free += 1;
        // All blocks of a frame that is held are reserved.
        self.blocks.free_reserved(&span);
        self.frames.recycle_at_once(frame);
        Some(span)
    }
}
