//! Nothing that a driver or a peer does panics, loses a byte of an honest stream, or grows without bound.

use std::collections::BTreeMap;

use proptest::prelude::RngCore;
use proptest::test_runner::{RngAlgorithm, TestRng};

use super::driver::*;
use super::*;
use crate::virtio::vsock::connection::BUFFER;

struct Dice(TestRng);

impl Dice {
    fn new() -> Self {
        Self(TestRng::deterministic_rng(RngAlgorithm::ChaCha))
    }

    fn below(&mut self, end: usize) -> usize {
        (self.0.next_u64() % end as u64) as usize
    }
}

/// One connection as an honest driver has it.
struct Socket {
    peer: PeerId,
    /// By the guest so far, and what the device says of it.
    sent: usize,
    forwarded: usize,
    /// To the guest: received, and taken by its application.
    received: usize,
    taken: usize,
    /// By the peer so far.
    written: usize,
    size: u32,
}

impl Socket {
    fn header(&self, port: u32, operation: Operation) -> Header {
        Header {
            source_port: port,
            buffer: self.size,
            forwarded: self.taken as u32,
            ..packet(operation)
        }
    }
}

/// An honest driver with some sockets.
struct Driver {
    guest: Guest,
    sockets: BTreeMap<u32, Socket>,
    opened: u64,
}

impl Driver {
    fn open(&mut self, port: u32, size: u32) {
        self.opened += 1;
        let socket = Socket {
            peer: PeerId(self.opened),
            sent: 0,
            forwarded: 0,
            received: 0,
            taken: 0,
            written: 0,
            size,
        };
        self.guest.send(socket.header(port, Operation::Request), b"");
        self.sockets.insert(port, socket);
    }

    /// Takes what has come, and checks it.
    fn receive(&mut self) {
        for (header, bytes) in self.guest.receive() {
            let socket = self.sockets.get_mut(&header.target_port).unwrap();
            socket.forwarded = header.forwarded as usize;
            assert_eq!(bytes, data(socket.received, bytes.len()), "{header:?}");
            socket.received += bytes.len();
            assert!(socket.received - socket.taken <= socket.size as usize);
            if header.operation == Operation::CreditRequest {
                let header = socket.header(header.target_port, Operation::CreditUpdate);
                self.guest.send(header, b"");
            }
        }
        self.guest.bench.kick(RX as u32);
        self.guest.serve();
    }

    fn send(&mut self, port: u32, wanted: usize, pieces: &[usize]) {
        let socket = self.sockets.get_mut(&port).unwrap();
        let length = wanted.min(BUFFER as usize - (socket.sent - socket.forwarded));
        let bytes = data(socket.sent, length);
        socket.sent += length;
        let header = socket.header(port, Operation::Data);
        self.guest.send_in(header, &bytes, pieces);
    }

    fn step(&mut self, dice: &mut Dice) {
        let ports: Vec<u32> = self.sockets.keys().copied().collect();
        let port = ports[dice.below(ports.len())];
        let socket = self.sockets.get_mut(&port).unwrap();
        let peer = socket.peer;
        match dice.below(6) {
            0 => {
                let most = [100, 5000, 5000, 70_000][dice.below(4)];
                let length = dice.below(most);
                let pieces = [dice.below(200), dice.below(3000), dice.below(50)];
                self.send(port, length, &pieces[..dice.below(4)]);
            }
            1 => {
                let length = dice.below(9000);
                if socket.written - socket.received < 200_000 {
                    self.guest.host.write(peer, &data(socket.written, length));
                    socket.written += length;
                    self.guest.bench.transport.device_mut().on_peer(peer, READABLE);
                    self.guest.serve();
                }
            }
            2 => {
                let room = dice.below(30_000);
                self.guest.host.with(peer, |stream| stream.room = room);
                self.guest.bench.transport.device_mut().on_peer(peer, WRITABLE);
                self.guest.serve();
            }
            3 => {
                let unread = socket.received - socket.taken;
                socket.taken += dice.below(unread + 1);
                let header = socket.header(port, Operation::CreditUpdate);
                self.guest.send(header, b"");
            }
            _ => self.receive(),
        }
    }

    /// All arrives when both sides take all.
    fn finish(&mut self) {
        for _ in 0..10_000 {
            self.receive();
            let mut done = true;
            for (&port, socket) in &mut self.sockets {
                self.guest.host.with(socket.peer, |stream| stream.room = usize::MAX);
                self.guest.bench.transport.device_mut().on_peer(socket.peer, WRITABLE);
                socket.taken = socket.received;
                let header = socket.header(port, Operation::CreditUpdate);
                self.guest.send(header, b"");
                done &= socket.received == socket.written
                    && self.guest.host.received_length(socket.peer) == socket.sent;
            }
            if done {
                break;
            }
        }
        for socket in self.sockets.values() {
            assert_eq!(socket.received, socket.written);
            assert_eq!(self.guest.host.unread(socket.peer), 0);
            assert!(self.guest.host.received(socket.peer) == data(0, socket.sent));
        }
    }
}

