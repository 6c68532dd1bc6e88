//! Counts resident pages with PAGEMAP_SCAN (Linux 6.7), which goes by addresses: it does not matter how
//! often VMAs are split and merged meanwhile.
//!
//! # References
//! Linux Documentation/admin-guide/mm/pagemap.rst, "Pagemap Scan IOCTL"; include/uapi/linux/fs.h
#![allow(unsafe_code)]

use std::ffi::c_void;
use std::fs::File;
use std::io;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};

use arch::units::Bytes;
use rustix::ioctl::{Ioctl, IoctlOutput, Opcode, ioctl, opcode};

use super::read_at::ReadAt;
use super::{Error, Resident};

/// How much one call walks. It holds the lock of the address space meanwhile, for which those who change
/// mappings wait: a millisecond or two, where all pages are small.
const STEP: u64 = 1 << 30;
/// How many regions one call returns: 12 KiB.
const REGIONS: usize = 512;

/// Categories of pages.
const FILE: u64 = 1 << 2;
const PRESENT: u64 = 1 << 3;
const SWAPPED: u64 = 1 << 4;
const ZERO_PAGE: u64 = 1 << 5;
const HUGE: u64 = 1 << 6;

/// Pagemap: the page is in memory; it is no anonymous one.
const PAGEMAP_PRESENT: u64 = 1 << 63;
const PAGEMAP_FILE: u64 = 1 << 61;

/// Pages of one kind, next to each other (struct page_region).
#[derive(Clone, Copy, Debug, Default)]
#[repr(C)]
pub(super) struct PageRegion {
    start: u64,
    end: u64,
    categories: u64,
}

/// struct pm_scan_arg.
#[derive(Debug, Default)]
#[repr(C)]
struct Call {
    size: u64,
    flags: u64,
    start: u64,
    end: u64,
    walk_end: u64,
    regions: u64,
    regions_length: u64,
    max_pages: u64,
    category_inverted: u64,
    category_mask: u64,
    category_anyof_mask: u64,
    return_mask: u64,
}

const OPCODE: Opcode = opcode::read_write::<Call>(b'f', 16);

/// How far one call has come.
#[derive(Clone, Copy, Debug)]
pub(super) struct Walked {
    /// How many regions it has filled in.
    found: usize,
    /// The first address that it has not looked at.
    end: u64,
}

/// Something that knows which pages are present.
pub(super) trait ScanPages {
    /// Finds the pages of a range that are present or swapped out, pages of zeroes left out.
    fn scan(&self, range: &Range<u64>, regions: &mut [PageRegion]) -> io::Result<Walked>;
}

impl ScanPages for File {
    fn scan(&self, range: &Range<u64>, regions: &mut [PageRegion]) -> io::Result<Walked> {
        let call = Call {
            size: size_of::<Call>() as u64,
            start: range.start,
            end: range.end,
            regions: regions.as_mut_ptr() as u64,
            regions_length: regions.len() as u64,
            category_inverted: ZERO_PAGE,
            category_mask: ZERO_PAGE,
            category_anyof_mask: PRESENT | SWAPPED,
            return_mask: FILE | PRESENT | SWAPPED | HUGE,
            ..Call::default()
        };
        // SAFETY: the kernel writes no more regions than there are, into memory that is borrowed for this
        // call, and any bytes are a region. Without flags it changes no page.
        let walked = unsafe { ioctl(self, call) }?;
        Ok(Walked { found: walked.found.min(regions.len()), ..walked })
    }
}

// SAFETY: opcode, size and layout are those of PAGEMAP_SCAN, which reads and writes `Call` and the regions
// that it names; its answer is their number.
unsafe impl Ioctl for Call {
    type Output = Walked;

    const IS_MUTATING: bool = true;

    fn opcode(&self) -> Opcode {
        OPCODE
    }

    fn as_ptr(&mut self) -> *mut c_void {
        std::ptr::from_mut(self).cast()
    }

    unsafe fn output_from_ptr(out: IoctlOutput, call: *mut c_void) -> rustix::io::Result<Walked> {
        // SAFETY: `call` is what `as_ptr` gave, for a value that still lives.
        let end = unsafe { (*call.cast::<Self>()).walk_end };
        Ok(Walked { found: usize::try_from(out).unwrap_or(0), end })
    }
}

/// Adds up the pages of these addresses that are present or swapped out. `huge_page` is the size of transparent huge pages
/// where anonymous memory has them.
///
/// # Errors
/// When the kernel does not answer, or `stop` is set.
pub(super) fn resident(
    pagemap: &(impl ScanPages + ReadAt),
    addresses: &Range<u64>,
    huge_page: Option<u64>,
    page: u64,
    stop: &AtomicBool,
) -> Result<Resident, Error> {
    let mut regions = vec![PageRegion::default(); REGIONS];
    let (mut resident, mut swapped, mut huge, mut of_files) = (0, 0, 0, 0);
    let mut at = addresses.start;
    while at < addresses.end {
        if stop.load(Ordering::Relaxed) {
            return Err(Error::Stopped);
        }
        let range = at..addresses.end.min(at.saturating_add(STEP));
        let Walked { found, end } = pagemap.scan(&range, &mut regions).map_err(Error::Pagemap)?;
        if end <= at {
            return Err(Error::Pagemap(io::ErrorKind::InvalidData.into()));
        }
        for region in &regions[..found] {
            let mut bytes = region.end.saturating_sub(region.start);
            if region.categories & SWAPPED != 0 {
                swapped += bytes;
                continue;
            }
            if region.categories & HUGE != 0 {
                if let Some(size) = huge_page {
                    let zeroes = zero_pages(pagemap, region, size, page).map_err(Error::Pagemap)?;
                    bytes = bytes.saturating_sub(zeroes);
                }
                huge += bytes;
            }
            if region.categories & FILE != 0 {
                of_files += bytes;
            }
            resident += bytes;
        }
        at = end;
    }
    let [resident, swapped, huge, of_files] = [resident, swapped, huge, of_files].map(Bytes::new);
    Ok(Resident { resident, swapped, huge, of_files })
}

/// How much of a region of huge anonymous pages is the huge page of zeroes. Before Linux 6.18 the scan takes
/// it for any other (pagemap_thp_category in fs/proc/task_mmu.c); since 6.11 pagemap itself shows it as no
/// anonymous page.
fn zero_pages(pagemap: &impl ReadAt, region: &PageRegion, size: u64, page: u64) -> io::Result<u64> {
    let mut zeroes = 0;
    let mut at = region.start;
    while at < region.end {
        let mut entry = [0; 8];
        pagemap.fill_at(&mut entry, at / page * 8)?;
        let entry = u64::from_ne_bytes(entry);
        if entry & PAGEMAP_PRESENT != 0 && entry & PAGEMAP_FILE != 0 {
            zeroes += size;
        }
        at = at.saturating_add(size);
    }
    Ok(zeroes)
}

#[cfg(test)]
mod tests;
