//! Twenty real VMs, four of which are always another one: what `list`, `top` and `events` say meanwhile.

use std::collections::BTreeSet;
use std::io::{BufRead, BufReader, Lines};
use std::process::{Child, ChildStdout, Stdio};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Instant;

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use testing::bare::{WAITS, image};
use testing::broker::Broker;
use testing::guest::Plan;
use testing::lab::Lab;
use testing::scratch::Scratch;
use testing::wait::{until, while_changing};

use crate::place::Place;

/// VMs that stay: Linux with tags and a balloon, and the smallest there are.
const LINUX: usize = 4;
const SMALL: usize = 12;
/// VMs that are started and ended all the time, one after the other on each lane.
const LANES: usize = 4;
const TURNS: usize = 13;
/// What the Linux guests are asked for.
const BALLOON_MIB: u64 = 16;
/// Tag storage of a chunk.
const CHUNK_TAGS: u64 = 64 << 10;

/// A VM of a lane.
struct Life {
    id: String,
    pid: Option<u64>,
    start: Span,
    end: Option<Span>,
}

/// When something began, and when it was over.
#[derive(Clone, Copy)]
struct Span {
    begun: Instant,
    over: Option<Instant>,
}

impl Span {
    fn now() -> Self {
        Self { begun: Instant::now(), over: None }
    }
}

/// All VMs of the lanes, those that have gone too.
#[derive(Default)]
struct Lives(Mutex<Vec<Life>>);

impl Lives {
    fn with<T>(&self, f: impl FnOnce(&mut Vec<Life>) -> T) -> T {
        f(&mut self.0.lock().unwrap())
    }

    /// Compares what was seen between two moments with what was started and ended.
    fn check(&self, seen: &[Value], from: Instant, to: Instant) {
        self.with(|lives| {
            let churned = seen.iter().filter(|vm| vm["name"].as_str().unwrap().starts_with("lane"));
            for vm in churned {
                let may_be_seen = |life: &&Life| {
                    let ended = life.end.and_then(|end| end.over);
                    vm["name"] == *life.id
                        && life.pid.is_none_or(|pid| vm["pid"] == pid)
                        && life.start.begun <= to
                        && ended.is_none_or(|ended| ended >= from)
                };
                assert!(lives.iter().any(|life| may_be_seen(&life)), "{vm} is stale");
            }
            for life in lives.iter() {
                let started = life.start.over.is_some_and(|over| over <= from);
                let ends = life.end.is_some_and(|end| end.begun <= to);
                let is_seen =
                    seen.iter().any(|vm| Some(&vm["pid"]) == life.pid.map(Value::from).as_ref());
                assert!(!started || ends || is_seen, "{} is missing in {seen:?}", life.id);
            }
        });
    }
}

/// Sees all VMs once with `list` and once with `top`; how many VMs have not answered in time.
fn look(place: &Place, lives: &Lives) -> usize {
    let mut silent = 0;
    for verb in ["list", "top"] {
        let from = Instant::now();
        let seen: Value = serde_json::from_str(&place.said(&[verb, "--json"])).unwrap();
        let to = Instant::now();
        let seen = if verb == "top" { &seen["vms"] } else { &seen }.as_array().unwrap();
        let names: BTreeSet<_> = seen.iter().map(|vm| vm["name"].as_str().unwrap()).collect();
        assert_eq!(names.len(), seen.len(), "a name twice: {seen:?}");
        let steady = names.iter().filter(|name| !name.starts_with("lane")).count();
        assert_eq!(steady, LINUX + SMALL, "{verb}: {names:?}");
        lives.check(seen, from, to);
        silent += seen.iter().filter(|vm| vm["state"] == "no answer").count();
    }
    silent
}

/// Starts a VM, has something happen to it, ends it in one of several ways, and reads what its events say.
fn turn(place: &Place, plan: &Plan, lives: &Lives, lane: usize, turn: usize) {
    let id = format!("lane{lane}");
    let at = lives.with(|lives| {
        let life = Life { id: id.clone(), pid: None, start: Span::now(), end: None };
        lives.push(life);
        lives.len() - 1
    });
    let started = place.run(plan, &["--id", &id, "--json"]);
    assert!(started.status.success(), "{started:?}");
    let started: Value = serde_json::from_slice(&started.stdout).unwrap();
    assert_eq!(started["state"], "Running", "{started}");
    lives.with(|lives| {
        lives[at].start.over = Some(Instant::now());
        lives[at].pid = started["pid"].as_u64();
    });
    let events = Events::follow(place, &id);
    if turn.is_multiple_of(3) {
        place.said(&["pause", &id]);
        place.said(&["resume", &id]);
    }
    let is_killed = turn.is_multiple_of(4);
    let expected = match (turn.is_multiple_of(3), is_killed) {
        (true, false) => &["started", "paused", "resumed", "ended"][..],
        (false, false) => &["started", "ended"],
        (true, true) => &["started", "paused", "resumed"],
        (false, true) => &["started"],
    };

    lives.with(|lives| lives[at].end = Some(Span::now()));
    match is_killed {
        false => drop(place.said(&["stop", &id, "--force"])),
        true => kill(started["pid"].as_u64().unwrap()),
    }
    lives.with(|lives| lives[at].end.as_mut().unwrap().over = Some(Instant::now()));
    events.tell(expected, is_killed);
}

