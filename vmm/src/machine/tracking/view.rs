//! Guest memory, as a diff is made from it.

use std::io;

use arch::layout::CHUNK;
use arch::units::Bytes;
use vm_memory::VolatileSlice;

use crate::machine::contents::Contents;
use crate::memory::Changes;
use crate::snapshot::memory_file::GuestPages;
use crate::snapshot::{MemoryView, PageSet};

/// The pages of a chunk that have changed.
pub(super) fn changed(changes: &Changes, chunk: u64) -> PageSet {
    let pages = pages_per_chunk();
    PageSet::of_bits(changes.log(), chunk as usize * pages, pages)
}

fn pages_per_chunk() -> usize {
    CHUNK.get() as usize / rustix::param::page_size()
}

/// The memory of a guest that does not run, and which of its pages have changed.
///
/// A page that has changed and is not present has been discarded: it becomes a hole.
pub(crate) struct ChangedContents<'a> {
    contents: &'a Contents,
    changes: &'a Changes,
}

impl<'a> ChangedContents<'a> {
    pub(super) fn new(contents: &'a Contents, changes: &'a Changes) -> Self {
        Self { contents, changes }
    }
}

impl GuestPages for ChangedContents<'_> {
    fn size(&self) -> Bytes {
        self.contents.size()
    }

    fn page_size(&self) -> Bytes {
        self.contents.page_size()
    }

    fn has_tags(&self) -> bool {
        self.contents.has_tags()
    }

    fn pages(&self, offset: u64, length: usize) -> io::Result<VolatileSlice<'_>> {
        self.contents.pages(offset, length)
    }
}

impl MemoryView for ChangedContents<'_> {
    fn present(&self, chunk: u64) -> io::Result<PageSet> {
        self.contents.present(chunk)
    }

    fn unchanged(&self, chunk: u64) -> io::Result<PageSet> {
        Ok(PageSet::of(0..pages_per_chunk()).difference(&changed(self.changes, chunk)))
    }

    fn read_tags(&self, offset: u64, packed: &mut [u8]) -> io::Result<()> {
        self.contents.read_tags(offset, packed)
    }
}
