//! Tables and units.
#![allow(clippy::unwrap_used)]

use proptest::prelude::*;
use serde_json::json;
use vmm::api::model::{FIRECRACKER_API_VERSION, State, TESSERA_VERSION};

use super::*;

#[test]
fn status_is_an_aligned_table_of_what_is_known() {
    let instance = InstanceInfo::new("vm1", State::Running);
    let config = json!({
        "machine-config": { "vcpu_count": 2, "mem_size_mib": 512 },
        "mte": { "mode": "require" },
    });

    let text = status(&instance, &Version::current(), &config);

    let vmm = format!("VMM     Tessera {TESSERA_VERSION}");
    let api = format!("API     Firecracker {FIRECRACKER_API_VERSION}");
    let expected = [
        "Name    vm1",
        "State   Running",
        &vmm,
        &api,
        "vCPUs   2",
        "Memory  512 MiB",
        "MTE     require",
    ];
    assert_eq!(text.lines().collect::<Vec<_>>(), expected);
}

#[test]
fn metrics_are_listed_by_dotted_name_with_units() {
    let counters = json!({
        "memory": { "resident_bytes": 1_610_612_736_u64 },
        "vcpus": [{ "exits_total": 1_234_567 }],
    });

    let text = metrics(&counters);

    let expected = ["memory.resident_bytes    1.5 GiB", "vcpus.0.exits_total    1,234,567"];
    assert_eq!(text.lines().collect::<Vec<_>>(), expected);
}

#[test]
fn numbers_are_shown_in_the_unit_of_their_name() {
    for (name, value, expected) in [
        ("x_bytes", json!(0), "0 B"),
        ("x_bytes", json!(1023), "1023 B"),
        ("x_bytes", json!(4096), "4 KiB"),
        ("x_bytes_total", json!(1536), "1.5 KiB"),
        ("x_bytes", json!(u64::MAX), "15.9 EiB"),
        ("x_mib", json!(512), "512 MiB"),
        ("x_mib", json!(u64::MAX), "18,446,744,073,709,551,615"),
        ("x_nanoseconds", json!(999), "999 ns"),
        ("x_nanoseconds", json!(1_500), "1.5 us"),
        ("x_nanoseconds", json!(12_000_000), "12 ms"),
        ("x_seconds", json!(59), "59 s"),
        ("x_seconds", json!(200), "3 min 20 s"),
        ("x_seconds", json!(18_120), "5 h 2 min"),
        ("x_total", json!(999), "999"),
        ("x_total", json!(1000), "1,000"),
        ("ratio", json!(0.25), "0.25"),
        ("delta", json!(-3), "-3"),
        ("flag", json!(true), "yes"),
        ("none", json!(null), "-"),
    ] {
        assert_eq!(quantity(name, &value), expected, "{name} {value}");
    }
}

#[test]
fn text_of_the_server_cannot_command_the_terminal() {
    let instance = InstanceInfo::new("a\u{1b}[2Jb\n", State::Running);

    let text = status(&instance, &Version::current(), &json!({}));

    assert!(text.starts_with("Name   a\u{fffd}[2Jb\u{fffd}\n"), "{text}");
}

proptest! {
    #[test]
    fn every_number_has_a_form_in_every_unit(count: u64) {
        for (suffix, _) in SIZES.iter().chain(&TIMES) {
            prop_assert!(!with_unit(suffix, count).is_empty());
        }
        prop_assert_eq!(grouped(count).replace(',', ""), count.to_string());
    }
}
