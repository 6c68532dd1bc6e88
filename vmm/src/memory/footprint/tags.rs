//! Counts pages whose tags are in use, by the flags of their frames.
//!
//! # References
//! Linux Documentation/admin-guide/mm/pagemap.rst, include/uapi/linux/kernel-page-flags.h

use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};

use arch::units::Bytes;

use super::Error;
use super::read_at::ReadAt;

/// How many pages are looked at together: 32 KiB of pagemap and as much of kpageflags, whatever the
/// guest's size.
const PIECE: usize = 4096;
/// What both files have for each page: 64 bits.
const ENTRY: usize = 8;

/// Pagemap: the page is in memory, and its frame's number.
const PRESENT: u64 = 1 << 63;
const FRAME: u64 = (1 << 55) - 1;

/// Kpageflags: the first page of a compound one, a later page of it, a page of hugetlbfs.
const COMPOUND_HEAD: u64 = 1 << 15;
const COMPOUND_TAIL: u64 = 1 << 16;
const HUGETLB: u64 = 1 << 17;
/// The page of zeroes that the kernel maps where memory has only been read.
const ZERO_PAGE: u64 = 1 << 24;
/// On arm64 (PG_arch_2, which is PG_mte_tagged): tags are in use.
const TAGGED: u64 = 1 << 41;

/// Counts the pages in use with tags, piece by piece.
///
/// # Errors
/// When a file cannot be read, or `stop` is set.
pub(super) fn tagged(
    pagemap: &impl ReadAt,
    page_flags: &impl ReadAt,
    addresses: &Range<u64>,
    page: u64,
    stop: &AtomicBool,
) -> Result<Bytes, Error> {
    let mut entries = vec![0; PIECE * ENTRY];
    let mut flags = vec![0; PIECE * ENTRY];
    let mut tags = TagCounter::default();
    let (mut at, end) = (addresses.start / page, addresses.end / page);
    while at < end {
        if stop.load(Ordering::Relaxed) {
            return Err(Error::Stopped);
        }
        let count = (end - at).min(PIECE as u64);
        let entries = &mut entries[..count as usize * ENTRY];
        pagemap.fill_at(entries, at * ENTRY as u64).map_err(Error::Pagemap)?;
        for frames in runs(entries) {
            // Frame 0 is the kernel's own: the numbers are withheld (pagemap_read in fs/proc/task_mmu.c).
            if frames.start == 0 {
                return Err(Error::NoFrames);
            }
            let flags = &mut flags[..(frames.end - frames.start) as usize * ENTRY];
            page_flags.fill_at(flags, frames.start * ENTRY as u64).map_err(Error::PageFlags)?;
            words(flags).for_each(|flags| tags.count(flags));
        }
        at += count;
    }
    Ok(Bytes::new(tags.pages * page))
}

fn words(bytes: &[u8]) -> impl Iterator<Item = u64> {
    bytes.as_chunks::<ENTRY>().0.iter().map(|word| u64::from_ne_bytes(*word))
}

/// The frames of the pages that are present, those that follow one another together: one read of flags
/// for a huge page. Withheld frames are all 0, and no run has more than the one.
fn runs(entries: &[u8]) -> impl Iterator<Item = Range<u64>> {
    let mut frames =
        words(entries).filter(|entry| entry & PRESENT != 0).map(|entry| entry & FRAME).peekable();
    std::iter::from_fn(move || {
        let start = frames.next()?;
        let mut end = start + 1;
        while frames.next_if_eq(&end).is_some() {
            end += 1;
        }
        Some(start..end)
    })
}

/// Counts pages by their flags, in the order of their addresses.
#[derive(Default)]
struct TagCounter {
    pages: u64,
    /// Of a page of hugetlbfs only the first has the flag, for all
    /// (folio_test_hugetlb_mte_tagged in arch/arm64/include/asm/mte.h).
    head_is_tagged: bool,
}

impl TagCounter {
    fn count(&mut self, flags: u64) {
        let mut tagged = flags & TAGGED != 0;
        if flags & COMPOUND_HEAD != 0 {
            self.head_is_tagged = tagged;
        }
        if flags & HUGETLB != 0 && flags & COMPOUND_TAIL != 0 {
            tagged = self.head_is_tagged;
        }
        // The kernel's page of zeroes has tags in use from the start, and is no memory of the guest's.
        self.pages += u64::from(tagged && flags & ZERO_PAGE == 0);
    }
}

#[cfg(test)]
mod tests;
