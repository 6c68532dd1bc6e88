//! The guest's RAM, as vm-memory regions over owned mappings.
#![allow(unsafe_code)]

use std::io;
use std::sync::Arc;

use arch::layout::{MemoryRange, RAM_BASE};
use arch::units::Bytes;
use thiserror::Error;
use vm_memory::mmap::MmapRegionBuilder;
use vm_memory::{GuestMemory, GuestMemoryMmap, GuestRegionMmap};

use super::mapping::Mapping;

/// Protection and flags as vm-memory's regions record them; the mapping itself exists already.
const REGION_PROT: i32 = libc::PROT_READ | libc::PROT_WRITE;
const REGION_FLAGS: i32 = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;

/// Why guest memory could not be made.
#[derive(Debug, Error)]
pub enum Error {
    /// The host refused the mapping.
    #[error("cannot map {size} of guest memory{}: {hint}", if *mte { " with tags" } else { "" })]
    Map {
        /// The size asked for.
        size: Bytes,
        /// Whether tags were asked for.
        mte: bool,
        /// What to do.
        hint: &'static str,
        /// The system's reason.
        #[source]
        source: io::Error,
    },
    /// vm-memory refused the region.
    #[error("guest memory of {0} at {RAM_BASE:?} does not form a region")]
    Region(Bytes),
}

/// What guest memory is like.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Attributes {
    /// Mapped with PROT_MTE, so that it shows as such in smaps and a kernel that manages tag storage can
    /// act on it. KVM wants it possible, not set, for a guest with MTE.
    pub tags: bool,
    /// Backed by transparent huge pages wherever the host can.
    pub huge_pages: bool,
}

/// The guest's memory: one region from [`RAM_BASE`] up, without holes.
///
/// Private anonymous memory, left out of core dumps.
#[derive(Clone, Debug)]
pub struct GuestRam {
    // Field order is drop order: the regions go before the memory they point into.
    regions: GuestMemoryMmap,
    mapping: Arc<Mapping>,
    range: MemoryRange,
}

impl GuestRam {
    /// Maps guest memory of `size` bytes; no page of it is populated yet.
    ///
    /// # Errors
    /// When the host refuses the mapping.
    pub fn new(size: Bytes, attributes: Attributes) -> Result<Self, Error> {
        let mte = attributes.tags;
        let mapping = Mapping::new(size, attributes).map_err(|source| Error::Map {
            size,
            mte,
            hint: match source.kind() {
                io::ErrorKind::OutOfMemory => {
                    "give less --memory, or look at the host's ulimit -v and overcommit settings"
                }
                _ => "run `tessera doctor` to see what the host lacks",
            },
            source,
        })?;
        // SAFETY: the pointer is to a mapping of this length that lives as long as `self.mapping`. The
        // region lives in the same value, clones of which share both, and leaves it only as a borrow.
        let builder = unsafe {
            MmapRegionBuilder::new(mapping.len())
                .with_mmap_prot(REGION_PROT)
                .with_mmap_flags(REGION_FLAGS)
                .with_raw_mmap_pointer(mapping.as_ptr())
        };
        let region = builder.build().ok().and_then(|region| GuestRegionMmap::new(region, RAM_BASE));
        let regions = region
            .and_then(|region| GuestMemoryMmap::from_regions(vec![region]).ok())
            .ok_or(Error::Region(size))?;
        let range = MemoryRange { base: RAM_BASE, size };
        Ok(Self { regions, mapping: Arc::new(mapping), range })
    }

    /// The regions, for reading and writing guest memory.
    ///
    /// Not as the type they have: a clone of that would outlive the memory.
    pub fn regions(&self) -> &impl GuestMemory {
        &self.regions
    }

    /// The guest-physical range.
    pub fn range(&self) -> MemoryRange {
        self.range
    }

    /// Where the range begins in this process, as the memory slot names it.
    pub fn host_address(&self) -> u64 {
        self.mapping.as_ptr() as u64
    }
}
