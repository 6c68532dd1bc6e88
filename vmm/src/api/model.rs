//! The bodies that travel over the control socket, under Firecracker's names.
//!
//! What the server receives is read strictly (an unknown field is an error: a misspelt field must
//! not be ignored). What a client receives is read leniently, so that an older `tesseractl` can
//! talk to a newer `tessera`.

use std::path::PathBuf;

use serde::ser::Error as _;
use serde::{Deserialize, Serialize, Serializer};
use serde_json::Value;

pub use super::snapshot::{
    LoadHugePages, MemoryBackend, MemoryBackendType, NetworkOverride, SnapshotConfirm,
    SnapshotCreate, SnapshotLoad, SnapshotType, VsockOverride,
};
use super::snapshot::{not_null, object};
pub use crate::config::{OnExhausted, RateLimiterSection, TagStorageMode};
pub use devices::virtio::balloon::Statistics as GuestStats;

/// The version of Firecracker's interface description from which paths, fields and status codes are
/// taken (`firecracker_version` in `GET /version`).
pub const FIRECRACKER_API_VERSION: &str = "1.17.0-dev";

/// What the VMM calls itself (`app_name` in `GET /`).
pub const APP_NAME: &str = "Tessera";

/// This program's own version.
pub const TESSERA_VERSION: &str = env!("CARGO_PKG_VERSION");

/// Firecracker's `InstanceInfo`: the answer to `GET /`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct InstanceInfo {
    /// [`APP_NAME`].
    pub app_name: String,
    /// The name of this VM, given at its start.
    pub id: String,
    /// What the VM is doing.
    pub state: State,
    /// [`TESSERA_VERSION`] of the process that answers.
    pub vmm_version: String,
    /// Why the VMM has paused it without a request. Ours.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pause_reason: Option<String>,
}

impl InstanceInfo {
    /// The description of a VM run by this program.
    pub fn new(id: impl Into<String>, state: State) -> Self {
        Self {
            app_name: APP_NAME.to_owned(),
            id: id.into(),
            state,
            vmm_version: TESSERA_VERSION.to_owned(),
            pause_reason: None,
        }
    }
}

/// What a VM is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum State {
    /// No vCPU has run yet.
    #[serde(rename = "Not started")]
    NotStarted,
    /// The vCPUs run.
    Running,
    /// The vCPUs are held.
    Paused,
}

impl State {
    /// The state's name on the wire.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::NotStarted => "Not started",
            Self::Running => "Running",
            Self::Paused => "Paused",
        }
    }
}

impl std::fmt::Display for State {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Firecracker's `FirecrackerVersion` with ours beside it: the answer to `GET /version`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Version {
    /// The Firecracker interface that clients may assume: [`FIRECRACKER_API_VERSION`].
    pub firecracker_version: String,
    /// [`TESSERA_VERSION`] of the process that answers.
    pub tessera_version: String,
}

impl Version {
    /// The versions of this program.
    pub fn current() -> Self {
        Self {
            firecracker_version: FIRECRACKER_API_VERSION.to_owned(),
            tessera_version: TESSERA_VERSION.to_owned(),
        }
    }
}

/// Firecracker's `Vm`: the body of `PATCH /vm`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Vm {
    /// What the VM shall do.
    pub state: VmState,
}

/// What `PATCH /vm` can ask for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum VmState {
    /// Hold the vCPUs.
    Paused,
    /// Let them run.
    Resumed,
}

/// Firecracker's `InstanceActionInfo`: the body of `PUT /actions`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct InstanceActionInfo {
    /// What to do.
    pub action_type: ActionType,
}

/// What `PUT /actions` can ask for. All but `Stop` are Firecracker's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum ActionType {
    /// Known and always refused: metrics are read with `GET /metrics`.
    FlushMetrics,
    /// Known and always refused: `tessera run` starts the VM itself.
    InstanceStart,
    /// Press the power key.
    SendCtrlAltDel,
    /// End the VM without asking the guest. Ours.
    Stop,
}

/// Firecracker's `Balloon` with ours beside it: the answer to `GET /balloon`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Balloon {
    /// How much memory the guest is asked to give up, in whole MiB (rounded down).
    pub amount_mib: u64,
    /// How much it is asked to give up besides for now, as other VMs need tag storage. Ours.
    #[serde(default)]
    pub needed_mib: u64,
    /// How much of it the guest's driver says is in the balloon, in whole MiB (rounded down). Ours.
    pub actual_mib: u64,
    /// Whether a guest that runs out of memory may take it back.
    pub deflate_on_oom: bool,
    /// Seconds between two requests for the guest's statistics; 0 for none.
    pub stats_polling_interval_s: u16,
    /// Always `false`.
    pub free_page_hinting: bool,
    /// Whether reporting is switched on: offered when the guest started, and not switched off since.
    pub free_page_reporting: bool,
    /// The state of the guest's driver. Ours.
    pub driver: DriverState,
    /// The state of page reporting. Ours.
    pub reporting: Reporting,
    /// The VMM's own choice of `amount_mib`. Ours; versions before it do not answer it.
    #[serde(default)]
    pub auto: AutoBalloon,
}

