//! VMs that are started, waited for, and ended.

use std::fs;
use std::os::unix::fs::PermissionsExt;

use serde_json::json;

use super::common::until;
use super::harness::{Place, failed, fake_vm, json, said};

#[test]
fn a_vm_runs_in_the_background_and_stops() {
    let place = Place::new();

    let started = json(&place.run(&["--kernel", "Image", "--json", "--id", "web"]));
    let listed = place.list();

    assert_eq!((&started["name"], &started["state"]), (&json!("web"), &json!("Running")));
    assert_eq!(started["api_sock"], place.vms("web/api").to_str().unwrap());
    let [vm] = &listed[..] else { panic!("{listed:?}") };
    assert_eq!(
        (&vm["name"], &vm["pid"], &vm["state"]),
        (&json!("web"), &started["pid"], &json!("Running"))
    );
    assert_eq!((&vm["memory_bytes"], &vm["started_by"]), (&json!(512 << 20), &json!("tesseractl")));
    assert!(vm["resident_bytes"].as_u64() > Some(0) && vm["uptime_seconds"].is_u64(), "{vm}");
    assert_eq!(said(&place.tesseractl(&["logs", "web"])), "tessera: fake web\n");
    assert_eq!(said(&place.tesseractl(&["stop", "web"])), "stopped\n");
    assert!(place.list().is_empty());
    // What it has said is of use when it has ended.
    assert_eq!(said(&place.tesseractl(&["logs", "web"])), "tessera: fake web\n");
    assert_eq!(fs::metadata(place.vms("web/log")).unwrap().permissions().mode() & 0o777, 0o600);
}

#[test]
fn a_vm_has_a_session_of_its_own_and_no_stream_of_its_parent() {
    let place = Place::new();
    place.run(&["--kernel", "Image", "--id", "web"]);
    let pid = place.pid("web");

    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let session = stat.rsplit_once(')').unwrap().1.split_whitespace().nth(3).unwrap();
    let stream = |number: u32| fs::read_link(format!("/proc/{pid}/fd/{number}")).unwrap();

    assert_eq!(session, pid.to_string());
    assert_eq!(stream(0).to_str(), Some("/dev/null"));
    assert_eq!((stream(1), stream(2)), (place.vms("web/log"), place.vms("web/log")));
}

#[test]
fn vms_without_an_id_have_names_that_are_free() {
    let place = Place::new();
    for name in ["vm1", "vm2", "vm3"] {
        let started = place.run(&["--kernel", "Image"]);
        assert!(said(&started).starts_with(&format!("{name} runs (pid ")), "{started:?}");
    }

    place.kill("vm2");
    let started = place.run(&["--kernel", "Image"]);

    assert!(said(&started).starts_with("vm2 runs"), "{started:?}");
    assert_eq!(place.names(), ["vm1", "vm2", "vm3"]);
}

#[test]
fn vms_that_are_started_at_once_have_names_of_their_own() {
    let place = Place::new();

    std::thread::scope(|scope| {
        for _ in 0..10 {
            scope.spawn(|| said(&place.run(&["--kernel", "Image"])).to_owned());
        }
    });

    let list = place.list();
    assert_eq!(list.len(), 10);
    assert!(list.iter().all(|vm| vm["state"] == "Running"), "{list:?}");
}

#[test]
fn a_vm_that_does_not_start_says_why_with_its_own_status() {
    let place = Place::new();

    let refused = place.run(&["--kernel", "Image", "--cmdline", "fail=66", "--id", "web"]);
    let killed = place.run(&["--kernel", "Image", "--cmdline", "dies"]);
    let usage = place.run(&["--kernel", "Image", "--memory", "much"]);
    let missing = place.tesseractl(&["run", "--tessera", "/nonexistent/tessera"]);

    let (code, message) = failed(&refused);
    assert_eq!((code, message), (66, "tessera: it cannot be started\u{fffd}[2J: try another\n"));
    let (code, message) = failed(&killed);
    assert!(code == 137 && message.contains("without a message"), "{killed:?}");
    assert_eq!(usage.status.code(), Some(64));
    let (code, message) = failed(&missing);
    assert!(code == 1 && message.contains("--tessera PATH"), "{missing:?}");
    // Nothing is left of any.
    let left: Vec<_> =
        fs::read_dir(place.vms("")).unwrap().map(|it| it.unwrap().file_name()).collect();
    assert!(left.is_empty() || left == ["vm1"], "{left:?}");
}

