#![allow(clippy::unwrap_used)]

use std::io::{ErrorKind, Write};
use std::os::unix::fs::PermissionsExt;
use std::sync::atomic::{AtomicI32, Ordering};
use std::time::Duration;

use event_manager::{EventManager, SubscriberOps};

use super::*;
use crate::console::Output;
use crate::console::fake::{guest_reads, serial, settle, turn_until, waiting};

/// A console's socket on an event loop of its own.
struct Bench {
    directory: tempfile::TempDir,
    events: EventManager<Box<dyn MutEventSubscriber>>,
    serial: Arc<Mutex<Serial>>,
    output: Output,
    /// What accepting fails with.
    accept_error: Arc<AtomicI32>,
}

impl Bench {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let serial = serial();
        let mut listener = Listener::bind(&directory.path().join("console")).unwrap();
        let accept_error = listener.socket.accept_error();
        let output = Output::client(listener.client());
        listener.feed(Arc::clone(&serial)).unwrap();
        let mut events = EventManager::<Box<dyn MutEventSubscriber>>::new().unwrap();
        events.add_subscriber(Box::new(listener));
        Self { directory, events, serial, output, accept_error }
    }

    fn path(&self) -> std::path::PathBuf {
        self.directory.path().join("console")
    }

    fn connect(&mut self) -> UnixStream {
        let client = UnixStream::connect(self.path()).unwrap();
        client.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
        settle(&mut self.events);
        client
    }

    /// What the guest reads whenever the loop has done all that it can, until it has `length` bytes.
    fn guest_input(&mut self, length: usize) -> Vec<u8> {
        let mut read = Vec::new();
        while read.len() < length {
            turn_until(&mut self.events, || waiting(&self.serial) > 0);
            settle(&mut self.events);
            read.extend(guest_reads(&self.serial));
        }
        read
    }

    /// A client that sends this and leaves.
    fn visit(&mut self, sent: &[u8]) {
        self.connect().write_all(sent).unwrap();
    }
}

/// Whether the other side has closed the connection.
fn is_closed(mut client: &UnixStream) -> bool {
    client.set_nonblocking(true).unwrap();
    match client.read(&mut [0; 8]) {
        Ok(0) => true,
        Err(error) if error.kind() == ErrorKind::WouldBlock => false,
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_client_and_the_guest_exchange_bytes() {
    let mut bench = Bench::new();
    let mut client = bench.connect();
    bench.output.write_all(b"login: ").unwrap();
    let mut heard = [0; 7];
    client.read_exact(&mut heard).unwrap();
    assert_eq!(&heard, b"login: ");
    client.write_all(b"root\r").unwrap();
    assert_eq!(bench.guest_input(5), b"root\r");
}

#[test]
fn there_is_no_escape_key_on_a_socket() {
    let mut bench = Bench::new();
    bench.connect().write_all(b"\x01x").unwrap();
    assert_eq!(bench.guest_input(2), b"\x01x");
}

#[test]
fn a_second_client_is_turned_away_and_the_first_stays() {
    let mut bench = Bench::new();
    let mut first = bench.connect();
    let second = bench.connect();
    assert!(is_closed(&second));
    bench.output.write_all(b"x").unwrap();
    first.read_exact(&mut [0]).unwrap();
}

#[test]
fn a_kernel_short_of_memory_leaves_the_loop_idle_and_the_client_attaches_later() {
    for errno in [libc::ENOMEM, libc::ENOBUFS] {
        let mut bench = Bench::new();
        bench.accept_error.store(errno, Ordering::SeqCst);
        let mut client = bench.connect();
        assert!(bench.output.write(b"x").is_err(), "no client is attached");

        bench.accept_error.store(0, Ordering::SeqCst);

        turn_until(&mut bench.events, || bench.output.write(b"x").is_ok());
        client.read_exact(&mut [0]).unwrap();
    }
}

#[test]
fn after_a_client_has_left_another_can_attach() {
    let mut bench = Bench::new();
    drop(bench.connect());
    settle(&mut bench.events);
    assert!(bench.output.write(b"x").is_err(), "no client is attached");
    let mut next = bench.connect();
    bench.output.write_all(b"y").unwrap();
    next.read_exact(&mut [0]).unwrap();
    next.write_all(b"z").unwrap();
    assert_eq!(bench.guest_input(1), b"z");
}

#[test]
fn a_guest_that_reads_slowly_loses_nothing() {
    let mut bench = Bench::new();
    let sent: Vec<u8> = (0..1000).map(|n| n as u8).collect();
    bench.visit(&sent);
    assert_eq!(bench.guest_input(1000), sent);
}

#[test]
fn a_guest_that_does_not_read_leaves_the_loop_idle() {
    let mut bench = Bench::new();
    let mut client = bench.connect();
    client.write_all(&[b'x'; 1000]).unwrap();
    settle(&mut bench.events);
    assert_eq!(waiting(&bench.serial), 64);
    assert_eq!(settle(&mut bench.events), 0, "a full FIFO must not wake the loop again");
    drop(client);
    assert_eq!(settle(&mut bench.events), 0, "nor must a hang-up behind it");
}

#[test]
fn a_client_that_left_while_the_guest_did_not_read_makes_room_for_the_next() {
    let mut bench = Bench::new();
    bench.visit(&[b'x'; 1000]);
    settle(&mut bench.events);
    let mut next = bench.connect();
    assert!(!is_closed(&next));
    bench.output.write_all(b"y").unwrap();
    next.set_nonblocking(false).unwrap();
    next.read_exact(&mut [0]).unwrap();
}

#[test]
fn a_client_that_does_not_read_loses_output_without_holding_up_the_guest() {
    let mut bench = Bench::new();
    let _client = bench.connect();
    let mut sent = 0;
    while bench.output.write(&[b'x'; 4096]).is_ok() {
        sent += 1;
        assert!(sent < 100_000, "a client's buffer has an end");
    }
}

#[test]
fn output_to_a_client_that_has_just_gone_is_dropped() {
    let mut bench = Bench::new();
    drop(bench.connect());
    assert!(bench.output.write(b"x").is_err());
}

#[test]
fn the_socket_is_its_owners_alone_and_goes_with_the_console() {
    let bench = Bench::new();
    let path = bench.path();
    let mode = path.metadata().unwrap().permissions().mode();
    assert_eq!(mode & 0o077, 0, "{mode:o}");
    let Bench { directory: _directory, events, .. } = bench;
    drop(events);
    assert!(!path.exists());
}

#[test]
fn a_path_that_cannot_be_had_is_named() {
    let error = Listener::bind(Path::new("/proc/none/console")).err().unwrap();
    let source = std::error::Error::source(&error).unwrap().to_string();
    assert!(source.contains("/proc/none/console"), "{source}");
}
