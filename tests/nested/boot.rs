//! A guest boots with what it was given: vCPUs, MTE, memory, devices.

use serde_json::{Value, json};
use testing::guest::{Finished, Plan, QUICK};
use testing::lab::Lab;

fn cpuinfo(plan: Plan) -> (Finished, Value) {
    let finished = plan.run().expect_power_off();
    let info = finished.report("machine");
    (finished, info)
}

/// A guest of which the VMM has nothing to say: a balloon's driver that a busy host makes slow is reported.
fn silent() -> Plan {
    Plan::workload("cpuinfo").flag("--no-balloon")
}

#[test]
#[ignore = "long"]
fn every_vcpu_comes_online_and_runs() {
    Lab::new().run(|| {
        for cpus in [1, 2, 4] {
            let finished =
                Plan::workload("smp").with("--cpus", &cpus.to_string()).run().expect_power_off();

            let done = finished.report("done");
            assert_eq!((done["cpus"].as_u64(), &done["ok"]), (Some(cpus), &Value::Bool(true)));
        }
    });
}

#[test]
fn mte_is_there_when_required_or_possible_and_absent_when_off() {
    Lab::new().run(|| {
        for (mode, expected) in [("require", true), ("auto", true), ("off", false)] {
            let (finished, info) = cpuinfo(silent().with("--mte", mode));

            assert_eq!(info["features"]["mte"], expected, "{mode}");
            assert_eq!(finished.messages, "", "{mode}");
        }
    });
}

#[test]
fn without_mte_on_the_host_require_refuses_and_auto_says_so() {
    Lab::new().append("arm64.nomte").run(|| {
        let refused = Plan::workload("cpuinfo").with("--mte", "require").run();

        assert_eq!(refused.code, Some(69), "{refused:#?}");
        assert!(refused.messages.contains("MTE is required"), "{refused:#?}");
        assert!(refused.messages.contains("arm64.nomte"), "{refused:#?}");
        assert!(refused.console.is_empty(), "{refused:#?}");

        let (finished, info) = cpuinfo(Plan::workload("cpuinfo").with("--mte", "auto"));
        assert_eq!(info["features"]["mte"], false);
        assert!(finished.messages.contains("cannot give the guest MTE"), "{finished:#?}");
        assert!(finished.messages.contains("arm64.nomte"), "{finished:#?}");
    });
}

#[test]
fn mte_stops_an_overflow_and_a_use_after_free() {
    Lab::new().run(|| {
        let finished = Plan::workload("mte").with("--mte", "require").run().expect_power_off();

        assert_eq!(finished.report("tags")["ok"], true);
        assert_eq!(finished.report("overflow")["caught"], true, "{finished:#?}");
        assert_eq!(finished.report("use_after_free")["caught"], true, "{finished:#?}");
        assert_eq!(finished.report("done")["ok"], true);
    });
}

#[test]
#[ignore = "long"]
fn small_and_large_guests_have_all_their_memory() {
    Lab::new().memory("8G").run(|| {
        // The kernel's own share: its image, page structures and reservations.
        for (size, at_least_kib) in [("64M", 16 << 10), ("130M", 80 << 10), ("3584M", 3400 << 10)] {
            // A report has nearly all free memory of a small guest for as long as the host takes (docs/limits.md), which
            // is long on a busy one.
            let plan = Plan::workload("cpuinfo").with("--memory", size);
            let (_, info) = cpuinfo(plan.with("--balloon", "reporting=off"));

            let memory = info["memory_kib"].as_u64().unwrap();
            assert!(memory >= at_least_kib, "{size}: {memory} KiB");
        }
    });
}

#[test]
fn the_guest_has_the_host_cpus_features_and_a_complete_device_tree() {
    Lab::new().run(|| {
        let (finished, info) = cpuinfo(Plan::whole("cpuinfo"));

        for feature in ["sve", "paca", "pacg", "mte"] {
            assert_eq!(info["features"][feature], true, "{feature}: {info}");
        }
        assert_eq!(info["clocksource"], "arch_sys_counter");
        assert_eq!(info["pmu"], json!({ "devices": [], "cycles": null }), "{info}");
        assert!(info["real_time_clock"].as_str().unwrap().contains("pl031"), "{info}");
        assert!(info["real_time_seconds"].as_u64().unwrap() > 1_500_000_000, "{info}");
        let seeds = finished.report("random");
        assert_eq!(seeds["rng_seed_left"], false, "{seeds}");
        assert_eq!(seeds["kaslr_seed_left"], false, "{seeds}");
        let tree = finished.report("device_tree");
        assert_eq!(
            tree["psci_method"].as_str().map(|text| text.trim_end_matches('\0')),
            Some("hvc")
        );
        let hypervisor = tree["hypervisor"].as_str().map(|text| text.trim_end_matches('\0'));
        assert_eq!(hypervisor, Some("linux,kvm"));
        let bootargs = tree["bootargs"].as_str().unwrap();
        assert!(
            bootargs.starts_with("panic=-1 reboot=panic_warm quiet workload=cpuinfo"),
            "{bootargs}"
        );
    });
}

#[test]
fn with_pmu_the_guest_counts_and_a_bare_command_line_is_the_users_alone() {
    Lab::new().run(|| {
        let plan = silent().with("--cpus", "2").flag("--pmu");

        let (finished, info) = cpuinfo(plan.flag("--bare-cmdline"));

        assert_eq!(info["command_line"], format!("{QUICK} workload=cpuinfo"));
        let devices = info["pmu"]["devices"].as_array().unwrap();
        assert_eq!(devices.len(), 1, "{info}");
        assert!(info["pmu"]["cycles"].as_u64().is_some_and(|cycles| cycles > 0), "{info}");
        assert_eq!(finished.messages, "");
    });
}

#[test]
#[ignore = "long"]
fn a_host_with_only_a_gicv2_boots_up_to_eight_vcpus_and_one_without_a_pmu_gives_none() {
    let lab = Lab::new().qemu("-machine").qemu("gic-version=2");
    let lab = lab.qemu("-cpu").qemu("max,pauth-impdef=on,pmu=off");
    lab.run(|| {
        let finished = Plan::workload("smp").with("--cpus", "3").run().expect_power_off();
        assert_eq!(finished.report("done")["cpus"], 3);

        let refused = Plan::workload("smp").with("--cpus", "9").run();
        assert_eq!(refused.code, Some(69), "{refused:#?}");
        assert!(refused.messages.contains("--cpus 8 or less"), "{refused:#?}");

        let refused = Plan::workload("smp").flag("--pmu").run();
        assert_eq!(refused.code, Some(69), "{refused:#?}");
        assert!(refused.messages.contains("offers guests no PMU"), "{refused:#?}");
        assert!(refused.console.is_empty(), "{refused:#?}");
    });
}
