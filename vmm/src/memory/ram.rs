//! The guest's RAM, as vm-memory sees it: regions over an owned mapping.
#![allow(unsafe_code)]

use std::io;
use std::ops::{Deref, Range};
use std::os::fd::OwnedFd;
use std::ptr::NonNull;
use std::sync::{Arc, OnceLock};

use arch::layout::{CHUNK, RAM_BASE};
use arch::mte::granule::Tag;
use arch::range::MemoryRange;
use arch::units::Bytes;
use vm_memory::bitmap::{AtomicBitmap, BS, Bitmap};
use vm_memory::guest_memory::Result as MemoryResult;
use vm_memory::{
    GuestAddress, GuestMemoryBackend, GuestMemoryError, GuestMemoryRegion, GuestMemoryRegionBytes,
    MemoryRegionAddress, VolatileSlice,
};

use super::backing::{Attributes, Backing, MemoryFile};
use super::changes::{self, Changes};
use super::error::Error;
use super::mapping::{Mapping, PagesInMemory};
use super::shared::{Overlay, TemplateParts};
use super::tags;
use super::template::{TemplateFile, TemplatePart};
use crate::sys::{fatal, mappings};

/// A word of packed tags in bytes.
const TAG_WORD: usize = 8;

/// What memory is cleared with.
static ZEROES: [u8; 4096] = [0; 4096];

/// The guest's memory: one region from [`RAM_BASE`] up, without holes.
///
/// It is left out of core dumps and of child processes. Clones are the same memory, which lives as long
/// as the last of them; what they lend lives no longer than they do.
#[derive(Clone, Debug)]
pub struct GuestRam {
    regions: Arc<Regions>,
    attributes: Attributes,
}

impl GuestRam {
    /// Maps guest memory of `size` bytes; no page of it is populated yet.
    ///
    /// # Errors
    /// When the host cannot give such memory.
    pub fn new(size: Bytes, attributes: Attributes) -> Result<Self, Error> {
        let ram = Self::over(Mapping::new(size, attributes)?, attributes);
        fatal::set_guest_memory(&ram.host_range(), RAM_BASE.0);
        Ok(ram)
    }

    /// Memory that is no guest's, beside this.
    ///
    /// # Errors
    /// As for [`new`](Self::new).
    fn beside(&self, size: Bytes, attributes: Attributes) -> Result<Self, Error> {
        Ok(Self::over(self.region().mapping.beside(size, attributes)?, attributes))
    }

    fn over(mapping: Mapping, attributes: Attributes) -> Self {
        let region =
            Region { mapping, base: RAM_BASE, changed: OnceLock::new(), parts: OnceLock::new() };
        Self { regions: Arc::new(Regions([region])), attributes }
    }

    /// Memory that becomes a template when it has its contents.
    ///
    /// # Errors
    /// As for [`new`](Self::new).
    pub(crate) fn of_template(size: Bytes, attributes: Attributes) -> Result<Self, Error> {
        let attributes = Attributes { backing: Backing::Memfd, ..attributes };
        Ok(Self::over(Mapping::of_template(size, attributes)?, attributes))
    }

    /// Unmaps memory that was made for it, and seals it. No clone of it is left.
    ///
    /// # Errors
    /// What the host answers; EINVAL where there is a clone.
    pub(crate) fn into_template(self) -> io::Result<OwnedFd> {
        let Regions([region]) = Arc::try_unwrap(self.regions)
            .map_err(|_| io::Error::from(io::ErrorKind::InvalidInput))?;
        region.mapping.into_template()
    }

    /// Maps parts of a template in the place of as much of this memory, which is anonymous and was
    /// not touched. They are in order and apart from one another. It is done once.
    ///
    /// # Errors
    /// When the host does not map it. Then the memory must not be used.
    pub(crate) fn share(
        &self,
        template: &TemplateFile,
        parts: &[TemplatePart],
    ) -> Result<(), Error> {
        let shared = self.region().mapping.share(template, parts);
        shared.map_err(|source| Error::Template { parts: parts.len(), source })?;
        let extents: Vec<_> = parts.iter().map(|part| part.at.clone()).collect();
        self.region().parts.get_or_init(|| TemplateParts::new(&extents, mappings::most()));
        Ok(())
    }

    /// The parts that are a template's, if any ever were.
    fn parts(&self) -> Option<&TemplateParts> {
        self.region().parts.get()
    }

    /// Whether some of a range of this memory is a template's.
    pub(crate) fn is_shared(&self, range: MemoryRange) -> bool {
        self.part(range).is_ok_and(|part| self.has_template_in(&part))
    }

