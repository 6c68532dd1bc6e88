//! Packets for the guest.

use std::io;

use vm_memory::GuestMemory;

use super::{CLOSE_TIMEOUT, Key, Muxer, REQUEST_TIMEOUT};
use crate::virtio::vsock::connection::{Connection, State};
use crate::virtio::vsock::counters::count;
use crate::virtio::vsock::packet::{HEADER, HOST_CID, Header, MOST_DATA, Operation, STREAM};
use crate::virtio::vsock::peers::Peers;
use crate::virtio::{Broken, Stream};

impl<P: Peers> Muxer<P> {
    /// Puts the next packet into a buffer of the guest. How long it is; `None` when there is none.
    pub(in super::super) fn give<M: GuestMemory>(
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
}
