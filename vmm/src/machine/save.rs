//! The state of a machine, saved and restored.
//!
//! # Order
//! Devices come first: one that finishes its work raises an interrupt, which is the vCPUs' and the interrupt
//! controller's from then on. Memory is last, by the caller: nothing of what is here changes it. Restored, it is the
//! other way round, and the counter is set when the vCPUs first run.

use std::thread::sleep;
use std::time::{Duration, Instant, SystemTime};

use arch::units::Bytes;
use thiserror::Error;

use super::devices::{DeviceSet, StateError};
use super::{Error, Machine, generation, lazy};
use crate::config::ClockMode;
use crate::hypervisor::state::{ClockState, GicState, VcpuState};
use crate::hypervisor::{self, Vcpus, Vm};
use crate::snapshot::DeviceStates;
use crate::vcpu;

/// How long a save waits for what devices have under way: as long as a slow disk may take before its guest resets it
/// (30 s in Linux), and the client of the control socket waits meanwhile.
const QUIESCE_PATIENCE: Duration = Duration::from_secs(10);

/// How long to wait before devices are asked again.
const QUIESCE_STEP: Duration = Duration::from_millis(1);

/// All of a machine but its memory.
#[derive(Clone, Debug)]
pub struct MachineState {
    /// The vCPUs, by index.
    pub vcpus: Vec<VcpuState>,
    /// The interrupt controller.
    pub gic: GicState,
    /// The counter.
    pub clock: ClockState,
    /// The devices, by name.
    pub devices: DeviceStates,
    /// Whether the guest has MTE.
    pub mte: bool,
    /// The size of the guest's pages.
    pub guest_page: Bytes,
}

/// Why the state of a machine cannot be saved.
#[derive(Debug, Error)]
pub enum SaveStateError {
    /// The guest runs.
    #[error("the guest runs: pause the VM first")]
    Running,
    /// A device does not come to rest.
    #[error(
        "a device still waits for the host after {} s, which may be a slow disk: try again when it has answered",
        QUIESCE_PATIENCE.as_secs()
    )]
    Busy,
    /// A vCPU cannot be saved.
    #[error(transparent)]
    Vcpu(#[from] vcpu::Error),
    /// The interrupt controller cannot be saved.
    #[error(transparent)]
    Gic(#[from] hypervisor::Error),
    /// What it was restored from cannot be loaded.
    #[error("the rest of the snapshot that the VM was restored from cannot be loaded")]
    Lazy(#[from] lazy::Error),
    /// A device cannot be saved.
    #[error(transparent)]
    Device(#[from] StateError),
}

impl SaveStateError {
    /// Whether the machine may be saved later: what it waits for may come.
    pub(crate) fn may_pass(&self) -> bool {
        matches!(
            self,
            Self::Busy
                | Self::Vcpu(vcpu::Error::Inside { .. })
                | Self::Lazy(lazy::Error::NoTagStorage { .. })
        )
    }
}

impl Machine {
    /// The state of the machine, which is paused. Until it is resumed nothing changes guest memory.
    ///
    /// # Errors
    /// When the guest runs, a device or a vCPU does not come to rest, or the hypervisor does not give a state. The
    /// machine is as before.
    pub fn save(&self) -> Result<MachineState, SaveStateError> {
        if !self.is_paused() || self.is_unsettled() {
            return Err(SaveStateError::Running);
        }
        self.quiesce_devices()?;
        let devices = self.devices.save()?;
        let vcpus = self.vcpus.save()?;
        let gic = self.vm.save_gic()?;
        let clock = ClockState {
            counter: self.vcpus.counter()?,
            frequency: self.vm.counter_frequency(),
            realtime_ns: realtime_ns(),
        };
        Ok(MachineState { vcpus, gic, clock, devices, mte: self.mte, guest_page: self.guest_page })
    }

    fn quiesce_devices(&self) -> Result<(), SaveStateError> {
        let deadline = Instant::now() + QUIESCE_PATIENCE;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            if self.gate.drain(left) && self.devices.quiesce() {
                return Ok(());
            }
            if left.is_zero() {
                return Err(SaveStateError::Busy);
            }
            sleep(QUIESCE_STEP);
        }
    }
}

/// Gives a new machine, whose memory is restored, a state; returns the counter that its guest is to start with.
pub(super) fn restore(
    vm: &dyn Vm,
    mode: ClockMode,
    cpus: &mut Vcpus,
    devices: &DeviceSet,
    state: MachineState,
) -> Result<u64, Error> {
    let MachineState { vcpus, gic, clock, devices: states, .. } = state;
    let here = vm.counter_frequency();
    if clock.frequency != here {
        return Err(Error::CounterFrequency { saved: clock.frequency, here });
    }
    if vcpus.len() != cpus.vcpus.len() {
        return Err(Error::SavedVcpus { saved: vcpus.len(), vcpus: cpus.vcpus.len() });
    }
    for (vcpu, state) in cpus.vcpus.iter_mut().zip(&vcpus) {
        vcpu.restore(state).map_err(hypervisor::Error::from)?;
    }
    vm.restore_gic(&gic)?;
    generation::announce(vm)?;
    devices.restore(&states)?;
    Ok(match mode {
        ClockMode::Stop => clock.counter,
        ClockMode::Advance => clock.counter.wrapping_add(ticks_since(clock)),
    })
}

/// By how much the counter would have advanced since it was saved; not at all if the host's clock has been set back.
fn ticks_since(clock: ClockState) -> u64 {
    let passed = realtime_ns().saturating_sub(clock.realtime_ns);
    let ticks = u128::from(passed) * u128::from(clock.frequency) / 1_000_000_000;
    u64::try_from(ticks).unwrap_or(u64::MAX)
}

fn realtime_ns() -> u64 {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_nanos()).unwrap_or(u64::MAX)
}