    /// How much of it is a template's, if any ever was: mapped from there, whether it is in memory or copied since.
    pub(crate) fn of_the_template(&self) -> Option<Bytes> {
        Some(self.parts()?.size())
    }

    /// The pieces of a part of the memory, in order, each with whether it is a template's.
    pub(crate) fn pieces(&self, part: &Range<u64>) -> Vec<(Range<u64>, bool)> {
        match self.parts() {
            Some(parts) => parts.pieces(part),
            None => vec![(part.clone(), false)],
        }
    }

    /// A chunk of anonymous memory like this, which no guest sees; none of it is populated.
    ///
    /// # Errors
    /// As for [`new`](Self::new).
    pub(crate) fn chunk_aside(&self) -> Result<Self, Error> {
        self.beside(CHUNK, Attributes { backing: Backing::Anonymous, ..self.attributes })
    }

    /// A chunk of anonymous memory for the data of this, without tags.
    ///
    /// # Errors
    /// As for [`new`](Self::new).
    pub(crate) fn data_aside(&self) -> Result<Self, Error> {
        let backing = Backing::Anonymous;
        self.beside(CHUNK, Attributes { backing, tags: false, ..self.attributes })
    }

    /// Memory like this of so many bytes, for [`refresh`](Self::refresh). No one touches it.
    ///
    /// # Errors
    /// As for [`new`](Self::new).
    pub(crate) fn untouched(&self, size: Bytes) -> Result<Self, Error> {
        self.beside(size, self.attributes)
    }

    /// A chunk of this memory, which has a file, in another mapping: its first, until it [shows](Self::show_chunk) another.
    ///
    /// # Errors
    /// As for [`new`](Self::new).
    pub(crate) fn window(&self) -> Result<Self, Error> {
        Ok(Self::over(self.region().mapping.window()?, self.attributes))
    }

    /// Has a [window](Self::window) that no other thread uses show a chunk of the memory.
    ///
    /// # Errors
    /// What the host answers.
    pub(crate) fn show_chunk(&self, chunk: u64) -> io::Result<()> {
        self.region().mapping.show(chunk * CHUNK.get())
    }

    /// Gives a part of memory with a file pages of zeros where the file has none.
    ///
    /// # Errors
    /// What the host answers, and EINVAL for a part that is not of this memory, and for memory without a file.
    pub(crate) fn allocate(&self, offset: u64, length: u64) -> io::Result<()> {
        self.region().mapping.allocate(offset, length)
    }

    fn region(&self) -> &Region {
        let Regions([region]) = &*self.regions;
        region
    }

    /// The guest-physical range.
    pub fn range(&self) -> MemoryRange {
        let region = self.region();
        MemoryRange { base: region.base, size: Bytes::new(region.len()) }
    }

    /// Where the range begins in this process, as the memory slot names it.
    pub fn host_address(&self) -> u64 {
        self.region().mapping.as_ptr() as u64
    }

    /// The addresses of the range in this process.
    pub(super) fn host_range(&self) -> Range<u64> {
        let start = self.host_address();
        start..start + self.range().size.get()
    }

    /// Makes a VMA of its own of a part, or merges it again.
    #[cfg(test)]
    pub(super) fn set_apart(&self, part: Range<usize>, apart: bool) {
        let set = self.region().mapping.set_apart(part.start, part.len(), apart);
        set.expect("attributes can be set on guest memory");
    }

    /// What it is made of.
    pub fn backing(&self) -> Backing {
        self.attributes.backing
    }

    /// Whether it is mapped with tags.
    pub fn has_tags(&self) -> bool {
        self.attributes.tags
    }

    /// The file behind it, if it has one: byte 0 of the file is byte 0 of the range.
    pub(super) fn file(&self) -> Option<&MemoryFile> {
        self.region().mapping.file()
    }

    /// Whether a part, by its offset, has a page in memory: of memory that is not swapped.
    ///
    /// # Errors
    /// What the host answers.
    pub(super) fn is_in_core(&self, offset: u64, length: u64) -> io::Result<bool> {
        self.region().mapping.is_in_core(offset, length)
    }

    /// Populates all of it and keeps it in memory for good: nothing can be given back any more.
    ///
    /// # Errors
    /// When the limit on locked memory, or the host's memory, is too small for it.
    pub fn lock(&self) -> Result<(), Error> {
        let size = self.range().size;
        self.region().mapping.lock().map_err(|source| match source.raw_os_error() {
            // mlock(2): EAGAIN when pages cannot be had, ENOMEM and EPERM for the limit.
            Some(libc::ENOMEM | libc::EPERM) => Error::LockLimit { size, source },
            _ => Error::Lock { size, source },
        })
    }

