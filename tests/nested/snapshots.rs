//! Snapshots: a guest is saved, ends, and continues in another process.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::{Value, json};
use testing::balloon;
use testing::footprint::Footprint;
use testing::guest::{Finished, Guest, Plan, STOP};
use testing::lab::{Lab, program};
use testing::scratch::Scratch;
use testing::snapshot::{
    Rounds, beat, continues, cycles, kills, large, moments_of_a_boot, number, plan, power_off,
    restore, save, saved, small, text, verified,
};
use testing::wait::until;
use vmm::api::model::State;

use crate::reporting::KERNEL_16K;

#[test]
fn a_guest_continues_in_another_process_with_all_its_tags() {
    Lab::new().run(|| {
        let scratch = Scratch::new();
        let folder = scratch.join("one");
        let mut guest = large().with("--cpus", "4").start();
        let ready = guest.report("ready");
        let before = verified(&mut guest);

        let saved = save(&guest, &folder, &[]);

        assert_eq!(saved["state"], "Running");
        // The guest uses far less than it has.
        let bytes = number(&saved, "bytes");
        assert!(bytes > 32 << 20 && bytes < 200 << 20, "{saved}");
        // It runs on, as if nothing had been.
        let after = verified(&mut guest);
        continues(&ready, &before, &after);
        let last = beat(&mut guest);
        guest.stop();

        let mut guest = Plan::restore(&folder).start();
        // It does not know what it did after the save.
        assert!(beat(&mut guest) <= last);
        let again = verified(&mut guest);
        continues(&ready, &before, &again);
        power_off(guest);
    });
}

#[test]
#[ignore = "long"]
fn a_guest_is_saved_and_restored_many_times_over() {
    Lab::new().run(|| cycles(small().with("--cpus", "2"), 4));
}

#[test]
#[ignore = "long"]
fn a_guest_is_saved_while_it_boots() {
    Lab::new().run(|| {
        // The first moment is as soon as the VM answers, which on a busy host may be late.
        let early = (0..3).map(|_| moments_of_a_boot(&small(), 3)).find(|early| *early > 0);
        println!("{early:?} of 3 moments were before init");
        assert!(early.is_some());
    });
}

#[test]
#[ignore = "long"]
fn a_guest_finds_each_restore_and_no_pause_and_renews_its_random_numbers() {
    Lab::new().run(|| {
        let scratch = Scratch::new();
        let folder = scratch.join("one");
        let mut guest = small().start();
        guest.report("ready");
        guest.client().pause().unwrap();
        guest.client().resume().unwrap();
        assert_eq!(verified(&mut guest)["forks"], 0);

        for restores in 1..3 {
            save(&guest, &folder, &["--keep-paused", "--replace"]);
            guest.stop();
            guest = Plan::restore(&folder).start();
            // The interrupt is there when the guest first runs; its report of the kernel's log need not be the first.
            until("the guest finds that it was restored", || {
                (verified(&mut guest)["forks"] == restores).then_some(())
            });
        }

        power_off(guest);
    });
}

#[test]
#[ignore = "long"]
fn vms_that_are_killed_while_they_are_saved_and_restored_leave_nothing() {
    Lab::new().emulated().run(|| kills(Rounds::Count(3)));
}

#[test]
#[ignore = "long"]
fn a_restored_guest_is_paused_where_that_is_asked_for() {
    Lab::new().run(|| {
        let scratch = Scratch::new();
        let folder = scratch.join("one");
        let mut guest = small().start();
        guest.report("ready");
        save(&guest, &folder, &[]);
        guest.stop();

        let mut guest = Plan::restore(&folder).flag("--paused").start();
        guest.answers();
        assert_eq!(guest.client().instance().unwrap().state, State::Paused);
        // A second snapshot of what has not run is the first.
        save(&guest, &scratch.join("two"), &[]);
        guest.client().resume().unwrap();
        verified(&mut guest);
        power_off(guest);

        let mut guest = Plan::restore(&scratch.join("two")).start();
        verified(&mut guest);
        power_off(guest);
    });
}

