//! The loop of will-it-scale's page_fault1, with huge pages: map, touch each page, unmap.

use std::time::Duration;

use serde_json::{Value, json};

use crate::region::Region;
use crate::{machine, system};

/// Bytes of one mapping, as in will-it-scale: of a guest of which a quarter more is free. Of others half of what is.
const SIZE: usize = 128 << 20;

/// A huge page.
const UNIT: usize = 2 << 20;

/// Repeats the loop for `time` by the guest's clock, and reports how far it came.
///
/// # Errors
/// When there is not so much memory, or no huge pages.
pub(super) fn run(time: Duration) -> Result<Value, String> {
    let (page, size) = (system::page_size(), size());
    let huge = || machine::counter("thp_fault_alloc").unwrap_or(0);
    let (huge_before, start) = (huge(), system::monotonic_ns());
    let end = start.saturating_add(u64::try_from(time.as_nanos()).unwrap_or(u64::MAX));
    let (mut rounds, mut pages, mut now) = (0u64, 0u64, start);
    while now < end {
        let region = Region::new(size, false).map_err(|error| format!("no memory: {error}"))?;
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
        "mapped": size,
        "pages": pages,
        "huge": huge().saturating_sub(huge_before),
        "elapsed_ns": now.saturating_sub(start),
    }))
}

/// Bytes of one mapping.
fn size() -> usize {
    let free = machine::memory_kib("MemFree").unwrap_or(0).saturating_mul(1 << 10);
    let free = usize::try_from(free).unwrap_or(usize::MAX);
    match free / 5 * 4 {
        SIZE.. => SIZE,
        _ => (free / 2 / UNIT).max(1).saturating_mul(UNIT),
    }
}
