//! The control socket and its client: pause, resume, stop, look.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Command, Output};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tesseractl::client::Client;
use testing::guest::{Guest, Plan, STOP, parse};
use testing::lab::{Lab, artifact, program};
use vmm::api::model::State;

/// The count, and the guest's clock.
fn of_tick(report: Value) -> (u64, u64) {
    (report["tick"].as_u64().unwrap(), report["monotonic_ns"].as_u64().unwrap())
}

fn tick(guest: &mut Guest) -> (u64, u64) {
    of_tick(guest.report("tick"))
}

#[test]
#[ignore = "long"]
fn a_paused_guest_counts_nothing_and_loses_nothing() {
    // Longer than a busy host keeps a thread from its processor.
    const PAUSE: Duration = Duration::from_secs(6);
    Lab::new().run(|| {
        let mut guest = Plan::workload("count,200").with("--cpus", "2").start();
        let mut last = tick(&mut guest);
        while last.0 < 5 {
            last = tick(&mut guest);
        }
        let mut client = guest.client();

        client.pause().unwrap();
        let written =
            |client: &mut Client| client.metrics().unwrap()["serial"]["output_bytes"].clone();
        let bytes = written(&mut client);
        std::thread::sleep(PAUSE);
        assert_eq!(client.instance().unwrap().state, State::Paused);
        assert_eq!(written(&mut client), bytes, "the guest went on");
        // All that it had written has come by now.
        let mut before =
            guest.drain().iter().rev().find_map(|line| parse(line)).map_or(last, of_tick);

        let resumed = Instant::now();
        client.resume().unwrap();
        assert_eq!(client.instance().unwrap().state, State::Running);
        let first = before.1;
        for _ in 0..10 {
            let after = tick(&mut guest);
            assert_eq!(after.0, before.0 + 1, "a tick was lost");
            // A vCPU of a busy host may not run for long; that time passes for both.
            let passed = Duration::from_nanos(after.1 - first);
            assert!(
                passed < resumed.elapsed() + PAUSE / 2,
                "the guest's clock went on while it was paused: {passed:?}"
            );
            before = after;
        }
        client.stop().unwrap();
        assert_eq!(guest.finish().code, Some(12));

        // With a clock that advances the guest sees a gap as long as the pause, and its count goes on all the same.
        let mut guest = Plan::workload("count,200").with("--clock", "advance").start();
        // The last tick before the pause may be this one, or one that is in the pipe then.
        let mut before = tick(&mut guest);
        let mut client = guest.client();
        client.pause().unwrap();
        std::thread::sleep(PAUSE);
        client.resume().unwrap();
        let gap = (0..1000).any(|_| {
            let (earlier, after) = (before, tick(&mut guest));
            assert_eq!(after.0, earlier.0 + 1, "a tick was lost");
            before = after;
            Duration::from_nanos(after.1 - earlier.1) >= PAUSE
        });
        assert!(gap, "the guest's clock stopped");
        client.stop().unwrap();
        assert_eq!(guest.finish().code, Some(12));
    });
}

/// Everything that the control socket says of a VM until its end, on a thread of its own.
fn follow(guest: &Guest) -> JoinHandle<Vec<Value>> {
    let mut stream = UnixStream::connect(guest.socket()).unwrap();
    // Without chunks.
    stream.write_all(b"GET /events HTTP/1.0\r\n\r\n").unwrap();
    std::thread::spawn(move || {
        let mut text = String::new();
        stream.read_to_string(&mut text).unwrap();
        let lines = text.split_once("\r\n\r\n").unwrap().1.lines();
        lines.map(|line| serde_json::from_str(line).unwrap()).collect()
    })
}

#[test]
fn a_client_configures_a_vm_starts_it_and_sees_its_life() {
    Lab::new().run(|| {
        let mut guest = Plan::waiting().start();
        guest.answers();
        let mut client = guest.client();
        assert_eq!(client.instance().unwrap().state, State::NotStarted);
        assert!(client.pause().is_err());
        let events = follow(&guest);
        let start = json!({ "action_type": "InstanceStart" });
        let boot = |kernel: &Path| {
            json!({
                "kernel_image_path": kernel,
                "initrd_path": artifact("initrd.cpio"),
                "boot_args": "quiet cryptomgr.notests workload=count,200",
            })
        };

        client.send("PUT", "/boot-source", &boot(Path::new("/no/Image"))).unwrap();
        let machine = json!({ "vcpu_count": 2, "mem_size_mib": 256 });
        client.send("PUT", "/machine-config", &machine).unwrap();
        client.send("PUT", "/mte", &json!({ "mode": "require" })).unwrap();
        let refused = client.send("PUT", "/actions", &start).unwrap_err();
        assert!(refused.to_string().contains("/no/Image"), "{refused}");

        client.send("PUT", "/boot-source", &boot(&artifact("Image"))).unwrap();
        client.send("PUT", "/actions", &start).unwrap();
        assert_eq!(client.instance().unwrap().state, State::Running);
        while tick(&mut guest).0 < 2 {}
        client.pause().unwrap();
        client.resume().unwrap();
        assert!(client.send("PUT", "/actions", &start).is_err());
        client.stop().unwrap();

        assert_eq!(guest.finish().code, Some(12));
        let events = events.join().unwrap();
        let names: Vec<_> = events.iter().map(|event| event["event"].as_str().unwrap()).collect();
        assert_eq!(names, ["started", "paused", "resumed", "ended"], "{events:?}");
        assert_eq!(events[3]["status"], 12);
    });
}

