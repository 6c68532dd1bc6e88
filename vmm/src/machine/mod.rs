//! The machine: a VM with its devices and vCPUs, put together in one order.

mod board;
mod boot;
mod contents;
mod devices;
mod error;
mod generation;
mod lazy;
mod metrics;
mod run_state;
mod save;
mod tracking;

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use ::devices::serial::Serial;
use arch::layout;
use arch::units::Bytes;
use event_manager::MutEventSubscriber;

use crate::backends::gate::QueueGate;
use crate::backends::{balloon, block, net};
use crate::config::ClockMode;
use crate::console::{Output, Quiesce};
use crate::events::EventLog;
use crate::hypervisor::Vm;
use crate::memory::{DiscardHooks, GuestRam, NoHooks, Reclaimer, footprint};
use crate::metrics::VcpuCounters;
use crate::spec::{DiskSpec, NetSpec, Spec};
use crate::tag_storage::broker::Client;
use crate::tag_storage::{BorrowerLease, TagReservation};
use crate::template::Connection;
use crate::vcpu::{self, Hold, Services, VcpuExit, VcpuSet};
use board::Origin;
pub(crate) use board::{Board, Mte, SavedMemory};
pub(crate) use contents::{Destination, PausedMemory};
pub use devices::{Attached, DeviceSet, StateError};
pub use error::Error;
use lazy::LazyMemory;
pub(crate) use run_state::PauseReason;
use run_state::{Change, RunState};
pub use save::{MachineState, SaveStateError};
use tracking::Tracking;
pub use tracking::{NoBase, NotProvisional};

// The device tree and the model must mean the same line.
const _: () = assert!(arch::fdt::POWER_KEY_LINE == ::devices::gpio::POWER_KEY_LINE as u32);

/// How long a pause waits for what devices have under way: far longer than that usually takes, and less than a
/// client notices.
const DRAIN_PATIENCE: Duration = Duration::from_millis(10);

/// A VM with its devices and vCPU threads. Dropped, it ends.
pub struct Machine {
    // Field order is drop order: the threads end before what they use, and guest memory goes last.
    vcpus: VcpuSet,
    devices: DeviceSet,
    footprint: footprint::Meter,
    vm: Box<dyn Vm>,
    run: RunState,
    log: EventLog,
    counters: Arc<VcpuCounters>,
    quiesce: Quiesce,
    /// Open while the guest runs.
    gate: QueueGate,
    tags: Option<TagReservation>,
    placement: Option<BorrowerLease>,
    /// It ends after vCPUs and devices: what one of them waits for is loaded, and not read as zeroes.
    lazy: Option<LazyMemory>,
    /// With the process that holds the template of its memory, if it is a clone, or its boot image.
    _holder: Option<Connection>,
    /// Whether it was booted, and not restored.
    is_booted: bool,
    mte: bool,
    guest_page: Bytes,
    tracking: Option<Tracking>,
}

impl Machine {
    /// Gives a board its devices, describes them to the guest, and starts the threads of the vCPUs. They
    /// do not enter the guest before [`Machine::resume`].
    ///
    /// # Errors
    /// When the host runs out of something.
    pub fn new(
        board: Board,
        spec: &Spec,
        console: Output,
        quiesce: Quiesce,
        log: EventLog,
    ) -> Result<Self, Error> {
        let Board { mut vm, mut cpus, caches, origin, mte, tags, placement, base } = board;
        generation::renew(&mut *vm)?;
        let throttle = console.throttle();
        let gate = QueueGate::default();
        let lazy = match &origin {
            Origin::Saved { lazy, .. } => lazy.as_ref(),
            Origin::Kernel { .. } => None,
        };
        let is_booted = matches!(origin, Origin::Kernel { .. });
        let hold = Hold::default();
        let reclaimer = || {
            let hooks = tags.as_ref().map(TagReservation::discard_hooks);
            let hooks: Box<dyn DiscardHooks> = hooks.unwrap_or(Box::new(NoHooks));
            let hooks = match lazy {
                Some(lazy) => lazy.discard_hooks(hooks),
                None => hooks,
            };
            (Reclaimer::new(vm.ram().clone(), hooks), hold.clone())
        };
        let (devices, plugged) = DeviceSet::new(
            &*vm,
            spec,
            &gate,
            log.clone(),
            console,
            reclaimer,
            origin.guest_page(),
        )?;
        let guest_page = origin.guest_page();
        let (counter, lazy, holder) = match origin {
            Origin::Kernel { loaded, holder } => {
                boot::prepare(&*vm, spec, &mut cpus, caches.as_ref(), &loaded, &plugged.nodes)?;
                (None, None, holder)
            }
            Origin::Saved { state, lazy, holder } => {
                let counter = save::restore(&*vm, spec.clock, &mut cpus, &devices, *state)?;
                if let Some(tags) = tags.as_ref().filter(|_| lazy.is_some()) {
                    tags.finish_loading()?;
                }
                (Some(counter), lazy, holder)
            }
        };
        let counters = Arc::new(VcpuCounters::default());
        let services = Services::new(plugged.bus, throttle, Arc::clone(&counters));
        let mut vcpus = VcpuSet::spawn(cpus.vcpus, &Arc::new(services))?;
        vcpus.give_to(&hold);
        match spec.clock {
            ClockMode::Stop => {}
            ClockMode::Advance => vcpus.keep_counter_advancing(),
        }
        if let Some(lazy) = &lazy {
            let end = vcpus.ender();
            lazy.on_failure(move |failure| end(VcpuExit::MemoryLost(failure)));
        }
        if let Some(counter) = counter {
            vcpus.start_counter_at(counter)?;
        }
        let run = RunState::new();
        let footprint = footprint::Meter::new(vm.ram());
        Ok(Self {
            vcpus,
            devices,
            footprint,
            vm,
            run,
            log,
            counters,
            quiesce,
            gate,
            tags,
            placement,
            lazy,
            _holder: holder,
            is_booted,
            mte: mte == Mte::On,
            guest_page,
            tracking: spec.track_dirty_pages.then(|| Tracking::since(base)),
        })
    }

