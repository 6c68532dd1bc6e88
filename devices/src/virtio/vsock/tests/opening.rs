//! How connections come to be.

use super::driver::*;
use super::*;
use crate::virtio::testing::Bench;

#[test]
fn a_guest_connects_to_what_listens() {
    let mut guest = Guest::started();
    guest.host.listen(HOST_PORT);

    guest.send(packet(Operation::Request), b"");

    let packets = guest.receive();
    assert_eq!(operations(&packets), [Operation::Response]);
    let header = packets[0].0;
    assert_eq!((header.source_port, header.target_port), (HOST_PORT, PORT));
    assert_eq!((header.buffer, header.forwarded), (64 << 10, 0));
    assert_eq!(guest.counters().from_guest.load(Ordering::Relaxed), 1);
    assert_eq!(guest.counters().connections.load(Ordering::Relaxed), 1);
}

#[test]
fn a_guest_is_refused_where_nothing_listens() {
    let mut guest = Guest::started();

    guest.send(packet(Operation::Request), b"");

    assert_eq!(operations(&guest.receive()), [Operation::Reset]);
    assert_eq!(guest.host.asked(), [HOST_PORT]);
    assert_eq!(guest.counters().refused.load(Ordering::Relaxed), 1);
    assert_eq!(guest.counters().connections.load(Ordering::Relaxed), 0);
}

/// The packet with which a guest answers another.
fn answer(header: Header, operation: Operation) -> Header {
    Header { source_port: header.target_port, target_port: header.source_port, ..packet(operation) }
}

#[test]
fn a_process_of_the_host_connects_when_the_guest_accepts() {
    let mut guest = Guest::started();
    let peer = guest.host.new_peer();
    guest.host.write(peer, b"early");

    guest.bench.transport.device_mut().connect(peer, 1024);
    guest.serve();

    let packets = guest.receive();
    assert_eq!(operations(&packets), [Operation::Request]);
    let request = packets[0].0;
    assert_eq!((request.source_port, request.target_port), (1 << 30, 1024));
    assert_eq!(guest.host.with(peer, |stream| stream.accepted), None);

    guest.send(answer(request, Operation::Response), b"");

    assert_eq!(guest.host.with(peer, |stream| stream.accepted), Some(1 << 30));
    assert_eq!(guest.receive().concat(), b"early");
    assert_eq!(guest.counters().from_host.load(Ordering::Relaxed), 1);
}

#[test]
fn a_process_of_the_host_is_refused_by_the_guest() {
    let mut guest = Guest::started();
    let peer = guest.host.new_peer();
    guest.bench.transport.device_mut().connect(peer, 1024);
    guest.serve();
    let request = guest.receive()[0].0;

    guest.send(answer(request, Operation::Reset), b"");

    assert!(guest.host.with(peer, |stream| stream.closed && stream.accepted.is_none()));
    assert!(guest.receive().is_empty());
    assert_eq!(guest.counters().refused.load(Ordering::Relaxed), 1);
    assert_eq!(guest.counters().connections.load(Ordering::Relaxed), 0);
}

/// Firecracker closes it (#1253), so clients try again and again.
#[test]
fn a_connection_before_the_driver_is_ready_waits_for_it() {
    let host = FakePeers::default();
    let mut bench = Bench::new(Vsock::new(CID, host.clone()));
    let peer = host.new_peer();
    bench.transport.device_mut().connect(peer, 1024);
    let _ = bench.transport.serve(RX);
    let offered = bench.offered();
    // A boot loader's driver, and the kernel's.
    bench.initialise(offered);
    bench.reset();
    bench.initialise(offered);
    let mut guest = Guest::of(bench, host);
    assert!(!guest.host.with(peer, |stream| stream.closed));

    guest.post();
    guest.bench.kick(RX as u32);

    assert_eq!(operations(&guest.receive()), [Operation::Request]);
}

#[test]
fn a_peer_that_leaves_before_the_guest_knows_is_forgotten() {
    let mut guest = Guest::without_buffers();
    let peer = guest.host.new_peer();
    guest.bench.transport.device_mut().connect(peer, 1024);
    guest.serve();

    guest.bench.transport.device_mut().on_peer(peer, GONE);
    guest.post();
    guest.bench.kick(RX as u32);

    assert!(guest.receive().is_empty());
    assert!(guest.host.with(peer, |stream| stream.closed));
    assert_eq!(guest.counters().connections.load(Ordering::Relaxed), 0);
}

