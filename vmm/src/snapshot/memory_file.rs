//! The memory file: the pages of guest memory and their tags, as an explicit map.
//!
//! # Format
//! All numbers are little-endian. The header has 128 bytes:
//!
//! | at | bytes | what |
//! |---|---|---|
//! | 0 | 8 | magic |
//! | 8 | 2, 2 | version of the format: major, minor |
//! | 12 | 4 | flags: 1 with tags, 2 a diff |
//! | 16 | 16 | id of the snapshot |
//! | 32 | 16 | id of the snapshot that a diff builds on, otherwise zero |
//! | 48 | 8 | size of guest memory |
//! | 56 | 4 | size of a page: 4, 16 or 64 KiB |
//! | 60 | 4 | size of a chunk: 2 MiB |
//! | 64 | 8 | where the table is: its end is that of the file |
//! | 72 | 4 | number of its entries |
//! | 76 | 4 | CRC-32 of the table |
//! | 80 | 44 | zero |
//! | 124 | 4 | CRC-32 of all before |
//!
//! The table has an entry of 40 bytes for each chunk that is in the file, in order. A chunk without one is a *hole*,
//! zero data and zero tags; in a diff it is *unchanged*, and an entry without a map says that it is a hole.
//!
//! | at | bytes | what |
//! |---|---|---|
//! | 0 | 4 | number of the chunk |
//! | 4 | 4 | number of its pages with data |
//! | 8 | 8 | where they are: at a multiple of the page size, one after the other |
//! | 16 | 8 | where its map is |
//! | 24 | 4 | length of the map |
//! | 28 | 4 | CRC-32 of the map |
//! | 32 | 4 | CRC-32 of the data |
//! | 36 | 4 | zero |
//!
//! The map of a chunk is a list of extents that cover it, see [`map`]. What lies between data, maps and table has no
//! meaning.
//!
//! Each chunk can be checked and loaded by itself. That data is zero says nothing of its tags: memory may be tagged
//! and not yet written. A hole has neither, and is written as such: holes of the file have no meaning, since a file
//! system or a copy makes and fills them as it likes.

#[cfg(any(test, fuzzing))]
pub(crate) mod fuzz;
mod header;
mod map;
mod reader;
mod set;
mod still;
mod table;
mod view;
mod writer;

use arch::layout::CHUNK;
use arch::units::Bytes;

use super::error::{Fault, Role, Version};
use super::id::SnapshotId;

pub use super::output::Output;
pub(super) use map::{Contents, Map, MapWriter, Tags};
pub use reader::{MemoryReader, load_memory};
pub use set::PageSet;
pub use view::{GuestPages, MemorySink, MemoryView};
pub(super) use writer::Writer;
pub use writer::{Saved, save_memory};

/// The version of the format. Any change of what is written is a new one.
const VERSION: Version = Version { major: 1, minor: 0 };
/// The role of the file, for messages.
const ROLE: Role = Role::Memory;

/// The most guest memory: more than an arm64 host has, and a table that can still be held.
pub const MAX_MEMORY: Bytes = Bytes::gib(16 << 10);

/// Notified of how much guest memory has been gone through, each time that it is more.
pub type Progress<'a> = &'a mut dyn FnMut(Bytes);

/// What a memory file is of.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct About {
    /// Of which snapshot.
    pub id: SnapshotId,
    /// The snapshot that it builds on, if it is a diff.
    pub base: Option<SnapshotId>,
    /// How much guest memory there is.
    pub size: Bytes,
    /// The host's page size.
    pub page_size: Bytes,
    /// Whether memory has tags.
    pub tagged: bool,
}

impl About {
    /// A file of this memory.
    pub fn of(
        memory: &(impl GuestPages + ?Sized),
        id: SnapshotId,
        base: Option<SnapshotId>,
    ) -> Self {
        let (size, page_size, tagged) = (memory.size(), memory.page_size(), memory.has_tags());
        Self { id, base, size, page_size, tagged }
    }

    /// How many chunks there are.
    pub fn chunks(&self) -> u64 {
        self.size.get() / CHUNK.get()
    }

    fn check(&self) -> Result<(), String> {
        if !is_page_size(self.page_size) {
            return Err(format!("no host has pages of {}", self.page_size));
        }
        if self.size.is_zero() || !self.size.is_multiple_of(CHUNK) || self.size > MAX_MEMORY {
            return Err(format!("no VM has {} of memory", self.size));
        }
        Ok(())
    }

    /// Checks that it is of memory such as this.
    fn fits(&self, memory: &(impl GuestPages + ?Sized)) -> Result<(), Fault> {
        let (found, wanted) = (self.page_size, memory.page_size());
        if found != wanted {
            return Err(Fault::PageSize { found, wanted });
        }
        match (self.tagged, memory.has_tags()) {
            (true, false) => Err(Fault::Tagged),
            (false, true) => Err(Fault::Untagged),
            _ => Ok(()),
        }
    }
}

/// Whether arm64 has pages of this size (Arm DDI 0487, "translation granule").
pub(super) fn is_page_size(size: Bytes) -> bool {
    [Bytes::kib(4), Bytes::kib(16), Bytes::kib(64)].contains(&size)
}

/// How many pages of this size a chunk has.
pub(crate) fn pages_per_chunk(page_size: Bytes) -> usize {
    (CHUNK.get() / page_size.get()) as usize
}

#[cfg(test)]
mod tests;
