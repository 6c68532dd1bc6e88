//! Blocks that are not needed for tags serve as ordinary memory.

use std::sync::PoisonError;

use super::{BlockState, Pool};
use crate::tag_storage::supply::Observation;

impl Pool {
    /// Lends up to `blocks` free blocks, from the end that slots reach last: ordinary memory, movable and
    /// untagged, may be in them from now on. Returns how many were lent.
    pub fn lend(&self, blocks: u64) -> u64 {
        let (mut lent, mut below) = (0, usize::MAX);
        while lent < blocks && below > 0 {
            let mut state = self.lock();
            if state.blocks.total(BlockState::Free) == 0 {
                break;
            }
            let more;
            (more, below) = state.blocks.lend(blocks - lent, below);
            lent += more;
        }
        lent
    }

    /// Follows what other memory does to blocks that are not taken: which are lent, pinned or free again is
    /// as the supply sees it now. To be called from time to time, and before figures are shown.
    pub fn follow(&self) {
        let _alone = self.following.lock().unwrap_or_else(PoisonError::into_inner);
        let taken = self.lock().taken();
        self.supply.observe().into_iter().for_each(|seen| self.follow_to(seen, taken));
    }

    /// As [`follow`](Self::follow), for who must not wait for blocks that are being taken or emptied: then
    /// things stay as they were seen last.
    pub fn follow_at_once(&self) {
        let Ok(_alone) = self.following.try_lock() else { return };
        let taken = self.lock().taken();
        self.supply.observe_at_once().into_iter().for_each(|seen| self.follow_to(seen, taken));
    }

    /// Follows what was seen when so many slots had been taken. What was seen is out of date when one has been
    /// taken since: by it, blocks that were lent would become free.
    fn follow_to(&self, seen: Observation, taken: u64) {
        let pinned = self.lock().blocks.total(BlockState::Pinned);
        if seen.pinned > pinned {
            let more =
                self.turn((BlockState::Lent, BlockState::Pinned), seen.pinned - pinned, None);
            self.lock().counters.pinned += more;
        } else {
            self.turn((BlockState::Pinned, BlockState::Lent), pinned - seen.pinned, None);
        }
        let free = {
            let state = self.lock();
            state.blocks.total(BlockState::Free) + state.blocks.total(BlockState::Reserving)
        };
        match seen.free.checked_sub(free) {
            Some(freed) => self.turn((BlockState::Lent, BlockState::Free), freed, Some(taken)),
            None => self.lend(free - seen.free),
        };
    }

    /// Turns blocks of one state into another; only while no more slots than `taken` have been taken, if that is
    /// given. Returns how many.
    fn turn(&self, states: (BlockState, BlockState), blocks: u64, taken: Option<u64>) -> u64 {
        let (mut turned, mut from) = (0, 0);
        while turned < blocks {
            let mut state = self.lock();
            let is_stale = taken.is_some_and(|taken| taken != state.taken());
            if is_stale || from == state.blocks.len() || state.blocks.total(states.0) == 0 {
                break;
            }
            let more;
            (more, from) = state.blocks.turn(states, blocks - turned, from);
            turned += more;
        }
        turned
    }

    /// Takes pinned blocks for merely lent ones again: they may not be pinned any more. Returns how many
    /// there were.
    pub fn retry_pinned(&self) -> u64 {
        self.supply.forget_pinned();
        let (mut unpinned, mut from) = (0, 0);
        let mut state = self.lock();
        while from < state.blocks.len() && state.blocks.total(BlockState::Pinned) > 0 {
            let more;
            (more, from) = state.blocks.unpin(from);
            unpinned += more;
            state = self.let_others(state);
        }
        unpinned
    }
}
