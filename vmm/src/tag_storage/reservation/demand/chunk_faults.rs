//! Guest memory whose missing pages are caught chunk by chunk.

use std::io;
use std::ops::Range;
use std::os::fd::{AsFd, BorrowedFd};

use arch::layout::CHUNK;
use arch::range::MemoryRange;
use vm_memory::GuestAddress;

use crate::memory::GuestRam;
use crate::sys::uffd::{Error, Fault, Uffd};
use crate::tag_storage::chunk::{ChunkIndex, one};

/// Catches faults on missing pages of armed chunks. A thread that has one waits until the chunk is disarmed,
/// filled, or woken. When this is dropped all are.
#[derive(Debug)]
pub(super) struct ChunkFaults {
    // Field order is drop order: the kernel forgets the ranges before their memory goes.
    uffd: Uffd,
    ram: GuestRam,
}

impl ChunkFaults {
    /// Catches faults on this memory; none of its chunks is armed yet.
    ///
    /// # Errors
    /// When the host's kernel cannot, or does not let this user.
    pub(super) fn new(ram: GuestRam) -> Result<Self, Error> {
        Ok(Self { uffd: Uffd::new()?, ram })
    }

    /// See [`Uffd::arm`].
    ///
    /// # Errors
    /// As there.
    pub(super) fn arm(&self, chunks: &Range<ChunkIndex>) -> io::Result<()> {
        self.uffd.arm(&self.addresses(chunks)?)
    }

    /// See [`Uffd::disarm`].
    ///
    /// # Errors
    /// As there.
    pub(super) fn disarm(&self, chunks: &Range<ChunkIndex>) -> io::Result<()> {
        self.uffd.disarm(&self.addresses(chunks)?)
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

    /// Gives an armed chunk small pages of zeroes wherever it has none. It stays armed.
    ///
    /// # Errors
    /// As for [`Uffd::fill`].
    pub(super) fn fill(&self, chunk: ChunkIndex) -> io::Result<()> {
        self.uffd.fill(&self.addresses(&one(chunk))?, self.ram.backing().page_size().get())
    }

    /// Makes what is mapped to one structure in the kernel before it is armed in pieces, as only pieces
    /// of one can merge again: those of anonymous memory that get their pages while apart get structures
    /// (`anon_vma`) of their own, and a guest that touches its chunks in no order would run into the
    /// limit on mappings. The first chunk, which must have no page, has none afterwards.
    pub(super) fn prepare(&self) {
        // Without it the guest runs as well; at the limit its chunks are filled instead.
        if self.populate(ChunkIndex(0)).is_ok() {
            let _ = self.ram.discard(MemoryRange::new(self.ram.range().base, CHUNK));
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

    /// The guest-physical range of a chunk.
    pub(super) fn range_of(&self, chunk: ChunkIndex) -> MemoryRange {
        let base = self.ram.range().base.0.saturating_add(chunk.0.saturating_mul(CHUNK.get()));
        MemoryRange::new(GuestAddress(base), CHUNK)
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
