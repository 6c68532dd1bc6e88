//! What is under way for one slot while the pool's lock may be released.

use std::ops::Range;

use arch::mte::geometry::BlockIndex;

use super::blocks::{Mask, Span, Work, runs};
use super::units::SlotIndex;
use crate::tag_storage::supply::{Supply, TakeError};

/// How often lent blocks are evicted for one reservation before the slot is put at the tail: the
/// memory that they were lent to may come back before they are taken. As in the later versions of the kernel series.
const TRIES: u32 = 3;

/// A slot that is being reserved.
#[derive(Clone, Copy, Debug)]
pub(crate) struct PendingReservation {
    /// The index of the lease.
    pub index: u32,
    pub slot: SlotIndex,
    pub span: Span,
    pub work: Work,
}

/// What the supply made of it.
#[derive(Debug, Default)]
pub(crate) struct Outcome {
    /// Blocks that were emptied.
    pub evicted: u64,
    /// Blocks that would not move.
    pub pinned: Mask,
    /// Why the slot cannot be had. Then nothing is taken.
    pub error: Option<TakeError>,
}

impl PendingReservation {
    /// Has the supply do the work, or none of it.
    pub(crate) fn fill(&self, supply: &dyn Supply) -> Outcome {
        let mut outcome = Outcome::default();
        let mut taken = 0;
        // Evictions first: they are what fails, and so there is little to give back.
        let lent = runs(self.work.evict).map(|run| (run, true));
        for (run, is_lent) in lent.chain(runs(self.work.take).map(|run| (run, false))) {
            let blocks = self.span.run(&run);
            let result = match is_lent {
                true => {
                    let (evicted, result) = move_in(supply, &blocks);
                    outcome.evicted += if evicted { blocks.end.0 - blocks.start.0 } else { 0 };
                    result
                }
                false => supply.take(blocks.clone()),
            };
            if let Err(error) = result {
                if let (true, TakeError::Pinned(pinned)) = (is_lent, &error) {
                    outcome.pinned = self.span.mask(&within(pinned, &blocks));
                }
                outcome.error = Some(error);
                break;
            }
            taken |= run.fold(0, |mask, at| mask | 1 << at);
        }
        if outcome.error.is_some() {
            release(supply, &self.span, taken);
        }
        outcome
    }
}

/// Empties lent blocks and takes them. Also returns whether they were emptied.
fn move_in(supply: &dyn Supply, blocks: &Range<BlockIndex>) -> (bool, Result<(), TakeError>) {
    let mut evicted = false;
    for _ in 0..TRIES {
        let result = supply.evict(blocks.clone());
        evicted |= result.is_ok();
        match result.and_then(|()| supply.take(blocks.clone())) {
            Err(TakeError::Busy) => {}
            result => return (evicted, result),
        }
    }
    (evicted, Err(TakeError::Busy))
}

/// The part of `pinned` in `blocks`; all of them where a supply names others, for something there is.
fn within(pinned: &Range<BlockIndex>, blocks: &Range<BlockIndex>) -> Range<BlockIndex> {
    let part = pinned.start.max(blocks.start)..pinned.end.min(blocks.end);
    if part.is_empty() { blocks.clone() } else { part }
}

/// Gives blocks back.
pub(crate) fn release(supply: &dyn Supply, span: &Span, blocks: Mask) {
    for run in runs(blocks) {
        supply.release(span.run(&run));
    }
}

/// Why a slot is being released.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Why {
    /// It was freed.
    Freed,
    /// It could not be reserved. Its lease will try another.
    Failed,
    /// It was reserved after its lease was closed.
    Late,
}

/// A slot whose blocks are on their way back.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Release {
    /// The index of the lease.
    pub index: u32,
    pub slot: SlotIndex,
    pub span: Span,
    /// The blocks to give back.
    pub blocks: Mask,
    pub why: Why,
}
