//! Clones: VMs of one snapshot that share its memory.

use std::fs;
use std::path::Path;

use rustix::process::Signal;
use serde_json::{Value, json};
use tesseractl::client::Error;
use testing::balloon;
use testing::guest::{Guest, Plan};
use testing::lab::Lab;
use testing::memory::mappings;
use testing::scratch::Scratch;
use testing::snapshot::{
    continues, nothing_failed, number, power_off, save, saved, small, text, verified,
};
use testing::template::Holder;
use testing::wait::until;

use crate::place::Place;
use crate::reporting;

/// What a clone still has of the template.
fn of_the_template(guest: &Guest) -> u64 {
    number(&guest.client().metrics().unwrap()["snapshot"], "template_bytes")
}

/// A VM that has not started, and would find the holder of a template.
fn waiting(holder: &Holder) -> Guest {
    let guest = holder.waits().start();
    guest.answers();
    guest
}

/// Makes a clone of it by the interface.
fn load_shared(guest: &Guest, folder: &Path) -> Result<(), Error> {
    let [state, memory] = ["state", "memory"].map(|name| folder.join(name));
    let load = json!({
        "snapshot_path": state, "mem_file_path": memory, "resume_vm": true, "shared": true
    });
    guest.client().send("PUT", "/snapshot/load", &load)
}

#[test]
fn clones_have_all_tags_and_each_goes_its_own_way() {
    Lab::new().run(|| {
        let scratch = Scratch::new();
        let folder = scratch.join("one");
        let (ready, before) = saved(small().with("--cpus", "2"), &folder);
        let holder = Holder::start(&folder, &["--linger", "600"]);
        let template = holder.checksum();

        let mut clones = [(); 2].map(|()| holder.plan(&folder).start());
        clones.iter().for_each(Guest::answers);
        for clone in &mut clones {
            continues(&ready, &before, &verified(clone));
            assert!(of_the_template(clone) > 32 << 20);
            let footprint = clone.client().footprint().unwrap();
            let shared = footprint.template_bytes.unwrap();
            assert!(shared > 4 << 20 && footprint.resident_bytes > shared, "{footprint:?}");
        }
        // The files are not needed any more.
        for file in ["state", "memory"] {
            fs::write(folder.join(file), vec![0xff; 64 << 10]).unwrap();
        }
        for clone in &mut clones {
            continues(&ready, &before, &verified(clone));
        }
        assert_eq!(holder.checksum(), template);
        let [mut one, other] = clones;
        power_off(other);
        verified(&mut one);
        power_off(one);
        let (code, messages) = holder.end(Some(Signal::TERM));
        assert_eq!((code, &*messages), (Some(143), ""));
    });
}

#[test]
#[ignore = "long"]
fn what_a_clone_gives_back_never_shows_the_template_again() {
    Lab::new().run(|| {
        let scratch = Scratch::new();
        let folder = scratch.join("one");
        let (ready, before) = saved(small(), &folder);
        let holder = Holder::start(&folder, &[]);
        let mut clone = holder.plan(&folder).start();
        clone.answers();
        let all = of_the_template(&clone);

        for _ in 0..2 {
            balloon::resize(&clone, 32);
            continues(&ready, &before, &verified(&mut clone));
            balloon::resize(&clone, 0);
            continues(&ready, &before, &verified(&mut clone));
        }

        assert!(of_the_template(&clone) < all);
        let footprint = clone.client().footprint().unwrap();
        assert!(footprint.discarded_bytes >= 48 << 20, "{footprint:?}");
        assert_eq!(footprint.failed_bytes, 0, "{footprint:?}");
        power_off(clone);
    });
}

#[test]
#[ignore = "long"]
fn memory_that_a_clone_frees_is_reported_and_goes_back() {
    const TOUCH: u64 = 200;
    Lab::new().run(|| {
        let scratch = Scratch::new();
        let folder = scratch.join("one");
        let mut guest = reporting::start(reporting::plan(512));
        guest.order(&format!("touch {TOUCH}"), "touched");
        save(&guest, &folder, &["--keep-paused"]);
        guest.stop();
        let holder = Holder::start(&folder, &[]);
        let mut clone = holder.plan(&folder).start();
        clone.answers();
        let all = of_the_template(&clone);
        assert!(all > TOUCH << 20, "{all}");

        assert_eq!(clone.order("free", "freed")["wrong"], 0);

        until("the template's memory that goes", || {
            (of_the_template(&clone) + ((TOUCH * 3 / 4) << 20) < all).then_some(())
        });
        for _ in 0..2 {
            clone.order(&format!("touch {TOUCH}"), "touched");
            assert_eq!(clone.order("free", "freed")["wrong"], 0);
        }
        nothing_failed(&clone);
        clone.stop();
    });
}

