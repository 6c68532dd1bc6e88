//! `tesseractl pool` as its users see it, against a broker in this process.
#![allow(clippy::unwrap_used)]

use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::thread::JoinHandle;

use arch::units::Bytes;
use rustix::event::{EventfdFlags, eventfd};
use serde_json::Value;
use tempfile::TempDir;
use vmm::tag_storage::broker::{Client, Server, ServerResources, Terms};
use vmm::tag_storage::{ChunkIndex, Geometry, LeaseTerms, Ledger, LendPolicy, Pool, SupplyName};

/// A broker of 4 MiB of tag storage.
struct Broker {
    stop: OwnedFd,
    thread: Option<JoinHandle<()>>,
}

impl Broker {
    fn start(path: &Path) -> Self {
        let capacity = Bytes::mib(4);
        let geometry = Geometry::new(Bytes::kib(4), Bytes::kib(4)).unwrap();
        let resources = ServerResources {
            pool: Pool::new(geometry, capacity, Box::new(Ledger)).unwrap(),
            terms: Terms { supply: SupplyName::Ledger, lend: LendPolicy::Never, capacity },
            capacity_source: "as given".to_owned(),
            node: None,
        };
        let mut server = Server::bind(path, resources).unwrap();
        let stop = eventfd(0, EventfdFlags::CLOEXEC).unwrap();
        let stopped = stop.try_clone().unwrap();
        let thread = std::thread::spawn(move || server.serve_until(&stopped).unwrap());
        Self { stop, thread: Some(thread) }
    }
}

impl Drop for Broker {
    fn drop(&mut self) {
        rustix::io::write(&self.stop, &1u64.to_ne_bytes()).unwrap();
        self.thread.take().unwrap().join().unwrap();
    }
}

fn tesseractl(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_tesseractl")).args(arguments).output().unwrap()
}

fn place() -> (TempDir, PathBuf) {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("broker");
    (directory, path)
}

#[test]
fn blocks_and_leases_are_a_table_or_json_or_prometheus_text() {
    let (_directory, path) = place();
    let _broker = Broker::start(&path);
    let terms = LeaseTerms { name: "shown".to_owned(), min: Bytes::ZERO, max: Bytes::MAX };
    let client = Client::connect(&path, terms).unwrap();
    client.reserve(&[0, 1, 2].map(ChunkIndex)).unwrap();
    let socket = path.to_str().unwrap();

    let table = tesseractl(&["pool", "--broker", socket]);
    let text = String::from_utf8(table.stdout).unwrap();
    assert_eq!(table.status.code(), Some(0));
    assert!(text.contains("4 MiB of tag storage (ledger, as given), lending never"), "{text}");
    let pid = std::process::id().to_string();
    let line = text.lines().find(|line| line.starts_with("shown")).unwrap();
    let columns: Vec<_> = line.split_whitespace().collect();
    assert_eq!(columns, ["shown", &pid, "3", "192", "KiB", "0", "B", "all"]);

    let json = tesseractl(&["pool", "--broker", socket, "--json"]);
    let report: Value = serde_json::from_slice(&json.stdout).unwrap();
    assert_eq!(report["pool"]["supply"], "ledger");
    assert_eq!(report["pool"]["leases"][0]["chunks"], 3);

    let prometheus = tesseractl(&["pool", "--broker", socket, "--prometheus"]);
    let text = String::from_utf8(prometheus.stdout).unwrap();
    let line = text.lines().find(|line| line.starts_with("tessera_lease_reserved_bytes")).unwrap();
    assert!(line.contains("supply=\"ledger\"") && line.ends_with(" 196608"), "{line}");
}

#[test]
fn a_missing_broker_says_what_to_start() {
    let (_directory, path) = place();
    let socket = path.to_str().unwrap();

    let missing = tesseractl(&["pool", "--broker", socket]);
    assert_eq!(missing.status.code(), Some(69));
    assert!(String::from_utf8_lossy(&missing.stderr).contains("tessera broker"));

    assert_eq!(tesseractl(&["status"]).status.code(), Some(64));
    assert_eq!(tesseractl(&["pool", "vm.sock", "--broker", socket]).status.code(), Some(64));
}
