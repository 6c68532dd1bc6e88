//! Which chunks of guest memory are populated, and with which slot of the pool.
//!
//! A chunk goes through these states; the slot that stands for its memory is its own from the second
//! on:
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
//! ```
//!
//! Populating belongs to the thread that serves faults, Discarding to the one that gives memory back:
//! neither touches a chunk that is in the other's hands.

use crate::tag_storage::chunk::ChunkIndex;
use crate::tag_storage::pool::SlotIndex;

/// What is known of a chunk.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum State {
    /// It has no memory.
    Absent,
    /// Its slot is reserved, and it is being given memory.
    Populating(SlotIndex),
    /// It may have memory in every page.
    Populated(SlotIndex),
    /// Its memory is going back; its slot is still reserved.
    Discarding(SlotIndex),
}

/// What a touch has come upon.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Touched {
    /// The chunk needs a slot, and then [`ChunkTable::begin_populate`].
    Absent,
    /// The chunk has its slot. It is Populating again until [`ChunkTable::end_populate`].
    Populated,
    /// The chunk is in somebody's hands, who has been told to wake whoever touched it.
    Busy,
    /// There is no such chunk.
    Outside,
}

/// What has come of the wish to discard a chunk.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Discard {
    /// It is Discarding until [`ChunkTable::end_discard`]; this is its slot.
    Begun(SlotIndex),
    /// It is being populated: the wish is to be repeated when that is over.
    Populating,
    /// There is nothing to free: it is absent, or somebody else is at it, or there is no such chunk.
    Nothing,
}

/// The states of all chunks. A request that makes no sense in a chunk's state changes nothing.
///
/// The table is dense, 8 bytes a chunk, in memory that the host provides only where it is written.
#[derive(Debug)]
pub(crate) struct ChunkTable {
    entries: Vec<u64>,
    held: u64,
}

/// A entry is the slot's number above these bits.
const KIND_BITS: u32 = 3;
const ABSENT: u64 = 0;
const POPULATING: u64 = 1;
const POPULATED: u64 = 2;
const DISCARDING: u64 = 3;
/// Discarding, and touched meanwhile.
const WANTED: u64 = 4;

fn kind(entry: u64) -> u64 {
    entry & ((1 << KIND_BITS) - 1)
}

/// The slot of an entry that has one.
fn slot(entry: u64) -> SlotIndex {
    // The bits above are those of a slot's number, and nothing else.
    SlotIndex((entry >> KIND_BITS) as u32)
}

fn entry(kind: u64, slot: SlotIndex) -> u64 {
    u64::from(slot.0) << KIND_BITS | kind
}

impl ChunkTable {
    /// A table of so many chunks, all absent.
    pub(crate) fn new(chunks: u64) -> Self {
        Self { entries: vec![ABSENT; usize::try_from(chunks).unwrap_or(0)], held: 0 }
    }

    /// How many chunks there are.
    pub(crate) fn len(&self) -> u64 {
        self.entries.len() as u64
    }

    /// How many chunks have a slot.
    pub(crate) fn held(&self) -> u64 {
        self.held
    }

    /// The state of a chunk, if there is such a chunk.
    pub(crate) fn state(&self, chunk: ChunkIndex) -> Option<State> {
        let entry = *self.entries.get(usize::try_from(chunk.0).ok()?)?;
        Some(match kind(entry) {
            POPULATING => State::Populating(slot(entry)),
            POPULATED => State::Populated(slot(entry)),
            DISCARDING | WANTED => State::Discarding(slot(entry)),
            _ => State::Absent,
        })
    }

    /// Somebody has touched a page of a chunk that was not there.
    pub(crate) fn touch(&mut self, chunk: ChunkIndex) -> Touched {
        let Some(at) = self.entry(chunk) else { return Touched::Outside };
        match kind(*at) {
            ABSENT => Touched::Absent,
            POPULATED => {
                *at = entry(POPULATING, slot(*at));
                Touched::Populated
            }
            DISCARDING => {
                *at = entry(WANTED, slot(*at));
                Touched::Busy
            }
            _ => Touched::Busy,
        }
    }

    /// Gives an absent chunk its slot. `false`: it is not absent, and the slot is not taken.
    #[must_use]
    pub(crate) fn begin_populate(&mut self, chunk: ChunkIndex, slot: SlotIndex) -> bool {
        match self.entry(chunk) {
            Some(at) if kind(*at) == ABSENT => *at = entry(POPULATING, slot),
            _ => return false,
        }
        self.held += 1;
        true
    }

    /// The chunk has its memory.
    pub(crate) fn end_populate(&mut self, chunk: ChunkIndex) {
        if let Some(at) = self.entry(chunk)
            && kind(*at) == POPULATING
        {
            *at = entry(POPULATED, slot(*at));
        }
    }

    /// The memory of a chunk is to go back.
    pub(crate) fn begin_discard(&mut self, chunk: ChunkIndex) -> Discard {
        let Some(at) = self.entry(chunk) else { return Discard::Nothing };
        match kind(*at) {
            POPULATED => {
                let slot = slot(*at);
                *at = entry(DISCARDING, slot);
                Discard::Begun(slot)
            }
            POPULATING => Discard::Populating,
            _ => Discard::Nothing,
        }
    }

    /// The memory of a chunk that was Discarding is gone, and the chunk absent; or it is not, and the
    /// chunk populated as before. Tells whether it was touched meanwhile.
    #[must_use]
    pub(crate) fn end_discard(&mut self, chunk: ChunkIndex, gone: bool) -> bool {
        let Some(at) = self.entry(chunk) else { return false };
        let now = kind(*at);
        if now != DISCARDING && now != WANTED {
            return false;
        }
        *at = if gone { ABSENT } else { entry(POPULATED, slot(*at)) };
        self.held -= u64::from(gone);
        now == WANTED
    }

    fn entry(&mut self, chunk: ChunkIndex) -> Option<&mut u64> {
        self.entries.get_mut(usize::try_from(chunk.0).ok()?)
    }
}

#[cfg(test)]
mod tests;