#[test]
fn an_id_is_that_of_one_vm() {
    let place = Place::new();
    place.run(&["--kernel", "Image", "--id", "web"]);
    let pid = place.pid("web");

    let second = place.run(&["--kernel", "Image", "--id", "web"]);
    let mut direct = place.start_directly(&["--id", "web"]);

    let (code, message) = failed(&second);
    assert_eq!(code, 1);
    assert_eq!(
        message,
        format!("tesseractl: a VM 'web' already runs (pid {pid}): give another --id\n")
    );
    assert_eq!(direct.wait().unwrap().code(), Some(73));
    // The first is undisturbed.
    assert_eq!(place.pid("web"), pid);
    assert!(said(&place.tesseractl(&["status", "web"])).contains("Running"));
}

#[test]
fn a_vm_that_loads_for_too_long_is_left_and_named() {
    let place = Place::new();

    let late =
        place.run(&["--kernel", "Image", "--id", "web", "--cmdline", "loads", "--timeout", "0.2"]);

    let (code, message) = failed(&late);
    assert!(code == 1 && message.contains("tesseractl kill web"), "{message}");
    // The client may have given up before the process had made its entry.
    let is_there = || place.list().first().is_some_and(|vm| vm["state"] == "Not started");
    until("its entry", || is_there().then_some(()));
}

#[test]
fn without_a_kernel_a_vm_waits_to_be_configured() {
    let place = Place::new();

    let started = place.run(&["--id", "web"]);

    assert!(said(&started).starts_with("web waits to be configured"), "{started:?}");
    let (code, message) =
        (place.tesseractl(&["wait", "web", "--for", "started", "--timeout", "0.1"]), "");
    let (code, message) = (failed(&code).0, failed(&code).1.to_owned() + message);
    assert!(code == 1 && message.contains("waits to be configured"), "{message}");
}

