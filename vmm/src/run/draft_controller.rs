//! A VM that has not started, as the control socket sees it.

use serde_json::{Value, json};

use super::controller::MachineController;
use super::entry::Listed;
use super::error::Error;
use super::exit_reason::ExitReason;
use super::launch::Launcher;
use super::shutdown::ShutdownRequest;
use super::snapshots;
use crate::api::{ControlError, Controller, Lifecycle, model};
use crate::config::{CommandLineOnly, Config, ConfigChange};
use crate::error::chain;
use crate::exit_status::ExitStatus;
use crate::spec::Draft;

/// A VM that is configured by a client, and then started.
pub(super) struct DraftController<'h> {
    config: Config,
    flags: CommandLineOnly<'h>,
    draft: Draft,
    entry: Listed,
    launcher: Launcher<'h>,
    shutdown: ShutdownRequest,
    started: Option<MachineController>,
}

impl<'h> DraftController<'h> {
    /// A VM whose configuration begins with this one, which has been checked.
    pub(super) fn new(
        config: Config,
        draft: Draft,
        flags: CommandLineOnly<'h>,
        entry: Listed,
        launcher: Launcher<'h>,
        shutdown: ShutdownRequest,
    ) -> Self {
        Self { config, flags, draft, entry, launcher, shutdown, started: None }
    }
}

/// Whom a client reaches.
pub(super) enum Phase<'h> {
    /// The VM is configured.
    NotStarted(Box<DraftController<'h>>),
    /// There is a machine.
    Started(MachineController),
}

impl Lifecycle for Phase<'_> {
    fn controller(&mut self) -> &mut dyn Controller {
        if let Self::NotStarted(draft) = self
            && let Some(machine) = draft.started.take()
        {
            *self = Self::Started(machine);
        }
        match self {
            Self::NotStarted(draft) => &mut **draft,
            Self::Started(machine) => machine,
        }
    }
}

/// The answer where a snapshot cannot be restored.
impl From<Error> for ControlError {
    fn from(error: Error) -> Self {
        match error.status() {
            ExitStatus::VmmFault | ExitStatus::Io => Self::failed("restore the VM", error),
            _ => Self::refused(chain(&error)),
        }
    }
}

impl Controller for DraftController<'_> {
    fn instance(&self) -> model::InstanceInfo {
        model::InstanceInfo::new(self.draft.id(), model::State::NotStarted)
    }

    fn vm_config(&self) -> Value {
        // A configuration is plain data: strings, numbers and paths that came from UTF-8.
        serde_json::to_value(self.draft.to_config()).unwrap_or_else(|_| json!({}))
    }

    fn machine_config(&self) -> Value {
        self.vm_config().get("machine-config").cloned().unwrap_or_else(|| json!({}))
    }

    fn metrics(&self) -> Value {
        json!({})
    }

    fn balloon(&self) -> Result<model::Balloon, ControlError> {
        let balloon = self.draft.balloon().ok_or_else(ControlError::no_balloon)?;
        Ok(model::Balloon::before_the_start(balloon, self.draft.memory()))
    }

    fn patch_balloon(&mut self, _: model::BalloonUpdate) -> Result<(), ControlError> {
        Err(ControlError::before_start())
    }

    fn balloon_statistics(&self) -> Result<model::BalloonStats, ControlError> {
        Err(ControlError::before_start())
    }

    fn patch_balloon_statistics(
        &mut self,
        _: model::BalloonStatsUpdate,
    ) -> Result<(), ControlError> {
        Err(ControlError::before_start())
    }

    fn patch_drive(&mut self, _: model::DriveUpdate) -> Result<(), ControlError> {
        Err(ControlError::before_start())
    }

    fn patch_network_interface(
        &mut self,
        _: model::NetworkInterfaceUpdate,
    ) -> Result<(), ControlError> {
        Err(ControlError::before_start())
    }

    fn footprint(&self) -> Result<model::Footprint, ControlError> {
        Err(ControlError::before_start())
    }

    fn tag_storage(&self) -> Result<model::TagStorage, ControlError> {
        Err(ControlError::before_start())
    }

    fn configure(&mut self, change: ConfigChange) -> Result<(), ControlError> {
        let mut config = self.config.clone();
        change.apply(&mut config);
        let draft = Draft::new(config.clone(), self.flags);
        self.draft = draft.map_err(|error| ControlError::refused(chain(&error)))?;
        self.config = config;
        Ok(())
    }

    fn start(&mut self) -> Result<(), ControlError> {
        let refused = |error: &dyn std::error::Error| ControlError::refused(chain(error));
        let spec = self.draft.clone().into_spec().map_err(|error| refused(&error))?;
        let (launched, machine) =
            self.launcher.make(spec, None).map_err(|error| refused(&error))?;
        self.entry.update(machine.spec(), self.flags);
        self.launcher.start(launched).map_err(|error| refused(&error))?;
        self.started = Some(machine);
        Ok(())
    }

    fn flush_metrics(&mut self) -> Result<(), ControlError> {
        Err(ControlError::before_start())
    }

    fn pause(&mut self) -> Result<(), ControlError> {
        Err(ControlError::before_start())
    }

    fn resume(&mut self) -> Result<(), ControlError> {
        Err(ControlError::before_start())
    }

    fn create_snapshot(&mut self, _: model::SnapshotCreate) -> Result<(), ControlError> {
        Err(ControlError::before_start())
    }

    fn confirm_snapshot(&mut self, _: model::SnapshotConfirm) -> Result<(), ControlError> {
        Err(ControlError::before_start())
    }

    fn load_snapshot(&mut self, request: model::SnapshotLoad) -> Result<(), ControlError> {
        let changes = self.config.clone().restore_changes();
        let changes = changes.map_err(|error| ControlError::refused(error.to_string()))?;
        let request = request.into_request(changes)?;
        let (spec, restore) = snapshots::prepare(request, self.flags)?;
        let runs = restore.resume;
        let (launched, machine) = self.launcher.make(spec, Some(restore))?;
        self.entry.update(machine.spec(), self.flags);
        match runs {
            true => self.launcher.start(launched)?,
            false => self.launcher.hold(launched)?,
        }
        self.started = Some(machine);
        Ok(())
    }

    fn press_power_key(&mut self) -> Result<(), ControlError> {
        Err(ControlError::before_start())
    }

    fn stop(&mut self) -> Result<(), ControlError> {
        self.shutdown.with(ExitReason::Stopped);
        Ok(())
    }
}