    /// Whether it has been locked.
    pub fn is_locked(&self) -> bool {
        self.region().mapping.is_locked()
    }

    /// Reads the tags of a part of the memory, two a byte, the first in the low four bits. Pages that it does not have
    /// are populated. Offset and length are multiples of [`tags::WORD_SPAN`].
    ///
    /// # Errors
    /// EINVAL for a part that is not of this memory, and for memory without tags.
    pub(crate) fn read_tags(&self, offset: u64, packed: &mut [u8]) -> io::Result<()> {
        let (words, _) = packed.as_chunks_mut::<TAG_WORD>();
        let mut at = self.tagged(offset, words.len())?;
        for word in words {
            // SAFETY: `tagged` has checked that the tags of all these words are those of mapped memory with tags.
            *word = unsafe { tags::read(at) }.to_le_bytes();
            // SAFETY: as above; it stays in the mapping, or is its end.
            at = unsafe { at.add(tags::WORD_SPAN) };
        }
        Ok(())
    }

    /// Sets the tags of a part of the memory: see [`read_tags`](Self::read_tags).
    ///
    /// # Errors
    /// As for [`read_tags`](Self::read_tags).
    pub(crate) fn write_tags(&self, offset: u64, packed: &[u8]) -> io::Result<()> {
        let (words, _) = packed.as_chunks::<TAG_WORD>();
        let mut at = self.tagged(offset, words.len())?;
        for word in words {
            // SAFETY: as in `read_tags`; guest memory is writable.
            unsafe { tags::write(at, u64::from_le_bytes(*word)) };
            // SAFETY: as above.
            at = unsafe { at.add(tags::WORD_SPAN) };
        }
        Ok(())
    }

    /// Gives a part of the memory one tag: see [`read_tags`](Self::read_tags).
    ///
    /// # Errors
    /// As for [`read_tags`](Self::read_tags).
    pub(crate) fn fill_tags(&self, offset: u64, length: u64, tag: Tag) -> io::Result<()> {
        let spans = length as usize / tags::WORD_SPAN;
        let mut at = self.tagged(offset, spans)?;
        for _ in 0..spans {
            // SAFETY: as in `write_tags`.
            unsafe { tags::fill(at, tag.get()) };
            // SAFETY: as above.
            at = unsafe { at.add(tags::WORD_SPAN) };
        }
        Ok(())
    }

