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
}

impl Default for BalloonSpec {
    fn default() -> Self {
        Self { reporting: true, deflate_on_oom: true, target: Bytes::ZERO, stats_interval_s: 0 }
    }
}

impl BalloonSpec {
    /// The balloon of a guest with this much memory.
    ///
    /// # Errors
    /// When its target is more than the guest's memory.
    pub(super) fn new(setting: BalloonSetting, memory: Bytes) -> Result<Option<Self>, TargetError> {
        let section = match setting {
            BalloonSetting::Default => BalloonSection::default(),
            BalloonSetting::None => return Ok(None),
            BalloonSetting::Section(section) => section,
        };
        let default = Self::default();
        Ok(Some(Self {
            reporting: section.free_page_reporting.unwrap_or(default.reporting),
            deflate_on_oom: section.deflate_on_oom.unwrap_or(default.deflate_on_oom),
            target: target(section.amount_mib.unwrap_or(0), memory)?,
            stats_interval_s: section.stats_polling_interval_s.unwrap_or(default.stats_interval_s),
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
        }
    }
}

/// A target that is more than the guest's memory.
#[derive(Clone, Debug, Error, Eq, PartialEq)]
#[error(
    "a balloon of {mib} MiB is more than the guest's {memory} of memory: lower amount_mib, or target= of \
     --balloon"
)]
pub struct TargetError {
    mib: u64,
    memory: Bytes,
}

/// The size of a balloon that a guest with this much memory can have, at its start or later.
///
/// # Errors
/// When it is more than that memory.
pub fn target(mib: u64, memory: Bytes) -> Result<Bytes, TargetError> {
    let target = Bytes::checked_mib(mib).filter(|target| *target <= memory);
    target.ok_or(TargetError { mib, memory })
}

#[cfg(test)]
mod tests;
