//! A VM that is not there, for tests of the control socket.

use arch::units::Bytes;
use serde_json::{Value, json};

use super::model::{
    Balloon, BalloonStats, BalloonStatsUpdate, BalloonUpdate, DriveUpdate, DriverState, Footprint,
    GuestStats, InstanceInfo, NetworkInterfaceUpdate, OnExhausted, Reporting, SnapshotConfirm,
    SnapshotCreate, SnapshotLoad, State, TagStorage, TagStorageChunks, TagStorageMode,
};
use super::{ControlError, Controller};
use crate::backends::balloon::{AutoReason, AutoState, AutoStatus, Change, GuestReport, Limits};
use crate::backends::reporting::Diagnosis;
use crate::config::{CommandLineOnly, Config, ConfigChange, RestoreChanges};
use crate::events::{Event, EventLog};
use crate::spec::Draft;

/// A request that reached the fake.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Call {
    Pause,
    Resume,
    PressPowerKey,
    Stop,
    Configure,
    Start,
    FlushMetrics,
    CreateSnapshot,
    LoadSnapshot,
}

/// A reason of the VMM's own for which the fake does nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Failure {
    /// Asking again may help.
    ForNow,
    Lasting,
}

/// The memory of the fake's guest.
const MEMORY: Bytes = Bytes::mib(512);

/// The balloon of a VM that is not there; its guest gives nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct FakeBalloon {
    pub(crate) target: Bytes,
    /// Reporting, where it is offered.
    pub(crate) reporting: Option<bool>,
    pub(crate) interval: u16,
    pub(crate) statistics: GuestStats,
    /// Whether the VMM chooses the target.
    pub(crate) auto: bool,
}

impl Default for FakeBalloon {
    fn default() -> Self {
        let statistics =
            GuestStats { free_memory: Some(300 << 20), oom_kill: Some(0), ..GuestStats::default() };
        let target = Bytes::ZERO;
        Self { target, reporting: Some(true), interval: 1, statistics, auto: false }
    }
}

/// Obeys, remembers, and refuses the power key where the guest does not listen.
#[derive(Debug)]
pub(crate) struct FakeVm {
    pub(crate) state: State,
    pub(crate) listens: bool,
    pub(crate) metrics: Value,
    pub(crate) balloon: Option<FakeBalloon>,
    /// Whether tag storage is reserved, on demand.
    pub(crate) tags: bool,
    /// Every method that can fail does, for a reason of the VMM's own.
    pub(crate) failure: Option<Failure>,
    pub(crate) calls: Vec<Call>,
    /// Where it says that it runs again.
    pub(crate) log: EventLog,
}

impl Default for FakeVm {
    fn default() -> Self {
        Self {
            state: State::Running,
            listens: true,
            metrics: json!({
                "serial": { "sent_bytes": 4096 },
                "vcpus": { "exits_total": 1234567, "running_nanoseconds": 1500000 },
            }),
            balloon: Some(FakeBalloon::default()),
            tags: true,
            failure: None,
            calls: Vec::new(),
            log: EventLog::default(),
        }
    }
}

impl FakeVm {
    fn check(&self) -> Result<(), ControlError> {
        let source = std::io::Error::other("the host has none left");
        match self.failure {
            None => Ok(()),
            Some(Failure::ForNow) => Err(ControlError::unavailable("do that now", source)),
            Some(Failure::Lasting) => Err(ControlError::failed("do that", source)),
        }
    }

    fn balloon_mut(&mut self) -> Result<&mut FakeBalloon, ControlError> {
        self.check()?;
        self.balloon.as_mut().ok_or_else(ControlError::no_balloon)
    }
}

impl Controller for FakeVm {
    fn instance(&self) -> InstanceInfo {
        InstanceInfo::new("fake", self.state)
    }

