//! Guest memory, as a snapshot is made from it and loaded into it.

use std::io;

use arch::layout::CHUNK;
use arch::mte::granule::Tag;
use arch::range::MemoryRange;
use arch::units::Bytes;
use vm_memory::{GuestAddress, VolatileSlice};

use crate::memory::{Changes, GuestRam, Residency};
use crate::snapshot::memory_file::{GuestPages, pages_per_chunk};
use crate::snapshot::{MemorySink, MemoryView, PageSet};

/// The memory of a guest that does not run, for saving it.
pub(crate) struct PausedMemory<'a> {
    memory: Destination,
    residency: Residency,
    /// For a diff, what has changed. A page that has changed and is not present has been discarded: it becomes a hole.
    since: Option<&'a Changes>,
}

impl<'a> PausedMemory<'a> {
    /// That of this memory.
    ///
    /// # Errors
    /// When the host does not show which pages there are.
    pub(crate) fn new(ram: &GuestRam) -> io::Result<Self> {
        let (memory, residency) = (Destination::new(ram), Residency::new(ram.clone())?);
        Ok(Self { memory, residency, since: None })
    }

    /// As a diff has it, if there are changes.
    pub(crate) fn since(self, changes: Option<&'a Changes>) -> Self {
        Self { since: changes, ..self }
    }
}

/// The pages of a chunk that have changed.
pub(super) fn changed(changes: &Changes, chunk: u64) -> PageSet {
    let pages = pages_per_chunk(Bytes::new(rustix::param::page_size() as u64));
    PageSet::of_bits(changes.log(), chunk as usize * pages, pages)
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

impl GuestPages for PausedMemory<'_> {
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

impl MemoryView for PausedMemory<'_> {
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

    fn unchanged(&self, chunk: u64) -> io::Result<PageSet> {
        Ok(self.since.map_or(PageSet::EMPTY, |changes| {
            let pages = PageSet::of(0..pages_per_chunk(self.page_size()));
            pages.difference(&changed(changes, chunk))
        }))
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
