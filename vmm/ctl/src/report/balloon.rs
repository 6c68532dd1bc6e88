//! The balloon and the footprint as tables.

use arch::units::Bytes;
use vmm::api::model::{AutoBalloon, Balloon, BalloonStats, Footprint};
use vmm::error::printable;

use super::{Align, grouped, size, table, time};

/// Characters of a bar that stands for the whole of guest memory.
const BAR: u64 = 20;

/// What the host did not take back, which has a reason.
const REFUSED: &str = "Refused by the host";

/// The balloon as an aligned table, one fact a line.
pub fn balloon(balloon: &Balloon) -> String {
    let yes_no = |yes| if yes { "yes" } else { "no" }.to_owned();
    let mut reporting = balloon.reporting.state.as_str().to_owned();
    if let Some(reason) = &balloon.reporting.reason {
        reporting.push_str(": ");
        reporting.push_str(&printable(reason));
    }
    let statistics = match balloon.stats_polling_interval_s {
        0 => "off".to_owned(),
        seconds => format!("every {}", time(u64::from(seconds) * 1_000_000_000)),
    };
    let mut rows = vec![("Target", mib(balloon.amount_mib))];
    if balloon.needed_mib > 0 {
        rows.push(("For other VMs", mib(balloon.needed_mib)));
    }
    rows.extend([
        ("In the balloon", mib(balloon.actual_mib)),
        ("Driver", balloon.driver.to_string()),
        ("Reporting", reporting),
        ("Deflate on OOM", yes_no(balloon.deflate_on_oom)),
        ("Auto", auto(&balloon.auto)),
        ("Statistics", statistics),
    ]);
    table(&rows, Align::Left)
}

/// What the VMM chooses, and why.
fn auto(auto: &AutoBalloon) -> String {
    let word = |word: &Option<String>| word.as_deref().map(printable).unwrap_or_default();
    match auto.on {
        false => "off".to_owned(),
        true => {
            let (state, reason) = (word(&auto.state), word(&auto.reason));
            format!("{state}: {reason}; {} stay", mib(auto.floor_mib))
        }
    }
}

/// The guest's statistics as an aligned table; what the guest did not say is left out.
pub fn statistics(statistics: &BalloonStats) -> String {
    let guest = &statistics.guest;
    let bytes = |value: Option<u64>| value.map(size);
    let count = |value: Option<u64>| value.map(grouped);
    let rows = [
        ("Target", Some(pages(statistics.target_pages))),
        ("In the balloon", Some(pages(statistics.actual_pages))),
        ("Total memory", bytes(guest.total_memory)),
        ("Free memory", bytes(guest.free_memory)),
        ("Available memory", bytes(guest.available_memory)),
        ("Disk caches", bytes(guest.disk_caches)),
        ("Swapped in", bytes(guest.swap_in)),
        ("Swapped out", bytes(guest.swap_out)),
        ("Major faults", count(guest.major_faults)),
        ("Minor faults", count(guest.minor_faults)),
        ("Huge pages allocated", count(guest.hugetlb_allocations)),
        ("Huge pages refused", count(guest.hugetlb_failures)),
        ("OOM kills", count(guest.oom_kill)),
        ("Allocation stalls", count(guest.alloc_stall)),
        ("Scanned by kswapd", bytes(guest.async_scan)),
        ("Scanned directly", bytes(guest.direct_scan)),
        ("Reclaimed by kswapd", bytes(guest.async_reclaim)),
        ("Reclaimed directly", bytes(guest.direct_reclaim)),
    ];
    let known = |(name, value): (&str, Option<String>)| value.map(|value| (name.to_owned(), value));
    let mut text = table(&rows.into_iter().filter_map(known).collect::<Vec<_>>(), Align::Right);
    if *guest == Default::default() {
        text.push_str("The guest has not answered yet.\n");
    }
    text
}

