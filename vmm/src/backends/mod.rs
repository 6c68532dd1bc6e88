//! The host's side of devices.

pub mod balloon;
pub mod block;
pub(crate) mod clock;
#[cfg(test)]
mod driver;
pub(crate) mod entropy;
pub mod gate;
mod lookout;
pub mod net;
pub mod queues;
pub mod rate_limiter;
pub mod reporting;
pub mod vsock;
pub mod worker;
