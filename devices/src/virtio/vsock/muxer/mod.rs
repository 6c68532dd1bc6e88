//! The connections of a device, between packets of the guest and streams of the host.

mod give;
mod receive;
mod streams;

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use super::connection::{Connection, State, Unsent};
use super::counters::{Counters, count};
use super::packet::Header;
use super::peers::{PeerId, Peers};

/// Most connections at a time: each has a descriptor of the host, of which a process has 1024 by default.
pub const MOST_CONNECTIONS: usize = 1023;

/// Most refusals that wait for room in the guest's buffers. Its packets are not taken beyond that (5.10.6.1.2).
const MOST_RESETS: usize = 256;

/// How long a connection from the host waits for the guest's driver, which comes up late in the boot of a guest.
pub const DRIVER_TIMEOUT: Duration = Duration::from_secs(300);
/// How long it waits for the guest's answer then, which the guest's kernel gives without asking a process.
pub const REQUEST_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a guest is waited for that does not close what the peer has.
pub const CLOSE_TIMEOUT: Duration = Duration::from_secs(10);
/// How long what the guest sent last waits for a peer that does not read.
pub const LINGER_TIMEOUT: Duration = Duration::from_secs(300);

/// The first port of the host from which connections come: above those that services have, as in Firecracker.
const FIRST_PORT: u32 = 1 << 30;
/// The last.
const LAST_PORT: u32 = u32::MAX >> 1;

/// What names a connection: there is no other address than these two.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
struct Key {
    guest_port: u32,
    host_port: u32,
}

/// A stream whose connection is over, but not what the guest sent on it.
#[derive(Debug)]
struct Lingering {
    unsent: Unsent,
    deadline: Duration,
}

/// The connections of a device.
#[derive(Debug)]
pub(super) struct Muxer<P> {
    cid: u64,
    peers: P,
    connections: BTreeMap<Key, Connection>,
    by_peer: BTreeMap<PeerId, Key>,
    lingering: BTreeMap<PeerId, Lingering>,
    /// Those that have something for the guest, in turn.
    due: VecDeque<Key>,
    /// Refusals of packets without a connection.
    resets: VecDeque<Header>,
    next_port: u32,
    /// No deadline is earlier.
    earliest: Option<Duration>,
    counters: Arc<Counters>,
}

impl<P: Peers> Muxer<P> {
    pub(super) fn new(cid: u32, peers: P) -> Self {
        Self {
            cid: cid.into(),
            peers,
            connections: BTreeMap::new(),
            by_peer: BTreeMap::new(),
            lingering: BTreeMap::new(),
            due: VecDeque::new(),
            resets: VecDeque::new(),
            next_port: FIRST_PORT,
            earliest: None,
            counters: Arc::default(),
        }
    }

    pub(super) fn cid(&self) -> u64 {
        self.cid
    }

    pub(super) fn peers(&self) -> &P {
        &self.peers
    }

    pub(super) fn peers_mut(&mut self) -> &mut P {
        &mut self.peers
    }

    pub(super) fn counters(&self) -> &Arc<Counters> {
        &self.counters
    }

    /// The next port that a connection from the host is seen to come from.
    pub(super) fn next_port(&self) -> u32 {
        self.next_port
    }

    /// Continues with that port, if it is one.
    pub(super) fn set_next_port(&mut self, port: u32) -> bool {
        let valid = (FIRST_PORT..=LAST_PORT).contains(&port);
        if valid {
            self.next_port = port;
        }
        valid
    }

    /// Whether the guest is to get a packet.
    pub(super) fn has_packets(&self) -> bool {
        !self.resets.is_empty() || !self.due.is_empty()
    }

    /// Whether packets of the guest can be taken, any of which may need an answer.
    pub(super) fn takes_packets(&self) -> bool {
        self.resets.len() < MOST_RESETS
    }

    /// A peer wants a connection to a port of the guest. Whether there is a place for it; if not, its stream is
    /// closed.
    pub(super) fn connect(&mut self, peer: PeerId, guest_port: u32) -> bool {
        if !self.has_place() {
            count(&self.counters.refused, 1);
            self.peers.close(peer);
            return false;
        }
        let key = Key { guest_port, host_port: self.allocate_port(guest_port) };
        let deadline = self.deadline(DRIVER_TIMEOUT);
        self.insert(key, peer, Connection::from_host(peer, deadline));
        true
    }

