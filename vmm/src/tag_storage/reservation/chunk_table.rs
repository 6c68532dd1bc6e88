//! Which chunks of guest memory are populated.
//!
//! A chunk goes through these states; it has a slot of the pool from the second on:
//!
//! ```text
//!            begin_populate             end_populate
//!   Absent ------------------> Populating ----------> Populated
//!     ^                             ^    touch            |
//!     |                             +---------------------+
//!     |        end_discard(gone)                          |
//!     +------------------------ Discarding <--------------+
//!                                   |       begin_discard
//!                                   +---> Populated
//!                                end_discard(failed)
//!
//!               end_ahead          settle, touch
//!   Populating -----------> Ahead ---------------> Populated, Populating
//!                             |
//!                             +-------> Discarding -----------> Ahead
//!                           begin_discard      end_discard(failed)
//! ```
//!
//!            begin_load           end_load
//!   Unloaded -----------> Loading ----------> Populated
//!
//! Ahead is a chunk that was reserved for before a touch, and can be touched at any time without an event: whether it
//! was, the host's page tables say.
//!
//! Unloaded is a chunk whose contents are in a snapshot, of which the guest may have given back some or all since. It
//! has no slot. It and one that is Loading belong to what loads them, which stops touches of them itself.
//!
//! Populating belongs to the thread that serves faults, Discarding to the one that gives memory back:
//! neither touches a chunk that is in the other's hands.

use std::ops::Range;

use crate::tag_storage::chunk::ChunkIndex;

/// What is known of a chunk.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum State {
    /// It has no memory.
    Absent,
    /// Its slot is reserved, and it is being given memory.
    Populating,
    /// It may have memory in every page.
    Populated,
    /// Its slot is reserved, no touch is caught, and it had no memory when that was last looked at.
    Ahead,
    /// Its memory is going back; its slot is still reserved.
    Discarding,
    /// It has no memory, and what a snapshot has of it is to be loaded.
    Unloaded,
    /// Its slot is reserved, and it is being loaded.
    Loading,
}

/// What a touch has come upon.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Touched {
    /// The chunk needs a slot, and then [`ChunkTable::begin_populate`].
    Absent,
    /// The chunk has its slot. It is Populating again until [`ChunkTable::end_populate`].
    Populated,
    /// Another thread is at the chunk, and wakes the thread that touched it.
    Busy,
    /// There is no such chunk.
    Outside,
}

/// What has come of a request to discard a chunk.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Discard {
    /// It is Discarding until [`ChunkTable::end_discard`].
    Begun,
    /// It is being populated: the request is to be repeated when that is over.
    Populating,
    /// It is not loaded: it is to be looked at afterwards.
    Loader,
    /// There is nothing to free: it is absent, or another thread discards it, or there is no such chunk.
    Nothing,
}

/// The states of all chunks. A request that makes no sense in a chunk's state changes nothing.
///
/// The table is dense, a byte a chunk, in memory that the host provides only where it is written.
#[derive(Debug)]
pub(crate) struct ChunkTable {
    entries: Vec<u8>,
    held: u64,
    /// Those that are Ahead, and those that are Discarding and still Ahead if that fails. They are few, as the caller
    /// bounds them.
    ahead: Vec<ChunkIndex>,
}

const ABSENT: u8 = 0;
const POPULATING: u8 = 1;
const POPULATED: u8 = 2;
const DISCARDING: u8 = 3;
/// Discarding, and touched meanwhile.
const WANTED: u8 = 4;
const AHEAD: u8 = 5;
const UNLOADED: u8 = 6;
const LOADING: u8 = 7;
/// Loading, and some of it given back meanwhile.
const THINNED: u8 = 8;

impl ChunkTable {
    /// A table of so many chunks, all absent.
    pub(crate) fn new(chunks: u64) -> Self {
        let entries = vec![ABSENT; usize::try_from(chunks).unwrap_or(0)];
        Self { entries, held: 0, ahead: Vec::new() }
    }

    /// How many chunks there are.
    pub(crate) fn len(&self) -> u64 {
        self.entries.len() as u64
    }

    /// How many chunks have a slot.
    pub(crate) fn held(&self) -> u64 {
        self.held
    }

    /// The chunks that are Ahead or are so again if their memory does not go back, those of the earliest requests
    /// first.
    pub(crate) fn ahead(&self) -> &[ChunkIndex] {
        &self.ahead
    }

    /// The state of a chunk, if there is such a chunk.
    pub(crate) fn state(&self, chunk: ChunkIndex) -> Option<State> {
        let entry = *self.entries.get(usize::try_from(chunk.0).ok()?)?;
        Some(match entry {
            POPULATING => State::Populating,
            POPULATED => State::Populated,
            DISCARDING | WANTED => State::Discarding,
            AHEAD => State::Ahead,
            UNLOADED => State::Unloaded,
            LOADING | THINNED => State::Loading,
            _ => State::Absent,
        })
    }

