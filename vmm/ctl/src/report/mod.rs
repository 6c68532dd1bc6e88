//! Answers of the control socket as text for people.

use std::fmt::Write;

use serde_json::Value;
use vmm::api::model::{InstanceInfo, Version};
use vmm::error::printable;

mod balloon;
mod columns;
mod devices;
mod pool;
mod snapshot;
mod tag_storage;

pub(crate) use balloon::mib;
pub use balloon::{balloon, footprint, statistics};
pub(crate) use columns::{Column, columns};
pub use pool::{pool, pool_prometheus};
pub use snapshot::snapshot;
pub use tag_storage::tag_storage;

/// The state and shape of a VM as an aligned table, one fact a line. `config` is the answer to
/// `GET /vm/config`.
pub fn status(instance: &InstanceInfo, version: &Version, config: &Value) -> String {
    let mut state = instance.state.to_string();
    if let Some(reason) = &instance.pause_reason {
        state.push_str(": ");
        state.push_str(&printable(reason));
    }
    let mut rows = vec![
        ("Name".to_owned(), printable(&instance.id)),
        ("State".to_owned(), state),
        ("VMM".to_owned(), printable(&format!("{} {}", instance.app_name, instance.vmm_version))),
        ("API".to_owned(), printable(&format!("Firecracker {}", version.firecracker_version))),
    ];
    for (name, pointer) in FACTS {
        if let Some(value) = config.pointer(pointer) {
            rows.push((name.to_owned(), quantity(pointer, value)));
        }
    }
    rows.extend(devices::rows(config));
    table(&rows, Align::Left)
}

/// What `status` shows of the configuration, and where it stands there.
const FACTS: [(&str, &str); 8] = [
    ("vCPUs", "/machine-config/vcpu_count"),
    ("Memory", "/machine-config/mem_size_mib"),
    ("Huge pages", "/machine-config/huge_pages"),
    ("Backing", "/machine-config/memory_backing"),
    ("MTE", "/mte/mode"),
    ("Tag storage", "/tag-storage/mode"),
    ("Kernel", "/boot-source/kernel_image_path"),
    ("Serial", "/serial/target"),
];

/// All metrics as an aligned table under their own names, each with its unit.
pub fn metrics(metrics: &Value) -> String {
    let mut rows = Vec::new();
    flatten("", metrics, &mut rows);
    table(&rows, Align::Right)
}

#[derive(Clone, Copy, Debug)]
enum Align {
    Left,
    Right,
}

fn table<N: AsRef<str>>(rows: &[(N, String)], align: Align) -> String {
    let width = |text: &str| text.chars().count();
    let names = rows.iter().map(|(name, _)| width(name.as_ref())).max().unwrap_or(0);
    let values = rows.iter().map(|(_, text)| width(text)).max().unwrap_or(0);
    let mut text = String::new();
    for (name, value) in rows {
        let name = name.as_ref();
        // Writing to a String cannot fail.
        let _ = match align {
            Align::Left => writeln!(text, "{name:<names$}  {value}"),
            Align::Right => writeln!(text, "{name:<names$}  {value:>values$}"),
        };
    }
    text
}

/// Every scalar in `value` with its dotted name.
fn flatten(name: &str, value: &Value, rows: &mut Vec<(String, String)>) {
    let below = |key: &str| match name {
        "" => key.to_owned(),
        _ => format!("{name}.{key}"),
    };
    match value {
        Value::Object(fields) => {
            for (key, value) in fields {
                flatten(&below(key), value, rows);
            }
        }
        Value::Array(items) => {
            for (index, value) in items.iter().enumerate() {
                flatten(&below(&index.to_string()), value, rows);
            }
        }
        scalar => rows.push((printable(name), quantity(name, scalar))),
    }
}

/// A scalar in the unit that its name ends in.
fn quantity(name: &str, value: &Value) -> String {
    match value {
        Value::Null => "-".to_owned(),
        Value::Bool(true) => "yes".to_owned(),
        Value::Bool(false) => "no".to_owned(),
        Value::String(text) => printable(text),
        Value::Number(number) => match number.as_u64() {
            Some(count) => with_unit(name, count),
            None => number.to_string(),
        },
        Value::Array(_) | Value::Object(_) => String::new(),
    }
}

/// The units that names end in: what one of them is in bytes or nanoseconds.
const SIZES: [(&str, u64); 3] = [("_bytes", 1), ("_kib", 1 << 10), ("_mib", 1 << 20)];
const TIMES: [(&str, u64); 4] = [
    ("_nanoseconds", 1),
    ("_microseconds", 1_000),
    ("_milliseconds", 1_000_000),
    ("_seconds", 1_000_000_000),
];

fn with_unit(name: &str, count: u64) -> String {
    // A count of a unit may itself be counted: rx_bytes_total.
    let name = name.strip_suffix("_total").unwrap_or(name);
    let unit = |units: &[(&str, u64)]| {
        units.iter().find(|(suffix, _)| name.ends_with(suffix)).map(|(_, scale)| *scale)
    };
    // Beyond what the base unit can count, the bare number is the honest form.
    if let Some(bytes) = unit(&SIZES).and_then(|scale| count.checked_mul(scale)) {
        return size(bytes);
    }
    if let Some(nanoseconds) = unit(&TIMES).and_then(|scale| count.checked_mul(scale)) {
        return time(nanoseconds);
    }
    grouped(count)
}

/// Bytes in the largest binary unit that leaves at least one: "512 MiB", "1.5 GiB".
pub(crate) fn size(bytes: u64) -> String {
    const UNITS: [&str; 7] = ["B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
    let step = (bytes.max(1).ilog2() / 10) as usize;
    scaled(bytes, 1 << (10 * step), UNITS[step])
}

/// The same, of whole seconds.
pub(crate) fn seconds(seconds: u64) -> String {
    time(seconds.saturating_mul(1_000_000_000))
}

/// Nanoseconds in the unit people read: "1.5 ms", "12 s", "3 min 20 s", "5 h 2 min".
fn time(nanoseconds: u64) -> String {
    let seconds = nanoseconds / 1_000_000_000;
    match nanoseconds {
        0..1_000 => format!("{nanoseconds} ns"),
        1_000..1_000_000 => scaled(nanoseconds, 1_000, "us"),
        1_000_000..1_000_000_000 => scaled(nanoseconds, 1_000_000, "ms"),
        1_000_000_000..60_000_000_000 => scaled(nanoseconds, 1_000_000_000, "s"),
        60_000_000_000..3_600_000_000_000 => format!("{} min {} s", seconds / 60, seconds % 60),
        _ => format!("{} h {} min", seconds / 3600, seconds / 60 % 60),
    }
}

/// `count / scale` with one decimal unless it is whole, rounded down.
fn scaled(count: u64, scale: u64, unit: &str) -> String {
    let whole = count / scale;
    // In u128 as the remainder may be near 2^60.
    let tenth = u128::from(count % scale) * 10 / u128::from(scale);
    match count % scale {
        0 => format!("{whole} {unit}"),
        _ => format!("{whole}.{tenth} {unit}"),
    }
}

/// "1,234,567".
fn grouped(count: u64) -> String {
    let digits = count.to_string();
    let mut text = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

#[cfg(test)]
mod tests;
