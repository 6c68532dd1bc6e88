//! `tesseractl pool` and `fleet` as their users see them, against a broker in this process and stand-ins of Slurm's programs.
#![allow(clippy::unwrap_used)]

use std::fs;
use std::os::fd::OwnedFd;
use std::os::unix::fs::PermissionsExt;
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

/// A program of Slurm's that writes its words down and does what the script says.
fn stand_in(directory: &TempDir, name: &str, script: &str) {
    let path = directory.path().join(name);
    let log = directory.path().join("calls");
    let text = format!("#!/bin/sh\necho \"{name} $*\" >>'{}'\n{script}\n", log.display());
    fs::write(&path, text).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
}

fn calls(directory: &TempDir) -> String {
    fs::read_to_string(directory.path().join("calls")).unwrap_or_default()
}

#[test]
fn a_pool_is_a_generic_resource_whose_count_is_updated_where_it_differs() {
    let (directory, path) = place();
    let _broker = Broker::start(&path);
    let socket = path.to_str().unwrap();
    let gres = |more: &[&str]| {
        tesseractl(&[&["fleet", "gres", "--broker", socket, "--node", "n1"][..], more].concat())
    };

    assert_eq!(gres(&[]).stdout, b"Gres=tagmib:4\n");
    let line = gres(&["--gres-conf"]).stdout;
    assert_eq!(line, b"NodeName=n1 Name=tagmib Count=4 Flags=CountOnly\n");

    let scontrol = directory.path().join("scontrol");
    let update = ["--update", "--scontrol", scontrol.to_str().unwrap()];
    stand_in(&directory, "scontrol", "echo 'NodeName=n1 Gres=gpu:1(S:0-1),tagmib:7 State=IDLE'");
    assert_eq!(gres(&update).stdout, b"n1: Gres=tagmib:4, updated\n");
    assert!(
        calls(&directory).ends_with("scontrol update NodeName=n1 Gres=gpu:1,tagmib:4\n"),
        "{}",
        calls(&directory)
    );

    fs::remove_file(directory.path().join("calls")).unwrap();
    stand_in(&directory, "scontrol", "echo 'NodeName=n1 Gres=tagmib:4 State=IDLE'");
    assert_eq!(gres(&update).stdout, b"n1: Gres=tagmib:4, as it was\n");
    assert_eq!(calls(&directory), "scontrol --oneliner --details show node n1\n");

    stand_in(
        &directory,
        "scontrol",
        "echo 'NodeName=n1 Gres=tagmib:7 GresUsed=tagmib:2 State=IDLE'",
    );
    let refused = gres(&update);
    assert_eq!(refused.status.code(), Some(1));
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(said.contains("Slurm counts 7, and jobs use it"), "{said}");
    assert!(!calls(&directory).contains("scontrol update"), "{}", calls(&directory));

    stand_in(&directory, "scontrol", "echo 'Node n1 not found' >&2; exit 1");
    let refused = gres(&update);
    assert_eq!(refused.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&refused.stderr).contains("Node n1 not found"));

    let list = ["fleet", "gres", "--broker", socket, "--node", "n[1-3]"];
    assert_eq!(tesseractl(&list).status.code(), Some(64));
}

#[test]
fn a_job_is_submitted_and_followed_to_its_end() {
    let (directory, _) = place();
    stand_in(&directory, "sbatch", "echo '7;cluster'");
    // Waits at the first look, and has ended at the second.
    let states = "test -e \"$0.seen\" || { touch \"$0.seen\"; echo 'JobState=PENDING Reason=Resources'; exit; }\n\
                  echo 'JobState=FAILED Reason=NonZeroExitCode ExitCode=11:0 BatchHost=n2'";
    stand_in(&directory, "scontrol", states);

    let output = Command::new(env!("CARGO_BIN_EXE_tesseractl"))
        .args(["fleet", "run", "--gres", "tagmib:2", "--mem", "256M", "--sbatch=--nodelist=n2"])
        .args(["--script", "vm.job", "--", "tessera", "--kernel", "Image"])
        .env("PATH", format!("{}:/usr/bin:/bin", directory.path().display()))
        .output()
        .unwrap();

    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(11), "{said}");
    assert!(said.contains("job 7: pending (Resources)"), "{said}");
    let end = "job 7: failed on n2 (NonZeroExitCode), exit status 11\n";
    assert_eq!(String::from_utf8_lossy(&output.stdout), end);
    let submitted =
        "sbatch --parsable --gres=tagmib:2 --mem=256M --nodelist=n2 vm.job --kernel Image\n";
    assert!(calls(&directory).starts_with(submitted), "{}", calls(&directory));
}
