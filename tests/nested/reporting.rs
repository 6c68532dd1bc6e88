//! Free page reporting: memory that the guest frees goes back to the host, and comes back as new.
//!
//! A guest's idle value is what it has resident once its driver runs and its reports have stood still for
//! three of the driver's rounds, before it touches anything.

use std::time::Duration;

use serde_json::json;
use testing::footprint::{Curve, Footprint, mib};
use testing::guest::{Guest, Plan};
use testing::inject::{Change, thread_of};
use testing::lab::Lab;
use testing::setting::Setting;
use testing::wait::until;

/// The host's kernel with pages of 16 KiB.
pub(crate) const KERNEL_16K: &str = "linux-image-arm64-16k";

/// Keeps the lists of free pages that Linux has for each processor short. They are out of the sight of
/// reporting, and by default they may hold as much as the low watermark: 27 MiB of a guest of 1 GiB, some
/// other part of which they hold whenever one looks.
const SHORT_LISTS: &str = "sysctl.vm.percpu_pagelist_high_fraction=1024";

/// A guest of so much memory, in MiB, that waits for commands.
pub(crate) fn plan(memory: u64) -> Plan {
    let plan = Plan::workload("memory").append(SHORT_LISTS);
    plan.with("--memory", &format!("{memory}M")).with("--mte", "require")
}

/// Starts it, and waits for its balloon's driver.
pub(crate) fn start(plan: Plan) -> Guest {
    let mut guest = plan.start();
    guest.report("ready");
    let mut client = guest.client();
    until("the balloon's driver", || {
        let balloon: serde_json::Value = client.get("/balloon").unwrap();
        (balloon["driver"] == "active").then_some(())
    });
    guest
}

/// Has a guest touch memory, in MiB, and free it: its host gets it back.
fn comes_back(what: &str, plan: Plan, touch: u64) -> Guest {
    let mut guest = start(plan);
    // What a guest has cleared as it booted is resident until it is reported, which a busy machine delays.
    until("a guest at rest", || {
        (Footprint::of(&mut guest.client()).resident < touch << 20).then_some(())
    });
    let idle = Curve::until_still(&guest).last();
    guest.order(&format!("touch {touch}"), "touched");
    let touched = Footprint::of(&mut guest.client()).resident;
    assert!(touched >= touch << 20, "{what}: {touched} bytes resident with {touch} MiB touched");

    assert_eq!(guest.order("free", "freed")["wrong"], 0, "{what}");
    let aim = idle + idle / 20;
    let curve = Curve::record(&guest, what, |curve| curve.last() <= aim);

    println!(
        "{what}, with {SHORT_LISTS}: idle {:.1} MiB, {:.1} MiB with {touch} MiB touched, then freed:\n{curve}",
        mib(idle),
        mib(touched)
    );
    let end = Footprint::of(&mut guest.client());
    assert!(end.reported >= end.discarded && end.discarded >= touched - aim, "{what}: {end:?}");
    assert_eq!((end.failed, end.kept, end.inflated), (0, 0, 0), "{what}: {end:?}");
    guest
}

#[test]
fn freed_memory_goes_back_to_the_host() {
    Lab::new().run(|| {
        comes_back("1 GiB", plan(1024), 768).stop();
        comes_back("1 GiB, 4 vCPUs", plan(1024).with("--cpus", "4"), 384).stop();
    });
}

#[test]
#[ignore = "long"]
fn freed_memory_of_a_memfd_and_of_a_small_guest_goes_back() {
    Lab::new().run(|| {
        let memfd = plan(1024).with("--memory-backing", "memfd");
        comes_back("1 GiB in a memfd", memfd, 384).stop();
        // It reports in units smaller than a huge page, around which the host would put huge pages together again.
        let path = "/sys/kernel/mm/transparent_hugepage/khugepaged/max_ptes_none";
        let _none = Setting::new(path, "0");
        comes_back("256 MiB", plan(256), 150).stop();
    });
}

#[test]
#[ignore = "long"]
fn freed_memory_goes_back_where_the_guest_clears_what_it_frees() {
    Lab::new().run(|| {
        let guest = comes_back("1 GiB, init_on_free=1", plan(1024).append("init_on_free=1"), 384);
        guest.stop();
    });
}

#[test]
#[ignore = "long"]
fn freed_memory_goes_back_to_a_host_with_pages_of_16_kib() {
    // A host such as those of lent_vms have.
    Lab::new().kernel_package(KERNEL_16K).second_node("128M").run(|| {
        assert_eq!(rustix::param::page_size(), 16 << 10);
        comes_back("1 GiB on pages of 16 KiB", plan(1024), 384).stop();
    });
}

/// Huge pages of 2 MiB that the host's pool has free.
fn free_huge_pages() -> u64 {
    let text = std::fs::read_to_string("/sys/kernel/mm/hugepages/hugepages-2048kB/free_hugepages");
    text.unwrap().trim().parse().unwrap()
}

