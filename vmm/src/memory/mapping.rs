//! An anonymous mapping aligned to chunks, so that a 2 MiB huge page can back each chunk.
#![allow(unsafe_code)]

use std::io;
use std::ptr::{self, NonNull};

use arch::layout::CHUNK;
use arch::units::Bytes;
use rustix::mm::{Advice, MapFlags, ProtFlags, madvise, mmap_anonymous, munmap};

use super::ram::Attributes;

/// `PROT_MTE` of arch/arm64/include/uapi/asm/mman.h; the libc crate has it for glibc only.
const PROT_MTE: u32 = 0x20;

/// The size of the host's transparent huge pages, if it has any.
pub(crate) fn huge_page_size() -> Option<Bytes> {
    let text =
        std::fs::read_to_string("/sys/kernel/mm/transparent_hugepage/hpage_pmd_size").ok()?;
    text.trim().parse().ok().map(Bytes::new)
}

/// Private anonymous memory, unmapped when dropped.
#[derive(Debug)]
pub(super) struct Mapping {
    start: NonNull<u8>,
    length: usize,
}

// SAFETY: the mapping is plain memory without thread affinity; this type only hands out its address.
unsafe impl Send for Mapping {}
// SAFETY: as above; no method gives a reference to the memory.
unsafe impl Sync for Mapping {}

impl Mapping {
    /// Maps `size` bytes of zeroes, readable and writable, with these attributes; nothing is populated yet.
    ///
    /// # Errors
    /// When the address space or the host's limits do not allow it.
    pub(super) fn new(size: Bytes, attributes: Attributes) -> io::Result<Self> {
        let out_of_range = || io::Error::from(io::ErrorKind::OutOfMemory);
        let length = usize::try_from(size.get()).map_err(|_| out_of_range())?;
        let chunk = CHUNK.get() as usize;
        let reserved = length.checked_add(chunk).ok_or_else(out_of_range)?;
        let mut prot = ProtFlags::READ | ProtFlags::WRITE;
        if attributes.tags {
            prot |= ProtFlags::from_bits_retain(PROT_MTE);
        }
        // SAFETY: a new anonymous mapping at an address of the kernel's choice touches no other memory.
        let raw = unsafe {
            mmap_anonymous(
                ptr::null_mut(),
                reserved,
                prot,
                MapFlags::PRIVATE | MapFlags::NORESERVE,
            )?
        };
        let before = raw.cast::<u8>().align_offset(chunk);
        let after = chunk - before;
        // SAFETY: `before` + `length` + `after` is exactly the mapping just made, which nobody else knows
        // yet: the two edges are given back, and the middle is kept.
        let start = unsafe {
            let start = raw.cast::<u8>().add(before);
            if before > 0 {
                munmap(raw, before)?;
            }
            munmap(start.add(length).cast(), after)?;
            start
        };
        let start = NonNull::new(start).ok_or_else(out_of_range)?;
        let mapping = Self { start, length };
        match attributes.huge_pages {
            false => mapping.advise(Advice::LinuxNoHugepage)?,
            true if huge_page_size().is_none_or(|size| size <= CHUNK) => {
                mapping.advise(Advice::LinuxHugepage)?;
            }
            // One touched byte would take up to 32 MiB (16 KiB pages) or 512 MiB (64 KiB pages): the
            // host's own setting decides instead.
            true => {}
        }
        mapping.advise(Advice::LinuxDontDump)?;
        Ok(mapping)
    }

    fn advise(&self, advice: Advice) -> io::Result<()> {
        // SAFETY: the range is the whole mapping, which is owned; neither advice changes its contents.
        let done = unsafe { madvise(self.start.as_ptr().cast(), self.length, advice) };
        match done {
            // A kernel built without transparent huge pages: small pages serve, and `doctor` says so.
            Err(rustix::io::Errno::INVAL) if advice != Advice::LinuxDontDump => Ok(()),
            other => Ok(other?),
        }
    }

    /// The mapping's address in this process, a multiple of [`CHUNK`].
    pub(super) fn as_ptr(&self) -> *mut u8 {
        self.start.as_ptr()
    }

    /// The mapping's length in bytes.
    pub(super) fn len(&self) -> usize {
        self.length
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: the range is the whole mapping, and its owner is going away: `GuestRam` drops the
        // regions that point into it before this.
        let unmapped = unsafe { munmap(self.start.as_ptr().cast(), self.length) };
        debug_assert!(unmapped.is_ok(), "munmap of an owned mapping: {unmapped:?}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mapping_starts_at_a_chunk_and_has_the_length_asked_for() {
        for chunks in [1, 2, 33] {
            let mapping = Mapping::new(Bytes::new(CHUNK.get() * chunks), Attributes::default())
                .expect("memory");
            assert_eq!(mapping.as_ptr().align_offset(CHUNK.get() as usize), 0);
            assert_eq!(mapping.len() as u64, CHUNK.get() * chunks);
        }
    }

    #[test]
    fn more_than_the_address_space_is_an_error() {
        assert!(
            Mapping::new(Bytes::new(u64::MAX - (CHUNK.get() - 1)), Attributes::default()).is_err()
        );
        assert!(Mapping::new(Bytes::new(1 << 60), Attributes::default()).is_err());
    }
}
