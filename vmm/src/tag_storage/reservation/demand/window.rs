//! Which chunks are reserved for together with one that is touched.
//!
//! A guest that uses memory for the first time mostly walks through it, upwards or downwards, in as many places at once
//! as it has vCPUs. A touch near the end of a walk is a step of it, and each step reserves for twice as many chunks as the
//! one before, up to a bound. A touch elsewhere begins a walk, and reserves for one chunk.

use std::ops::Range;

use crate::tag_storage::chunk::{ChunkIndex, one};
use crate::tag_storage::reservation::chunk_table::State;

/// Walks that are remembered: as many vCPUs seldom touch memory for the first time all at once.
const MOST_WALKS: usize = 8;

/// How far beyond its end a touch is a step of a walk. Linux gives out blocks of 4 MiB (mm/page_alloc.c), each upwards,
/// and after it has reported its free memory the one below next.
const NEAR: u64 = 4;

/// Chunks with a slot that a walk passes over at once: where an earlier walk has been.
const MOST_PASSED: u64 = 64;

/// A walk through memory.
#[derive(Debug)]
struct Walk {
    /// A touch near the end of these, or near their start, is a step.
    been: Range<ChunkIndex>,
    /// What the last step reserved for.
    given: Range<ChunkIndex>,
    /// How many chunks that could be.
    step: u64,
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Direction {
    Up,
    Down,
}

impl Direction {
    fn opposite(self) -> Self {
        match self {
            Self::Up => Self::Down,
            Self::Down => Self::Up,
        }
    }
}

/// The walks of a guest, the one that made the last step at the end.
#[derive(Debug, Default)]
pub(super) struct Window {
    walks: Vec<Walk>,
}

impl Window {
    /// What the walk was given last of which the touch of a chunk is a step, if it is one.
    pub(super) fn given(&self, touched: ChunkIndex) -> Option<Range<ChunkIndex>> {
        let (at, _) = self.walk_of(touched)?;
        self.walks.get(at).map(|walk| walk.given.clone())
    }

    /// The walk of which a touch is a step: the one that made the last step, if it is one of several.
    fn walk_of(&self, touched: ChunkIndex) -> Option<(usize, Direction)> {
        let mut walks = self.walks.iter().enumerate().rev();
        walks.find_map(|(at, walk)| Some((at, walk.direction_of(touched)?)))
    }

    /// The chunks to reserve for when one that is Absent is touched: that, and Absent ones next to it, `most` at most.
    /// `state` is that of a chunk, and `None` outside of memory. Of those that the walk was [given](Self::given), it is to
    /// be known which have been touched.
    pub(super) fn touch(
        &mut self,
        touched: ChunkIndex,
        most: u64,
        state: impl Fn(ChunkIndex) -> Option<State>,
    ) -> Range<ChunkIndex> {
        let (mut walk, direction) = match self.walk_of(touched) {
            Some((at, direction)) => {
                let mut walk = self.walks.remove(at);
                walk.step = if walk.is_used(&state) { walk.step.saturating_mul(2) } else { 1 };
                (walk, direction)
            }
            None => (Walk { been: one(touched), given: one(touched), step: 1 }, Direction::Up),
        };
        walk.step = walk.step.min(most.max(1));
        let is_absent = |chunk| state(chunk) == Some(State::Absent);
        // What is left out between the walk and the touch comes before what is beyond.
        let back = match direction {
            Direction::Up => touched.0.saturating_sub(walk.been.end.0),
            Direction::Down => walk.been.start.0.saturating_sub(one(touched).end.0),
        };
        let first = reach(touched, direction.opposite(), back.min(walk.step - 1), is_absent);
        let beyond = walk.step - 1 - touched.0.abs_diff(first.0);
        let last = reach(touched, direction, beyond, is_absent);
        walk.given = first.min(last)..one(first.max(last)).end;
        let has_slot = |chunk| state(chunk).is_some_and(|state| state != State::Absent);
        walk.been = match direction {
            Direction::Up => {
                walk.been.start..one(reach(last, direction, MOST_PASSED, has_slot)).end
            }
            Direction::Down => reach(last, direction, MOST_PASSED, has_slot)..walk.been.end,
        };
        let given = walk.given.clone();
        if self.walks.len() >= MOST_WALKS {
            self.walks.remove(0);
        }
        self.walks.push(walk);
        given
    }

    /// Forgets all walks: the next touch reserves for one chunk.
    pub(super) fn clear(&mut self) {
        self.walks.clear();
    }
}

impl Walk {
    /// In which direction a touch continues this walk, if it does.
    fn direction_of(&self, touched: ChunkIndex) -> Option<Direction> {
        let (start, end) = (self.been.start.0, self.been.end.0);
        if (end..end.saturating_add(NEAR)).contains(&touched.0) {
            return Some(Direction::Up);
        }
        (start.saturating_sub(NEAR)..start).contains(&touched.0).then_some(Direction::Down)
    }

    /// Whether most of what the last step reserved for has been touched.
    fn is_used(&self, state: impl Fn(ChunkIndex) -> Option<State>) -> bool {
        let given = self.given.start.0..self.given.end.0;
        let all = given.clone().count();
        given.filter(|chunk| state(ChunkIndex(*chunk)) == Some(State::Ahead)).count() * 2 < all
    }
}

/// The last of at most `count` chunks in a row from the one after `start` on that are `fit`; `start` if none is.
fn reach(
    start: ChunkIndex,
    direction: Direction,
    count: u64,
    fit: impl Fn(ChunkIndex) -> bool,
) -> ChunkIndex {
    let mut last = start;
    for _ in 0..count {
        let next = match direction {
            Direction::Up => last.0.checked_add(1),
            Direction::Down => last.0.checked_sub(1),
        };
        match next.map(ChunkIndex).filter(|next| fit(*next)) {
            Some(next) => last = next,
            None => break,
        }
    }
    last
}

#[cfg(test)]
mod tests;
