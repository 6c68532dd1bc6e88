//! Clients, files and directories that are not as they should be, beside VMs that are not to notice.

use std::fs;
use std::io::{Read, Write};
use std::os::unix::fs::{chown, symlink};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Command, Stdio};

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use serde_json::{Value, json};
use testing::bare::{WAITS, image};
use testing::guest::{Guest, Plan};
use testing::lab::{Lab, artifact, program};
use testing::memory::own_anonymous;
use testing::scratch::Scratch;
use testing::wait::{PATIENCE, until};
use vmm::api::model::State;

use crate::place::Place;

/// Clients that say nothing.
const IDLE: usize = 1000;
/// The longest body that is taken (resources/openapi.yaml).
const LONGEST_BODY: usize = 51_200;

/// Bytes of a guest that counts.
const GUEST_RAM: u64 = 128 << 20;

/// A guest that counts, so that it shows whether it runs.
fn counting() -> Plan {
    Plan::workload("count,200").with("--memory", "128M")
}

/// Waits for its next ticks, of which none is lost.
fn ticks(guest: &mut Guest) {
    let tick = |guest: &mut Guest| guest.report("tick")["tick"].as_u64().unwrap();
    let first = tick(guest);
    for more in 1..4 {
        assert_eq!(tick(guest), first + more);
    }
}

/// Waits until it shows a tick of this moment, not one of before.
fn goes_on(guest: &mut Guest) {
    guest.drain();
    ticks(guest);
}

fn connect(socket: &Path) -> UnixStream {
    let stream = UnixStream::connect(socket).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream.set_write_timeout(Some(PATIENCE)).unwrap();
    stream
}

/// What comes after these bytes, until the server ends the connection.
fn answers(socket: &Path, bytes: &[u8]) -> String {
    let mut stream = connect(socket);
    // A server that refuses may close before it has read all.
    let _ = stream.write_all(bytes);
    let _ = stream.shutdown(std::net::Shutdown::Write);
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer);
    String::from_utf8_lossy(&answer).into_owned()
}

/// The status and the body of the answer to one request.
fn ask(socket: &Path, method: &str, path: &str, body: &[u8]) -> (u16, String) {
    let head = format!("{method} {path} HTTP/1.0\r\nContent-Length: {}\r\n\r\n", body.len());
    let answer = answers(socket, &[head.as_bytes(), body].concat());
    let (head, body) =
        answer.split_once("\r\n\r\n").unwrap_or_else(|| panic!("{method} {path}: {answer}"));
    (head[9..12].parse().unwrap(), body.to_owned())
}

fn open_files(pid: u32) -> usize {
    fs::read_dir(format!("/proc/{pid}/fd")).unwrap().count()
}

#[test]
#[ignore = "long"]
fn a_thousand_silent_clients_hold_up_no_vm_and_no_stop() {
    Lab::new().run(|| {
        let before = getrlimit(Resource::Nofile);
        let current = before.maximum.map(|maximum| maximum.min(4096));
        setrlimit(Resource::Nofile, Rlimit { current, ..before }).unwrap();
        let (mut one, mut two) = (counting().start(), counting().start());
        ticks(&mut one);
        ticks(&mut two);
        let files = open_files(one.pid());

        let mut silent: Vec<UnixStream> = (0..IDLE).map(|_| connect(one.socket())).collect();
        // Some have begun to say something.
        for stream in silent.iter_mut().step_by(3) {
            let _ = stream.write_all(b"PUT /actions HTTP/1.1\r\nContent-Length: 90\r\n\r\n{");
        }

        for guest in [&mut one, &mut two] {
            goes_on(guest);
            let mut client = guest.client();
            client.pause().unwrap();
            assert_eq!(client.instance().unwrap().state, State::Paused);
            client.resume().unwrap();
            goes_on(guest);
        }
        assert!(open_files(one.pid()) <= files + 10, "{} files", open_files(one.pid()));
        one.stop();
        goes_on(&mut two);
        two.stop();
        drop(silent);
        setrlimit(Resource::Nofile, before).unwrap();
    });
}

