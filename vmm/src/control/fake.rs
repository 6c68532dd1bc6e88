//! A VM that is not there, for tests of the control socket.

use serde_json::{Value, json};

use super::model::{InstanceInfo, State};
use super::{ControlError, Controller};

/// What the fake was told to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Call {
    Pause,
    Resume,
    PressPowerKey,
    Stop,
}

/// Obeys, remembers, and refuses the power key when nobody listens to it.
#[derive(Debug)]
pub(crate) struct FakeVm {
    pub(crate) state: State,
    pub(crate) listens: bool,
    pub(crate) metrics: Value,
    pub(crate) calls: Vec<Call>,
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
            calls: Vec::new(),
        }
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
        })
    }

    fn machine_config(&self) -> Value {
        json!({
            "vcpu_count": 2,
            "mem_size_mib": 512,
            "smt": false,
            "track_dirty_pages": false,
            "huge_pages": "Transparent",
        })
    }

    fn metrics(&self) -> Value {
        self.metrics.clone()
    }

    fn pause(&mut self) -> Result<(), ControlError> {
        self.calls.push(Call::Pause);
        self.state = State::Paused;
        Ok(())
    }

    fn resume(&mut self) -> Result<(), ControlError> {
        self.calls.push(Call::Resume);
        self.state = State::Running;
        Ok(())
    }

    fn press_power_key(&mut self) -> Result<(), ControlError> {
        self.calls.push(Call::PressPowerKey);
        match self.listens {
            true => Ok(()),
            false => Err(ControlError::refused("the guest does not listen; use Stop")),
        }
    }

    fn stop(&mut self) -> Result<(), ControlError> {
        self.calls.push(Call::Stop);
        Ok(())
    }
}
