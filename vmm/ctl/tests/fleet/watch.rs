//! What is seen of VMs that run: events, console, metrics, top.

use std::io::{Read, Write};
use std::process::Stdio;

use serde_json::{Value, json};

use super::common::until;
use super::harness::{Place, failed, json, said};

#[test]
fn events_are_lines_until_the_vm_has_ended() {
    let place = Place::new();
    place.run(&["--kernel", "Image", "--id", "web"]);
    let follow = |words: &[&str]| {
        place.command(words).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
    };
    let (mut text, mut raw) = (follow(&["events", "web"]), follow(&["events", "web", "--json"]));
    // Each is connected once it has shown the first event.
    let first = [&mut text, &mut raw].map(|follower| {
        let mut first = [0];
        follower.stdout.as_mut().unwrap().read_exact(&mut first).unwrap();
        char::from(first[0]).to_string()
    });

    place.tesseractl(&["pause", "web"]);
    place.tesseractl(&["resume", "web"]);
    place.tesseractl(&["stop", "web", "--force"]);

    let text = text.wait_with_output().unwrap();
    assert_eq!(
        first[0].clone() + said(&text),
        "2026-01-01T00:00:00.000Z  started\n\
         2026-01-01T00:00:00.000Z  paused  reason=request\n\
         2026-01-01T00:00:00.000Z  resumed\n\
         2026-01-01T00:00:00.000Z  ended  reason=stopped  status=12\n"
    );
    let raw = raw.wait_with_output().unwrap();
    let events: Vec<Value> = (first[1].clone() + said(&raw))
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    assert_eq!(events.len(), 4);
    assert_eq!(events[3]["status"], 12);
}

#[test]
fn events_of_a_vm_that_is_killed_end_with_an_error() {
    let place = Place::new();
    place.run(&["--kernel", "Image", "--id", "web"]);
    let mut follower = place
        .command(&["events", "web"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    // It is connected once it has shown the first event.
    follower.stdout.as_mut().unwrap().read_exact(&mut [0]).unwrap();

    place.kill("web");

    let output = follower.wait_with_output().unwrap();
    let (code, message) = failed(&output);
    assert!(code == 69 && message.contains("killed?"), "{message}");
}

#[test]
fn a_console_is_attached_to_streams() {
    let place = Place::new();
    place.run(&["--kernel", "Image", "--id", "web"]);
    let mut console = place
        .command(&["console", "web"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();

    // Without a terminal the escape is a letter as any other.
    console.stdin.take().unwrap().write_all(b"root\x1d\n").unwrap();
    let mut seen = [0; 13];
    console.stdout.as_mut().unwrap().read_exact(&mut seen).unwrap();
    assert_eq!(&seen, b"login: root\x1d\n");

    place.tesseractl(&["stop", "web", "--force"]);
    assert!(console.wait().unwrap().success());
}

#[test]
fn a_serial_port_that_leads_elsewhere_is_no_console() {
    let place = Place::new();
    place.run(&["--kernel", "Image", "--id", "web", "--serial", "none"]);

    let (code, message) = {
        let output = place.tesseractl(&["console", "web"]);
        (failed(&output).0, failed(&output).1.to_owned())
    };

    assert!(code == 1 && message.contains("leads to none") && message.contains("--serial socket:"));
}

#[test]
fn figures_of_all_vms_are_one_text() {
    let place = Place::new();
    for id in ["a", "b"] {
        place.run(&["--kernel", "Image", "--id", id]);
    }
    place.tesseractl(&["pause", "b"]);
    let file = place.path("tessera.prom");

    // Each is waited for half a second, and the machine may be busy.
    let text = until("figures of each VM", || {
        let output = place.tesseractl(&["metrics", "--all"]);
        (!said(&output).contains("tessera_up{vm=\"a\"} 0")
            && !said(&output).contains("tessera_up{vm=\"b\"} 0"))
        .then_some(output)
    });
    let written = place.tesseractl(&["metrics", "--all", "--output", file.to_str().unwrap()]);
    let lost = place.tesseractl(&["metrics", "--all", "--output", "/nonexistent/a.prom"]);

    let text = said(&text);
    let exits = "# TYPE tessera_vcpu_exits_total counter\n\
                 tessera_vcpu_exits_total{vm=\"a\"} 7\n\
                 tessera_vcpu_exits_total{vm=\"b\"} 7\n";
    assert!(text.contains(exits), "{text}");
    for line in
        ["tessera_up{vm=\"a\"} 1\n", "tessera_paused{vm=\"a\"} 0\n", "tessera_paused{vm=\"b\"} 1\n"]
    {
        assert!(text.contains(line), "{line} is not in {text}");
    }
    assert_eq!(said(&written), "");
    assert!(std::fs::read_to_string(&file).unwrap().contains(exits));
    assert_eq!(failed(&lost).0, 1);
    assert_eq!(json(&place.tesseractl(&["metrics", "a", "--json"]))["vcpu"]["exits_total"], 7);
}

#[test]
fn top_is_a_text_where_there_is_no_terminal() {
    let place = Place::new();
    place.run(&["--kernel", "Image", "--id", "web", "--cmdline", "memory"]);

    let text = place.tesseractl(&["top", "--broker", "/nonexistent/broker"]);
    let document = json(&place.tesseractl(&["top", "--json"]));

    let text = said(&text);
    assert!(text.contains("web  Running") && !text.contains('\u{1b}'), "{text}");
    assert!(text.contains("[#---------] 96 MiB"), "{text}");
    assert!(text.contains("[###-------] 10 MiB"), "{text}");
    assert!(text.contains("Pool  ") && text.contains("tessera broker"), "{text}");
    assert_eq!(document["vms"][0]["name"], "web");
    assert_eq!(document["vms"][0]["balloon"]["actual_mib"], 96);
    assert_eq!(document["pool"], json!(null));
}

#[test]
fn a_log_is_followed_until_the_vm_ends() {
    let place = Place::new();
    place.run(&["--kernel", "Image", "--id", "web"]);
    let log = place.vms("web/log");
    let mut follower =
        place.command(&["logs", "-f", "web"]).stdout(Stdio::piped()).spawn().unwrap();
    follower.stdout.as_mut().unwrap().read_exact(&mut [0; 18]).unwrap();

    let mut file = std::fs::File::options().append(true).open(log).unwrap();
    file.write_all(b"more\x1b\nand more").unwrap();
    until("the end", || place.tesseractl(&["kill", "web"]).status.success().then_some(()));

    let output = follower.wait_with_output().unwrap();
    assert_eq!(String::from_utf8_lossy(&output.stdout), "more\u{fffd}\nand more");
}

#[test]
fn a_vm_that_was_started_otherwise_has_no_log_here() {
    let place = Place::new();
    let mut child = place.start_directly(&["--id", "other"]);
    until("its entry", || place.names().contains(&"other".to_owned()).then_some(()));

    let output = place.tesseractl(&["logs", "other"]);

    let (code, message) = failed(&output);
    assert!(code == 1 && message.contains("standard error"), "{message}");
    child.kill().unwrap();
    child.wait().unwrap();
}
