//! The usual request at the usual supply: blocks that no two slots share, a supply that needs no time, a
//! slot whose blocks are free. Then nothing is marked, promised or undone, and the cost is that of the
//! books themselves. Whatever else there is takes the long way, which ends in the same books.

use std::ops::Range;

use arch::mte::geometry::BlockIndex;

use super::{LeaseId, SlotIndex, Span, State, TakeError};

impl State {
    /// Reserves the next slot for a lease if that needs nothing but taking its blocks. `None` where there
    /// is more to be done, and nothing has changed.
    #[inline(always)]
    pub(crate) fn reserve_at_once(
        &mut self,
        id: LeaseId,
        take: impl FnOnce(Range<BlockIndex>) -> Result<(), TakeError>,
    ) -> Option<Result<SlotIndex, (SlotIndex, TakeError)>> {
        let lease = self.leases.open(id)?;
        // With a promise outstanding what is set aside follows other rules.
        if lease.claimed > 0 || lease.held >= lease.max {
            return None;
        }
        let is_aside = lease.held < lease.min;
        if !is_aside && self.held + self.set_aside >= self.slots.len() {
            return None;
        }
        let slot = self.slots.next_at_once()?;
        let span = self.blocks.separate_span(slot)?;
        if !self.blocks.is_free(&span) {
            return None;
        }
        if let Err(error) = take(span.blocks()) {
            return Some(Err((slot, error)));
        }
        self.set_aside -= u32::from(is_aside);
        lease.held += 1;
        self.held += 1;
        self.counters.metadata_reserve_success += 1;
        self.blocks.reserve_free(&span);
        self.slots.hold_at_once(slot, id.index());
        Some(Ok(slot))
    }

    /// Frees a slot if that needs nothing but giving its blocks back: these are returned.
    #[inline(always)]
    pub(crate) fn free_at_once(&mut self, id: LeaseId, slot: SlotIndex) -> Option<Span> {
        let span = self.blocks.separate_span(slot)?;
        let lease = self.leases.open(id)?;
        if lease.claimed > 0 || !self.slots.is_held_by(slot, id.index()) {
            return None;
        }
        lease.held -= 1;
        self.set_aside += u32::from(lease.held < lease.min);
        self.held -= 1;
        self.counters.metadata_reserve_free += 1;
        // All blocks of a slot that is held are reserved.
        self.blocks.free_reserved(&span);
        self.slots.recycle_at_once(slot);
        Some(span)
    }
}