#[test]
#[ignore = "long"]
fn followers_that_do_not_read_hold_up_no_event_and_no_stop() {
    // More than are kept, and than a socket's buffer holds.
    const ROUNDS: usize = 600;
    // Ten followers' buffers and the events that are kept, many times over.
    const MEMORY: u64 = 2 << 20;
    Lab::new().run(|| {
        let (mut one, mut two) = (counting().start(), counting().start());
        // Both have booted: a boot takes memory, and time.
        ticks(&mut one);
        ticks(&mut two);
        let memory = own_anonymous(one.pid(), GUEST_RAM);
        let mut slow: Vec<UnixStream> = (0..8)
            .map(|_| {
                let mut stream = connect(one.socket());
                stream.write_all(b"GET /events HTTP/1.0\r\n\r\n").unwrap();
                stream
            })
            .collect();

        let mut client = one.client();
        for _ in 0..ROUNDS {
            client.pause().unwrap();
            client.resume().unwrap();
        }
        let grown = own_anonymous(one.pid(), GUEST_RAM).saturating_sub(memory);
        assert!(grown <= MEMORY, "{grown} bytes more");
        goes_on(&mut two);
        // Its clients still hold their connections.
        client.stop().unwrap();
        assert_eq!(one.finish().code, Some(12));

        let mut text = String::new();
        slow.remove(0).read_to_string(&mut text).unwrap();
        let events = text.split_once("\r\n\r\n").unwrap().1;
        let whole = events.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
        let seqs: Vec<u64> = whole.map(|event| event["seq"].as_u64().unwrap()).collect();
        assert_eq!(seqs[0], 1);
        assert!(seqs.is_sorted_by(|a, b| a < b) && seqs.len() < 2 * ROUNDS, "{seqs:?}");
        two.stop();
    });
}

#[test]
#[ignore = "long"]
fn of_vms_with_one_id_that_start_at_once_one_runs() {
    Lab::new().run(|| {
        let (place, scratch) = (Place::new(), Scratch::new());
        let kernel = scratch.file("kernel", image(&WAITS));
        let mut other = counting().start();
        ticks(&mut other);

        let mut rivals: Vec<_> = (0..6)
            .map(|number| {
                let mut command = Command::new(program("tessera"));
                command.args(["run", "--id", "one", "--memory", "64M", "--serial", "none"]);
                command.arg("--kernel").arg(&kernel);
                command.arg("--api-sock").arg(scratch.join(&format!("api{number}")));
                command.env("TESSERA_RUNTIME_DIR", place.path()).stdin(Stdio::null());
                command.stderr(Stdio::piped()).spawn().unwrap()
            })
            .collect();
        let left = |rivals: &mut Vec<std::process::Child>| {
            rivals
                .iter_mut()
                .filter_map(|rival| rival.try_wait().unwrap().is_none().then_some(()))
                .count()
        };
        until("the end of all rivals but one", || (left(&mut rivals) == 1).then_some(()));
        until("one VM", || {
            (place.states() == [("one".to_owned(), "Running".to_owned())]).then_some(())
        });
        let by_name = place.run(&Plan::bare(&kernel), &["--id", "one"]);
        assert_eq!(by_name.status.code(), Some(1), "{by_name:?}");

        place.said(&["stop", "one", "--force"]);
        let mut codes = Vec::new();
        for rival in rivals {
            let output = rival.wait_with_output().unwrap();
            let message = String::from_utf8_lossy(&output.stderr);
            assert!(
                output.status.code() == Some(12) || message.contains("already runs"),
                "{message}"
            );
            codes.push(output.status.code());
        }
        assert_eq!(codes.iter().filter(|code| **code == Some(12)).count(), 1, "{codes:?}");
        goes_on(&mut other);
        other.stop();
    });
}

