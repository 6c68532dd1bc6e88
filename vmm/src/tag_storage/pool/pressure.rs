//! Leases that wait for chunks: which of them come next, what they lack together, and who could give it.

use std::sync::atomic::Ordering;
use std::time::Instant;

use super::{Guard, LeaseId, Pool};

/// What the leases that wait lack, and who could give it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Pressure {
    /// Chunks that are lacking beside those that are free.
    pub lacking: u32,
    /// Leases that can give something.
    pub can_give: Vec<CanGive>,
}

/// A lease that can give. One that does not wait can do without what is above its minimum. One that waits needs what
/// it has, and gives what is above its entitlement where others lack what they are entitled to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct CanGive {
    pub lease: LeaseId,
    /// How much.
    pub chunks: u32,
    /// What it holds.
    pub held: u32,
}

impl Pool {
    /// Whether any lease waits.
    pub(crate) fn has_waiters(&self) -> bool {
        self.waiting_leases.load(Ordering::Relaxed) > 0
    }

    /// A lease whose request for so many chunks failed for lack waits for them: until it has them, is closed, or
    /// has not asked again for a while.
    pub fn wait_for(&self, lease: LeaseId, chunks: u32, now: Instant) {
        let mut state = self.lock();
        state.start_wait(lease, chunks, now);
        self.count_waiters(&state);
    }

    /// Forgets leases that wait and have not asked again for too long.
    pub fn expire_waiters(&self, now: Instant) {
        if self.has_waiters() {
            let mut state = self.lock();
            state.waiters.expire(now);
            self.count_waiters(&state);
        }
    }

    /// As [`expire_waiters`](Self::expire_waiters) at this moment, without a look at the clock where no lease
    /// waits.
    pub(crate) fn expire_waiters_now(&self) {
        if self.has_waiters() {
            self.expire_waiters(Instant::now());
        }
    }

    /// Leases that wait and for which there is enough now, the first first, at most `most`.
    pub fn next_waiters(&self, most: usize) -> Vec<LeaseId> {
        match self.has_waiters() {
            true => self.lock().next_waiters(most),
            false => Vec::new(),
        }
    }

    /// What is lacking and who could give it.
    pub(crate) fn pressure(&self) -> Pressure {
        self.lock().pressure()
    }

    /// Whether a lease can give something to those that wait.
    pub(crate) fn can_give(&self, lease: LeaseId) -> bool {
        self.lock().can_give(lease) > 0
    }

    /// For how many chunks a lease can reserve before they are used, and leave plenty for all others.
    pub(crate) fn headroom(&self, lease: LeaseId) -> u32 {
        if self.has_waiters() { 0 } else { self.lock().headroom(lease) }
    }

    pub(super) fn count_waiters(&self, state: &Guard<'_>) {
        self.waiting_leases.store(state.waiters.len(), Ordering::Relaxed);
    }
}
