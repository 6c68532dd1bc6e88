//! Which pages of guest memory may have contents, and whether a piece has no page at all.
//!
//! # References
//! Linux Documentation/admin-guide/mm/pagemap.rst; lseek(2), SEEK_DATA

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;

use arch::range::MemoryRange;

use super::backing::Backing;
use super::ram::GuestRam;

/// How many pages are looked at together: 4 KiB of pagemap, a chunk's worth where pages have 4 KiB.
const PIECE: usize = 512;
/// What pagemap has for each page: 64 bits.
const ENTRY: usize = 8;

/// Pagemap: the page is in memory, or swapped out or on its way to another place.
const PRESENT: u64 = 1 << 63;
const SWAPPED: u64 = 1 << 62;

/// Which pieces of guest memory have pages, resident or swapped out.
#[derive(Debug)]
pub(crate) struct Residency {
    ram: GuestRam,
    pagemap: File,
}

impl Residency {
    /// A view of this memory.
    ///
    /// # Errors
    /// When the host does not show which pages there are.
    pub(crate) fn new(ram: GuestRam) -> io::Result<Self> {
        Ok(Self { ram, pagemap: File::open("/proc/self/pagemap")? })
    }

    /// Whether a range of whole pages has none of them; `None` where that is unknown.
    ///
    /// # Errors
    /// What the host answers; EINVAL for a range that is not of this memory.
    pub(crate) fn is_absent(&self, range: MemoryRange) -> io::Result<Option<bool>> {
        let memory = self.ram.range();
        if !memory.encloses(&range) {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        let offset = range.base.0 - memory.base.0;
        let pieces = self.ram.pieces(&(offset..offset + range.size.get()));
        // A template's pages are in its file, whether they are mapped or not.
        if pieces.iter().any(|(_, is_template)| *is_template) {
            return Ok(Some(false));
        }
        match self.ram.backing() {
            Backing::Anonymous => self.is_unmapped(offset, range.size.get()).map(Some),
            // Its pages can be in the file, or swapped out, without being in pagemap.
            Backing::Memfd => match self.ram.file() {
                Some(file) => Ok(file.is_hole(offset, range.size.get())?),
                None => Ok(None),
            },
            // The file keeps no holes, and pagemap leaves out pages on their way to another place.
            Backing::Hugetlbfs { .. } => Ok(None),
        }
    }

    /// The pages of a part of the memory that may have contents, each range by its offsets. The others read zero, and
    /// so do their tags.
    ///
    /// # Errors
    /// What the host answers.
    pub(crate) fn populated(
        &self,
        offset: u64,
        length: u64,
        mut each: impl FnMut(Range<u64>),
    ) -> io::Result<()> {
        let end = offset.saturating_add(length).min(self.ram.range().size.get());
        let mut at = offset;
        // Its file keeps no holes, and to touch a page that went back to the pool is to take one again.
        if let Backing::Hugetlbfs { page } = self.ram.backing() {
            while at < end {
                if self.ram.is_in_core(at, page.get())? {
                    each(at..at + page.get());
                }
                at += page.get();
            }
            return Ok(());
        }
        match self.ram.file() {
            Some(file) => {
                while let Some(data) = file.next_data(at, end)? {
                    at = data.end;
                    each(data);
                }
                Ok(())
            }
            None => {
                for (piece, is_template) in self.ram.pieces(&(offset..end)) {
                    match is_template {
                        // Its pages are in its file, whether they are mapped or not.
                        true => each(piece),
                        false => self.mapped(piece, &mut each)?,
                    }
                }
                Ok(())
            }
        }
    }

    /// The pages of a part that are mapped or swapped out.
    fn mapped(&self, part: Range<u64>, each: &mut impl FnMut(Range<u64>)) -> io::Result<()> {
        let page = rustix::param::page_size() as u64;
        let mut at = part.start;
        self.entries(part.start, part.end.saturating_sub(part.start), |entry| {
            if entry & (PRESENT | SWAPPED) != 0 {
                each(at..at + page);
            }
            at += page;
            true
        })
    }

    /// Looks at the pagemap entries of a part, until `each` has seen enough.
    fn entries(
        &self,
        offset: u64,
        length: u64,
        mut each: impl FnMut(u64) -> bool,
    ) -> io::Result<()> {
        let page = rustix::param::page_size() as u64;
        let first = (self.ram.host_address() + offset) / page;
        let end = first + length.div_ceil(page);
        let mut entries = [0; PIECE * ENTRY];
        for at in (first..end).step_by(PIECE) {
            let count = (end - at).min(PIECE as u64) as usize;
            let entries = &mut entries[..count * ENTRY];
            self.pagemap.read_exact_at(entries, at * ENTRY as u64)?;
            let words = entries.as_chunks::<ENTRY>().0.iter();
            if !words.map(|word| u64::from_ne_bytes(*word)).all(&mut each) {
                break;
            }
        }
        Ok(())
    }

    fn is_unmapped(&self, offset: u64, length: u64) -> io::Result<bool> {
        let mut unmapped = true;
        self.entries(offset, length, |entry| {
            unmapped = entry & (PRESENT | SWAPPED) == 0;
            unmapped
        })?;
        Ok(unmapped)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use arch::units::Bytes;
    use vm_memory::{Bytes as _, GuestAddress};

    use super::*;
    use crate::memory::Attributes;

    const SIZE: Bytes = Bytes::mib(4);

    fn ram(backing: Backing, huge_pages: bool) -> GuestRam {
        GuestRam::new(SIZE, Attributes { huge_pages, backing, tags: false }).unwrap()
    }

    #[test]
    fn one_page_is_told_from_none_wherever_it_is() {
        for backing in [Backing::Anonymous, Backing::Memfd] {
            let ram = ram(backing, false);
            let all = ram.range();
            let page = backing.page_size();
            let residency = Residency::new(ram.clone()).unwrap();
            assert_eq!(residency.is_absent(all).unwrap(), Some(true));
            let last = MemoryRange::new(GuestAddress(all.end().0 - page.get()), page);

            for at in [all.base, GuestAddress(all.base.0 + (2 << 20)), last.base] {
                ram.write_obj(1u8, at).unwrap();
                let here = MemoryRange::new(at, page);
                assert_eq!(residency.is_absent(here).unwrap(), Some(false), "{backing}");
                assert_eq!(residency.is_absent(all).unwrap(), Some(false), "{backing}");
                ram.discard(here).unwrap();
                assert_eq!(residency.is_absent(all).unwrap(), Some(true), "{backing}");
            }
        }
    }

    #[test]
    fn the_pages_that_were_touched_are_found_and_no_other() {
        for backing in [Backing::Anonymous, Backing::Memfd] {
            let ram = ram(backing, false);
            let page = backing.page_size().get();
            let residency = Residency::new(ram.clone()).unwrap();
            let touched = [0, 1, 5, 511, 512, SIZE.get() / page - 1].map(|at| at * page);
            for offset in touched {
                ram.write_obj(1u8, GuestAddress(ram.range().base.0 + offset)).unwrap();
            }

            let mut found = Vec::new();
            let pages = |range: Range<u64>| range.step_by(page as usize);
            residency.populated(0, SIZE.get(), |range| found.extend(pages(range))).unwrap();
            assert_eq!(found, touched, "{backing}");
            let mut found = Vec::new();
            residency.populated(page, 5 * page, |range| found.extend(pages(range))).unwrap();
            assert_eq!(found, touched[1..3], "{backing}");
        }
    }

    #[test]
    fn a_page_that_was_only_read_is_one() {
        for backing in [Backing::Anonymous, Backing::Memfd] {
            let ram = ram(backing, false);
            let _: u8 = ram.read_obj(ram.range().base).unwrap();

            let absent = Residency::new(ram.clone()).unwrap().is_absent(ram.range()).unwrap();

            assert_eq!(absent, Some(false), "{backing}");
        }
    }

    #[test]
    fn the_last_page_of_a_huge_page_is_seen() {
        for backing in [Backing::Anonymous, Backing::Memfd] {
            let ram = ram(backing, true);
            let page = backing.page_size();
            ram.write_slice(&[1; 2 << 20], ram.range().base).unwrap();
            let residency = Residency::new(ram.clone()).unwrap();
            let chunk = MemoryRange::new(ram.range().base, Bytes::mib(2));
            let last = MemoryRange::new(GuestAddress(chunk.end().0 - page.get()), page);

            let most = MemoryRange::new(chunk.base, Bytes::new(chunk.size.get() - page.get()));
            ram.discard(most).unwrap();
            assert_eq!(residency.is_absent(chunk).unwrap(), Some(false), "{backing}");
            ram.discard(last).unwrap();
            assert_eq!(residency.is_absent(chunk).unwrap(), Some(true), "{backing}");
        }
    }

    #[test]
    fn a_range_outside_of_memory_is_an_error() {
        let ram = ram(Backing::Anonymous, false);
        let residency = Residency::new(ram.clone()).unwrap();
        let before = GuestAddress(ram.range().base.0 - 4096);

        for range in [
            MemoryRange::new(before, SIZE),
            MemoryRange::new(ram.range().end(), Bytes::kib(4)),
            MemoryRange::new(GuestAddress(u64::MAX - 4096), Bytes::kib(4)),
        ] {
            assert!(residency.is_absent(range).is_err(), "{range:?}");
        }
    }
}
