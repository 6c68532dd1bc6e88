//! What each request makes the VM do.
#![allow(clippy::unwrap_used)]

use std::io;

use super::*;
use crate::control::fake::{Call, FakeVm};

fn ask(vm: &mut FakeVm, method: &str, path: &str, body: &str) -> Response {
    let request = Request {
        method: method.to_owned(),
        path: path.to_owned(),
        body: body.as_bytes().to_vec(),
        keep_alive: true,
    };
    answer(vm, &request)
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
fn actions_without_meaning_here_are_refused_and_do_nothing() {
    let mut vm = FakeVm::default();

    let start = ask(&mut vm, "PUT", "/actions", r#"{"action_type": "InstanceStart"}"#);
    let flush = ask(&mut vm, "PUT", "/actions", r#"{"action_type": "FlushMetrics"}"#);

    assert!(fault(&start).contains("already started"));
    assert!(fault(&flush).contains("GET /metrics"));
    assert!(vm.calls.is_empty());
}

#[test]
fn refusal_of_the_vm_becomes_the_fault_message() {
    let mut vm = FakeVm { listens: false, ..FakeVm::default() };

    let response = ask(&mut vm, "PUT", "/actions", r#"{"action_type": "SendCtrlAltDel"}"#);

    assert_eq!(fault(&response), "the guest does not listen; use Stop");
}

#[test]
fn failure_of_the_vm_is_told_with_its_cause() {
    let cause = io::Error::other("vCPU 1 is stuck");

    let message = Fault::from(ControlError::failed("pause the VM", cause)).to_string();

    assert_eq!(message, "cannot pause the VM: vCPU 1 is stuck");
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
