//! VMs in the background, by name: `tesseractl run`, and what finds them again.

use std::process::Stdio;

use serde_json::{Value, json};
use testing::guest::Plan;
use testing::lab::Lab;
use testing::scratch::Scratch;
use testing::wait::until;

use crate::place::Place;

#[test]
fn vms_in_the_background_are_found_by_name() {
    Lab::new().run(|| {
        let place = Place::new();
        let idle = Plan::workload("idle").with("--memory", "128M");
        for name in ["one", "two"] {
            let started = place.run(&idle, &["--id", name]);
            assert!(started.status.success(), "{started:?}");
        }
        let events = place.tesseractl(&["events", "one"]).stdout(Stdio::piped()).spawn().unwrap();

        let again = place.run(&idle, &["--id", "one"]);
        assert_eq!(again.status.code(), Some(1), "{again:?}");
        place.said(&["pause", "two"]);
        let expected =
            [("one", "Running"), ("two", "Paused")].map(|(a, b)| (a.to_owned(), b.to_owned()));
        assert_eq!(place.states(), expected);
        let table = place.answered(&["top"]);
        println!("{}\n{table}", place.said(&["list"]));
        assert!(table.contains("one  Running") && table.contains("two  Paused"), "{table}");
        assert!(place.list()[0]["resident_bytes"].as_u64() > Some(16 << 20));
        let figures = place.answered(&["metrics", "--all"]);
        assert!(figures.contains("tessera_up{vm=\"one\"} 1\n"), "{figures}");
        assert!(figures.contains("tessera_paused{vm=\"two\"} 1\n"), "{figures}");

        place.said(&["stop", "one", "--force"]);
        let events = String::from_utf8(events.wait_with_output().unwrap().stdout).unwrap();
        println!("{events}");
        assert!(events.contains("  started\n") && events.contains("  ended  "), "{events}");
        // Its id is free at once.
        assert!(place.run(&idle, &["--id", "one"]).status.success());
        place.said(&["kill", "two"]);
        assert_eq!(place.states(), [("one".to_owned(), "Running".to_owned())]);
        place.said(&["kill", "one"]);
        assert!(place.list().is_empty());
    });
}

#[test]
fn a_guest_is_started_up_to_its_agent_and_its_console_is_there() {
    Lab::new().run(|| {
        let (place, scratch) = (Place::new(), Scratch::new());
        let started = place.run(&Plan::agent(&scratch), &["--wait", "agent", "--json"]);
        assert!(started.status.success(), "{started:?}");
        let started: Value = serde_json::from_slice(&started.stdout).unwrap();
        assert_eq!((&started["name"], &started["state"]), (&json!("vm1"), &json!("Running")));

        assert_eq!(place.said(&["exec", "vm1", "--", "echo", "here"]), "here\n");
        let console = || {
            let mut command = place.tesseractl(&["console", "vm1"]);
            command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
        };
        let mut clients = vec![console(), console()];
        let turned_away = until("one of two clients of a console ends", || {
            clients.iter_mut().position(|client| client.try_wait().unwrap().is_some())
        });
        let second = clients.remove(turned_away).wait_with_output().unwrap();
        assert!(String::from_utf8_lossy(&second.stderr).contains("another client"), "{second:?}");
        place.said(&["stop", "vm1", "--timeout", "120"]);
        assert!(clients.remove(0).wait().unwrap().success());
        place.said(&["wait", "vm1", "--for", "stopped"]);
        assert!(place.list().is_empty());
    });
}

#[test]
fn a_vm_that_does_not_start_says_why() {
    Lab::new().run(|| {
        let place = Place::new();

        let output = place.output(&["run", "--kernel", "/nonexistent"]);

        assert_eq!(output.status.code(), Some(66), "{output:?}");
        assert!(String::from_utf8_lossy(&output.stderr).contains("/nonexistent"), "{output:?}");
        assert!(place.list().is_empty());
    });
}
