//! The bodies that travel over the control socket, under Firecracker's names.
//!
//! What the server receives is read strictly (an unknown field is an error: a misspelt field must
//! not be ignored). What a client receives is read leniently, so that an older `tesseractl` can
//! talk to a newer `tessera`.

use serde::{Deserialize, Serialize};

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
    /// The name of this VM, chosen by whoever started it.
    pub id: String,
    /// What the VM is doing.
    pub state: State,
    /// [`TESSERA_VERSION`] of the process that answers.
    pub vmm_version: String,
}

impl InstanceInfo {
    /// The description of a VM run by this program.
    pub fn new(id: impl Into<String>, state: State) -> Self {
        Self {
            app_name: APP_NAME.to_owned(),
            id: id.into(),
            state,
            vmm_version: TESSERA_VERSION.to_owned(),
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

/// Firecracker's `Error`: the body of every answer from 400 up.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fault {
    /// What went wrong and what to do about it.
    pub fault_message: String,
}