/// As `kill -9` does. The process is gone when its number is no process's, or when nothing but its first thread is
/// left, which waits for its parent: a thread that lives on keeps the files of the process open.
fn kill(pid: u64) {
    let raw = Pid::from_raw(pid.try_into().unwrap()).unwrap();
    kill_process(raw, Signal::KILL).unwrap();
    let is_gone = || {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"));
        let threads = std::fs::read_dir(format!("/proc/{pid}/task")).map_or(0, Iterator::count);
        stat.map_or(true, |stat| stat.contains(") Z ") && threads <= 1).then_some(())
    };
    until("the end of a killed VM", is_gone);
}

/// A client that shows what happens to a VM.
struct Events {
    client: Child,
    lines: Lines<BufReader<ChildStdout>>,
    first: Value,
}

impl Events {
    /// Follows a VM, and waits for what has happened so far.
    fn follow(place: &Place, id: &str) -> Self {
        let mut client = place.tesseractl(&["events", id, "--json"]);
        let mut client = client.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
        let mut lines = BufReader::new(client.stdout.take().unwrap()).lines();
        let first = serde_json::from_str(&lines.next().expect("an event").unwrap()).unwrap();
        Self { client, lines, first }
    }

    /// Checks what it has shown to the VM's end. What a request makes happen is sent before the request is answered,
    /// so that it arrives although the VM is killed next.
    fn tell(mut self, expected: &[&str], is_killed: bool) {
        let more = self.lines.map(|line| serde_json::from_str(&line.unwrap()).unwrap());
        let events: Vec<Value> = [self.first].into_iter().chain(more).collect();
        let names: Vec<_> = events.iter().map(|event| event["event"].as_str().unwrap()).collect();
        let seqs = events.iter().map(|event| event["seq"].as_u64().unwrap());
        assert_eq!(names, expected);
        assert!(seqs.eq(1..=events.len() as u64), "{events:?}");
        assert_eq!(self.client.wait().unwrap().success(), !is_killed, "{events:?}");
        if !is_killed {
            assert_eq!(events.last().unwrap()["status"], 12, "{events:?}");
        }
    }
}

/// What the kernel says of a process, in bytes.
fn resident(pid: u64) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.split_whitespace().next().unwrap().parse::<u64>().unwrap() << 10
}

/// What the kernel says of the CPU time of a process, in nanoseconds.
fn cpu(pid: u64) -> u64 {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let fields: Vec<&str> = stat.rsplit_once(')').unwrap().1.split_whitespace().collect();
    let ticks = |at: usize| fields[at].parse::<u64>().unwrap();
    (ticks(11) + ticks(12)) * 1_000_000_000 / rustix::param::clock_ticks_per_second()
}

/// Compares the figures of all steady VMs with those of the kernel and of the broker.
fn figures(place: &Place, broker: &Broker) {
    let pids: Vec<u64> = place.list().iter().map(|vm| vm["pid"].as_u64().unwrap()).collect();
    let kernel = || pids.iter().map(|pid| (resident(*pid), cpu(*pid))).collect::<Vec<_>>();
    let before = kernel();
    let top = place.answered(&["top", "--broker", broker.socket(), "--json"]);
    let top: Value = serde_json::from_str(&top).unwrap();
    let after = kernel();

    let vms = top["vms"].as_array().unwrap();
    assert_eq!(vms.len(), LINUX + SMALL);
    for ((vm, before), after) in vms.iter().zip(before).zip(after) {
        let between = |name: &str, a: u64, b: u64, slack: u64| {
            let value = vm[name].as_u64().unwrap();
            assert!(
                a.min(b).saturating_sub(slack) <= value && value <= a.max(b) + slack,
                "{name}: {vm}"
            );
        };
        // The kernel sums up the counters of its processors now and then.
        between("resident_bytes", before.0, after.0, 1 << 20);
        between("cpu_nanoseconds", before.1, after.1, 0);
        assert_eq!(vm["state"], "Running", "{vm}");
        let is_linux = vm["name"].as_str().unwrap().starts_with("linux");
        assert_eq!(vm["memory_bytes"], if is_linux { 128 << 20 } else { 64 << 20 }, "{vm}");
        if is_linux {
            assert_eq!(vm["balloon"]["actual_mib"], BALLOON_MIB, "{vm}");
            assert!(vm["tag_storage"]["reserved_bytes"].as_u64() > Some(0), "{vm}");
        }
    }
}

