//! `tesseractl proxy`: a connection to any port of the guest.

use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixListener;
use std::process::{Child, Stdio};
use std::thread;

use super::harness::{Guest, text};

/// A proxy to port 22, on pipes.
fn proxy(guest: &Guest) -> Child {
    let mut command = guest.command("proxy", &["22"]);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap()
}

#[test]
fn bytes_go_both_ways_and_half_closes_are_passed_on() {
    let guest = Guest::start();
    let port = UnixListener::bind(guest.path("port22")).unwrap();
    let service = thread::spawn(move || {
        let (mut stream, _) = port.accept().unwrap();
        stream.write_all(b"hello\n").unwrap();
        // Its own direction ends first; it still reads to the end of the other.
        stream.shutdown(Shutdown::Write).unwrap();
        let mut all = Vec::new();
        stream.read_to_end(&mut all).unwrap();
        all
    });
    let mut proxy = proxy(&guest);

    let mut received = String::new();
    proxy.stdout.take().unwrap().read_to_string(&mut received).unwrap();
    let bytes = vec![7; 1_000_000];
    let mut input = proxy.stdin.take().unwrap();
    input.write_all(&bytes).unwrap();
    drop(input);

    assert_eq!(received, "hello\n");
    assert!(service.join().unwrap() == bytes);
    assert_eq!(proxy.wait().unwrap().code(), Some(0));
}

#[test]
fn the_end_of_input_leaves_the_other_direction_open() {
    let guest = Guest::start();
    let port = UnixListener::bind(guest.path("port22")).unwrap();
    let service = thread::spawn(move || {
        let (mut stream, _) = port.accept().unwrap();
        let mut request = String::new();
        stream.read_to_string(&mut request).unwrap();
        stream.write_all(request.to_uppercase().as_bytes()).unwrap();
    });
    let mut proxy = proxy(&guest);

    proxy.stdin.take().unwrap().write_all(b"question").unwrap();
    let output = proxy.wait_with_output().unwrap();

    assert_eq!(text(&output.stdout), "QUESTION");
    service.join().unwrap();
}

#[test]
fn a_guest_that_closes_ends_it_while_input_stays_open() {
    let guest = Guest::start();
    let port = UnixListener::bind(guest.path("port22")).unwrap();
    let service = thread::spawn(move || drop(port.accept().unwrap()));
    let mut proxy = proxy(&guest);
    let input = proxy.stdin.take();

    let status = proxy.wait().unwrap();

    assert_eq!(status.code(), Some(0));
    drop(input);
    service.join().unwrap();
}

#[test]
fn a_port_without_a_listener_is_told() {
    let guest = Guest::start();

    let output = guest.run("proxy", &["--timeout", "0.1", "23"]);

    assert_eq!(output.status.code(), Some(69));
    assert!(text(&output.stderr).contains("at vsock port 23"), "{}", text(&output.stderr));
}
