//! VMs that boot the same kernel and initrd, and share them.

use std::fs;

use serde_json::Value;
use testing::balloon;
use testing::broker::Broker;
use testing::guest::{Guest, Plan};
use testing::lab::{Lab, artifact};
use testing::scratch::Scratch;
use testing::snapshot::{continues, large, number, power_off, save, small, verified};
use testing::template::Holder;
use testing::wait::until;

use crate::tag_storage::Sample;

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
        balloon::resize(&one, 32);
        continues(&ready, &before, &verified(&mut one));
        balloon::resize(&one, 0);
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

/// What is reserved for a guest on demand, by its own account, and by the broker's the same.
fn reserved(guest: &Guest, broker: &Broker) -> u64 {
    until("the same from VM and broker", || {
        let told: Value = guest.client().get("/tag-storage").unwrap();
        let reserved = broker.report().pool.leases[0].reserved_bytes;
        (told["reserved_bytes"] == reserved).then_some(reserved)
    })
}

#[test]
#[ignore = "long"]
fn a_guest_on_demand_has_tag_storage_for_its_boot_image() {
    Lab::new().as_root().run(|| {
        let holder = Holder::of_boot_files(&artifact("Image"), &artifact("initrd.cpio"));
        let short = Broker::start(&["--capacity", "512K"]);
        let plan = |broker: &Broker| {
            let plan = large().with("--cpus", "2");
            holder.boots(plan.with("--broker", broker.socket()).with("--tag-storage", "demand"))
        };
        let refused = plan(&short).run();
        assert_eq!(refused.code, Some(69), "{refused:?}");
        assert!(refused.messages.contains("boot image"), "{refused:?}");

        let broker = Broker::start(&["--capacity", "64M"]);
        let mut guest = plan(&broker).start();
        let ready = guest.report("ready");
        let before = verified(&mut guest);
        let started = reserved(&guest, &broker);
        let [image, all] = [of_the_image(&guest), 256 << 20].map(|bytes| bytes / 32);
        assert!(image <= started && started < all, "{image} {started} {all}");
        Sample::of(&guest, "after a look at all");
        for _ in 0..2 {
            balloon::resize(&guest, 64);
            continues(&ready, &before, &verified(&mut guest));
            Sample::of(&guest, "with a balloon");
            balloon::resize(&guest, 0);
            continues(&ready, &before, &verified(&mut guest));
        }
        assert!(of_the_image(&guest) / 32 <= reserved(&guest, &broker));
        let footprint = guest.client().footprint().unwrap();
        assert_eq!(footprint.failed_bytes, 0, "{footprint:?}");

        // Without MTE it may borrow, and its memory is placed nowhere as the pool is no node.
        let borrower = Plan::workload("cpuinfo").with("--mte", "off");
        holder.boots(borrower.with("--broker", broker.socket())).run().expect_power_off();
        power_off(guest);
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
        let locked = holder.boots(plan()).flag("--lock-memory").run();
        assert_eq!(locked.code, Some(78), "{locked:?}");
        assert!(locked.messages.contains("--lock-memory"), "{locked:?}");
    });
}