/// Whether VMs and pool say the same of what is reserved. A guest may touch a chunk between two answers.
fn tags_agree(place: &Place, broker: &Broker) -> Option<()> {
    let top = place.said(&["top", "--broker", broker.socket(), "--json"]);
    let top: Value = serde_json::from_str(&top).unwrap();
    let vms = top["vms"].as_array().unwrap();
    let reserved = vms.iter().filter_map(|vm| vm["tag_storage"]["reserved_bytes"].as_u64());
    let chunks = top["pool"]["pool"]["chunks"]["reserved"].as_u64().unwrap();
    (reserved.sum::<u64>() == chunks * CHUNK_TAGS).then_some(())
}

#[test]
#[ignore = "long"]
fn twenty_vms_that_come_and_go_are_all_listed_and_no_other() {
    Lab::new().run(|| {
        let (place, scratch) = (Place::new(), Scratch::new());
        let broker = Broker::start(&["--capacity", "64M"]);
        let linux = Plan::workload("idle").with("--memory", "128M").with("--mte", "require");
        let linux = linux.with("--tag-storage", "demand").with("--broker", broker.socket());
        let kernel = scratch.file("kernel", image(&WAITS));
        let small = Plan::bare(&kernel).with("--memory", "64M").with("--serial", "none");
        for number in 0..LINUX {
            let id = format!("linux{number}");
            assert!(place.run(&linux, &["--id", &id]).status.success());
        }
        for number in 0..SMALL {
            let id = format!("small{number}");
            assert!(place.run(&small, &["--id", &id]).status.success());
        }

        let (lives, is_over, silent) = (Lives::default(), AtomicBool::new(false), AtomicUsize::new(0));
        let (start, looks) = (Instant::now(), AtomicUsize::new(0));
        std::thread::scope(|scope| {
            let watcher = scope.spawn(|| {
                while !is_over.load(Ordering::Relaxed) {
                    silent.fetch_add(look(&place, &lives), Ordering::Relaxed);
                    looks.fetch_add(2, Ordering::Relaxed);
                }
            });
            let lanes: Vec<_> = (0..LANES)
                .map(|lane| {
                    let (place, small, lives) = (&place, &small, &lives);
                    scope.spawn(move || (0..TURNS).for_each(|at| turn(place, small, lives, lane, at)))
                })
                .collect();
            let ended: Vec<_> = lanes.into_iter().map(|lane| lane.join()).collect();
            is_over.store(true, Ordering::Relaxed);
            watcher.join().unwrap();
            ended.into_iter().for_each(|lane| lane.unwrap());
        });
        let seconds = start.elapsed().as_secs_f64();
        let count = LANES * TURNS;
        println!(
            "{count} starts and {count} ends beside {} VMs in {seconds:.0} s, {:.0} and {:.0} a minute; {} looks at \
             all, {} VMs of which did not answer within half a second",
            LINUX + SMALL,
            count as f64 * 60.0 / seconds,
            count as f64 * 60.0 / seconds,
            looks.into_inner(),
            silent.into_inner(),
        );

        until("an answer of each VM", || {
            place.states().iter().all(|(_, state)| state == "Running").then_some(())
        });
        for number in 0..LINUX {
            let id = format!("linux{number}");
            until("the balloon's driver", || {
                let target = format!("{BALLOON_MIB}M");
                place.output(&["balloon", &id, "target", &target]).status.success().then_some(())
            });
            while_changing("the balloon", || {
                let said = place.said(&["balloon", &id, "--json"]);
                let balloon: Value = serde_json::from_str(&said).unwrap();
                let actual = balloon["actual_mib"].clone();
                if actual == BALLOON_MIB { Ok(()) } else { Err(actual) }
            });
        }
        figures(&place, &broker);
        until("one sum of tag storage", || tags_agree(&place, &broker));
        println!("{}", place.said(&["top", "--broker", broker.socket()]));
        let entries = std::fs::read_dir(place.vms("")).unwrap().map(|entry| entry.unwrap().file_name());
        let entries: Vec<_> = entries.filter(|name| name.to_string_lossy().contains('.')).collect();
        assert_eq!(entries.len(), LINUX + SMALL, "{entries:?}");

        for vm in place.states() {
            place.said(&["stop", &vm.0, "--force"]);
        }
        assert!(place.list().is_empty());
        broker.wait("no lease", |report| report.pool.leases.is_empty());
    });
}