#[test]
#[ignore = "long"]
fn a_snapshot_of_a_clone_has_what_the_clone_never_touched() {
    Lab::new().run(|| {
        let scratch = Scratch::new();
        let [one, two] = ["one", "two"].map(|name| scratch.join(name));
        let (ready, before) = saved(small(), &one);
        let holder = Holder::start(&one, &[]);
        // One that has not run, and one that has given memory back.
        let clone = holder.plan(&one).flag("--paused").start();
        clone.answers();
        save(&clone, &two, &[]);
        clone.stop();
        let mut restored = Plan::restore(&two).start();
        continues(&ready, &before, &verified(&mut restored));
        restored.stop();
        let clone = holder.plan(&one).start();
        clone.answers();
        balloon::resize(&clone, 32);
        save(&clone, &two, &["--replace"]);
        clone.stop();

        let second = Holder::start(&two, &[]);
        let mut clone = second.plan(&two).start();

        continues(&ready, &before, &verified(&mut clone));
        balloon::resize(&clone, 0);
        continues(&ready, &before, &verified(&mut clone));
        power_off(clone);
    });
}

#[test]
#[ignore = "long"]
fn clones_do_not_need_the_process_that_held_their_template() {
    Lab::new().run(|| {
        let scratch = Scratch::new();
        let folder = scratch.join("one");
        let (ready, before) = saved(small(), &folder);
        let mut holder = Holder::start(&folder, &[]);
        let mut clones = [holder.plan(&folder).start(), waiting(&holder)];
        load_shared(&clones[1], &folder).unwrap();
        clones.iter().for_each(Guest::answers);

        holder.kill();

        for clone in &mut clones {
            continues(&ready, &before, &verified(clone));
            balloon::resize(clone, 32);
            continues(&ready, &before, &verified(clone));
        }
        let refused = holder.plan(&folder).run();
        assert_eq!(refused.code, Some(69), "{refused:?}");
        assert!(refused.messages.contains("tessera template"), "{refused:?}");
        match load_shared(&waiting(&holder), &folder) {
            Err(Error::Refused { status: 400, message }) => {
                assert!(message.contains("tessera template"), "{message}");
            }
            other => panic!("{other:?}"),
        }
        clones.into_iter().for_each(power_off);
    });
}

#[test]
#[ignore = "long"]
fn a_holder_ends_when_no_clone_is_left() {
    Lab::new().run(|| {
        let scratch = Scratch::new();
        let folder = scratch.join("one");
        saved(small(), &folder);
        let holder = Holder::start(&folder, &[]);
        let clone = holder.plan(&folder).start();
        clone.answers();
        let memory = || {
            let all = mappings(holder.pid());
            all.into_iter().map(|mapping| mapping.anonymous).sum::<u64>()
        };
        // The template is not mapped in the process that holds it.
        assert!(memory() < 2 << 20, "{}", memory());
        clone.stop();

        assert_eq!(holder.end(None), (Some(0), String::new()));
    });
}

#[test]
#[ignore = "long"]
fn what_cannot_be_shared_is_refused_by_name() {
    Lab::new().run(|| {
        let scratch = Scratch::new();
        let folder = scratch.join("one");
        let mut guest = small().with("--memory-backing", "memfd").start();
        guest.report("ready");
        save(&guest, &folder, &[]);
        guest.stop();
        let holder = Holder::start(&folder, &[]);

        let backing = holder.plan(&folder).run();
        let lazy = holder.plan(&folder).flag("--lazy").run();

        assert_eq!((backing.code, lazy.code), (Some(78), Some(78)), "{backing:?} {lazy:?}");
        assert!(backing.messages.contains("anonymous"), "{backing:?}");
        assert!(lazy.messages.contains("leave out lazy"), "{lazy:?}");
        let second = holder.command(&folder).output().unwrap();
        assert_eq!(second.status.code(), Some(73), "{second:?}");
    });
}

#[test]
fn tesseractl_starts_clones_and_what_they_share() {
    Lab::new().run(|| {
        let (scratch, place) = (Scratch::new(), Place::new());
        let folder = scratch.join("one");
        let guest = Plan::agent(&scratch).start();
        guest.answers();
        guest.sh("echo kept >/tmp/file");
        save(&guest, &folder, &["--keep-paused"]);
        guest.stop();

        let words = ["--count", "2", "--id", "web", "--wait", "agent", "--timeout", "120"];
        let words = [&["clone", text(&folder), "--linger", "1", "--json"][..], &words].concat();
        let started: Value = serde_json::from_str(&place.said(&words)).unwrap();

        let names: Vec<_> = started.as_array().unwrap().iter().map(|vm| &vm["name"]).collect();
        assert_eq!(names, ["web-1", "web-2"]);
        for name in ["web-1", "web-2"] {
            let kept = place.said(&["exec", name, "--", "cat", "/tmp/file"]);
            assert_eq!(kept.trim(), "kept");
            let other = format!("echo {name} >/tmp/file");
            place.said(&["exec", name, "--", "sh", "-c", &other]);
        }
        for name in ["web-1", "web-2"] {
            assert_eq!(place.said(&["exec", name, "--", "cat", "/tmp/file"]).trim(), name);
            let footprint: Value =
                serde_json::from_str(&place.said(&["footprint", name, "--json"])).unwrap();
            assert!(number(&footprint, "template_bytes") > 1 << 20, "{footprint}");
            place.said(&["stop", name, "--timeout", "120"]);
        }
        // Nothing is left of the process that has held the template.
        let sockets = place.path().join("templates.d");
        until("the end of the holder", || {
            fs::read_dir(&sockets).unwrap().next().is_none().then_some(())
        });
        let nothing = place.output(&["clone", text(&scratch.join("nowhere"))]);
        assert_eq!(nothing.status.code(), Some(1), "{nothing:?}");
    });
}