    /// The address of `spans` times [`tags::WORD_SPAN`] bytes of the memory that have tags.
    fn tagged(&self, offset: u64, spans: usize) -> io::Result<NonNull<u8>> {
        let mapping = &self.region().mapping;
        let length = (spans as u64).checked_mul(tags::WORD_SPAN as u64);
        let end = length.and_then(|length| offset.checked_add(length));
        let inside = end.is_some_and(|end| end <= mapping.len() as u64);
        if !self.has_tags() || !inside || !offset.is_multiple_of(tags::WORD_SPAN as u64) {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        NonNull::new(mapping.as_ptr().wrapping_add(offset as usize))
            .ok_or_else(|| io::ErrorKind::InvalidInput.into())
    }

    /// Gives the pages of a range back to the host; after that its data and tags read zero. The range
    /// consists of whole pages ([`Backing::page_size`]) of this memory. Returns how much has gone: of a template's
    /// parts it may be less than all.
    ///
    /// # Errors
    /// What the host answers. Some of the pages may be gone even so.
    pub(crate) fn discard(&self, range: MemoryRange) -> io::Result<Bytes> {
        let region = self.region();
        let part = self.part(range)?;
        region.mapping.check_part(part.start, range.size.get())?;
        // Also after an error some of it may be gone.
        region.mark_changed(&part);
        match self.parts() {
            Some(parts) => parts.discard(&part, self),
            None => region.mapping.discard(part.start, range.size.get()).map(|()| range.size),
        }
    }

    /// The size of the host's transparent huge pages, if it has any, whether this memory has them or not.
    pub(super) fn host_huge_page(&self) -> Option<Bytes> {
        self.region().mapping.host_huge_page()
    }

    /// The size of the huge pages that it may be made of, where they can go in pieces: those of anonymous memory.
    pub(crate) fn huge_page_size(&self) -> Option<Bytes> {
        let is_huge = self.region().mapping.has_huge_chunks();
        is_huge.then_some(CHUNK)
    }

    /// Maps chunks anew that the guest does not use and whose pages were given back, so that a huge page can be there
    /// again: the tables of the small pages go. Those with a template's pages are left out. Returns how much it was.
    ///
    /// # Errors
    /// What the host answers. Some of the chunks may be as they were.
    pub(crate) fn renew(&self, range: MemoryRange) -> io::Result<Bytes> {
        let region = self.region();
        let part = self.part(range)?;
        region.mapping.check_part(part.start, range.size.get())?;
        // What is no template's here never becomes one.
        if self.has_template_in(&part) {
            return Ok(Bytes::ZERO);
        }
        region.mark_changed(&part);
        region.mapping.renew(&part)?;
        Ok(range.size)
    }

    /// Whether the host may give huge pages to a range of whole pages.
    ///
    /// # Errors
    /// What the host answers; EINVAL for a range that is not of this memory.
    pub(crate) fn allow_huge_pages(&self, range: MemoryRange, allowed: bool) -> io::Result<()> {
        self.region().mapping.allow_huge_pages(&self.part(range)?, allowed)
    }

    /// Maps chunks without a page anew, as [`untouched`](Self::untouched) memory is, with no table for small pages and no
    /// userfaultfd; pages that come meanwhile are lost. `false`, and nothing is done, where some are a template's.
    ///
    /// # Errors
    /// What the host answers. Some of the chunks may be mapped anew.
    pub(crate) fn refresh(&self, chunks: MemoryRange, untouched: &Self) -> io::Result<bool> {
        let part = self.part(chunks)?;
        if self.has_template_in(&part) {
            return Ok(false);
        }
        self.region().mapping.refresh(&part, &untouched.region().mapping)?;
        Ok(true)
    }

    /// How many pages of a chunk are in memory. `None` where some are a template's.
    ///
    /// # Errors
    /// What the host answers.
    pub(super) fn pages_in_memory(&self, chunk: MemoryRange) -> io::Result<Option<PagesInMemory>> {
        let part = self.part(chunk)?;
        if self.has_template_in(&part) {
            return Ok(None);
        }
        self.region().mapping.pages_in_memory(part.start).map(Some)
    }

    /// Has the host split the huge page of a chunk of which small pages have gone.
    ///
    /// # Errors
    /// What the host answers.
    pub(super) fn give_up_huge_page(&self, chunk: MemoryRange) -> io::Result<()> {
        self.region().mapping.give_up_huge_page(self.offset_of(chunk)?)
    }

    /// As [`can_collapse`](Self::can_collapse), without guest memory.
    pub(crate) fn host_can_collapse() -> bool {
        let attributes = Attributes { tags: false, huge_pages: true, backing: Backing::Anonymous };
        let mapping = Mapping::new(CHUNK, attributes);
        mapping.is_ok_and(|mapping| Self::over(mapping, attributes).can_collapse())
    }

    /// Whether the host can make huge pages of small ones.
    pub(super) fn can_collapse(&self) -> bool {
        self.region().mapping.can_collapse()
    }

    /// Makes one huge page of a chunk's small pages. The guest may use it meanwhile.
    ///
    /// # Errors
    /// What the host answers.
    pub(super) fn collapse(&self, chunk: MemoryRange) -> io::Result<()> {
        self.region().mapping.collapse(self.offset_of(chunk)?)
    }

    /// Where a range begins and ends in this memory, if the memory begins before it.
    fn part(&self, range: MemoryRange) -> io::Result<Range<u64>> {
        let offset = self.offset_of(range)?;
        let end = offset.checked_add(range.size.get()).ok_or(io::ErrorKind::InvalidInput)?;
        Ok(offset..end)
    }

    fn offset_of(&self, range: MemoryRange) -> io::Result<u64> {
        let offset = range.base.0.checked_sub(self.region().base.0);
        Ok(offset.ok_or(io::ErrorKind::InvalidInput)?)
    }

    /// Whether some of a part is a template's.
    fn has_template_in(&self, part: &Range<u64>) -> bool {
        self.parts().is_some_and(|parts| parts.pieces(part).iter().any(|(_, is)| *is))
    }

    /// A piece of the memory whose writes are no changes: for what loads or saves it.
    ///
    /// # Errors
    /// When it is not all within the memory.
    pub(crate) fn unmarked(&self, offset: u64, count: usize) -> MemoryResult<VolatileSlice<'_>> {
        let region = self.region();
        let start = region.start_of(MemoryRegionAddress(offset), count)?;
        // SAFETY: as in `Region::get_slice`.
        Ok(unsafe { VolatileSlice::new(start, count) })
    }

    /// From now on, what this process changes in the memory is recorded. Nothing happens if it is already.
    pub(crate) fn track_changes(&self) {
        let region = self.region();
        region.changed.get_or_init(|| changes::bitmap(region.mapping.len()));
    }