    fn vm_config(&self) -> Value {
        json!({
            "boot-source": { "kernel_image_path": "/boot/Image", "boot_args": "quiet" },
            "machine-config": self.machine_config(),
            "serial": { "target": "stdio" },
            "mte": { "mode": "require" },
            "balloon": {
                "amount_mib": 0,
                "deflate_on_oom": true,
                "stats_polling_interval_s": 1,
                "free_page_hinting": false,
                "free_page_reporting": true,
            },
            "drives": [{
                "drive_id": "root",
                "path_on_host": "/images/root.ext4",
                "is_root_device": true,
                "is_read_only": false,
                "rate_limiter": { "ops": { "size": 1000, "refill_time": 100 } },
            }],
            "network-interfaces": [{
                "iface_id": "eth0",
                "backend": "user",
                "forward": ["2222:22"],
                "guest_mac": "02:00:00:00:00:01",
                "mtu": 1400,
                "tx_rate_limiter": { "bandwidth": { "size": 1000, "refill_time": 100 } },
            }],
            "entropy": {},
        })
    }

    fn machine_config(&self) -> Value {
        json!({
            "vcpu_count": 2,
            "mem_size_mib": 512,
            "smt": false,
            "track_dirty_pages": false,
            "huge_pages": "Transparent",
            "memory_backing": "anonymous",
            "lock_memory": false,
        })
    }

    fn metrics(&self) -> Value {
        self.metrics.clone()
    }

    fn balloon(&self) -> Result<Balloon, ControlError> {
        self.check()?;
        let balloon = self.balloon.ok_or_else(ControlError::no_balloon)?;
        let diagnosis = match balloon.reporting {
            Some(true) => None,
            Some(false) => Some(Diagnosis::SwitchedOff),
            None => Some(Diagnosis::NotOffered),
        };
        Ok(Balloon {
            amount_mib: balloon.target.as_mib(),
            needed_mib: 0,
            actual_mib: 0,
            deflate_on_oom: true,
            stats_polling_interval_s: balloon.interval,
            free_page_hinting: false,
            free_page_reporting: balloon.reporting == Some(true),
            driver: DriverState::Active,
            reporting: Reporting::from(diagnosis),
            auto: AutoStatus {
                floor: Bytes::mib(128),
                choice: balloon.auto.then_some((AutoState::Taking, AutoReason::HostShort)),
            }
            .into(),
        })
    }

    fn patch_balloon(&mut self, update: BalloonUpdate) -> Result<(), ControlError> {
        let balloon = self.balloon_mut()?;
        let limits = Limits { memory: MEMORY, reporting: balloon.reporting.is_some(), auto: true };
        let change = Change::new(&update.into(), &limits)?;
        balloon.target = change.target.unwrap_or(balloon.target);
        balloon.reporting = change.reporting.or(balloon.reporting);
        balloon.auto = change.auto.unwrap_or(balloon.auto);
        Ok(())
    }

    fn balloon_statistics(&self) -> Result<BalloonStats, ControlError> {
        self.check()?;
        let balloon = self.balloon.ok_or_else(ControlError::no_balloon)?;
        match balloon.interval {
            0 => Err(ControlError::statistics_off()),
            _ => Ok(GuestReport {
                target: balloon.target,
                actual: Bytes::ZERO,
                statistics: balloon.statistics,
            }
            .into()),
        }
    }

    fn patch_balloon_statistics(&mut self, update: BalloonStatsUpdate) -> Result<(), ControlError> {
        self.balloon_mut()?.interval = update.stats_polling_interval_s;
        Ok(())
    }

    fn patch_drive(&mut self, update: DriveUpdate) -> Result<(), ControlError> {
        self.check()?;
        match update.drive_id.as_str() {
            "root" => Ok(()),
            id => Err(ControlError::no_such("disk", id)),
        }
    }

    fn patch_network_interface(
        &mut self,
        update: NetworkInterfaceUpdate,
    ) -> Result<(), ControlError> {
        self.check()?;
        match update.iface_id.as_str() {
            "eth0" => Ok(()),
            id => Err(ControlError::no_such("network interface", id)),
        }
    }