#[test]
fn a_registry_with_files_of_every_kind_lists_what_lives() {
    Lab::new().as_root().run(|| {
        let (place, scratch) = (Place::new(), Scratch::new());
        let kernel = scratch.file("kernel", image(&WAITS));
        let small = Plan::bare(&kernel).with("--memory", "64M").with("--serial", "none");
        assert!(place.run(&small, &["--id", "one"]).status.success());
        let entry = fs::read_to_string(place.vms("one.json")).unwrap();

        let stale = entry.replace("\"one\"", "\"dead\"");
        let damaged: [(&str, &[u8]); 7] = [
            ("empty.json", b""),
            ("cut.json", &entry.as_bytes()[..entry.len() / 2]),
            ("text.json", b"\xff\xfe no JSON \x1b[2J"),
            ("huge.json", &vec![b' '; 1 << 20]),
            ("name.json", entry.as_bytes()),
            ("version.json", b"{\"version\":9,\"name\":\"version\",\"pid\":1,\"start_time\":1,\"started_by\":\"x\"}"),
            ("a b.json", entry.as_bytes()),
        ];
        for (name, bytes) in damaged {
            fs::write(place.vms(name), bytes).unwrap();
        }
        fs::write(place.vms("dead.json"), &stale).unwrap();
        fs::write(place.vms(".new.77"), "half").unwrap();
        let foreign = stale.replace("\"dead\"", "\"foreign\"");
        fs::write(place.vms("foreign.json"), foreign).unwrap();
        chown(place.vms("foreign.json"), Some(65534), Some(65534)).unwrap();
        symlink("/proc/self/mem", place.vms("link.json")).unwrap();
        fs::create_dir(place.vms("folder.json")).unwrap();
        rustix::fs::mknodat(
            rustix::fs::CWD,
            place.vms("fifo.json"),
            rustix::fs::FileType::Fifo,
            rustix::fs::Mode::RWXU,
            0,
        )
        .unwrap();

        let listed = place.output(&["list"]);
        let (text, warnings) = (
            String::from_utf8(listed.stdout).unwrap(),
            String::from_utf8(listed.stderr).unwrap(),
        );
        assert!(listed.status.success() && text.contains("one") && text.lines().count() == 2, "{text}");
        for name in ["empty", "cut", "text", "huge", "name", "version", "a b", "foreign", "link", "fifo"] {
            assert!(warnings.contains(&format!("{name}.json")), "{name}: {warnings}");
        }
        assert!(!warnings.contains('\x1b') && !warnings.contains("dead"), "{warnings}");
        assert!(!place.vms("dead.json").exists() && !place.vms(".new.77").exists());

        // Names that are taken by what is no entry: a VM takes the place of a file.
        for name in ["dead", "cut", "fifo", "link", "foreign"] {
            let started = place.run(&small, &["--id", name]);
            assert!(started.status.success(), "{name}: {started:?}");
            place.said(&["status", name]);
            place.said(&["stop", name, "--force"]);
        }
        // A folder stays in the way: the VM runs, and is reached by its socket.
        let started = place.run(&small, &["--id", "folder", "--json"]);
        assert!(started.status.success(), "{started:?}");
        let socket: Value = serde_json::from_slice(&started.stdout).unwrap();
        let unlisted = String::from_utf8_lossy(&started.stderr).into_owned();
        assert!(unlisted.contains("folder.json") && unlisted.contains("/folder/api"), "{unlisted}");
        place.said(&["stop", socket["api_sock"].as_str().unwrap(), "--force"]);

        assert_eq!(place.states(), [("one".to_owned(), "Running".to_owned())]);
        place.said(&["stop", "one", "--force"]);
        fs::remove_dir(place.vms("folder.json")).unwrap();
    });
}

/// A file system of its own, of this size.
struct Mounted(Scratch);

impl Mounted {
    fn new(options: &str) -> Self {
        let scratch = Scratch::new();
        let mount = |command: &mut Command| assert!(command.status().unwrap().success());
        mount(
            Command::new("mount").args(["-t", "tmpfs", "-o", options, "tmpfs"]).arg(scratch.path()),
        );
        Self(scratch)
    }

    /// Takes all that is left for content.
    fn fill(&self) {
        let mut file = fs::File::create(self.0.join("filler")).unwrap();
        while file.write_all(&[0; 512]).is_ok() {}
    }

    /// Takes all that is left for files.
    fn fill_with_files(&self) {
        let make = |number: &u32| fs::File::create(self.0.join(&format!("filler{number}"))).is_ok();
        assert!((0..).take_while(make).count() > 0);
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        // A process that ends may still have a file of it open.
        until("a file system that can be unmounted", || {
            let status = Command::new("umount").arg(self.0.path()).status();
            status.is_ok_and(|status| status.success()).then_some(())
        });
    }
}

