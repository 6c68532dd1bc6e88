#![allow(clippy::unwrap_used)]

mod closing;
mod credit;
mod driver;
mod host;
mod malformed;
mod opening;
mod random;
mod state;

use std::sync::atomic::Ordering;

use self::driver::{Guest, HOST_PORT, PORT, data, packet};
use self::host::FakePeers;
use super::packet::{Header, Operation, Shutdown};
use super::*;
use crate::virtio::testing::Bench;

/// The guest's context identifier.
const CID: u32 = 42;

fn operations(packets: &[(Header, Vec<u8>)]) -> Vec<Operation> {
    packets.iter().map(|(header, _)| header.operation).collect()
}

#[test]
fn it_is_a_socket_device_that_names_the_guest() {
    let mut bench = Bench::new(Vsock::new(0x1234_5678, FakePeers::default()));

    assert_eq!(bench.read(0x008), 19);
    assert_eq!(bench.transport.device().features(), Features::default());
    assert_eq!(bench.transport.device().queue_sizes(), [256, 256, 16]);
    let mut space = [0xff; 12];
    bench.transport.device_mut().write_config(0, &[9; 8]);
    bench.transport.device().read_config(0, &mut space);
    assert_eq!(space, [0x78, 0x56, 0x34, 0x12, 0, 0, 0, 0, 0, 0, 0, 0]);
    bench.transport.device().read_config(3, &mut space[..2]);
    assert_eq!(space[..2], [0x12, 0]);
    for offset in [8, 9, u64::MAX] {
        space.fill(0xff);
        bench.transport.device().read_config(offset, &mut space);
        assert_eq!(space, [0; 12]);
    }
}

#[test]
fn bytes_pass_in_both_directions() {
    let mut guest = Guest::connected();
    guest.send(packet(Operation::Data), b"from the guest");
    guest.host.write(guest.peer, b"from the host");
    guest.readable();

    let packets = guest.receive();

    assert_eq!(guest.host.received(guest.peer), b"from the guest");
    assert_eq!(packets.len(), 1);
    let (header, bytes) = &packets[0];
    assert_eq!(bytes, b"from the host");
    let expected = Header {
        source_cid: 2,
        target_cid: CID.into(),
        source_port: HOST_PORT,
        target_port: PORT,
        length: 13,
        kind: 1,
        operation: Operation::Data,
        flags: 0,
        buffer: 64 << 10,
        forwarded: 14,
    };
    assert_eq!(*header, expected);
    let counters = guest.counters();
    assert_eq!(counters.to_guest.load(Ordering::Relaxed), 13);
    assert_eq!(counters.to_host.load(Ordering::Relaxed), 14);
}

/// Linux since 6.1 puts header and data into one descriptor, and 64 KiB of data into several.
#[test]
fn a_packet_may_be_cut_anywhere() {
    let text = data(0, 300);
    for cut in 0..44 + text.len() {
        let mut guest = Guest::connected();
        guest.send_in(packet(Operation::Data), &text, &[cut]);
        assert_eq!(guest.host.received(guest.peer), text, "{cut}");

        guest.post_in(&[cut, 20]);
        guest.host.write(guest.peer, &text);
        guest.readable();
        let packets = guest.receive_in(&[cut, 20]);
        let (header, bytes) = &packets[0];
        assert_eq!(header.length as usize, bytes.len(), "{cut}");
        assert_eq!(text[..bytes.len()], bytes[..], "{cut}");
    }
}

#[test]
fn data_in_many_descriptors_is_one_packet() {
    let text = data(7, 64 << 10);
    let mut guest = Guest::connected();

    guest.send_in(packet(Operation::Data), &text, &[44, 32 << 10, 1, 0, 100, 4096]);

    assert_eq!(guest.host.received(guest.peer), text);
}

#[test]
fn data_that_is_longer_than_a_buffer_comes_in_several_packets() {
    let mut guest = Guest::connected();
    let text = data(1, 100_000);
    guest.host.write(guest.peer, &text);
    guest.readable();

    let packets = guest.receive_all();

    assert!(packets.iter().all(|(header, _)| header.operation == Operation::Data));
    assert_eq!(packets.concat(), text);
}

trait Concat {
    fn concat(&self) -> Vec<u8>;
}

impl Concat for Vec<(Header, Vec<u8>)> {
    fn concat(&self) -> Vec<u8> {
        self.iter().flat_map(|(_, bytes)| bytes.clone()).collect()
    }
}

#[test]
fn connections_take_turns() {
    let mut guest = Guest::connected();
    let other = guest.connect_another(77);
    for peer in [guest.peer, other] {
        guest.host.write(peer, &data(0, 20_000));
        guest.bench.transport.device_mut().on_peer(peer, driver::READABLE);
    }
    guest.serve();

    let packets = guest.receive();

    let ports: Vec<u32> = packets.iter().map(|(header, _)| header.target_port).collect();
    assert_eq!(ports[..4], [PORT, 77, PORT, 77]);
}

/// A stream that is empty is not asked again until something has come.
#[test]
fn an_empty_stream_costs_one_read() {
    let mut guest = Guest::connected();
    guest.host.write(guest.peer, b"some");
    guest.readable();
    guest.receive();
    let reads = guest.host.reads();
    for _ in 0..10 {
        guest.serve();
    }

    assert_eq!(guest.host.reads(), reads);
}
