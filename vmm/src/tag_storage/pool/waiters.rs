//! The leases that wait for chunks, and which of them comes first.
//!
//! A lease waits from a request that failed for lack until one succeeds. While it waits it must ask again from
//! time to time: one that has not asked for [`FORGET_AFTER`] is stopped or gone, and keeps nothing from others.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use super::share::Rank;

/// How long a lease waits without asking again. A fault thread asks ten times a second, a VM that comes back to
/// a broker every two seconds.
pub(crate) const FORGET_AFTER: Duration = Duration::from_secs(3);

#[derive(Debug)]
struct Waiter {
    arrival: u64,
    asked: Instant,
    /// Chunks of its last request; none while it is being served.
    chunks: u32,
}

/// All leases that wait, by their index: at most as many as there are leases.
#[derive(Debug, Default)]
pub(crate) struct Waiters {
    entries: BTreeMap<u32, Waiter>,
    arrivals: u64,
}

/// A lease that waits, and where it stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Standing {
    pub index: u32,
    pub rank: Rank,
    pub chunks: u32,
}

impl Waiters {
    pub(crate) fn len(&self) -> usize {
        self.entries.len()
    }

    /// The lease at this index waits for so many chunks. It keeps its arrival for as long as it waits.
    pub(crate) fn join(&mut self, index: u32, chunks: u32, now: Instant) {
        let arrival = self.arrivals;
        let waiter = self.entries.entry(index).or_insert(Waiter { arrival, asked: now, chunks });
        self.arrivals += u64::from(waiter.arrival == arrival);
        (waiter.asked, waiter.chunks) = (now, chunks);
    }

    /// The lease was promised what it waits for: nothing is kept for it beside the promise.
    pub(crate) fn promised(&mut self, index: u32) {
        if let Some(waiter) = self.entries.get_mut(&index) {
            waiter.chunks = 0;
        }
    }

    /// The lease has what it waited for, or is closed.
    pub(crate) fn leave(&mut self, index: u32) {
        self.entries.remove(&index);
    }

    /// Forgets leases that have not asked for too long.
    pub(crate) fn expire(&mut self, now: Instant) {
        self.entries.retain(|_, waiter| now.saturating_duration_since(waiter.asked) < FORGET_AFTER);
    }

    /// Whether this lease waits.
    pub(crate) fn contains(&self, index: u32) -> bool {
        self.entries.contains_key(&index)
    }

    /// The rank of a lease at this distance: where it stands already, or behind all others at that distance.
    pub(crate) fn rank(&self, index: u32, distance: i64) -> Rank {
        let arrival = self.entries.get(&index).map_or(self.arrivals, |waiter| waiter.arrival);
        Rank::new(distance, arrival)
    }

    /// All that wait; `distance` is that of the lease at an index.
    pub(crate) fn standings(
        &self,
        distance: impl Fn(u32) -> i64,
    ) -> impl Iterator<Item = Standing> {
        self.entries.iter().map(move |(index, waiter)| Standing {
            index: *index,
            rank: Rank::new(distance(*index), waiter.arrival),
            chunks: waiter.chunks,
        })
    }
}
