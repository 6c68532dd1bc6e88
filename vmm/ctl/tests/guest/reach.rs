//! How a guest is found and waited for, and the messages when it is not there.

use std::io::Write;
use std::os::unix::net::UnixListener;
use std::process::Stdio;
use std::time::Duration;

use super::common::until;
use super::harness::{Guest, signal, text};

#[test]
fn a_guest_that_boots_is_waited_for() {
    let guest = Guest::booting(3);

    let output = guest.sh("echo up");

    assert_eq!(text(&output.stdout), "up\n", "{}", text(&output.stderr));
    assert_eq!(guest.refusals_left(), 0);
}

#[test]
fn the_agent_says_what_it_is() {
    let guest = Guest::start();

    let shown = guest.run("agent", &[]);
    let document = guest.run("agent", &["--json"]);
    // This machine has no real-time clock of a VM.
    let clock = guest.run("agent", &["--set-clock"]);

    let shown = text(&shown.stdout);
    assert!(shown.starts_with("tessera-agent ") && shown.contains(", operations: "), "{shown}");
    let document: serde_json::Value = serde_json::from_slice(&document.stdout).unwrap();
    assert!(document["operations"].as_u64() >= Some(1), "{document}");
    assert_eq!(clock.status.code(), Some(1));
    assert!(text(&clock.stderr).contains("PL031"), "{}", text(&clock.stderr));
}

#[test]
fn a_guest_without_an_agent_is_an_error_that_says_what_to_look_at() {
    let guest = Guest::booting(usize::MAX);

    let output = guest.run("exec", &["--timeout", "0.1", "true"]);

    assert_eq!(output.status.code(), Some(125));
    let message = text(&output.stderr);
    assert!(
        message.contains("is tessera-agent running") && message.contains("--timeout"),
        "{message}"
    );
}

#[test]
fn a_guest_that_does_not_answer_is_waited_for_no_longer_than_asked() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("vsock");
    // Connections stay in its backlog.
    let _silent = UnixListener::bind(&path).unwrap();

    let output = std::process::Command::new(env!("CARGO_BIN_EXE_tesseractl"))
        .args(["exec", "--timeout", "0.1", &format!("vsock:{}", path.display()), "true"])
        .output()
        .unwrap();

    assert_eq!(output.status.code(), Some(125));
    assert!(text(&output.stderr).contains("within 100ms"), "{}", text(&output.stderr));
}

#[test]
fn a_socket_that_is_no_vsock_is_told_from_one() {
    for answer in
        ["HTTP/1.1 400 Bad Request\r\n\r\n", "OK\n", "OK x\n", "OK 1 2\n", &"O".repeat(100)]
    {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("vsock");
        let other = UnixListener::bind(&path).unwrap();
        let answer = answer.to_owned();
        let thread = std::thread::spawn(move || {
            let (mut stream, _) = other.accept().unwrap();
            stream.write_all(answer.as_bytes()).unwrap();
            let _ = std::io::copy(&mut stream, &mut std::io::sink());
        });

        let output = std::process::Command::new(env!("CARGO_BIN_EXE_tesseractl"))
            .args(["exec", &format!("vsock:{}", path.display()), "true"])
            .output()
            .unwrap();

        assert_eq!(output.status.code(), Some(125));
        assert!(text(&output.stderr).contains("does not answer as the vsock socket"));
        thread.join().unwrap();
    }
}

#[test]
fn no_socket_at_all_is_told() {
    let run = |arguments: &[&str]| {
        let output = std::process::Command::new(env!("CARGO_BIN_EXE_tesseractl"))
            .args(arguments)
            .stdin(Stdio::null())
            .output()
            .unwrap();
        (output.status.code(), text(&output.stderr))
    };

    let (code, message) = run(&["exec", "true"]);
    assert!(code == Some(64) && message.contains("<CMD>"), "{message}");
    let (code, message) = run(&["exec", "no-such-vm", "true"]);
    assert!(code == Some(125) && message.contains("tesseractl list"), "{message}");
    let (code, message) = run(&["proxy", "vsock:/nonexistent", "22"]);
    assert!(code == Some(69) && message.contains("vsock:PATH"), "{message}");
    let (code, message) = run(&["exec", "/nonexistent", "true"]);
    assert!(code == Some(125) && message.contains("--api-sock"), "{message}");
    let (code, message) = run(&["status", "vsock:/nonexistent"]);
    assert!(code == Some(64) && message.contains("control socket"), "{message}");
}

