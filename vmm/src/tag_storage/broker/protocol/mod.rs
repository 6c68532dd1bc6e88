//! The messages between a VM and the broker.

#[cfg(any(test, fuzzing))]
pub(crate) mod fuzz;
pub(crate) mod limits;
pub(crate) mod refusal;
pub(crate) mod report;
pub(crate) mod wire;