/// What the guest costs the host, with its share of guest memory where it is some of it: each line a name,
/// the size for people, the exact bytes.
pub fn footprint(footprint: &Footprint) -> String {
    let template = footprint.template_bytes.map(|bytes| ("Of the template", Some(bytes)));
    let shares = [
        ("Guest memory", Some(footprint.guest_bytes)),
        ("Resident", Some(footprint.resident_bytes)),
        ("In huge pages", Some(footprint.huge_bytes)),
    ];
    let swapped = footprint.swapped_bytes.map(|bytes| ("Swapped out", Some(bytes)));
    let shares = shares.into_iter().chain(template).chain(swapped).chain([
        ("Tagged", footprint.tagged_bytes),
        ("In the balloon", Some(footprint.inflated_bytes)),
    ]);
    // Not shares: the same memory counts as often as the guest frees it.
    let sums = [
        ("Reported", footprint.reported_bytes),
        ("Given back", footprint.discarded_bytes),
        (REFUSED, footprint.failed_bytes),
        ("Kept for its poison", footprint.poison_skipped_bytes),
        ("Kept, switched off", footprint.kept_bytes),
    ];
    let whole = footprint.guest_bytes;
    let mut rows: Vec<Row> = Vec::new();
    for (name, bytes) in shares {
        match bytes {
            Some(bytes) => rows.push(Row::of(name, bytes, bar(bytes, whole))),
            None => rows.push(Row {
                name,
                size: "-".to_owned(),
                exact: String::new(),
                note: footprint.tagged_unavailable.as_deref().map(printable).unwrap_or_default(),
            }),
        }
    }
    let heading = rows.len();
    let refused = footprint.failed_reason.as_deref().map(printable);
    rows.extend(sums.map(|(name, bytes)| {
        let note = refused.clone().filter(|_| name == REFUSED).unwrap_or_default();
        Row::of(name, bytes, note)
    }));
    let mut lines = lines(&rows);
    let took =
        format!("Counted in {}.{:03} ms.", footprint.count_us / 1000, footprint.count_us % 1000);
    lines.splice(heading..heading, [took, "Since the start:".to_owned()]);
    lines.join("\n") + "\n"
}

struct Row {
    name: &'static str,
    size: String,
    exact: String,
    note: String,
}

impl Row {
    fn of(name: &'static str, bytes: u64, note: String) -> Self {
        Self { name, size: size(bytes), exact: format!("{} B", grouped(bytes)), note }
    }
}

fn lines(rows: &[Row]) -> Vec<String> {
    let widest = |text: fn(&Row) -> &str| rows.iter().map(|row| text(row).len()).max().unwrap_or(0);
    let name = widest(|row| row.name);
    let size = widest(|row| &row.size);
    let exact = widest(|row| &row.exact);
    let line = |row: &Row| {
        let Row { name: named, size: sized, exact: counted, note } = row;
        let line = format!("{named:<name$}  {sized:>size$}  {counted:>exact$}  {note}");
        line.trim_end().to_owned()
    };
    rows.iter().map(line).collect()
}

/// "[#####---------------]  25 %". A share that is not nothing has a mark, one that is not all a gap.
pub(super) fn bar(part: u64, whole: u64) -> String {
    if whole == 0 {
        return String::new();
    }
    let scaled =
        |to: u64| (u128::from(part.min(whole)) * u128::from(to) / u128::from(whole)) as u64;
    let filled = scaled(BAR).max(u64::from(part > 0)) as usize;
    let empty = BAR as usize - filled;
    format!("[{}{}] {:>3} %", "#".repeat(filled), "-".repeat(empty), scaled(100))
}

/// Whole MiB as a size.
pub(crate) fn mib(count: u64) -> String {
    size(Bytes::mib(count).get())
}

/// Pages of 4 KiB, as the balloon counts.
fn pages(count: u64) -> String {
    size(count.saturating_mul(Bytes::kib(4).get()))
}

#[cfg(test)]
mod tests;