    /// The devices.
    pub fn devices(&self) -> &DeviceSet {
        &self.devices
    }

    /// What serves the devices on the host's side, for the event loop. It comes once.
    pub fn take_device_events(&mut self) -> Vec<Box<dyn MutEventSubscriber>> {
        std::mem::take(&mut self.devices.events)
    }

    /// What has happened to it.
    pub fn log(&self) -> &EventLog {
        &self.log
    }

    /// The balloon, if there is one.
    pub fn balloon(&self) -> Option<&balloon::Control> {
        self.devices.balloon.as_ref()
    }

    /// The disk of this name.
    pub fn disk_mut(&mut self, id: &str) -> Option<&mut block::Control> {
        self.devices.disks.iter_mut().find(|disk| disk.id() == id)
    }

    /// The network interface of this name.
    pub fn network_interface_mut(&mut self, id: &str) -> Option<&mut net::Control> {
        self.devices.net.iter_mut().find(|net| net.spec().id == id)
    }

    /// The network interfaces as they are now.
    pub fn network_interfaces(&self) -> impl Iterator<Item = &NetSpec> {
        self.devices.net.iter().map(net::Control::spec)
    }

    /// The disks as they are now.
    pub fn disks(&self) -> impl Iterator<Item = &DiskSpec> {
        self.devices.disks.iter().map(block::Control::spec)
    }

    /// The serial port, for its input.
    pub fn serial(&self) -> Arc<Mutex<Serial>> {
        Arc::clone(&self.devices.serial)
    }

    /// Moves the power key; says whether the guest listens to it.
    pub fn set_power_key(&self, pressed: bool) -> bool {
        let gpio = self.devices.gpio.lock();
        gpio.unwrap_or_else(PoisonError::into_inner).set_power_key(pressed)
    }

    /// Whether the guest has MTE.
    pub fn has_mte(&self) -> bool {
        self.mte
    }

    /// Guest memory.
    pub fn ram(&self) -> &GuestRam {
        self.vm.ram()
    }

    /// Measures how much of the host the guest takes.
    pub fn footprint(&self) -> &footprint::Meter {
        &self.footprint
    }

    /// The vCPUs, for the event that says one of them has ended the VM.
    pub fn vcpus(&self) -> &VcpuSet {
        &self.vcpus
    }

    /// The VM's tag storage, if any is reserved.
    pub fn tag_storage(&self) -> Option<&TagReservation> {
        self.tags.as_ref()
    }

    /// Where memory without tags may be beside tag storage, if there is a broker.
    pub fn placement(&self) -> Option<&BorrowerLease> {
        self.placement.as_ref()
    }

    /// The broker of tag storage, if there is one.
    pub fn broker(&self) -> Option<&Arc<Client>> {
        let own = self.tags.as_ref().and_then(TagReservation::broker);
        own.or_else(|| self.placement.as_ref().map(BorrowerLease::broker))
    }

    /// Asks the guest for the memory of so many chunks beyond what it has given, as others need tag storage.
    /// What the user asks of the balloon stays as it is.
    pub fn request_reclaim(&self, chunks: u64) {
        // Nothing else frees tag storage as memory goes back.
        let frees = self.tags.as_ref().is_some_and(TagReservation::is_on_demand);
        if let Some(balloon) = self.balloon().filter(|_| frees) {
            balloon.request_reclaim(Bytes::new(chunks.saturating_mul(layout::CHUNK.get())));
        }
    }

