//! Guest memory whose missing pages are caught chunk by chunk.

use std::io;
use std::ops::Range;
use std::os::fd::{AsFd, BorrowedFd};

use arch::layout::CHUNK;
use arch::range::MemoryRange;
use arch::units::Bytes;
use vm_memory::GuestAddress;

use crate::memory::GuestRam;
use crate::sys::uffd::{Error, Fault, Uffd};
use crate::tag_storage::chunk::{ChunkIndex, one};

/// How much is mapped anew in one call at most.
const AT_ONCE: Bytes = Bytes::new(32 * CHUNK.get());

/// Catches faults on missing pages of armed chunks. A thread that has one waits until the chunk is disarmed,
/// filled, or woken. When this is dropped all are.
#[derive(Debug)]
pub(super) struct ChunkFaults {
    // Field order is drop order: the kernel forgets the ranges before their memory goes.
    uffd: Uffd,
    ram: GuestRam,
    /// Where chunks can be huge pages: memory that no one touches.
    untouched: Option<GuestRam>,
}

impl ChunkFaults {
    /// Catches faults on this memory; none of its chunks is armed yet.
    ///
    /// # Errors
    /// When the host's kernel cannot, or does not let this user.
    pub(super) fn new(ram: GuestRam) -> Result<Self, Error> {
        let is_huge = ram.huge_page_size() == Some(CHUNK);
        let size = AT_ONCE.min(ram.range().size);
        // Without it touches that are caught cost more.
        let untouched = is_huge.then(|| ram.untouched(size).ok()).flatten();
        Ok(Self { uffd: Uffd::new()?, ram, untouched })
    }

    /// See [`Uffd::arm`].
    ///
    /// # Errors
    /// As there.
    pub(super) fn arm(&self, chunks: &Range<ChunkIndex>) -> io::Result<()> {
        self.uffd.arm(&self.addresses(chunks)?)
    }

    /// Has the host take no huge page for a touch of armed chunks without pages. Linux would take and clear one before it
    /// sees that the touch is caught, and throw it away (mm/huge_memory.c, `do_huge_pmd_anonymous_page`).
    pub(super) fn forgo_huge_pages(&self, chunks: &Range<ChunkIndex>) {
        self.allow_huge_pages(chunks, false);
    }

    /// Has the host take huge pages again for chunks that have pages.
    pub(super) fn accept_huge_pages(&self, chunks: &Range<ChunkIndex>) {
        self.allow_huge_pages(chunks, true);
    }

    fn allow_huge_pages(&self, chunks: &Range<ChunkIndex>, allowed: bool) {
        if self.untouched.is_some() {
            // Without it touches cost more. It fails when the process would have too many mappings.
            let _ = self.ram.allow_huge_pages(self.range_of(chunks), allowed);
        }
    }

    /// As [`disarm`](Self::disarm), for chunks without a page, which may be huge pages then: a touch that was caught has
    /// left a table for small ones, so that they are mapped anew. `is_apart`: no chunk beside them is disarmed. Threads that
    /// wait for them are to be [woken](Self::wake), and may be woken by this.
    ///
    /// # Errors
    /// When the process would have too many mappings. A part may be disarmed even so.
    pub(super) fn disarm_absent(
        &self,
        chunks: &Range<ChunkIndex>,
        is_apart: bool,
    ) -> io::Result<()> {
        self.addresses(chunks)?;
        if let Some(untouched) = &self.untouched
            && self.ram.refresh(self.range_of(chunks), untouched)?
        {
            return if is_apart { self.join(chunks) } else { Ok(()) };
        }
        self.accept_huge_pages(chunks);
        self.disarm(chunks)
    }

    /// Leaves chunks in a row that nothing has touched to another that catches faults on them.
    ///
    /// # Errors
    /// As for [`disarm`](Self::disarm).
    pub(super) fn leave(&self, chunks: &Range<ChunkIndex>) -> io::Result<()> {
        self.accept_huge_pages(chunks);
        self.disarm(chunks)?;
        // It has had a page (see `prepare`), and so has a table for small ones.
        if let Some(untouched) = &self.untouched
            && chunks.start == ChunkIndex(0)
        {
            self.ram.refresh(self.range_of(&one(chunks.start)), untouched)?;
        }
        Ok(())
    }

    /// Makes a new mapping one with those beside it, which are armed, and then a piece of that: as one that is touched alone
    /// it would never merge with another (see [`prepare`](Self::prepare)).
    fn join(&self, chunks: &Range<ChunkIndex>) -> io::Result<()> {
        self.forgo_huge_pages(chunks);
        // Without it they stay apart.
        let _ = self.arm(chunks);
        self.accept_huge_pages(chunks);
        self.disarm(chunks)
    }

