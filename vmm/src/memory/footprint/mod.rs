//! How much of the host guest memory takes, in the kernel's own numbers.

mod meter;
mod read_at;
mod scan;
mod smaps;
mod tags;

use std::fs::File;
use std::io;
use std::ops::Range;
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};

use arch::units::Bytes;
use thiserror::Error;

use self::scan::{PageRegion, ScanPages};
use super::backing::Backing;
use super::ram::GuestRam;

pub use meter::Meter;

/// Why a number is not known.
#[derive(Debug, Error)]
pub enum Error {
    /// The list of mappings cannot be read.
    #[error("cannot read /proc/self/smaps: the kernel needs CONFIG_PROC_PAGE_MONITOR")]
    Smaps(#[source] io::Error),
    /// The list of mappings changed in the middle of each pass over it.
    #[error(
        "guest memory was mapped anew in the middle of each of {tries} passes over /proc/self/smaps: ask \
         again, or use a host with Linux 6.7"
    )]
    Torn {
        /// How often it was read.
        tries: u32,
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
    /// The thread that counts cannot be started.
    #[error("cannot start a thread that counts pages: look at ulimit -u")]
    Thread(#[source] io::Error),
    /// There are too many pages to count while a client waits.
    #[error("the pages of guest memory are still being counted: ask again")]
    Counting,
    /// The VM ends.
    #[error("the VM ends")]
    Stopped,
}

/// How much of the host guest memory takes now. Only a paused guest's numbers are of one moment:
/// then nothing but the host takes of it.
#[derive(Debug)]
pub struct Footprint {
    /// In memory: what the kernel counts for the mapping, pages of zeroes left out.
    pub resident: Bytes,
    /// Swapped out, or by PAGEMAP_SCAN on its way to another place in memory. Not known of a memfd from Linux 6.7.
    pub swapped: Option<Bytes>,
    /// How much of what is resident is in huge pages, transparent or of a pool.
    pub huge: Bytes,
    /// Of a clone or a VM with a boot image, how much of it is of that file: other VMs have the same pages.
    pub shared: Option<Bytes>,
    /// How much of it has tags in use, as the host's kernel counts: with KVM, all that a guest with MTE has
    /// touched. Or why that is not known.
    pub tagged: Result<Bytes, Error>,
    /// How long the kernel has taken to count.
    pub took: Duration,
}

#[cfg(test)]
impl Footprint {
    /// The footprint of this memory, counted here and now.
    ///
    /// # Errors
    /// When the kernel does not tell what is resident.
    pub(crate) fn of(ram: &GuestRam) -> Result<Self, Error> {
        Probe::new(ram).measure(&AtomicBool::new(false))
    }
}

#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
struct Resident {
    resident: Bytes,
    swapped: Bytes,
    huge: Bytes,
    /// How much of it is of files: a page that was copied is none.
    of_files: Bytes,
}

/// What counts resident pages.
#[derive(Debug)]
enum Source {
    /// PAGEMAP_SCAN. The size of transparent huge pages, where memory is anonymous and may have them; and whether it
    /// shows what is swapped out.
    Scan { huge_page: Option<u64>, shows_swap: bool },
    /// /proc/self/smaps, which shows swap of each kind.
    Smaps(io::Result<File>),
}

/// The files from which the kernel tells it. They are opened once, and show this process ever after.
#[derive(Debug)]
struct Probe {
    addresses: Range<u64>,
    page: u64,
    has_template: bool,
    pagemap: io::Result<File>,
    source: Source,
    page_flags: io::Result<File>,
}

impl Probe {
    /// Opens the files for this memory.
    fn new(ram: &GuestRam) -> Self {
        let pagemap = File::open("/proc/self/pagemap");
        let page_flags = File::open("/proc/kpageflags");
        let addresses = ram.host_range();
        let page = rustix::param::page_size() as u64;
        let first = addresses.start..addresses.start + page;
        let can_scan = |file: &File| file.scan(&first, &mut [PageRegion::default()]).is_ok();
        let source = match &pagemap {
            Ok(file) if can_scan(file) => {
                let is_anonymous = ram.backing() == Backing::Anonymous;
                let huge_page = ram.host_huge_page().map(Bytes::get).filter(|_| is_anonymous);
                // Of a memfd's page that is swapped out, page tables say nothing.
                Source::Scan { huge_page, shows_swap: is_anonymous }
            }
            // ENOTTY before Linux 6.7.
            _ => Source::Smaps(File::open("/proc/self/smaps")),
        };
        let has_template = ram.of_the_template().is_some();
        Self { addresses, page, has_template, pagemap, source, page_flags }
    }

    /// Counts. The kernel walks all pages for it, so the time it takes grows with them; the memory it takes
    /// does not.
    ///
    /// # Errors
    /// When the kernel does not tell what is resident, or `stop` is set.
    fn measure(&self, stop: &AtomicBool) -> Result<Footprint, Error> {
        let start = Instant::now();
        let Resident { resident, swapped, huge, of_files } = match &self.source {
            Source::Scan { huge_page, .. } => {
                let pagemap = opened(&self.pagemap).map_err(Error::Pagemap)?;
                scan::resident(pagemap, &self.addresses, *huge_page, self.page, stop)
            }
            Source::Smaps(smaps) => {
                let smaps = opened(smaps).map_err(Error::Smaps)?;
                smaps::resident(smaps, &self.addresses, stop)
            }
        }?;
        let shared = self.has_template.then_some(of_files);
        let shows_swap = !matches!(self.source, Source::Scan { shows_swap: false, .. });
        let swapped = shows_swap.then_some(swapped);
        let tagged = self.tagged(stop);
        Ok(Footprint { resident, swapped, huge, shared, tagged, took: start.elapsed() })
    }

    fn tagged(&self, stop: &AtomicBool) -> Result<Bytes, Error> {
        // Elsewhere the same bit of a page's flags has another meaning, or none.
        if !cfg!(target_arch = "aarch64") {
            return Err(Error::NoTags);
        }
        let pagemap = opened(&self.pagemap).map_err(Error::Pagemap)?;
        let page_flags = opened(&self.page_flags).map_err(Error::PageFlags)?;
        tags::tagged(pagemap, page_flags, &self.addresses, self.page, stop)
    }
}

/// The file, or once more why it could not be opened.
fn opened(file: &io::Result<File>) -> io::Result<&File> {
    file.as_ref().map_err(|error| error.kind().into())
}

#[cfg(test)]
mod tests;
