//! What a snapshot holds, and what its host must have.

use std::time::{Duration, SystemTime};

use arch::units::Bytes;
use serde_json::Value;
use vmm::error::printable;

use super::{Align, devices, size, table};

/// A snapshot, as `tesseractl snapshot info --json` has it, as an aligned table, one fact a line.
pub fn snapshot(info: &Value) -> String {
    let manifest = &info["manifest"];
    let text = |value: &Value| printable(value.as_str().unwrap_or("unknown"));
    let bytes = |value: &Value| size(value.as_u64().unwrap_or(0));
    let kind = match manifest["kind"]["diff"]["base"].as_str() {
        Some(base) => format!("what has changed since {}", printable(base)),
        None => "full".to_owned(),
    };
    let saved = manifest["saved_at"].as_u64().map_or("unknown".to_owned(), time);
    let by = [&manifest["vmm_version"], &manifest["host_kernel"]].map(text);
    let files = [&info["state_bytes"], &info["memory_bytes"]].map(bytes);
    let mut rows = vec![
        ("Snapshot".to_owned(), text(&info["id"])),
        ("Kind".to_owned(), kind),
        ("Saved".to_owned(), format!("{saved}, by Tessera {} on Linux {}", by[0], by[1])),
        ("Files".to_owned(), format!("state {}, memory {}", files[0], files[1])),
        ("vCPUs".to_owned(), info["vcpu_count"].to_string()),
        ("Memory".to_owned(), bytes(&manifest["memory_size"])),
    ];
    rows.extend(devices::rows(&manifest["config"]));
    rows.push(("Needs".to_owned(), needs(manifest).join(", ")));
    table(&rows, Align::Left)
}

/// What a host must have.
fn needs(manifest: &Value) -> Vec<String> {
    let number = |name: &str| manifest[name].as_u64().unwrap_or(0);
    let mut needs = vec![
        format!("pages of {}", Bytes::new(number("page_size"))),
        format!("GICv{}", number("gic_version")),
        format!("a counter of {} Hz", number("counter_frequency")),
    ];
    let features = &manifest["cpu_features"];
    for (has, name) in [
        (&manifest["mte"], "MTE"),
        (&features["sve"], "SVE"),
        (&features["pauth"], "pointer authentication"),
        (&features["pmu"], "performance monitors"),
    ] {
        if *has == Value::Bool(true) {
            needs.push(name.to_owned());
        }
    }
    needs
}

/// Seconds since 1970 as RFC 3339 has them, up to the year 9999.
fn time(seconds: u64) -> String {
    const YEAR_10000: u64 = 253_402_300_800;

    let time = SystemTime::UNIX_EPOCH.checked_add(Duration::from_secs(seconds));
    match time.filter(|_| seconds < YEAR_10000) {
        Some(time) => humantime::format_rfc3339_seconds(time).to_string(),
        None => "unknown".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_snapshot_is_a_table_of_what_it_holds_and_needs() {
        let mut info = json!({
            "id": "00ff",
            "manifest": {
                "kind": "full", "page_size": 4096, "gic_version": 3, "counter_frequency": 62_500_000, "mte": true,
                "cpu_features": { "sve": false, "pauth": true, "pmu": false }, "memory_size": 256 << 20,
                "guest_page_size": 4096, "config": { "drives": [{ "drive_id": "root", "path_on_host": "/a" }] },
                "vmm_version": "0.1.0", "host_kernel": "6.12.0\u{1b}", "saved_at": 1_764_186_600,
            },
            "vcpu_count": 4, "state_bytes": 4096, "memory_bytes": 40 << 20,
        });

        let text = snapshot(&info);

        for line in [
            "Kind       full\n",
            "Saved      2025-11-26T19:50:00Z, by Tessera 0.1.0 on Linux 6.12.0\u{fffd}\n",
            "Files      state 4 KiB, memory 40 MiB\n",
            "vCPUs      4\n",
            "Memory     256 MiB\n",
            "Disk root  /a\n",
            "Needs      pages of 4 KiB, GICv3, a counter of 62500000 Hz, MTE, pointer authentication\n",
        ] {
            assert!(text.contains(line), "{line}: {text}");
        }
        info["manifest"]["kind"] = json!({ "diff": { "base": "11ee" } });
        info["manifest"]["saved_at"] = json!(u64::MAX);
        let text = snapshot(&info);
        assert!(text.contains("Kind       what has changed since 11ee\n"), "{text}");
        assert!(text.contains("Saved      unknown, by"), "{text}");
    }
}
