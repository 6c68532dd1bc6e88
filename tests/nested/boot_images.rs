//! VMs that boot the same kernel and initrd, and share them.

use std::fs;

use serde_json::Value;
use testing::guest::{Guest, Plan};
use testing::lab::{Lab, artifact};
use testing::scratch::Scratch;
use testing::snapshot::{continues, number, power_off, save, small, verified};
use testing::template::Holder;

use crate::snapshots::balloon;

/// What a VM still has of its boot image.
fn of_the_image(guest: &Guest) -> u64 {
    number(&guest.client().metrics().unwrap()["memory"], "boot_image_bytes")
}

#[test]
#[ignore = "long"]
fn vms_share_a_boot_image_and_what_they_give_back_never_shows_it_again() {
    Lab::new().run(|| {
        let scratch = Scratch::new();
        let [kernel, initrd, folder] = ["Image", "initrd", "one"].map(|name| scratch.join(name));
        fs::copy(artifact("Image"), &kernel).unwrap();
        fs::copy(artifact("initrd.cpio"), &initrd).unwrap();
        let mut holder = Holder::of_boot_files(&kernel, &initrd);
        let image = holder.checksum();
        let boots = |plan: Plan| holder.boots(plan.kernel(&kernel).initrd(&initrd));

        let done = boots(Plan::workload("mte").with("--mte", "require")).run().expect_power_off();
        for event in ["overflow", "use_after_free"] {
            assert_eq!(done.report(event)["caught"], true, "{done:#?}");
        }
        let mut one = boots(small().with("--cpus", "2")).start();
        let mut other = boots(small().with("--tag-storage", "strict")).start();
        let ready = one.report("ready");
        other.report("ready");
        let before = verified(&mut one);
        let all = of_the_image(&one);
        assert!(all > 32 << 20, "{all}");
        balloon(&one, 32);
        continues(&ready, &before, &verified(&mut one));
        balloon(&one, 0);
        continues(&ready, &before, &verified(&mut one));
        verified(&mut other);
        let footprint = one.client().footprint().unwrap();
        assert!(footprint.template_bytes.unwrap() > 2 << 20, "{footprint:?}");
        assert_eq!(footprint.failed_bytes, 0, "{footprint:?}");
        assert!(of_the_image(&one) <= all);
        assert_eq!(holder.checksum(), image);

        // It is all in a snapshot, and no VM needs the holder.
        let second = holder.boots(Plan::workload("idle").kernel(&kernel).initrd(&initrd));
        holder.kill();
        save(&one, &folder, &["--keep-paused"]);
        one.stop();
        let mut restored = Plan::restore(&folder).start();
        continues(&ready, &before, &verified(&mut restored));
        assert_eq!(restored.client().metrics().unwrap()["memory"]["boot_image_bytes"], Value::Null);
        power_off(restored);
        verified(&mut other);
        power_off(other);
        let refused = second.run();
        assert_eq!(refused.code, Some(69), "{refused:?}");
        assert!(refused.messages.contains("tessera template --kernel"), "{refused:?}");
    });
}

#[test]
#[ignore = "long"]
fn files_that_have_changed_are_not_booted_from_the_image_of_what_they_were() {
    Lab::new().run(|| {
        let scratch = Scratch::new();
        let [kernel, initrd] = ["Image", "initrd"].map(|name| scratch.join(name));
        fs::copy(artifact("Image"), &kernel).unwrap();
        fs::copy(artifact("initrd.cpio"), &initrd).unwrap();
        let holder = Holder::of_boot_files(&kernel, &initrd);
        let plan = || Plan::workload("cpuinfo").kernel(&kernel).initrd(&initrd);
        holder.boots(plan()).run().expect_power_off();

        fs::copy(artifact("initrd.cpio"), &initrd).unwrap();

        let refused = holder.boots(plan()).run();
        assert_eq!(refused.code, Some(69), "{refused:?}");
        assert!(refused.messages.contains("as they are now"), "{refused:?}");
        let holder = Holder::of_boot_files(&kernel, &initrd);
        holder.boots(plan()).run().expect_power_off();
        let on_demand = holder.boots(plan()).with("--tag-storage", "demand").run();
        assert_eq!(on_demand.code, Some(78), "{on_demand:?}");
        assert!(on_demand.messages.contains("--tag-storage strict"), "{on_demand:?}");
    });
}
