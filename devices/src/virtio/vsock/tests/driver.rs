//! A driver, with rings and buffers.

use std::collections::VecDeque;
use std::sync::Arc;

use vm_memory::{Bytes, GuestAddress};

use super::host::FakePeers;
use super::*;
use crate::virtio::testing::{DATA, Descriptor};

/// A port of the guest, and one of the host.
pub(super) const PORT: u32 = 5000;
pub(super) const HOST_PORT: u32 = 52;

/// Where buffers to receive are, and how long, with the header.
const RX_DATA: u64 = DATA;
const RX_SIZE: usize = 4096;
/// How many there are.
pub(super) const RX_BUFFERS: usize = 32;
/// Where a packet is sent from.
const TX_DATA: u64 = DATA + (4 << 20);

pub(super) const READABLE: Readiness =
    Readiness { readable: true, writable: false, ended: false, gone: false };
pub(super) const ENDED: Readiness =
    Readiness { readable: true, writable: false, ended: true, gone: false };
pub(super) const WRITABLE: Readiness =
    Readiness { readable: false, writable: true, ended: false, gone: false };
pub(super) const GONE: Readiness =
    Readiness { readable: true, writable: true, ended: true, gone: true };

/// A packet of the guest from [`PORT`] to [`HOST_PORT`], with room for much.
pub(super) fn packet(operation: Operation) -> Header {
    Header {
        source_cid: CID.into(),
        target_cid: 2,
        source_port: PORT,
        target_port: HOST_PORT,
        length: 0,
        kind: 1,
        operation,
        flags: 0,
        buffer: 1 << 20,
        forwarded: 0,
    }
}

pub(super) fn shutdown(flags: Shutdown) -> Header {
    Header { flags: flags.flags(), ..packet(Operation::Shutdown) }
}

/// Bytes that say where they are.
pub(super) fn data(first: usize, length: usize) -> Vec<u8> {
    (first..first + length).map(|at| (at ^ at >> 8) as u8).collect()
}

/// A guest with its device.
pub(super) struct Guest {
    pub(super) bench: Bench<Vsock<FakePeers>>,
    pub(super) host: FakePeers,
    /// The stream of the first connection.
    pub(super) peer: PeerId,
    /// Where the buffers on the rx queue are, by their heads.
    pub(super) posted: VecDeque<(u16, u64)>,
    pub(super) next: u64,
}

impl Guest {
    /// One whose driver is ready, with buffers to receive.
    pub(super) fn started() -> Self {
        let mut guest = Self::without_buffers();
        (0..RX_BUFFERS).for_each(|_| guest.post());
        guest.bench.kick(RX as u32);
        guest
    }

    pub(super) fn without_buffers() -> Self {
        let host = FakePeers::default();
        Self::of(Bench::started(Vsock::new(CID, host.clone())), host)
    }

    pub(super) fn of(bench: Bench<Vsock<FakePeers>>, host: FakePeers) -> Self {
        Self { bench, host, peer: PeerId(1), posted: VecDeque::new(), next: 0 }
    }

    /// One with a connection from [`PORT`] to [`HOST_PORT`].
    pub(super) fn connected() -> Self {
        Self::connected_with(packet(Operation::Request))
    }

    pub(super) fn connected_with(request: Header) -> Self {
        let mut guest = Self::started();
        guest.host.listen(HOST_PORT);
        guest.send(request, b"");
        assert_eq!(operations(&guest.receive()), [Operation::Response]);
        guest
    }

    /// Another connection to [`HOST_PORT`].
    pub(super) fn connect_another(&mut self, source_port: u32) -> PeerId {
        self.send(Header { source_port, ..packet(Operation::Request) }, b"");
        assert_eq!(operations(&self.receive()), [Operation::Response]);
        PeerId(self.peer.0 + 1)
    }

    pub(super) fn counters(&self) -> Arc<Counters> {
        self.bench.transport.device().counters()
    }

    pub(super) fn post(&mut self) {
        let address = RX_DATA + RX_SIZE as u64 * (self.next % RX_BUFFERS as u64);
        self.next += 1;
        let head = self.bench.rings(RX).offer(&[Descriptor::writable(address, RX_SIZE as u32)]);
        self.posted.push_back((head, address));
    }

