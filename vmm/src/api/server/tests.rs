//! The server on a real event loop, with clients that behave and clients that do not.
//!
//! Loop and clients share one thread: the loop runs until nothing is left to do, so no test waits
//! for time to pass, and a server that spins is seen.
#![allow(clippy::unwrap_used)]

use std::io::{self, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use event_manager::{EventManager, SubscriberOps};
use proptest::prelude::*;
use serde_json::json;
use tempfile::TempDir;

use super::*;
use crate::api::connection::{MAX_UNSENT, READ_CHUNK};
use crate::api::fake::{Call, FakeVm};
use crate::api::model::State;
use crate::events::Event;

const GET: &str = "GET / HTTP/1.1\r\n\r\n";

struct House {
    manager: EventManager<Arc<Mutex<Server<FakeVm>>>>,
    server: Arc<Mutex<Server<FakeVm>>>,
    log: EventLog,
    directory: TempDir,
}

impl House {
    fn new() -> Self {
        Self::with(FakeVm::default())
    }

    fn with(vm: FakeVm) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let log = EventLog::new().unwrap();
        let server = Server::bind(&directory.path().join("api"), vm, log.clone()).unwrap();
        let server = Arc::new(Mutex::new(server));
        let mut manager = EventManager::new().unwrap();
        manager.add_subscriber(Arc::clone(&server));
        server.lock().unwrap().registered().unwrap();
        Self { manager, server, log, directory }
    }

    fn connect(&mut self) -> UnixStream {
        let stream = UnixStream::connect(self.directory.path().join("api")).unwrap();
        stream.set_nonblocking(true).unwrap();
        self.settle();
        stream
    }

    /// Runs the loop until it has nothing to do.
    fn settle(&mut self) {
        for _ in 0..100_000 {
            if self.manager.run_with_timeout(0).unwrap() == 0 {
                return;
            }
        }
        panic!("the server spins");
    }

    fn say(&mut self, stream: &mut UnixStream, bytes: &[u8]) {
        stream.write_all(bytes).unwrap();
        self.settle();
    }

    /// Everything the server says to these bytes, and whether it closed.
    fn receive(&mut self, stream: &mut UnixStream) -> (String, bool) {
        let mut heard = Vec::new();
        let mut chunk = [0; 4096];
        loop {
            self.settle();
            match stream.read(&mut chunk) {
                Ok(0) => return (String::from_utf8(heard).unwrap(), true),
                Ok(count) => heard.extend_from_slice(&chunk[..count]),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    return (String::from_utf8(heard).unwrap(), false);
                }
                Err(_) => return (String::from_utf8(heard).unwrap(), true),
            }
        }
    }

    fn ask(&mut self, request: &str) -> (String, bool) {
        let mut stream = self.connect();
        self.say(&mut stream, request.as_bytes());
        self.receive(&mut stream)
    }

    fn calls(&self) -> Vec<Call> {
        self.server.lock().unwrap().lifecycle_mut().calls.clone()
    }

    fn connections(&self) -> usize {
        self.server.lock().unwrap().connections.len()
    }

    fn assert_serves(&mut self) {
        let (heard, _) = self.ask(GET);
        assert!(heard.starts_with("HTTP/1.1 200 OK"), "{heard:?}");
    }
}

const FOLLOW: &str = "GET /events HTTP/1.1\r\n\r\n";

/// The body of a chunked answer, and whether it has its end.
fn unchunked(answer: &str) -> (String, bool) {
    let (head, mut rest) = answer.split_once("\r\n\r\n").unwrap();
    assert!(head.contains("Transfer-Encoding: chunked"), "{head}");
    let mut body = String::new();
    while let Some((length, chunk)) = rest.split_once("\r\n") {
        let length = usize::from_str_radix(length, 16).unwrap();
        body.push_str(&chunk[..length]);
        assert!(chunk[length..].starts_with("\r\n"));
        rest = &chunk[length + 2..];
        if length == 0 {
            return (body, true);
        }
    }
    (body, false)
}

