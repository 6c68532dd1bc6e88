#![allow(clippy::unwrap_used)]

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::time::Instant;

use super::*;
use crate::config::{CommandLineOnly, Config};
use crate::hypervisor::fake::FakeHypervisor;
use crate::machine::testing::{config, kernel, spec};
use crate::registry::{Directory, Entry, Publication};
use crate::spec::Draft;
use crate::vcpu::Exit;
use crate::vcpu::fake::{Event, Step};

fn run(hypervisor: &FakeHypervisor, api_sock: Option<&Path>) -> Result<ExitReason, Error> {
    let kernel = kernel();
    start(hypervisor, Box::new(spec(config(kernel.path(), 1))), None, api_sock, Listed::default())
}

fn runs_to(exit: Exit) -> ExitReason {
    run(&FakeHypervisor::new([vec![Step::Exit(exit)]]), None).unwrap()
}

#[test]
fn a_guest_ends_in_its_own_way() {
    assert!(matches!(runs_to(Exit::PowerOff), ExitReason::Guest(VcpuExit::PowerOff)));
    assert!(matches!(runs_to(Exit::Reset), ExitReason::Guest(VcpuExit::Reset)));
    assert!(matches!(runs_to(Exit::WarmReset), ExitReason::Guest(VcpuExit::GuestPanic)));
}

#[test]
fn the_guest_is_entered_last_and_the_vm_is_gone_at_the_end() {
    let hypervisor = FakeHypervisor::new([vec![Step::Exit(Exit::PowerOff)]]);

    run(&hypervisor, None).unwrap();

    let events = hypervisor.guest.events();
    let entered = events.iter().position(|event| matches!(event, Event::Entered(..))).unwrap();
    let boot = events.iter().position(|event| matches!(event, Event::BootState { .. })).unwrap();
    assert!(boot < entered, "{events:?}");
    assert_eq!(events.last(), Some(&Event::Note("VM dropped")), "{events:?}");
}

#[test]
fn a_client_stops_the_vm_and_sees_its_socket_end_with_the_vm_gone() {
    let hypervisor = FakeHypervisor::new([vec![]]);
    let guest = hypervisor.guest.clone();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("api");
    let socket = path.clone();
    let client = std::thread::spawn(move || {
        guest.wait_until_inside(1);
        let mut client = UnixStream::connect(&socket).unwrap();
        let body = r#"{"action_type":"Stop"}"#;
        let length = body.len();
        write!(client, "PUT /actions HTTP/1.1\r\nContent-Length: {length}\r\n\r\n{body}").unwrap();
        // To the end of the connection.
        let mut answer = String::new();
        client.read_to_string(&mut answer).unwrap();
        (answer, guest.events())
    });

    let reason = run(&hypervisor, Some(&path)).unwrap();

    assert!(matches!(reason, ExitReason::Stopped), "{reason:?}");
    let (answer, events) = client.join().unwrap();
    assert!(answer.starts_with("HTTP/1.1 204"), "{answer}");
    assert_eq!(events.last(), Some(&Event::Note("VM dropped")), "{events:?}");
    assert!(!path.exists());
}

/// Sends a request and reads its answer's status and body.
fn ask(client: &mut UnixStream, method: &str, path: &str, body: &str) -> (u16, String) {
    let length = body.len();
    write!(client, "{method} {path} HTTP/1.1\r\nContent-Length: {length}\r\n\r\n{body}").unwrap();
    let mut answer = String::new();
    let mut byte = [0];
    while !answer.ends_with("\r\n\r\n") {
        client.read_exact(&mut byte).unwrap();
        answer.push(byte[0].into());
    }
    let length = answer.lines().find_map(|line| line.strip_prefix("Content-Length: "));
    let mut body = vec![0; length.map_or(0, |length| length.parse().unwrap())];
    client.read_exact(&mut body).unwrap();
    (answer[9..12].parse().unwrap(), String::from_utf8(body).unwrap())
}

const START: &str = r#"{"action_type": "InstanceStart"}"#;
const STOP: &str = r#"{"action_type": "Stop"}"#;

/// A VM that waits for its configuration, for a client on a thread of its own.
fn waiting<T: Send>(
    hypervisor: &FakeHypervisor,
    client: impl FnOnce(UnixStream, &Path) -> T + Send,
) -> (Result<ExitReason, Error>, T) {
    waiting_listed(hypervisor, Listed::default(), client)
}

