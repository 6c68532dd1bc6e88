//! The control socket of a VM: HTTP/1.1 on a Unix stream socket.
//!
//! Paths, field names and status codes are Firecracker's wherever the two overlap, so that
//! clients people already have work; `resources/openapi.yaml` is the contract, and a test holds
//! [`Server`] to it.
//!
//! ```text
//! socket (the file)  ->  server (event loop)  ->  connection (bytes in, bytes out)
//!                                                    http (framing)  ->  routes  ->  Controller
//! the other end: the package `tesseractl`, in vmm/ctl
//! ```
//!
//! # Adding a resource
//! One method on [`Controller`], one line in `routes::ROUTES`, its bodies in [`model`] and its
//! description in `resources/openapi.yaml`. The contract test fails until all of them agree.
//!
//! # Threads
//! The server is one subscriber of the VMM's event loop and runs only on its thread. Nothing in it
//! blocks: a peer that is slow, silent or hostile costs a bounded amount of memory and no time.

mod connection;
mod convert;
mod http;
pub mod model;
mod routes;
mod server;
mod snapshot;

#[cfg(test)]
pub(crate) mod contract;
#[cfg(any(test, fuzzing))]
#[cfg_attr(fuzzing, allow(dead_code, reason = "a target needs a part of it"))]
pub(crate) mod fake;
#[cfg(any(test, fuzzing))]
pub(crate) mod fuzz;

pub use http::MAX_BODY;
pub use server::Server;

use crate::config::ConfigChange;

/// Who answers for the VM at this moment: a start puts another one in the place of the first.
pub trait Lifecycle {
    /// The one who answers the next request.
    fn controller(&mut self) -> &mut dyn Controller;
}

impl<C: Controller> Lifecycle for C {
    fn controller(&mut self) -> &mut dyn Controller {
        self
    }
}

/// What the control socket needs of the VM behind it.
///
/// Every method runs on the event-loop thread and must return soon: until it does, no device and no
/// other client is served.
pub trait Controller {
    /// The answer to `GET /`.
    fn instance(&self) -> model::InstanceInfo;

    /// The answer to `GET /vm/config`: the whole configuration, Firecracker's
    /// `FullVmConfiguration` with ours beside it. A JSON object.
    fn vm_config(&self) -> serde_json::Value;

    /// The answer to `GET /machine-config`: Firecracker's `MachineConfiguration` with ours beside
    /// it. A JSON object.
    fn machine_config(&self) -> serde_json::Value;

    /// The answer to `GET /metrics`: an object of numbers, or of further such objects. A name ends
    /// in its unit (`_bytes`, `_nanoseconds`, ...) or in `_total` for a plain count of events. In Prometheus's
    /// format, a text in an object, such as the supply of tag storage, is a label of the numbers in it.
    fn metrics(&self) -> serde_json::Value;

    /// The answer to `GET /balloon`.
    ///
    /// # Errors
    /// There is no balloon ([`ControlError::no_balloon`]), or no machine any more. So for all of its resources.
    fn balloon(&self) -> Result<model::Balloon, ControlError>;

    /// Asks the guest for another amount of memory, or switches reporting, as `PATCH /balloon` says.
    /// Returns without waiting for the guest.
    ///
    /// # Errors
    /// The update is not one for this VM: see [`crate::backends::balloon::Change`]. Nothing is changed then.
    fn patch_balloon(&mut self, update: model::BalloonUpdate) -> Result<(), ControlError>;

    /// The answer to `GET /balloon/statistics`: what the guest said last. Until it has answered once,
    /// only target and actual size.
    ///
    /// # Errors
    /// The interval is 0 ([`ControlError::statistics_off`]).
    fn balloon_statistics(&self) -> Result<model::BalloonStats, ControlError>;

    /// Changes how often the guest is asked for its statistics; 0 stops it.
    ///
    /// # Errors
    /// The timer cannot be set.
    fn patch_balloon_statistics(
        &mut self,
        update: model::BalloonStatsUpdate,
    ) -> Result<(), ControlError>;

    /// Takes the size of a disk's file anew, or replaces the file or its limits, as `PATCH /drives/{drive_id}` says.
    ///
    /// # Errors
    /// There is no such disk, or its file cannot be used. Nothing is changed then.
    fn patch_drive(&mut self, update: model::DriveUpdate) -> Result<(), ControlError>;

    /// Replaces limits of a network interface, as `PATCH /network-interfaces/{iface_id}` says.
    ///
    /// # Errors
    /// There is no such interface, or such limits cannot be.
    fn patch_network_interface(
        &mut self,
        update: model::NetworkInterfaceUpdate,
    ) -> Result<(), ControlError>;

    /// The answer to `GET /footprint`: what the guest costs the host at this moment. Served without a
    /// balloon as well.
    ///
    /// # Errors
    /// The kernel's figures cannot be read.
    fn footprint(&self) -> Result<model::Footprint, ControlError>;

    /// The answer to `GET /tag-storage`: what is reserved for the guest, and whether it waits for more.
    ///
    /// # Errors
    /// There is no machine any more.
    fn tag_storage(&self) -> Result<model::TagStorage, ControlError>;

    /// Changes the configuration of a VM that has not started.
    ///
    /// # Errors
    /// The VM has started, or the configuration would make no sense. Nothing is changed then.
    fn configure(&mut self, change: ConfigChange) -> Result<(), ControlError>;

