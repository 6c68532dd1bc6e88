//! Blocks that serve as ordinary memory: lent, and found to be pinned.

use super::{BlockState, BlockTable, Mask, SWEEP, Span};

impl BlockTable {
    /// Lends up to `limit` free blocks among those below `below`, from the highest down, and looks at
    /// [`SWEEP`] of them at most. Returns how many it lent and where to go on, 0 at the end.
    pub(crate) fn lend(&mut self, limit: u64, below: usize) -> (u64, usize) {
        let below = below.min(self.len());
        let mut lent = 0;
        for index in (below.saturating_sub(SWEEP)..below).rev() {
            if lent == limit {
                return (lent, index + 1);
            }
            if self.entries[index] == BlockState::Free.bits() {
                self.change(index, BlockState::Lent.bits());
                lent += 1;
            }
        }
        (lent, below.saturating_sub(SWEEP))
    }

    /// Lends those of these blocks that are free.
    pub(crate) fn lend_again(&mut self, span: &Span, blocks: Mask) {
        for index in (0..span.len()).filter(|at| blocks & 1 << at != 0).map(|at| span.first() + at)
        {
            if self.entries.get(index) == Some(&BlockState::Free.bits()) {
                self.change(index, BlockState::Lent.bits());
            }
        }
    }

    /// Takes pinned blocks for merely lent ones again, among [`SWEEP`] from `from` on. Returns how many and
    /// where to go on.
    pub(crate) fn unpin(&mut self, from: usize) -> (u64, usize) {
        let end = from.saturating_add(SWEEP).min(self.len());
        let mut unpinned = 0;
        for index in from..end {
            if self.entries[index] == BlockState::Pinned.bits() {
                self.change(index, BlockState::Lent.bits());
                unpinned += 1;
            }
        }
        (unpinned, end)
    }

    /// Turns up to `limit` blocks of one state into another, among [`SWEEP`] from `from` on: for states of
    /// blocks without references, and not for those that the supply is being called for. Returns how
    /// many and where to go on.
    pub(crate) fn turn(
        &mut self,
        (is, to): (BlockState, BlockState),
        limit: u64,
        from: usize,
    ) -> (u64, usize) {
        let end = from.saturating_add(SWEEP).min(self.len());
        let mut turned = 0;
        for index in from..end {
            if turned == limit {
                return (turned, index);
            }
            if self.entries[index] == is.bits() {
                self.change(index, to.bits());
                turned += 1;
            }
        }
        (turned, end)
    }
}
