//! The machine as the control socket sees it.

use std::cell::RefCell;
use std::path::{Path, PathBuf};
use std::rc::{Rc, Weak};

use serde::Serialize;
use serde_json::{Value, json};

use super::exit_reason::ExitReason;
use super::metrics_file::MetricsFile;
use super::power_key::PowerKeyTimer;
use super::shutdown::ShutdownRequest;
use super::snapshots;
use crate::api::{ControlError, Controller, model};
use crate::backends::{balloon, block};
use crate::config::ConfigChange;
use crate::error::chain;
use crate::events::Event;
use crate::machine::{Machine, NotProvisional, PauseReason};
use crate::sandbox::{self, FileUse};
use crate::snapshot::SnapshotId;
use crate::spec::{DiskSpec, NetSpec, RateLimiterChange, Spec};
use crate::vcpu;

/// Everything that a client of the control socket may do.
pub(super) struct MachineController {
    /// Weak: the socket outlives the machine, so that its end tells that the machine has gone.
    machine: Weak<RefCell<Machine>>,
    key: PowerKeyTimer,
    shutdown: ShutdownRequest,
    metrics: Option<MetricsFile>,
    /// As it was started.
    spec: Box<Spec>,
    /// The last snapshot, and the path of its state file, if it is to be confirmed.
    provisional: Option<(PathBuf, SnapshotId)>,
}

impl MachineController {
    /// A handle on a machine.
    pub(super) fn new(
        machine: &Rc<RefCell<Machine>>,
        key: PowerKeyTimer,
        shutdown: ShutdownRequest,
        metrics: Option<MetricsFile>,
        spec: Spec,
    ) -> Self {
        let machine = Rc::downgrade(machine);
        Self { machine, key, shutdown, metrics, spec: Box::new(spec), provisional: None }
    }
}

impl MachineController {
    /// What it was started with.
    pub(super) fn spec(&self) -> &Spec {
        &self.spec
    }

    /// The same as a configuration.
    fn config(&self) -> Value {
        // A configuration is plain data: strings, numbers and paths that came from UTF-8.
        serde_json::to_value(self.spec.to_config()).unwrap_or_else(|_| json!({}))
    }

    fn machine(&self) -> Result<Rc<RefCell<Machine>>, ControlError> {
        let machine = self.machine.upgrade();
        machine.ok_or_else(|| ControlError::unavailable("control the VM", "it is ending"))
    }

    fn balloon_control(&self) -> Result<balloon::Control, ControlError> {
        self.machine()?.borrow().balloon().cloned().ok_or_else(ControlError::no_balloon)
    }
}

impl Controller for MachineController {
    fn instance(&self) -> model::InstanceInfo {
        let machine = self.machine();
        let running = machine.as_ref().is_ok_and(|machine| !machine.borrow().is_paused());
        let state = if running { model::State::Running } else { model::State::Paused };
        let mut instance = model::InstanceInfo::new(self.spec.id.clone(), state);
        instance.pause_reason =
            machine.ok().and_then(|machine| held(&machine.borrow()).map(str::to_owned));
        instance
    }

    fn vm_config(&self) -> Value {
        let mut config = self.config();
        // They are what can have changed.
        if let Ok(machine) = self.machine() {
            let machine = machine.borrow();
            refresh(&mut config, "drives", machine.disks().map(DiskSpec::to_section));
            let interfaces = machine.network_interfaces().map(NetSpec::to_section);
            refresh(&mut config, "network-interfaces", interfaces);
        }
        config
    }

    fn machine_config(&self) -> Value {
        self.config().get("machine-config").cloned().unwrap_or_else(|| json!({}))
    }

    fn metrics(&self) -> Value {
        self.machine().map_or_else(|_| json!({}), |machine| machine.borrow().metrics())
    }

    fn balloon(&self) -> Result<model::Balloon, ControlError> {
        Ok((&self.balloon_control()?.status()).into())
    }

