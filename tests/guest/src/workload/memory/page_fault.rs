//! The loop of will-it-scale's page_fault1, with huge pages: map, touch each page, unmap.

use std::time::Duration;

use serde_json::{Value, json};

use crate::region::Region;
use crate::{machine, system};

/// Bytes of one mapping, as in will-it-scale.
const SIZE: usize = 128 << 20;

/// Repeats the loop for `time` by the guest's clock, and reports how far it came.
///
/// # Errors
/// When there is not so much memory, or no huge pages.
pub(super) fn run(time: Duration) -> Result<Value, String> {
    let page = system::page_size();
    let huge = || machine::counter("thp_fault_alloc").unwrap_or(0);
    let (huge_before, start) = (huge(), system::monotonic_ns());
    let end = start.saturating_add(u64::try_from(time.as_nanos()).unwrap_or(u64::MAX));
    let (mut rounds, mut pages, mut now) = (0u64, 0u64, start);
    while now < end {
        let region = Region::new(SIZE, false).map_err(|error| format!("no memory: {error}"))?;
        region.want_huge_pages().map_err(|error| format!("no huge pages: {error}"))?;
        for offset in (0..region.size()).step_by(page) {
            region.write(offset, 0, 1);
            pages = pages.saturating_add(1);
        }
        drop(region);
        rounds = rounds.saturating_add(1);
        now = system::monotonic_ns();
    }
    Ok(json!({
        "rounds": rounds,
        "pages": pages,
        "huge": huge().saturating_sub(huge_before),
        "elapsed_ns": now.saturating_sub(start),
    }))
}
