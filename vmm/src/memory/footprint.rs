//! How much of the host guest memory takes, in the kernel's own numbers.
//!
//! # References
//! Linux Documentation/filesystems/proc.rst (smaps), Documentation/admin-guide/mm/pagemap.rst,
//! include/uapi/linux/kernel-page-flags.h

use std::fs::File;
use std::io::{self, BufRead, BufReader};
use std::ops::Range;
use std::os::unix::fs::FileExt;

use arch::units::Bytes;
use thiserror::Error;

use super::ram::GuestRam;

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
/// The page of zeroes that the kernel lends to whoever only reads.
const ZERO_PAGE: u64 = 1 << 24;
/// On arm64 (PG_arch_2, which is PG_mte_tagged): tags are in use.
const TAGGED: u64 = 1 << 41;

/// Why a number is not known.
#[derive(Debug, Error)]
pub enum Error {
    /// The list of mappings cannot be read.
    #[error("cannot read /proc/self/smaps: the kernel needs CONFIG_PROC_PAGE_MONITOR")]
    Smaps(#[source] io::Error),
    /// The list of mappings does not show guest memory as it was mapped.
    #[error("/proc/self/smaps shows {found} of {size} of guest memory; please report this")]
    Torn {
        /// How much it shows.
        found: Bytes,
        /// How much there is.
        size: Bytes,
    },
    /// Another architecture's pages have no tags.
    #[error("this machine's memory has no tags")]
    NoTags,
    /// The map of pages cannot be read.
    #[error("cannot read /proc/self/pagemap")]
    Pagemap(#[source] io::Error),
    /// The map of pages has no frames.
    #[error(
        "the kernel shows page frames only to CAP_SYS_ADMIN: run as root to count tagged pages"
    )]
    NoFrames,
    /// The flags of pages cannot be read.
    #[error(
        "cannot read /proc/kpageflags, which is for root alone: run as root to count tagged pages"
    )]
    PageFlags(#[source] io::Error),
}

/// How much of the host guest memory takes now. Only a paused guest's numbers are of one moment:
/// then nothing but the host takes of it.
#[derive(Debug)]
pub struct Footprint {
    /// In memory, whoever touched it: what the kernel counts for the mapping, pages of zeroes left out.
    pub resident: Bytes,
    /// How much of that is in huge pages, transparent or of a pool.
    pub huge: Bytes,
    /// How much of it has tags in use, as the host's kernel counts: with KVM, all that a guest with MTE has
    /// touched. Or why that is not known.
    pub tagged: Result<Bytes, Error>,
}

impl Footprint {
    /// The footprint of this memory. The kernel walks all of its pages for it, so the time it takes grows
    /// with them; the memory it takes does not.
    ///
    /// # Errors
    /// When the kernel does not tell what is resident.
    pub fn of(ram: &GuestRam) -> Result<Self, Error> {
        let addresses = ram.host_range();
        let smaps = File::open("/proc/self/smaps").map_err(Error::Smaps)?;
        let Resident { resident, huge } = resident(BufReader::new(smaps), &addresses)?;
        Ok(Self { resident, huge, tagged: tagged_of(&addresses) })
    }
}

fn tagged_of(addresses: &Range<u64>) -> Result<Bytes, Error> {
    // Elsewhere the same bit of a page's flags has another meaning, or none.
    if !cfg!(target_arch = "aarch64") {
        return Err(Error::NoTags);
    }
    let pagemap = File::open("/proc/self/pagemap").map_err(Error::Pagemap)?;
    let flags = File::open("/proc/kpageflags").map_err(Error::PageFlags)?;
    tagged(&pagemap, &flags, addresses, rustix::param::page_size() as u64)
}

#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
struct Resident {
    resident: Bytes,
    huge: Bytes,
}

/// Adds up what smaps says of the mappings that make up these addresses.
fn resident(smaps: impl BufRead, addresses: &Range<u64>) -> Result<Resident, Error> {
    let (mut found, mut resident, mut huge) = (0, 0, 0);
    let mut ours = false;
    for line in smaps.split(b'\n') {
        // The name of a mapped file may have any bytes.
        let line = line.map_err(Error::Smaps)?;
        let line = String::from_utf8_lossy(&line);
        let mut words = line.split_ascii_whitespace();
        let first = words.next().unwrap_or_default();
        let Some(name) = first.strip_suffix(':') else {
            // A new mapping.
            let mapping = parse_addresses(first).unwrap_or_default();
            ours = addresses.start <= mapping.start && mapping.end <= addresses.end;
            if ours {
                found += mapping.end.saturating_sub(mapping.start);
            }
            continue;
        };
        let mut bytes = || words.next().and_then(|kib| kib.parse::<u64>().ok()).unwrap_or(0) << 10;
        match name {
            _ if !ours => {}
            "Rss" => resident += bytes(),
            "AnonHugePages" | "ShmemPmdMapped" => huge += bytes(),
            // Pages of hugetlbfs are in no other figure.
            "Private_Hugetlb" | "Shared_Hugetlb" => {
                let bytes = bytes();
                resident += bytes;
                huge += bytes;
            }
            _ => {}
        }
    }
    let size = addresses.end - addresses.start;
    if found != size {
        return Err(Error::Torn { found: Bytes::new(found), size: Bytes::new(size) });
    }
    Ok(Resident { resident: Bytes::new(resident), huge: Bytes::new(huge) })
}

fn parse_addresses(text: &str) -> Option<Range<u64>> {
    let (start, end) = text.split_once('-')?;
    let hex = |text| u64::from_str_radix(text, 16).ok();
    Some(hex(start)?..hex(end)?)
}

/// Something to read at any place.
trait ReadAt {
    /// Reads some bytes from an offset on; 0 at the end.
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize>;

    /// Fills the whole buffer.
    fn fill_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        let mut done = 0;
        while done < buffer.len() {
            match self.read_at(&mut buffer[done..], offset + done as u64) {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(n) => done += n,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }
}

impl ReadAt for File {
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        FileExt::read_at(self, buffer, offset)
    }
}

/// Counts the pages in use with tags, piece by piece.
fn tagged(
    pagemap: &impl ReadAt,
    page_flags: &impl ReadAt,
    addresses: &Range<u64>,
    page: u64,
) -> Result<Bytes, Error> {
    let mut entries = vec![0; PIECE * ENTRY];
    let mut flags = vec![0; PIECE * ENTRY];
    let mut tags = TagCounter::default();
    let (mut at, end) = (addresses.start / page, addresses.end / page);
    while at < end {
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
        // The kernel's page of zeroes has tags in use from the start, and belongs to nobody.
        self.pages += u64::from(tagged && flags & ZERO_PAGE == 0);
    }
}

#[cfg(test)]
mod tests;
