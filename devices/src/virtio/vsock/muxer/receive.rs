//! Packets of the guest.

use std::io;

use vm_memory::GuestMemory;

use super::{Key, Muxer};
use crate::virtio::vsock::connection::{Connection, State};
use crate::virtio::vsock::counters::count;
use crate::virtio::vsock::packet::{HOST_CID, Header, Operation, STREAM, Shutdown};
use crate::virtio::vsock::peers::Peers;
use crate::virtio::{Broken, Stream};

impl<P: Peers> Muxer<P> {
    /// Takes a packet; `data` is what comes behind its header.
    pub(in super::super) fn receive<M: GuestMemory>(
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
        connection.take_credit(header);
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
        connection.take_credit(header);
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
}
