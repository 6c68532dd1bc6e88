//! What a balloon has done so far.

use std::sync::atomic::{AtomicU64, Ordering};

/// The figures of a balloon, in bytes where nothing else is said. Readable at any time, by any
/// thread. All but [`inflated`](Counters::inflated) only grow, and no reset takes them back.
#[derive(Debug, Default)]
pub struct Counters {
    /// Guest memory in reports of free pages. A page that is reported again counts again.
    pub reported: AtomicU64,
    /// Guest memory given back to the host, reported or inflated.
    pub discarded: AtomicU64,
    /// Guest memory that the host refused to take back.
    pub failed: AtomicU64,
    /// Reported memory that was kept because the guest fills its free pages with a value other than
    /// zero.
    pub poison_skipped: AtomicU64,
    /// Reported memory that was kept because reporting was switched off.
    pub kept: AtomicU64,
    /// Guest memory in the balloon now.
    pub inflated: AtomicU64,
    /// What the driver named that is not guest memory, and was ignored.
    pub outside: AtomicU64,
    /// Chains of reported pages, a number.
    pub reports: AtomicU64,
    /// Sets of statistics that the driver has sent, a number.
    pub statistics: AtomicU64,
}

/// Adds to a counter.
pub(super) fn count(counter: &AtomicU64, by: u64) {
    counter.fetch_add(by, Ordering::Relaxed);
}
