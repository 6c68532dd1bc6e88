//! The mapping that is guest memory, aligned to chunks so that a 2 MiB huge page can back each chunk.
#![allow(unsafe_code)]

mod hole;
mod huge;

use std::io;
use std::ops::Range;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::ptr::{self, NonNull};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use arch::layout::CHUNK;
use arch::units::Bytes;
use rustix::io::Errno;
use rustix::mm::{
    Advice, MapFlags, ProtFlags, madvise, mlock, mmap, mmap_anonymous, munlock, munmap,
};

use super::backing::{Attributes, Backing, MemoryFile};
use super::error::Error;
use super::template::{TemplateFile, TemplatePart};
use crate::sys::huge_pages::{free_huge_pages, huge_page_size};
use crate::sys::numa::Rule;

pub(super) use huge::PagesInMemory;

/// `PROT_MTE` of arch/arm64/include/uapi/asm/mman.h; the libc crate has it for glibc only.
const PROT_MTE: u32 = 0x20;

/// Guest memory in this process, unmapped when dropped.
///
/// Inaccessible addresses lie before and behind it. So no other mapping merges with it, which would put
/// two memories into one line of smaps, and nothing that runs over its end meets another's memory.
#[derive(Debug)]
pub(super) struct Mapping {
    reserved: Reserved,
    length: usize,
    file: Option<MemoryFile>,
    /// Where in the file it begins.
    first: AtomicU64,
    attributes: Attributes,
    page: usize,
    /// The size of the host's transparent huge pages, if it has any: looked up once, as parts are mapped anew often.
    huge_page: Option<Bytes>,
    locked: AtomicBool,
}

// SAFETY: the mapping is plain memory without thread affinity; this type only hands out its address.
unsafe impl Send for Mapping {}
// SAFETY: as above; no method gives a reference to the memory.
unsafe impl Sync for Mapping {}

impl Mapping {
    /// Maps `size` bytes of zeroes, readable and writable, with these attributes; nothing is populated yet.
    ///
    /// # Errors
    /// When the address space, the host's limits, its kernel or its pool of huge pages do not allow it.
    pub(super) fn new(size: Bytes, attributes: Attributes) -> Result<Self, Error> {
        Self::of(MemoryFile::new(attributes.backing, size)?, size, attributes, huge_page_size())
    }

    /// The same, beside this one: what the host has is not looked up again.
    ///
    /// # Errors
    /// As for [`new`](Self::new).
    pub(super) fn beside(&self, size: Bytes, attributes: Attributes) -> Result<Self, Error> {
        Self::of(MemoryFile::new(attributes.backing, size)?, size, attributes, self.huge_page)
    }

    /// The same, of a memfd that is sealed later ([`into_template`](Self::into_template)).
    ///
    /// # Errors
    /// As for [`new`](Self::new).
    pub(super) fn of_template(size: Bytes, attributes: Attributes) -> Result<Self, Error> {
        Self::of(MemoryFile::of_template(size)?, size, attributes, huge_page_size())
    }

    fn of(
        file: Option<MemoryFile>,
        size: Bytes,
        attributes: Attributes,
        huge_page: Option<Bytes>,
    ) -> Result<Self, Error> {
        let backing = attributes.backing;
        let no_room = |errno: Errno| Error::AddressSpace { size, source: errno.into() };
        let page = backing.page_size();
        let in_address_space = |size: Bytes| usize::try_from(size.get()).ok();
        let (Some(length), Some(page)) = (in_address_space(size), in_address_space(page)) else {
            return Err(no_room(Errno::NOMEM));
        };
        let reserved = Reserved::new(length, page.max(CHUNK.get() as usize)).map_err(no_room)?;
        let contents =
            file.as_ref().map_or(Source::Anonymous, |file| Source::Shared { file, offset: 0 });
        // SAFETY: `start` to `start + length` lies in the addresses just reserved, which no other
        // code knows: replacing that part of them touches no other memory.
        let mapped = unsafe { map_over(reserved.start, length, contents, attributes) };
        if let Err(errno) = mapped {
            // A failed mmap may have unmapped what was there, and another thread may have mapped there
            // since: these addresses are left as they are, for the few moments that the process has.
            std::mem::forget(reserved);
            return Err(map_error(size, attributes, errno));
        }
        let locked = AtomicBool::new(false);
        let first = AtomicU64::new(0);
        let mapping = Self { reserved, length, file, first, attributes, page, huge_page, locked };
        mapping.advise_all(&(0..length)).map_err(|errno| Error::Map {
            size,
            backing: backing.name(),
            source: errno.into(),
        })?;
        Ok(mapping)
    }