    /// A thread has touched a missing page of a chunk.
    pub(crate) fn touch(&mut self, chunk: ChunkIndex) -> Touched {
        let Some(at) = self.entry(chunk) else { return Touched::Outside };
        match *at {
            ABSENT => Touched::Absent,
            POPULATED => {
                *at = POPULATING;
                Touched::Populated
            }
            AHEAD => {
                *at = POPULATING;
                self.forget(chunk);
                Touched::Populated
            }
            DISCARDING => {
                *at = WANTED;
                Touched::Busy
            }
            _ => Touched::Busy,
        }
    }

    /// An absent chunk has its slot. `false`: it is not absent.
    #[must_use]
    pub(crate) fn begin_populate(&mut self, chunk: ChunkIndex) -> bool {
        let has_begun = self.change(chunk, ABSENT, POPULATING);
        self.held += u64::from(has_begun);
        has_begun
    }

    /// The chunk has its memory.
    pub(crate) fn end_populate(&mut self, chunk: ChunkIndex) {
        self.change(chunk, POPULATING, POPULATED);
    }

    /// What a snapshot has of an absent chunk is to be loaded, by what stops its touches.
    pub(crate) fn leave_to_loader(&mut self, chunk: ChunkIndex) {
        self.change(chunk, ABSENT, UNLOADED);
    }

    /// A chunk that is not loaded has its slot. `false`: it is no such chunk.
    #[must_use]
    pub(crate) fn begin_load(&mut self, chunk: ChunkIndex) -> bool {
        let has_begun = self.change(chunk, UNLOADED, LOADING);
        self.held += u64::from(has_begun);
        has_begun
    }

    /// A part of the chunk is to go back. It is looked at when it is loaded, if it is being loaded.
    pub(crate) fn thin(&mut self, chunk: ChunkIndex) {
        self.change(chunk, LOADING, THINNED);
    }

    /// The chunk is loaded. Returns whether some of it was given back meanwhile.
    #[must_use]
    pub(crate) fn end_load(&mut self, chunk: ChunkIndex) -> bool {
        self.change(chunk, LOADING, POPULATED);
        self.change(chunk, THINNED, POPULATED)
    }

    /// The chunks that are no loader's, those in a row together.
    pub(crate) fn loaded(&self) -> Vec<Range<ChunkIndex>> {
        let is_loaded = |entry: &u8| !matches!(*entry, UNLOADED | LOADING | THINNED);
        let mut at = 0;
        let mut runs = Vec::new();
        for run in self.entries.chunk_by(|one, next| is_loaded(one) == is_loaded(next)) {
            let end = at + run.len() as u64;
            if run.first().is_some_and(is_loaded) {
                runs.push(ChunkIndex(at)..ChunkIndex(end));
            }
            at = end;
        }
        runs
    }

    /// The chunk can be touched from now on, and gets its memory then.
    pub(crate) fn end_ahead(&mut self, chunk: ChunkIndex) {
        if self.change(chunk, POPULATING, AHEAD) {
            self.ahead.push(chunk);
        }
    }

    /// A chunk that was Ahead has memory.
    pub(crate) fn settle(&mut self, chunk: ChunkIndex) {
        if self.change(chunk, AHEAD, POPULATED) {
            self.forget(chunk);
        }
    }

    /// The memory of a chunk is to go back.
    pub(crate) fn begin_discard(&mut self, chunk: ChunkIndex) -> Discard {
        let Some(at) = self.entry(chunk) else { return Discard::Nothing };
        match *at {
            POPULATED | AHEAD => {
                *at = DISCARDING;
                Discard::Begun
            }
            POPULATING => Discard::Populating,
            UNLOADED => Discard::Loader,
            LOADING | THINNED => {
                self.thin(chunk);
                Discard::Loader
            }
            _ => Discard::Nothing,
        }
    }

    /// The memory of a chunk that was Discarding is gone, and the chunk absent; or it is not, and the
    /// chunk populated or ahead as before. Returns whether it was touched meanwhile.
    #[must_use]
    pub(crate) fn end_discard(&mut self, chunk: ChunkIndex, gone: bool) -> bool {
        let was_ahead = self.ahead.contains(&chunk);
        let Some(at) = self.entry(chunk) else { return false };
        let now = *at;
        if now != DISCARDING && now != WANTED {
            return false;
        }
        *at = match (gone, was_ahead) {
            (true, _) => ABSENT,
            (false, true) => AHEAD,
            (false, false) => POPULATED,
        };
        if gone {
            self.held -= 1;
            self.forget(chunk);
        }
        now == WANTED
    }

    fn forget(&mut self, chunk: ChunkIndex) {
        self.ahead.retain(|ahead| *ahead != chunk);
    }

    /// Has a chunk be `to` if it is `from`. Returns whether it was.
    fn change(&mut self, chunk: ChunkIndex, from: u8, to: u8) -> bool {
        let found = self.entry(chunk).filter(|at| **at == from);
        found.map(|at| *at = to).is_some()
    }

    fn entry(&mut self, chunk: ChunkIndex) -> Option<&mut u8> {
        self.entries.get_mut(usize::try_from(chunk.0).ok()?)
    }
}

#[cfg(test)]
mod tests;
