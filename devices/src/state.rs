//! Saved state of device models.
//!
//! # Life cycle
//! 1. [`Stateful::quiesce`], until it says that nothing is in flight.
//! 2. [`Stateful::save`], with the vCPUs out of the guest and no queue being served.
//! 3. In another process, [`Stateful::restore`] on a new model of the same configuration, before the vCPUs
//!    run. The memory of the guest is there already.
//!
//! Counters are figures of the process and start at zero again.

use serde::Serialize;
use serde::de::DeserializeOwned;
use thiserror::Error;

/// Why a saved state cannot be restored.
#[derive(Clone, Debug, Error, Eq, PartialEq)]
#[non_exhaustive]
pub enum RestoreError {
    /// No device of this kind is ever in such a state.
    #[error("the saved state is damaged, as {field} {problem}: restore from another snapshot")]
    Damaged {
        /// What is wrong.
        field: &'static str,
        /// How.
        problem: &'static str,
    },
    /// The state is of a device that was configured in another way.
    #[error(
        "the saved state is of another configuration, as {field} {problem}: restore with the \
         configuration that the snapshot was taken with"
    )]
    Configuration {
        /// What does not fit.
        field: &'static str,
        /// How.
        problem: &'static str,
    },
}

impl RestoreError {
    pub(crate) const fn damaged(field: &'static str, problem: &'static str) -> Self {
        Self::Damaged { field, problem }
    }

    pub(crate) const fn configuration(field: &'static str, problem: &'static str) -> Self {
        Self::Configuration { field, problem }
    }
}

/// `Ok` if a saved field is valid.
pub(crate) fn check(
    valid: bool,
    field: &'static str,
    problem: &'static str,
) -> Result<(), RestoreError> {
    if valid { Ok(()) } else { Err(RestoreError::damaged(field, problem)) }
}

/// A model whose state can be saved and restored.
pub trait Stateful {
    /// The state: what a guest can observe, without what the configuration gives. A file that holds it is
    /// not trusted.
    type State: Serialize + DeserializeOwned;

    /// Starts no further work of its own, and returns whether none is in flight. The caller asks again
    /// until that is so. The model goes back to work with the next access or turn of a queue.
    ///
    /// A model whose work is done when a method returns has nothing in flight.
    fn quiesce(&mut self) -> bool {
        true
    }

    /// The state now.
    fn save(&self) -> Self::State;

    /// Takes a state over.
    ///
    /// # Errors
    /// When no model of this configuration can be in that state. Then it has been reset, or is as before.
    fn restore(&mut self, state: Self::State) -> Result<(), RestoreError>;
}
