//! Counts resident pages by /proc/self/smaps: for kernels before Linux 6.7, which have no PAGEMAP_SCAN.
//!
//! The file lists VMAs and is read in pieces of a page, between which other threads may merge and split
//! VMAs. Then some of them are listed twice, or not at all, and the file has to be read again.
//!
//! # References
//! Linux Documentation/filesystems/proc.rst, "/proc/PID/maps" and "/proc/PID/smaps"

use std::io::{self, BufRead, BufReader, Read};
use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};

use arch::units::Bytes;

use super::read_at::ReadAt;
use super::{Error, Resident};

/// How often the list is read before it is given up. One pass in six failed where a thread did nothing but
/// split and merge 512 VMAs: sixteen in a row do not.
const TRIES: u32 = 16;

/// What smaps says of the mappings that make up these addresses.
///
/// # Errors
/// When the file cannot be read, does not show all of these addresses once in any of the tries, or `stop`
/// is set.
pub(super) fn resident(
    smaps: &impl ReadAt,
    addresses: &Range<u64>,
    stop: &AtomicBool,
) -> Result<Resident, Error> {
    for _ in 0..TRIES {
        if stop.load(Ordering::Relaxed) {
            return Err(Error::Stopped);
        }
        let text = BufReader::new(FromStart { file: smaps, at: 0 });
        if let Some(resident) = read_once(text, addresses).map_err(Error::Smaps)? {
            return Ok(resident);
        }
    }
    Err(Error::Torn { tries: TRIES })
}

/// A file that is read from its start on, whatever was read of it before.
struct FromStart<'a, F> {
    file: &'a F,
    at: u64,
}

impl<F: ReadAt> Read for FromStart<'_, F> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let n = self.file.read_at(buffer, self.at)?;
        self.at += n as u64;
        Ok(n)
    }
}

/// Adds up the mappings that make up these addresses; `None` if the list shows part of them twice, or not
/// at all.
fn read_once(smaps: impl BufRead, addresses: &Range<u64>) -> io::Result<Option<Resident>> {
    let (mut resident, mut swapped, mut huge, mut of_files) = (0, 0, 0, 0u64);
    let mut shown = addresses.start;
    let mut ours = false;
    for line in smaps.split(b'\n') {
        // The name of a mapped file may have any bytes.
        let line = line?;
        let line = String::from_utf8_lossy(&line);
        let mut words = line.split_ascii_whitespace();
        let first = words.next().unwrap_or_default();
        let Some(name) = first.strip_suffix(':') else {
            // A new mapping.
            let mapping = parse_addresses(first).unwrap_or_default();
            ours = mapping.start < addresses.end && addresses.start < mapping.end;
            if ours && mapping.start != shown {
                return Ok(None);
            }
            if ours {
                shown = mapping.end;
            }
            continue;
        };
        let mut bytes = || words.next().and_then(|kib| kib.parse::<u64>().ok()).unwrap_or(0) << 10;
        match name {
            _ if !ours => {}
            "Rss" => {
                let bytes = bytes();
                resident += bytes;
                of_files += bytes;
            }
            "Swap" => swapped += bytes(),
            "Anonymous" => of_files = of_files.saturating_sub(bytes()),
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
    let [resident, swapped, huge, of_files] = [resident, swapped, huge, of_files].map(Bytes::new);
    let resident = Resident { resident, swapped, huge, of_files };
    Ok((shown == addresses.end).then_some(resident))
}

fn parse_addresses(text: &str) -> Option<Range<u64>> {
    let (start, end) = text.split_once('-')?;
    let hex = |text| u64::from_str_radix(text, 16).ok();
    Some(hex(start)?..hex(end)?)
}

#[cfg(test)]
mod tests;
