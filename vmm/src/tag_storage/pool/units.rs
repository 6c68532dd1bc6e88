//! The pool's numbers: slots, leases, chunks of tags, and how large a pool may be.

use std::fmt;

use arch::layout::CHUNK;
use arch::mte::granule::tag_storage_for;
use arch::units::Bytes;
use serde::{Deserialize, Serialize};

/// The largest pool: the tags of 16 TiB of memory, more than an arm64 host has. The tables then take half a
/// GiB of addresses, and memory as they are used.
pub const MAX_CAPACITY: Bytes = Bytes::gib(512);

/// The tag storage of a chunk.
pub const TAGS_OF_CHUNK: Bytes = tag_storage_for(CHUNK);

/// The chunks of so much memory; one that is begun counts.
pub(crate) fn chunks_of(memory: Bytes) -> u64 {
    memory.get().div_ceil(CHUNK.get())
}

/// The size of as many chunks' tags.
pub fn tags_of(chunks: impl Into<u64>) -> Bytes {
    Bytes::new(chunks.into().saturating_mul(TAGS_OF_CHUNK.get()))
}

/// The number of a slot in its pool, counted from 0 in the order of their tags.
#[derive(
    Clone, Copy, Debug, Default, Deserialize, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize,
)]
pub struct SlotIndex(pub u32);

impl fmt::Display for SlotIndex {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "slot {}", self.0)
    }
}

/// A lease of this pool. An id is never used again: one that is kept for too long is unknown.
#[derive(Clone, Copy, Debug, Deserialize, Eq, Hash, Ord, PartialEq, PartialOrd, Serialize)]
pub struct LeaseId {
    pub(super) index: u32,
    pub(super) generation: u32,
}

impl LeaseId {
    /// Its position among the leases. Others had it before, and will.
    pub(crate) fn index(self) -> u32 {
        self.index
    }
}

impl fmt::Display for LeaseId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "lease {}.{}", self.index, self.generation)
    }
}
