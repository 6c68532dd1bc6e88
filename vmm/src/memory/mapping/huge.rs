//! Huge pages and the small ones that they fall into.
#![allow(unsafe_code)]

use std::io;
use std::ops::Range;

use arch::layout::CHUNK;
use rustix::io::Errno;
use rustix::mm::{Advice, MremapFlags, mremap_fixed};

use super::Mapping;

/// include/uapi/asm-generic/mman-common.h; the libc crate has it for glibc only.
const MADV_COLLAPSE: i32 = 25;

/// How many small pages of a huge one are in memory.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(in super::super) struct PagesInMemory {
    /// How many.
    pub(in super::super) present: u16,
    /// Of how many.
    pub(in super::super) of: u16,
}

impl Mapping {
    /// How many pages of a chunk are in memory.
    ///
    /// # Errors
    /// What the host answers, and EINVAL for what is no chunk of this memory or is locked.
    pub(in super::super) fn pages_in_memory(&self, offset: u64) -> io::Result<PagesInMemory> {
        self.check_chunk(offset)?;
        let mut pages = PagesInMemory { present: 0, of: 0 };
        for is_present in self.in_core(offset, CHUNK.get())? {
            pages.present += u16::from(is_present);
            pages.of += 1;
        }
        Ok(pages)
    }

    /// Has the host split the huge page of a chunk of which small pages have gone, so that it has those: advice on a huge
    /// page that is not mapped whole splits it. What is left is reclaimed before other memory, until it is used again.
    ///
    /// # Errors
    /// What the host answers, and EINVAL for what is no chunk of this memory or is locked.
    pub(in super::super) fn give_up_huge_page(&self, offset: u64) -> io::Result<()> {
        self.check_chunk(offset)?;
        let start = offset as usize;
        // Its contents stay.
        Ok(self.advise(&(start..start + CHUNK.get() as usize), Advice::LinuxCold)?)
    }

    /// Whether the kernel can make a huge page of small ones when it is asked to (Linux 6.1).
    pub(in super::super) fn can_collapse(&self) -> bool {
        self.advise_collapse(0, 0).is_ok()
    }

    /// Makes one huge page of a chunk's small pages, those that are missing as zeroes. The guest may use it meanwhile.
    ///
    /// # Errors
    /// What the host answers: most often not now. EINVAL for what is no chunk of this memory or is locked.
    pub(in super::super) fn collapse(&self, offset: u64) -> io::Result<()> {
        self.check_chunk(offset)?;
        self.advise_collapse(offset as usize, CHUNK.get() as usize)
    }

    fn advise_collapse(&self, start: usize, length: usize) -> io::Result<()> {
        // SAFETY: the part is empty or a chunk of the owned mapping, as the callers have checked. Its contents stay, tags
        // included.
        let done = unsafe { libc::madvise(self.as_ptr().add(start).cast(), length, MADV_COLLAPSE) };
        match done {
            0 => Ok(()),
            _ => Err(io::Error::last_os_error()),
        }
    }

    /// Whether the host may give huge pages to a part of whole pages.
    ///
    /// # Errors
    /// What the host answers, and EINVAL for what is no part of this memory or is locked.
    pub(in super::super) fn allow_huge_pages(
        &self,
        part: &Range<u64>,
        allowed: bool,
    ) -> io::Result<()> {
        self.check_part(part.start, part.end.saturating_sub(part.start))?;
        let advice = if allowed { Advice::LinuxHugepage } else { Advice::LinuxNoHugepage };
        Ok(self.advise(&(part.start as usize..part.end as usize), advice)?)
    }

    /// Maps a part without pages anew, as `untouched` memory is mapped, and with the rule for the placement of its pages
    /// that it has: the host's tables for small pages go. What watches the part does so no longer.
    ///
    /// That is one call a piece as long as `untouched`, so that no touch finds a mapping with a part of its attributes: the
    /// kernel would not merge that with its neighbours any more.
    ///
    /// # Errors
    /// What the host answers, ENOMEM when the process would have too many mappings; EINVAL where either memory is a file
    /// and for what is no part of this memory. Some of the part may be mapped anew.
    pub(in super::super) fn refresh(&self, part: &Range<u64>, untouched: &Self) -> io::Result<()> {
        self.check_part(part.start, part.end.saturating_sub(part.start))?;
        if self.file.is_some() || untouched.file.is_some() || untouched.length == 0 {
            return Err(Errno::INVAL.into());
        }
        self.keep_rule(part, untouched.length as u64, |piece| {
            let length = piece.end.saturating_sub(piece.start) as usize;
            let flags = MremapFlags::MAYMOVE | MremapFlags::DONTUNMAP;
            let (from, to) = (untouched.as_ptr(), self.as_ptr().wrapping_add(piece.start as usize));
            // SAFETY: both lie in owned mappings, as just checked; that of `untouched` stays where it is. What is in the
            // part is lost, of which the caller has it that it is nothing; no reference is to either.
            let mapped = unsafe { mremap_fixed(from.cast(), length, length, flags, to.cast()) };
            match mapped {
                Ok(_) => Ok(()),
                Err(errno) => Ok(self.close_hole(&piece, errno)?),
            }
        })
    }

    fn check_chunk(&self, offset: u64) -> Result<(), Errno> {
        match offset.is_multiple_of(CHUNK.get()) {
            true => self.check_part(offset, CHUNK.get()),
            false => Err(Errno::INVAL),
        }
    }
}
