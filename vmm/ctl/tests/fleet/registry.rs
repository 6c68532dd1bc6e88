//! How VMs are named and listed, and what is in the registry besides.

use std::fs;
use std::time::Instant;

use super::common::until;
use super::harness::{Place, failed, json, said};

#[test]
fn a_vm_is_named_by_its_id_the_beginning_of_one_its_process_or_its_socket() {
    let place = Place::new();
    for id in ["web1", "web2", "db"] {
        place.run(&["--kernel", "Image", "--id", id]);
    }
    let api = place.path("api");
    let api = api.to_str().unwrap();
    let mut direct = place.start_directly(&["--api-sock", api, "--kernel", "Image"]);
    let pid = direct.id().to_string();
    until("the fourth", || (place.names().len() == 4).then_some(()));

    for name in ["web1", "web2", "d", "db", &pid, &format!("pid.{pid}"), api] {
        assert!(said(&place.tesseractl(&["status", name])).contains("Running"), "{name}");
    }
    let ambiguous = place.tesseractl(&["status", "web"]);
    let unknown = place.tesseractl(&["status", "web3\u{1b}"]);
    let relative = place.command(&["status", "api"]).current_dir(place.path("")).output().unwrap();

    let (code, message) = failed(&ambiguous);
    assert!(code == 64 && message.contains("may be web1, web2"), "{message}");
    let (code, message) = failed(&unknown);
    assert!(
        code == 69
            && message.contains("no VM 'web3\u{fffd}'")
            && message.contains("tesseractl list")
    );
    assert!(said(&relative).contains("Running"));
    direct.kill().unwrap();
    direct.wait().unwrap();
}

#[test]
fn an_id_that_begins_another_is_itself() {
    let place = Place::new();
    for id in ["vm1", "vm10"] {
        place.run(&["--kernel", "Image", "--id", id]);
    }

    place.tesseractl(&["pause", "vm1"]);

    let states: Vec<_> = place.list().iter().map(|vm| vm["state"].clone()).collect();
    assert_eq!(states, ["Paused", "Running"]);
}

#[test]
fn a_killed_vm_leaves_no_entry() {
    let place = Place::new();
    place.run(&["--kernel", "Image", "--id", "web"]);

    place.kill("web");

    assert!(!place.vms("web.json").exists());
    assert!(said(&place.run(&["--kernel", "Image", "--id", "web"])).starts_with("web runs"));
}

#[test]
fn vms_that_do_not_answer_hold_up_no_other() {
    let place = Place::new();
    let mut mute = Vec::new();
    for number in 0..20 {
        let (id, path) = (format!("mute{number}"), place.path(&format!("api{number}")));
        let words = ["--id", &id, "--cmdline", "mute", "--api-sock", path.to_str().unwrap()];
        mute.push(place.start_directly(&words));
    }
    place.run(&["--kernel", "Image", "--id", "web"]);
    until("all", || (place.names().len() == 21).then_some(()));

    let start = Instant::now();
    let list = place.list();
    let table = place.tesseractl(&["list"]);
    let took = start.elapsed();

    let web = list.iter().find(|vm| vm["name"] == "web").unwrap();
    assert_eq!(web["state"], "Running");
    assert_eq!(list.iter().filter(|vm| vm["state"] == "no answer").count(), 20);
    assert!(list.iter().all(|vm| vm["name"] == "web" || vm["error"].is_string()), "{list:?}");
    assert!(said(&table).lines().nth(1).unwrap().starts_with("mute0 "), "{table:?}");
    // One after the other, they would take half a second each, twice.
    assert!(took.as_secs() < 20, "{took:?}");
    for mut child in mute {
        child.kill().unwrap();
        child.wait().unwrap();
    }
}

#[test]
fn files_that_are_no_entries_are_named_and_left() {
    let place = Place::new();
    place.run(&["--kernel", "Image", "--id", "web"]);
    fs::write(place.vms("damaged.json"), "{\"version\":\u{1b}").unwrap();
    fs::write(place.vms("huge.json"), vec![b'x'; 1 << 20]).unwrap();

    let listed = place.tesseractl(&["list", "--json"]);

    assert_eq!(json(&listed).as_array().unwrap().len(), 1);
    let message = String::from_utf8_lossy(&listed.stderr);
    assert!(message.contains("damaged.json") && message.contains("huge.json"), "{message}");
    assert!(!message.contains('\u{1b}'));
    assert!(place.vms("damaged.json").exists());
}

#[test]
fn without_a_place_for_a_registry_it_is_said_what_to_set() {
    let output = std::process::Command::new(env!("CARGO_BIN_EXE_tesseractl"))
        .args(["list"])
        .env("TESSERA_RUNTIME_DIR", "relative")
        .output()
        .unwrap();

    let (code, message) = failed(&output);
    assert!(code == 64 && message.contains("absolute path"), "{message}");
}

/// Twenty VMs, some killed and some stopped while others start: what is listed is what lives.
#[test]
fn a_churn_of_vms_leaves_what_lives_and_nothing_else() {
    let place = Place::new();
    for number in 0..20 {
        place.run(&["--kernel", "Image", "--id", &format!("steady{number}")]);
    }

    std::thread::scope(|scope| {
        for lane in 0..4 {
            let place = &place;
            scope.spawn(move || {
                for turn in 0..5 {
                    let id = format!("short{lane}");
                    said(&place.run(&["--kernel", "Image", "--id", &id]));
                    match turn % 2 {
                        0 => said(&place.tesseractl(&["stop", &id, "--force"])).to_owned(),
                        _ => said(&place.tesseractl(&["kill", &id])).to_owned(),
                    };
                }
            });
        }
        for _ in 0..5 {
            let list = place.list();
            let steady =
                |vm: &&serde_json::Value| vm["name"].as_str().unwrap().starts_with("steady");
            assert_eq!(list.iter().filter(steady).count(), 20, "{list:?}");
        }
    });

    assert_eq!(place.list().len(), 20);
    let entries = fs::read_dir(place.vms("")).unwrap().map(|entry| entry.unwrap().file_name());
    assert_eq!(entries.filter(|name| name.to_string_lossy().ends_with(".json")).count(), 20);
}