fn seqs(body: &str) -> Vec<u64> {
    body.lines()
        .map(|line| {
            serde_json::from_str::<serde_json::Value>(line).unwrap()["seq"].as_u64().unwrap()
        })
        .collect()
}

#[test]
fn a_follower_gets_the_events_so_far_and_then_each_new_one_until_the_end() {
    let mut house = House::new();
    house.log.publish(&Event::Started);
    let mut follower = house.connect();
    house.say(&mut follower, FOLLOW.as_bytes());

    let (mut heard, closed) = house.receive(&mut follower);
    assert_eq!((seqs(&unchunked(&heard).0), closed), (vec![1], false));

    house.log.publish(&Event::Resumed);
    heard.push_str(&house.receive(&mut follower).0);
    assert_eq!(seqs(&unchunked(&heard).0), [1, 2]);
    house.assert_serves();

    house.log.publish(&Event::BrokerLost);
    house.server.lock().unwrap().end_events();
    heard.push_str(&house.receive(&mut follower).0);
    let (body, ended) = unchunked(&heard);
    assert_eq!((seqs(&body), ended), (vec![1, 2, 3], true));
}

#[test]
fn what_a_request_makes_happen_is_told_before_the_request_is_answered() {
    let mut house = House::new();
    house.server.lock().unwrap().lifecycle_mut().log = house.log.clone();
    let (mut follower, mut client) = (house.connect(), house.connect());
    house.say(&mut follower, FOLLOW.as_bytes());
    let body = r#"{ "state": "Resumed" }"#;
    let length = body.len();
    write!(client, "PATCH /vm HTTP/1.1\r\nContent-Length: {length}\r\n\r\n{body}").unwrap();

    // One turn at a time: the process may be gone the moment its client has the answer.
    let mut answer = [0; 1024];
    while client.read(&mut answer).is_err() {
        house.manager.run_with_timeout(0).unwrap();
    }

    let mut heard = [0; 1024];
    let count = follower.read(&mut heard).unwrap();
    assert!(answer.starts_with(b"HTTP/1.1 204"), "{}", String::from_utf8_lossy(&answer));
    assert_eq!(seqs(&unchunked(&String::from_utf8_lossy(&heard[..count])).0), [1]);
}

#[test]
fn a_follower_of_http_1_0_gets_lines_without_chunks() {
    let mut house = House::new();
    house.log.publish(&Event::Started);

    let (heard, _) = house.ask("GET /events HTTP/1.0\r\n\r\n");

    let (head, body) = heard.split_once("\r\n\r\n").unwrap();
    assert!(!head.contains("Transfer-Encoding"), "{head}");
    assert_eq!(seqs(body), [1]);
}

#[test]
fn a_follower_that_does_not_read_is_held_at_the_bound_and_finds_a_gap() {
    let mut house = House::new();
    let mut follower = house.connect();
    house.say(&mut follower, FOLLOW.as_bytes());
    let detail = "x".repeat(1000);

    for _ in 0..2000 {
        house.log.publish(&Event::TagStorageExhausted { detail: detail.as_str().into() });
        house.settle();
    }
    let held = house.server.lock().unwrap().connections[0].connection.held();
    assert!(held < 2 * MAX_UNSENT, "{held}");
    house.assert_serves();

    let (heard, _) = house.receive(&mut follower);
    let seqs = seqs(&unchunked(&heard).0);
    assert!(seqs.is_sorted() && seqs.len() < 2000, "{}", seqs.len());
    assert_eq!(seqs.last(), Some(&2000));
}

#[test]
fn a_follower_that_leaves_is_forgotten() {
    let mut house = House::new();
    let mut follower = house.connect();
    house.say(&mut follower, FOLLOW.as_bytes());
    assert_eq!(house.connections(), 1);

    drop(follower);
    house.settle();

    assert_eq!(house.connections(), 0);
}

#[test]
fn what_a_follower_sends_is_thrown_away() {
    let mut house = House::new();
    let mut follower = house.connect();
    house.say(&mut follower, FOLLOW.as_bytes());

    house.say(&mut follower, &[b'x'; 100_000]);
    house.log.publish(&Event::Started);

    assert_eq!(seqs(&unchunked(&house.receive(&mut follower).0).0), [1]);
    assert!(house.calls().is_empty());
}