    /// Maps the first chunk of its file once more. Others are [shown](Self::show) in its place.
    ///
    /// # Errors
    /// As for [`new`](Self::new).
    pub(super) fn window(&self) -> Result<Self, Error> {
        let (size, backing) = (CHUNK, self.attributes.backing.name());
        let file = self.file.as_ref().map(MemoryFile::try_clone).transpose();
        let file = file.map_err(|errno| Error::File { size, backing, source: errno.into() })?;
        Self::of(file, size, self.attributes, self.huge_page)
    }

    /// Has a [window](Self::window) show another part of its file, which has as many bytes from there on. No other thread
    /// uses it.
    ///
    /// # Errors
    /// What the host answers, and EINVAL of memory without a file.
    pub(super) fn show(&self, first: u64) -> io::Result<()> {
        let file = self.file.as_ref().ok_or(Errno::INVAL)?;
        let contents = Source::Shared { file, offset: first };
        // SAFETY: the addresses are the mapping's own, and nothing refers to it but by its address.
        let mapped =
            unsafe { map_over(self.reserved.start, self.length, contents, self.attributes) };
        if let Err(errno) = mapped {
            // Memory of a file takes nothing of what the kernel promises: as good as never.
            if self.has_hole(&(0..self.length as u64)) {
                hole::lost();
            }
            return Err(errno.into());
        }
        self.first.store(first, Ordering::Relaxed);
        Ok(self.advise_all(&(0..self.length))?)
    }

    /// Gives a part pages of zeros where its file has none.
    ///
    /// # Errors
    /// What the host answers, and EINVAL for memory without a file.
    pub(super) fn allocate(&self, offset: u64, length: u64) -> io::Result<()> {
        self.check_part(offset, length)?;
        let file = self.file.as_ref().ok_or(Errno::INVAL)?;
        Ok(file.allocate(self.first.load(Ordering::Relaxed) + offset, length)?)
    }

    /// Unmaps the memory, and seals the file that it is in; returns a descriptor for reading it.
    ///
    /// # Errors
    /// What the host answers; EINVAL where there is no such file.
    pub(super) fn into_template(self) -> io::Result<OwnedFd> {
        let Self { reserved, file, .. } = self;
        // With a writable mapping there would be no seal.
        drop(reserved);
        Ok(file.ok_or(Errno::INVAL)?.seal()?)
    }

    /// Maps parts of a template over anonymous memory, each privately. No part of the memory has been touched.
    ///
    /// # Errors
    /// What the host answers. Then the memory must not be used.
    pub(super) fn share(&self, template: &TemplateFile, parts: &[TemplatePart]) -> io::Result<()> {
        for part in parts {
            let contents = Source::Template { file: template.as_fd(), offset: part.offset };
            self.map_part(&part.at, contents)?;
            // What is beside it keeps its own: memory whose touches are caught has no huge pages.
            self.advise_all(&(part.at.start as usize..part.at.end as usize))?;
        }
        Ok(())
    }

    /// Lays anonymous memory over a part, in the place of what was there.
    ///
    /// # Errors
    /// What the host answers, ENOMEM when the process would have too many mappings. The part is as it was then, or reads
    /// zero.
    pub(super) fn replace(&self, part: &Range<u64>) -> io::Result<()> {
        if let Err(errno) = self.map_part(part, Source::Anonymous) {
            return Ok(self.close_hole(part, errno)?);
        }
        // Before a page is touched there, so that it merges with its neighbours.
        Ok(self.advise_all(&(part.start as usize..part.end as usize))?)
    }

    /// The size of the host's transparent huge pages, if it has any.
    pub(super) fn host_huge_page(&self) -> Option<Bytes> {
        self.huge_page
    }

    /// Whether each chunk of it may be one huge page, which can go in pieces.
    pub(super) fn has_huge_chunks(&self) -> bool {
        let is_anonymous = self.file.is_none();
        is_anonymous && self.attributes.huge_pages && self.huge_page == Some(CHUNK)
    }

