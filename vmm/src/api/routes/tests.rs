//! What each request makes the VM do.
#![allow(clippy::unwrap_used)]

use arch::units::Bytes;

use super::*;
use crate::api::fake::{Call, Failure, FakeBalloon, FakeVm};
use crate::api::model::State;

fn ask(vm: &mut FakeVm, method: &str, path: &str, body: &str) -> Response {
    let request = Request {
        method: method.to_owned(),
        path: path.to_owned(),
        body: body.as_bytes().to_vec(),
        keep_alive: true,
        wants_text: false,
        takes_chunks: true,
    };
    match answer(vm, &request) {
        Answer::Response(response) => response,
        Answer::Events => panic!("{path} is the log of events"),
    }
}

fn fault(response: &Response) -> String {
    assert_eq!(response.status, Status::BadRequest);
    let message = &response.body.as_ref().unwrap()["fault_message"];
    message.as_str().unwrap().to_owned()
}

#[test]
fn state_changes_and_actions_reach_the_vm() {
    let mut vm = FakeVm::default();

    for (method, path, body) in [
        ("PATCH", "/vm", r#"{"state": "Paused"}"#),
        ("PATCH", "/vm", r#"{"state": "Paused"}"#),
        ("PATCH", "/vm", r#"{"state": "Resumed"}"#),
        ("PUT", "/actions", r#"{"action_type": "SendCtrlAltDel"}"#),
        ("PUT", "/actions", r#"{"action_type": "Stop"}"#),
    ] {
        assert_eq!(ask(&mut vm, method, path, body).status, Status::NoContent, "{body}");
    }

    let calls = [Call::Pause, Call::Pause, Call::Resume, Call::PressPowerKey, Call::Stop];
    assert_eq!(vm.calls, calls);
}

#[test]
fn instance_tells_the_state_after_a_pause() {
    let mut vm = FakeVm::default();
    ask(&mut vm, "PATCH", "/vm", r#"{"state": "Paused"}"#);

    let response = ask(&mut vm, "GET", "/", "");

    let body = response.body.unwrap();
    assert_eq!(body["state"], "Paused");
    assert_eq!(body["app_name"], "Tessera");
}

#[test]
fn a_vm_is_configured_and_started_once() {
    let mut vm = FakeVm { state: State::NotStarted, ..FakeVm::default() };
    let start = r#"{"action_type": "InstanceStart"}"#;
    let requests = [
        ("PUT", "/boot-source", r#"{"kernel_image_path": "Image"}"#),
        ("PUT", "/machine-config", r#"{"vcpu_count": 2, "mem_size_mib": 256}"#),
        ("PATCH", "/machine-config", r#"{"mem_size_mib": 512}"#),
        (
            "PUT",
            "/drives/root",
            r#"{"drive_id": "root", "is_root_device": true, "path_on_host": "disk"}"#,
        ),
        ("PUT", "/network-interfaces/eth0", r#"{"iface_id": "eth0", "host_dev_name": "tap0"}"#),
        ("PUT", "/vsock/first", r#"{"guest_cid": 3, "uds_path": "vsock"}"#),
        ("PUT", "/balloon", r#"{"amount_mib": 0, "deflate_on_oom": true}"#),
        ("PUT", "/entropy", "{}"),
        ("PUT", "/serial", r#"{"serial_out_path": "out"}"#),
        ("PUT", "/logger", r#"{"log_path": "log", "level": "Info"}"#),
        ("PUT", "/metrics", r#"{"metrics_path": "metrics"}"#),
        ("PUT", "/mte", r#"{"mode": "require"}"#),
        ("PUT", "/tag-storage", r#"{"mode": "demand"}"#),
    ];

    for (method, path, body) in requests {
        let response = ask(&mut vm, method, path, body);
        assert_eq!(response.status, Status::NoContent, "{path}: {response:?}");
    }
    assert_eq!(ask(&mut vm, "PUT", "/actions", start).status, Status::NoContent);

    let mut calls = vec![Call::Configure; requests.len()];
    calls.push(Call::Start);
    assert_eq!(vm.calls, calls);
    for (method, path, body) in requests.into_iter().chain([("PUT", "/actions", start)]) {
        let message = fault(&ask(&mut vm, method, path, body));
        assert!(message.contains("not supported after starting"), "{path}: {message}");
    }
    assert_eq!(vm.calls, calls);
}

#[test]
fn a_section_for_another_thing_than_its_path_is_refused() {
    let mut vm = FakeVm { state: State::NotStarted, ..FakeVm::default() };

    for (path, body) in [
        ("/drives/root", r#"{"drive_id": "other"}"#),
        ("/network-interfaces/eth0", r#"{"iface_id": "eth1", "host_dev_name": "tap0"}"#),
    ] {
        let message = fault(&ask(&mut vm, "PUT", path, body));
        assert!(message.contains("name the same one"), "{message}");
    }
    assert!(vm.calls.is_empty());
}

#[test]
fn what_this_vmm_lacks_is_refused_by_name() {
    let mut vm = FakeVm { state: State::NotStarted, ..FakeVm::default() };

    for (method, path, name) in [
        ("PUT", "/mmds", "MMDS"),
        ("PUT", "/mmds/config", "MMDS"),
        ("GET", "/mmds", "MMDS"),
        ("PUT", "/cpu-config", "CPU templates"),
        ("PUT", "/pmem/one", "persistent memory"),
        ("PATCH", "/hotplug/memory", "added"),
        ("PATCH", "/balloon/hinting/start", "hinting"),
        ("DELETE", "/drives/root", "unplugged"),
        ("DELETE", "/network-interfaces/eth0", "unplugged"),
    ] {
        let message = fault(&ask(&mut vm, method, path, "{}"));
        assert!(message.contains(name), "{path}: {message}");
    }
}

#[test]
fn a_snapshot_is_made_of_a_paused_vm_only() {
    let body = r#"{"snapshot_type": "Full", "snapshot_path": "state", "mem_file_path": "memory"}"#;
    let with = |state| FakeVm { state, ..FakeVm::default() };
    for (state, said) in [
        (State::NotStarted, "not supported before starting"),
        (State::Running, "save/restore unavailable while running"),
    ] {
        let mut vm = with(state);
        let message = fault(&ask(&mut vm, "PUT", "/snapshot/create", body));
        assert!(message.contains(said), "{message}");
        assert!(vm.calls.is_empty());
    }
    let mut vm = with(State::Paused);

    let plain = r#"{"snapshot_path": "state", "mem_file_path": "memory"}"#;
    let diff = &plain.replacen('{', r#"{"snapshot_type": "Diff", "#, 1);
    for body in [body, plain, diff] {
        let response = ask(&mut vm, "PUT", "/snapshot/create", body);
        assert_eq!(response.status, Status::NoContent, "{response:?}");
    }

    assert_eq!((vm.state, vm.calls), (State::Paused, vec![Call::CreateSnapshot; 3]));
    for (body, said) in [
        (plain.replacen('{', r#"{"snapshot_type": "Half", "#, 1), "Full"),
        // Firecracker has taken this field out.
        (plain.replacen('{', r#"{"version": "1.0.0", "#, 1), "version"),
        (r#"{"snapshot_path": "state"}"#.to_owned(), "mem_file_path"),
    ] {
        let message = fault(&ask(&mut with(State::Paused), "PUT", "/snapshot/create", &body));
        assert!(message.contains(said), "{message}");
    }
}

#[test]
fn a_snapshot_is_loaded_into_a_vm_that_has_not_started() {
    let memory = r#""mem_file_path": "memory""#;
    let backend = r#""mem_backend": {"backend_type": "File", "backend_path": "memory"}"#;
    let load = |vm: &mut FakeVm, fields: &str| {
        let body = format!("{{\"snapshot_path\": \"state\", {fields}}}");
        ask(vm, "PUT", "/snapshot/load", &body)
    };
    let fresh = || FakeVm { state: State::NotStarted, ..FakeVm::default() };

    for (fields, state) in [
        (memory.to_owned(), State::Paused),
        (backend.to_owned(), State::Paused),
        (format!("{memory}, \"resume_vm\": true, \"lazy\": true"), State::Running),
        (format!("{memory}, \"lazy\": true, \"record_working_set\": true"), State::Paused),
        (format!("{backend}, \"shared\": true"), State::Paused),
        (
            format!(
                "{memory}, \"track_dirty_pages\": true, \"enable_diff_snapshots\": false, \"huge_pages\": \
                 \"Snapshot\", \"network_overrides\": [{{\"iface_id\": \"eth0\", \"host_dev_name\": \"tap1\"}}], \
                 \"vsock_override\": {{\"uds_path\": \"v\"}}"
            ),
            State::Paused,
        ),
    ] {
        let mut vm = fresh();
        let response = load(&mut vm, &fields);
        assert_eq!(response.status, Status::NoContent, "{fields}: {response:?}");
        assert_eq!((vm.state, vm.calls), (state, vec![Call::LoadSnapshot]), "{fields}");
    }
    for (fields, said) in [
        (format!("{memory}, {backend}"), "too many fields"),
        ("\"resume_vm\": true".to_owned(), "missing field"),
        (backend.replace("File", "Uffd"), "lazy"),
        (format!("{memory}, \"clock_realtime\": true"), "clock_realtime"),
        (format!("{memory}, \"record_working_set\": true"), "give lazy"),
        (format!("{memory}, \"lazy\": true, \"shared\": true"), "leave out lazy"),
        (format!("{memory}, \"huge_pages\": \"2M\""), "huge_pages"),
        (format!("{memory}, \"network_overrides\": [[\"eth0\", \"tap1\"]]"), "an object"),
    ] {
        let mut vm = fresh();
        let message = fault(&load(&mut vm, &fields));
        assert!(message.contains(said), "{fields}: {message}");
        assert_eq!((vm.state, vm.calls), (State::NotStarted, vec![]), "{fields}");
    }
    let message = fault(&load(&mut FakeVm::default(), memory));
    assert!(message.contains("not supported after starting"), "{message}");
}

#[test]
fn counters_are_written_to_their_file_on_request() {
    let mut vm = FakeVm::default();

    let flush = ask(&mut vm, "PUT", "/actions", r#"{"action_type": "FlushMetrics"}"#);

    assert_eq!((flush.status, vm.calls), (Status::NoContent, vec![Call::FlushMetrics]));
}

#[test]
fn refusal_of_the_vm_becomes_the_fault_message() {
    let mut vm = FakeVm { listens: false, ..FakeVm::default() };

    let response = ask(&mut vm, "PUT", "/actions", r#"{"action_type": "SendCtrlAltDel"}"#);

    assert_eq!(fault(&response), "the guest does not listen; use Stop");
}

#[test]
fn failure_of_the_vmm_is_500_or_503_with_its_cause() {
    for (failure, status, text) in [
        (Failure::Lasting, Status::InternalServerError, "cannot do that: the host has none left"),
        (Failure::ForNow, Status::ServiceUnavailable, "cannot do that now: the host has none left"),
    ] {
        let mut vm = FakeVm { failure: Some(failure), ..FakeVm::default() };

        let response = ask(&mut vm, "GET", "/footprint", "");

        assert_eq!(response.status, status);
        assert_eq!(response.body.unwrap()["fault_message"], text);
    }
}

#[test]
fn unknown_path_is_a_400_that_names_the_known_ones() {
    let response = ask(&mut FakeVm::default(), "GET", "/nowhere", "");

    let message = fault(&response);
    assert!(message.contains("/nowhere") && message.contains("/machine-config"));
}

#[test]
fn long_path_is_quoted_in_part() {
    let path = format!("/{}", "x".repeat(8000));

    let response = ask(&mut FakeVm::default(), "GET", &path, "");

    assert!(fault(&response).len() < 600);
}

#[test]
fn read_with_a_body_is_refused() {
    let response = ask(&mut FakeVm::default(), "GET", "/", "{}");

    assert!(fault(&response).contains("no body"));
}

#[test]
fn unknown_field_is_named() {
    let body = r#"{"state": "Paused", "force": true}"#;

    let response = ask(&mut FakeVm::default(), "PATCH", "/vm", body);

    assert!(fault(&response).contains("unknown field `force`"));
}

#[test]
fn a_body_is_an_object_and_no_list_of_its_fields() {
    let mut vm = FakeVm::default();

    for (method, path, body) in [
        ("PATCH", "/balloon", "[64, false]"),
        ("PATCH", "/balloon", "[]"),
        ("PATCH", "/balloon/statistics", "[1]"),
        ("PATCH", "/vm", r#"["Paused"]"#),
        ("PUT", "/actions", r#"["Stop"]"#),
    ] {
        let response = ask(&mut vm, method, path, body);
        assert!(fault(&response).contains("an object"), "{path} {body}");
    }
    assert!(vm.calls.is_empty());
}

#[test]
fn changes_of_the_balloon_show_in_its_answers() {
    let mut vm = FakeVm::default();

    for (path, body) in [
        ("/balloon", r#"{"amount_mib": 128}"#),
        ("/balloon", r#"{"free_page_reporting": false}"#),
        ("/balloon/statistics", r#"{"stats_polling_interval_s": 65535}"#),
    ] {
        assert_eq!(ask(&mut vm, "PATCH", path, body).status, Status::NoContent, "{body}");
    }

    let balloon = ask(&mut vm, "GET", "/balloon", "").body.unwrap();
    assert_eq!(balloon["amount_mib"], 128);
    assert_eq!(balloon["stats_polling_interval_s"], 65535);
    assert_eq!(balloon["reporting"]["state"], "off");
    let statistics = ask(&mut vm, "GET", "/balloon/statistics", "").body.unwrap();
    assert_eq!(statistics["target_pages"], 128 << 8);
}

#[test]
fn statistics_can_be_switched_off_and_on_again() {
    let mut vm = FakeVm::default();
    let mut set = |seconds: u16| {
        let body = format!(r#"{{"stats_polling_interval_s": {seconds}}}"#);
        ask(&mut vm, "PATCH", "/balloon/statistics", &body);
        ask(&mut vm, "GET", "/balloon/statistics", "")
    };

    let off = set(0);
    let on = set(1);

    let message = fault(&off);
    assert!(message.contains("PATCH /balloon/statistics"), "{message}");
    assert_eq!(on.status, Status::Ok);
}

#[test]
fn before_the_guest_answers_only_the_balloons_size_is_told() {
    let silent = FakeBalloon { statistics: Default::default(), ..FakeBalloon::default() };
    let mut vm = FakeVm { balloon: Some(silent), ..FakeVm::default() };

    let body = ask(&mut vm, "GET", "/balloon/statistics", "").body.unwrap();

    let fields: Vec<_> = body.as_object().unwrap().keys().collect();
    assert_eq!(fields, ["actual_mib", "actual_pages", "target_mib", "target_pages"]);
}

#[test]
fn a_change_that_is_refused_in_part_changes_nothing() {
    let not_offered = FakeBalloon { reporting: None, ..FakeBalloon::default() };
    let mut vm = FakeVm { balloon: Some(not_offered), ..FakeVm::default() };
    let body = r#"{"amount_mib": 64, "free_page_reporting": true}"#;

    let response = ask(&mut vm, "PATCH", "/balloon", body);

    assert!(fault(&response).contains("not offered"));
    assert_eq!(vm.balloon.unwrap().target, Bytes::ZERO);
}

#[test]
fn a_vm_without_balloon_says_how_it_came_to_have_none() {
    let mut vm = FakeVm { balloon: None, ..FakeVm::default() };

    for (method, path, body) in [
        ("GET", "/balloon", ""),
        ("PATCH", "/balloon", r#"{"amount_mib": 0}"#),
        ("GET", "/balloon/statistics", ""),
        ("PATCH", "/balloon/statistics", r#"{"stats_polling_interval_s": 1}"#),
    ] {
        let response = ask(&mut vm, method, path, body);
        assert!(fault(&response).contains("--no-balloon"), "{method} {path}");
    }
}

#[test]
fn metrics_are_text_for_who_asks_for_text() {
    let request = Request {
        method: "GET".to_owned(),
        path: "/metrics".to_owned(),
        body: Vec::new(),
        keep_alive: true,
        wants_text: true,
        takes_chunks: true,
    };

    let Answer::Response(response) = answer(&mut FakeVm::default(), &request) else { panic!() };

    let body = response.body.unwrap();
    let text = body.as_str().unwrap();
    assert!(text.lines().filter(|line| !line.starts_with('#')).count() > 0, "{text}");
    for line in text.lines().filter(|line| !line.starts_with('#')) {
        assert!(line.starts_with("tessera_") && line.contains("{vm=\""), "{line}");
    }
}
