//! The client against peers that hang, lie, or go away.
#![allow(clippy::unwrap_used)]

use std::os::unix::net::UnixListener;
use std::thread;
use std::time::Instant;

use tempfile::{TempDir, tempdir};

use super::*;

const SHORT: Duration = Duration::from_millis(50);

/// A listener that says `answer` to the first client once it has asked, and then hangs up.
fn peer(answer: Vec<u8>) -> (TempDir, PathBuf, thread::JoinHandle<Vec<u8>>) {
    let directory = tempdir().unwrap();
    let path = directory.path().join("api");
    let listener = UnixListener::bind(&path).unwrap();
    let handle = thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let mut request = vec![0; 4096];
        let count = stream.read(&mut request).unwrap();
        request.truncate(count);
        // The client may have enough before the end.
        let _ = stream.write_all(&answer);
        request
    });
    (directory, path, handle)
}

fn answered(answer: &str) -> Result<Answer, Error> {
    let (_directory, path, handle) = peer(answer.as_bytes().to_vec());
    let mut client = Client::connect(&path, DEFAULT_TIMEOUT).unwrap();
    let result = client.request("GET", "/", None);
    // The peer may be in the middle of an answer that the client refused.
    drop(client);
    handle.join().unwrap();
    result
}

#[test]
fn request_is_framed_by_its_length() {
    let (_directory, path, handle) = peer(b"HTTP/1.1 204 No Content\r\n\r\n".to_vec());
    let mut client = Client::connect(&path, DEFAULT_TIMEOUT).unwrap();

    client.pause().unwrap();

    let request = String::from_utf8(handle.join().unwrap()).unwrap();
    assert!(request.starts_with("PATCH /vm HTTP/1.1\r\n"));
    assert!(request.contains("Content-Length: 18\r\n"));
    assert!(request.ends_with("\r\n\r\n{\"state\":\"Paused\"}"));
}

/// A VMM that says `count` times that it still counts, and then how much.
fn counting(count: usize, timeout: Duration) -> Result<Footprint, Error> {
    let directory = tempdir().unwrap();
    let path = directory.path().join("api");
    let listener = UnixListener::bind(&path).unwrap();
    let mut client = Client::connect(&path, timeout).unwrap();
    let server = thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let footprint = serde_json::to_string(&Footprint::default()).unwrap();
        for answered in 0.. {
            if stream.read(&mut [0; 4096]).unwrap() == 0 {
                return;
            }
            let (status, body) = match answered < count {
                true => ("503 Service Unavailable", r#"{"fault_message":"it counts"}"#),
                false => ("200 OK", &*footprint),
            };
            let head = format!("HTTP/1.1 {status}\r\nContent-Length: {}\r\n\r\n", body.len());
            stream.write_all((head + body).as_bytes()).unwrap();
        }
    });
    let result = client.footprint();
    drop(client);
    server.join().unwrap();
    result
}

#[test]
fn a_footprint_that_is_still_counted_is_asked_for_again_until_the_deadline() {
    assert_eq!(counting(2, DEFAULT_TIMEOUT).unwrap(), Footprint::default());

    let refused = counting(usize::MAX, COUNT_PAUSE * 5).unwrap_err();
    // The server's thread may get no processor for that long.
    let timed_out = matches!(refused, Error::TimedOut(_));
    let is_refused = matches!(refused, Error::Refused { status: UNAVAILABLE, .. });
    assert!(is_refused || timed_out, "{refused}");
}

#[test]
fn a_request_whose_connection_goes_to_another_client_is_sent_again() {
    let directory = tempdir().unwrap();
    let path = directory.path().join("api");
    let listener = UnixListener::bind(&path).unwrap();
    let server = thread::spawn(move || {
        // Two lose their place, before and after they have asked.
        drop(listener.accept().unwrap());
        let (mut second, _) = listener.accept().unwrap();
        assert!(second.read(&mut [0; 4096]).unwrap() > 0);
        drop(second);
        let (mut third, _) = listener.accept().unwrap();
        assert!(third.read(&mut [0; 4096]).unwrap() > 0);
        third.write_all(b"HTTP/1.1 204 No Content\r\n\r\n").unwrap();
    });

    Client::connect(&path, DEFAULT_TIMEOUT).unwrap().pause().unwrap();

    server.join().unwrap();
}

#[test]
fn interim_answers_are_passed_over() {
    let answer = answered(
        "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 7\r\n\r\n{\"a\":1}",
    );

    assert_eq!(answer.unwrap().body.unwrap()["a"], 1);
}

#[test]
fn fault_message_becomes_the_error() {
    let error = answered(
        "HTTP/1.1 400 Bad Request\r\nContent-Length: 22\r\n\r\n{\"fault_message\":\"no\"}",
    )
    .unwrap_err();

    assert!(matches!(&error, Error::Refused { status: 400, .. }));
    assert_eq!(error.to_string(), "no");
}

