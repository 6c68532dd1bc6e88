//! Huge pages and the small ones that they fall into.
#![allow(unsafe_code)]

use std::io;

use arch::layout::CHUNK;
use rustix::io::Errno;
use rustix::mm::Advice;

use super::Mapping;

/// include/uapi/asm-generic/mman-common.h; the libc crate has it for glibc only.
const MADV_COLLAPSE: i32 = 25;

/// Which small pages of a huge one are in memory.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(in super::super) struct PagesInMemory {
    /// How many.
    pub(in super::super) present: u16,
    /// Of how many.
    pub(in super::super) of: u16,
    /// The first of them.
    pub(in super::super) first: u16,
}

impl Mapping {
    /// Which pages of a chunk are in memory.
    ///
    /// # Errors
    /// What the host answers, and EINVAL for what is no chunk of this memory or is locked.
    pub(in super::super) fn pages_in_memory(&self, offset: u64) -> io::Result<PagesInMemory> {
        self.check_chunk(offset)?;
        let mut pages = PagesInMemory { present: 0, of: 0, first: 0 };
        for is_present in self.in_core(offset, CHUNK.get())? {
            if is_present && pages.present == 0 {
                pages.first = pages.of;
            }
            pages.present += u16::from(is_present);
            pages.of += 1;
        }
        Ok(pages)
    }

    /// Has the host split the huge page of a chunk of which small pages have gone, so that it has those. One of them
    /// that is in memory is named: advice on a part of a huge page splits it.
    ///
    /// # Errors
    /// What the host answers, and EINVAL for what is no chunk of this memory or is locked.
    pub(in super::super) fn give_up_huge_page(&self, offset: u64, page: u16) -> io::Result<()> {
        self.check_chunk(offset)?;
        let start = offset as usize + usize::from(page) * self.page;
        // Its contents stay.
        Ok(self.advise(&(start..start + self.page), Advice::LinuxCold)?)
    }

    /// Makes one huge page of a chunk's small pages, those that are missing as zeroes. The guest may use it meanwhile.
    ///
    /// # Errors
    /// EINVAL where the kernel does not know how, or for what is no chunk of this memory or is locked; EAGAIN, EBUSY and
    /// ENOMEM where it cannot now.
    pub(in super::super) fn collapse(&self, offset: u64) -> io::Result<()> {
        self.check_chunk(offset)?;
        // SAFETY: the chunk lies in the owned mapping, as just checked. Its contents stay, tags included.
        let done = unsafe {
            let start = self.as_ptr().add(offset as usize);
            libc::madvise(start.cast(), CHUNK.get() as usize, MADV_COLLAPSE)
        };
        match done {
            0 => Ok(()),
            _ => Err(io::Error::last_os_error()),
        }
    }

    fn check_chunk(&self, offset: u64) -> Result<(), Errno> {
        match offset.is_multiple_of(CHUNK.get()) {
            true => self.check_part(offset, CHUNK.get()),
            false => Err(Errno::INVAL),
        }
    }
}
