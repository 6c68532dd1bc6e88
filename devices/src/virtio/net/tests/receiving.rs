use super::*;

const MERGEABLE: Features = features::MRG_RXBUF;

/// Offers buffers of these lengths, each as descriptors of at most `piece` bytes, one after the other from
/// [`DATA`] on. Their heads.
fn offer(bench: &mut NetBench, lengths: &[usize], piece: usize) -> Vec<u32> {
    let mut address = DATA;
    let mut heads = Vec::new();
    for length in lengths {
        let mut chain = Vec::new();
        let mut left = *length;
        while left > 0 {
            let here = left.min(piece);
            chain.push(Descriptor::writable(address, here as u32));
            address += here as u64;
            left -= here;
        }
        heads.push(bench.rings(RECEIVE).offer(&chain).into());
    }
    heads
}

/// The header that the driver sees without offloads.
fn header(buffers: u16) -> Vec<u8> {
    [vec![0; 10], buffers.to_le_bytes().to_vec()].concat()
}

#[test]
fn a_frame_goes_into_a_buffer_of_any_layout() {
    let data = frame(90);
    for mergeable in [false, true] {
        for piece in 1..=110 {
            let network = Network::default();
            let acked = if mergeable { MERGEABLE } else { Features::default() };
            let mut bench = bench(&network, acked);
            let heads = offer(&mut bench, &[110], piece);
            network.put(&data);

            assert_eq!(receive(&mut bench), Some(Progress::Driver));

            assert_eq!(bench.rings(RECEIVE).used(), [(heads[0], 102)]);
            assert_eq!(memory(&bench, DATA, 102), [header(1), data.clone()].concat(), "{piece}");
            assert_eq!(memory(&bench, DATA + 102, 8), [0; 8]);
            assert_eq!(counted(&bench, |counters| &counters.rx_bytes), 90);
        }
    }
}

/// readv(2) takes 1024 pieces, and a driver may make many more of its buffers.
#[test]
fn a_frame_goes_into_more_pieces_than_a_port_takes() {
    for network in [Network::default(), Network::with_header()] {
        let mut bench = bench(&network, MERGEABLE);
        let data = frame(40000);
        offer(&mut bench, &[65562], 65562);
        // The next one is expected to be as long.
        network.put(&vec![0; data.len()]);
        assert_eq!(receive(&mut bench), Some(Progress::Driver));
        bench.rings(RECEIVE).used();
        let (pieces, size, tables) = (250_u16, 20, DATA + 0x10_0000);
        for chain in 0..10 {
            let table = tables + 0x1000 * chain;
            for index in 0..pieces {
                let at = DATA + size * (chain * u64::from(pieces) + u64::from(index));
                let piece = Descriptor::writable(at, size as u32);
                let last = index + 1 == pieces;
                let piece = if last { piece } else { piece.then(index + 1) };
                piece.put(&bench.memory, table, index);
            }
            let length = 16 * u32::from(pieces);
            bench.rings(RECEIVE).offer(&[Descriptor::table(table, length)]);
        }
        network.put(&data);

        let _ = receive(&mut bench);

        let used = bench.rings(RECEIVE).used();
        let written: u64 = used.iter().map(|(_, bytes)| u64::from(*bytes)).sum();
        let header = if network.has_header() { 0 } else { HEADER };
        assert_eq!(written, (data.len() + header) as u64);
        // The port's header has the number of buffers.
        let received = memory(&bench, DATA + HEADER as u64, data.len() - HEADER);
        assert!(received == data[HEADER - header..][..data.len() - HEADER]);
    }
}

#[test]
fn a_header_of_the_port_is_passed_on_with_the_number_of_buffers() {
    let network = Network::with_header();
    let mut bench = bench(&network, MERGEABLE);
    let heads = offer(&mut bench, &[50, 50, 50], 11);
    let data = frame(112);
    network.put(&data);

    assert_eq!(receive(&mut bench), Some(Progress::Driver));

    assert_eq!(bench.rings(RECEIVE).used(), [(heads[0], 50), (heads[1], 50), (heads[2], 12)]);
    let mut expected = data;
    expected[10..12].copy_from_slice(&[3, 0]);
    assert_eq!(memory(&bench, DATA, 112), expected);
}

