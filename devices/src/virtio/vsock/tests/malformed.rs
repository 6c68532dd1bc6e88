//! What a driver must not do.

use vm_memory::GuestAddress;

use super::driver::*;
use super::*;
use crate::virtio::testing::{DATA, Descriptor, RAM_END, status};

#[test]
fn packets_of_others_are_dropped() {
    let request = packet(Operation::Request);
    for header in [
        Header { source_cid: 3, ..request },
        Header { source_cid: 2, ..request },
        Header { source_cid: u64::from(CID) | 1 << 32, ..request },
        Header { target_cid: 1, ..request },
        Header { target_cid: CID.into(), ..request },
        Header { target_cid: 2 | 1 << 32, ..request },
    ] {
        let mut guest = Guest::started();
        guest.host.listen(HOST_PORT);

        guest.send(header, b"");

        assert!(guest.receive().is_empty(), "{header:?}");
        assert!(guest.host.asked().is_empty());
        assert_eq!(guest.counters().dropped.load(Ordering::Relaxed), 1);
    }
}

#[test]
fn sockets_of_other_kinds_are_refused() {
    for kind in [0, 2, 3, u16::MAX] {
        let mut guest = Guest::started();
        guest.host.listen(HOST_PORT);

        guest.send(Header { kind, ..packet(Operation::Request) }, b"");

        let packets = guest.receive();
        assert_eq!(operations(&packets), [Operation::Reset], "{kind}");
        assert_eq!(packets[0].0.kind, kind);
        assert!(guest.host.asked().is_empty());
    }
}

#[test]
fn a_packet_without_a_connection_is_refused_unless_it_refuses() {
    for (operation, answers) in [
        (Operation::Response, 1),
        (Operation::Shutdown, 1),
        (Operation::Data, 1),
        (Operation::CreditUpdate, 1),
        (Operation::CreditRequest, 1),
        (Operation::Unknown(0), 1),
        (Operation::Unknown(8), 1),
        (Operation::Reset, 0),
    ] {
        let mut guest = Guest::started();

        guest.send(packet(operation), b"x");

        let expected = vec![Operation::Reset; answers];
        assert_eq!(operations(&guest.receive()), expected, "{operation:?}");
    }
}

#[test]
fn a_packet_that_does_not_fit_the_state_ends_the_connection() {
    for operation in
        [Operation::Request, Operation::Response, Operation::Unknown(0), Operation::Unknown(99)]
    {
        let mut guest = Guest::connected();

        guest.send(packet(operation), b"");

        assert_eq!(operations(&guest.receive()), [Operation::Reset], "{operation:?}");
        assert!(guest.host.with(guest.peer, |stream| stream.closed));
    }
}

#[test]
fn data_before_the_guest_has_accepted_ends_the_connection() {
    let mut guest = Guest::started();
    let peer = guest.host.new_peer();
    guest.bench.transport.device_mut().connect(peer, PORT);
    guest.serve();
    let request = guest.receive()[0].0;

    guest.send(Header { target_port: request.source_port, ..packet(Operation::Data) }, b"x");

    assert_eq!(operations(&guest.receive()), [Operation::Reset]);
    assert!(guest.host.with(peer, |stream| stream.closed));
}

#[test]
fn data_after_the_end_ends_the_connection() {
    let mut guest = Guest::connected();
    guest.send(shutdown(Shutdown::SEND), b"");

    guest.send(packet(Operation::Data), b"x");

    assert_eq!(operations(&guest.receive()), [Operation::Reset]);
}

#[test]
fn a_length_beyond_the_chain_ends_the_connection() {
    for length in [4, 5, 1 << 16, u32::MAX] {
        let mut guest = Guest::connected();
        guest.queue(Header { length, ..packet(Operation::Data) }, b"abc", &[]);

        guest.bench.kick(TX as u32);
        guest.serve();

        assert_eq!(operations(&guest.receive()), [Operation::Reset], "{length}");
        assert!(guest.host.received(guest.peer).is_empty());
        assert!(guest.bench.transport.is_active());
    }
}

#[test]
fn what_is_behind_the_length_is_left_out() {
    let mut guest = Guest::connected();
    guest.queue(Header { length: 3, ..packet(Operation::Data) }, b"abcdef", &[46]);

    guest.bench.kick(TX as u32);

    assert_eq!(guest.host.received(guest.peer), b"abc");
}