#[test]
fn where_run_is_full_vms_run_and_end() {
    Lab::new().as_root().run(|| {
        // No room for a file's content, and none for a file.
        for options in ["size=16k,mode=700", "nr_inodes=9,mode=700"] {
            let scratch = Scratch::new();
            let kernel = scratch.file("kernel", image(&WAITS));
            let full = Mounted::new(options);
            let tesseractl = |words: &[&str]| {
                let mut command = Command::new(program("tesseractl"));
                command.args(words).env("TESSERA_RUNTIME_DIR", full.0.path()).stdin(Stdio::null());
                command.output().unwrap()
            };
            let run = |id: &str| {
                let kernel = kernel.to_str().unwrap();
                let small = ["--memory", "64M", "--serial", "none"];
                tesseractl(&[&["run", "--kernel", kernel, "--id", id], &small[..]].concat())
            };
            assert!(run("one").status.success());
            match options.starts_with("size") {
                true => full.fill(),
                false => full.fill_with_files(),
            }

            // One without room for its folder does not start. One without room for its entry alone runs, is in no
            // list, and says where it is.
            let second = run("two");
            let message = String::from_utf8_lossy(&second.stderr).into_owned();
            let socket = full.0.join("vms/two/api");
            let told =
                if second.status.success() { socket.to_str().unwrap() } else { "No space left" };
            assert!(message.contains(told), "{options}: {second:?}");
            let sockets = second.status.success().then_some(socket);
            // One whose socket is elsewhere.
            let socket = scratch.join("api");
            let mut third = Command::new(program("tessera"));
            third.args(["run", "--id", "three", "--memory", "64M", "--serial", "none", "--kernel"]);
            third.arg(&kernel).arg("--api-sock").arg(&socket).stdin(Stdio::null());
            third.env("TESSERA_RUNTIME_DIR", full.0.path()).stderr(Stdio::piped());
            let third = third.spawn().unwrap();
            until("the third VM", || {
                tesseractl(&["status", socket.to_str().unwrap()]).status.success().then_some(())
            });

            until("the one VM that is listed to answer", || {
                let listed = tesseractl(&["list", "--json"]);
                assert!(listed.status.success(), "{listed:?}");
                let names: Vec<Value> = serde_json::from_slice(&listed.stdout).unwrap();
                assert_eq!((names.len(), &names[0]["name"]), (1, &json!("one")), "{names:?}");
                (names[0]["state"] == "Running").then_some(())
            });
            for socket in sockets.iter().chain([&socket]) {
                let stopped = tesseractl(&["stop", socket.to_str().unwrap(), "--force"]);
                assert!(stopped.status.success(), "{stopped:?}");
            }
            let third = third.wait_with_output().unwrap();
            assert_eq!(third.status.code(), Some(12));
            let message = String::from_utf8_lossy(&third.stderr);
            assert!(message.contains("does not show this VM"), "{message}");
            assert!(tesseractl(&["stop", "one", "--force"]).status.success());
        }
    });
}

/// Each change of a VM that waits to be configured, with a body that is right.
fn calls(kernel: &Path, disk: &Path) -> Vec<(&'static str, &'static str, Value)> {
    vec![
        (
            "PUT",
            "/boot-source",
            json!({ "kernel_image_path": kernel, "initrd_path": artifact("initrd.cpio"), "boot_args": "quiet cryptomgr.notests workload=count,200" }),
        ),
        ("PUT", "/machine-config", json!({ "vcpu_count": 1, "mem_size_mib": 128 })),
        ("PATCH", "/machine-config", json!({ "mem_size_mib": 128 })),
        (
            "PUT",
            "/drives/one",
            json!({ "drive_id": "one", "is_root_device": false, "path_on_host": disk }),
        ),
        ("PUT", "/balloon", json!({ "amount_mib": 0, "deflate_on_oom": true })),
        ("PUT", "/entropy", json!({})),
        ("PUT", "/serial", json!({ "target": "stdio" })),
        ("PUT", "/mte", json!({ "mode": "auto" })),
        ("PUT", "/tag-storage", json!({ "mode": "off" })),
        ("PUT", "/logger", json!({})),
    ]
}

/// Each request to a VM that runs, with a body that is right.
fn late_calls() -> Vec<(&'static str, &'static str, Value)> {
    vec![
        ("PATCH", "/vm", json!({ "state": "Paused" })),
        ("PATCH", "/vm", json!({ "state": "Resumed" })),
        ("PATCH", "/balloon", json!({ "amount_mib": 0 })),
        ("PATCH", "/balloon/statistics", json!({ "stats_polling_interval_s": 1 })),
        ("GET", "/balloon/statistics", Value::Null),
        ("PATCH", "/drives/one", json!({ "drive_id": "one" })),
        ("PATCH", "/network-interfaces/none", json!({ "iface_id": "none" })),
        ("PUT", "/actions", json!({ "action_type": "SendCtrlAltDel" })),
        ("PUT", "/actions", json!({ "action_type": "FlushMetrics" })),
        ("GET", "/footprint", Value::Null),
        ("GET", "/tag-storage", Value::Null),
    ]
}

fn send(socket: &Path, (method, path, body): &(&str, &str, Value)) -> (u16, String) {
    let body = if body.is_null() { String::new() } else { body.to_string() };
    ask(socket, method, path, body.as_bytes())
}

