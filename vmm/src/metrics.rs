//! Counters: made in one place, handed to the code that counts, read by the control socket. None is global.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use rustix::time::{ClockId, clock_gettime};
use serde_json::{Value, json};

/// A number that only grows.
#[derive(Debug, Default)]
pub struct Counter(AtomicU64);

impl Counter {
    /// Adds to it. No other memory is ordered by it.
    pub fn add(&self, n: u64) {
        self.0.fetch_add(n, Ordering::Relaxed);
    }

    /// Its value.
    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// What the vCPU threads count, over all vCPUs.
#[derive(Debug, Default)]
pub struct VcpuCounters {
    /// Times the guest was left.
    pub exits: Counter,
    /// Loads served by a device.
    pub mmio_reads: Counter,
    /// Stores served by a device.
    pub mmio_writes: Counter,
    /// Accesses that nothing serves, for which the guest took an external abort.
    pub aborts: Counter,
    first_entry: AtomicU64,
}

impl VcpuCounters {
    /// Notes the time of the guest's first instruction, once.
    pub fn stamp_first_entry(&self) {
        if self.first_entry.load(Ordering::Relaxed) == 0 {
            self.first_entry.store(monotonic().as_nanos() as u64, Ordering::Relaxed);
        }
    }

    /// The counters as JSON; the end of each name is its unit.
    pub fn to_json(&self) -> Value {
        json!({
            "exits_total": self.exits.get(),
            "mmio_reads_total": self.mmio_reads.get(),
            "mmio_writes_total": self.mmio_writes.get(),
            "external_aborts_total": self.aborts.get(),
            "first_entry_monotonic_nanoseconds": self.first_entry(),
        })
    }

    /// CLOCK_MONOTONIC in nanoseconds when vCPU 0 first entered the guest; 0 before.
    pub fn first_entry(&self) -> u64 {
        self.first_entry.load(Ordering::Relaxed)
    }
}

/// CLOCK_MONOTONIC.
pub fn monotonic() -> Duration {
    let now = clock_gettime(ClockId::Monotonic);
    Duration::new(now.tv_sec as u64, now.tv_nsec as u32)
}

#[cfg(test)]
mod tests;