#[test]
fn a_file_with_a_kernel_starts_and_one_without_waits() {
    let place = Place::new();
    let (with, without) = (place.path("with.json"), place.path("without.json"));
    fs::write(&with, r#"{"boot-source":{"kernel_image_path":"Image"}}"#).unwrap();
    fs::write(&without, r#"{"machine-config":{"vcpu_count":2}}"#).unwrap();

    for (id, file, state) in [("with", with, "Running"), ("without", without, "Not started")] {
        let words = ["--config", file.to_str().unwrap(), "--id", id, "--json"];
        assert_eq!(json(&place.run(&words))["state"], state, "{id}");
    }
}

#[test]
fn sockets_that_the_user_names_are_used() {
    let place = Place::new();
    let (api, vsock) = (place.path("api"), place.path("vsock"));
    let (api, vsock) = (api.to_str().unwrap(), vsock.to_str().unwrap());

    let words = ["--api-sock", api, "--vsock", vsock, "--serial", "none", "--kernel", "Image"];
    let started = json(&place.run(&[&words[..], &["--id", "web", "--json"]].concat()));

    assert_eq!((&started["api_sock"], &started["vsock"]), (&json!(api), &json!(vsock)));
    let vm = &place.list()[0];
    assert_eq!(
        (&vm["api_sock"], &vm["vsock"], &vm["serial"]),
        (&json!(api), &json!(vsock), &json!("none"))
    );
    // The socket's path is a name, too, of the same VM.
    assert_eq!(said(&place.tesseractl(&["kill", api])), "killed\n");
    assert!(!place.path("api").exists() && !place.path("vsock").exists());
}

#[test]
fn the_agent_is_waited_for() {
    let place = Place::new();

    let started = place.run(&["--kernel", "Image", "--id", "web", "--wait", "agent"]);
    let agent = place.tesseractl(&["agent", "web"]);

    assert!(said(&started).starts_with("web runs"), "{started:?}");
    assert!(said(&agent).starts_with("fake, operations"), "{agent:?}");
    assert_eq!(said(&place.tesseractl(&["wait", "web", "--for", "agent"])), "agent\n");
}

#[test]
fn an_agent_that_cannot_come_is_not_waited_for() {
    let place = Place::new();
    let api = place.path("api");
    let mut child = place.start_directly(&[
        "--id",
        "web",
        "--kernel",
        "Image",
        "--api-sock",
        api.to_str().unwrap(),
    ]);
    until("its entry", || place.names().contains(&"web".to_owned()).then_some(()));
    place.tesseractl(&["wait", "web", "--for", "started"]);

    // The patience of a test would be over long before this.
    let output = place.tesseractl(&["wait", "web", "--for", "agent", "--timeout", "100000"]);

    let (code, message) = failed(&output);
    assert!(code == 1 && message.contains("--vsock"), "{message}");
    child.kill().unwrap();
    child.wait().unwrap();
}

#[test]
fn each_condition_is_waited_for() {
    let place = Place::new();
    // There is no such VM yet.
    let started = place.command(&["wait", "web", "--for", "started"]).spawn().unwrap();
    place.run(&["--kernel", "Image", "--id", "web"]);
    assert!(started.wait_with_output().unwrap().status.success());

    let stopped = place.command(&["wait", "web", "--for", "stopped"]).spawn().unwrap();
    let early = place.tesseractl(&["wait", "web", "--for", "stopped", "--timeout", "0.05"]);
    place.tesseractl(&["stop", "web", "--force"]);

    let (code, message) = failed(&early);
    assert!(code == 1 && message.contains("still runs"), "{message}");
    assert!(stopped.wait_with_output().unwrap().status.success());
    assert_eq!(said(&place.tesseractl(&["wait", "web", "--for", "stopped"])), "stopped\n");
}

#[test]
fn a_vm_that_does_not_answer_is_killed_and_its_sockets_go() {
    let place = Place::new();
    let mut child = place.start_directly(&[
        "--id",
        "mute",
        "--cmdline",
        "mute",
        "--api-sock",
        place.path("api").to_str().unwrap(),
    ]);
    until("its entry", || place.names().contains(&"mute".to_owned()).then_some(()));

    let killed = place.tesseractl(&["kill", "mute", "--json"]);

    assert_eq!(json(&killed), json!({ "outcome": "killed" }));
    assert!(!place.path("api").exists());
    assert!(fs::read_dir(place.vms("")).unwrap().next().is_none());
    child.wait().unwrap();
    let (code, message) = (failed(&place.tesseractl(&["kill", "mute"])).0, ());
    assert_eq!((code, message), (69, ()));
}

#[test]
fn the_program_is_looked_for_beside_this_one_and_in_the_path() {
    let place = Place::new();
    let bin = place.path("bin");
    fs::create_dir(&bin).unwrap();
    std::os::unix::fs::symlink(fake_vm(), bin.join("tessera")).unwrap();
    let alone = bin.join("alone");
    fs::create_dir(&alone).unwrap();
    fs::copy(env!("CARGO_BIN_EXE_tesseractl"), alone.join("tesseractl")).unwrap();

    let output = std::process::Command::new(alone.join("tesseractl"))
        .args(["run", "--kernel", "Image"])
        .env("TESSERA_RUNTIME_DIR", place.path(""))
        .env("PATH", &bin)
        .output()
        .unwrap();

    assert!(said(&output).starts_with("vm1 runs"), "{output:?}");
}

#[test]
fn a_snapshot_is_restored_in_the_background_like_any_vm() {
    let place = Place::new();
    let folder = place.path("snapshot");
    let folder = folder.to_str().unwrap();

    let running = place.run(&["--restore", folder, "--id", "one"]);
    let paused = place.run(&["--restore", folder, "--lazy", "--paused", "--id", "two"]);

    assert!(said(&running).starts_with("one runs"), "{running:?}");
    assert!(said(&paused).starts_with("two is paused"), "{paused:?}");
    let states: Vec<_> = place.list().iter().map(|vm| vm["state"].clone()).collect();
    assert_eq!(states, ["Running", "Paused"]);
}
