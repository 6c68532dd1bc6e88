//! How connections end, whole or by halves.

use super::driver::*;
use super::*;

const SEND: u32 = 2;
const RECEIVE: u32 = 1;

#[test]
fn the_end_of_what_the_peer_writes_reaches_the_guest_after_it() {
    let mut guest = Guest::connected();
    guest.host.write(guest.peer, b"last");
    guest.host.with(guest.peer, |stream| stream.ended = true);
    guest.on_peer(ENDED);

    let packets = guest.receive();

    assert_eq!(operations(&packets), [Operation::Data, Operation::Shutdown]);
    assert_eq!((&packets[0].1[..], packets[1].0.flags), (&b"last"[..], SEND));
    // The other half still works.
    guest.send(packet(Operation::Data), b"answer");
    assert_eq!(guest.host.received(guest.peer), b"answer");
}

#[test]
fn the_end_of_what_the_guest_writes_reaches_the_peer_after_it() {
    let mut guest = Guest::connected();
    guest.host.with(guest.peer, |stream| stream.room = 2);
    guest.send(packet(Operation::Data), b"last");
    guest.send(shutdown(Shutdown::SEND), b"");
    assert!(!guest.host.with(guest.peer, |stream| stream.writes_ended));

    guest.host.with(guest.peer, |stream| stream.room = 2);
    guest.on_peer(WRITABLE);

    assert_eq!(guest.host.received(guest.peer), b"last");
    assert!(guest.host.with(guest.peer, |stream| stream.writes_ended && !stream.closed));
    guest.host.write(guest.peer, b"answer");
    guest.readable();
    assert_eq!(guest.receive().concat(), b"answer");
    assert!(guest.receive().is_empty());
}

#[test]
fn a_guest_that_reads_no_more_gets_no_more() {
    let mut guest = Guest::connected();
    guest.send(shutdown(Shutdown::RECEIVE), b"");
    assert!(guest.host.with(guest.peer, |stream| stream.reads_ended && !stream.closed));

    guest.host.write(guest.peer, b"lost");
    guest.readable();
    assert!(guest.receive().is_empty());
    guest.send(packet(Operation::Data), b"more");
    assert_eq!(guest.host.received(guest.peer), b"more");

    guest.host.with(guest.peer, |stream| stream.gone = true);
    guest.on_peer(GONE);
    let packets = guest.receive();
    assert_eq!(operations(&packets), [Operation::Shutdown]);
    assert_eq!(packets[0].0.flags, SEND | RECEIVE);
    assert!(guest.host.with(guest.peer, |stream| stream.closed));
}

#[test]
fn a_guest_that_closes_is_answered_and_the_stream_is_closed() {
    for halves in [&[Shutdown::BOTH][..], &[Shutdown::SEND, Shutdown::RECEIVE]] {
        let mut guest = Guest::connected();
        for &half in halves {
            guest.send(shutdown(half), b"");
        }

        assert_eq!(operations(&guest.receive()), [Operation::Reset]);
        assert!(guest.host.with(guest.peer, |stream| stream.closed));
        assert_eq!(guest.counters().connections.load(Ordering::Relaxed), 0);
    }
}

#[test]
fn what_a_guest_sent_before_it_closed_still_reaches_a_slow_peer() {
    for end in [shutdown(Shutdown::BOTH), packet(Operation::Reset)] {
        let mut guest = Guest::connected();
        guest.host.with(guest.peer, |stream| stream.room = 100);
        let text = data(0, 50_000);
        guest.send(packet(Operation::Data), &text);
        guest.send(end, b"");
        // The guest may use the port again at once.
        guest.receive();
        guest.send(packet(Operation::Request), b"");
        assert_eq!(operations(&guest.receive()), [Operation::Response]);

        for _ in 0..5 {
            assert!(!guest.host.with(guest.peer, |stream| stream.closed));
            guest.host.with(guest.peer, |stream| stream.room = 10_000);
            guest.host.pass(LINGER_TIMEOUT - std::time::Duration::from_secs(1));
            guest.bench.transport.device_mut().expire();
            guest.on_peer(WRITABLE);
        }

        assert_eq!(guest.host.received(guest.peer), text);
        assert!(guest.host.with(guest.peer, |stream| stream.closed));
    }
}

#[test]
fn a_peer_that_never_reads_is_not_waited_for_for_ever() {
    let mut guest = Guest::connected();
    guest.host.with(guest.peer, |stream| stream.room = 0);
    guest.send(packet(Operation::Data), b"unread");
    guest.send(shutdown(Shutdown::BOTH), b"");
    assert_eq!(operations(&guest.receive()), [Operation::Reset]);
    assert_eq!(guest.counters().connections.load(Ordering::Relaxed), 1);

    guest.host.pass(LINGER_TIMEOUT);
    guest.bench.transport.device_mut().expire();

    assert!(guest.host.with(guest.peer, |stream| stream.closed));
    assert_eq!(guest.counters().connections.load(Ordering::Relaxed), 0);
}

