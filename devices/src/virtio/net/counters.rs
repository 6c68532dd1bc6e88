//! What a network device has done.

use std::sync::atomic::{AtomicU64, Ordering};

/// What has passed through a network device. Readable at any time, by any thread.
#[derive(Debug, Default)]
pub struct Counters {
    /// Frames that the driver got.
    pub rx_frames: AtomicU64,
    /// Their bytes.
    pub rx_bytes: AtomicU64,
    /// Frames that were dropped, as they were larger than the buffer that the driver gave.
    pub rx_oversized: AtomicU64,
    /// Times that the port failed when it was read.
    pub rx_failures: AtomicU64,
    /// Times that the driver had no buffer for frames.
    pub rx_starved: AtomicU64,
    /// Frames that the driver sent.
    pub tx_frames: AtomicU64,
    /// Their bytes.
    pub tx_bytes: AtomicU64,
    /// What the driver sent that is no frame: too short for one, or too long.
    pub tx_malformed: AtomicU64,
    /// Frames that were dropped, as the link was down.
    pub tx_unlinked: AtomicU64,
    /// Frames that the port refused.
    pub tx_failures: AtomicU64,
    /// Times that the port took no frame for now.
    pub tx_blocked: AtomicU64,
    /// 1 while the driver sees the link up, else 0.
    pub link_up: AtomicU64,
    /// Times that the link came up or went down.
    pub link_changes: AtomicU64,
}

pub(super) fn count(counter: &AtomicU64, by: u64) {
    counter.fetch_add(by, Ordering::Relaxed);
}