    /// Sends a packet in one descriptor.
    pub(super) fn send(&mut self, header: Header, bytes: &[u8]) {
        self.send_in(header, bytes, &[]);
    }

    /// Sends a packet in descriptors of these lengths and the rest.
    pub(super) fn send_in(&mut self, header: Header, bytes: &[u8], pieces: &[usize]) {
        self.queue(Header { length: bytes.len() as u32, ..header }, bytes, pieces);
        self.bench.kick(TX as u32);
        self.serve();
    }

    /// Puts a packet on the queue as it is.
    pub(super) fn queue(&mut self, header: Header, bytes: &[u8], pieces: &[usize]) {
        let packet = [&header.to_bytes()[..], bytes].concat();
        self.bench.memory.write_slice(&packet, GuestAddress(TX_DATA)).unwrap();
        let mut chain = Vec::new();
        let mut at = 0;
        for piece in pieces.iter().copied().chain([usize::MAX]) {
            let length = piece.min(packet.len() - at);
            chain.push(Descriptor::readable(TX_DATA + at as u64, length as u32));
            at += length;
        }
        self.bench.rings(TX).offer(&chain);
    }

    /// What the thread that serves the device does after an event.
    pub(super) fn serve(&mut self) {
        loop {
            self.bench.answer();
            if self.bench.transport.device().has_packets() {
                let _ = self.bench.transport.serve(RX);
            }
            if !self.bench.transport.device_mut().resume_packets() {
                return;
            }
            self.bench.transport.notify(TX);
        }
    }

    /// There is something to read of the first stream.
    pub(super) fn readable(&mut self) {
        self.on_peer(READABLE);
    }

    pub(super) fn on_peer(&mut self, news: Readiness) {
        let peer = self.peer;
        self.bench.transport.device_mut().on_peer(peer, news);
        self.serve();
    }

    /// The packets that have come, whose buffers are posted again without a notification.
    pub(super) fn receive(&mut self) -> Vec<(Header, Vec<u8>)> {
        let mut packets = Vec::new();
        for (head, written) in self.bench.rings(RX).used() {
            let (posted, address) = self.posted.pop_front().unwrap();
            assert_eq!(head, u32::from(posted));
            let mut bytes = vec![0; written as usize];
            self.bench.memory.read_slice(&mut bytes, GuestAddress(address)).unwrap();
            packets.push(parse(bytes));
            self.post();
        }
        packets
    }

    /// All packets, with as many buffers as they need.
    pub(super) fn receive_all(&mut self) -> Vec<(Header, Vec<u8>)> {
        let mut all = Vec::new();
        loop {
            let packets = self.receive();
            if packets.is_empty() {
                return all;
            }
            all.extend(packets);
            self.bench.kick(RX as u32);
            self.serve();
        }
    }

    /// Replaces the buffers by one of descriptors of these lengths, and of 100 bytes more.
    pub(super) fn post_in(&mut self, pieces: &[usize]) {
        // Those that are on the queue are used up first.
        while !self.posted.is_empty() {
            self.host.write(self.peer, &[0; RX_SIZE - 44]);
            self.readable();
            self.bench.rings(RX).used();
            self.posted.pop_front();
        }
        let mut at = RX_DATA;
        let chain: Vec<Descriptor> = pieces
            .iter()
            .chain(&[100])
            .map(|&length| {
                at += length as u64;
                Descriptor::writable(at - length as u64, length as u32)
            })
            .collect();
        self.bench.rings(RX).offer(&chain);
    }

    /// What has come into that buffer.
    pub(super) fn receive_in(&mut self, _: &[usize]) -> Vec<(Header, Vec<u8>)> {
        let used = self.bench.rings(RX).used();
        used.into_iter()
            .map(|(_, written)| {
                let mut bytes = vec![0; written as usize];
                self.bench.memory.read_slice(&mut bytes, GuestAddress(RX_DATA)).unwrap();
                parse(bytes)
            })
            .collect()
    }
}

fn parse(mut bytes: Vec<u8>) -> (Header, Vec<u8>) {
    let rest = bytes.split_off(HEADER);
    let header = Header::from_bytes(&bytes.try_into().unwrap());
    assert_eq!(header.length as usize, rest.len());
    (header, rest)
}
