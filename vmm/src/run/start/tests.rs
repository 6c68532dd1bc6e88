#![allow(clippy::unwrap_used)]

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::time::Instant;

use super::*;
use crate::hypervisor::fake::FakeHypervisor;
use crate::machine::testing::{config, kernel, spec};
use crate::vcpu::fake::{Event, Step};
use crate::vcpu::{Exit, VcpuExit};

fn run(hypervisor: &FakeHypervisor, api_sock: Option<&Path>) -> Result<ExitReason, Error> {
    let kernel = kernel();
    start(hypervisor, &spec(config(kernel.path(), 1)), api_sock)
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
