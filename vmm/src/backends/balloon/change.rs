//! What a running VM's balloon can be changed to.

use arch::units::Bytes;
use thiserror::Error;

use crate::spec::{BalloonTargetError, balloon_target};

/// A change that the VM can make. What it does not name stays as it is.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Change {
    /// How much memory the guest is asked to give up: whole MiB, at most its memory.
    pub target: Option<Bytes>,
    /// Whether what the guest reports is given back.
    pub reporting: Option<bool>,
}

/// Why a change is refused.
#[derive(Clone, Debug, Error, Eq, PartialEq)]
pub enum ChangeError {
    /// It names nothing.
    #[error("nothing to change: give amount_mib, free_page_reporting or both")]
    Nothing,
    /// The balloon would be larger than the guest.
    #[error(transparent)]
    Target(#[from] BalloonTargetError),
    /// Page reporting is offered at the start or never.
    #[error(
        "the guest was not offered page reporting when it started, so it does not report: \
         GET /balloon says why; start the VM with --balloon reporting=on and without --lock-memory"
    )]
    NotOffered,
}

impl Change {
    /// Checks a change for a guest with this much memory, which may have been `offered` reporting. Either
    /// all of it can be done or none.
    ///
    /// # Errors
    /// It names nothing, a target beyond the guest's memory, or reporting that was not offered.
    pub fn new(
        target_mib: Option<u64>,
        reporting: Option<bool>,
        memory: Bytes,
        offered: bool,
    ) -> Result<Self, ChangeError> {
        if target_mib.is_none() && reporting.is_none() {
            return Err(ChangeError::Nothing);
        }
        let target = target_mib.map(|mib| balloon_target(mib, memory)).transpose()?;
        if reporting.is_some() && !offered {
            return Err(ChangeError::NotOffered);
        }
        Ok(Self { target, reporting })
    }
}

#[cfg(test)]
mod tests;
