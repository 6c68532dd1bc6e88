//! System calls without policy.

pub(crate) mod child;
pub(crate) mod gpio;
pub(crate) mod ntp;
pub(crate) mod vsock;
