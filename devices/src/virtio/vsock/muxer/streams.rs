//! What the streams of the host do, and how they end.

use std::io;

use super::{Key, LINGER_TIMEOUT, Lingering, Muxer};
use crate::virtio::vsock::connection::{Connection, State, Unsent};
use crate::virtio::vsock::counters::count;
use crate::virtio::vsock::packet::Shutdown;
use crate::virtio::vsock::peers::{PeerId, Peers, Readiness};

impl<P: Peers> Muxer<P> {
    /// Something has happened to a stream.
    pub(in super::super) fn on_peer(&mut self, peer: PeerId, news: Readiness) {
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
    pub(super) fn deafen(&mut self, key: Key) {
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
    pub(super) fn finish_reading(&mut self, key: Key) {
        let Some(connection) = self.connections.get_mut(&key) else { return };
        connection.readable = false;
        connection.host.add(Shutdown::SEND);
        self.close_if_through(key);
    }

    pub(super) fn finish_if_abandoned(&mut self, key: Key) {
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

    pub(super) fn close_peer(&mut self, key: Key) {
        let Some(connection) = self.connections.get_mut(&key) else { return };
        if let Some(peer) = connection.peer.take() {
            self.by_peer.remove(&peer);
            self.peers.close(peer);
        }
    }

    /// Closes the stream once it has what the guest sent.
    pub(super) fn release_peer(&mut self, key: Key) {
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
    pub(super) fn end(&mut self, key: Key) {
        self.close_peer(key);
        if let Some(connection) = self.connections.get_mut(&key) {
            let refused = connection.state == State::Requested;
            connection.end();
            count(if refused { &self.counters.refused } else { &self.counters.resets }, 1);
        }
        self.schedule(key);
    }

    pub(super) fn schedule(&mut self, key: Key) {
        if let Some(connection) = self.connections.get_mut(&key)
            && connection.is_due()
            && !std::mem::replace(&mut connection.queued, true)
        {
            self.due.push_back(key);
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