    fn patch_balloon(&mut self, update: model::BalloonUpdate) -> Result<(), ControlError> {
        Ok(self.balloon_control()?.update(&update.into())?)
    }

    fn balloon_statistics(&self) -> Result<model::BalloonStats, ControlError> {
        let report = self.balloon_control()?.statistics();
        report.map(Into::into).ok_or_else(ControlError::statistics_off)
    }

    fn patch_balloon_statistics(
        &mut self,
        update: model::BalloonStatsUpdate,
    ) -> Result<(), ControlError> {
        let set = self.balloon_control()?.set_stats_interval(update.stats_polling_interval_s);
        set.map_err(|error| ControlError::failed("set the statistics' timer", error))
    }

    fn patch_drive(&mut self, update: model::DriveUpdate) -> Result<(), ControlError> {
        let id = &update.drive_id;
        let limits = limits(update.rate_limiter)?;
        let machine = self.machine()?;
        let mut machine = machine.borrow_mut();
        let disk = machine.disk_mut(id).ok_or_else(|| ControlError::no_such("disk", id))?;
        if let Some(path) = update.path_on_host {
            disk.refresh(&path).map_err(|error| not_replaced(disk.spec(), &path, &error))?;
        }
        disk.limit(limits);
        Ok(())
    }

    fn patch_network_interface(
        &mut self,
        update: model::NetworkInterfaceUpdate,
    ) -> Result<(), ControlError> {
        let id = &update.iface_id;
        let (rx, tx) = (limits(update.rx_rate_limiter)?, limits(update.tx_rate_limiter)?);
        let machine = self.machine()?;
        let mut machine = machine.borrow_mut();
        let no_such = || ControlError::no_such("network interface", id);
        machine.network_interface_mut(id).ok_or_else(no_such)?.limit(rx, tx);
        Ok(())
    }

    fn footprint(&self) -> Result<model::Footprint, ControlError> {
        let machine = self.machine()?;
        let machine = machine.borrow();
        let measured = machine.footprint().footprint()?;
        let balloon = machine.balloon().map(balloon::Control::totals).unwrap_or_default();
        Ok(model::Footprint::new(self.spec.memory, &measured, balloon))
    }

    fn tag_storage(&self) -> Result<model::TagStorage, ControlError> {
        let machine = self.machine()?;
        let machine = machine.borrow();
        Ok(match machine.tag_storage() {
            Some(tags) => tags.status().into(),
            None => match machine.placement() {
                Some(lease) => lease.status().into(),
                None => model::TagStorage::off(),
            },
        })
    }

    fn configure(&mut self, _: ConfigChange) -> Result<(), ControlError> {
        Err(ControlError::after_start())
    }

    fn start(&mut self) -> Result<(), ControlError> {
        Err(ControlError::after_start())
    }

    fn flush_metrics(&mut self) -> Result<(), ControlError> {
        match &self.metrics {
            Some(file) => file.write(self.metrics()),
            None => Err(ControlError::refused(
                "the counters are written to no file: name one with PUT /metrics before the start, or read them with \
                 GET /metrics",
            )),
        }
    }

    fn pause(&mut self) -> Result<(), ControlError> {
        let paused = self.machine()?.borrow_mut().pause();
        paused.map_err(|error| match error {
            vcpu::Error::Loading { .. } => ControlError::unavailable("pause the VM", error),
            _ => ControlError::failed("pause the VM", error),
        })
    }

    fn resume(&mut self) -> Result<(), ControlError> {
        let machine = self.machine()?;
        let mut machine = machine.borrow_mut();
        machine.resume().map_err(|error| ControlError::failed("resume the VM", error))?;
        match held(&machine) {
            None => Ok(()),
            Some(reason) => Err(ControlError::refused(format!(
                "the VM resumes by itself as soon as it can, and not before: {reason}"
            ))),
        }
    }

