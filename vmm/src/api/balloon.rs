//! The rules of the balloon's resources that are the same for every VM.

use arch::units::Bytes;

use super::ControlError;
use super::model::BalloonUpdate;

/// A [`BalloonUpdate`] that makes sense for the VM; whatever it names is to be changed.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct BalloonChange {
    /// How much memory the guest is asked to give up from now on: whole MiB, at most its memory.
    pub target: Option<Bytes>,
    /// Whether what the guest reports is given back from now on.
    pub reporting: Option<bool>,
}

impl BalloonChange {
    /// Checks an update for a guest with this much memory, which may have been `offered` reporting when
    /// it started. Either all of it can be done or none.
    ///
    /// # Errors
    /// It names nothing, a target beyond the guest's memory, or reporting that was not offered.
    pub fn new(update: BalloonUpdate, memory: Bytes, offered: bool) -> Result<Self, ControlError> {
        if update == BalloonUpdate::default() {
            return Err(ControlError::refused(
                "nothing to change: give amount_mib, free_page_reporting or both",
            ));
        }
        let target = update.amount_mib.map(|mib| {
            let target = Bytes::checked_mib(mib);
            target.filter(|target| *target <= memory).ok_or_else(|| {
                ControlError::refused(format!(
                    "a balloon of {mib} MiB is more than the guest's {memory} of memory: lower amount_mib"
                ))
            })
        });
        if update.free_page_reporting.is_some() && !offered {
            return Err(ControlError::refused(
                "the guest was not offered page reporting when it started, so it does not report: \
                 GET /balloon says why; start the VM with --balloon reporting=on and without --lock-memory",
            ));
        }
        Ok(Self { target: target.transpose()?, reporting: update.free_page_reporting })
    }
}

/// The answer to all of the balloon's resources where there is none.
pub fn no_balloon() -> ControlError {
    ControlError::refused(
        "this VM has no balloon: it was started with --no-balloon, or with \"balloon\": null in its \
         configuration file",
    )
}

/// The answer to `GET /balloon/statistics` while nobody asks the guest for them.
pub fn statistics_off() -> ControlError {
    ControlError::refused(
        "the balloon's statistics are off: PATCH /balloon/statistics with \
         {\"stats_polling_interval_s\": 1} asks the guest for them every second, as does --balloon stats=1",
    )
}

#[cfg(test)]
mod tests;