    /// Adds changes: a bit a page, the lowest of the first word for the page with this number. Those of memory that is
    /// not tracked are lost.
    pub(crate) fn add_changes(&self, first: usize, log: &[u64]) {
        if let Some(changed) = self.region().changed.get() {
            changes::add(changed, first, log);
        }
    }

    /// Takes the changes that have been recorded and added; `None` of memory that is not tracked.
    pub(crate) fn take_changes(&self) -> Option<Changes> {
        let changed = self.region().changed.get()?;
        Some(Changes::new(self.clone(), changed.get_and_reset()))
    }
}

impl Overlay for GuestRam {
    fn replace(&self, part: &Range<u64>) -> io::Result<()> {
        self.region().mapping.replace(part)
    }

    fn clear(&self, part: &Range<u64>) -> io::Result<()> {
        let length = part.end.saturating_sub(part.start);
        let start = GuestAddress(self.region().base.0.saturating_add(part.start));
        let memory = self.get_slice(start, length as usize).map_err(io::Error::other)?;
        let mut at = 0;
        while at < memory.len() {
            let piece = memory.offset(at).map_err(io::Error::other)?;
            piece.copy_from(&ZEROES);
            at += ZEROES.len();
        }
        if self.has_tags() { self.fill_tags(part.start, length, Tag::ZERO) } else { Ok(()) }
    }

    fn drop_pages(&self, part: &Range<u64>) -> io::Result<()> {
        self.region().mapping.discard(part.start, part.end.saturating_sub(part.start))
    }
}

impl Deref for GuestRam {
    type Target = Regions;

    fn deref(&self) -> &Regions {
        &self.regions
    }
}

/// The regions of guest memory.
///
/// Neither they nor one of them can be cloned, unlike vm-memory's own: what refers to guest memory borrows
/// it from a [`GuestRam`], or is one.
#[derive(Debug)]
pub struct Regions([Region; 1]);

impl GuestMemoryBackend for Regions {
    type R = Region;

    fn iter(&self) -> impl Iterator<Item = &Region> {
        self.0.iter()
    }
}

/// One contiguous piece of guest memory.
#[derive(Debug)]
pub struct Region {
    mapping: Mapping,
    base: GuestAddress,
    /// The pages that have changed, where that is tracked.
    changed: OnceLock<AtomicBitmap>,
    /// Those of a template, if it has any.
    parts: OnceLock<TemplateParts>,
}

impl Region {
    /// Has a part among what has changed, where that is tracked.
    fn mark_changed(&self, part: &Range<u64>) {
        if let Some(changed) = self.changed.get() {
            let length = part.end.saturating_sub(part.start) as usize;
            changed.set_addr_range(part.start as usize, length);
        }
    }

    /// The address of `count` bytes, all of which are in the mapping.
    fn start_of(&self, offset: MemoryRegionAddress, count: usize) -> MemoryResult<*mut u8> {
        let end = offset.0.checked_add(count as u64).filter(|end| *end <= self.len());
        end.ok_or(GuestMemoryError::InvalidBackendAddress)?;
        Ok(self.mapping.as_ptr().wrapping_add(offset.0 as usize))
    }
}

impl GuestMemoryRegion for Region {
    type B = Option<AtomicBitmap>;

    fn len(&self) -> u64 {
        self.mapping.len() as u64
    }

    fn start_addr(&self) -> GuestAddress {
        self.base
    }

    fn bitmap(&self) -> BS<'_, Self::B> {
        self.changed.get().map(|changed| changed.slice_at(0))
    }

    fn get_host_address(&self, address: MemoryRegionAddress) -> MemoryResult<*mut u8> {
        let MemoryRegionAddress(offset) =
            self.check_address(address).ok_or(GuestMemoryError::InvalidBackendAddress)?;
        Ok(self.mapping.as_ptr().wrapping_add(offset as usize))
    }

    fn get_slice(
        &self,
        offset: MemoryRegionAddress,
        count: usize,
    ) -> MemoryResult<VolatileSlice<'_, BS<'_, Self::B>>> {
        let start = self.start_of(offset, count)?;
        let changed = self.changed.get().map(|changed| changed.slice_at(offset.0 as usize));
        // SAFETY: `start` to `start + count` lies in the mapping, as just checked, and the mapping lives
        // as long as the region, from which the slice is borrowed. Nothing refers to guest memory but such
        // slices and KVM.
        Ok(unsafe { VolatileSlice::with_bitmap(start, count, changed, None) })
    }
}

impl GuestMemoryRegionBytes for Region {}

#[cfg(test)]
mod tests;