#[test]
fn a_client_saves_and_restores_by_the_interface() {
    Lab::new().run(|| {
        let scratch = Scratch::new();
        let files = [scratch.join("vm"), scratch.join("mem")];
        let create = json!({ "snapshot_path": files[0], "mem_file_path": files[1] });
        let mut guest = small().with("--id", "one").start();
        let ready = guest.report("ready");
        let mut client = guest.client();

        let refused = client.send("PUT", "/snapshot/create", &create).unwrap_err();
        assert!(refused.to_string().contains("unavailable while running"), "{refused}");
        client.pause().unwrap();
        let nowhere = json!({ "snapshot_path": "/nowhere/state", "mem_file_path": files[1] });
        assert!(client.send("PUT", "/snapshot/create", &nowhere).is_err());
        assert_eq!(scratch.names(), Vec::<String>::new());
        client.send("PUT", "/snapshot/create", &create).unwrap();
        assert_eq!(client.instance().unwrap().state, State::Paused);
        client.resume().unwrap();
        verified(&mut guest);
        guest.stop();

        let mut guest = Plan::waiting().start();
        guest.answers();
        let mut client = guest.client();
        let load = |memory: &Path| {
            json!({ "snapshot_path": files[0], "mem_file_path": memory, "resume_vm": true })
        };
        let refused = client.send("PUT", "/snapshot/load", &load(&files[0])).unwrap_err();
        assert!(refused.to_string().contains("vm"), "{refused}");
        client.send("PUT", "/snapshot/load", &load(&files[1])).unwrap();
        let instance = client.instance().unwrap();
        // The name is the process's.
        assert_eq!((instance.state, &*instance.id), (State::Running, "tessera"));
        assert_eq!(client.vm_config().unwrap()["machine-config"]["mem_size_mib"], 128);
        let after = verified(&mut guest);
        assert_eq!(after["nonce"], ready["nonce"]);
        power_off(guest);
    });
}

/// How much of the memory of a guest that is restored lazily is not loaded.
pub(crate) fn unloaded(guest: &Guest) -> u64 {
    number(&guest.client().metrics().unwrap()["snapshot"], "unloaded_bytes")
}

#[test]
#[ignore = "long"]
fn memory_is_loaded_as_it_is_touched() {
    Lab::new().run(|| {
        let scratch = Scratch::new();
        let folder = scratch.join("one");
        let (ready, before) = saved(large().with("--cpus", "4"), &folder);

        let mut guest = Plan::restore(&folder).flag("--lazy").flag("--paused").start();
        guest.answers();
        let all = unloaded(&guest);
        assert!(all > 64 << 20 && all < 256 << 20, "{all}");
        guest.client().resume().unwrap();
        beat(&mut guest);
        let some = unloaded(&guest);
        assert!(some < all && some > 32 << 20, "{some} of {all}: a beat is little work");
        // What the guest has given back is not loaded when it takes it again.
        balloon::resize(&guest, 64);
        continues(&ready, &before, &verified(&mut guest));
        // A chunk comes as a huge page, where the host has such.
        let huge = Footprint::of(&mut guest.client()).huge;
        let pages = fs::read_to_string("/sys/kernel/mm/transparent_hugepage/enabled").unwrap();
        assert!(huge > 32 << 20 || pages.contains("[never]"), "{huge}");
        balloon::resize(&guest, 0);
        continues(&ready, &before, &verified(&mut guest));
        // What is not loaded yet is in the next snapshot as well.
        assert!(unloaded(&guest) > 0);
        save(&guest, &scratch.join("two"), &[]);
        assert_eq!(unloaded(&guest), 0);
        continues(&ready, &before, &verified(&mut guest));
        guest.stop();

        let mut guest = Plan::restore(&scratch.join("two")).flag("--lazy").start();
        continues(&ready, &before, &verified(&mut guest));
        power_off(guest);
    });
}

#[test]
#[ignore = "long"]
fn memory_of_a_memfd_is_loaded_as_it_is_touched() {
    Lab::new().run(|| {
        let scratch = Scratch::new();
        let folder = scratch.join("one");
        let mut guest =
            plan(16, "128M").with("--memory-backing", "memfd").with("--cpus", "4").start();
        let ready = guest.report("ready");
        let before = verified(&mut guest);
        save(&guest, &folder, &["--keep-paused"]);
        guest.stop();

        let mut guest = Plan::restore(&folder).flag("--lazy").flag("--paused").start();
        guest.answers();
        let all = unloaded(&guest);
        guest.client().resume().unwrap();
        beat(&mut guest);
        let some = unloaded(&guest);
        assert!(some < all && some > 16 << 20, "{some} of {all}: a beat is little work");
        balloon::resize(&guest, 32);
        continues(&ready, &before, &verified(&mut guest));
        balloon::resize(&guest, 0);
        continues(&ready, &before, &verified(&mut guest));
        save(&guest, &scratch.join("two"), &[]);
        assert_eq!(unloaded(&guest), 0);
        continues(&ready, &before, &verified(&mut guest));
        guest.stop();

        let mut guest = Plan::restore(&scratch.join("two")).flag("--lazy").start();
        continues(&ready, &before, &verified(&mut guest));
        power_off(guest);
        let ended = Plan::restore(&damaged_often(&folder)).flag("--lazy").run();
        assert_eq!(ended.code, Some(15), "{ended:?}");
        assert!(ended.messages.contains("chunk"), "{ended:?}");
    });
}

