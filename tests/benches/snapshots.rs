//! What saving and restoring a guest costs, in instructions of the nested host.

use std::fs;
use std::path::Path;
use std::time::Duration;

use serde_json::json;
use testing::guest::{Guest, Plan};
use testing::lab::Lab;
use testing::memory;
use testing::scratch::Scratch;
use vmm::metrics::monotonic;

const LIMIT: Duration = Duration::from_secs(900);

fn idle(memory: &str) -> Plan {
    Plan::workload("idle").with("--memory", memory).with("--mte", "require")
}

fn now() -> u64 {
    monotonic().as_nanos() as u64
}

fn millions(instructions: u64) -> f64 {
    instructions as f64 / 1e6
}

fn size(file: &Path) -> f64 {
    fs::metadata(file).unwrap().len() as f64 / f64::from(1 << 20)
}

/// Saves a paused guest; returns the instructions from request to answer.
fn save(guest: &Guest, folder: &Path) -> u64 {
    fs::create_dir_all(folder).unwrap();
    let mut client = guest.client();
    let before = now();
    let files =
        json!({ "snapshot_path": folder.join("state"), "mem_file_path": folder.join("memory") });
    client.send("PUT", "/snapshot/create", &files).unwrap();
    now() - before
}

/// From the start of the program to the first instruction of the guest, and its private memory afterwards.
fn restore(folder: &Path, lazy: bool) -> (u64, u64) {
    let plan = Plan::restore(folder);
    let plan = if lazy { plan.flag("--lazy") } else { plan };
    let before = now();
    let guest = plan.start();
    guest.is_loaded();
    // The answer has come after the guest has run; a second is what an idle guest does of its own.
    std::thread::sleep(Duration::from_secs(2));
    let metrics = guest.client().metrics().unwrap();
    let first = metrics["vcpu"]["first_entry_monotonic_nanoseconds"].as_u64().unwrap();
    let private =
        memory::mappings(guest.pid()).into_iter().map(|mapping| mapping.private_dirty).sum();
    guest.stop();
    (first - before, private)
}

#[test]
fn saving_and_restoring_an_idle_guest() {
    Lab::new().counting_instructions().timeout(LIMIT).run(|| {
        let scratch = Scratch::new();
        for memory in ["256M", "1G"] {
            let folder = scratch.join(memory);
            let mut guest = idle(memory).start();
            guest.report("ready");
            let resident = guest.client().footprint().unwrap().resident_bytes;
            guest.client().pause().unwrap();
            let cold = save(&guest, &folder);
            let warm = save(&guest, &folder);
            guest.stop();
            println!(
                "{memory}: saved in {:.1} million instructions ({:.1} the first time): memory file {:.1} MiB, \
                 state {:.3} MiB, of {:.1} MiB resident",
                millions(warm),
                millions(cold),
                size(&folder.join("memory")),
                size(&folder.join("state")),
                resident as f64 / f64::from(1 << 20),
            );
            for lazy in [false, true] {
                restore(&folder, lazy);
                let (first, private) = restore(&folder, lazy);
                println!(
                    "{memory}: restored{} in {:.2} million instructions to the first of the guest; {:.1} MB private \
                     after 2 s",
                    if lazy { " lazily" } else { "" },
                    millions(first),
                    private as f64 / 1e6,
                );
            }
        }
    });
}
