//! What there is to say of a balloon.

use arch::units::Bytes;
use devices::virtio::balloon::Statistics;

use super::auto::{Reason, State};
use crate::backends::reporting::{Diagnosis, DriverState};

/// A balloon at one moment.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Status {
    /// How much memory the guest is asked to give up, by the user or by the VMM's choice.
    pub target: Bytes,
    /// How much it is asked for besides, as other VMs need tag storage.
    pub needed: Bytes,
    /// How much is in the balloon, by its driver's account.
    pub actual: Bytes,
    /// Whether a guest that runs out of memory may take it back.
    pub deflate_on_oom: bool,
    /// Seconds between two requests for statistics; 0 for none.
    pub stats_interval_s: u16,
    /// Whether page reporting is offered and switched on.
    pub reporting: bool,
    /// The state of the guest's driver.
    pub driver: DriverState,
    /// Why page reporting gives nothing back, if it does not.
    pub diagnosis: Option<Diagnosis>,
    /// The VMM's own choice of the target.
    pub auto: AutoStatus,
}

/// The VMM's own choice of the target at one moment.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct AutoStatus {
    /// What is left to the guest.
    pub floor: Bytes,
    /// What it does and why, if it is on.
    pub choice: Option<(State, Reason)>,
}

/// What the guest last said of its memory.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct GuestReport {
    /// What the balloon is to have.
    pub target: Bytes,
    /// What it has.
    pub actual: Bytes,
    /// All unknown until the guest has answered for the first time.
    pub statistics: Statistics,
}

/// What has gone through the balloon since the start; memory that goes and comes counts each time.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Totals {
    /// In the balloon now.
    pub inflated: Bytes,
    /// Reported as free by the guest.
    pub reported: Bytes,
    /// Given back to the host.
    pub discarded: Bytes,
    /// Not given back, as the host refused.
    pub failed: Bytes,
    /// The reason of the latest refusal.
    pub failed_reason: Option<String>,
    /// Reported and kept, as the guest fills its free pages with a value of its own.
    pub poison_skipped: Bytes,
    /// Reported and kept, as reporting was switched off.
    pub kept: Bytes,
}
