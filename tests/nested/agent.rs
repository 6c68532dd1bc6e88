//! The guest's agent, in a guest of the initramfs: commands, files, and the clock after a pause.

use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use testing::guest::{Guest, Plan, STOP};
use testing::lab::Lab;
use testing::scratch::Scratch;
use testing::wait::until;

fn tesseractl(guest: &Guest, arguments: &[&str]) -> Output {
    guest.tesseractl(arguments).output().unwrap()
}

fn said(output: &Output) -> String {
    assert!(output.status.success(), "{output:?}");
    String::from_utf8_lossy(&output.stdout).trim().to_owned()
}

#[test]
fn commands_run_and_files_travel_in_a_guest_that_boots() {
    Lab::new().run(|| {
        let scratch = Scratch::new();
        let guest = Plan::agent(&scratch).start();
        guest.answers();

        // Right after the start: the client waits for the agent.
        let output = guest.shell("echo out; echo err >&2; uname -m; exit 3").output().unwrap();
        assert_eq!(output.status.code(), Some(3), "{output:?}");
        assert_eq!(String::from_utf8_lossy(&output.stdout), "out\naarch64\n");
        assert_eq!(String::from_utf8_lossy(&output.stderr), "err\n");
        assert_eq!(guest.shell("kill -9 $$").status().unwrap().code(), Some(137));
        assert_eq!(tesseractl(&guest, &["exec", "nothing"]).status.code(), Some(127));
        let tty = tesseractl(&guest, &["exec", "--tty", "--", "tty"]);
        assert_eq!(said(&tty), "/dev/pts/0");

        let bytes: Vec<u8> = (0..8_000_000_u32).map(|number| (number % 251) as u8).collect();
        let (file, back) = (scratch.file("file", &bytes), scratch.join("back"));
        let copy = |from: &str, to: &str| said(&tesseractl(&guest, &["cp", from, to]));
        copy(file.to_str().unwrap(), ":/tmp/");
        let sum = guest.sh("sha256sum </tmp/file");
        copy(":/tmp/file", back.to_str().unwrap());
        assert!(std::fs::read(&back).unwrap() == bytes);
        let here = Command::new("sha256sum").stdin(std::fs::File::open(&file).unwrap()).output();
        assert_eq!(said(&here.unwrap()), sum);
        let tree = "mkdir -p /tmp/tree/a; for i in $(seq 200); do echo $i >/tmp/tree/a/$i; done";
        guest.sh(tree);
        copy(":/tmp/tree", scratch.path().to_str().unwrap());
        assert_eq!(std::fs::read_dir(scratch.join("tree/a")).unwrap().count(), 200);

        said(&tesseractl(&guest, STOP));
        guest.finish().expect_power_off();
    });
}

/// Seconds between the guest's time of day and the host's.
fn behind(guest: &Guest) -> u64 {
    let now = || SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
    let before = now();
    let clock: u64 = guest.sh("date +%s").parse().unwrap();
    // On a busy machine seconds pass between the command and its answer.
    clock.abs_diff(clock.clamp(before, now()))
}

#[test]
#[ignore = "long"]
fn the_clock_follows_the_hosts_after_a_pause() {
    Lab::new().run(|| {
        let scratch = Scratch::new();
        let mut guest = Plan::agent(&scratch).start();
        guest.answers();
        until("the guest has the host's time", || (behind(&guest) <= 2).then_some(()));
        // The agent has looked at the clocks once when it answers.

        guest.client().pause().unwrap();
        let paused = Instant::now();
        let refused = guest.shell("true").output().unwrap();
        assert_eq!(refused.status.code(), Some(125), "{refused:?}");
        assert!(String::from_utf8_lossy(&refused.stderr).contains("resume"), "{refused:?}");
        until("a pause of 20 s", || (paused.elapsed() > Duration::from_secs(20)).then_some(()));
        guest.client().resume().unwrap();

        let moved = loop {
            let line = guest.line().expect("the agent sets the clock");
            if let Some((_, moved)) = line.split_once("the clock was set forward by ") {
                break moved.split(' ').next().unwrap().parse::<u64>().unwrap();
            }
        };
        assert!(moved >= 15_000, "{moved} ms of a pause of 20 s");
        assert!(behind(&guest) <= 2);
        guest.stop();
    });
}