    /// Ends what [`request_reclaim`](Self::request_reclaim) asked for.
    pub fn cancel_reclaim(&self) {
        if let Some(balloon) = self.balloon() {
            balloon.cancel_reclaim();
        }
    }

    /// Whether the vCPUs are out of the guest, or wait in it for tag storage.
    pub fn is_paused(&self) -> bool {
        !self.run.is_running()
    }

    /// The text of a reason for which the guest does not run, if that is one.
    pub fn pause_reason(&self, reason: PauseReason) -> Option<&str> {
        self.run.reason(reason)
    }

    /// Stops the guest and its clock by request; pending MMIO is finished first. No queue is served until
    /// [`Machine::resume`]. What a slow disk has under way may still reach guest memory
    /// ([`DeviceSet::quiesce`]).
    ///
    /// # Errors
    /// When a vCPU does not leave the guest: then the guest runs, unless there is another reason.
    pub fn pause(&mut self) -> Result<(), vcpu::Error> {
        self.run.pause_for(PauseReason::Request, "");
        let settled = self.settle();
        if settled.is_err() {
            self.run.release(PauseReason::Request);
        }
        settled
    }

    /// Takes the request back. The guest runs, its clock where it stopped, once there is no other reason.
    ///
    /// # Errors
    /// When its clock cannot be set: then it stays paused, and may be resumed again.
    pub fn resume(&mut self) -> Result<(), vcpu::Error> {
        self.release_pause(PauseReason::Request)
    }

    /// Stops the guest for a reason of the VMM's own, until it is [released](Self::release_pause).
    ///
    /// # Errors
    /// When a vCPU does not leave the guest. The reason holds: [`Machine::settle`] tries again.
    pub fn pause_for(&mut self, reason: PauseReason, text: &str) -> Result<(), vcpu::Error> {
        self.run.pause_for(reason, text);
        self.settle()
    }

    /// Takes a reason back, and lets the guest run if it was the last.
    ///
    /// # Errors
    /// When the clock of the guest cannot be set: it stays paused until [`Machine::settle`] succeeds.
    pub fn release_pause(&mut self, reason: PauseReason) -> Result<(), vcpu::Error> {
        self.run.release(reason);
        self.settle()
    }

    /// Whether a pause or its end has failed and is to be tried again.
    pub fn is_unsettled(&self) -> bool {
        self.run.pending().is_some()
    }

    /// Pauses the guest or lets it run, as the reasons have it. Nothing happens if that is so already.
    ///
    /// # Errors
    /// As for [`pause`](Self::pause) and [`resume`](Self::resume).
    pub fn settle(&mut self) -> Result<(), vcpu::Error> {
        let Some(change) = self.run.pending() else { return Ok(()) };
        match change {
            Change::Quiesce => self.quiesce()?,
            Change::Unquiesce => self.unquiesce()?,
        }
        self.log.publish(&self.run.done(change));
        Ok(())
    }

    fn quiesce(&mut self) -> Result<(), vcpu::Error> {
        self.quiesce.set(true);
        let tags = self.tags.as_ref();
        let waits = |thread| tags.is_some_and(|tags| tags.is_waiting(thread));
        let reads = || self.lazy.as_ref().is_some_and(LazyMemory::is_reading);
        let paused = self.vcpus.pause_excusing(waits).map_err(|error| match error {
            vcpu::Error::Stuck { vcpu } if reads() => vcpu::Error::Loading { vcpu },
            error => error,
        });
        match paused {
            Ok(()) => {
                self.gate.close();
                // A disk that is slow, or a buffer that waits for tag storage, must not hold up the caller: what
                // needs memory that does not change asks the devices whether they are quiet.
                let _ = self.gate.drain(DRAIN_PATIENCE);
            }
            Err(_) => self.quiesce.set(false),
        }
        paused
    }

    fn unquiesce(&mut self) -> Result<(), vcpu::Error> {
        self.quiesce.set(false);
        let resumed = self.vcpus.resume();
        match resumed {
            Ok(()) => self.gate.open(),
            Err(_) => self.quiesce.set(true),
        }
        resumed
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        // No vCPU may wait for the reader of a console while its thread is joined.
        self.quiesce.set(true);
        // No device may begin anything: its worker ends after the vCPUs.
        self.gate.close();
        // Nor may one wait for tag storage: it would not leave the guest.
        self.vcpus.finish();
        // Nor for a disk of the host that hangs, in a reset of the device.
        self.devices.disks.iter().for_each(block::Control::abandon);
        if let Some(tags) = &mut self.tags {
            tags.stop();
        }
    }
}

#[cfg(test)]
pub(crate) mod testing;
#[cfg(test)]
mod tests;