fn put(body: &str) -> String {
    let length = body.len();
    format!("PUT /actions HTTP/1.1\r\nContent-Length: {length}\r\n\r\n{body}")
}

#[test]
fn connection_serves_one_request_after_another() {
    let mut house = House::new();
    let mut stream = house.connect();

    for _ in 0..3 {
        house.say(&mut stream, GET.as_bytes());
        let (heard, closed) = house.receive(&mut stream);
        assert!(heard.starts_with("HTTP/1.1 200 OK") && heard.contains("\"Tessera\""));
        assert!(!closed);
    }
}

#[test]
fn pipelined_requests_beyond_one_turn_are_all_answered() {
    let mut house = House::new();

    let (heard, closed) = house.ask(&GET.repeat(200));

    assert_eq!(heard.matches("200 OK").count(), 200);
    assert!(!closed);
}

#[test]
fn client_that_ends_its_side_still_gets_every_answer() {
    let mut house = House::new();
    let mut stream = house.connect();
    stream.write_all(GET.repeat(50).as_bytes()).unwrap();
    stream.shutdown(Shutdown::Write).unwrap();

    let (heard, closed) = house.receive(&mut stream);

    assert_eq!(heard.matches("200 OK").count(), 50);
    assert!(closed);
    assert_eq!(house.connections(), 0);
}