#[test]
#[ignore = "long"]
fn a_resume_sets_the_clock_where_that_is_asked_for() {
    Lab::new().run(|| {
        let scratch = Scratch::new();
        let guest = Plan::agent(&scratch).start();
        guest.answers();
        said(&tesseractl(&guest, &["agent", "--set-clock", "--timeout", "60"]));
        said(&tesseractl(&guest, &["pause"]));
        let paused = Instant::now();
        until("a pause of 10 s", || (paused.elapsed() > Duration::from_secs(10)).then_some(()));

        let resumed = said(&tesseractl(&guest, &["resume", "--set-clock", "--json"]));

        let resumed: serde_json::Value = serde_json::from_str(&resumed).unwrap();
        assert_eq!(resumed["outcome"], "resumed");
        assert!(resumed["clock_moved_ms"].is_i64(), "{resumed}");
        // By itself the agent notices the pause only later.
        assert!(behind(&guest) <= 2);
        guest.stop();
    });
}

#[test]
#[ignore = "long"]
fn many_commands_much_output_and_a_client_that_is_killed() {
    Lab::new().run(|| {
        let scratch = Scratch::new();
        let guest = Plan::agent(&scratch).with("--cpus", "2").start();
        guest.answers();
        said(&tesseractl(&guest, &["agent", "--timeout", "120"]));
        let start = |arguments: &[&str]| {
            let mut command =
                guest.tesseractl(&[&["exec", "--timeout", "120"], arguments].concat());
            command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
            command.spawn().unwrap()
        };

        let all: Vec<_> = (0..50)
            .map(|number| start(&["--", "sh", "-c", &format!("cat; echo {number}; exit {number}")]))
            .collect();
        for (number, child) in all.into_iter().enumerate() {
            let output = child.wait_with_output().unwrap();
            assert_eq!(output.status.code(), Some(number as i32), "{output:?}");
            assert_eq!(String::from_utf8_lossy(&output.stdout), format!("{number}\n"));
        }

        let mut zeros = start(&["--", "head", "-c", "33554432", "/dev/zero"]);
        let output = zeros.stdout.take().unwrap();
        let sum = said(&Command::new("sha256sum").stdin(output).output().unwrap());
        // The digest of 32 MiB of zeros.
        let expected = "83ee47245398adee79bd9c0a8bc57b821e92aba10f5f9ade8a5d1fae4d8c4302";
        assert_eq!(sum.split(' ').next(), Some(expected));
        assert_eq!(zeros.wait().unwrap().code(), Some(0));

        let script =
            "cat >/dev/null; until [ -e /tmp/go ]; do echo x; sleep 0.1; done; touch /tmp/done";
        let mut client = start(&["--", "sh", "-c", &format!("touch /tmp/begun; {script}")]);
        until("it has begun", || {
            guest.shell("test -e /tmp/begun").status().unwrap().success().then_some(())
        });
        client.kill().unwrap();
        client.wait().unwrap();
        guest.sh("touch /tmp/go");
        until("it ends by itself", || {
            guest.shell("test -e /tmp/done").status().unwrap().success().then_some(())
        });
        guest.stop();
    });
}

/// Debian's kernel for virtual machines has no driver for the key.
#[test]
fn the_power_key_is_the_agents_where_no_driver_has_it() {
    Lab::new().run(|| {
        let scratch = Scratch::new();
        let mut guest = Plan::agent(&scratch).append("workload=agent-key").start();
        guest.answers();
        said(&tesseractl(&guest, &["agent", "--timeout", "120"]));

        said(&tesseractl(&guest, STOP));

        guest.report("asked_to_power_off");
        guest.finish().expect_power_off();
    });
}