/// The same with an entry in a registry.
fn waiting_listed<T: Send>(
    hypervisor: &FakeHypervisor,
    entry: Listed,
    client: impl FnOnce(UnixStream, &Path) -> T + Send,
) -> (Result<ExitReason, Error>, T) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("api");
    let flags = CommandLineOnly { api_sock: Some(&path), ..CommandLineOnly::default() };
    let config = Config::default();
    let draft = Draft::new(config.clone(), flags).unwrap();
    let outcome = std::thread::scope(|scope| {
        let client = scope.spawn(|| {
            // The file is there before the server listens.
            let stream = loop {
                match UnixStream::connect(&path) {
                    Ok(stream) => break stream,
                    Err(_) => std::thread::yield_now(),
                }
            };
            client(stream, &path)
        });
        let waiting = Waiting { config, draft, flags, api_sock: &path };
        let reason = start_on_request(hypervisor, Box::new(waiting), entry);
        (reason, client.join().unwrap())
    });
    assert!(!path.exists());
    outcome
}

#[test]
fn a_client_configures_a_vm_and_starts_it() {
    let hypervisor = FakeHypervisor::new([vec![]]);
    let guest = hypervisor.guest.clone();
    let kernel = kernel();

    let (reason, ()) = waiting(&hypervisor, |mut client, _| {
        let (_, instance) = ask(&mut client, "GET", "/", "");
        assert!(instance.contains("Not started"), "{instance}");
        let (status, fault) = ask(&mut client, "PUT", "/actions", START);
        assert_eq!(status, 400);
        assert!(fault.contains("no kernel"), "{fault}");
        let boot = format!(r#"{{"kernel_image_path": {:?}}}"#, kernel.path());
        for (path, body) in [
            ("/boot-source", boot.as_str()),
            ("/machine-config", r#"{"vcpu_count": 1, "mem_size_mib": 64}"#),
            ("/serial", r#"{"target": "none"}"#),
        ] {
            assert_eq!(ask(&mut client, "PUT", path, body), (204, String::new()), "{path}");
        }
        assert_eq!(ask(&mut client, "PATCH", "/vm", r#"{"state": "Paused"}"#).0, 400);
        assert_eq!(ask(&mut client, "PUT", "/actions", START), (204, String::new()));
        guest.wait_until_inside(1);
        let (_, instance) = ask(&mut client, "GET", "/", "");
        assert!(instance.contains("Running"), "{instance}");
        let (status, fault) = ask(&mut client, "PUT", "/boot-source", &boot);
        assert_eq!(status, 400);
        assert!(fault.contains("after starting"), "{fault}");
        assert_eq!(ask(&mut client, "PUT", "/actions", START).0, 400);
        assert_eq!(ask(&mut client, "PUT", "/actions", STOP).0, 204);
    });

    assert!(matches!(reason.unwrap(), ExitReason::Stopped));
    let events = hypervisor.guest.events();
    assert_eq!(events.last(), Some(&Event::Note("VM dropped")), "{events:?}");
}

#[test]
fn the_entry_of_a_vm_that_waits_says_the_rest_at_its_start() {
    let hypervisor = FakeHypervisor::new([vec![]]);
    let kernel = kernel();
    let place = tempfile::tempdir().unwrap();
    let directory = || Directory::create_in(place.path()).unwrap();
    let publication = Publication { id: Some("one"), ..Publication::default() };
    let entry = Entry::publish_in(directory(), &publication).unwrap();
    let serial = || directory().find("one").unwrap().record.serial;

    let (reason, ()) = waiting_listed(&hypervisor, Listed::new(Some(entry)), |mut client, path| {
        let boot = format!(r#"{{"kernel_image_path": {:?}}}"#, kernel.path());
        ask(&mut client, "PUT", "/boot-source", &boot);
        ask(&mut client, "PUT", "/machine-config", r#"{"mem_size_mib": 64}"#);
        ask(&mut client, "PUT", "/serial", r#"{"target": "none"}"#);
        assert_eq!(serial(), None);

        assert_eq!(ask(&mut client, "PUT", "/actions", START), (204, String::new()));

        assert_eq!(serial().as_deref(), Some("none"));
        let socket = directory().find("one").unwrap().record.api_sock;
        assert_eq!(socket.as_deref(), Some(path));
        ask(&mut client, "PUT", "/actions", STOP);
    });

    assert!(matches!(reason.unwrap(), ExitReason::Stopped));
    assert!(directory().list().unwrap().vms.is_empty());
}

#[test]
fn a_start_that_fails_can_be_mended_and_tried_again() {
    let hypervisor = FakeHypervisor::new([vec![]]);
    let kernel = kernel();

    let (reason, ()) = waiting(&hypervisor, |mut client, _| {
        let boot = |path: &Path| format!(r#"{{"kernel_image_path": {path:?}}}"#);
        let machine = r#"{"mem_size_mib": 64}"#;
        assert_eq!(ask(&mut client, "PUT", "/machine-config", machine).0, 204);
        assert_eq!(ask(&mut client, "PUT", "/serial", r#"{"target": "none"}"#).0, 204);
        assert_eq!(ask(&mut client, "PUT", "/boot-source", &boot(kernel.path())).0, 204);
        let log = r#"{"log_path": "/nowhere/log"}"#;
        assert_eq!(ask(&mut client, "PUT", "/logger", log).0, 204);

        let (status, fault) = ask(&mut client, "PUT", "/actions", START);
        assert_eq!(status, 400);
        assert!(fault.contains("/nowhere/log"), "{fault}");

        assert_eq!(ask(&mut client, "PUT", "/logger", "{}").0, 204);
        assert_eq!(ask(&mut client, "PUT", "/actions", START), (204, String::new()));
        ask(&mut client, "PUT", "/actions", STOP);
    });

    assert!(matches!(reason.unwrap(), ExitReason::Stopped));
}

#[test]
fn a_snapshot_is_loaded_first_or_not_at_all_and_one_that_fails_changes_nothing() {
    let hypervisor = FakeHypervisor::new([vec![]]);
    let guest = hypervisor.guest.clone();
    let kernel = kernel();
    let load = r#"{"snapshot_path": "/nowhere/state", "mem_file_path": "/nowhere/memory"}"#;
    let refused = |client: &mut UnixStream, path: &str, said: &str| {
        let (status, fault) = ask(client, "PUT", path, load);
        assert_eq!(status, 400);
        assert!(fault.contains(said), "{fault}");
    };

    let (reason, ()) = waiting(&hypervisor, |mut client, _| {
        refused(&mut client, "/snapshot/create", "before starting");
        assert_eq!(ask(&mut client, "PUT", "/serial", r#"{"target": "none"}"#).0, 204);
        refused(&mut client, "/snapshot/load", "cannot restore the VM");
        let boot = format!(r#"{{"kernel_image_path": {:?}}}"#, kernel.path());
        assert_eq!(ask(&mut client, "PUT", "/boot-source", &boot).0, 204);
        refused(&mut client, "/snapshot/load", "after configuring boot-specific resources");
        let machine = r#"{"mem_size_mib": 64}"#;
        assert_eq!(ask(&mut client, "PUT", "/machine-config", machine).0, 204);
        assert_eq!(ask(&mut client, "PUT", "/actions", START), (204, String::new()));
        guest.wait_until_inside(1);
        refused(&mut client, "/snapshot/load", "after starting");
        refused(&mut client, "/snapshot/create", "unavailable while running");
        assert_eq!(ask(&mut client, "PATCH", "/vm", r#"{"state": "Paused"}"#).0, 204);
        let over_the_kernel = format!(
            r#"{{"snapshot_path": {:?}, "mem_file_path": "/nowhere/memory"}}"#,
            kernel.path()
        );
        let (status, fault) = ask(&mut client, "PUT", "/snapshot/create", &over_the_kernel);
        assert_eq!(status, 400);
        assert!(fault.contains("the kernel"), "{fault}");
        refused(&mut client, "/snapshot/create", "");
        assert_eq!(ask(&mut client, "PUT", "/actions", STOP).0, 204);
    });

    assert!(matches!(reason.unwrap(), ExitReason::Stopped));
}

#[test]
fn a_section_that_makes_no_sense_is_refused_and_changes_nothing() {
    let (reason, ()) = waiting(&FakeHypervisor::new([vec![]]), |mut client, _| {
        let (_, before) = ask(&mut client, "GET", "/vm/config", "");

        for (path, body, name) in [
            ("/machine-config", r#"{"vcpu_count": 0}"#, "vCPU"),
            ("/machine-config", r#"{"mem_size_mib": 3}"#, "memory"),
            ("/balloon", r#"{"amount_mib": 100000, "deflate_on_oom": true}"#, "balloon"),
            ("/drives/a", r#"{"drive_id": "a", "is_root_device": false}"#, "path_on_host"),
            ("/serial", r#"{"target": "moon"}"#, "moon"),
            ("/tag-storage", r#"{"mode": "strict", "deadline_s": 3}"#, "on-exhausted"),
        ] {
            let (status, fault) = ask(&mut client, "PUT", path, body);
            assert_eq!(status, 400, "{path}");
            assert!(fault.contains(name), "{path}: {fault}");
        }

        assert_eq!(ask(&mut client, "GET", "/vm/config", "").1, before);
        assert_eq!(ask(&mut client, "PUT", "/actions", STOP).0, 204);
    });

    assert!(matches!(reason.unwrap(), ExitReason::Stopped));
}

#[test]
fn a_follower_sees_a_vms_whole_life_in_order() {
    let hypervisor = FakeHypervisor::new([vec![]]);
    let kernel = kernel();

    let (_, events) = waiting(&hypervisor, |mut client, path| {
        let mut follower = UnixStream::connect(path).unwrap();
        write!(follower, "GET /events HTTP/1.0\r\n\r\n").unwrap();
        let boot = format!(r#"{{"kernel_image_path": {:?}}}"#, kernel.path());
        for (method, path, body) in [
            ("PUT", "/boot-source", boot.as_str()),
            ("PUT", "/machine-config", r#"{"mem_size_mib": 64}"#),
            ("PUT", "/serial", r#"{"target": "none"}"#),
            ("PUT", "/actions", START),
            ("PATCH", "/vm", r#"{"state": "Paused"}"#),
            ("PATCH", "/vm", r#"{"state": "Paused"}"#),
            ("PATCH", "/vm", r#"{"state": "Resumed"}"#),
            ("PUT", "/actions", STOP),
        ] {
            assert_eq!(ask(&mut client, method, path, body).0, 204, "{path}");
        }
        let mut text = String::new();
        follower.read_to_string(&mut text).unwrap();
        let lines = text.split_once("\r\n\r\n").unwrap().1.lines();
        let parsed = lines.map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap());
        parsed.map(|line| (line["event"].clone(), line["reason"].clone())).collect::<Vec<_>>()
    });

    let null = serde_json::Value::Null;
    let expected = [
        ("started", null.clone()),
        ("paused", "request".into()),
        ("resumed", null),
        ("ended", "stopped".into()),
    ];
    assert_eq!(events, expected.map(|(event, reason)| (event.into(), reason)));
}

#[test]
fn under_firecrackers_name_the_files_of_sockets_stay_for_clients_to_remove() {
    let folder = tempfile::tempdir().unwrap();
    let (api, vsock) = (folder.path().join("api"), folder.path().join("vsock"));
    let kernel = kernel();
    let mut config = config(kernel.path(), 1);
    config.vsock = Some(serde_json::from_value(serde_json::json!({ "uds_path": vsock })).unwrap());

    for leave_sockets in [true, false] {
        let hypervisor = FakeHypervisor::new([vec![Step::Exit(Exit::PowerOff)]]);
        let spec = Spec { leave_sockets, ..spec(config.clone()) };
        start(&hypervisor, Box::new(spec), None, Some(&api), Listed::default()).unwrap();
        assert_eq!((api.exists(), vsock.exists()), (leave_sockets, leave_sockets));
    }
}

#[test]
fn a_vm_that_is_refused_leaves_nothing_behind() {
    let hypervisor = FakeHypervisor::new([vec![]]);
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("nowhere/api");

    let started = Instant::now();
    let error = run(&hypervisor, Some(&path)).unwrap_err();

    assert!(matches!(error, Error::Control(_)), "{error:?} after {:?}", started.elapsed());
    let events = hypervisor.guest.events();
    assert!(!events.iter().any(|event| matches!(event, Event::Entered(..))), "{events:?}");
    assert_eq!(events.last(), Some(&Event::Note("VM dropped")), "{events:?}");
}

/// A VM for a client of another process: it waits at `api` in the folder that TESSERA_SERVE names, has a kernel there
/// that it can be given, and serves until it is stopped.
#[test]
#[ignore = "a server, which tests/api/fuzz.py starts"]
fn serve() {
    let folder = std::env::var_os("TESSERA_SERVE").expect("TESSERA_SERVE names no folder");
    let folder = Path::new(&folder);
    std::fs::copy(kernel().path(), folder.join("kernel")).unwrap();
    let path = folder.join("api");
    let flags = CommandLineOnly { api_sock: Some(&path), ..CommandLineOnly::default() };
    let config = Config::default();
    let draft = Draft::new(config.clone(), flags).unwrap();
    let waiting = Waiting { config, draft, flags, api_sock: &path };

    let reason =
        start_on_request(&FakeHypervisor::new([vec![]]), Box::new(waiting), Listed::default())
            .unwrap();

    assert!(matches!(reason, ExitReason::Stopped), "{reason:?}");
}
