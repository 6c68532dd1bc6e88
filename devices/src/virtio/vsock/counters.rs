//! What a socket device has done so far.

use std::sync::atomic::{AtomicU64, Ordering};

/// The figures of a socket device. Readable at any time, by any thread. All but
/// [`connections`](Self::connections) only grow.
#[derive(Debug, Default)]
pub struct Counters {
    /// Connections there are, those that are being made among them.
    pub connections: AtomicU64,
    /// Connections from the host that the guest has accepted.
    pub from_host: AtomicU64,
    /// Connections from the guest that the host has accepted.
    pub from_guest: AtomicU64,
    /// Connections that either side has refused, or that found no place.
    pub refused: AtomicU64,
    /// Bytes of data for the guest.
    pub to_guest: AtomicU64,
    /// Bytes of data from the guest.
    pub to_host: AtomicU64,
    /// Connections that have been ended for a fault or a timeout.
    pub resets: AtomicU64,
    /// Packets of the driver that have been dropped.
    pub dropped: AtomicU64,
}

/// Adds to a counter.
pub(super) fn count(counter: &AtomicU64, by: u64) {
    counter.fetch_add(by, Ordering::Relaxed);
}
