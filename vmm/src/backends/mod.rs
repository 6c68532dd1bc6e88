//! The host's side of devices.

pub mod balloon;
pub mod clock;
pub mod entropy;
pub mod queues;
pub mod reporting;
