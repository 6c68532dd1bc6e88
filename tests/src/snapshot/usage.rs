//! What processes have of a host.

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use crate::broker::Broker;
use crate::process::processes;
use crate::procfs::first_number;
use crate::scratch::Scratch;
use crate::wait::PATIENCE;

/// Between two looks.
const PAUSE: Duration = Duration::from_millis(100);
/// Files that the kernel has not closed yet, or counts in batches.
const FILES: u64 = 64;
const SOCKETS: u64 = 2;
/// KiB of shared memory that processors have aside.
const SHARED: u64 = 1 << 10;

/// What may be left of processes that were killed.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) struct Usage {
    /// Processes of the VMM but the broker, and of its client.
    pub(super) processes: Vec<u32>,
    /// Threads of the broker.
    threads: u64,
    /// Descriptors of the broker.
    descriptors: usize,
    /// Descriptors of memory files, of any process.
    memfds: usize,
    pub(super) leases: usize,
    reserved: u64,
    /// Snapshots, and runtime files.
    names: Vec<String>,
    /// Open files of the host.
    files: u64,
    sockets: u64,
    /// Of shared memory, in KiB: memory files that nothing has open any more are gone from it.
    shared: u64,
}

/// The columns of [`Usage::row`].
pub(super) const COLUMNS: &str =
    "processes threads descriptors memfds leases files | of the host: files sockets shared KiB";

impl Usage {
    pub(super) fn of(broker: &Broker, folders: [&Scratch; 2]) -> Self {
        let process = format!("/proc/{}", broker.pid());
        // Before it is asked, which makes a thread and a connection.
        let threads = first_number(&format!("{process}/status"), "Threads:");
        let descriptors = links(Path::new(&process)).len();
        let report = broker.report();
        let vms = processes("tessera").into_iter().filter(|pid| *pid != broker.pid());
        Self {
            processes: vms.chain(processes("tesseractl")).collect(),
            threads,
            descriptors,
            memfds: memfds(),
            leases: report.pool.leases.len(),
            reserved: report.pool.chunks.reserved.into(),
            names: folders.into_iter().flat_map(|folder| below(folder.path())).collect(),
            files: first_number("/proc/sys/fs/file-nr", ""),
            sockets: first_number("/proc/net/sockstat", "sockets: used"),
            shared: first_number("/proc/meminfo", "Shmem:"),
        }
    }

    /// Waits until a host has no more than it had, and returns what it has.
    ///
    /// # Panics
    /// When it has more for long, naming what.
    pub(super) fn wait_until_as(&self, now: impl Fn() -> Self) -> Self {
        let start = Instant::now();
        loop {
            let now = now();
            if now.is_no_more_than(self) {
                return now;
            }
            assert!(start.elapsed() < PATIENCE, "a host has\n{now:?}\nand had\n{self:?}");
            std::thread::sleep(PAUSE);
        }
    }

    fn is_no_more_than(&self, before: &Self) -> bool {
        let Self { files, sockets, shared, threads, descriptors, .. } = *before;
        // The broker may or may not have seen yet that what it was asked by has gone.
        let same = Self { files, sockets, shared, threads, descriptors, ..self.clone() } == *before;
        same && self.threads <= threads
            && self.descriptors <= descriptors
            && self.files <= files + FILES
            && self.sockets <= sockets + SOCKETS
            && self.shared <= shared + SHARED
    }

    /// It as a row of a table.
    pub(super) fn row(&self) -> String {
        let Self { processes, threads, descriptors, memfds, leases, names, .. } = self;
        let Self { files, sockets, shared, .. } = self;
        let (processes, names) = (processes.len(), names.len());
        format!(
            "{processes:9} {threads:7} {descriptors:11} {memfds:6} {leases:6} {names:5} | {files:18} {sockets:7} {shared:10}"
        )
    }
}

/// What the descriptors of a process are of, by its folder in /proc.
fn links(process: &Path) -> Vec<String> {
    let entries = fs::read_dir(process.join("fd")).into_iter().flatten().flatten();
    let links = entries.filter_map(|entry| fs::read_link(entry.path()).ok());
    links.map(|link| link.to_string_lossy().into_owned()).collect()
}

fn memfds() -> usize {
    let entries = fs::read_dir("/proc").unwrap().flatten();
    let links = entries.flat_map(|entry| links(&entry.path()));
    links.filter(|link| link.starts_with("/memfd:")).count()
}

/// The files below a folder, in order.
fn below(folder: &Path) -> Vec<String> {
    let mut names = Vec::new();
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        match entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            true => names.extend(below(&entry.path())),
            false => names.push(entry.path().to_string_lossy().into_owned()),
        }
    }
    names.sort();
    names
}