#[test]
#[ignore = "long"]
fn many_pauses_lose_no_tick() {
    Lab::new().run(|| {
        let mut guest = Plan::workload("count,50").with("--cpus", "4").start();
        let mut expected = tick(&mut guest).0 + 1;
        let mut client = guest.client();
        for _ in 0..50 {
            client.pause().unwrap();
            client.pause().unwrap();
            client.resume().unwrap();
            client.resume().unwrap();
        }
        for _ in 0..20 {
            assert_eq!(tick(&mut guest).0, expected);
            expected += 1;
        }
        client.stop().unwrap();
        assert_eq!(guest.finish().code, Some(12));
    });
}

#[test]
fn the_power_key_powers_a_guest_off_and_force_ends_one_that_does_not_listen() {
    Lab::new().run(|| {
        let mut guest = Plan::workload("idle").start();
        guest.report("ready");
        guest.client().press_power_key().unwrap();
        let finished = guest.finish().expect_power_off();
        assert_eq!(finished.report("power_key")["power_key"], true);

        let mut guest = Plan::workload("hang").start();
        guest.report("ready");
        let refused = guest.client().press_power_key().unwrap_err();
        assert!(refused.to_string().contains("does not listen"), "{refused}");
        guest.client().stop().unwrap();
        assert_eq!(guest.finish().code, Some(12));
    });
}

#[test]
fn a_vcpu_is_stopped_where_no_signal_can_be_queued() {
    Lab::new().run(|| {
        let scratch = testing::scratch::Scratch::new();
        let socket = scratch.join("api");
        let run = Plan::workload("hang").with("--serial", "none").command();
        let mut command = Command::new("sh");
        command.args(["-c", "ulimit -i 0; exec \"$@\"", "sh"]).arg(run.get_program());
        command.args(run.get_args()).arg("--api-sock").arg(&socket);
        let mut child = command.spawn().unwrap();
        let mut client = testing::wait::until("the control socket", || {
            tesseractl::client::Client::connect(&socket, testing::wait::PATIENCE).ok()
        });

        client.pause().unwrap();
        client.resume().unwrap();
        client.stop().unwrap();

        assert_eq!(child.wait().unwrap().code(), Some(12));
    });
}

fn tesseractl(guest: &Guest, arguments: &[&str]) -> Output {
    guest.tesseractl(arguments).output().unwrap()
}

fn said(output: &Output) -> String {
    assert!(output.status.success(), "{output:?}");
    String::from_utf8_lossy(&output.stdout).into_owned()
}

#[test]
fn the_client_shows_pauses_resumes_and_stops() {
    Lab::new().run(|| {
        let mut guest = Plan::workload("idle").with("--cpus", "2").with("--id", "one").start();
        guest.report("ready");

        assert!(said(&tesseractl(&guest, &["status"])).contains("Running"));
        said(&tesseractl(&guest, &["pause"]));
        assert!(said(&tesseractl(&guest, &["status"])).contains("Paused"));
        let refused = tesseractl(&guest, &["stop"]);
        assert_eq!(refused.status.code(), Some(1), "{refused:?}");
        said(&tesseractl(&guest, &["resume"]));
        let metrics: Value =
            serde_json::from_str(&said(&tesseractl(&guest, &["metrics", "--json"]))).unwrap();
        assert!(metrics["vcpu"]["exits_total"].as_u64().unwrap() > 0, "{metrics}");
        assert_eq!(metrics["memory"]["guest_bytes"], 512 << 20);
        said(&tesseractl(&guest, STOP));
        guest.finish().expect_power_off();

        let mut guest = Plan::workload("hang").start();
        guest.report("ready");
        said(&tesseractl(&guest, &["stop", "--force"]));
        assert_eq!(guest.finish().code, Some(12));
    });
}

#[test]
#[ignore = "long"]
fn the_configuration_that_is_reported_boots_the_same_vm() {
    Lab::new().run(|| {
        let mut guest = Plan::workload("idle").with("--cpus", "3").with("--memory", "192M").start();
        guest.report("ready");
        let config = guest.client().vm_config().unwrap();
        assert_eq!(config["machine-config"]["vcpu_count"], 3);
        assert_eq!(config["machine-config"]["mem_size_mib"], 192);
        guest.client().stop().unwrap();
        assert_eq!(guest.finish().code, Some(12));

        let scratch = testing::scratch::Scratch::new();
        let file = scratch.file("vm.json", config.to_string());
        let output = Command::new(program("tessera"))
            .args(["run", "--config"])
            .arg(file)
            .args(["--cmdline", "quiet workload=smp", "--serial", "stdio"])
            .stdin(std::process::Stdio::null())
            .output()
            .unwrap();
        assert!(output.status.success(), "{output:?}");
        let console = String::from_utf8_lossy(&output.stdout);
        let done = console.lines().filter_map(parse).find(|report| report["event"] == "done");
        assert_eq!(done.unwrap()["cpus"], 3);
    });
}
