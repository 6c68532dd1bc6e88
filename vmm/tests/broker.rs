//! `tessera broker` as a process, with clients that are processes, too.
#![allow(clippy::unwrap_used)]

#[path = "../src/testing.rs"]
mod testing;

use std::io::{BufRead, BufReader, Read, Write};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use arch::units::Bytes;
use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;
use vmm::tag_storage::broker::{self, BrokerReport, Client};
use vmm::tag_storage::{ChunkIndex, LeaseTerms};

/// Names the socket to a process that is to hold a lease.
const SOCKET: &str = "TESSERA_TEST_BROKER";
const LONG: Duration = Duration::from_secs(60);

struct Broker {
    child: Child,
    errors: Box<dyn BufRead>,
    /// What it said of itself.
    greeting: String,
}

impl Broker {
    fn start(path: &Path, options: &[&str]) -> Self {
        let mut child = command(path, options).stderr(Stdio::piped()).spawn().unwrap();
        let mut errors = Box::new(BufReader::new(child.stderr.take().unwrap()));
        let mut greeting = String::new();
        errors.read_line(&mut greeting).unwrap();
        Self { child, errors, greeting }
    }

    fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).unwrap();
    }

    /// Its exit status, and what else it said.
    fn end(mut self, signal: Signal) -> (Option<i32>, String) {
        self.signal(signal);
        let mut text = String::new();
        self.errors.read_to_string(&mut text).unwrap();
        (self.child.wait().unwrap().code(), text)
    }
}

impl Drop for Broker {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn command(path: &Path, options: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_tessera"));
    command.arg("broker").arg("--socket").arg(path).args(options).stdin(Stdio::null());
    command
}

fn refused(path: &Path, options: &[&str]) -> (i32, String) {
    let output = command(path, options).output().unwrap();
    (output.status.code().unwrap(), String::from_utf8(output.stderr).unwrap())
}

fn place() -> (TempDir, PathBuf) {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("broker");
    (directory, path)
}

fn chunks(range: Range<u64>) -> Vec<ChunkIndex> {
    range.map(ChunkIndex).collect()
}

fn connect(path: &Path, name: &str) -> Client {
    let terms = LeaseTerms { name: name.to_owned(), min: Bytes::ZERO, max: Bytes::MAX };
    Client::connect(path, terms).unwrap()
}

fn wait(path: &Path, what: &str, is_so: impl Fn(&BrokerReport) -> bool) -> BrokerReport {
    let start = Instant::now();
    loop {
        let report = broker::report(path);
        match report {
            Ok(report) if is_so(&report) => return report,
            _ => assert!(start.elapsed() < LONG, "waited in vain for {what}: {report:?}"),
        }
    }
}

/// No test by itself: what a process runs that is to be killed. It works with its lease without end, so that
/// it may be cut off anywhere.
#[test]
fn holder() {
    let Some(path) = std::env::var_os(SOCKET) else { return };
    let client = connect(Path::new(&path), "holder");
    let (mut first, mut next) = (0, 8);
    client.reserve(&chunks(0..8)).unwrap();
    // Where the test reads, and nothing else writes.
    std::io::stderr().write_all(b"ready\n").unwrap();
    loop {
        if client.reserve(&chunks(next..next + 5)).is_ok() {
            next += 5;
        }
        client.free(&chunks(first..next - 8));
        first = next - 8;
    }
}

fn spawn_holder(path: &Path) -> Child {
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "holder", "--nocapture"])
        .env(SOCKET, path)
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut line = String::new();
    BufReader::new(child.stderr.take().unwrap()).read_line(&mut line).unwrap();
    assert_eq!(line, "ready\n");
    child
}

/// A supervisor that does not read what its children say.
#[test]
fn a_full_standard_error_stops_nothing() {
    let (_directory, path) = place();
    let (reader, writer) = std::io::pipe().unwrap();
    let mut full = writer.try_clone().unwrap();
    rustix::pipe::fcntl_setpipe_size(&full, 4096).unwrap();
    full.write_all(&[b'.'; 4096]).unwrap();
    let child = command(&path, &["--capacity", "1M"]).stderr(writer).spawn().unwrap();
    let broker = Broker { child, errors: Box::new(std::io::empty()), greeting: String::new() };

    wait(&path, "a broker that serves", |_| true);

    assert_eq!(broker.end(Signal::TERM).0, Some(143));
    drop(reader);
}

