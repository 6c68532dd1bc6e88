//! The arrows between the crates: `tests -> ctl -> {vmm -> {devices, arch}, agent}`, and nothing else.
#![allow(clippy::unwrap_used)]

#[path = "house/imports.rs"]
mod imports;
#[path = "house/rooms.rs"]
mod rooms;

use std::collections::BTreeSet;
use std::path::Path;
use std::process::Command;

use serde_json::Value;

/// Which of the workspace's packages each may depend on, and which crates it must not know.
const ALLOWED: [(&str, &[&str], &[&str]); 9] = [
    ("tessera-arch", &[], &["kvm-", "vmm-sys-util", "libc", "rustix", "event-manager"]),
    ("tessera-devices", &[], &["kvm-", "vmm-sys-util", "libc", "rustix", "event-manager"]),
    ("tessera", &["tessera-arch", "tessera-devices"], &["tokio", "hyper", "mio"]),
    ("tessera-agent", &[], &["kvm-", "tokio", "mio", "clap"]),
    ("tesseractl", &["tessera", "tessera-agent", "tessera-arch"], &[]),
    ("tessera-tests", &["tessera", "tessera-agent", "tesseractl", "tessera-arch"], &[]),
    ("tessera-fuzz", &["tessera", "tessera-agent", "tessera-arch", "tessera-devices"], &[]),
    ("tessera-lab", &[], &[]),
    ("tessera-guest", &[], &["kvm-"]),
];

fn workspace() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap()
}

fn packages() -> Vec<Value> {
    let output = Command::new(env!("CARGO"))
        .args(["metadata", "--no-deps", "--format-version", "1", "--offline"])
        .current_dir(workspace())
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let metadata: Value = serde_json::from_slice(&output.stdout).unwrap();
    metadata["packages"].as_array().unwrap().clone()
}

#[test]
fn every_package_of_the_workspace_has_its_arrows() {
    let found: BTreeSet<String> =
        packages().iter().map(|package| package["name"].as_str().unwrap().to_owned()).collect();

    let known = ALLOWED.iter().map(|(name, ..)| (*name).to_owned()).collect();
    assert_eq!(found, known);
}

#[test]
fn arrows_go_one_way() {
    let packages = packages();
    let own: BTreeSet<&str> =
        packages.iter().map(|package| package["name"].as_str().unwrap()).collect();
    for package in &packages {
        let name = package["name"].as_str().unwrap();
        let (_, allowed, forbidden) = ALLOWED.iter().find(|(known, ..)| *known == name).unwrap();
        for dependency in package["dependencies"].as_array().unwrap() {
            let to = dependency["name"].as_str().unwrap();
            // What only tests need never reaches the VMM.
            let for_tests = dependency["kind"] == "dev";
            assert!(!own.contains(to) || allowed.contains(&to), "{name} must not depend on {to}");
            assert!(
                for_tests || !forbidden.iter().any(|prefix| to.starts_with(prefix)),
                "{name} must not know {to}"
            );
        }
    }
}

#[test]
fn dependencies_come_from_the_registry_or_the_workspace() {
    for package in packages() {
        for dependency in package["dependencies"].as_array().unwrap() {
            let (name, source) = (&dependency["name"], dependency["source"].as_str());
            let registry = source.is_some_and(|source| source.starts_with("registry+"));
            assert!(registry || dependency["path"].is_string(), "{name} comes from {source:?}");
        }
    }
}

#[test]
fn pure_rooms_forbid_unsafe_code() {
    for room in ["arch", "devices"] {
        let text = std::fs::read_to_string(workspace().join(room).join("src/lib.rs")).unwrap();
        assert!(text.contains("#![forbid(unsafe_code)]"), "{room} allows unsafe code");
    }
}