#[test]
fn frames_of_changing_sizes_fill_buffers_of_changing_sizes() {
    let network = Network::default();
    let mut bench = bench(&network, MERGEABLE);
    let lengths = [12, 13, 2000, 64, 64, 64, 70000, 100, 1500, 1500, 1500];
    offer(&mut bench, &lengths, 999);
    // With their headers: 13 bytes in two buffers, 2064 in two, 65562 in three.
    for length in [1, 2040, 65550, 60] {
        network.put(&frame(length));
    }

    assert_eq!(receive(&mut bench), Some(Progress::Port));

    let written: Vec<_> = bench.rings(RECEIVE).used().iter().map(|(_, bytes)| *bytes).collect();
    assert_eq!(written, [12, 1, 2000, 52, 64, 64, 65434, 72]);
}

#[test]
fn a_frame_without_room_waits_for_buffers_and_is_not_lost() {
    let network = Network::default();
    let mut bench = bench(&network, MERGEABLE);
    offer(&mut bench, &[1000, 1000], 700);
    let data = frame(4000);
    network.put(&data);
    network.put(&frame(60));

    assert_eq!(receive(&mut bench), Some(Progress::Driver));
    assert!(bench.rings(RECEIVE).used().is_empty());
    // A notification is asked for when there is a third buffer.
    assert_eq!(bench.rings(RECEIVE).available_event(), 2);
    bench.rings(RECEIVE).offer(&[Descriptor::writable(DATA + 2000, 1000)]);
    assert_eq!(receive(&mut bench), Some(Progress::Driver));
    assert!(bench.rings(RECEIVE).used().is_empty());
    assert_eq!(bench.rings(RECEIVE).available_event(), 3);
    bench.rings(RECEIVE).offer(&[Descriptor::writable(DATA + 3000, 1012)]);
    assert_eq!(receive(&mut bench), Some(Progress::Driver));

    let written: Vec<_> = bench.rings(RECEIVE).used().iter().map(|(_, bytes)| *bytes).collect();
    assert_eq!(written, [1000, 1000, 1000, 1012]);
    assert_eq!(memory(&bench, DATA, 4012), [header(4), data].concat());
    assert_eq!(network.coming(), 1, "the next frame stays where it is");
    assert_eq!(counted(&bench, |counters| &counters.rx_starved), 4);
}

#[test]
fn a_frame_for_which_a_whole_queue_is_too_small_is_dropped() {
    let network = Network::default();
    let mut bench = bench(&network, MERGEABLE);
    offer(&mut bench, &[20; 256], 20);
    network.put(&frame(60000));
    network.put(&frame(30));

    assert_eq!(receive(&mut bench), Some(Progress::More));
    assert_eq!(receive(&mut bench), Some(Progress::Port));

    assert_eq!(counted(&bench, |counters| &counters.rx_oversized), 1);
    let written: Vec<_> = bench.rings(RECEIVE).used().iter().map(|(_, bytes)| *bytes).collect();
    assert_eq!(written, [20, 20, 2]);
}

#[test]
fn without_mergeable_buffers_a_frame_beyond_its_buffer_is_dropped_and_the_buffer_kept() {
    let network = Network::default();
    let mut bench = bench(&network, Features::default());
    let heads = offer(&mut bench, &[100, 100], 30);
    network.put(&frame(89));
    network.put(&frame(88));

    assert_eq!(receive(&mut bench), Some(Progress::Port));

    assert_eq!(bench.rings(RECEIVE).used(), [(heads[0], 100)]);
    assert_eq!(counted(&bench, |counters| &counters.rx_oversized), 1);
}