/// A guest of two processors, of which one is off, with a pattern in its vectors, is saved and continues in another
/// process.
fn saved_and_restored(ways: &[bool]) {
    let scratch = Scratch::new();
    let folder = scratch.join("one");
    let plan = Plan::workload("snapshot,4,vectors")
        .with("--memory", "128M")
        .with("--balloon", "reporting=off");
    let mut guest = plan.with("--mte", "require").with("--cpus", "2").start();
    let ready = guest.report("ready");
    // The lab's processor has SVE.
    assert!(number(&ready, "vector_bytes") >= 16, "{ready}");
    assert_eq!(guest.order("offline 1", "switched")["cpus"], 1);
    let before = verified(&mut guest);
    save(&guest, &folder, &["--keep-paused"]);
    guest.stop();

    for lazy in ways {
        let mut guest = restore(&folder, *lazy).start();
        let after = verified(&mut guest);
        continues(&ready, &before, &after);
        assert_eq!((&after["cpus"], &after["holding"]), (&json!(1), &json!(2)), "{after}");
        // A processor that runs cannot be switched on (PSCI_RET_ALREADY_ON).
        assert_eq!(guest.order("online 1", "switched")["cpus"], 2);
        continues(&ready, &after, &verified(&mut guest));
        power_off(guest);
    }
}

#[test]
#[ignore = "long"]
fn a_guest_with_vectors_in_use_and_a_processor_off_is_restored() {
    Lab::new().run(|| saved_and_restored(&[false, true]));
}

#[test]
#[ignore = "long"]
fn a_guest_of_a_gicv2_is_restored() {
    Lab::new().qemu("-machine").qemu("gic-version=2").run(|| saved_and_restored(&[false, true]));
}

#[test]
#[ignore = "long"]
fn a_guest_is_restored_on_a_host_with_pages_of_16_kib() {
    Lab::new().kernel_package(KERNEL_16K).second_node("128M").run(|| {
        saved_and_restored(&[false, true]);
    });
}

#[test]
#[ignore = "long"]
fn a_guest_and_its_copy_are_reached_by_their_agents() {
    Lab::new().run(|| {
        let scratch = Scratch::new();
        let folder = scratch.join("one");
        let guest = Plan::agent(&scratch).with("--cpus", "2").start();
        guest.answers();
        guest.sh("echo kept >/tmp/file");
        let boot = guest.sh("cat /proc/sys/kernel/random/boot_id");
        save(&guest, &folder, &[]);
        guest.sh("echo later >/tmp/file");
        let mut info = Command::new(program("tesseractl"));
        let info = info.args(["snapshot", "info", "--json"]).arg(&folder).output().unwrap();
        let info: Value = serde_json::from_slice(&info.stdout).unwrap();
        assert_eq!((&info["vcpu_count"], &info["manifest"]["kind"]), (&json!(2), &json!("full")));

        // Its own socket is that of the guest that runs on.
        let same = restored(&folder, &[]);
        assert_eq!(same.code, Some(73), "{same:?}");
        let other = scratch.join("other");
        let copy = Plan::restore(&folder).with("--vsock", text(&other)).start();
        copy.agent_answers();

        assert_eq!(copy.sh("cat /tmp/file"), "kept");
        assert_eq!(guest.sh("cat /tmp/file"), "later");
        assert_eq!(copy.sh("cat /proc/sys/kernel/random/boot_id"), boot);
        for guest in [copy, guest] {
            assert!(guest.tesseractl(STOP).status().unwrap().success());
            guest.finish().expect_power_off();
        }
    });
}

/// How often a guest that is restored lazily has waited for a chunk, and how many were read before it touched them.
pub(crate) fn waits_and_prefetched(guest: &Guest) -> (u64, u64) {
    let metrics = guest.client().metrics().unwrap();
    let count = |name| number(&metrics["snapshot"], name);
    (count("demand_faults_total"), count("prefetched_chunks_total"))
}

#[test]
fn what_a_guest_touches_first_is_read_before_at_its_next_restore() {
    Lab::new().run(|| {
        let scratch = Scratch::new();
        let folder = scratch.join("one");
        let guest = Plan::agent(&scratch).start();
        guest.answers();
        guest.sh("true");
        save(&guest, &folder, &["--keep-paused"]);
        guest.stop();
        let lazy = || Plan::restore(&folder).flag("--lazy");

        let guest = lazy().flag("--record-working-set").start();
        guest.answers();
        guest.agent_answers();
        let (without, none) = waits_and_prefetched(&guest);
        guest.stop();
        let record = folder.join("memory.working-set");
        // A header of 32 bytes, a checksum of 4, and 4 for each chunk.
        let recorded = (fs::metadata(&record).unwrap().len() - 36) / 4;
        assert!(none == 0 && recorded > 0, "{none} {recorded}");

        let guest = lazy().flag("--paused").start();
        guest.answers();
        until("the recorded chunks", || (waits_and_prefetched(&guest).1 == recorded).then_some(()));
        guest.client().resume().unwrap();
        guest.agent_answers();
        let (with, _) = waits_and_prefetched(&guest);
        guest.stop();
        println!("waits before the first answer: {without}, with {recorded} chunks known: {with}");
        assert!(with < without, "{with} of {without}");

        let mut damaged = fs::read(&record).unwrap();
        damaged[40] ^= 1;
        fs::write(&record, damaged).unwrap();
        let guest = lazy().start();
        guest.answers();
        guest.agent_answers();
        assert_eq!(waits_and_prefetched(&guest).1, 0);
        assert!(guest.tesseractl(STOP).status().unwrap().success());
        let ended = guest.finish().expect_power_off();
        assert_eq!(ended.messages.matches(text(&record)).count(), 1, "{ended:?}");
    });
}

