//! A device as the machine holds it, whatever its kind.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use devices::state::{RestoreError, Stateful};
use serde_json::Value;
use thiserror::Error;

use crate::snapshot::DeviceState;

/// Why the state of a device cannot be saved or restored.
#[derive(Debug, Error)]
pub enum StateError {
    /// It cannot be written, or is not of the form that the device writes.
    #[error("the state of the {device} cannot be used")]
    Form {
        /// Which device.
        device: Arc<str>,
        /// What is wrong.
        #[source]
        source: postcard::Error,
    },
    /// No such device can be in it.
    #[error("the state of the {device} does not fit")]
    Restore {
        /// Which device.
        device: Arc<str>,
        /// Why.
        #[source]
        source: RestoreError,
    },
    /// There is no state of the device.
    #[error("there is no state of the {device}")]
    Missing {
        /// Which device.
        device: Arc<str>,
    },
}

/// A device of the machine. Metrics, pauses and saved states need no more of it than this.
///
/// The life cycle of a saved state is that of [`devices::state`].
pub trait Attached {
    /// Its name, which is its key in metrics and in saved states.
    fn name(&self) -> &str;

    /// Its counters, each with its unit at the end of its name, if it has any.
    fn metrics(&self) -> Option<Value>;

    /// Has it start no further work; whether none is in flight.
    fn quiesce(&self) -> bool;

    /// Its state.
    ///
    /// # Errors
    /// When the state has no such form.
    fn save(&self) -> Result<DeviceState, StateError>;

    /// Takes a state over.
    ///
    /// # Errors
    /// When the device cannot be in that state.
    fn restore(&self, state: &DeviceState) -> Result<(), StateError>;
}

/// Reads the counters of a device.
pub(super) type Metrics = Box<dyn Fn() -> Value>;

/// A device model that others hold as well: the bus, the event loop.
pub(super) struct Model<D> {
    pub(super) name: Arc<str>,
    pub(super) device: Arc<Mutex<D>>,
    pub(super) metrics: Option<Metrics>,
}

impl<D> Model<D> {
    fn lock(&self) -> MutexGuard<'_, D> {
        self.device.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<D: Stateful> Attached for Model<D> {
    fn name(&self) -> &str {
        &self.name
    }

    fn metrics(&self) -> Option<Value> {
        self.metrics.as_ref().map(|read| read())
    }

    fn quiesce(&self) -> bool {
        self.lock().quiesce()
    }

    fn save(&self) -> Result<DeviceState, StateError> {
        let state = self.lock().save();
        DeviceState::encode(&state)
            .map_err(|source| StateError::Form { device: Arc::clone(&self.name), source })
    }

    fn restore(&self, state: &DeviceState) -> Result<(), StateError> {
        let device = || Arc::clone(&self.name);
        let state =
            state.decode().map_err(|source| StateError::Form { device: device(), source })?;
        self.lock()
            .restore(state)
            .map_err(|source| StateError::Restore { device: device(), source })
    }
}