    /// As [`replace`](Self::replace), of a part with one rule for the placement of its pages, which it keeps.
    ///
    /// # Errors
    /// As for [`replace`](Self::replace), and when the rule cannot be kept.
    pub(super) fn renew(&self, part: &Range<u64>) -> io::Result<()> {
        self.keep_rule(part, part.end.saturating_sub(part.start), |part| self.replace(&part))
    }

    /// Maps a part anew in pieces of a length, and gives what has been mapped the rule for the placement of its pages that
    /// the part had: also where a piece fails, and those before it are new.
    ///
    /// # Errors
    /// That of `map`, which ends it; and when the rule cannot be kept.
    fn keep_rule(
        &self,
        part: &Range<u64>,
        length: u64,
        mut map: impl FnMut(Range<u64>) -> io::Result<()>,
    ) -> io::Result<()> {
        let address = self.as_ptr().addr() as u64;
        let rule = Rule::at(address + part.start)?.filter(|rule| !rule.is_default());
        let (mut at, mut mapped) = (part.start, Ok(()));
        while at < part.end && mapped.is_ok() {
            let end = at.saturating_add(length.max(1)).min(part.end);
            mapped = map(at..end);
            // A piece that failed has the rule still, or is new.
            at = end;
        }
        let kept = rule.map_or(Ok(()), |rule| rule.set(address + part.start..address + at));
        mapped.and(kept)
    }

    fn map_part(&self, part: &Range<u64>, contents: Source<'_>) -> Result<(), Errno> {
        let (start, length) = (part.start as usize, part.end.saturating_sub(part.start) as usize);
        self.check_part(part.start, length as u64)?;
        if self.file.is_some() {
            return Err(Errno::INVAL);
        }
        let at = NonNull::new(self.as_ptr().wrapping_add(start)).ok_or(Errno::INVAL)?;
        // SAFETY: the part lies in the owned mapping, as just checked. Its contents change under those who use it,
        // which is what they expect of memory shared with a guest; nothing refers to it but by its address.
        unsafe { map_over(at, length, contents, self.attributes) }
    }

    fn advise_all(&self, part: &Range<usize>) -> Result<(), Errno> {
        let attributes = self.attributes;
        let hugetlbfs = matches!(attributes.backing, Backing::Hugetlbfs { .. });
        match attributes.huge_pages {
            // Its pages have the size that they have.
            _ if hugetlbfs => {}
            false => self.advise_if_possible(part, Advice::LinuxNoHugepage)?,
            true if self.huge_page.is_none_or(|size| size <= CHUNK) => {
                self.advise_if_possible(part, Advice::LinuxHugepage)?;
            }
            // One touched byte would take 32 MiB (16 KiB pages) or 512 MiB (64 KiB pages), and khugepaged
            // would put back what the guest has freed.
            true => self.advise_if_possible(part, Advice::LinuxNoHugepage)?,
        }
        self.advise(part, Advice::LinuxDontDump)?;
        // A child has no business with a guest's memory, and must not make each page be copied.
        self.advise(part, Advice::LinuxDontFork)
    }

    /// Advises on huge pages. A kernel built without them knows no such advice: small pages serve, and
    /// `doctor` says so.
    fn advise_if_possible(&self, part: &Range<usize>, advice: Advice) -> Result<(), Errno> {
        match self.advise(part, advice) {
            Err(Errno::INVAL) => Ok(()),
            done => done,
        }
    }

    fn advise(&self, part: &Range<usize>, advice: Advice) -> Result<(), Errno> {
        let start = self.as_ptr().wrapping_add(part.start);
        // SAFETY: the part lies in the mapping, as its callers have checked, which is owned; no advice given changes
        // its contents.
        unsafe { madvise(start.cast(), part.len(), advice) }
    }

    /// Changes an attribute of a part that no one else looks at, and so makes a VMA of its own of it, or
    /// merges it with its neighbours again.
    #[cfg(test)]
    pub(super) fn set_apart(&self, offset: usize, length: usize, apart: bool) -> Result<(), Errno> {
        assert!(offset.checked_add(length).is_some_and(|end| end <= self.length));
        let advice = if apart { Advice::LinuxDoDump } else { Advice::LinuxDontDump };
        // SAFETY: the part lies in the owned mapping; this advice does not change its contents.
        unsafe { madvise(self.as_ptr().add(offset).cast(), length, advice) }
    }