    fn footprint(&self) -> Result<Footprint, ControlError> {
        self.check()?;
        Ok(Footprint {
            guest_bytes: MEMORY.get(),
            resident_bytes: 64 << 20,
            swapped_bytes: Some(1 << 20),
            huge_bytes: 32 << 20,
            template_bytes: None,
            tagged_bytes: None,
            tagged_unavailable: Some("only root may read /proc/kpageflags".to_owned()),
            count_us: 1500,
            ..Footprint::default()
        })
    }

    fn tag_storage(&self) -> Result<TagStorage, ControlError> {
        self.check()?;
        if !self.tags {
            return Ok(TagStorage::off());
        }
        let chunks = TagStorageChunks {
            total: 256,
            populated: Some(40),
            ahead: Some(4),
            absent: Some(212),
            waiting: 1,
        };
        Ok(TagStorage {
            borrows: None,
            mode: TagStorageMode::Demand,
            supply: Some("ledger".to_owned()),
            capacity_bytes: 128 << 20,
            reserved_bytes: 40 << 16,
            min_bytes: 0,
            max_bytes: Some(40 << 16),
            chunks,
            on_exhausted: Some(OnExhausted::Pause),
            deadline_s: Some(5),
            exhausted: true,
            expired: true,
            reason: Some("the guest touches chunk 41: give a larger --tag-max".to_owned()),
            counters: json!({ "populated_total": 40, "touches_total": 41 }),
        })
    }

    fn configure(&mut self, change: ConfigChange) -> Result<(), ControlError> {
        if self.state != State::NotStarted {
            return Err(ControlError::after_start());
        }
        let mut config = Config::default();
        change.apply(&mut config);
        Draft::new(config, CommandLineOnly::default())
            .map_err(|error| ControlError::refused(error.to_string()))?;
        self.calls.push(Call::Configure);
        Ok(())
    }

    fn start(&mut self) -> Result<(), ControlError> {
        if self.state != State::NotStarted {
            return Err(ControlError::after_start());
        }
        self.calls.push(Call::Start);
        self.state = State::Running;
        Ok(())
    }

    fn flush_metrics(&mut self) -> Result<(), ControlError> {
        self.check()?;
        self.calls.push(Call::FlushMetrics);
        Ok(())
    }

    fn pause(&mut self) -> Result<(), ControlError> {
        self.check()?;
        self.calls.push(Call::Pause);
        self.state = State::Paused;
        Ok(())
    }

    fn resume(&mut self) -> Result<(), ControlError> {
        self.check()?;
        self.calls.push(Call::Resume);
        self.log.publish(&Event::Resumed);
        self.state = State::Running;
        Ok(())
    }

    fn create_snapshot(&mut self, _: SnapshotCreate) -> Result<(), ControlError> {
        match self.state {
            State::NotStarted => return Err(ControlError::before_start()),
            State::Running => return Err(ControlError::not_paused()),
            State::Paused => {}
        }
        self.check()?;
        self.calls.push(Call::CreateSnapshot);
        Ok(())
    }

    fn confirm_snapshot(&mut self, _: SnapshotConfirm) -> Result<(), ControlError> {
        match self.state {
            State::NotStarted => Err(ControlError::before_start()),
            State::Running | State::Paused => Ok(()),
        }
    }

    fn load_snapshot(&mut self, request: SnapshotLoad) -> Result<(), ControlError> {
        if self.state != State::NotStarted {
            return Err(ControlError::after_start());
        }
        let request = request.into_request(RestoreChanges::default())?;
        // What the host lacks for now is refused: another request may name another snapshot.
        if self.failure != Some(Failure::ForNow) {
            self.check()?;
        }
        self.calls.push(Call::LoadSnapshot);
        self.state = if request.resume { State::Running } else { State::Paused };
        Ok(())
    }

    fn press_power_key(&mut self) -> Result<(), ControlError> {
        self.check()?;
        self.calls.push(Call::PressPowerKey);
        match self.listens {
            true => Ok(()),
            false => Err(ControlError::refused("the guest does not listen; use Stop")),
        }
    }

    fn stop(&mut self) -> Result<(), ControlError> {
        self.check()?;
        self.calls.push(Call::Stop);
        Ok(())
    }
}
