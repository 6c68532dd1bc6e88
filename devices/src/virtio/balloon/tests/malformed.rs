//! What breaks the device: the same for each queue that the driver sends bytes on.

use super::*;

const SENDING: [usize; 3] = [INFLATE, DEFLATE, STATISTICS];

/// Sends a chain on each queue of [`SENDING`], to a new device each, and collects the answers.
fn send_everywhere(parts: &[Part]) -> Vec<Result<(), Broken>> {
    SENDING.map(|queue| on_a_new_bench(|bench| bench.send(queue, parts))).to_vec()
}

/// A device that breaks has done nothing.
fn on_a_new_bench(act: impl FnOnce(&mut Bench) -> Result<(), Broken>) -> Result<(), Broken> {
    let mut bench = Bench::new();
    let result = act(&mut bench);
    if result.is_err() {
        assert_eq!((bench.inflated(), bench.discarded()), (0, vec![]));
        assert!((0..4).all(|queue| bench.used(queue).is_empty()));
    }
    result
}

#[test]
fn a_buffer_that_is_not_in_guest_memory_breaks_it() {
    let end = ranges::end(RAM);
    let cases = [
        (0, 40),
        (RAM.start.0 - 4, 8),
        (end - 4, 8),
        (end, 4),
        (u64::MAX - 3, 4),
        (u64::MAX - 3, 40),
        (u64::MAX, 1 << 15),
    ];
    for (address, length) in cases {
        let broken = Broken::Buffer { address: GuestAddress(address), length };

        let results = send_everywhere(&[(DATA, 4, 0), (address, length, 0)]);

        assert_eq!(results, vec![Err(broken); 3], "{length} bytes at {address:#x}");
    }
}

#[test]
fn the_part_of_a_buffer_that_is_not_read_must_be_in_guest_memory_too() {
    let mut bench = Bench::new();
    let (address, length) = (GuestAddress(DATA), 16 << 20);

    let result = bench.send(STATISTICS, &[(DATA, 10_000, 0), (DATA, length, 0)]);

    assert_eq!(result, Err(Broken::Buffer { address, length }));
    assert_eq!(bench.balloon.statistics(), None);
}

#[test]
fn the_longest_buffer_breaks_it() {
    let results = send_everywhere(&[(DATA, u32::MAX, 0)]);

    assert!(matches!(results[0], Err(Broken::Form(_))));
    assert!(matches!(results[1], Err(Broken::Form(_))));
    assert!(matches!(results[2], Err(Broken::Buffer { length: u32::MAX, .. })));
}

#[test]
fn empty_buffers_are_harmless_anywhere() {
    for address in [0, DATA, ranges::end(RAM), u64::MAX] {
        let results = send_everywhere(&[(address, 0, 0), (address, 0, WRITE)]);

        assert_eq!(results, vec![Ok(()); 3], "at {address:#x}");
    }
}

#[test]
fn buffers_for_the_device_to_write_are_left_alone() {
    for address in [0, DATA, u64::MAX] {
        let results = send_everywhere(&[(address, 5, WRITE), (0, 0xffff_0000, WRITE)]);

        assert_eq!(results, vec![Ok(()); 3], "at {address:#x}");
    }
}

#[test]
fn a_list_of_pages_that_ends_in_a_number_breaks_it() {
    for queue in [INFLATE, DEFLATE] {
        for length in [1, 2, 3, 5, 1023, 0x1_0001] {
            let result = on_a_new_bench(|bench| bench.send(queue, &[(DATA, length, 0)]));

            assert!(matches!(result, Err(Broken::Form(_))), "{length} bytes");
        }
    }
}

#[test]
fn a_list_of_pages_has_a_longest_length() {
    for queue in [INFLATE, DEFLATE] {
        let longest = on_a_new_bench(|bench| bench.send(queue, &[(DATA, 1 << 16, 0)]));
        let longer = on_a_new_bench(|bench| bench.send(queue, &[(DATA, 1 << 16, 0), (DATA, 4, 0)]));

        assert_eq!(longest, Ok(()));
        assert!(matches!(longer, Err(Broken::Form(_))));
    }
}