/// Sends what no request should be, to each path; each is refused, or its sender is.
fn spoil(socket: &Path, calls: &[(&str, &str, Value)]) {
    let huge = vec![b' '; LONGEST_BODY + 1];
    let deep = [b"{\"a\":".repeat(8000).as_slice(), b"1", &b"}".repeat(8000)].concat();
    let bodies: [(&[u8], &[u16]); 10] = [
        (b"", &[400]),
        (b"{", &[400]),
        (b"[]", &[400]),
        (b"null", &[400]),
        (b"\"text\"", &[400]),
        (b"{\"nothing\": 1}", &[400]),
        (b"\xff\xfe\x00", &[400]),
        (b"{} {}", &[400]),
        (&deep, &[400]),
        (&huge, &[413]),
    ];
    for (method, path, _) in calls.iter().filter(|(method, ..)| *method != "GET") {
        for (body, statuses) in bodies {
            let (status, answer) = ask(socket, method, path, body);
            assert!(statuses.contains(&status), "{method} {path}: {status} {answer}");
            let fault: Value = serde_json::from_str(&answer).unwrap();
            assert!(fault["fault_message"].is_string(), "{answer}");
        }
        // Less than was promised, and then the end.
        let cut = format!("{method} {path} HTTP/1.1\r\nContent-Length: 100\r\n\r\n{{\"vcpu");
        let answer = answers(socket, cut.as_bytes());
        assert!(answer.is_empty() || answer.contains(" 400 "), "{answer}");
    }
    for bytes in
        [&b"\x16\x03\x01\x02\x00\x01"[..], b"GET / HTTP/9.9\r\n\r\n", b"\r\n\r\n\r\n", &[0; 4096]]
    {
        let answer = answers(socket, bytes);
        assert!(answer.is_empty() || answer.contains(" 400 "), "{answer}");
    }
}

#[test]
#[ignore = "long"]
fn calls_in_every_wrong_order_and_bodies_that_are_none_change_nothing() {
    Lab::new().run(|| {
        let scratch = Scratch::new();
        let disk = scratch.file("disk", [0; 1 << 16]);
        let (calls, late) = (calls(&artifact("Image"), &disk), late_calls());
        let start = ("PUT", "/actions", json!({ "action_type": "InstanceStart" }));
        let mut other = counting().start();
        ticks(&mut other);
        let mut guest = Plan::waiting().start();
        guest.answers();
        let socket = guest.socket().to_owned();
        let config = |socket: &Path| ask(socket, "GET", "/vm/config", b"").1;

        // Too early, twice.
        let before = config(&socket);
        for call in late.iter().chain([&start]).cycle().take(2 * (late.len() + 1)) {
            let (status, answer) = send(&socket, call);
            assert_eq!(status, 400, "{call:?}: {answer}");
        }
        spoil(&socket, &calls);
        spoil(&socket, &late);
        assert_eq!(config(&socket), before);
        goes_on(&mut other);

        // In an order of their own, twice: what counts is the last of each.
        for call in calls.iter().rev().chain(&calls) {
            let (status, answer) = send(&socket, call);
            assert_eq!(status, 204, "{call:?}: {answer}");
        }
        assert_eq!(send(&socket, &start).0, 204);
        ticks(&mut guest);

        // Too late, twice.
        let before = config(&socket);
        for call in calls.iter().chain([&start]).cycle().take(2 * (calls.len() + 1)) {
            let (status, answer) = send(&socket, call);
            assert_eq!(status, 400, "{call:?}: {answer}");
            assert!(answer.contains("after starting"), "{answer}");
        }
        spoil(&socket, &calls);
        spoil(&socket, &late);
        assert_eq!(config(&socket), before);
        // What is right, twice, and of a state that it has already.
        for state in ["Paused", "Paused", "Resumed", "Resumed"] {
            assert_eq!(send(&socket, &("PATCH", "/vm", json!({ "state": state }))).0, 204);
        }
        goes_on(&mut guest);
        goes_on(&mut other);

        // Stop gets through beside a client that has sent half of something huge.
        let mut half = connect(&socket);
        let head = format!("PUT /boot-source HTTP/1.1\r\nContent-Length: {LONGEST_BODY}\r\n\r\n");
        half.write_all(head.as_bytes()).unwrap();
        half.write_all(&vec![b' '; LONGEST_BODY / 2]).unwrap();
        guest.stop();
        goes_on(&mut other);
        other.stop();
    });
}
