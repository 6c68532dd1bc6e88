//! Credit in both directions (5.10.6.3).

use super::driver::*;
use super::*;
use crate::virtio::vsock::connection::BUFFER;

fn with_buffer(operation: Operation, buffer: u32, forwarded: u32) -> Header {
    Header { buffer, forwarded, ..packet(operation) }
}

#[test]
fn the_guest_gets_no_more_than_it_can_hold() {
    let mut guest = Guest::connected_with(with_buffer(Operation::Request, 1000, 0));
    let text = data(0, 3000);
    guest.host.write(guest.peer, &text);
    guest.readable();

    let packets = guest.receive_all();

    // It is asked once, however often the stream is looked at.
    assert_eq!(operations(&packets), [Operation::Data, Operation::CreditRequest]);
    assert_eq!(packets.concat(), text[..1000]);
    guest.readable();
    assert!(guest.receive_all().is_empty());

    guest.send(with_buffer(Operation::CreditUpdate, 1000, 600), b"");
    let packets = guest.receive_all();
    assert_eq!(operations(&packets), [Operation::Data, Operation::CreditRequest]);
    assert_eq!(packets.concat(), text[1000..1600]);

    guest.send(with_buffer(Operation::CreditUpdate, 5000, 1600), b"");
    assert_eq!(guest.receive_all().concat(), text[1600..]);
}

#[test]
fn the_guest_may_lie_about_what_it_can_hold() {
    for (buffer, forwarded) in
        [(0, 0), (u32::MAX, 0), (u32::MAX, u32::MAX), (0, u32::MAX), (1, 1 << 31), (u32::MAX, 7)]
    {
        let mut guest = Guest::connected();
        let text = data(0, 200_000);
        guest.host.write(guest.peer, &text);
        guest.send(with_buffer(Operation::CreditUpdate, buffer, forwarded), b"");
        guest.readable();
        let first = guest.receive_all().concat();
        assert!(text.starts_with(&first), "{buffer} {forwarded}");

        // It is believed again when it speaks the truth.
        let all = with_buffer(Operation::CreditUpdate, 1 << 20, first.len() as u32);
        guest.send(all, b"");
        let rest = guest.receive_all().concat();
        assert_eq!([first, rest].concat(), text, "{buffer} {forwarded}");
    }
}

#[test]
fn a_guest_gets_its_credit_when_a_quarter_of_it_is_free_again() {
    let mut guest = Guest::connected();
    let step = BUFFER as usize / 4;

    guest.send(packet(Operation::Data), &data(0, step - 1));
    assert!(guest.receive().is_empty());
    guest.send(packet(Operation::Data), b"x");

    let packets = guest.receive();
    assert_eq!(operations(&packets), [Operation::CreditUpdate]);
    assert_eq!((packets[0].0.buffer, packets[0].0.forwarded), (BUFFER, step as u32));
}

#[test]
fn a_guest_that_asks_gets_its_credit() {
    let mut guest = Guest::connected();
    guest.send(packet(Operation::Data), b"some");

    guest.send(packet(Operation::CreditRequest), b"");

    let packets = guest.receive();
    assert_eq!(operations(&packets), [Operation::CreditUpdate]);
    assert_eq!(packets[0].0.forwarded, 4);
}

#[test]
fn what_a_peer_does_not_take_is_kept_and_sent_when_it_does() {
    let mut guest = Guest::connected();
    let text = data(3, BUFFER as usize);
    guest.host.with(guest.peer, |stream| stream.room = 1000);

    for piece in text.chunks(10_000) {
        guest.send(packet(Operation::Data), piece);
    }
    assert_eq!(guest.host.received(guest.peer), text[..1000]);
    assert!(guest.host.with(guest.peer, |stream| stream.wants_room));
    assert!(guest.receive().is_empty(), "no credit is free");

    for room in [1, 0, 20_000, 3000, 50_000] {
        guest.host.with(guest.peer, |stream| stream.room = room);
        guest.on_peer(WRITABLE);
    }

    assert_eq!(guest.host.received(guest.peer), text);
    assert!(!guest.host.with(guest.peer, |stream| stream.wants_room));
    let packets = guest.receive();
    assert!(packets.iter().all(|(header, _)| header.operation == Operation::CreditUpdate));
    assert_eq!(packets.last().unwrap().0.forwarded, BUFFER);
}

/// A stream of any length goes through to a peer that takes little at a time: libkrun stopped at 240 KB (#772).
#[test]
fn credit_never_starves() {
    let mut guest = Guest::connected();
    let text = data(0, 1 << 20);
    let (mut sent, mut forwarded) = (0, 0);
    guest.host.with(guest.peer, |stream| stream.room = 0);
    while guest.host.received_length(guest.peer) < text.len() {
        let credit = BUFFER as usize - (sent - forwarded);
        let length = credit.min(text.len() - sent).min(7001);
        if length > 0 {
            guest.send(packet(Operation::Data), &text[sent..sent + length]);
            sent += length;
        } else {
            guest.host.with(guest.peer, |stream| stream.room = 4093);
            guest.on_peer(WRITABLE);
        }
        for (header, _) in guest.receive() {
            assert_eq!(header.operation, Operation::CreditUpdate);
            forwarded = header.forwarded as usize;
        }
    }

    assert_eq!(guest.host.received(guest.peer), text);
}

#[test]
fn a_guest_that_sends_more_than_its_credit_is_reset() {
    let mut guest = Guest::connected();
    guest.host.with(guest.peer, |stream| stream.room = 0);
    guest.send(packet(Operation::Data), &data(0, BUFFER as usize));
    assert!(guest.receive().is_empty());

    guest.send(packet(Operation::Data), b"x");

    assert_eq!(operations(&guest.receive()), [Operation::Reset]);
    assert!(guest.host.with(guest.peer, |stream| stream.closed));
    assert_eq!(guest.counters().resets.load(Ordering::Relaxed), 1);
    assert_eq!(guest.counters().connections.load(Ordering::Relaxed), 0);
}

#[test]
fn a_packet_of_more_than_all_credit_is_reset() {
    let mut guest = Guest::connected();

    guest.send(packet(Operation::Data), &data(0, BUFFER as usize + 1));

    assert_eq!(operations(&guest.receive()), [Operation::Reset]);
    assert!(guest.host.received(guest.peer).is_empty());
}