/// A broker that ends in a fault leaves VMs with leases as one that is killed does.
#[test]
fn a_broker_that_ends_in_a_fault_has_a_successor_with_a_grace_period() {
    for signal in [Signal::ABORT, Signal::SEGV, Signal::BUS] {
        let (_directory, path) = place();
        let mut broker = Broker::start(&path, &["--capacity", "1M"]);
        let client = connect(&path, "vm");
        client.reserve(&chunks(0..4)).unwrap();
        broker.signal(signal);
        broker.child.wait().unwrap();

        let start = Instant::now();
        let _successor = Broker::start(&path, &["--capacity", "1M"]);

        match connect(&path, "new").reserve(&chunks(0..1)) {
            Err(refused) => {
                let refused = refused.to_string();
                assert!(refused.contains("started again"), "{signal:?}: {refused}");
            }
            // The period is 2.5 s, which a busy machine may take.
            Ok(_) => assert!(start.elapsed() > Duration::from_secs(2), "{signal:?}"),
        }
    }
}

#[test]
fn clients_that_are_killed_leave_nothing() {
    let (_directory, path) = place();
    let _broker = Broker::start(&path, &["--capacity", "16M"]);

    for _ in 0..10 {
        let mut holders: Vec<Child> = (0..3).map(|_| spawn_holder(&path)).collect();
        let report = wait(&path, "three leases", |report| report.pool.leases.len() == 3);
        for holder in &holders {
            assert!(report.holders.iter().any(|known| known.pid == holder.id()));
        }
        holders.iter_mut().for_each(|holder| holder.kill().unwrap());
        for holder in &mut holders {
            holder.wait().unwrap();
        }

        let report = wait(&path, "an empty pool", |report| report.pool.leases.is_empty());
        assert_eq!((report.pool.chunks.reserved, report.pool.blocks.reserved), (0, 0));
        let counters = report.pool.counters;
        assert_eq!(counters.metadata_reserve_success, counters.metadata_reserve_free);
        assert_eq!((report.traffic.violations, report.traffic.foreign_frees), (0, 0));
    }
}

#[test]
fn a_broker_that_is_killed_is_replaced_and_told_what_its_vms_hold() {
    let (_directory, path) = place();
    let mut broker = Broker::start(&path, &["--capacity", "4M"]);
    let client = connect(&path, "vm");
    client.reserve(&chunks(0..40)).unwrap();

    for _ in 0..5 {
        let (status, _) = broker.end(Signal::KILL);
        assert_eq!(status, None);
        assert!(path.exists(), "it is not removed");
        broker = Broker::start(&path, &["--capacity", "4M"]);
        let report = wait(&path, "the VM", |report| {
            // As the VM's event loop does.
            client.handle_events(drop);
            report.pool.chunks.reserved == 40
        });
        assert_eq!(report.pool.leases.len(), 1);
    }

    // The new lease and what is reserved from it are the same VM's.
    // Until its own side has heard of it, too.
    while client.reserve(&chunks(40..41)).is_err() {}
    client.free(&chunks(40..41));
    wait(&path, "the free", |report| report.pool.chunks.reserved == 40);
}

#[test]
fn a_signal_ends_it_and_removes_its_socket() {
    for (signal, status) in [(Signal::TERM, 143), (Signal::INT, 130)] {
        let (_directory, path) = place();
        let broker = Broker::start(&path, &["--capacity", "4M"]);
        let _client = connect(&path, "vm");

        let (code, rest) = broker.end(signal);

        assert_eq!((code, rest.as_str()), (Some(status), ""));
        assert!(!path.exists());
    }
}

