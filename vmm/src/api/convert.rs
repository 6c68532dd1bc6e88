//! What the rooms behind the VM return, as the bodies and faults of the API. Those rooms know neither.

use arch::units::Bytes;

use super::ControlError;
use super::model::{
    AutoBalloon, Balloon, BalloonStats, BalloonUpdate, Borrows, DriverState, Footprint, Reporting,
    ReportingState, TagStorage, TagStorageChunks,
};
use crate::backends::{balloon, reporting};
use crate::memory::{self, footprint};
use crate::spec::{BalloonSpec, ReservationMode, default_balloon_floor};
use crate::tag_storage::{PlacementStatus, ReservationStatus};

impl From<&balloon::Status> for Balloon {
    fn from(status: &balloon::Status) -> Self {
        Self {
            amount_mib: status.target.as_mib(),
            needed_mib: status.needed.as_mib(),
            actual_mib: status.actual.as_mib(),
            deflate_on_oom: status.deflate_on_oom,
            stats_polling_interval_s: status.stats_interval_s,
            free_page_hinting: false,
            free_page_reporting: status.reporting,
            driver: status.driver.into(),
            reporting: status.diagnosis.into(),
            auto: status.auto.into(),
        }
    }
}

impl From<balloon::AutoStatus> for AutoBalloon {
    fn from(status: balloon::AutoStatus) -> Self {
        Self {
            on: status.choice.is_some(),
            floor_mib: status.floor.as_mib(),
            state: status.choice.map(|(state, _)| state.as_str().to_owned()),
            reason: status.choice.map(|(_, reason)| reason.as_str().to_owned()),
        }
    }
}

impl From<BalloonUpdate> for balloon::Request {
    fn from(update: BalloonUpdate) -> Self {
        let BalloonUpdate { amount_mib, free_page_reporting, auto, floor_mib } = update;
        Self { target_mib: amount_mib, reporting: free_page_reporting, auto, floor_mib }
    }
}

impl Balloon {
    /// The balloon of a VM that has not started, and will have this much memory.
    pub fn before_the_start(spec: BalloonSpec, memory: Bytes) -> Self {
        let floor = spec.floor.unwrap_or(default_balloon_floor(memory));
        Self {
            amount_mib: spec.target.as_mib(),
            needed_mib: 0,
            actual_mib: 0,
            deflate_on_oom: spec.deflate_on_oom,
            stats_polling_interval_s: spec.stats_interval_s,
            free_page_hinting: false,
            free_page_reporting: spec.reporting,
            driver: DriverState::Absent,
            reporting: Reporting { state: ReportingState::Off, reason: None },
            auto: AutoBalloon {
                on: spec.auto,
                floor_mib: floor.as_mib(),
                ..AutoBalloon::default()
            },
        }
    }
}

impl From<reporting::DriverState> for DriverState {
    fn from(state: reporting::DriverState) -> Self {
        match state {
            reporting::DriverState::Absent => Self::Absent,
            reporting::DriverState::Active => Self::Active,
            reporting::DriverState::NeedsReset => Self::NeedsReset,
        }
    }
}

impl From<Option<reporting::Diagnosis>> for Reporting {
    fn from(diagnosis: Option<reporting::Diagnosis>) -> Self {
        let state = match diagnosis {
            None => ReportingState::On,
            Some(diagnosis) if diagnosis.is_choice() => ReportingState::Off,
            Some(_) => ReportingState::Ineffective,
        };
        Self { state, reason: diagnosis.map(|diagnosis| diagnosis.to_string()) }
    }
}

impl From<balloon::GuestReport> for BalloonStats {
    fn from(report: balloon::GuestReport) -> Self {
        let pages = |size: Bytes| size.get() / Bytes::kib(4).get();
        Self {
            target_pages: pages(report.target),
            actual_pages: pages(report.actual),
            target_mib: report.target.as_mib(),
            actual_mib: report.actual.as_mib(),
            guest: report.statistics,
        }
    }
}

