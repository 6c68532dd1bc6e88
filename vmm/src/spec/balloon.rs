//! The memory balloon of a VM.

use arch::units::Bytes;

use super::Error;
use crate::config::BalloonSection;

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
    pub stats_seconds: u16,
}

impl Default for BalloonSpec {
    fn default() -> Self {
        Self { reporting: true, deflate_on_oom: true, target: Bytes::ZERO, stats_seconds: 0 }
    }
}

impl BalloonSpec {
    /// The balloon of a guest with this much memory: see [`crate::config::Config::balloon`] for `said`.
    ///
    /// # Errors
    /// When its target is more than the guest's memory.
    pub(super) fn new(
        said: Option<Option<BalloonSection>>,
        memory: Bytes,
    ) -> Result<Option<Self>, Error> {
        let Some(section) = said.unwrap_or_else(|| Some(BalloonSection::default())) else {
            return Ok(None);
        };
        let default = Self::default();
        Ok(Some(Self {
            reporting: section.free_page_reporting.unwrap_or(default.reporting),
            deflate_on_oom: section.deflate_on_oom.unwrap_or(default.deflate_on_oom),
            target: target(&section, memory)?,
            stats_seconds: section.stats_polling_interval_s.unwrap_or(default.stats_seconds),
        }))
    }

    /// The same as a section of the configuration.
    pub(super) fn to_section(self) -> BalloonSection {
        BalloonSection {
            amount_mib: Some(self.target.as_mib()),
            deflate_on_oom: Some(self.deflate_on_oom),
            stats_polling_interval_s: Some(self.stats_seconds),
            free_page_hinting: false,
            free_page_reporting: Some(self.reporting),
        }
    }
}

fn target(section: &BalloonSection, memory: Bytes) -> Result<Bytes, Error> {
    let mib = section.amount_mib.unwrap_or(0);
    let target = Bytes::checked_mib(mib).ok_or(Error::BalloonOverflow(mib))?;
    if target > memory {
        return Err(Error::BalloonTarget { target, memory });
    }
    Ok(target)
}

#[cfg(test)]
#[path = "balloon_tests.rs"]
mod tests;
