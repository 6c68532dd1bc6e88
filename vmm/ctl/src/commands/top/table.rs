//! The lines of the table.

use std::time::Duration;

use vmm::api::model::TagStorage;
use vmm::error::printable;
use vmm::tag_storage::broker::BrokerReport;

use super::View;
use crate::fleet::Sight;
use crate::report;

/// Letters of a bar: where there is room, and on a terminal of 80 columns.
const BARS: (usize, usize) = (10, 4);
/// From which width on there is room.
const WIDE: usize = 100;
/// A size and what separates it from its bar: "[####] 391.5 MiB".
const SIZE: usize = 12;
/// The longest name that is shown whole.
const NAME: usize = 20;

/// The table, each line no longer than the width. `before` is an earlier look, for what has changed since.
pub(super) fn lines(view: &View, before: Option<&View>, width: usize) -> Vec<String> {
    let names = view.sights.iter().map(|sight| sight.vm.record.name.chars().count());
    let name = names.max().unwrap_or(0).clamp("VM".len(), NAME);
    let layout = Layout { name, bar: if width < WIDE { BARS.1 } else { BARS.0 } };
    let cell = layout.bar + SIZE;
    let mut lines = vec![summary(&view.sights), String::new()];
    lines.push(format!(
        "{:<name$}  {:<11}  {:>5}  {:<cell$}  {:<cell$}  {:<cell$}",
        "VM", "STATE", "CPU %", "RESIDENT", "BALLOON", "TAG STORAGE"
    ));
    for sight in &view.sights {
        let earlier = before.and_then(|before| find(before, sight));
        let passed = before.map(|before| view.at.saturating_duration_since(before.at));
        lines.push(line(sight, earlier.zip(passed), layout));
    }
    if view.sights.is_empty() {
        lines.push("No VM runs: `tesseractl run --kernel FILE` starts one.".to_owned());
    }
    match &view.pool {
        None => {}
        Some(Ok(report)) => lines.extend([String::new(), pool(report, layout.bar)]),
        Some(Err(failure)) => {
            lines.extend([String::new(), format!("Pool  {}", printable(&failure.message))]);
        }
    }
    lines.into_iter().map(|line| cut(&line, width)).collect()
}

/// How wide things are.
#[derive(Clone, Copy)]
struct Layout {
    name: usize,
    bar: usize,
}

fn summary(sights: &[Sight]) -> String {
    let resident = sights.iter().filter_map(|sight| sight.usage).map(|usage| usage.resident.get());
    let resident = resident.fold(0, u64::saturating_add);
    let mib = sights.iter().filter_map(|sight| sight.answer.as_ref().ok()?.memory_mib);
    let memory = mib.fold(0, u64::saturating_add);
    let silent = sights.iter().filter(|sight| sight.answer.is_err()).count();
    let noun = if sights.len() == 1 { "VM" } else { "VMs" };
    let silent = match silent {
        0 => String::new(),
        count => format!(", {count} without an answer"),
    };
    format!(
        "{} {noun}{silent}, {} of {} guest memory resident",
        sights.len(),
        report::size(resident),
        report::mib(memory)
    )
}

fn find<'a>(view: &'a View, of: &Sight) -> Option<&'a Sight> {
    view.sights.iter().find(|sight| {
        (sight.vm.record.pid, sight.vm.record.start_time)
            == (of.vm.record.pid, of.vm.record.start_time)
    })
}

fn line(sight: &Sight, earlier: Option<(&Sight, Duration)>, layout: Layout) -> String {
    let Layout { name: width, bar } = layout;
    let (name, cell) = (cut(&printable(&sight.vm.record.name), width), bar + SIZE);
    let answer = sight.answer.as_ref().ok();
    let memory = answer.and_then(|it| it.memory_mib).map(|mib| mib.saturating_mul(1 << 20));
    let resident = sight.usage.map(|usage| share(usage.resident.get(), memory, bar));
    let balloon = answer
        .and_then(|it| it.balloon.as_ref())
        .map(|balloon| share(balloon.actual_mib.saturating_mul(1 << 20), memory, bar));
    let tags = answer.and_then(|it| it.tags.as_ref()).and_then(|it| tags(it, bar));
    let cpu = cpu(sight, earlier).map_or_else(|| "-".to_owned(), |share| format!("{share:.0}"));
    let state = sight.state();
    let [resident, balloon, tags] =
        [resident, balloon, tags].map(|cell| cell.unwrap_or_else(|| "-".to_owned()));
    format!(
        "{name:<width$}  {state:<11}  {cpu:>5}  {resident:<cell$}  {balloon:<cell$}  {tags:<cell$}"
    )
}

/// The share of one CPU that its threads have had since the earlier look, or since its start.
fn cpu(sight: &Sight, earlier: Option<(&Sight, Duration)>) -> Option<f64> {
    let now = sight.usage?.cpu;
    let (used, passed) = match earlier {
        Some((earlier, passed)) => (now.saturating_sub(earlier.usage?.cpu), passed),
        None => (now, sight.vm.age()?),
    };
    (!passed.is_zero()).then(|| 100.0 * used.as_secs_f64() / passed.as_secs_f64())
}

/// What is reserved, of what may be; and whether the guest waits for more.
fn tags(tags: &TagStorage, bar: usize) -> Option<String> {
    tags.supply.as_ref()?;
    let most = tags.max_bytes.unwrap_or(tags.capacity_bytes);
    let waits = if tags.exhausted { " waits" } else { "" };
    Some(share(tags.reserved_bytes, Some(most), bar) + waits)
}

/// "[##--------] 12.5 MiB".
fn share(part: u64, whole: Option<u64>, width: usize) -> String {
    let size = report::size(part);
    match whole {
        Some(whole) if whole > 0 => format!("{} {size}", bar(part, whole, width)),
        _ => size,
    }
}

fn bar(part: u64, whole: u64, width: usize) -> String {
    // The whole is not zero, and the part no larger.
    let filled = u128::from(part.min(whole)) * width as u128 / u128::from(whole.max(1));
    let filled = usize::try_from(filled).unwrap_or(width).max(usize::from(part > 0));
    format!("[{}{}]", "#".repeat(filled), "-".repeat(width.saturating_sub(filled)))
}

fn pool(report: &BrokerReport, bar: usize) -> String {
    let pool = &report.pool;
    let block = pool.block_bytes;
    let bytes = |count: u64| count.saturating_mul(block);
    let reserved = bytes(pool.blocks.reserved);
    format!(
        "Pool  {} of {} reserved ({}), {} lent, {} leases",
        share(reserved, Some(pool.capacity_bytes), bar),
        report::size(pool.capacity_bytes),
        printable(&pool.supply),
        report::size(bytes(pool.blocks.lent)),
        pool.leases.len()
    )
}

/// As much of a line as there is room for.
fn cut(line: &str, width: usize) -> String {
    match line.chars().count() > width {
        true => line.chars().take(width.saturating_sub(1)).chain(['>']).collect(),
        false => line.trim_end().to_owned(),
    }
}

#[cfg(test)]
mod tests;