/// The VMM's own choice of a balloon's target.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct AutoBalloon {
    /// Whether it chooses.
    pub on: bool,
    /// What it leaves to the guest, in whole MiB (rounded down).
    pub floor_mib: u64,
    /// What it does, while it is on: `settled`, `taking` or `returning`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub state: Option<String>,
    /// Why, in a word.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}

/// The state of the guest's balloon driver.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum DriverState {
    /// None has started, or it has left.
    Absent,
    /// It runs the device.
    Active,
    /// It broke a rule of virtio, and the device waits for its reset.
    #[serde(rename = "needs reset")]
    NeedsReset,
}

impl std::fmt::Display for DriverState {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Absent => "absent",
            Self::Active => "active",
            Self::NeedsReset => "needs reset",
        })
    }
}

/// The state of page reporting.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reporting {
    /// In a word.
    pub state: ReportingState,
    /// Why nothing is given back, and what to do about it; absent while it is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}

/// The state of page reporting in a word.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ReportingState {
    /// What the guest reports is given back.
    On,
    /// It is switched off, or was never offered.
    Off,
    /// It is on, but gives nothing back.
    Ineffective,
}

impl ReportingState {
    /// The state's name on the wire.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::On => "on",
            Self::Off => "off",
            Self::Ineffective => "ineffective",
        }
    }
}

/// Firecracker's `BalloonUpdate` with ours beside it: the body of `PATCH /balloon`. It names one of them at least.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BalloonUpdate {
    /// How much memory the guest is asked to give up, in MiB.
    #[serde(default, deserialize_with = "not_null", skip_serializing_if = "Option::is_none")]
    pub amount_mib: Option<u64>,
    /// Whether what the guest reports is given back. Ours.
    #[serde(default, deserialize_with = "not_null", skip_serializing_if = "Option::is_none")]
    pub free_page_reporting: Option<bool>,
    /// Whether the VMM chooses the amount from now on. An amount without it ends that. Ours.
    #[serde(default, deserialize_with = "not_null", skip_serializing_if = "Option::is_none")]
    pub auto: Option<bool>,
    /// What the VMM leaves to the guest then, in MiB. Ours.
    #[serde(default, deserialize_with = "not_null", skip_serializing_if = "Option::is_none")]
    pub floor_mib: Option<u64>,
}

/// Firecracker's `BalloonStats`: the answer to `GET /balloon/statistics`. What the guest did not say is
/// absent; the sizes that it says are in bytes.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct BalloonStats {
    /// How much memory the guest is asked to give up, in pages of 4 KiB.
    pub target_pages: u64,
    /// How much of it is in the balloon, in pages of 4 KiB.
    pub actual_pages: u64,
    /// How much memory the guest is asked to give up, in whole MiB.
    pub target_mib: u64,
    /// How much of it is in the balloon, in whole MiB.
    pub actual_mib: u64,
    /// What the guest said, under Firecracker's names, which are those of the specification.
    #[serde(flatten, serialize_with = "known_only")]
    pub guest: GuestStats,
}

/// Serializes only what the guest did say.
fn known_only<S: Serializer>(guest: &GuestStats, serializer: S) -> Result<S::Ok, S::Error> {
    let all = serde_json::to_value(guest).map_err(S::Error::custom)?;
    let known = all.as_object().into_iter().flatten().filter(|(_, value)| !value.is_null());
    serializer.collect_map(known)
}

/// Firecracker's `BalloonStatsUpdate`: the body of `PATCH /balloon/statistics`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BalloonStatsUpdate {
    /// Seconds between two requests for the guest's statistics; 0 stops them.
    pub stats_polling_interval_s: u16,
}