    /// Starts the VM as it is configured. Returns when the vCPUs run.
    ///
    /// # Errors
    /// The VM has started, its configuration is not complete, or the host cannot give what it asks for. The VM can be
    /// configured further then, and started again.
    fn start(&mut self) -> Result<(), ControlError>;

    /// Writes the counters to the file of `PUT /metrics`.
    ///
    /// # Errors
    /// There is no such file, or it cannot be written.
    fn flush_metrics(&mut self) -> Result<(), ControlError>;

    /// Stops the vCPUs; returns when none of them runs and no MMIO access is pending. Pausing a
    /// paused VM succeeds and changes nothing, as in Firecracker.
    ///
    /// # Errors
    /// The VM is in no state to be paused, or a vCPU did not stop.
    fn pause(&mut self) -> Result<(), ControlError>;

    /// Lets the vCPUs run again. Resuming a running VM succeeds and changes nothing.
    ///
    /// # Errors
    /// The VM is in no state to be resumed, or a vCPU did not start.
    fn resume(&mut self) -> Result<(), ControlError>;

    /// Writes the VM into the files of a snapshot, as `PUT /snapshot/create` says. Returns when they are on the disk;
    /// until then nothing else is answered, but no vCPU runs either. A file of that name is replaced by a whole one.
    ///
    /// # Errors
    /// The VM is not paused, something of that kind cannot be saved, or the files cannot be written. No file is there
    /// that was not before, and the VM can be resumed.
    fn create_snapshot(&mut self, request: model::SnapshotCreate) -> Result<(), ControlError>;

    /// Has the next diff build on a provisional snapshot, as `PUT /snapshot/confirm` says.
    ///
    /// # Errors
    /// It is not the VM's last snapshot.
    fn confirm_snapshot(&mut self, request: model::SnapshotConfirm) -> Result<(), ControlError>;

    /// Restores the VM of a snapshot in the place of one that has not started, as `PUT /snapshot/load` says.
    ///
    /// # Errors
    /// The VM has started or was configured, or the snapshot cannot be restored here. It can be tried again then.
    fn load_snapshot(&mut self, request: model::SnapshotLoad) -> Result<(), ControlError>;

    /// Presses the power key: asks the guest to power itself off. Returns without waiting for it.
    ///
    /// # Errors
    /// The guest cannot hear the key: it is paused, or no driver listens. The message should point
    /// to `Stop`.
    fn press_power_key(&mut self) -> Result<(), ControlError>;

    /// Ends the VM without asking the guest. It only has to tell the event loop to leave *after*
    /// the handler that runs now: the server writes the answer before that handler returns.
    ///
    /// # Errors
    /// The VM cannot be ended from here.
    fn stop(&mut self) -> Result<(), ControlError>;
}

/// Why a [`Controller`] did not do what a client asked. It reaches the client as `fault_message`,
/// with its sources.
#[derive(Debug, thiserror::Error)]
pub enum ControlError {
    /// The request makes no sense in the state the VM is in. The text says what to do instead.
    #[error("{0}")]
    Refused(String),
    /// The VMM tried and did not succeed: the request was right.
    #[error("cannot {action}")]
    Failed {
        /// What was tried, as a verb phrase: "pause the VM".
        action: &'static str,
        /// What went wrong.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The VMM cannot do it now, and may be able to when it is asked again.
    #[error("cannot {action}")]
    Unavailable {
        /// What was tried, as a verb phrase.
        action: &'static str,
        /// Why it is not possible now.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
}

impl ControlError {
    /// The answer to all of the balloon's resources where there is none.
    pub fn no_balloon() -> Self {
        Self::refused(
            "this VM has no balloon: it was started with --no-balloon, or with \"balloon\": null in its \
             configuration file",
        )
    }

    /// The answer to a change of a thing that is not there, of a kind such as "disk".
    pub fn no_such(kind: &str, id: &str) -> Self {
        Self::refused(format!("this VM has no {kind} '{id}': GET /vm/config lists what it has"))
    }

    /// The answer to `GET /balloon/statistics` while the guest is not asked for them.
    pub fn statistics_off() -> Self {
        Self::refused(
            "the balloon's statistics are off: PATCH /balloon/statistics with \
             {\"stats_polling_interval_s\": 1} asks the guest for them every second, as does --balloon stats=1",
        )
    }

    /// The answer to a request that needs a guest, before there is one. Firecracker's words.
    pub fn before_start() -> Self {
        Self::refused("The requested operation is not supported before starting the microVM.")
    }

    /// The answer to a request that only a VM takes that has not started. Firecracker's words.
    pub fn after_start() -> Self {
        Self::refused("The requested operation is not supported after starting the microVM.")
    }

    /// The answer to a snapshot of a VM that runs. The first words are Firecracker's.
    pub fn not_paused() -> Self {
        Self::refused(
            "Operation not allowed: save/restore unavailable while running: pause the VM first, with PATCH /vm",
        )
    }

    /// A refusal with this message.
    pub fn refused(message: impl Into<String>) -> Self {
        Self::Refused(message.into())
    }

    /// A failure of `action`, a verb phrase such as "pause the VM".
    pub fn failed(
        action: &'static str,
        source: impl Into<Box<dyn std::error::Error + Send + Sync>>,
    ) -> Self {
        Self::Failed { action, source: source.into() }
    }

    /// A failure of `action` that may not be there when the client asks again.
    pub fn unavailable(
        action: &'static str,
        source: impl Into<Box<dyn std::error::Error + Send + Sync>>,
    ) -> Self {
        Self::Unavailable { action, source: source.into() }
    }
}
