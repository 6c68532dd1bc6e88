//! What a running VM's balloon can be changed to.

use arch::units::Bytes;
use thiserror::Error;

use crate::spec::{BalloonError, balloon_floor, balloon_target};

/// What a client asks for. Sizes are in MiB.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Request {
    /// How much memory the guest is to give up.
    pub target_mib: Option<u64>,
    /// Whether what the guest reports is given back.
    pub reporting: Option<bool>,
    /// Whether the VMM chooses the target from now on.
    pub auto: Option<bool>,
    /// What it leaves to the guest then.
    pub floor_mib: Option<u64>,
}

/// What can be asked of a VM.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Limits {
    /// The guest's memory.
    pub memory: Bytes,
    /// Page reporting was offered to the guest.
    pub reporting: bool,
    /// What the guest gives up becomes free memory of the host.
    pub auto: bool,
}

/// A change that the VM can make. What it does not name stays as it is.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Change {
    /// How much memory the guest is asked to give up: whole MiB, at most its memory.
    pub target: Option<Bytes>,
    /// Whether what the guest reports is given back.
    pub reporting: Option<bool>,
    /// Whether the VMM chooses the target from now on. A target that a client names is its choice, and ends that of the
    /// VMM, unless both are named: then it is where the VMM begins.
    pub auto: Option<bool>,
    /// What the VMM leaves to the guest, at most its memory.
    pub floor: Option<Bytes>,
}

/// Why a change is refused.
#[derive(Clone, Debug, Error, Eq, PartialEq)]
pub enum ChangeError {
    /// It names nothing.
    #[error("nothing to change: give amount_mib, free_page_reporting, auto or floor_mib")]
    Nothing,
    /// A balloon that the guest cannot have.
    #[error(transparent)]
    Balloon(#[from] BalloonError),
    /// Page reporting is offered at the start or never.
    #[error(
        "the guest was not offered page reporting when it started, so it does not report: \
         GET /balloon says why; start the VM with --balloon reporting=on and without --lock-memory"
    )]
    NotOffered,
}

impl Change {
    /// Checks a change for a VM. Either all of it can be done or none.
    ///
    /// # Errors
    /// It names nothing, a size beyond the guest's memory, reporting that was not offered, or the VMM's choice where it
    /// would give the host nothing.
    pub fn new(request: &Request, limits: &Limits) -> Result<Self, ChangeError> {
        if *request == Request::default() {
            return Err(ChangeError::Nothing);
        }
        let Request { target_mib, reporting, auto, floor_mib } = *request;
        let target = target_mib.map(|mib| balloon_target(mib, limits.memory)).transpose()?;
        let floor = floor_mib.map(|mib| balloon_floor(mib, limits.memory)).transpose()?;
        if reporting.is_some() && !limits.reporting {
            return Err(ChangeError::NotOffered);
        }
        if auto == Some(true) && !limits.auto {
            return Err(BalloonError::Fixed.into());
        }
        Ok(Self { target, reporting, auto: auto.or(target.map(|_| false)), floor })
    }
}

#[cfg(test)]
mod tests;
