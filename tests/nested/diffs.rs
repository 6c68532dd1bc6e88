//! Diff snapshots: what a guest has changed since it was last saved.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use serde_json::Value;
use testing::balloon;
use testing::guest::{Guest, Plan};
use testing::lab::{Lab, program};
use testing::scratch::Scratch;
use testing::template::Holder;

fn plan() -> Plan {
    let plan = Plan::workload("snapshot").with("--memory", "256M").with("--cpus", "2");
    plan.with("--mte", "require").flag("--track-dirty-pages")
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

fn number(report: &Value, field: &str) -> u64 {
    report[field].as_u64().unwrap()
}

fn snapshot(guest: &Guest, folder: &Path, words: &[&str]) -> Output {
    guest.tesseractl(&[&["snapshot", text(folder), "--json"][..], words].concat()).output().unwrap()
}

/// Saves a guest; returns the size of its files.
fn save(guest: &Guest, folder: &Path, words: &[&str]) -> u64 {
    let output = snapshot(guest, folder, words);
    assert!(output.status.success(), "{output:?}");
    number(&serde_json::from_slice(&output.stdout).unwrap(), "bytes")
}

fn merge(folders: &[&Path]) -> Output {
    let mut command = Command::new(program("tesseractl"));
    command.args(["snapshot", "merge"]).args(folders).output().unwrap()
}

fn merged(folders: &[&Path]) {
    let output = merge(folders);
    assert!(output.status.success(), "{output:?}");
}

fn info(folder: &Path) -> Value {
    let mut command = Command::new(program("tesseractl"));
    let output = command.args(["snapshot", "info", "--json"]).arg(folder).output().unwrap();
    assert!(output.status.success(), "{output:?}");
    serde_json::from_slice(&output.stdout).unwrap()
}

fn verified(guest: &mut Guest) {
    let report = guest.order("verify", "verified");
    assert_eq!(report["ok"], true, "{report}");
}

fn change(guest: &mut Guest) {
    guest.order("change", "changed");
}

/// The guest of a snapshot is right, with all of its changes.
fn restored(folder: &Path, words: &[&str]) -> Guest {
    let plan = words.iter().fold(Plan::restore(folder), |plan, word| plan.flag(word));
    let mut guest = plan.start();
    verified(&mut guest);
    guest
}

#[test]
#[ignore = "long"]
fn a_guest_is_saved_by_what_it_changes() {
    Lab::new().run(|| {
        let scratch = Scratch::new();
        let [full, first, second, both] =
            ["full", "first", "second", "both"].map(|name| scratch.join(name));
        let mut guest = plan().start();
        guest.report("ready");
        let refused = snapshot(&guest, &first, &["--diff"]);
        assert!(String::from_utf8_lossy(&refused.stderr).contains("Full"), "{refused:?}");
        assert!(!first.exists());
        let all = save(&guest, &full, &[]);

        change(&mut guest);
        balloon::resize(&guest, 64);
        let one = save(&guest, &first, &["--diff"]);
        balloon::resize(&guest, 0);
        change(&mut guest);
        let two = save(&guest, &second, &["--diff"]);
        let idle = save(&guest, &scratch.join("idle"), &["--diff"]);
        change(&mut guest);
        verified(&mut guest);
        guest.stop();

        println!("full {all} bytes, diffs {one} and {two}, of an idle guest {idle}");
        // A quarter of its 64 MiB has changed in each page, and a guest has much of its own.
        assert!(one < all / 2 && two < all / 2 && idle < all / 16, "{all} {one} {two} {idle}");
        let kind = |folder: &PathBuf| info(folder)["manifest"]["kind"].clone();
        assert_eq!(kind(&full), "full");
        assert_eq!(kind(&first)["diff"]["base"], info(&full)["id"]);
        assert_eq!(kind(&second)["diff"]["base"], info(&first)["id"]);
        let alone = Plan::restore(&first).run();
        assert_eq!(alone.code, Some(65), "{alone:?}");
        assert!(alone.messages.contains("tesseractl snapshot merge BASE DIFF"), "{alone:?}");
        let wrong = merge(&[&full, &second, &both]);
        let said = String::from_utf8_lossy(&wrong.stderr).into_owned();
        assert!(said.contains(info(&first)["id"].as_str().unwrap()), "{said}");
        assert!(!both.exists());

        merged(&[&full, &first, &second, &both]);
        assert_eq!(info(&both)["id"], info(&second)["id"]);
        for words in [&[][..], &["--lazy"]] {
            restored(&both, words).stop();
        }
        // One after the other is the same, whatever comes first.
        let [halfway, again, later] = ["halfway", "again", "later"].map(|name| scratch.join(name));
        merged(&[&full, &first, &halfway]);
        merged(&[&halfway, &second, &again]);
        merged(&[&first, &second, &later]);
        merged(&[&full, &later, &halfway.with_file_name("other")]);
        let memory = |folder: &Path| fs::read(folder.join("memory")).unwrap();
        assert!(memory(&again) == memory(&both) && memory(&scratch.join("other")) == memory(&both));
    });
}

#[test]
#[ignore = "long"]
fn a_restored_guest_is_saved_by_what_it_changes() {
    Lab::new().run(|| {
        let scratch = Scratch::new();
        let [full, lazy, eager, clone] =
            ["full", "lazy", "eager", "clone"].map(|name| scratch.join(name));
        let mut guest = plan().start();
        guest.report("ready");
        change(&mut guest);
        save(&guest, &full, &["--keep-paused"]);
        guest.stop();

        let holder = Holder::start(&full, &[]);
        for (folder, plan) in [
            // First, as the holder does not wait for longer than a minute.
            (&clone, holder.plan(&full)),
            (&lazy, Plan::restore(&full).flag("--lazy")),
            (&eager, Plan::restore(&full)),
        ] {
            let mut guest = plan.flag("--track-dirty-pages").start();
            guest.report("beat");
            balloon::resize(&guest, 48);
            let bytes = save(&guest, folder, &["--diff"]);
            let metrics = guest.client().metrics().unwrap();
            // What is not loaded has not changed, nor has what is the template's: it stays so.
            let left = ["unloaded_bytes", "template_bytes"]
                .map(|field| metrics["snapshot"][field].as_u64().unwrap_or(0));
            assert_eq!(left.map(|left| left > 0), [folder == &lazy, folder == &clone], "{metrics}");
            println!("{}: {bytes} bytes", folder.display());
            let all = number(&info(&full), "memory_bytes");
            assert!(bytes < all / 2, "{bytes} of {all}");
            let second = folder.with_extension("second");
            change(&mut guest);
            balloon::resize(&guest, 16);
            save(&guest, &second, &["--diff"]);
            verified(&mut guest);
            guest.stop();

            let into = folder.with_extension("merged");
            merged(&[&full, folder, &second, &into]);
            if folder == &clone {
                // What was merged is held as any template.
                let holder = Holder::start(&into, &[]);
                let mut guest = holder.plan(&into).start();
                verified(&mut guest);
                guest.stop();
            } else {
                restored(&into, &["--lazy"]).stop();
            }
        }
        // It tracks nothing unless that is asked for.
        let guest = Plan::restore(&full).start();
        guest.answers();
        let refused = snapshot(&guest, &scratch.join("none"), &["--diff"]);
        let said = String::from_utf8_lossy(&refused.stderr).into_owned();
        assert!(said.contains("--track-dirty-pages"), "{said}");
        guest.stop();
    });
}

#[test]
#[ignore = "long"]
fn what_a_full_disk_keeps_from_being_saved_is_in_the_next_diff() {
    Lab::new().run(|| {
        let scratch = Scratch::new();
        let [full, diff, whole, small] =
            ["full", "diff", "whole", "small"].map(|name| scratch.join(name));
        fs::create_dir(&small).unwrap();
        let mount = ["-t", "tmpfs", "-o", "size=2m", "none", text(&small)];
        assert!(Command::new("mount").args(mount).status().unwrap().success());
        let mut guest = plan().start();
        guest.report("ready");
        save(&guest, &full, &[]);

        change(&mut guest);
        for words in [&["--diff"][..], &[]] {
            let failed = snapshot(&guest, &small.join("diff"), words);
            let said = String::from_utf8_lossy(&failed.stderr).into_owned();
            assert!(said.contains("no room") && said.contains("runs again"), "{said}");
            assert_eq!(fs::read_dir(&small).unwrap().count(), 0);
        }
        verified(&mut guest);
        save(&guest, &diff, &["--diff"]);
        guest.stop();

        merged(&[&full, &diff, &whole]);
        restored(&whole, &[]).stop();
        assert!(Command::new("umount").arg(&small).status().unwrap().success());
    });
}

#[test]
#[ignore = "long"]
fn a_guest_on_pages_of_16_kib_is_saved_by_what_it_changes() {
    Lab::new().kernel_package(crate::reporting::KERNEL_16K).second_node("128M").run(|| {
        let scratch = Scratch::new();
        let [full, diff, whole] = ["full", "diff", "whole"].map(|name| scratch.join(name));
        let mut guest = plan().start();
        guest.report("ready");
        save(&guest, &full, &[]);
        change(&mut guest);
        save(&guest, &diff, &["--diff"]);
        guest.stop();

        merged(&[&full, &diff, &whole]);
        restored(&whole, &[]).stop();
    });
}
