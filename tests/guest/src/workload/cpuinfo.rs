//! `cpuinfo`: what the guest sees of its machine.

use std::fs;
use std::path::Path;
use std::process::Command;

use serde_json::{Value, json};

use super::After;
use crate::{machine, pmu, report, system};

pub(super) const NAME: &str = "cpuinfo";

/// Features that a VMM has to switch on or pass through.
const FEATURES: [&str; 6] = ["mte", "mte3", "sve", "sve2", "paca", "pacg"];

pub(super) fn run(_: Option<&str>) -> Result<After, String> {
    let features = machine::features();
    let present = FEATURES
        .map(|name| (name.to_owned(), json!(features.iter().any(|feature| feature == name))));
    let cpus = machine::online_cpus();
    report::send(
        NAME,
        "machine",
        json!({
            "kernel": machine::kernel_release(),
            "command_line": machine::command_line(),
            "cpus_online": cpus,
            "cpus_possible": machine::text("/sys/devices/system/cpu/possible"),
            "features": present.into_iter().collect::<serde_json::Map<_, _>>(),
            "memory_kib": machine::memory_kib("MemTotal"),
            "page_size": system::page_size(),
            "clocksource": machine::text("/sys/devices/system/clocksource/clocksource0/current_clocksource"),
            "monotonic_ns": system::monotonic_ns(),
            "pmu": { "devices": pmu::devices(), "cycles": pmu::cycles().ok() },
            "real_time_clock": machine::text("/sys/class/rtc/rtc0/name"),
            "real_time_seconds": machine::text("/sys/class/rtc/rtc0/since_epoch").parse::<u64>().ok(),
        }),
    );
    report::send(NAME, "device_tree", device_tree(Path::new("/proc/device-tree")));
    report::send(NAME, "random", random(Path::new("/proc/device-tree/chosen")));
    report::send(NAME, "initrd", initrd());
    report::send(NAME, "done", json!({}));
    Ok(After::PowerOff)
}

/// Properties of the tree that the VMM wrote.
fn device_tree(root: &Path) -> Value {
    let text = |path: &str| machine::text(root.join(path));
    let numbers = |path: &str| numbers(&fs::read(root.join(path)).unwrap_or_default());
    let mut nodes: Vec<String> = fs::read_dir(root)
        .into_iter()
        .flatten()
        .filter_map(Result::ok)
        .filter(|entry| entry.path().is_dir())
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .collect();
    nodes.sort();
    let memory: Vec<_> = nodes
        .iter()
        .filter(|name| name.starts_with("memory"))
        .map(|name| numbers(&format!("{name}/reg")))
        .collect();
    json!({
        "compatible": text("compatible"),
        "bootargs": text("chosen/bootargs"),
        "stdout_path": text("chosen/stdout-path"),
        "initrd_start": numbers("chosen/linux,initrd-start"),
        "initrd_end": numbers("chosen/linux,initrd-end"),
        "memory": memory,
        "psci_method": text("psci/method"),
        "hypervisor": text("hypervisor/compatible"),
        "nodes": nodes,
    })
}

/// Whether the kernel took the seeds: it clears both once read (drivers/of/fdt.c, arch/arm64/kernel/pi).
fn random(chosen: &Path) -> Value {
    let kaslr = fs::read(chosen.join("kaslr-seed")).ok();
    json!({
        "rng_seed_left": chosen.join("rng-seed").exists(),
        "kaslr_seed_left": kaslr.is_some_and(|seed| seed.iter().any(|byte| *byte != 0)),
        "ready": system::random_ready(),
    })
}

/// The initramfs as it arrived; the kernel keeps it with `retain_initrd` on the command line.
fn initrd() -> Value {
    let path = "/sys/firmware/initrd";
    let Ok(metadata) = fs::metadata(path) else {
        return json!({ "kept": false });
    };
    let output = Command::new("/bin/busybox").args(["sha256sum", path]).output();
    let text = output
        .map(|output| String::from_utf8_lossy(&output.stdout).into_owned())
        .unwrap_or_default();
    json!({ "kept": true, "bytes": metadata.len(), "sha256": text.split_whitespace().next() })
}

/// A property of 32- or 64-bit cells as numbers of 64 bits where it divides so, else of 32.
fn numbers(property: &[u8]) -> Vec<u64> {
    let width = if property.len().is_multiple_of(8) { 8 } else { 4 };
    let number =
        |bytes: &[u8]| bytes.iter().fold(0, |number: u64, byte| number << 8 | u64::from(*byte));
    property.chunks_exact(width).map(number).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cells_are_read_in_both_widths() {
        assert_eq!(numbers(&[0, 0, 0, 1, 0, 0, 0, 2]), [0x1_0000_0002]);
        assert_eq!(numbers(&[0, 0, 0, 9]), [9]);
        assert!(numbers(&[]).is_empty());
    }

    #[test]
    fn a_machine_without_a_tree_has_no_nodes() {
        let tree = device_tree(Path::new("/nonexistent"));

        assert_eq!(tree["nodes"], json!([]));
        assert_eq!(tree["stdout_path"], "");
    }
}
