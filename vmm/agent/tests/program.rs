//! `tessera-agent` as a program: its command line, and who can reach it.
#![allow(clippy::unwrap_used)]

use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use agent::protocol::frame::{self, Kind};
use agent::protocol::message::{Accepted, Hello, Operation, Reason, Refusal};

fn agent(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_tessera-agent")).args(arguments).output().unwrap()
}

/// An agent that listens in a folder of its own.
struct Agent {
    child: Child,
    folder: tempfile::TempDir,
}

impl Agent {
    fn start() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let child = Command::new(env!("CARGO_BIN_EXE_tessera-agent"))
            .args(["--no-clock", "--no-power-key", "--listen"])
            .arg(format!("unix:{}", folder.path().join("socket").display()))
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let agent = Self { child, folder };
        agent.connect();
        agent
    }

    fn connect(&self) -> UnixStream {
        let deadline = Instant::now() + Duration::from_secs(60);
        loop {
            match UnixStream::connect(self.folder.path().join("socket")) {
                Ok(stream) => return stream,
                Err(error) => assert!(Instant::now() < deadline, "{error}"),
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// The answer to a first frame.
    fn answer(&self, first: &[u8]) -> Option<frame::Frame> {
        let mut stream = self.connect();
        // An agent that refuses before it has read all has closed its end.
        let _ = std::io::Write::write_all(&mut stream, first);
        let _ = stream.shutdown(std::net::Shutdown::Write);
        frame::read(&mut stream).unwrap()
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn the_command_line_is_checked() {
    for (arguments, code) in [
        (&["--help"][..], 0),
        (&["--version"], 0),
        (&["--listen"], 64),
        (&["--listen", "tcp:1"], 64),
        (&["--loud"], 64),
        (&["--listen", "unix:/nonexistent/socket"], 69),
    ] {
        let output = agent(arguments);

        assert_eq!(output.status.code(), Some(code), "{arguments:?}");
        assert_eq!(output.stderr.is_empty(), code == 0, "{arguments:?}");
    }
}

#[test]
fn only_its_user_can_connect() {
    let agent = Agent::start();

    let socket = std::fs::metadata(agent.folder.path().join("socket")).unwrap();

    assert_eq!(socket.permissions().mode() & 0o777, 0o700);
}

#[test]
fn it_says_what_it_is() {
    let agent = Agent::start();

    let hello = frame::json(Kind::Hello, &Hello::new(Operation::Info)).unwrap();
    // The connection by which the test has waited for the agent may still count.
    let deadline = Instant::now() + Duration::from_secs(60);
    let accepted = loop {
        let answer = agent.answer(&hello).unwrap();
        assert_eq!(answer.kind, Kind::Accepted);
        let accepted: Accepted = answer.json().unwrap();
        if accepted.operations == Some(1) {
            break accepted;
        }
        assert!(Instant::now() < deadline, "{accepted:?}");
    };

    assert!(accepted.agent.starts_with("tessera-agent "), "{accepted:?}");
}

#[test]
fn another_version_is_refused_with_both_numbers() {
    let agent = Agent::start();

    let hello = br#"{"protocol":"tessera-agent","version":77,"operation":"dance"}"#;
    let answer = agent.answer(&frame::bytes(Kind::Hello, hello)).unwrap();

    let refusal: Refusal = answer.json().unwrap();
    assert_eq!((answer.kind, refusal.reason), (Kind::Refused, Reason::Version));
    assert!(refusal.message.contains("77") && refusal.message.contains("version 1"));
}

#[test]
fn what_is_no_request_is_refused_and_the_agent_serves_on() {
    let agent = Agent::start();

    for first in [
        frame::bytes(Kind::Hello, b"{}"),
        frame::bytes(Kind::Hello, br#"{"protocol":"other","version":1,"operation":"info"}"#),
        frame::bytes(
            Kind::Hello,
            br#"{"protocol":"tessera-agent","version":1,"operation":"dance"}"#,
        ),
        frame::bytes(Kind::Data, b""),
        b"GET / HTTP/1.1\r\n\r\n".to_vec(),
        frame::header(Kind::Hello, 1 << 20).to_vec(),
        frame::header(Kind::Hello, 10).to_vec(),
        Vec::new(),
    ] {
        let answer = agent.answer(&first).unwrap();

        let refusal: Refusal = answer.json().unwrap();
        assert_eq!((answer.kind, refusal.reason), (Kind::Refused, Reason::Malformed), "{first:?}");
    }
    let hello = frame::json(Kind::Hello, &Hello::new(Operation::Info)).unwrap();
    assert_eq!(agent.answer(&hello).unwrap().kind, Kind::Accepted);
}

#[test]
fn operations_beyond_the_limit_are_refused_and_served_later() {
    let agent = Agent::start();
    // Silent clients have a place until they are refused for it.
    let silent: Vec<UnixStream> =
        (0..agent::protocol::limits::MAX_OPERATIONS).map(|_| agent.connect()).collect();
    let hello = frame::json(Kind::Hello, &Hello::new(Operation::Info)).unwrap();

    let refused = agent.answer(&hello).unwrap();
    drop(silent);
    let deadline = Instant::now() + Duration::from_secs(60);
    while agent.answer(&hello).is_none_or(|answer| answer.kind != Kind::Accepted) {
        assert!(Instant::now() < deadline, "the places are not free again");
    }

    assert_eq!(refused.json::<Refusal>().unwrap().reason, Reason::Busy);
}
