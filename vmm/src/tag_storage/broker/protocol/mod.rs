//! The messages between a VM and the broker.

pub(crate) mod limits;
pub(crate) mod refusal;
pub(crate) mod report;
pub(crate) mod wire;
