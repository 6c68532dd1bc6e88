//! The memory balloon of a VM.

use arch::units::Bytes;
use thiserror::Error;

use crate::config::{BalloonSection, BalloonSetting};

/// What the balloon is to do from the start. All of it but `deflate_on_oom` can be changed while the
/// guest runs; reporting only if it was on at the start.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct BalloonSpec {
    /// Whether page reporting is offered to the guest. The VMM does not offer it with locked memory,
    /// whatever this says.
    pub reporting: bool,
    /// Whether a guest that runs out of memory may take it back from the balloon.
    pub deflate_on_oom: bool,
    /// How much memory the guest is asked to give up: whole MiB, at most its memory. Linux before 6.6
    /// with pages of 64 KiB never comes to rest at a target of parts of them.
    pub target: Bytes,
    /// Seconds between two requests for the guest's statistics; 0 for none.
    pub stats_interval_s: u16,
    /// Whether the VMM itself chooses the target, which is then where it begins.
    pub auto: bool,
    /// What the guest keeps of its memory whatever the VMM chooses; by default [`default_floor`].
    pub floor: Option<Bytes>,
}

impl Default for BalloonSpec {
    fn default() -> Self {
        Self {
            reporting: true,
            deflate_on_oom: true,
            target: Bytes::ZERO,
            stats_interval_s: 0,
            auto: false,
            floor: None,
        }
    }
}

impl BalloonSpec {
    /// The balloon of a guest with this much memory. None of it becomes free memory of the host if it `is_fixed`: locked,
    /// or of a pool of huge pages.
    ///
    /// # Errors
    /// When its target or floor is more than the guest's memory, or the VMM is to choose and the memory is fixed.
    pub(super) fn new(
        setting: BalloonSetting,
        memory: Bytes,
        is_fixed: bool,
    ) -> Result<Option<Self>, Error> {
        let section = match setting {
            BalloonSetting::Default => BalloonSection::default(),
            BalloonSetting::None => return Ok(None),
            BalloonSetting::Section(section) => section,
        };
        let default = Self::default();
        if section.auto == Some(true) && is_fixed {
            return Err(Error::Fixed);
        }
        Ok(Some(Self {
            reporting: section.free_page_reporting.unwrap_or(default.reporting),
            deflate_on_oom: section.deflate_on_oom.unwrap_or(default.deflate_on_oom),
            target: target(section.amount_mib.unwrap_or(0), memory)?,
            stats_interval_s: section.stats_polling_interval_s.unwrap_or(default.stats_interval_s),
            auto: section.auto.unwrap_or(default.auto),
            floor: section.floor_mib.map(|mib| floor(mib, memory)).transpose()?,
        }))
    }

    /// The same as a section of the configuration.
    pub(super) fn to_section(self) -> BalloonSection {
        BalloonSection {
            amount_mib: Some(self.target.as_mib()),
            deflate_on_oom: Some(self.deflate_on_oom),
            stats_polling_interval_s: Some(self.stats_interval_s),
            free_page_hinting: false,
            free_page_reporting: Some(self.reporting),
            // Left out where it is off: versions before it read the configuration.
            auto: self.auto.then_some(true),
            floor_mib: self.floor.map(Bytes::as_mib),
        }
    }
}

/// What a guest with this much memory keeps of it unless a floor is given: a quarter, which the requests of other VMs
/// leave to it as well, and 64 MiB at least, of which Linux and its first programs take most.
pub fn default_floor(memory: Bytes) -> Bytes {
    Bytes::new(memory.get() / 4).max(Bytes::mib(64)).min(memory)
}

/// A balloon that a guest cannot have.
#[derive(Clone, Debug, Error, Eq, PartialEq)]
pub enum Error {
    /// The target.
    #[error(
        "a balloon of {mib} MiB is more than the guest's {memory} of memory: lower amount_mib, or target= of \
         --balloon"
    )]
    Target {
        /// The target in MiB.
        mib: u64,
        /// The guest's memory.
        memory: Bytes,
    },
    /// What goes back of such memory is none that the host has free.
    #[error(
        "--balloon auto gives back memory that the host lacks, but locked memory (--lock-memory) stays where it is, \
         and that of hugetlbfs goes to its pool: leave one of them out"
    )]
    Fixed,
    /// What is left to the guest.
    #[error(
        "a balloon that leaves {mib} MiB is none for a guest with {memory} of memory: lower floor_mib, or floor= of \
         --balloon"
    )]
    Floor {
        /// The floor in MiB.
        mib: u64,
        /// The guest's memory.
        memory: Bytes,
    },
}

/// The size of a balloon that a guest with this much memory can have, at its start or later.
///
/// # Errors
/// When it is more than that memory.
pub fn target(mib: u64, memory: Bytes) -> Result<Bytes, Error> {
    let target = Bytes::checked_mib(mib).filter(|target| *target <= memory);
    target.ok_or(Error::Target { mib, memory })
}

/// What a guest with this much memory can be left.
///
/// # Errors
/// When it is more than that memory.
pub fn floor(mib: u64, memory: Bytes) -> Result<Bytes, Error> {
    let floor = Bytes::checked_mib(mib).filter(|floor| *floor <= memory);
    floor.ok_or(Error::Floor { mib, memory })
}

#[cfg(test)]
mod tests;
