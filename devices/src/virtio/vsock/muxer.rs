//! The connections of a device, between packets of the guest and streams of the host.

use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use vm_memory::GuestMemory;

use super::connection::{Connection, State, Unsent};
use super::counters::{Counters, count};
use super::packet::{HEADER, HOST_CID, Header, MOST_DATA, Operation, STREAM, Shutdown};
use super::peers::{PeerId, Peers, Readiness};
use crate::virtio::{Broken, Stream};

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

    /// Goes on with that port, if it is one.
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

    // Connections from the host.

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

    // What the host's streams do.

    /// Something has happened to a stream.
    pub(super) fn on_peer(&mut self, peer: PeerId, news: Readiness) {
        if self.lingering.contains_key(&peer) {
            return self.on_lingering(peer, news);
        }
        let Some(&key) = self.by_peer.get(&peer) else { return };
        let Some(connection) = self.connections.get_mut(&key) else { return };
        connection.note(news);
        match connection.state {
            // It has not waited for the answer.
            State::Requesting if news.gone => {
                self.close_peer(key);
                self.remove(key);
                count(&self.counters.refused, 1);
                return;
            }
            State::Requested if news.gone => self.end(key),
            State::Open => {
                if news.writable {
                    self.flush(key);
                }
                if news.gone {
                    self.deafen(key);
                    self.finish_if_abandoned(key);
                }
            }
            _ => {}
        }
        self.schedule(key);
    }

    fn on_lingering(&mut self, peer: PeerId, news: Readiness) {
        let deadline = self.deadline(LINGER_TIMEOUT);
        let Some(left) = self.lingering.get_mut(&peer) else { return };
        let before = left.unsent.bytes().len();
        let flushed = flush(&mut self.peers, peer, &mut left.unsent);
        if left.unsent.bytes().len() < before {
            left.deadline = deadline;
        }
        if news.gone || flushed.is_err() || left.unsent.is_empty() {
            self.lingering.remove(&peer);
            self.peers.close(peer);
            self.gauge();
        }
    }

    /// Writes what the peer did not take before.
    fn flush(&mut self, key: Key) {
        let Some(connection) = self.connections.get_mut(&key) else { return };
        let Some(peer) = connection.peer else { return };
        if connection.unsent.is_empty() {
            return;
        }
        let before = connection.unsent.bytes().len();
        let flushed = flush(&mut self.peers, peer, &mut connection.unsent);
        // At most BUFFER.
        connection.forward((before - connection.unsent.bytes().len()) as u32);
        if flushed.is_err() {
            return self.deafen(key);
        }
        if connection.unsent.is_empty() {
            self.peers.want_room(peer, false);
            if connection.guest.contains(Shutdown::SEND) {
                self.peers.end_writes(peer);
            }
        }
    }

    /// The peer takes nothing more.
    fn deafen(&mut self, key: Key) {
        let Some(connection) = self.connections.get_mut(&key) else { return };
        let waits = !connection.unsent.is_empty();
        connection.deafen();
        if let Some(peer) = connection.peer
            && waits
        {
            self.peers.want_room(peer, false);
        }
        self.close_if_through(key);
    }

    /// The peer sends nothing more, and all that it sent has been read.
    fn finish_reading(&mut self, key: Key) {
        let Some(connection) = self.connections.get_mut(&key) else { return };
        connection.readable = false;
        connection.host.add(Shutdown::SEND);
        self.close_if_through(key);
    }

    fn finish_if_abandoned(&mut self, key: Key) {
        if self.connections.get(&key).is_some_and(Connection::is_abandoned) {
            self.finish_reading(key);
        }
    }

    fn close_if_through(&mut self, key: Key) {
        let through = |connection: &Connection| connection.host == Shutdown::BOTH;
        if self.connections.get(&key).is_some_and(through) {
            self.close_peer(key);
        }
    }

    fn close_peer(&mut self, key: Key) {
        let Some(connection) = self.connections.get_mut(&key) else { return };
        if let Some(peer) = connection.peer.take() {
            self.by_peer.remove(&peer);
            self.peers.close(peer);
        }
    }

    /// Lets go of the stream, once it has what the guest sent.
    fn release_peer(&mut self, key: Key) {
        let deadline = self.deadline(LINGER_TIMEOUT);
        let Some(connection) = self.connections.get_mut(&key) else { return };
        if connection.unsent.is_empty() {
            return self.close_peer(key);
        }
        if let Some(peer) = connection.peer.take() {
            let unsent = std::mem::take(&mut connection.unsent);
            self.by_peer.remove(&peer);
            self.lingering.insert(peer, Lingering { unsent, deadline });
        }
    }

    /// Ends a connection for a fault or a timeout: the guest gets RST.
    fn end(&mut self, key: Key) {
        self.close_peer(key);
        if let Some(connection) = self.connections.get_mut(&key) {
            let refused = connection.state == State::Requested;
            connection.end();
            count(if refused { &self.counters.refused } else { &self.counters.resets }, 1);
        }
        self.schedule(key);
    }

    fn schedule(&mut self, key: Key) {
        if let Some(connection) = self.connections.get_mut(&key)
            && connection.is_due()
            && !std::mem::replace(&mut connection.queued, true)
        {
            self.due.push_back(key);
        }
    }

    // Packets of the guest.

    /// Takes a packet; `data` is what comes behind its header.
    pub(super) fn receive<M: GuestMemory>(
        &mut self,
        header: &Header,
        data: Stream,
        memory: &M,
    ) -> Result<(), Broken> {
        // There is one guest on this side and one host on the other (5.10.6.4.1).
        if header.source_cid != self.cid || header.target_cid != HOST_CID {
            count(&self.counters.dropped, 1);
            return Ok(());
        }
        if header.kind != STREAM {
            self.refuse(header);
            return Ok(());
        }
        let key = Key { guest_port: header.source_port, host_port: header.target_port };
        let Some(connection) = self.connections.get_mut(&key) else {
            match header.operation {
                Operation::Request => self.request(key, header),
                _ => self.refuse(header),
            }
            return Ok(());
        };
        connection.hear(header);
        use Operation as Is;
        match (header.operation, connection.state) {
            (Is::Reset, state) => self.reset_by_guest(key, state),
            // RST is on its way.
            (_, State::Ended) => {}
            (Is::Response, State::Requested) => self.accept(key),
            (Is::Data, State::Open) => self.take_data(key, header.length, data, memory)?,
            // The guest did not know yet that the peer is gone.
            (Is::Data, State::Closing) => count(&self.counters.dropped, 1),
            (Is::Shutdown, State::Open | State::Closing) => {
                self.shut_down(key, Shutdown::of(header.flags));
            }
            (Is::CreditRequest, State::Open | State::Closing) => connection.owe_credit(),
            (Is::CreditUpdate | Is::CreditRequest, _) => {}
            _ => self.end(key),
        }
        self.schedule(key);
        Ok(())
    }

    fn refuse(&mut self, header: &Header) {
        count(&self.counters.dropped, 1);
        if let Some(reset) = header.reset() {
            self.resets.push_back(reset);
        }
    }

    /// The guest wants a connection.
    fn request(&mut self, key: Key, header: &Header) {
        let place = self.has_place();
        let connected = place.then(|| self.peers.connect(key.host_port).ok()).flatten();
        let Some(peer) = connected else {
            count(&self.counters.refused, 1);
            self.resets.extend(header.reset());
            return;
        };
        let mut connection = Connection::from_guest(peer);
        connection.hear(header);
        count(&self.counters.from_guest, 1);
        self.insert(key, peer, connection);
    }

    /// The guest has accepted what a peer wanted.
    fn accept(&mut self, key: Key) {
        let Some(connection) = self.connections.get_mut(&key) else { return };
        let Some(peer) = connection.peer else { return };
        if self.peers.accepted(peer, key.host_port).is_err() {
            return self.end(key);
        }
        connection.open();
        count(&self.counters.from_host, 1);
    }

    fn reset_by_guest(&mut self, key: Key, state: State) {
        match state {
            State::Requested | State::Requesting => {
                count(&self.counters.refused, 1);
                self.close_peer(key);
            }
            _ => self.release_peer(key),
        }
        self.remove(key);
    }

    /// The guest sends no more, takes no more, or both.
    fn shut_down(&mut self, key: Key, flags: Shutdown) {
        let Some(connection) = self.connections.get_mut(&key) else { return };
        connection.guest.add(flags);
        if connection.guest == Shutdown::BOTH {
            self.release_peer(key);
            if let Some(connection) = self.connections.get_mut(&key) {
                connection.end();
            }
            return;
        }
        let Some(peer) = connection.peer else { return };
        if flags.contains(Shutdown::RECEIVE) {
            connection.readable = false;
            self.peers.end_reads(peer);
        }
        if flags.contains(Shutdown::SEND) && connection.unsent.is_empty() {
            self.peers.end_writes(peer);
        }
        self.finish_if_abandoned(key);
    }

    /// Data goes to the stream at once; what that does not take is kept, within the guest's credit.
    fn take_data<M: GuestMemory>(
        &mut self,
        key: Key,
        length: u32,
        mut data: Stream,
        memory: &M,
    ) -> Result<(), Broken> {
        let Some(connection) = self.connections.get_mut(&key) else { return Ok(()) };
        let Some(peer) = connection.peer else { return Ok(()) };
        let whole = u64::from(length) <= data.len();
        if !whole || connection.guest.contains(Shutdown::SEND) || !connection.receive(length) {
            count(&self.counters.dropped, 1);
            self.end(key);
            return Ok(());
        }
        count(&self.counters.to_host, length.into());
        if connection.host.contains(Shutdown::RECEIVE) {
            connection.forward(length);
            return Ok(());
        }
        let mut data = data.split_off_front(length.into());
        if connection.unsent.is_empty() && length > 0 {
            let written = match self.peers.write(peer, &data.slices(memory)?) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => 0,
                Err(_) => {
                    self.deafen(key);
                    return Ok(());
                }
                // A port that says more is not believed.
                Ok(written) => length.min(written.try_into().unwrap_or(length)),
            };
            connection.forward(written);
            let _ = data.split_off_front(written.into());
        }
        if !data.is_empty() {
            let first = connection.unsent.is_empty();
            // Not more than `length`.
            data.clone().read(memory, connection.unsent.grow(data.len() as usize))?;
            if first {
                self.peers.want_room(peer, true);
            }
        }
        Ok(())
    }

    // Packets for the guest.

    /// Puts the next packet into a buffer of the guest. How long it is; `None` when there is none.
    pub(super) fn give<M: GuestMemory>(
        &mut self,
        buffer: &Stream,
        memory: &M,
    ) -> Result<Option<u32>, Broken> {
        let mut data = buffer.clone();
        let mut head = data.split_off_front(HEADER as u64);
        let (header, length) = loop {
            if let Some(reset) = self.resets.pop_front() {
                break (reset, 0);
            }
            let Some(key) = self.due.pop_front() else { return Ok(None) };
            let Some(connection) = self.connections.get_mut(&key) else { continue };
            connection.queued = false;
            let packet = match connection.next_control() {
                Some(control) => {
                    Some((self.after_control(key, control.operation), control.flags, 0))
                }
                None if connection.has_data() => {
                    let length = self.read_data(key, &data, memory)?;
                    length.map(|length| (Operation::Data, 0, length))
                }
                None => None,
            };
            let header = packet.map(|(operation, flags, length)| {
                (self.header(key, operation, flags, length), length)
            });
            if let Some((Header { operation: Operation::Reset, .. }, _)) = header {
                self.remove(key);
            }
            self.schedule(key);
            if let Some(header) = header {
                break header;
            }
        };
        head.write(memory, &header.to_bytes())?;
        Ok(Some(HEADER as u32 + length))
    }

    /// Starts the time in which the guest is to answer.
    fn after_control(&mut self, key: Key, operation: Operation) -> Operation {
        let state = self.connections.get(&key).map(|connection| connection.state);
        let after = match (operation, state) {
            (Operation::Request, _) => REQUEST_TIMEOUT,
            (Operation::Shutdown, Some(State::Closing)) => CLOSE_TIMEOUT,
            _ => return operation,
        };
        let deadline = self.deadline(after);
        if let Some(connection) = self.connections.get_mut(&key) {
            connection.deadline = Some(deadline);
        }
        operation
    }

    /// Reads data of a stream into a buffer of the guest; how much, if there is any.
    fn read_data<M: GuestMemory>(
        &mut self,
        key: Key,
        buffer: &Stream,
        memory: &M,
    ) -> Result<Option<u32>, Broken> {
        let Some(connection) = self.connections.get_mut(&key) else { return Ok(None) };
        let Some(peer) = connection.peer else { return Ok(None) };
        let most = connection.guest_room().min(MOST_DATA);
        let buffer = buffer.clone().split_off_front(most.into());
        // Not more than `most`.
        let room = buffer.len() as u32;
        match self.peers.read(peer, &buffer.slices(memory)?) {
            Ok(0) => self.finish_reading(key),
            Ok(length) => {
                let length = room.min(length.try_into().unwrap_or(room));
                connection.read(length, room);
                count(&self.counters.to_guest, length.into());
                return Ok(Some(length));
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => connection.readable = false,
            // The peer closed the stream before it had read all.
            Err(_) => {
                self.deafen(key);
                self.finish_reading(key);
            }
        }
        Ok(None)
    }

    fn header(&mut self, key: Key, operation: Operation, flags: u32, length: u32) -> Header {
        let credit = self.connections.get_mut(&key).map(Connection::announce);
        let (buffer, forwarded) = credit.unwrap_or_default();
        Header {
            source_cid: HOST_CID,
            target_cid: self.cid,
            source_port: key.host_port,
            target_port: key.guest_port,
            length,
            kind: STREAM,
            operation,
            flags,
            buffer,
            forwarded,
        }
    }

    // Time, and the end.

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

    /// Forgets the guest's driver. Connections that it has not heard of wait for the next one.
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

/// Writes what it can of this; an error is one of the stream.
fn flush<P: Peers>(peers: &mut P, peer: PeerId, unsent: &mut Unsent) -> io::Result<()> {
    while !unsent.is_empty() {
        match peers.write_bytes(peer, unsent.bytes()) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(written) => unsent.consume(written),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
            Err(error) => return Err(error),
        }
    }
    Ok(())
}
