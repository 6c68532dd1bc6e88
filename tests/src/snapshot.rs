//! Guests that are saved and restored.
//!
//! They run the workload `snapshot`, which knows what its memory has (tests/guest). What the tests of `make test` do a
//! few times, those of `make soak` do often.

mod boots;
mod cycles;
mod flips;
mod kills;
mod usage;

use std::path::Path;

use serde_json::Value;

pub use boots::moments_of_a_boot;
pub use cycles::cycles;
pub use flips::{Flips, flipped};
pub use kills::{Rounds, kills};

use crate::guest::{Guest, Plan};

/// A guest that knows what so many MiB of its memory have.
pub fn plan(known: u32, memory: &str) -> Plan {
    let plan = Plan::workload(&format!("snapshot,{known}"));
    // All of its free memory can be in one report, and on a busy host for longer than it can do without
    // (docs/limits.md).
    let plan = plan.with("--balloon", "reporting=off");
    plan.with("--memory", memory).with("--mte", "require")
}

/// A small one.
pub fn small() -> Plan {
    plan(4, "128M")
}

/// One with known contents in 64 MiB.
pub fn large() -> Plan {
    plan(64, "256M")
}

/// The guest of a snapshot, whose memory is loaded first or as it is touched.
pub fn restore(folder: &Path, lazy: bool) -> Plan {
    let plan = Plan::restore(folder);
    if lazy { plan.flag("--lazy") } else { plan }
}

/// A path as a word of a command.
pub fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// Saves a guest in a folder of its own.
pub fn save(guest: &Guest, folder: &Path, words: &[&str]) -> Value {
    let words = [&["snapshot", text(folder), "--json"][..], words].concat();
    let output = guest.tesseractl(&words).output().unwrap();
    assert!(output.status.success(), "{output:?}");
    serde_json::from_slice(&output.stdout).unwrap()
}

/// Starts a guest, saves it once it has looked at its memory, and ends it. What it said when it was ready, and then.
pub fn saved(plan: Plan, folder: &Path) -> (Value, Value) {
    let mut guest = plan.start();
    let ready = guest.report("ready");
    let before = verified(&mut guest);
    save(&guest, folder, &["--keep-paused"]);
    guest.stop();
    (ready, before)
}

/// The host has taken back all that the guest gave.
pub fn nothing_failed(guest: &Guest) {
    let footprint = guest.client().footprint().unwrap();
    assert_eq!(footprint.failed_bytes, 0, "{footprint:?}");
}

/// Has the guest look at all of its memory, which must be right.
pub fn verified(guest: &mut Guest) -> Value {
    let report = guest.order("verify", "verified");
    assert_eq!(report["ok"], true, "{report}");
    report
}

/// The number of the next beat.
pub fn beat(guest: &mut Guest) -> u64 {
    guest.report("beat")["beat"].as_u64().unwrap()
}

/// A number of a report.
pub fn number(report: &Value, field: &str) -> u64 {
    report[field].as_u64().unwrap()
}

/// It is the guest of these reports, later.
pub fn continues(ready: &Value, before: &Value, after: &Value) {
    assert_eq!(after["nonce"], ready["nonce"], "another guest");
    for counter in ["beat", "monotonic_ns"] {
        assert!(number(after, counter) > number(before, counter), "{counter}: {before} {after}");
    }
}

/// Has the guest power off.
pub fn power_off(mut guest: Guest) {
    guest.type_line("poweroff");
    guest.finish().expect_power_off();
}