#[test]
fn it_says_what_it_has_and_who_says_so() {
    let (_directory, path) = place();
    let given = Broker::start(&path, &["--capacity", "4M"]);
    assert!(
        given.greeting.contains("4 MiB of tag storage (ledger; as given)"),
        "{}",
        given.greeting
    );
    drop(given);

    let auto = Broker::start(&path, &[]);
    assert!(auto.greeting.contains("(ledger; auto: "), "{}", auto.greeting);
}

#[test]
fn what_cannot_be_is_refused_with_what_to_do() {
    let (directory, path) = place();
    let cases: [(&[&str], i32, &str); 8] = [
        (&["--capacity", "0"], 78, "--capacity"),
        (&["--capacity", "63K"], 78, "--capacity"),
        (&["--capacity", "1024T"], 78, "--capacity"),
        (&["--capacity", "much"], 64, "--capacity"),
        (&["--supply", "node"], 64, "node:N"),
        (&["--supply", "node:4000000"], 69, "4000000"),
        (&["--lend", "eager", "--capacity", "4M"], 78, "--lend never"),
        (&["--lend", "sometimes"], 64, "last-resort"),
    ];
    for (options, status, hint) in cases {
        let (code, text) = refused(&path, options);
        assert_eq!(code, status, "{options:?}: {text}");
        assert!(text.contains(hint), "{options:?}: {text}");
        assert!(!path.exists());
    }
    let (code, text) = refused(&directory.path().join("no/where"), &["--capacity", "4M"]);
    assert_eq!(code, 73, "{text}");
}

#[test]
fn a_second_broker_names_the_first() {
    let (_directory, path) = place();
    let first = Broker::start(&path, &["--capacity", "4M"]);

    let (code, text) = refused(&path, &["--capacity", "4M"]);

    assert_eq!(code, 73);
    assert!(text.contains(&format!("process {}", first.child.id())), "{text}");
    connect(&path, "vm").reserve(&chunks(0..1)).unwrap();
}

#[test]
fn thousands_of_connections_are_served_and_more_are_told_so() {
    let (_directory, path) = place();
    let broker = Broker::start(&path, &["--capacity", "1G"]);
    let most = broker::report(&path).unwrap().traffic.connections_max as usize;
    // Four descriptors a client in this process.
    let room = rustix::process::getrlimit(rustix::process::Resource::Nofile);
    let wanted = (most + 100) as u64 * 4;
    if room.maximum.is_some_and(|maximum| maximum < wanted) {
        return testing::skip(testing::Means::Descriptors, format!("{wanted} are not allowed"));
    }
    let more = rustix::process::Rlimit { current: Some(wanted), maximum: room.maximum };
    rustix::process::setrlimit(rustix::process::Resource::Nofile, more).unwrap();

    let mut clients = Vec::new();
    let refusal = loop {
        let terms =
            LeaseTerms { name: "one of many".to_owned(), min: Bytes::ZERO, max: Bytes::MAX };
        match Client::connect(&path, terms) {
            Ok(client) => clients.push(client),
            Err(error) => break error.to_string(),
        }
        assert!(clients.len() <= most, "no end");
    };

    assert!(clients.len() >= most.min(4096), "{} of {most}", clients.len());
    assert!(refusal.contains("4096 leases") || refusal.contains("connections"), "{refusal}");
    clients[0].reserve(&chunks(0..1)).unwrap();
    clients[clients.len() - 1].reserve(&chunks(0..1)).unwrap();
    drop(clients);
    wait(&path, "an empty pool", |report| report.pool.leases.is_empty());
    drop(broker);
}

#[test]
fn a_service_manager_is_notified_when_clients_can_connect() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("broker");
    let notify = folder.path().join("notify");
    let manager = std::os::unix::net::UnixDatagram::bind(&notify).unwrap();
    manager.set_read_timeout(Some(LONG)).unwrap();

    let mut command = command(&path, &["--capacity", "1M"]);
    command.env("NOTIFY_SOCKET", &notify).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    let mut message = [0; 64];
    let length = manager.recv(&mut message);
    let report = broker::report(&path);
    child.kill().unwrap();
    child.wait().unwrap();

    assert_eq!(&message[..length.unwrap()], b"READY=1");
    report.unwrap();
}
