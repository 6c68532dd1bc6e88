//! `touch[,MIB]`: takes memory (64 MiB), writes to each page, tags each granule, and keeps it until the
//! power key. For tests of what a guest's memory costs.

use serde_json::json;

use super::{After, number};
use crate::region::Region;
use crate::{machine, report, system};

pub(super) const NAME: &str = "touch";
/// The tag that all granules get.
const TAG: u8 = 5;

pub(super) fn run(argument: Option<&str>) -> Result<After, String> {
    let mib = number(argument, 64)?;
    let size = usize::try_from(mib).ok().and_then(|mib| mib.checked_mul(1 << 20));
    let size = size.ok_or_else(|| format!("{mib} MiB is more than this machine can address"))?;
    let tagged = machine::has_mte();
    let region = Region::new(size, tagged).map_err(|error| format!("no {mib} MiB: {error}"))?;
    // Checking is off in this process: an untagged pointer may write to tagged memory.
    for offset in (0..region.size()).step_by(system::page_size()) {
        region.write(offset, 0, 1);
    }
    let last = if tagged {
        region.tag(0, region.size(), TAG);
        region.tag_at(region.size().saturating_sub(1))
    } else {
        0
    };
    report::send(
        NAME,
        "touched",
        json!({
            "mib": mib,
            "tagged": tagged,
            "ok": last == if tagged { TAG } else { 0 },
            "memory_free_kib": machine::memory_kib("MemFree"),
        }),
    );
    // The memory stays taken: this process is PID 1 and never ends.
    std::mem::forget(region);
    Ok(After::Stay)
}