impl From<balloon::ChangeError> for ControlError {
    fn from(error: balloon::ChangeError) -> Self {
        Self::refused(error.to_string())
    }
}

impl Footprint {
    /// What a guest with this much memory takes, and what has gone through its balloon.
    pub fn new(guest: Bytes, memory: &memory::Footprint, balloon: balloon::Totals) -> Self {
        let tagged = memory.tagged.as_ref();
        Self {
            guest_bytes: guest.get(),
            resident_bytes: memory.resident.get(),
            swapped_bytes: memory.swapped.map(Bytes::get),
            huge_bytes: memory.huge.get(),
            template_bytes: memory.shared.map(Bytes::get),
            tagged_bytes: tagged.ok().map(|tagged| tagged.get()),
            tagged_unavailable: tagged.err().map(|error| crate::error::chain(error)),
            count_us: u64::try_from(memory.took.as_micros()).unwrap_or(u64::MAX),
            inflated_bytes: balloon.inflated.get(),
            reported_bytes: balloon.reported.get(),
            discarded_bytes: balloon.discarded.get(),
            failed_bytes: balloon.failed.get(),
            failed_reason: balloon.failed_reason,
            poison_skipped_bytes: balloon.poison_skipped.get(),
            kept_bytes: balloon.kept.get(),
        }
    }
}

impl From<ReservationStatus> for TagStorage {
    fn from(status: ReservationStatus) -> Self {
        let (on_exhausted, deadline_s) = match status.mode {
            ReservationMode::Strict => (None, None),
            ReservationMode::Demand { on_exhausted, deadline_s } => {
                (Some(on_exhausted), Some(deadline_s))
            }
        };
        let reserved = status.populated.map(|populated| populated + status.ahead.unwrap_or(0));
        Self {
            mode: status.mode.mode(),
            supply: Some(status.supply.to_string()),
            borrows: None,
            capacity_bytes: status.capacity.get(),
            reserved_bytes: status.reserved.get(),
            min_bytes: status.min.get(),
            max_bytes: status.max.map(Bytes::get),
            chunks: TagStorageChunks {
                total: status.chunks,
                populated: status.populated,
                ahead: status.ahead,
                absent: reserved.map(|reserved| status.chunks.saturating_sub(reserved)),
                waiting: status.waiting,
            },
            on_exhausted,
            deadline_s,
            exhausted: status.exhaustion.lacking.is_some(),
            expired: status.exhaustion.expired,
            reason: status.exhaustion.lacking.or(status.exhaustion.failed),
            counters: status.counters,
        }
    }
}

impl From<PlacementStatus> for TagStorage {
    fn from(status: PlacementStatus) -> Self {
        let borrows = Borrows { supply: status.supply.to_string(), lend: status.lend.to_string() };
        Self { borrows: Some(borrows), ..Self::off() }
    }
}

impl From<footprint::Error> for ControlError {
    fn from(error: footprint::Error) -> Self {
        const ACTION: &str = "measure the footprint";
        match error {
            footprint::Error::Torn { .. } | footprint::Error::Counting => {
                Self::unavailable(ACTION, error)
            }
            _ => Self::failed(ACTION, error),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_footprint_that_can_be_had_later_is_unavailable() {
        for (error, for_now) in [
            (footprint::Error::Counting, true),
            (footprint::Error::Torn { tries: 8 }, true),
            (footprint::Error::NoTags, false),
            (footprint::Error::Smaps(std::io::ErrorKind::NotFound.into()), false),
        ] {
            let text = error.to_string();

            let fault = ControlError::from(error);

            assert_eq!(matches!(fault, ControlError::Unavailable { .. }), for_now, "{text}");
            assert_eq!(matches!(fault, ControlError::Failed { .. }), !for_now, "{text}");
        }
    }
}