#[test]
fn long_lists_take_turns() {
    for queue in [INFLATE, DEFLATE] {
        let mut bench = Bench::new();
        for _ in 0..3 {
            bench.post(queue, &[(DATA, 0xc000, 0)]);
        }

        // A host discards every page by itself if the driver wants it so.
        bench.serve(queue).unwrap();
        assert_eq!(bench.used(queue).len(), 2);
        bench.serve(queue).unwrap();
        assert_eq!(bench.used(queue).len(), 3);
    }
}

#[test]
fn a_chain_that_loops_breaks_it() {
    for queue in SENDING {
        let result = on_a_new_bench(|bench| {
            let base = queue_base(queue);
            bench.descriptor(base, (DATA, 4, NEXT), 1);
            bench.descriptor(base + 16, (DATA, 4, NEXT), 0);
            bench.offer(queue, 0);
            bench.serve(queue)
        });

        assert_eq!(result, Err(Broken::Chain));
    }
}

#[test]
fn a_chain_that_leaves_its_table_breaks_it() {
    for queue in SENDING {
        let result = on_a_new_bench(|bench| {
            bench.descriptor(queue_base(queue), (DATA, 4, NEXT), QUEUE_SIZE);
            bench.offer(queue, 0);
            bench.serve(queue)
        });

        assert_eq!(result, Err(Broken::Chain));
    }
}

#[test]
fn a_chain_longer_than_its_queue_breaks_it() {
    for queue in SENDING {
        let result = on_a_new_bench(|bench| {
            for slot in 0..=QUEUE_SIZE {
                let flags = if slot < QUEUE_SIZE { NEXT } else { 0 };
                let address = DATA + 0x1000 + 16 * u64::from(slot);
                bench.descriptor(address, (DATA, 4, flags), slot + 1);
            }
            bench.send(queue, &[(DATA + 0x1000, 16 * (u32::from(QUEUE_SIZE) + 1), INDIRECT)])
        });

        assert_eq!(result, Err(Broken::Chain));
    }
}

#[test]
fn a_chain_as_long_as_its_queue_is_fine() {
    let parts = vec![(DATA, 4, 0); usize::from(QUEUE_SIZE)];

    assert_eq!(send_everywhere(&parts), vec![Ok(()); 3]);
}

#[test]
fn a_chain_without_a_buffer_breaks_every_queue() {
    for queue in [INFLATE, DEFLATE, STATISTICS, REPORTING] {
        let outside = on_a_new_bench(|bench| {
            bench.offer(queue, QUEUE_SIZE);
            bench.serve(queue)
        });
        let bad_table = on_a_new_bench(|bench| bench.send(queue, &[(0, 32, INDIRECT)]));

        assert_eq!((outside, bad_table), (Err(Broken::Chain), Err(Broken::Chain)));
    }
}

#[test]
fn an_available_index_out_of_reach_breaks_every_queue() {
    for queue in [INFLATE, DEFLATE, STATISTICS, REPORTING] {
        let result = on_a_new_bench(|bench| {
            bench.available[queue] = QUEUE_SIZE;
            bench.offer(queue, 0);
            bench.serve(queue)
        });

        assert_eq!(result, Err(Broken::Available));
    }
}

#[test]
fn what_came_before_a_broken_chain_is_done() {
    let mut bench = Bench::new();
    bench.store(DATA, &FIRST.to_le_bytes());
    bench.post(INFLATE, &[(DATA, 4, 0)]);
    bench.post(INFLATE, &[(DATA, 3, 0)]);

    let result = bench.serve(INFLATE);

    assert!(matches!(result, Err(Broken::Form(_))));
    assert_eq!((bench.inflated(), bench.used(INFLATE).len()), (PAGE, 1));
}