#[test]
fn honest_streams_lose_nothing() {
    let mut dice = Dice::new();
    let (runs, steps) = if cfg!(miri) { (1, 50) } else { (20, 1000) };
    for _ in 0..runs {
        let guest = Guest::started();
        guest.host.listen(HOST_PORT);
        let mut driver = Driver { guest, sockets: BTreeMap::new(), opened: 0 };
        for port in 0..4 {
            driver.open(port, [100, 4096, 64 << 10, 256 << 10][port as usize]);
        }
        driver.receive();
        for _ in 0..steps {
            driver.step(&mut dice);
        }
        driver.finish();
        let counters = driver.guest.counters();
        assert_eq!(counters.resets.load(Ordering::Relaxed), 0);
        assert_eq!(counters.dropped.load(Ordering::Relaxed), 0);
    }
}

/// A packet of which each field may be anything, mostly what makes sense.
fn any_packet(dice: &mut Dice) -> Header {
    let operation = [
        Operation::Request,
        Operation::Response,
        Operation::Reset,
        Operation::Shutdown,
        Operation::Data,
        Operation::Data,
        Operation::CreditUpdate,
        Operation::CreditRequest,
        Operation::Unknown(dice.below(1 << 16) as u16 | 8),
    ][dice.below(9)];
    let odd = |dice: &mut Dice, usual: u64| match dice.below(40) {
        0 => dice.0.next_u64(),
        _ => usual,
    };
    let guest_port = dice.below(4) as u32;
    let host_port =
        [HOST_PORT, 99, (1 << 30) + dice.below(3000) as u32, (1 << 30) + dice.below(8) as u32]
            [dice.below(4)];
    let (flags, buffer) = (dice.below(4) as u64, [0, 50, 64 << 10][dice.below(3)]);
    let forwarded = dice.below(2000) as u64;
    Header {
        source_cid: odd(dice, CID.into()),
        target_cid: odd(dice, 2),
        source_port: guest_port,
        target_port: host_port,
        length: 0,
        kind: odd(dice, 1) as u16,
        operation,
        flags: odd(dice, flags) as u32,
        buffer: odd(dice, buffer) as u32,
        forwarded: odd(dice, forwarded) as u32,
    }
}

fn hostile_step(guest: &mut Guest, dice: &mut Dice, peers: u64) -> bool {
    let peer = PeerId(dice.below(peers as usize + 1) as u64 + 1);
    let known = peer.0 <= peers;
    match dice.below(8) {
        0..=3 => {
            let most = [1, 300, 300, 300, 9000, 70_000][dice.below(6)];
            let length = dice.below(most);
            let header = any_packet(dice);
            let lie = dice.below(20) == 0;
            let claimed = if lie { dice.0.next_u32() } else { length as u32 };
            let pieces = [dice.below(100), dice.below(100)];
            guest.queue(Header { length: claimed, ..header }, &data(0, length), &pieces);
            guest.bench.kick(TX as u32);
            guest.bench.rings(TX).used();
        }
        4 => {
            let new = guest.host.new_peer();
            guest.bench.transport.device_mut().connect(new, dice.below(4) as u32);
            guest.serve();
            return true;
        }
        5 => {
            let news = Readiness {
                readable: dice.below(2) == 0,
                writable: dice.below(2) == 0,
                ended: dice.below(4) == 0,
                gone: dice.below(6) == 0,
            };
            if known {
                guest.host.with(peer, |stream| {
                    stream.room = dice.below(3000);
                    stream.ended |= news.ended;
                    stream.gone |= news.gone;
                });
                guest.host.write(peer, &data(0, dice.below(3000)));
            }
            guest.bench.transport.device_mut().on_peer(peer, news);
        }
        6 => {
            guest.host.pass(std::time::Duration::from_secs(dice.below(20) as u64));
            guest.bench.transport.device_mut().expire();
        }
        _ => {
            guest.receive();
            guest.bench.kick(RX as u32);
        }
    }
    if dice.below(50) != 0 {
        guest.serve();
    }
    false
}

#[test]
fn nothing_panics_and_nothing_grows() {
    let mut dice = Dice::new();
    for _ in 0..200 {
        let mut guest = Guest::started();
        guest.host.listen(HOST_PORT);
        for _ in 0..500 {
            let peers = guest.host.all_streams();
            hostile_step(&mut guest, &mut dice, peers);
            assert!(guest.bench.transport.is_active(), "{:?}", guest.bench.transport.broken());
        }
        let muxer = &guest.bench.transport.device().muxer;
        let connections = guest.counters().connections.load(Ordering::Relaxed);
        muxer.check_bounds();
        assert!(connections <= MOST_CONNECTIONS as u64);
        assert!(guest.host.open_streams() as u64 <= connections);

        guest.bench.reset();
        guest.host.pass(LINGER_TIMEOUT + DRIVER_TIMEOUT);
        guest.bench.transport.device_mut().expire();
        assert_eq!(guest.host.open_streams(), 0);
        assert_eq!(guest.counters().connections.load(Ordering::Relaxed), 0);
    }
}
