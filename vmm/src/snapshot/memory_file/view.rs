//! Guest memory, as a memory file is written from it and loaded into it.

use std::io;

use arch::mte::granule::Tag;
use arch::units::Bytes;
use vm_memory::VolatileSlice;

use super::PageSet;

/// Guest memory that stands still: as long as this is used no vCPU runs, no device writes to it, and nothing else
/// changes its mappings.
///
/// Offsets are from the start of guest memory.
pub trait GuestPages {
    /// How much there is: a multiple of a chunk.
    fn size(&self) -> Bytes;

    /// The host's page size.
    fn page_size(&self) -> Bytes;

    /// Whether it has tags.
    fn has_tags(&self) -> bool;

    /// A piece of it, within a chunk. That it is asked for touches no page.
    ///
    /// # Errors
    /// When it is not all within memory.
    fn pages(&self, offset: u64, length: usize) -> io::Result<VolatileSlice<'_>>;
}

/// Guest memory that is saved.
pub trait MemoryView: GuestPages {
    /// The pages of a chunk that may have contents, data or tags. All others have zero data and zero tags, and are
    /// not touched.
    ///
    /// # Errors
    /// When the host does not show which they are.
    fn present(&self, chunk: u64) -> io::Result<PageSet>;

    /// For a diff, the pages of a chunk that have the data and the tags that they had in the base. A page that was
    /// discarded since is not one of them: it is neither here nor in [`present`](Self::present), and becomes a hole.
    ///
    /// # Errors
    /// When the host does not show which they are.
    fn unchanged(&self, _chunk: u64) -> io::Result<PageSet> {
        Ok(PageSet::EMPTY)
    }

    /// Reads the tags of pages, two a byte, the first in the low four bits: `packed` has a 32nd of the pages' size.
    /// It is called for pages that are [`present`](Self::present), of memory that has tags.
    ///
    /// # Errors
    /// When they cannot be read.
    fn read_tags(&self, offset: u64, packed: &mut [u8]) -> io::Result<()>;
}

/// Guest memory that is loaded. At first all of it has zero data and zero tags.
pub trait MemorySink: GuestPages {
    /// Writes tags, packed as [`read_tags`](MemoryView::read_tags) has them. It is called after the data of the pages
    /// is there.
    ///
    /// # Errors
    /// When they cannot be written.
    fn write_tags(&self, offset: u64, packed: &[u8]) -> io::Result<()>;

    /// Gives `length` bytes of whole pages this one tag, which is not zero.
    ///
    /// # Errors
    /// When it cannot be written.
    fn fill_tags(&self, offset: u64, length: u64, tag: Tag) -> io::Result<()>;
}