#[test]
fn answers_that_are_none_are_malformed() {
    for answer in [
        "SSH-2.0-server\r\n\r\n",
        "HTTP/1.1 200 OK\r\nContent-Length: x\r\n\r\n",
        "HTTP/1.1 200 OK\r\nContent-Length: 99999999999999999999\r\n\r\n",
        "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello",
    ] {
        let error = answered(answer).unwrap_err();
        assert!(matches!(error, Error::Malformed(_)), "{answer}: {error}");
    }
}

#[test]
fn endless_head_is_cut_at_the_bound() {
    let endless = format!("HTTP/1.1 200 OK\r\nX: {}", "x".repeat(2 * MAX_HEAD));

    let error = answered(&endless).unwrap_err();

    assert!(matches!(error, Error::Malformed(_)), "{error}");
}

#[test]
fn hang_up_within_an_answer_is_told() {
    for answer in ["", "HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n{"] {
        assert!(matches!(answered(answer), Err(Error::Closed)), "{answer}");
    }
}

#[test]
fn silent_server_runs_into_the_deadline() {
    let directory = tempdir().unwrap();
    let path = directory.path().join("api");
    let _listener = UnixListener::bind(&path).unwrap();
    let mut client = Client::connect(&path, SHORT).unwrap();

    let error = client.instance().unwrap_err();

    assert!(matches!(error, Error::TimedOut(SHORT)));
}

#[test]
fn missing_and_dead_sockets_are_unreachable() {
    let directory = tempdir().unwrap();
    let dead = directory.path().join("dead");
    drop(UnixListener::bind(&dead).unwrap());

    for path in [directory.path().join("none"), dead] {
        let error = Client::connect(&path, SHORT).unwrap_err();
        assert!(error.to_string().contains("--api-sock"));
        assert!(matches!(error, Error::Unreachable { .. }));
    }
}

#[test]
fn wait_ends_when_the_process_has_gone() {
    let directory = tempdir().unwrap();
    let path = directory.path().join("api");
    let listener = UnixListener::bind(&path).unwrap();
    let client = Client::connect(&path, DEFAULT_TIMEOUT).unwrap();
    let process = thread::spawn(move || {
        // The first hang-up is that of a busy server; the client asks again.
        drop(listener.accept().unwrap());
        drop(listener.accept().unwrap());
    });

    client.wait_gone(DEFAULT_TIMEOUT).unwrap();

    process.join().unwrap();
}

/// Has another process of this program be a VM: where it listens, and the milliseconds that it lives on.
const AS_VM: [&str; 2] = ["TESSERA_TEST_LISTENS_AT", "TESSERA_TEST_LIVES_FOR"];

/// Started by [`wait_gives_a_process_whose_socket_is_gone_a_moment_to_end`]: its socket goes before it ends itself.
#[test]
#[ignore = "the life of another test's process"]
fn listens_and_lives_on() {
    let [Ok(path), Ok(lives)] = AS_VM.map(std::env::var) else { return };
    let listener = UnixListener::bind(&path).unwrap();
    let connection = listener.accept().unwrap();
    std::fs::remove_file(path).unwrap();
    drop((listener, connection));
    thread::sleep(Duration::from_millis(lives.parse().unwrap()));
}

#[test]
fn wait_gives_a_process_whose_socket_is_gone_a_moment_to_end() {
    let directory = tempdir().unwrap();
    let path = directory.path().join("api");
    for (lives, timeout, ends) in
        [("300", DEFAULT_TIMEOUT, true), ("60000", Duration::from_secs(20), false)]
    {
        let mut process = std::process::Command::new(std::env::current_exe().unwrap());
        process.args(["--exact", "--ignored", "client::tests::listens_and_lives_on"]);
        process.env(AS_VM[0], &path).env(AS_VM[1], lives).stdout(std::process::Stdio::null());
        let mut process = process.spawn().unwrap();
        let client = loop {
            match Client::connect(&path, DEFAULT_TIMEOUT) {
                Ok(client) => break client,
                Err(_) => thread::sleep(Duration::from_millis(10)),
            }
        };

        let start = Instant::now();
        client.wait_gone(timeout).unwrap();

        // It waits for two seconds, within which a process of a busy machine may not have ended.
        let was_waited_for = process.try_wait().unwrap().is_some();
        assert!(was_waited_for == ends || ends && start.elapsed() >= Duration::from_secs(2));
        process.kill().unwrap();
        process.wait().unwrap();
    }
}

#[test]
fn wait_runs_into_its_timeout_while_the_process_lives() {
    let directory = tempdir().unwrap();
    let path = directory.path().join("api");
    let _listener = UnixListener::bind(&path).unwrap();
    let client = Client::connect(&path, DEFAULT_TIMEOUT).unwrap();

    let error = client.wait_gone(SHORT).unwrap_err();

    assert!(matches!(error, Error::StillRunning(SHORT)));
}
