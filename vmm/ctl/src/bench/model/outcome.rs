//! What has come of a host.

use super::host::Level;

/// What has come of a host, all of it exact: sums are of pages of 4 KiB times seconds, those of chunks of chunks times
/// seconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Outcome {
    /// Starts, changes and ends of VMs.
    pub events: u64,
    /// Chunks that were reserved.
    pub reserved: u64,
    /// Requests for a chunk that failed for lack of tag storage.
    pub failed: u64,
    /// Blocks that had been lent and were emptied.
    pub evictions: u64,
    /// VMs with MTE.
    pub tagged: u64,
    /// Those of them that have waited for tag storage.
    pub waited: u64,
    /// Reserved blocks.
    pub reserved_sum: u128,
    /// Tags that chunks needed.
    pub tags_sum: u128,
    /// Tag storage that borrowers were in.
    pub lent_sum: u128,
    /// What VMs wanted and did not have, but for chunks that they waited for.
    pub lacking_sum: u128,
    /// Chunks that VMs waited for.
    pub waiting_sum: u128,
    /// Those of them that are in the fair shares of their VMs.
    pub unfair_sum: u128,
}

/// What VMs lack at one moment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Lacking {
    /// Pages.
    pub pages: u64,
    /// Chunks that they wait for.
    pub chunks: u64,
    /// Those of them that are in the fair shares of their VMs.
    pub unfair: u64,
}

impl Outcome {
    /// So many seconds have passed, in which nothing changed.
    pub fn pass(&mut self, level: Level, lacking: Lacking, seconds: u64) {
        let sum = |number: u64| u128::from(number) * u128::from(seconds);
        self.reserved_sum += sum(level.reserved);
        self.tags_sum += sum(level.tags);
        self.lent_sum += sum(level.lent);
        self.lacking_sum += sum(lacking.pages);
        self.waiting_sum += sum(lacking.chunks);
        self.unfair_sum += sum(lacking.unfair);
    }

    /// Both together.
    #[must_use]
    pub fn and(self, other: Self) -> Self {
        Self {
            events: self.events + other.events,
            reserved: self.reserved + other.reserved,
            failed: self.failed + other.failed,
            evictions: self.evictions + other.evictions,
            tagged: self.tagged + other.tagged,
            waited: self.waited + other.waited,
            reserved_sum: self.reserved_sum + other.reserved_sum,
            tags_sum: self.tags_sum + other.tags_sum,
            lent_sum: self.lent_sum + other.lent_sum,
            lacking_sum: self.lacking_sum + other.lacking_sum,
            waiting_sum: self.waiting_sum + other.waiting_sum,
            unfair_sum: self.unfair_sum + other.unfair_sum,
        }
    }
}