#[test]
fn a_peer_that_leaves_before_the_guest_answers_is_reset() {
    let mut guest = Guest::started();
    let peer = guest.host.new_peer();
    guest.bench.transport.device_mut().connect(peer, 1024);
    guest.serve();
    let request = guest.receive()[0].0;

    guest.bench.transport.device_mut().on_peer(peer, GONE);
    guest.send(answer(request, Operation::Response), b"");

    assert_eq!(operations(&guest.receive()), [Operation::Reset]);
    assert!(guest.host.with(peer, |stream| stream.closed && stream.accepted.is_none()));
}

/// `printf 'CONNECT 52\n...' | nc -N`: it writes nothing more, and reads.
#[test]
fn a_peer_that_has_written_all_waits_for_the_answer() {
    let mut guest = Guest::started();
    let peer = guest.host.new_peer();
    guest.host.write(peer, b"all");
    guest.host.with(peer, |stream| stream.ended = true);
    guest.bench.transport.device_mut().connect(peer, 1024);
    guest.bench.transport.device_mut().on_peer(peer, ENDED);
    guest.serve();
    let request = guest.receive()[0].0;

    guest.send(answer(request, Operation::Response), b"");

    let packets = guest.receive();
    assert_eq!(operations(&packets), [Operation::Data, Operation::Shutdown]);
    assert_eq!(packets.concat(), b"all");
    assert_eq!(packets[1].0.flags, Shutdown::SEND.flags());
}

#[test]
fn connections_are_bounded_from_both_sides() {
    let mut guest = Guest::started();
    guest.host.listen(HOST_PORT);
    let peers: Vec<PeerId> = (0..MOST_CONNECTIONS + 1)
        .map(|_| {
            let peer = guest.host.new_peer();
            guest.bench.transport.device_mut().connect(peer, 1024);
            peer
        })
        .collect();

    assert_eq!(guest.host.open_streams(), MOST_CONNECTIONS);
    assert!(guest.host.with(*peers.last().unwrap(), |stream| stream.closed));
    guest.serve();
    guest.receive_all();
    guest.send(packet(Operation::Request), b"");
    assert_eq!(operations(&guest.receive_all()), [Operation::Reset]);
    assert!(guest.host.asked().is_empty());
    assert_eq!(guest.counters().refused.load(Ordering::Relaxed), 2);
    assert_eq!(guest.counters().connections.load(Ordering::Relaxed), MOST_CONNECTIONS as u64);
}

#[test]
fn every_connection_from_the_host_has_a_port_of_its_own() {
    let mut guest = Guest::started();
    for _ in 0..100 {
        let peer = guest.host.new_peer();
        guest.bench.transport.device_mut().connect(peer, 1024);
    }
    guest.serve();

    let packets = guest.receive_all();

    let ports: Vec<u32> = packets.iter().map(|(header, _)| header.source_port).collect();
    assert_eq!(ports, (1 << 30..(1 << 30) + 100).collect::<Vec<u32>>());
}

#[test]
fn what_is_not_answered_is_given_up() {
    let mut guest = Guest::without_buffers();
    let (early, late) = (guest.host.new_peer(), guest.host.new_peer());
    guest.bench.transport.device_mut().connect(early, 1024);
    guest.serve();
    assert_eq!(guest.bench.transport.device().next_deadline(), Some(DRIVER_TIMEOUT));
    guest.host.pass(DRIVER_TIMEOUT);
    guest.bench.transport.device_mut().expire();
    assert!(guest.host.with(early, |stream| stream.closed));

    guest.post();
    guest.bench.transport.device_mut().connect(late, 1024);
    guest.serve();
    assert_eq!(operations(&guest.receive()), [Operation::Request]);
    guest.host.pass(REQUEST_TIMEOUT - std::time::Duration::from_secs(1));
    guest.bench.transport.device_mut().expire();
    assert!(!guest.host.with(late, |stream| stream.closed));
    guest.host.pass(std::time::Duration::from_secs(1));
    guest.bench.transport.device_mut().expire();
    guest.serve();

    assert!(guest.host.with(late, |stream| stream.closed));
    assert_eq!(operations(&guest.receive()), [Operation::Reset]);
    assert_eq!(guest.bench.transport.device().next_deadline(), None);
}