#[test]
fn no_frame_is_longer_than_the_specification_has_it() {
    for (length, taken) in [(65550, true), (65551, false), (100_000, false)] {
        let network = Network::default();
        let mut bench = bench(&network, MERGEABLE);
        offer(&mut bench, &[200_000], 200_000);
        network.put(&frame(length));

        let _ = receive(&mut bench);

        assert_eq!(bench.rings(RECEIVE).used().len(), usize::from(taken), "{length}");
    }
}

#[test]
fn a_port_that_gives_nothing_but_dropped_frames_does_not_keep_the_thread() {
    let network = Network::default();
    let mut bench = bench(&network, Features::default());
    offer(&mut bench, &[100], 100);
    for _ in 0..1000 {
        network.put(&frame(1000));
    }

    assert_eq!(receive(&mut bench), Some(Progress::More));

    assert_eq!(network.coming(), 1000 - 256);
}

#[test]
fn a_port_that_fails_is_counted_and_read_again_later() {
    let network = Network::default();
    let mut bench = bench(&network, MERGEABLE);
    let heads = offer(&mut bench, &[100], 100);
    network.fail(ErrorKind::InvalidInput);
    network.put(&frame(60));

    assert_eq!(receive(&mut bench), Some(Progress::Port));
    assert_eq!(receive(&mut bench), Some(Progress::Driver));

    assert_eq!(bench.rings(RECEIVE).used(), [(heads[0], 72)]);
    assert_eq!(counted(&bench, |counters| &counters.rx_failures), 1);
}

#[test]
fn a_driver_without_buffers_is_to_notify_and_frames_stay_in_the_port() {
    let network = Network::default();
    let mut bench = bench(&network, MERGEABLE);
    network.put(&frame(60));

    assert_eq!(receive(&mut bench), Some(Progress::Driver));
    assert_eq!(network.coming(), 1);
    assert_eq!(bench.rings(RECEIVE).available_event(), 0);
    offer(&mut bench, &[100, 100], 100);
    assert_eq!(receive(&mut bench), Some(Progress::Port));

    assert_eq!(bench.rings(RECEIVE).used().len(), 1);
    // It has buffers, so it need not notify of more.
    assert_eq!(bench.rings(RECEIVE).available_event(), 0);
}

#[test]
fn a_chain_that_is_no_buffer_for_frames_breaks_the_device() {
    for chain in [
        &[Descriptor::readable(DATA, 100)][..],
        &[Descriptor::readable(DATA, 100), Descriptor::writable(DATA, 100)],
        &[Descriptor::writable(DATA, 100), Descriptor::readable(DATA, 100)],
        &[Descriptor::writable(DATA, 0)],
        &[Descriptor::writable(DATA, 11)],
        &[Descriptor::writable(0x10, 100)],
        &[Descriptor::writable(DATA, 100), Descriptor::writable(u64::MAX - 5, 100)],
    ] {
        for acked in [Features::default(), MERGEABLE] {
            let network = Network::default();
            let mut bench = bench(&network, acked);
            bench.rings(RECEIVE).offer(chain);
            network.put(&frame(60));

            assert_eq!(receive(&mut bench), None);

            assert!(bench.transport.broken().is_some());
            assert!(bench.rings(RECEIVE).used().is_empty());
        }
    }
}

#[test]
fn a_reset_forgets_a_frame_that_waits() {
    let network = Network::default();
    let mut bench = bench(&network, MERGEABLE);
    offer(&mut bench, &[100], 100);
    network.put(&frame(500));
    assert_eq!(receive(&mut bench), Some(Progress::Driver));

    bench.initialise(Features::VERSION_1);
    offer(&mut bench, &[100], 100);
    network.put(&frame(50));
    assert_eq!(receive(&mut bench), Some(Progress::Driver));

    assert_eq!(bench.rings(RECEIVE).used().len(), 1);
    assert_eq!(memory(&bench, DATA + 12, 50), frame(50));
}