    /// See [`Uffd::disarm`].
    ///
    /// # Errors
    /// As there.
    pub(super) fn disarm(&self, chunks: &Range<ChunkIndex>) -> io::Result<()> {
        self.uffd.disarm(&self.addresses(chunks)?)
    }

    /// Whether some of a chunk is a template's.
    pub(super) fn has_template_in(&self, chunk: ChunkIndex) -> bool {
        self.ram.is_shared(self.range_of(&one(chunk)))
    }

    /// See [`Uffd::wake`].
    ///
    /// # Errors
    /// As there.
    pub(super) fn wake(&self, chunks: &Range<ChunkIndex>) -> io::Result<()> {
        self.uffd.wake(&self.addresses(chunks)?)
    }

    /// Populates a chunk that is not armed: one huge page where the host gives it, else all small ones.
    ///
    /// # Errors
    /// As for [`Uffd::populate`].
    pub(super) fn populate(&self, chunk: ChunkIndex) -> io::Result<()> {
        self.uffd.populate(&self.addresses(&one(chunk))?)
    }

    /// Gives an armed chunk small pages of zeroes wherever it has none and is no template's, and wakes those who wait for
    /// it. It stays armed. A template has all its pages, so that no touch of them is caught.
    ///
    /// # Errors
    /// As for [`Uffd::fill`].
    pub(super) fn fill(&self, chunk: ChunkIndex) -> io::Result<()> {
        let addresses = self.addresses(&one(chunk))?;
        let (base, page) = (self.ram.host_address(), self.ram.backing().page_size().get());
        let pieces = self.ram.pieces(&(addresses.start - base..addresses.end - base));
        let filled = pieces.into_iter().filter(|(_, is_template)| !is_template).try_for_each(
            |(piece, _)| self.uffd.fill(&(base + piece.start..base + piece.end), page),
        );
        self.uffd.wake(&addresses)?;
        filled
    }

    /// Makes what is mapped to one structure in the kernel before it is armed in pieces, as only pieces
    /// of one can merge again: those of anonymous memory that get their pages while apart get structures
    /// (`anon_vma`) of their own, and a guest that touches its chunks in no order would run into the
    /// limit on mappings. The first page of memory, which must not be there, is not there afterwards. No chunk may be a huge
    /// page until it is [disarmed](Self::disarm_absent).
    ///
    /// # Errors
    /// When that page stays. What is written to it is lost then, as it counts as absent: the memory must not be used.
    pub(super) fn prepare(&self) -> io::Result<()> {
        let page = self.ram.backing().page_size();
        let start = self.ram.host_address();
        self.forgo_huge_pages(
            &(ChunkIndex(0)..ChunkIndex(self.ram.range().size.get() / CHUNK.get())),
        );
        // Without it the guest runs as well; at the limit its chunks are filled instead.
        match self.uffd.populate(&(start..start + page.get())) {
            Ok(()) => self.ram.discard(MemoryRange::new(self.ram.range().base, page)).map(drop),
            Err(_) => Ok(()),
        }
    }

    /// Appends the faults that wait to be read, a number of them at most, in the order in which they came.
    ///
    /// # Errors
    /// As for [`Uffd::read`].
    pub(super) fn read(&self, faults: &mut Vec<Fault>) -> Result<(), Error> {
        self.uffd.read(faults)
    }

    /// The chunk of a fault; none outside of this memory, where nothing is armed.
    pub(super) fn chunk_of(&self, fault: &Fault) -> Option<ChunkIndex> {
        let offset = fault.address.checked_sub(self.ram.host_address())?;
        (offset < self.ram.range().size.get()).then_some(ChunkIndex(offset / CHUNK.get()))
    }

    /// The guest-physical range of chunks.
    pub(super) fn range_of(&self, chunks: &Range<ChunkIndex>) -> MemoryRange {
        let at = |chunk: ChunkIndex| chunk.0.saturating_mul(CHUNK.get());
        let base = self.ram.range().base.0.saturating_add(at(chunks.start));
        let size = at(chunks.end).saturating_sub(at(chunks.start));
        MemoryRange::new(GuestAddress(base), Bytes::new(size))
    }

    /// The addresses of chunks in this process, all of them inside of guest memory.
    fn addresses(&self, chunks: &Range<ChunkIndex>) -> io::Result<Range<u64>> {
        let at = |chunk: ChunkIndex| chunk.0.checked_mul(CHUNK.get());
        let (Some(start), Some(end)) = (at(chunks.start), at(chunks.end)) else {
            return Err(io::ErrorKind::InvalidInput.into());
        };
        if start >= end || end > self.ram.range().size.get() {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        let base = self.ram.host_address();
        Ok(base + start..base + end)
    }
}

impl AsFd for ChunkFaults {
    /// Readable when there are faults to read.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.uffd.as_fd()
    }
}

#[cfg(test)]
mod tests;