    fn create_snapshot(&mut self, request: model::SnapshotCreate) -> Result<(), ControlError> {
        let (what, provisional) = (request.snapshot_type, request.provisional);
        let files = request.files();
        let machine = self.machine()?;
        let mut machine = machine.borrow_mut();
        if !machine.is_paused() {
            return Err(ControlError::not_paused());
        }
        // A vCPU that waits for memory is in the guest.
        if let Some(reason) = held(&machine) {
            return Err(ControlError::unavailable("save the VM", reason));
        }
        let spec = snapshots::as_it_is(&machine, &self.spec, machine.has_mte());
        let checked = spec.check_snapshot(&files);
        checked.map_err(|error| ControlError::refused(chain(&error)))?;
        let snapshot = snapshots::save(&mut machine, &spec, &files, what)?;
        if !provisional {
            confirm(&mut machine, snapshot)?;
        }
        let path = files.state.to_string_lossy();
        machine.log().publish(&Event::Saved { path: (&*path).into() });
        self.provisional = provisional.then_some((files.state, snapshot));
        Ok(())
    }

    fn confirm_snapshot(&mut self, request: model::SnapshotConfirm) -> Result<(), ControlError> {
        let machine = self.machine()?;
        let mut machine = machine.borrow_mut();
        let last = self.provisional.take_if(|(path, _)| *path == request.snapshot_path);
        let (_, snapshot) =
            last.ok_or_else(|| ControlError::refused(NotProvisional.to_string()))?;
        confirm(&mut machine, snapshot)
    }

    fn load_snapshot(&mut self, _: model::SnapshotLoad) -> Result<(), ControlError> {
        Err(ControlError::after_start())
    }

    fn press_power_key(&mut self) -> Result<(), ControlError> {
        let machine = self.machine()?;
        let machine = machine.borrow();
        if machine.is_paused() {
            return Err(ControlError::refused(
                "the VM is paused, so its guest cannot hear the power key: resume it first",
            ));
        }
        if machine.set_power_key(true) {
            let started = self.key.start();
            return started.map_err(|error| ControlError::failed("let go of the power key", error));
        }
        machine.set_power_key(false);
        Err(ControlError::refused(
            "the guest does not listen to its power key: it has no driver for it, or has not started it yet; \
             Stop ends the VM without asking the guest",
        ))
    }

    fn stop(&mut self) -> Result<(), ControlError> {
        self.shutdown.with(ExitReason::Stopped);
        Ok(())
    }
}

/// Shows a list of a configuration, if it has that, as it is now.
fn refresh(config: &mut Value, list: &str, sections: impl Iterator<Item = impl Serialize>) {
    if let Some(list) = config.get_mut(list) {
        *list = serde_json::to_value(sections.collect::<Vec<_>>()).unwrap_or_default();
    }
}

fn confirm(machine: &mut Machine, snapshot: SnapshotId) -> Result<(), ControlError> {
    machine.confirm(snapshot).map_err(|error| ControlError::refused(error.to_string()))
}

/// Why a disk has no other file.
fn not_replaced(disk: &DiskSpec, path: &Path, error: &block::Error) -> ControlError {
    let file_use = if disk.read_only { FileUse::Read } else { FileUse::Write };
    let reason = chain(error);
    ControlError::refused(match error.is_denied() && sandbox::forbids(path, file_use) {
        true => format!(
            "{reason}: a VM opens files in the folders of the disks that it was started with, where these are no places \
             of others, and in those that were named: start it with --allow DIR, or with --sandbox off"
        ),
        false => reason,
    })
}

/// What becomes of limits.
fn limits(section: Option<model::RateLimiterSection>) -> Result<RateLimiterChange, ControlError> {
    let change = RateLimiterChange::new(section.unwrap_or_default());
    change.map_err(|error| ControlError::refused(error.to_string()))
}

/// Why the guest does not run although no client has paused it.
fn held(machine: &Machine) -> Option<&str> {
    machine.pause_reason(PauseReason::TagStorage).filter(|_| machine.is_paused())
}
