//! Lines of VMs that are busy, silent, and many.
#![allow(clippy::unwrap_used)]

use std::time::Instant;

use arch::units::Bytes;
use serde_json::json;
use vmm::api::model::{InstanceInfo, State, TagStorage};
use vmm::registry::{Record, Vm};

use super::*;
use crate::failure::Failure;
use crate::fleet::{Answer, Silence};
use crate::process::Usage;

fn sight(name: &str, answer: Result<Answer, Silence>) -> Sight {
    let record: Record = serde_json::from_value(json!({
        "version": 1, "name": name, "pid": 7, "start_time": 1, "started_by": "test",
    }))
    .unwrap();
    let usage = Some(Usage { resident: Bytes::mib(128), cpu: Duration::from_secs(3) });
    Sight { vm: Vm { record, user: None }, answer, usage }
}

fn answer() -> Answer {
    Answer {
        instance: InstanceInfo::new("x", State::Running),
        vcpus: Some(1),
        memory_mib: Some(512),
        balloon: serde_json::from_value(json!({
            "amount_mib": 64, "actual_mib": 32, "deflate_on_oom": true, "stats_polling_interval_s": 0,
            "free_page_hinting": false, "free_page_reporting": true, "driver": "active",
            "reporting": { "state": "on" },
        }))
        .ok(),
        tags: Some(TagStorage {
            supply: Some("ledger".to_owned()),
            capacity_bytes: 8 << 20,
            reserved_bytes: 1 << 20,
            max_bytes: Some(2 << 20),
            exhausted: true,
            ..TagStorage::off()
        }),
    }
}

fn view(sights: Vec<Sight>) -> View {
    View { sights, pool: None, at: Instant::now() }
}

#[test]
fn a_vm_is_a_line_with_bars() {
    let silent = Err(Silence::NoAnswer("no answer within 500ms".to_owned()));
    let sights = vec![sight("vm1", Ok(answer())), sight("b\u{1b}[2J", silent)];

    let lines = lines(&view(sights), None, 200);

    assert_eq!(lines[0], "2 VMs, 1 without an answer, 256 MiB of 512 MiB guest memory resident");
    let line = "[##--------] 128 MiB    [#---------] 32 MiB     [#####-----] 1 MiB waits";
    assert!(lines[3].starts_with("vm1    Running") && lines[3].ends_with(line), "{lines:?}");
    assert!(lines[4].starts_with("b\u{fffd}[2J  no answer"), "{lines:?}");
    assert!(lines[4].contains("  128 MiB  "), "the host knows what it takes: {lines:?}");
}

#[test]
fn the_share_of_the_cpu_is_that_since_the_last_look() {
    let mut before = view(vec![sight("vm1", Ok(answer()))]);
    let mut after = view(vec![sight("vm1", Ok(answer()))]);
    before.sights[0].usage.as_mut().unwrap().cpu = Duration::from_secs(2);
    after.at = before.at + Duration::from_secs(2);

    let lines = lines(&after, Some(&before), 200);

    assert!(lines[0].starts_with("1 VM, 128 MiB of"), "{lines:?}");
    assert!(lines[3].contains("Running         50  "), "{lines:?}");
}

#[test]
fn lines_are_cut_at_the_width_and_no_vm_is_said() {
    let sights = vec![sight(&"x".repeat(64), Ok(answer()))];
    let short = lines(&view(vec![sight("vm10", Ok(answer()))]), None, 80);
    assert!(short[3].ends_with("[#---] 32 MiB     [##--] 1 MiB waits"), "{short:?}");
    for width in [0, 1, 30, 100] {
        let lines = lines(&view(sights.clone()), None, width);
        assert!(lines.iter().all(|line| line.chars().count() <= width.max(1)), "{lines:?}");
    }

    let empty = View { pool: Some(Err(Failure::unreachable("gone\u{7}"))), ..view(Vec::new()) };
    let lines = lines(&empty, None, 200);
    assert!(lines[3].contains("No VM runs") && lines[5] == "Pool  gone\u{fffd}", "{lines:?}");
}

#[test]
fn bars_of_any_numbers_have_one_width() {
    for (part, whole) in [(0, 0), (0, 1), (1, 1), (1, u64::MAX), (u64::MAX, 1), (3, 4)] {
        assert_eq!(bar(part, whole, 10).len(), 12);
    }
    assert_eq!(
        (bar(1, 1 << 40, 10), bar(0, 9, 10)),
        ("[#---------]".to_owned(), "[----------]".to_owned())
    );
}
