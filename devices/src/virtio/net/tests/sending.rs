use super::*;

fn put(bench: &NetBench, address: u64, bytes: &[u8]) {
    bench.memory.write_slice(bytes, GuestAddress(address)).unwrap();
}

/// A header that means something, and a frame.
fn packet(length: usize) -> Vec<u8> {
    [vec![1, 0, 0, 0, 0, 0, 34, 0, 16, 0, 0, 0], frame(length)].concat()
}

#[test]
fn a_frame_of_any_layout_is_sent_whole() {
    let packet = packet(100);
    let last = packet.len() as u32;
    for has_header in [false, true] {
        for first in 0..=last {
            for second in [first, (first + 13).min(last), last] {
                let network = if has_header { Network::with_header() } else { Network::default() };
                let mut bench = bench(&network, Features::default());
                put(&bench, DATA, &packet);
                let chain = [(0, first), (first, second), (second, last)]
                    .map(|(from, to)| Descriptor::readable(DATA + u64::from(from), to - from));
                let head = bench.rings(TRANSMIT).offer(&chain);

                assert_eq!(transmit(&mut bench), Some(Progress::Driver));

                let expected = if has_header { &packet[..] } else { &packet[12..] };
                assert_eq!(network.sent(), [expected], "{first} {second}");
                assert_eq!(bench.rings(TRANSMIT).used(), [(head.into(), 0)]);
                assert_eq!(counted(&bench, |counters| &counters.tx_bytes), 100);
            }
        }
    }
}

#[test]
fn what_is_no_frame_is_dropped_and_the_next_one_is_sent() {
    let network = Network::default();
    let mut bench = bench(&network, Features::default());
    for length in [0, 1, 12, 25, 65563, u32::MAX] {
        bench.rings(TRANSMIT).offer(&[Descriptor::readable(DATA, length)]);
    }
    bench.rings(TRANSMIT).offer(&[Descriptor::readable(DATA, 26)]);
    bench.rings(TRANSMIT).offer(&[Descriptor::readable(DATA, 65562)]);

    assert_eq!(transmit(&mut bench), Some(Progress::Driver));

    let lengths: Vec<_> = network.sent().iter().map(Vec::len).collect();
    assert_eq!(lengths, [14, 65550]);
    assert_eq!(counted(&bench, |counters| &counters.tx_malformed), 6);
    assert_eq!(bench.rings(TRANSMIT).used().len(), 8);
}

#[test]
fn a_chain_that_is_none_of_a_frame_breaks_the_device() {
    for chain in [
        &[Descriptor::writable(DATA, 100)][..],
        &[Descriptor::readable(DATA, 100), Descriptor::writable(DATA, 1)],
        &[Descriptor::writable(DATA, 1), Descriptor::readable(DATA, 100)],
        &[Descriptor::readable(0x10, 100)],
        &[Descriptor::readable(DATA, 20), Descriptor::readable(u64::MAX - 5, 100)],
    ] {
        let network = Network::default();
        let mut bench = bench(&network, Features::default());
        bench.rings(TRANSMIT).offer(chain);

        assert_eq!(transmit(&mut bench), None);

        assert!(bench.transport.broken().is_some());
        assert!(network.sent().is_empty());
    }
}

#[test]
fn a_frame_that_the_port_does_not_take_is_sent_again_in_its_place() {
    let network = Network::default();
    let mut bench = bench(&network, Features::default());
    put(&bench, DATA, &packet(100));
    network.answer(ErrorKind::WouldBlock);
    let first = bench.rings(TRANSMIT).offer(&[Descriptor::readable(DATA, 112)]);
    let second = bench.rings(TRANSMIT).offer(&[Descriptor::readable(DATA, 40)]);

    assert_eq!(transmit(&mut bench), Some(Progress::Port));
    assert!(bench.rings(TRANSMIT).used().is_empty());
    assert_eq!(transmit(&mut bench), Some(Progress::Driver));

    let lengths: Vec<_> = network.sent().iter().map(Vec::len).collect();
    assert_eq!(lengths, [100, 28]);
    assert_eq!(bench.rings(TRANSMIT).used(), [(first.into(), 0), (second.into(), 0)]);
    assert_eq!(counted(&bench, |counters| &counters.tx_blocked), 1);
}

#[test]
fn frames_that_cannot_be_sent_are_counted_by_reason_and_given_back() {
    let network = Network::default();
    let mut bench = bench(&network, Features::default());
    for kind in [ErrorKind::NotConnected, ErrorKind::InvalidInput, ErrorKind::NotConnected] {
        network.answer(kind);
        bench.rings(TRANSMIT).offer(&[Descriptor::readable(DATA, 100)]);
    }

    assert_eq!(transmit(&mut bench), Some(Progress::Driver));

    assert_eq!(bench.rings(TRANSMIT).used().len(), 3);
    assert_eq!(counted(&bench, |counters| &counters.tx_unlinked), 2);
    assert_eq!(counted(&bench, |counters| &counters.tx_failures), 1);
    assert_eq!(counted(&bench, |counters| &counters.tx_frames), 0);
}

#[test]
fn one_turn_is_a_queue_of_frames_at_most() {
    let network = Network::default();
    let mut bench = bench(&network, Features::default());
    for _ in 0..256 {
        bench.rings(TRANSMIT).offer(&[Descriptor::readable(DATA, 60)]);
    }

    // The driver may have put more there meanwhile.
    assert_eq!(transmit(&mut bench), Some(Progress::More));
    assert_eq!(transmit(&mut bench), Some(Progress::Driver));

    assert_eq!(network.sent().len(), 256);
}

#[test]
fn the_driver_notifies_once_the_queue_is_empty() {
    let network = Network::default();
    let mut bench = bench(&network, Features::default());
    for number in 1..=3 {
        bench.rings(TRANSMIT).offer(&[Descriptor::readable(DATA, 60)]);
        assert_eq!(transmit(&mut bench), Some(Progress::Driver));
        assert_eq!(bench.rings(TRANSMIT).available_event(), number);
    }
}

#[test]
fn a_part_that_has_sent_leaves_notifications_off() {
    let network = Network::default();
    let mut bench = bench(&network, Features::default());
    let part = |bench: &mut NetBench| bench.transport.with_queue(TRANSMIT, Net::transmit_part);
    bench.rings(TRANSMIT).offer(&[Descriptor::readable(DATA, 26)]);

    assert_eq!(part(&mut bench), Some(Progress::More));
    assert_eq!((network.sent().len(), bench.rings(TRANSMIT).available_event()), (1, 0));

    assert_eq!(part(&mut bench), Some(Progress::Driver));
    assert_eq!(bench.rings(TRANSMIT).available_event(), 1);
}