#[test]
fn a_peer_that_dies_in_mid_stream_ends_the_connection_for_the_guest() {
    let mut guest = Guest::connected();
    guest.host.write(guest.peer, b"before");
    guest.host.with(guest.peer, |stream| (stream.room, stream.gone) = (0, true));
    guest.on_peer(GONE);

    let packets = guest.receive();

    assert_eq!(packets.concat(), b"before");
    let last = packets.last().unwrap().0;
    assert_eq!((last.operation, last.flags), (Operation::Shutdown, SEND | RECEIVE));
    assert!(guest.host.with(guest.peer, |stream| stream.closed));
    // The guest did not know yet.
    guest.send(packet(Operation::Data), b"late");
    guest.send(packet(Operation::Reset), b"");
    assert!(guest.receive().is_empty());
    assert_eq!(guest.counters().connections.load(Ordering::Relaxed), 0);
}

#[test]
fn a_peer_that_dies_is_found_by_a_write() {
    let mut guest = Guest::connected();
    guest.host.with(guest.peer, |stream| stream.gone = true);

    guest.send(packet(Operation::Data), b"lost");

    let packets = guest.receive();
    assert_eq!(operations(&packets), [Operation::Shutdown]);
    assert_eq!(packets[0].0.flags & RECEIVE, RECEIVE);
}

/// An error while the rest is written is one of the stream, and of nothing else (Firecracker #1751).
#[test]
fn a_peer_that_dies_is_found_when_the_rest_is_written() {
    let mut guest = Guest::connected();
    guest.host.with(guest.peer, |stream| stream.room = 3);
    guest.send(packet(Operation::Data), &data(0, 30_000));
    guest.host.with(guest.peer, |stream| stream.gone = true);

    guest.on_peer(WRITABLE);

    let packets = guest.receive();
    let last = packets.last().unwrap().0;
    assert_eq!((last.operation, last.flags & RECEIVE), (Operation::Shutdown, RECEIVE));
    // What is lost is no credit that is lost.
    assert_eq!(last.forwarded, 30_000);
    assert!(guest.bench.transport.is_active());
}

#[test]
fn a_guest_that_does_not_answer_the_end_is_reset() {
    let mut guest = Guest::connected();
    guest.host.with(guest.peer, |stream| stream.gone = true);
    guest.on_peer(GONE);
    guest.receive();
    guest.host.pass(CLOSE_TIMEOUT);

    guest.bench.transport.device_mut().expire();
    guest.serve();

    assert_eq!(operations(&guest.receive()), [Operation::Reset]);
    assert_eq!(guest.counters().connections.load(Ordering::Relaxed), 0);
}

#[test]
fn a_peer_that_is_gone_while_the_guest_has_no_room_costs_no_turns() {
    let mut guest = Guest::connected_with(Header { buffer: 2, ..packet(Operation::Request) });
    guest.host.write(guest.peer, b"three");
    guest.host.with(guest.peer, |stream| stream.gone = true);
    guest.on_peer(GONE);
    let packets = guest.receive();
    assert_eq!(packets.concat(), b"th");
    let reads = guest.host.reads();
    for _ in 0..10 {
        guest.serve();
        assert!(!guest.bench.transport.device().has_packets());
    }
    assert_eq!(guest.host.reads(), reads);

    guest.send(Header { buffer: 9, ..packet(Operation::CreditUpdate) }, b"");

    let packets = guest.receive();
    assert_eq!(packets.concat(), b"ree");
    assert_eq!(packets.last().unwrap().0.flags, SEND | RECEIVE);
}

/// A hundred of them, all in the middle of a stream in both directions, leave nothing behind.
#[test]
fn peers_that_die_leave_nothing() {
    let mut guest = Guest::started();
    guest.host.listen(HOST_PORT);
    for round in 0..100 {
        guest.peer = PeerId(round + 1);
        guest.send(packet(Operation::Request), b"");
        guest.host.with(guest.peer, |stream| stream.room = 10);
        guest.send(packet(Operation::Data), &data(0, 1000));
        guest.host.write(guest.peer, &data(0, 500));
        guest.host.with(guest.peer, |stream| stream.gone = true);
        guest.on_peer(GONE);
        guest.receive();
        guest.send(packet(Operation::Reset), b"");
        guest.receive();
    }

    assert_eq!(guest.host.open_streams(), 0);
    assert_eq!(guest.counters().connections.load(Ordering::Relaxed), 0);
}
