//! What the pool counts, under the names of the kernel series.

use serde::{Deserialize, Serialize};

/// Events since the pool was made.
///
/// At any moment `metadata_reserve_success - metadata_reserve_free` is the number of chunks whose tag
/// storage is reserved, those that are just being freed among them. The kernel series counts pages;
/// here an event is a chunk.
///
/// # References
/// Linux mail, "Add support for arm64 MTE dynamic tag storage reuse", `include/linux/vm_event_item.h`
/// (METADATA_RESERVE_SUCCESS, METADATA_RESERVE_FAIL, METADATA_RESERVE_FREE)
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
pub struct Counters {
    /// Chunks whose tag storage was reserved.
    pub metadata_reserve_success: u64,
    /// Requests that failed because no tag storage could be had.
    pub metadata_reserve_fail: u64,
    /// Chunks whose tag storage was freed, by request or with its lease.
    pub metadata_reserve_free: u64,
    /// Blocks that were lent and were emptied again.
    pub evictions: u64,
    /// Slots that were put at the tail because a block of theirs could not be had.
    pub tail_retries: u64,
    /// Lent blocks that would not move.
    pub pinned: u64,
    /// Requests refused by a lease's terms, or because what is free is set aside for others.
    pub denied: u64,
}

impl Counters {
    /// Each with its name.
    pub fn named(&self) -> [(&'static str, u64); 7] {
        [
            ("metadata_reserve_success", self.metadata_reserve_success),
            ("metadata_reserve_fail", self.metadata_reserve_fail),
            ("metadata_reserve_free", self.metadata_reserve_free),
            ("evictions", self.evictions),
            ("tail_retries", self.tail_retries),
            ("pinned", self.pinned),
            ("denied", self.denied),
        ]
    }
}