    /// Gives the pages of a part back to the host: data and tags read zero from now on, and the mapping
    /// with its attributes stays. Offset and length are multiples of the page size.
    ///
    /// # Errors
    /// What the host answers: then some of the part, or all of it, still has its pages. EINVAL for a part
    /// that is not of this memory, and when memory is locked.
    pub(super) fn discard(&self, offset: u64, length: u64) -> io::Result<()> {
        self.check_part(offset, length)?;
        if length == 0 {
            return Ok(());
        }
        let Some(file) = &self.file else {
            // SAFETY: the part lies in the owned mapping, as just checked. Its contents change under
            // those who use it, which is what they expect of memory shared with a guest.
            let done = unsafe {
                let start = self.as_ptr().add(offset as usize);
                madvise(start.cast(), length as usize, Advice::LinuxDontNeed)
            };
            return Ok(done?);
        };
        Ok(file.punch(self.first.load(Ordering::Relaxed) + offset, length)?)
    }

    /// Checks that a part is of whole pages of this memory, which is not locked.
    ///
    /// # Errors
    /// EINVAL.
    pub(super) fn check_part(&self, offset: u64, length: u64) -> Result<(), Errno> {
        let inside = offset.checked_add(length).is_some_and(|end| end <= self.length as u64);
        let whole = |number: u64| number.is_multiple_of(self.page as u64);
        // Locking does not keep holes from being punched, as it keeps MADV_DONTNEED.
        match inside && whole(offset) && whole(length) && !self.is_locked() {
            true => Ok(()),
            false => Err(Errno::INVAL),
        }
    }

    /// Whether a part has a page in memory, or one on its way to another place. Offset and length are multiples of the
    /// page size.
    ///
    /// # Errors
    /// What the host answers, and EINVAL for a part that is not of this memory.
    pub(super) fn is_in_core(&self, offset: u64, length: u64) -> io::Result<bool> {
        let inside = offset.checked_add(length).is_some_and(|end| end <= self.length as u64);
        if !inside {
            return Err(Errno::INVAL.into());
        }
        Ok(self.in_core(offset, length)?.any(|page| page))
    }

    /// Of each page of a part of the mapping whether it is in memory.
    fn in_core(&self, offset: u64, length: u64) -> io::Result<impl Iterator<Item = bool> + use<>> {
        let mut pages = vec![0u8; length.div_ceil(rustix::param::page_size() as u64) as usize];
        // SAFETY: the part lies in the owned mapping, as the caller has checked, and there is a byte for each of its
        // pages.
        let done = unsafe {
            let start = self.as_ptr().add(offset as usize);
            libc::mincore(start.cast(), length as usize, pages.as_mut_ptr())
        };
        match done {
            0 => Ok(pages.into_iter().map(|page| page & 1 != 0)),
            _ => Err(io::Error::last_os_error()),
        }
    }

    /// Populates all of the memory, and keeps it from being swapped out or discarded.
    ///
    /// # Errors
    /// When the host's limits or its memory do not allow it; nothing is locked then.
    pub(super) fn lock(&self) -> io::Result<()> {
        // SAFETY: the range is the whole mapping; locking changes nothing that this program can see.
        let locked = unsafe { mlock(self.as_ptr().cast(), self.length) };
        if let Err(errno) = locked {
            // SAFETY: as above. It may have got half-way; that memory is unlocked already is no harm.
            let _ = unsafe { munlock(self.as_ptr().cast(), self.length) };
            return Err(errno.into());
        }
        self.locked.store(true, Ordering::Release);
        Ok(())
    }

    /// Whether it is locked.
    pub(super) fn is_locked(&self) -> bool {
        self.locked.load(Ordering::Acquire)
    }

    /// The file behind the memory, if it has one.
    pub(super) fn file(&self) -> Option<&MemoryFile> {
        self.file.as_ref()
    }

    /// The mapping's address in this process, a multiple of [`CHUNK`].
    pub(super) fn as_ptr(&self) -> *mut u8 {
        self.reserved.start.as_ptr()
    }

    /// The mapping's length in bytes.
    pub(super) fn len(&self) -> usize {
        self.length
    }
}

