//! Guest memory, as a snapshot is made from it and loaded into it.

use std::io;

use arch::layout::CHUNK;
use arch::mte::granule::Tag;
use arch::range::MemoryRange;
use arch::units::Bytes;
use vm_memory::{GuestAddress, VolatileSlice};

use crate::memory::{GuestRam, Residency};
use crate::snapshot::memory_file::GuestPages;
use crate::snapshot::{MemorySink, MemoryView, PageSet};

/// The memory of a guest that does not run, for saving it.
pub(crate) struct Contents {
    memory: Destination,
    residency: Residency,
}

impl Contents {
    /// That of this memory.
    ///
    /// # Errors
    /// When the host does not show which pages there are.
    pub(crate) fn new(ram: &GuestRam) -> io::Result<Self> {
        Ok(Self { memory: Destination::new(ram), residency: Residency::new(ram.clone())? })
    }
}

/// Memory that is loaded: that of a guest that has not run, or beside one.
pub(crate) struct Destination {
    ram: GuestRam,
}

impl Destination {
    /// This memory.
    pub(crate) fn new(ram: &GuestRam) -> Self {
        Self { ram: ram.clone() }
    }

    /// Where it is in this process.
    pub(super) fn host_address(&self) -> u64 {
        self.ram.host_address()
    }

    /// Gives pages back to the host, counted from the start of the memory.
    ///
    /// # Errors
    /// What the host answers.
    pub(super) fn discard(&self, pages: &PageSet) -> io::Result<()> {
        let page = self.page_size().get();
        for run in pages.runs() {
            let at = GuestAddress(self.ram.range().base.0 + run.start as u64 * page);
            let size = Bytes::new(run.len() as u64 * page);
            self.ram.discard(MemoryRange::new(at, size))?;
        }
        Ok(())
    }
}

impl GuestPages for Destination {
    fn size(&self) -> Bytes {
        self.ram.range().size
    }

    fn page_size(&self) -> Bytes {
        Bytes::new(rustix::param::page_size() as u64)
    }

    fn has_tags(&self) -> bool {
        self.ram.has_tags()
    }

    fn pages(&self, offset: u64, length: usize) -> io::Result<VolatileSlice<'_>> {
        self.ram.unmarked(offset, length).map_err(io::Error::other)
    }
}

impl GuestPages for Contents {
    fn size(&self) -> Bytes {
        self.memory.size()
    }

    fn page_size(&self) -> Bytes {
        self.memory.page_size()
    }

    fn has_tags(&self) -> bool {
        self.memory.has_tags()
    }

    fn pages(&self, offset: u64, length: usize) -> io::Result<VolatileSlice<'_>> {
        self.memory.pages(offset, length)
    }
}

impl MemoryView for Contents {
    fn present(&self, chunk: u64) -> io::Result<PageSet> {
        let start = chunk.saturating_mul(CHUNK.get());
        let page = self.page_size().get();
        let mut pages = PageSet::EMPTY;
        self.residency.populated(start, CHUNK.get(), |range| {
            let index = |offset: u64| (offset - start) / page;
            pages.insert_range(index(range.start) as usize..index(range.end) as usize);
        })?;
        Ok(pages)
    }

    fn read_tags(&self, offset: u64, packed: &mut [u8]) -> io::Result<()> {
        self.memory.ram.read_tags(offset, packed)
    }
}

impl MemorySink for Destination {
    fn write_tags(&self, offset: u64, packed: &[u8]) -> io::Result<()> {
        self.ram.write_tags(offset, packed)
    }

    fn fill_tags(&self, offset: u64, length: u64, tag: Tag) -> io::Result<()> {
        self.ram.fill_tags(offset, length, tag)
    }
}
