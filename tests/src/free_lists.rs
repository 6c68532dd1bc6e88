//! The free pages that each processor of the host keeps for itself: they count as free, and others cannot have them.

use crate::setting::Setting;

/// Pages that come to a processor's list together (`zone_batchsize` in Linux mm/page_alloc.c).
pub const BATCH: u64 = 63;

/// Processors of the lab's host.
const PROCESSORS: u64 = 2;

/// Pages of a zone that are on lists at most while they are [short]: on each four batches, and nearly one more
/// that was just freed (`zone_highsize` and `nr_pcp_free`, in the same file).
pub const LISTS: u64 = PROCESSORS * 5 * BATCH;

/// Has processors keep as few pages as they may, until it is dropped.
pub fn short() -> Setting {
    Setting::new("/proc/sys/vm/percpu_pagelist_high_fraction", "1000000")
}