/// What is mapped.
enum Source<'a> {
    Anonymous,
    /// A file, whose contents others see.
    Shared {
        file: &'a MemoryFile,
        offset: u64,
    },
    /// A part of a file, of which each page is copied when it is written to.
    Template {
        file: BorrowedFd<'a>,
        offset: u64,
    },
}

/// Maps guest memory over addresses that are reserved for it.
///
/// # Safety
/// No other code uses these addresses.
unsafe fn map_over(
    start: NonNull<u8>,
    length: usize,
    contents: Source<'_>,
    attributes: Attributes,
) -> Result<(), Errno> {
    let start = start.as_ptr().cast();
    let mut prot = ProtFlags::READ | ProtFlags::WRITE;
    if attributes.tags {
        prot |= ProtFlags::from_bits_retain(PROT_MTE);
    }
    // Huge pages of a pool are promised with this mapping: a pool that cannot is an error here, and not
    // the end of the guest later. Other memory is not reserved, as guests seldom use all of theirs.
    let promise = match attributes.backing {
        Backing::Hugetlbfs { .. } => MapFlags::empty(),
        Backing::Anonymous | Backing::Memfd => MapFlags::NORESERVE,
    };
    // SAFETY: the caller has it that nothing is lost when these addresses mean something else.
    unsafe {
        let private = promise | MapFlags::PRIVATE | MapFlags::FIXED;
        match contents {
            Source::Anonymous => mmap_anonymous(start, length, prot, private),
            Source::Shared { file, offset } => {
                let flags = promise | MapFlags::SHARED | MapFlags::FIXED;
                mmap(start, length, prot, flags, file.file(), offset)
            }
            Source::Template { file, offset } => mmap(start, length, prot, private, file, offset),
        }?;
    }
    Ok(())
}

fn map_error(size: Bytes, attributes: Attributes, errno: Errno) -> Error {
    let Attributes { tags, backing, .. } = attributes;
    let source = errno.into();
    match (backing, errno) {
        (Backing::Hugetlbfs { page }, Errno::NOMEM) => {
            Error::HugePages { size, page, free: free_huge_pages(page), source }
        }
        // arch_validate_flags in arch/arm64/include/asm/mman.h: PROT_MTE where it cannot be.
        (_, Errno::INVAL) if tags => {
            Error::Tags { backing: backing.name(), since: backing.mte_since(), source }
        }
        _ => Error::Map { size, backing: backing.name(), source },
    }
}

/// Addresses that no other code maps, given back when dropped with whatever is mapped there then.
#[derive(Debug)]
struct Reserved {
    base: NonNull<u8>,
    total: usize,
    /// Where guest memory is to start: aligned, and at least one page after the base.
    start: NonNull<u8>,
}

impl Reserved {
    /// Reserves room for `length` bytes at a multiple of `alignment`, and for a page on both sides.
    fn new(length: usize, alignment: usize) -> Result<Self, Errno> {
        let guard = rustix::param::page_size();
        let total = length.checked_add(alignment).and_then(|sum| sum.checked_add(2 * guard));
        let total = total.ok_or(Errno::NOMEM)?;
        let flags = MapFlags::PRIVATE | MapFlags::NORESERVE;
        // SAFETY: a new mapping at an address of the kernel's choice touches no other memory.
        let base = unsafe { mmap_anonymous(ptr::null_mut(), total, ProtFlags::empty(), flags) }?
            .cast::<u8>();
        let before = base.wrapping_add(guard).align_offset(alignment).saturating_add(guard);
        // `align_offset` may give up, but not for bytes and powers of two.
        let start = if before <= total { base.wrapping_add(before) } else { ptr::null_mut() };
        match (NonNull::new(base), NonNull::new(start)) {
            (Some(base), Some(start)) => Ok(Self { base, total, start }),
            _ => Err(Errno::NOMEM),
        }
    }
}

impl Drop for Reserved {
    fn drop(&mut self) {
        // SAFETY: these addresses are this value's, and so is what is mapped there, which goes with its
        // owner: nothing hands it out for longer than its own life.
        let unmapped = unsafe { munmap(self.base.as_ptr().cast(), self.total) };
        debug_assert!(unmapped.is_ok(), "munmap of owned addresses: {unmapped:?}");
    }
}

#[cfg(test)]
mod tests;