    /// A port that no connection to the same port of the guest has. There are fewer connections than ports.
    fn allocate_port(&mut self, guest_port: u32) -> u32 {
        loop {
            let host_port = self.next_port;
            self.next_port = if host_port == LAST_PORT { FIRST_PORT } else { host_port + 1 };
            if !self.connections.contains_key(&Key { guest_port, host_port }) {
                return host_port;
            }
        }
    }

    fn has_place(&self) -> bool {
        self.connections.len() + self.lingering.len() < MOST_CONNECTIONS
    }

    fn insert(&mut self, key: Key, peer: PeerId, connection: Connection) {
        self.connections.insert(key, connection);
        self.by_peer.insert(peer, key);
        self.schedule(key);
        self.gauge();
    }

    fn remove(&mut self, key: Key) {
        let removed = self.connections.remove(&key);
        if removed.is_some_and(|connection| connection.queued) {
            // Otherwise a guest that takes nothing would have the queue grow.
            self.due.retain(|due| *due != key);
        }
        self.gauge();
    }

    fn gauge(&self) {
        let there_are = self.connections.len() + self.lingering.len();
        self.counters.connections.store(there_are as u64, Ordering::Relaxed);
    }

    fn deadline(&mut self, after: Duration) -> Duration {
        let deadline = self.peers.now() + after;
        self.earliest = Some(self.earliest.map_or(deadline, |earliest| earliest.min(deadline)));
        deadline
    }

    /// When [`expire`](Self::expire) is to be called, at the latest.
    pub(super) fn next_deadline(&self) -> Option<Duration> {
        self.earliest
    }

    /// Gives up what has waited for too long.
    pub(super) fn expire(&mut self) {
        let now = self.peers.now();
        if self.earliest.is_none_or(|earliest| now < earliest) {
            return;
        }
        let late = |connection: &Connection| connection.deadline.is_some_and(|at| at <= now);
        let keys: Vec<(Key, State)> = (self.connections.iter())
            .filter(|(_, connection)| late(connection))
            .map(|(key, connection)| (*key, connection.state))
            .collect();
        for (key, state) in keys {
            if state == State::Requesting {
                count(&self.counters.refused, 1);
                self.close_peer(key);
                self.remove(key);
            } else {
                self.end(key);
            }
        }
        let streams = self.lingering.iter().filter(|(_, left)| left.deadline <= now);
        for peer in streams.map(|(peer, _)| *peer).collect::<Vec<_>>() {
            self.lingering.remove(&peer);
            self.peers.close(peer);
        }
        self.gauge();
        let deadlines = self.connections.values().filter_map(|connection| connection.deadline);
        self.earliest = deadlines.chain(self.lingering.values().map(|left| left.deadline)).min();
    }

    /// Forgets the guest's driver. Connections that it does not know of wait for the next one.
    pub(super) fn reset(&mut self) {
        self.resets.clear();
        self.due.clear();
        for key in self.connections.keys().copied().collect::<Vec<_>>() {
            let Some(connection) = self.connections.get_mut(&key) else { continue };
            connection.queued = false;
            if connection.state == State::Requesting {
                self.schedule(key);
                continue;
            }
            self.release_peer(key);
            self.connections.remove(&key);
        }
        self.gauge();
    }
}

#[cfg(test)]
impl<P> Muxer<P> {
    /// Fails when more is kept than may be, or the tables do not agree.
    pub(super) fn check_bounds(&self) {
        use super::connection::BUFFER;
        assert!(self.resets.len() <= MOST_RESETS);
        assert!(self.due.len() <= self.connections.len());
        for (peer, key) in &self.by_peer {
            assert_eq!(self.connections[key].peer, Some(*peer));
        }
        for connection in self.connections.values() {
            assert!(connection.unsent.bytes().len() <= BUFFER as usize);
            assert!(connection.peer.is_none_or(|peer| self.by_peer.contains_key(&peer)));
            assert!(!connection.is_due() || connection.queued);
        }
    }
}