/// What a guest costs the host: the answer to `GET /footprint`. Ours. All in bytes.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Footprint {
    /// The guest's memory.
    pub guest_bytes: u64,
    /// What of it is in the host's memory now (`Rss` of smaps).
    pub resident_bytes: u64,
    /// What of it is swapped out, or at the moment on its way to another place in memory; null for a memfd, of which the
    /// kernel does not tell.
    pub swapped_bytes: Option<u64>,
    /// What of `resident_bytes` is in huge pages.
    pub huge_bytes: u64,
    /// Of a clone, what of `resident_bytes` is the template's, and in memory once for all clones.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub template_bytes: Option<u64>,
    /// What of it carries tags, by the kernel's own page flags; null where they cannot be read.
    pub tagged_bytes: Option<u64>,
    /// Why `tagged_bytes` is null.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tagged_unavailable: Option<String>,
    /// How long the kernel took to count these, on a thread of its own, in microseconds. All that follows is counted as
    /// it happens.
    #[serde(default)]
    pub count_us: u64,
    /// What is in the balloon now.
    pub inflated_bytes: u64,
    /// Reported as free by the guest since the start; the same memory counts each time. So for those below.
    pub reported_bytes: u64,
    /// Given back to the host, from reports and the balloon.
    pub discarded_bytes: u64,
    /// Not given back, as the host refused.
    pub failed_bytes: u64,
    /// Why, the last time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failed_reason: Option<String>,
    /// Reported and not given back, as the guest fills its free pages with a value of its own.
    pub poison_skipped_bytes: u64,
    /// Reported and not given back, as reporting was switched off.
    pub kept_bytes: u64,
}

/// Firecracker's `PartialDrive`: the body of `PATCH /drives/{drive_id}`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DriveUpdate {
    /// The disk, as the path names it.
    pub drive_id: String,
    /// Its file, whose size is taken anew, or another one.
    #[serde(default, deserialize_with = "not_null", skip_serializing_if = "Option::is_none")]
    pub path_on_host: Option<PathBuf>,
    /// New limits; those that are not given stay.
    #[serde(default, deserialize_with = "object", skip_serializing_if = "Option::is_none")]
    pub rate_limiter: Option<RateLimiterSection>,
}

/// Firecracker's `PartialNetworkInterface`: the body of `PATCH /network-interfaces/{iface_id}`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NetworkInterfaceUpdate {
    /// The interface, as the path names it.
    pub iface_id: String,
    /// New limits on what the guest receives; those that are not given stay.
    #[serde(default, deserialize_with = "object", skip_serializing_if = "Option::is_none")]
    pub rx_rate_limiter: Option<RateLimiterSection>,
    /// New limits on what the guest sends; those that are not given stay.
    #[serde(default, deserialize_with = "object", skip_serializing_if = "Option::is_none")]
    pub tx_rate_limiter: Option<RateLimiterSection>,
}

/// Tag storage of a VM: the answer to `GET /tag-storage`. Every size is tag storage, of the supply named
/// here.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TagStorage {
    /// When it is reserved.
    pub mode: TagStorageMode,
    /// What is behind it: `ledger`, which counts and has nothing physical, or `node:N`. Absent where none
    /// is reserved.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub supply: Option<String>,
    /// Unused tag storage that its memory may be in: for a guest without MTE beside a broker.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub borrows: Option<Borrows>,
    /// The whole pool, of all VMs.
    pub capacity_bytes: u64,
    /// Reserved for this VM now.
    pub reserved_bytes: u64,
    /// Set aside for this VM.
    pub min_bytes: u64,
    /// The most that it can have; absent for all there is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_bytes: Option<u64>,
    /// Its memory.
    pub chunks: TagStorageChunks,
    /// What happens to a touch that has waited too long.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub on_exhausted: Option<OnExhausted>,
    /// How long that is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub deadline_s: Option<u16>,
    /// A touch waits.
    pub exhausted: bool,
    /// One has waited for too long.
    pub expired: bool,
    /// Why it waits, and what to do about it; or why nothing is reserved any more.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// Events since the start, by name.
    pub counters: Value,
}

impl TagStorage {
    /// None is reserved.
    pub fn off() -> Self {
        Self {
            mode: TagStorageMode::Off,
            supply: None,
            borrows: None,
            capacity_bytes: 0,
            reserved_bytes: 0,
            min_bytes: 0,
            max_bytes: None,
            chunks: TagStorageChunks::default(),
            on_exhausted: None,
            deadline_s: None,
            exhausted: false,
            expired: false,
            reason: None,
            counters: Value::Object(serde_json::Map::new()),
        }
    }
}

/// Tag storage that a guest without MTE may live in.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Borrows {
    /// `ledger`, which has nothing to lend, or `node:N`.
    pub supply: String,
    /// When, a word of `tessera broker --lend`.
    pub lend: String,
}

/// A guest's memory in pieces of 2 MiB.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct TagStorageChunks {
    /// All.
    pub total: u64,
    /// With memory and tag storage. Absent unless it is reserved on demand.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub populated: Option<u64>,
    /// With tag storage, and not touched yet: reserved together with one next to them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ahead: Option<u64>,
    /// With neither.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub absent: Option<u64>,
    /// Touched, and waiting for tag storage.
    pub waiting: u64,
}

/// Firecracker's `Error`: the body of every answer from 400 up.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fault {
    /// What went wrong and what to do about it.
    pub fault_message: String,
}