/// Refusals wait for room at the guest, and the guest's packets for theirs.
#[test]
fn a_guest_that_takes_no_refusals_is_not_read() {
    let mut guest = Guest::without_buffers();
    for _ in 0..256 {
        guest.queue(packet(Operation::Data), b"", &[]);
    }
    guest.bench.kick(TX as u32);
    guest.bench.rings(TX).used();
    for port in 0..100 {
        guest.queue(Header { source_port: port, ..packet(Operation::Request) }, b"", &[]);
    }
    guest.bench.kick(TX as u32);
    guest.serve();
    assert!(guest.bench.rings(TX).used().is_empty());
    assert!(guest.host.asked().is_empty());

    (0..RX_BUFFERS).for_each(|_| guest.post());
    guest.bench.kick(RX as u32);
    guest.serve();

    assert_eq!(guest.receive_all().len(), 356);
    assert_eq!(guest.bench.rings(TX).used().len(), 100);
    assert_eq!(guest.host.asked().len(), 100);
}

/// Connections that end before the guest has taken a packet of them leave nothing either.
#[test]
fn a_guest_that_takes_nothing_makes_nothing_grow() {
    let mut guest = Guest::without_buffers();
    guest.host.listen(HOST_PORT);
    for round in 0..1000 {
        guest.send(packet(Operation::Request), b"");
        guest.send(packet(Operation::Reset), b"");
        guest.bench.rings(TX).used();
        let peer = guest.host.new_peer();
        guest.bench.transport.device_mut().connect(peer, round);
        guest.bench.transport.device_mut().on_peer(peer, GONE);
    }

    guest.bench.transport.device().muxer.check_bounds();
    assert_eq!(guest.host.open_streams(), 0);
}

#[test]
fn chains_that_cannot_be_packets_break_the_device() {
    let short = "a packet is shorter than its header (5.10.6)";
    let order = "a buffer to read comes after one to write (2.7.4.2)";
    let cases = [
        (TX, Broken::Form(short), vec![Descriptor::readable(DATA, 43)]),
        (TX, Broken::Form(short), vec![Descriptor::writable(DATA, 100)]),
        (
            TX,
            Broken::Form(short),
            vec![Descriptor::readable(DATA, 40), Descriptor::writable(DATA, 100)],
        ),
        (
            TX,
            Broken::Form(order),
            vec![Descriptor::writable(DATA, 44), Descriptor::readable(DATA, 44)],
        ),
        (
            TX,
            Broken::Buffer { address: GuestAddress(RAM_END - 43), length: 44 },
            vec![Descriptor::readable(RAM_END - 43, 44)],
        ),
    ];
    for (queue, broken, chain) in cases {
        let mut guest = Guest::started();
        guest.bench.rings(queue).offer(&chain);

        guest.bench.kick(queue as u32);

        assert_eq!(guest.bench.transport.broken(), Some(&broken));
    }
}

#[test]
fn buffers_that_cannot_take_a_packet_break_the_device() {
    let no_room = "a buffer has no room for a packet (5.10.6)";
    let outside = Broken::Buffer { address: GuestAddress(0), length: 100 };
    for (broken, chain) in [
        (Broken::Form(no_room), vec![Descriptor::writable(DATA, 44)]),
        (Broken::Form(no_room), vec![Descriptor::readable(DATA, 4096)]),
        (outside, vec![Descriptor::writable(0, 100)]),
    ] {
        let mut guest = Guest::without_buffers();
        guest.bench.rings(RX).offer(&chain);
        guest.send(packet(Operation::Request), b"");

        let found = guest.bench.transport.broken().unwrap();
        let same_kind = std::mem::discriminant(found) == std::mem::discriminant(&broken);
        assert!(same_kind, "{found:?} {broken:?}");
        assert_eq!(guest.bench.status() & status::NEEDS_RESET, status::NEEDS_RESET);
    }
}

#[test]
fn data_outside_of_memory_breaks_the_device() {
    let mut guest = Guest::connected();
    let header = Header { length: 100, ..packet(Operation::Data) };
    vm_memory::Bytes::write_slice(&*guest.bench.memory, &header.to_bytes(), GuestAddress(DATA))
        .unwrap();
    guest
        .bench
        .rings(TX)
        .offer(&[Descriptor::readable(DATA, 44), Descriptor::readable(RAM_END - 50, 100)]);

    guest.bench.kick(TX as u32);

    assert!(matches!(guest.bench.transport.broken(), Some(Broken::Buffer { .. })));
    assert!(guest.host.received(guest.peer).is_empty());
}

#[test]
fn a_broken_device_forgets_its_connections_when_it_is_reset() {
    let mut guest = Guest::connected();
    guest.bench.rings(TX).offer(&[Descriptor::readable(DATA, 1)]);
    guest.bench.kick(TX as u32);
    assert!(guest.bench.transport.broken().is_some());

    guest.bench.reset();

    assert_eq!(guest.host.open_streams(), 0);
    assert_eq!(guest.counters().connections.load(Ordering::Relaxed), 0);
}