#[test]
fn answer_to_stop_is_out_before_the_loop_gets_control_back() {
    let mut house = House::new();
    let mut stream = house.connect();
    stream.write_all(put(r#"{"action_type":"Stop"}"#).as_bytes()).unwrap();

    // One turn of the loop, after which the VMM would leave it.
    house.manager.run_with_timeout(0).unwrap();

    let mut chunk = [0; 256];
    let count = stream.read(&mut chunk).unwrap();
    assert!(chunk[..count].starts_with(b"HTTP/1.1 204"));
    assert_eq!(house.calls(), [Call::Stop]);
}

#[test]
fn garbage_is_answered_with_400_and_closed() {
    let mut house = House::new();

    let (heard, closed) = house.ask("\x16\x03\x01 hello\r\n\r\n");

    assert!(heard.starts_with("HTTP/1.1 400 Bad Request"));
    assert!(heard.contains("fault_message") && closed);
    house.assert_serves();
}

#[test]
fn chunked_body_is_refused_and_closed() {
    let mut house = House::new();

    let (heard, closed) = house
        .ask("PUT /actions HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n");

    assert!(heard.starts_with("HTTP/1.1 400") && heard.contains("Content-Length"));
    assert!(closed);
    assert_eq!(heard.matches("HTTP/1.1").count(), 1);
}

#[test]
fn client_of_an_oversized_body_can_send_it_and_reads_413() {
    let mut house = House::new();
    let mut stream = house.connect();
    house.say(&mut stream, b"PUT /actions HTTP/1.1\r\nContent-Length: 200000\r\n\r\n");

    for _ in 0..20 {
        house.say(&mut stream, &[b'x'; 10_000]);
    }

    let (heard, closed) = house.receive(&mut stream);
    assert!(heard.starts_with("HTTP/1.1 413") && closed);
}

#[test]
fn client_that_never_stops_sending_after_a_refusal_is_dropped() {
    let mut house = House::new();
    let mut stream = house.connect();
    house.say(&mut stream, b"\x00");

    let mut sent = 0;
    while stream.write_all(&[0; 32 << 10]).is_ok() {
        sent += 32 << 10;
        house.settle();
        assert!(sent < 2 << 20, "the server takes all of it");
    }

    assert_eq!(house.connections(), 0);
}

#[test]
fn unknown_method_is_refused_and_closed() {
    let mut house = House::new();

    let (heard, closed) = house.ask("HEAD / HTTP/1.1\r\n\r\n");

    assert!(heard.starts_with("HTTP/1.1 400") && heard.contains("Connection: close"));
    assert!(closed);
}

#[test]
fn expectation_is_met_and_the_request_served() {
    let mut house = House::new();
    let body = r#"{"action_type":"SendCtrlAltDel"}"#;
    let mut stream = house.connect();
    let head = format!(
        "PUT /actions HTTP/1.1\r\nExpect: 100-continue\r\nContent-Length: {}\r\n\r\n",
        body.len()
    );

    house.say(&mut stream, head.as_bytes());
    let (interim, _) = house.receive(&mut stream);
    house.say(&mut stream, body.as_bytes());
    let (last, _) = house.receive(&mut stream);

    assert_eq!(interim, "HTTP/1.1 100 Continue\r\n\r\n");
    assert!(last.starts_with("HTTP/1.1 204"));
    assert_eq!(house.calls(), [Call::PressPowerKey]);
}

#[test]
fn client_that_never_reads_is_held_at_the_bound_and_gets_everything_once_it_reads() {
    let answer = 20_000;
    let mut house = House::with(FakeVm {
        metrics: json!({ "padding": "x".repeat(answer) }),
        ..FakeVm::default()
    });
    let mut stream = house.connect();

    // 40 MB of answers.
    house.say(&mut stream, "GET /metrics HTTP/1.1\r\n\r\n".repeat(2_000).as_bytes());

    let held = house.server.lock().unwrap().connections[0].connection.held();
    assert!(held < MAX_UNSENT + 2 * answer + READ_CHUNK, "{held} bytes held");
    house.assert_serves();
    let (heard, closed) = house.receive(&mut stream);
    assert_eq!(heard.matches("HTTP/1.1 200").count(), 2_000);
    assert!(!closed);
}

#[test]
fn client_that_vanishes_with_answers_unread_is_forgotten() {
    let mut house = House::with(FakeVm {
        metrics: json!({ "padding": "x".repeat(1 << 20) }),
        ..FakeVm::default()
    });
    let mut stream = house.connect();
    house.say(&mut stream, b"GET /metrics HTTP/1.1\r\n\r\n");

    drop(stream);
    house.settle();

    assert_eq!(house.connections(), 0);
    house.assert_serves();
}

#[test]
fn newcomer_takes_the_place_of_the_longest_silent_client() {
    let mut house = House::new();
    let mut clients: Vec<_> = (0..MAX_CONNECTIONS).map(|_| house.connect()).collect();
    // All but the second have spoken since.
    for (index, client) in clients.iter_mut().enumerate() {
        if index != 1 {
            house.say(client, GET.as_bytes());
        }
    }

    house.assert_serves();

    let closed: Vec<_> = clients.iter_mut().map(|client| house.receive(client).1).collect();
    let expected: Vec<_> = (0..MAX_CONNECTIONS).map(|index| index == 1).collect();
    assert_eq!(closed, expected);
}

#[test]
fn slow_clients_do_not_hold_up_each_other() {
    let mut house = House::new();
    let (mut first, mut second) = (house.connect(), house.connect());

    for byte in GET.as_bytes() {
        house.say(&mut first, &[*byte]);
        house.say(&mut second, &[*byte]);
    }

    assert!(house.receive(&mut first).0.starts_with("HTTP/1.1 200"));
    assert!(house.receive(&mut second).0.starts_with("HTTP/1.1 200"));
}

#[test]
fn removed_subscriber_leaves_no_file_and_no_connection() {
    let mut house = House::new();
    let mut stream = house.connect();
    let path = house.directory.path().join("api");

    house.manager = EventManager::new().unwrap();
    house.server = Arc::new(Mutex::new(
        Server::bind(&house.directory.path().join("other"), FakeVm::default(), EventLog::default())
            .unwrap(),
    ));

    assert!(!path.exists());
    assert!(house.receive(&mut stream).1);
}

#[test]
fn paused_state_is_seen_by_other_clients() {
    let mut house = House::new();
    let body = r#"{"state":"Paused"}"#;

    house.ask(&format!("PATCH /vm HTTP/1.1\r\nContent-Length: {}\r\n\r\n{body}", body.len()));

    let (heard, _) = house.ask(GET);
    assert!(heard.contains(State::Paused.as_str()));
}

/// A valid request.
fn request() -> impl Strategy<Value = String> {
    let close = prop_oneof![9 => Just(""), 1 => Just("Connection: close\r\n")];
    let head = prop_oneof![
        Just(("GET / HTTP/1.1", "")),
        Just(("GET /version HTTP/1.1", "")),
        Just(("GET /nowhere HTTP/1.1", "")),
        Just(("GET http://localhost/metrics HTTP/1.1", "")),
        Just(("PATCH /vm HTTP/1.1", r#"{"state":"Paused"}"#)),
        Just(("PATCH /vm HTTP/1.1", r#"{"state":"Resumed"}"#)),
        Just((
            "PUT /actions HTTP/1.1\r\nExpect: 100-continue",
            r#"{"action_type":"SendCtrlAltDel"}"#
        )),
        Just(("PUT /actions HTTP/1.1", r#"{"action_type":"No"}"#)),
    ];
    (head, close).prop_map(|((head, body), close)| {
        let length = match body.len() {
            0 => String::new(),
            length => format!("Content-Length: {length}\r\n"),
        };
        format!("{head}\r\n{length}{close}\r\n{body}")
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn answers_do_not_depend_on_how_the_requests_are_cut(
        requests in prop::collection::vec(request(), 1..8),
        cuts in prop::collection::vec(1_usize..60, 1..12),
    ) {
        let bytes = requests.concat();
        let (whole, whole_closed) = House::new().ask(&bytes);
        let mut house = House::new();
        let mut stream = house.connect();

        let mut rest = bytes.as_bytes();
        for length in cuts.iter().cycle() {
            let (chunk, left) = rest.split_at((*length).min(rest.len()));
            // The server may have closed: then the rest is lost in both cases.
            let _ = stream.write_all(chunk);
            house.settle();
            rest = left;
            if rest.is_empty() {
                break;
            }
        }

        let (cut, cut_closed) = house.receive(&mut stream);
        prop_assert_eq!(cut, whole);
        prop_assert_eq!(cut_closed, whole_closed);
    }

    #[test]
    fn no_bytes_on_any_number_of_connections_wedge_the_server(
        pieces in prop::collection::vec(
            (
                0_usize..14,
                prop_oneof![
                    3 => prop::collection::vec(any::<u8>(), 0..300),
                    3 => request().prop_map(String::into_bytes),
                    1 => Just(vec![b'x'; 9000]),
                    1 => Just(b"PUT / HTTP/1.1\r\nContent-Length: 51200\r\n\r\n".to_vec()),
                ],
                0_u8..4,
            ),
            1..40,
        ),
    ) {
        let mut house = House::new();
        let mut streams: Vec<_> = (0..14).map(|_| house.connect()).collect();

        for (which, bytes, then) in pieces {
            let stream = &mut streams[which];
            let _ = stream.write_all(&bytes);
            match then {
                0 => drop(house.receive(stream)),
                1 => drop(stream.shutdown(Shutdown::Write)),
                2 => *stream = house.connect(),
                _ => house.settle(),
            }
        }

        house.settle();
        house.assert_serves();
        prop_assert!(house.connections() <= MAX_CONNECTIONS);
    }
}

#[test]
fn a_kernel_short_of_memory_does_not_make_the_server_spin() {
    for errno in [libc::ENOMEM, libc::ENOBUFS] {
        let mut house = House::new();
        let accept_error = house.server.lock().unwrap().socket.accept_error();
        accept_error.store(errno, Ordering::SeqCst);
        let mut stream = house.connect();
        stream.write_all(GET.as_bytes()).unwrap();

        accept_error.store(0, Ordering::SeqCst);

        let limit = Instant::now() + Duration::from_secs(60);
        while house.server.lock().unwrap().connections.is_empty() {
            assert!(Instant::now() < limit, "the client is not accepted");
            house.manager.run_with_timeout(10).unwrap();
        }
        assert!(house.receive(&mut stream).0.starts_with("HTTP/1.1 200"));
    }
}