/// An agent that sends what it must not costs a message, not memory and no panic.
#[test]
fn a_hostile_agent_is_an_error() {
    use agent::protocol::frame::{self, Kind};

    let accepted = frame::bytes(Kind::Accepted, b"{}");
    for answer in [
        frame::header(Kind::Accepted, 1 << 30).to_vec(),
        frame::bytes(Kind::Accepted, b"[]"),
        frame::bytes(Kind::Exit, b""),
        [&accepted[..], &frame::header(Kind::Output, 1 << 24)].concat(),
        [&accepted[..], &frame::bytes(Kind::Hello, b"")].concat(),
        [&accepted[..], &frame::bytes(Kind::Credit, b"12345")].concat(),
        [&accepted[..], &frame::bytes(Kind::Exit, b"{\"code\":256}")].concat(),
        [&accepted[..], &[77, 0, 0, 0, 0][..]].concat(),
        accepted.clone(),
    ] {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("vsock");
        let listener = UnixListener::bind(&path).unwrap();
        let bytes = answer.clone();
        let thread = std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let _ = stream.write_all(b"OK 1\n");
            let _ = stream.write_all(&bytes);
            let _ = stream.shutdown(std::net::Shutdown::Write);
            let _ = std::io::copy(&mut stream, &mut std::io::sink());
        });

        let output = std::process::Command::new(env!("CARGO_BIN_EXE_tesseractl"))
            .args(["exec", &format!("vsock:{}", path.display()), "true"])
            .output()
            .unwrap();

        assert_eq!(output.status.code(), Some(125), "{answer:?}");
        let message = text(&output.stderr);
        assert!(
            message.contains("agent") && !message.contains("panicked"),
            "{answer:?}: {message}"
        );
        thread.join().unwrap();
    }
}

/// An agent that answers byte by byte keeps the client no longer than one that is silent.
#[test]
fn an_answer_that_never_ends_is_not_waited_for() {
    use agent::protocol::frame::{self, Kind};

    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("vsock");
    let listener = UnixListener::bind(&path).unwrap();
    let thread = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        stream.write_all(b"OK 1\n").unwrap();
        stream.write_all(&frame::header(Kind::Accepted, 60_000)).unwrap();
        // Whether the client leaves before the answer ends.
        (0..600).any(|_| {
            std::thread::sleep(Duration::from_millis(100));
            stream.write_all(b" ").is_err()
        })
    });

    let output = std::process::Command::new(env!("CARGO_BIN_EXE_tesseractl"))
        .args(["exec", "--timeout", "1", &format!("vsock:{}", path.display()), "--", "true"])
        .output()
        .unwrap();

    assert!(thread.join().unwrap(), "{}", text(&output.stderr));
    assert_eq!(output.status.code(), Some(125));
}

/// An agent that gives credit and reads nothing cannot keep the user from ending the client.
#[test]
fn signals_end_the_client_of_an_agent_that_does_not_read() {
    use agent::protocol::frame::{self, Kind};

    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("vsock");
    let listener = UnixListener::bind(&path).unwrap();
    let mut client = std::process::Command::new(env!("CARGO_BIN_EXE_tesseractl"))
        .args(["exec", &format!("vsock:{}", path.display()), "--", "cat"])
        .stdin(std::fs::File::open("/dev/zero").unwrap())
        .spawn()
        .unwrap();
    let (mut stream, _) = listener.accept().unwrap();
    stream.write_all(b"OK 1\n").unwrap();
    stream.write_all(&frame::bytes(Kind::Accepted, b"{}")).unwrap();
    let mut seen = (0, 0);
    until("the client waits to send", || {
        stream.write_all(&frame::bytes(Kind::Credit, &(64_u32 << 10).to_le_bytes())).unwrap();
        let waits = rustix::io::ioctl_fionread(&stream).unwrap();
        seen = if waits == seen.0 { (waits, seen.1 + 1) } else { (waits, 0) };
        (waits > 128 << 10 && seen.1 > 20).then_some(())
    });

    let status = until("the client ends", || {
        signal(client.id(), rustix::process::Signal::TERM);
        client.try_wait().unwrap()
    });

    assert_eq!(status.code(), Some(128 + 15));
}

/// What an agent says is shown without what a terminal would act on.
#[test]
fn messages_of_the_agent_cannot_command_the_terminal() {
    use agent::protocol::frame::{self, Kind};
    use agent::protocol::message::{Reason, Refusal};

    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("vsock");
    let listener = UnixListener::bind(&path).unwrap();
    let refusal = Refusal::new(Reason::Failed, "no\u{1b}[2J\nno");
    let bytes = frame::json(Kind::Refused, &refusal).unwrap();
    let thread = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        stream.write_all(&[b"OK 1\n", &bytes[..]].concat()).unwrap();
        let _ = std::io::copy(&mut stream, &mut std::io::sink());
    });

    let output = std::process::Command::new(env!("CARGO_BIN_EXE_tesseractl"))
        .args(["exec", &format!("vsock:{}", path.display()), "true"])
        .output()
        .unwrap();

    assert_eq!(text(&output.stderr), "tesseractl: no\u{fffd}[2J\u{fffd}no\n");
    thread.join().unwrap();
}