#[test]
#[ignore = "long"]
fn freed_memory_goes_back_to_a_pool_of_huge_pages() {
    const POOL: u64 = 300;
    const TOUCH: u64 = 300;
    Lab::new().alone().run(|| {
        std::fs::write("/proc/sys/vm/nr_hugepages", POOL.to_string()).unwrap();
        assert_eq!(free_huge_pages(), POOL);
        let plan = Plan::workload("memory").append(SHORT_LISTS).with("--memory", "512M");
        let plan = plan.with("--memory-backing", "hugetlbfs");
        // The lab's kernel gives no tags to hugetlbfs memory.
        let no_tags = "--memory-backing anonymous";
        let refused = plan.clone().with("--mte", "require").run();
        assert_eq!(refused.code, Some(69), "{refused:#?}");
        assert!(refused.messages.contains(no_tags), "{refused:#?}");
        assert!(refused.console.is_empty(), "{refused:#?}");
        assert_eq!(free_huge_pages(), POOL);
        let mut guest = start(plan.with("--mte", "auto"));
        Curve::until_still(&guest);
        guest.order(&format!("touch {TOUCH}"), "touched");
        let touched = free_huge_pages();

        guest.order("free", "freed");
        // Each huge page that the guest still uses a part of stays.
        let aim = touched + (TOUCH - 32) / 2;
        let freed = until("huge pages that are free again", || {
            let free = free_huge_pages();
            (free >= aim).then_some(free)
        });

        println!(
            "huge pages free: {touched} with {TOUCH} MiB touched, then freed: {freed} of {POOL}"
        );
        // It still touches and reports some.
        let end = until("the same count of VMM and host", || {
            let end = Footprint::of(&mut guest.client());
            (end.resident >> 21 == POOL - free_huge_pages()).then_some(end)
        });
        assert_eq!((end.failed, end.kept), (0, 0), "{end:?}");
        guest.type_line("poweroff");
        let finished = guest.finish().expect_power_off();
        assert_eq!(finished.report("start")["mte"], false, "{finished:#?}");
        for part in ["cannot give the guest MTE (--mte auto)", no_tags] {
            assert!(finished.messages.contains(part), "{part}: {finished:#?}");
        }
        assert_eq!(free_huge_pages(), POOL);
    });
}

#[test]
#[ignore = "long"]
fn without_reporting_freed_memory_stays_until_it_is_switched_on() {
    const TOUCH: u64 = 768;
    Lab::new().run(|| {
        // Not offered at all: nothing is ever reported.
        let mut guest = start(plan(1024).with("--balloon", "reporting=off"));
        guest.order(&format!("touch {TOUCH}"), "touched");
        guest.order("free", "freed");
        let curve = Curve::until_still(&guest);
        println!("1 GiB, not offered:\n{curve}");
        assert!(curve.last() > 700 << 20, "{curve}");
        assert_eq!(Footprint::of(&mut guest.client()).reported, 0);
        guest.stop();

        // Switched off while the guest runs: reported and kept.
        let mut guest = start(plan(1024));
        let idle = Curve::until_still(&guest).last();
        let mut client = guest.client();
        client.send("PATCH", "/balloon", &json!({ "free_page_reporting": false })).unwrap();
        guest.order(&format!("touch {TOUCH}"), "touched");
        guest.order("free", "freed");
        let curve = Curve::until_still(&guest);
        println!("1 GiB, switched off while the guest runs:\n{curve}");
        assert!(curve.last() > 700 << 20, "{curve}");
        Footprint::wait(&guest, "reports that are kept", |now| now.kept > 600 << 20);

        // Switched on again: what is freed from now on goes back. The guest may have reported until
        // now, so what was kept is read after the switch.
        client.send("PATCH", "/balloon", &json!({ "free_page_reporting": true })).unwrap();
        let kept = Footprint::of(&mut client).kept;
        guest.order(&format!("touch {TOUCH}"), "touched");
        guest.order("free", "freed");
        // What was kept and is not touched again stays: the guest has some 200 MiB more than it touches.
        let aim = idle + (220 << 20);
        let curve = Curve::record(&guest, "reporting again", |curve| curve.last() <= aim);
        println!("... and on again:\n{curve}");
        assert_eq!(Footprint::of(&mut client).kept, kept);
        guest.stop();
    });
}

#[test]
#[ignore = "long"]
fn memory_that_went_back_comes_back_zero_without_tags_and_takes_new_ones() {
    // MiB: what the guest frees is what it takes first the next time.
    const TAG: u64 = 64;
    Lab::new().run(|| {
        for backing in ["anonymous", "memfd"] {
            let plan = plan(768).with("--memory-backing", backing).with("--cpus", "2");
            let mut guest = start(plan);
            for round in 0..2 {
                let before = Footprint::of(&mut guest.client());
                let tagged = guest.order(&format!("tag {TAG}"), "tagged");
                assert_eq!(tagged["fresh"], true, "{backing}, round {round}: {tagged}");
                assert_eq!(tagged["wrong"], 0, "{backing}, round {round}: {tagged}");
                assert_eq!(tagged["stops"], true, "{backing}, round {round}: {tagged}");
                assert_eq!(guest.order("free", "freed")["wrong"], 0, "{backing}, round {round}");
                Footprint::wait(&guest, "reports of what was tagged", |now| {
                    now.discarded >= before.discarded + ((TAG - 16) << 20)
                });
            }
            guest.type_line("poweroff");
            guest.finish().expect_power_off();
        }
    });
}

/// `madvise`.
const MADVISE: u64 = 233;

#[test]
#[ignore = "long"]
fn a_small_guest_does_not_run_while_what_it_has_free_is_given_back() {
    Lab::new().as_root().run(|| {
        let plan = Plan::workload("memory").with("--memory", "256M").with("--cpus", "2");
        let mut guest = start(plan);
        guest.order("press 170", "pressing");
        let thread = thread_of(guest.pid(), "tessera").unwrap();
        for _ in 0..3 {
            // A host that takes long: without the free memory that it reports the guest has next to nothing.
            let slow = Change { thread, call: Some(MADVISE), becomes: None, arguments: &[] };
            slow.make_after(Duration::from_secs(5)).unwrap();
        }
        assert_eq!(guest.order("relax", "relaxed")["wrong"], 0);
        guest.stop();
    });
}