/// Where unsafe code is allowed, each module with its reasons beside it.
const UNSAFE: &[&str] = &[
    "tests/guest/src/hold_vm.rs",
    "tests/guest/src/pmu.rs",
    "tests/guest/src/region.rs",
    "tests/guest/src/sockets.rs",
    "tests/guest/src/system.rs",
    "tests/guest/src/vectors.rs",
    "tests/guest/src/workload/mte.rs",
    "tests/guest/src/workload/unserved.rs",
    "tests/lab/src/child.rs",
    "tests/src/faults.rs",
    "tests/src/faults/short.rs",
    "tests/src/forked.rs",
    "tests/src/inject.rs",
    "tests/src/pin.rs",
    "vmm/agent/src/sys/child.rs",
    "vmm/agent/src/sys/gpio.rs",
    "vmm/agent/src/sys/ntp.rs",
    "vmm/agent/src/sys/vsock.rs",
    "vmm/ctl/src/commands/run/spawn.rs",
    "vmm/src/jail/process.rs",
    "vmm/src/kvm/gic_state.rs",
    "vmm/src/kvm/kick.rs",
    "vmm/src/kvm/vcpu.rs",
    "vmm/src/kvm/vm.rs",
    "vmm/src/machine/lazy.rs",
    "vmm/src/memory/footprint/scan.rs",
    "vmm/src/memory/mapping.rs",
    "vmm/src/memory/mapping/hole.rs",
    "vmm/src/memory/mapping/huge.rs",
    "vmm/src/memory/page.rs",
    "vmm/src/memory/ram.rs",
    "vmm/src/memory/tag_checks.rs",
    "vmm/src/memory/tags.rs",
    "vmm/src/sandbox/landlock.rs",
    "vmm/src/sandbox/seccomp.rs",
    "vmm/src/snapshot/memory_file/still.rs",
    "vmm/src/sys/fatal.rs",
    "vmm/src/sys/file_lock.rs",
    "vmm/src/sys/numa.rs",
    "vmm/src/sys/open_files.rs",
    "vmm/src/sys/peer.rs",
    "vmm/src/sys/signals.rs",
    "vmm/src/sys/startup_pages.rs",
    "vmm/src/sys/tap.rs",
    "vmm/src/sys/thread.rs",
    "vmm/src/sys/uffd.rs",
    "vmm/src/sys/vectored.rs",
];

fn sources(folder: &Path, found: &mut Vec<std::path::PathBuf>) {
    for entry in std::fs::read_dir(folder).unwrap().map(Result::unwrap) {
        let path = entry.path();
        if path.is_dir() {
            sources(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
}

#[test]
fn unsafe_code_is_allowed_in_named_modules_only() {
    let mut all = Vec::new();
    for room in ["arch", "devices", "vmm", "tests"] {
        sources(&workspace().join(room), &mut all);
    }
    let mut allowing: Vec<String> = all
        .iter()
        .filter(|path| {
            let text = std::fs::read_to_string(path).unwrap();
            text.lines().any(|line| {
                line.trim_start().starts_with('#') && line.contains("allow(unsafe_code")
            })
        })
        .map(|path| path.strip_prefix(workspace()).unwrap().to_string_lossy().into_owned())
        .collect();
    allowing.sort();

    assert_eq!(allowing, UNSAFE);
}

/// A thread that is started past vmm/src/sys/thread.rs takes the signals that its parent does not block.
#[test]
fn the_programs_start_threads_in_one_place() {
    let mut all = Vec::new();
    sources(&workspace().join("vmm/src"), &mut all);
    for path in all {
        let name = path.strip_prefix(workspace()).unwrap().to_string_lossy().into_owned();
        if name.contains("tests") || name == "vmm/src/sys/thread.rs" {
            continue;
        }
        let text = std::fs::read_to_string(&path).unwrap();
        for starter in ["std::thread::spawn", "thread::Builder", "thread::{Builder"] {
            assert!(!text.contains(starter), "{name} starts a thread itself: {starter}");
        }
    }
}
