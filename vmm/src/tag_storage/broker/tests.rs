//! Brokers and clients over real sockets.
#![allow(clippy::unwrap_used)]

use std::ops::Deref;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use arch::mte::geometry::Geometry;
use arch::units::Bytes;
use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};
use tempfile::TempDir;

use super::protocol::wire::{Open, Reply, Request, Role, Terms, VERSION};
use super::server::{Server, ServerResources};
use super::{BrokerEvent, BrokerReport, Client, Error};
use crate::sys::seqpacket;
use crate::tag_storage::broker::protocol::wire::BUFFER;
use crate::tag_storage::chunk::ChunkIndex;
use crate::tag_storage::pool::{LeaseTerms, Pool, SlotIndex};
use crate::tag_storage::supply::lend_policy::LendPolicy;
use crate::tag_storage::supply::{Ledger, SupplyName};

mod client;
mod hostile;
mod pressure;
mod recovery;
mod restart;

/// Longer than anything here takes on a machine that is not stuck.
const LONG: Duration = Duration::from_secs(60);

/// A broker in this process, with a pool of some chunks.
struct Broker {
    path: PathBuf,
    stop: OwnedFd,
    thread: Option<JoinHandle<()>>,
}

impl Broker {
    fn start(path: &Path, chunks: u64) -> Self {
        Self::with_places(path, chunks, 64)
    }

    fn with_places(path: &Path, chunks: u64, places: usize) -> Self {
        Self::serve(Server::with_places(path, server_resources(chunks), places).unwrap(), path)
    }

    fn serve(mut server: Server, path: &Path) -> Self {
        let stop = eventfd(0, EventfdFlags::CLOEXEC).unwrap();
        let stopped = stop.try_clone().unwrap();
        let thread = std::thread::spawn(move || server.serve_until(&stopped).unwrap());
        Self { path: path.to_owned(), stop, thread: Some(thread) }
    }

    fn report(&self) -> BrokerReport {
        super::report(&self.path).unwrap()
    }

    /// Waits until as many chunks are reserved.
    fn wait_reserved(&self, chunks: u32) {
        self.wait("reserved chunks", |report| report.pool.chunks.reserved == chunks);
    }

    fn wait(&self, what: &str, is_so: impl Fn(&BrokerReport) -> bool) {
        until(what, || is_so(&self.report()));
    }
}

impl Drop for Broker {
    fn drop(&mut self) {
        rustix::io::write(&self.stop, &1u64.to_ne_bytes()).unwrap();
        self.thread.take().unwrap().join().unwrap();
    }
}

fn server_resources(chunks: u64) -> ServerResources {
    let geometry = Geometry::new(Bytes::kib(4), Bytes::kib(4)).unwrap();
    let capacity = Bytes::kib(64 * chunks);
    let pool = Pool::new(geometry, capacity, Box::new(Ledger)).unwrap();
    let terms = Terms { supply: SupplyName::Ledger, lend: LendPolicy::Never, capacity };
    ServerResources { pool, terms, capacity_source: "as given".to_owned(), node: None }
}

fn until(what: &str, mut is_so: impl FnMut() -> bool) {
    let start = Instant::now();
    while !is_so() {
        assert!(start.elapsed() < LONG, "waited in vain for {what}");
        std::thread::yield_now();
    }
}

fn terms(name: &str) -> LeaseTerms {
    LeaseTerms { name: name.to_owned(), min: Bytes::ZERO, max: Bytes::MAX }
}

/// A client whose chunks come one after the other.
struct Vm {
    client: Client,
    next: AtomicU64,
}

impl Vm {
    fn of(client: Client) -> Self {
        Self { client, next: AtomicU64::new(0) }
    }

    fn reserve(&self, count: u64) -> Result<Vec<ChunkIndex>, Error> {
        let first = self.next.fetch_add(count, Ordering::Relaxed);
        let chunks: Vec<ChunkIndex> = (first..first + count).map(ChunkIndex).collect();
        self.client.reserve(&chunks).map(|()| chunks)
    }

    fn free(&self, chunk: ChunkIndex) {
        self.client.free(&[chunk]);
    }
}

impl Deref for Vm {
    type Target = Client;

    fn deref(&self) -> &Client {
        &self.client
    }
}

fn connect(path: &Path, name: &str) -> Vm {
    Vm::of(Client::connect(path, terms(name)).unwrap())
}

/// Waits for the next events of a client.
fn next_events(client: &Client) -> Vec<BrokerEvent> {
    let mut fds = [PollFd::new(client, PollFlags::IN)];
    let limit = Timespec { tv_sec: LONG.as_secs() as i64, tv_nsec: 0 };
    assert_eq!(poll(&mut fds, Some(&limit)).unwrap(), 1, "no event");
    let mut heard = Vec::new();
    client.handle_events(|what| heard.push(what));
    heard
}

/// Waits until a client gets this event.
fn wait_for_event(client: &Client, expected: impl Fn(BrokerEvent) -> bool) {
    until("a notice", || next_events(client).into_iter().any(&expected));
}

/// A connection that says whatever a test wants.
struct Raw(OwnedFd);

impl Raw {
    fn connect(path: &Path) -> Self {
        Self(seqpacket::connect(path, LONG).unwrap())
    }

    fn open(path: &Path) -> Self {
        let raw = Self::connect(path);
        raw.say(&opening("raw"));
        assert!(matches!(raw.receive(), Some(Reply::Opened(_))));
        raw
    }

    fn say(&self, request: &Request) {
        seqpacket::send(&self.0, &request.encode()).unwrap();
    }

    /// The next answer; none when the broker has hung up.
    fn receive(&self) -> Option<Reply> {
        let mut buffer = [0; BUFFER];
        let message = seqpacket::receive(&self.0, &mut buffer).unwrap()?;
        Some(Reply::decode(message).unwrap())
    }

    fn reserve(&self, chunks: u32) -> Vec<SlotIndex> {
        self.say(&Request::Reserve { chunks, least: chunks });
        let mut all = Vec::new();
        loop {
            let Some(Reply::Reserved { left, slots }) = self.receive() else { panic!("refused") };
            all.extend(slots);
            if left == 0 {
                return all;
            }
        }
    }
}

fn opening(name: &str) -> Request {
    let (role, returning) = (Role::Holder, false);
    Request::Open(Open { version: VERSION, role, returning, terms: terms(name) })
}

fn place() -> (TempDir, PathBuf) {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("broker");
    (directory, path)
}