/// What becomes of a VM with this snapshot.
fn restored(folder: &Path, words: &[(&str, &str)]) -> Finished {
    let plan = Plan::restore(folder);
    words.iter().fold(plan, |plan, (flag, value)| plan.with(flag, value)).run()
}

/// A copy of a snapshot, of which one file is changed.
fn copy(folder: &Path, name: &str, file: &str, change: impl FnOnce(&mut Vec<u8>)) -> PathBuf {
    let other = folder.with_file_name(name);
    fs::create_dir(&other).unwrap();
    for part in ["state", "memory"] {
        fs::copy(folder.join(part), other.join(part)).unwrap();
    }
    let mut bytes = fs::read(other.join(file)).unwrap();
    change(&mut bytes);
    fs::write(other.join(file), bytes).unwrap();
    other
}

/// A copy of a snapshot in which much of memory is damaged, and its table is not.
fn damaged_often(folder: &Path) -> PathBuf {
    copy(folder, "flipped-often", "memory", |bytes| {
        // The table is at the end.
        let half = bytes.len() / 2;
        bytes[..half].iter_mut().skip(8192).step_by(4096).for_each(|byte| *byte ^= 1);
    })
}

#[test]
#[ignore = "long"]
fn a_snapshot_that_cannot_be_restored_is_refused_with_its_reason() {
    Lab::new().run(|| {
        let scratch = Scratch::new();
        let [folder, larger] = ["one", "larger"].map(|name| scratch.join(name));
        for (plan, folder) in [(small(), &folder), (plan(4, "192M"), &larger)] {
            let mut guest = plan.start();
            guest.report("ready");
            save(&guest, folder, &[]);
            guest.stop();
        }
        let half = |bytes: &mut Vec<u8>| bytes.truncate(bytes.len() / 2);
        let flip = |bytes: &mut Vec<u8>| {
            let middle = bytes.len() / 2;
            bytes[middle] ^= 0x10;
        };
        let head = |bytes: &mut Vec<u8>| bytes[..8].fill(0);
        let of_larger = fs::read(larger.join("memory")).unwrap();
        let bad = [
            (copy(&folder, "cut-state", "state", half), "state"),
            (copy(&folder, "cut-memory", "memory", half), "memory"),
            (copy(&folder, "flipped-state", "state", flip), "state"),
            (copy(&folder, "flipped-memory", "memory", flip), "memory"),
            (copy(&folder, "no-state", "state", head), "state"),
            (copy(&folder, "no-memory", "memory", head), "memory"),
            (copy(&folder, "empty", "state", Vec::clear), "state"),
            (copy(&folder, "other-memory", "memory", |bytes| *bytes = of_larger), "memory"),
        ];

        for (folder, file) in bad {
            let ended = restored(&folder, &[]);
            assert_eq!(ended.code, Some(65), "{}: {ended:?}", folder.display());
            assert!(ended.messages.contains(text(&folder.join(file))), "{ended:?}");
            assert_eq!(ended.console, Vec::<String>::new());
        }
        let nowhere = restored(&scratch.join("nowhere"), &[]);
        assert_eq!(nowhere.code, Some(66), "{nowhere:?}");
        for (flag, value) in [("--memory", "256M"), ("--cpus", "2"), ("--mte", "off")] {
            let ended = restored(&folder, &[(flag, value)]);
            assert_eq!(ended.code, Some(78), "{ended:?}");
            assert!(ended.messages.contains(flag), "{ended:?}");
        }
        // Memory that is loaded later is damaged later.
        let flipped = damaged_often(&folder);
        let ended = Plan::restore(&flipped).flag("--lazy").run();
        assert_eq!(ended.code, Some(15), "{ended:?}");
        assert!(ended.messages.contains("chunk"), "{ended:?}");
        assert!(ended.messages.contains(text(&flipped.join("memory"))), "{ended:?}");
        // What was refused so often is as it was.
        let mut guest = Plan::restore(&folder).start();
        verified(&mut guest);
        power_off(guest);
    });
}
