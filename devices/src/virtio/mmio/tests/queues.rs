//! Setting up queues (4.2.3.2).

use virtio_queue::QueueT;

use super::*;
use crate::virtio::testing::{RAM, RAM_END};

/// Parts of a queue of the greatest size, one after the other.
const PARTS: [u64; 3] = [RAM, RAM + 0x8_0000, RAM + 0xa_0000];

/// A device with one queue, up to the queues in its initialisation.
fn bench(max: u16) -> Bench<Probe> {
    let mut bench = Bench::new(Probe::new(&[max]));
    assert!(bench.negotiate(Features::VERSION_1));
    bench
}

#[test]
fn queues_have_sizes_and_others_are_not_there() {
    let mut bench = fresh();

    for (queue, max) in [(0, 8), (1, 4), (2, 0), (0xffff, 0), (u32::MAX, 0)] {
        bench.write(register::QUEUE_SEL, queue);
        assert_eq!(bench.read(register::QUEUE_NUM_MAX), max);
        assert_eq!(bench.read(register::QUEUE_READY), 0);
    }
}

#[test]
fn a_queue_that_is_not_there_cannot_be_set_up() {
    let mut bench = fresh();
    assert!(bench.negotiate(Features::VERSION_1));

    for queue in [2, 0x1_0000, 0xffff_ffff] {
        assert!(!bench.set_up_at(queue, 4, PARTS));
    }

    assert_eq!(bench.transport.broken(), None);
}

#[test]
fn a_size_is_a_power_of_two_up_to_the_greatest() {
    let edges = [0x1_0000, 0x1_0001, 0x1_0100, 0x2_0000, 1 << 24, 1 << 31, u32::MAX - 1, u32::MAX];
    for size in (0..=0x8001).chain(edges) {
        let valid = size.is_power_of_two() && size <= 0x8000;
        let mut bench = bench(0x8000);

        assert_eq!(bench.set_up_at(0, size, PARTS), valid, "{size}");

        let broken = (!valid).then_some(Broken::Queue { queue: 0 });
        assert_eq!(bench.transport.broken(), broken.as_ref(), "{size}");
        assert_eq!(bench.status() & status::NEEDS_RESET != 0, !valid, "{size}");
    }
}

#[test]
fn a_size_is_at_most_what_the_device_offers() {
    for (max, size, valid) in [(1, 1, true), (1, 2, false), (128, 128, true), (128, 256, false)] {
        let mut bench = bench(max);

        assert_eq!(bench.set_up_at(0, size, PARTS), valid, "{size} of {max}");
    }
}

#[test]
fn queues_of_every_size_work() {
    for size in (0..16).map(|order| 1 << order) {
        let mut bench = bench(0x8000);
        assert!(bench.set_up(0, size));
        bench.start();

        // One more chain than there is room for at a time.
        for _ in 0..2 {
            let heads: Vec<u32> =
                (0..size / 2 + 1).map(|_| bench.rings(0).offer(&[ANY]).into()).collect();
            bench.kick(0);
            let used: Vec<u32> = bench.rings(0).used().into_iter().map(|(head, _)| head).collect();
            assert_eq!(used, heads, "{size}");
        }
    }
}

#[test]
fn parts_of_a_queue_are_in_memory_and_aligned() {
    // A queue of 8: 128 bytes of table, 22 available, 70 used.
    let cases: [([u64; 3], bool); 20] = [
        ([RAM, RAM + 0x1000, RAM + 0x2000], true),
        ([RAM_END - 128, RAM_END - 22, RAM_END - 72], true),
        ([RAM + 8, RAM + 0x1000, RAM + 0x2000], false),
        ([RAM + 1, RAM + 0x1000, RAM + 0x2000], false),
        ([RAM, RAM + 0x1001, RAM + 0x2000], false),
        ([RAM, RAM + 0x1002, RAM + 0x2000], true),
        ([RAM, RAM + 0x1000, RAM + 0x2002], false),
        ([RAM, RAM + 0x1000, RAM + 0x2004], true),
        ([RAM - 16, RAM + 0x1000, RAM + 0x2000], false),
        ([RAM, RAM - 2, RAM + 0x2000], false),
        ([RAM, RAM + 0x1000, RAM - 4], false),
        ([RAM_END - 112, RAM + 0x1000, RAM + 0x2000], false),
        ([RAM, RAM_END - 20, RAM + 0x2000], false),
        ([RAM, RAM + 0x1000, RAM_END - 68], false),
        ([0, RAM + 0x1000, RAM + 0x2000], false),
        ([RAM, 0, RAM + 0x2000], false),
        ([RAM, RAM + 0x1000, 0], false),
        ([u64::MAX - 15, RAM + 0x1000, RAM + 0x2000], false),
        ([RAM, u64::MAX - 1, RAM + 0x2000], false),
        ([RAM, RAM + 0x1000, u64::MAX - 3], false),
    ];
    for (parts, valid) in cases {
        let mut bench = bench(8);

        assert_eq!(bench.set_up_at(0, 8, parts), valid, "{parts:x?}");
        assert_eq!(bench.transport.broken().is_none(), valid, "{parts:x?}");
    }
}

#[test]
fn a_queue_whose_size_was_not_written_is_none() {
    let mut bench = bench(8);

    bench.write(register::QUEUE_DESC, RAM as u32);
    bench.write(register::QUEUE_DRIVER, RAM as u32 + 0x1000);
    bench.write(register::QUEUE_DEVICE, RAM as u32 + 0x2000);
    bench.write(register::QUEUE_READY, 1);

    assert_eq!(bench.transport.broken(), Some(&Broken::Queue { queue: 0 }));
}

#[test]
fn both_halves_of_an_address_count_in_either_order() {
    let mut bench = bench(8);
    assert!(bench.set_up(0, 8));
    bench.write(register::QUEUE_READY, 0);

    bench.write(register::QUEUE_DESC + 4, 1);
    bench.write(register::QUEUE_DESC, RAM as u32);
    bench.write(register::QUEUE_DESC + 4, 0);
    bench.write(register::QUEUE_READY, 1);

    assert_eq!(bench.transport.slots[0].queue.as_ref().unwrap().desc_table(), RAM);
}

#[test]
fn registers_of_a_queue_that_is_ready_do_not_change() {
    let mut bench = bench(8);
    assert!(bench.set_up(0, 8));

    for offset in [0x038, 0x080, 0x084, 0x090, 0x094, 0x0a0, 0x0a4] {
        bench.write(offset, 0xdead_beef);
    }
    // It starts from the registers again.
    bench.write(register::QUEUE_READY, 0);
    bench.write(register::QUEUE_READY, 1);

    assert_eq!(bench.read(register::QUEUE_READY), 1);
}

#[test]
fn only_one_makes_a_queue_ready_and_only_zero_stops_it() {
    let mut bench = bench(8);
    assert!(bench.set_up(0, 8));

    for value in [2, 0x100, u32::MAX] {
        bench.write(register::QUEUE_READY, value);
        assert_eq!(bench.read(register::QUEUE_READY), 1);
    }
    bench.write(register::QUEUE_READY, 0);
    for value in [2, 0x101, u32::MAX] {
        bench.write(register::QUEUE_READY, value);
        assert_eq!(bench.read(register::QUEUE_READY), 0);
    }
}

#[test]
fn a_queue_that_is_made_ready_twice_goes_on() {
    let mut bench = started(Features::default());
    bench.rings(0).offer(&[ANY]);
    bench.kick(0);

    bench.write(register::QUEUE_SEL, 0);
    bench.write(register::QUEUE_READY, 1);
    let head = bench.rings(0).offer(&[ANY]);
    bench.kick(0);

    assert_eq!(bench.rings(0).used().last(), Some(&(head.into(), 0)));
}

#[test]
fn a_queue_that_is_stopped_is_not_touched_and_does_not_start_again() {
    let mut bench = started(Features::default());
    bench.write(register::QUEUE_SEL, 0);
    bench.write(register::QUEUE_READY, 0);
    assert_eq!(bench.read(register::QUEUE_READY), 0);
    bench.rings(0).offer(&[ANY]);

    bench.kick(0);
    bench.write(register::QUEUE_READY, 1);
    bench.kick(0);

    assert_eq!(bench.read(register::QUEUE_READY), 0);
    assert_eq!((calls(&mut bench), bench.rings(0).used_index()), (vec![], 0));
    assert!(bench.transport.is_active());
}

#[test]
fn a_device_works_with_some_of_its_queues() {
    let mut bench = fresh();
    assert!(bench.negotiate(Features::VERSION_1));
    assert!(bench.set_up(1, 2));
    bench.start();
    bench.rings(1).offer(&[ANY]);

    bench.kick(0);
    bench.kick(1);

    assert_eq!(bench.rings(1).used_index(), 1);
    assert!(bench.transport.is_active());
}

#[test]
fn a_device_that_is_broken_before_it_starts_says_so_when_it_does() {
    let mut bench = bench(8);
    assert!(!bench.set_up_at(0, 3, PARTS));
    assert_eq!((bench.take_interrupts(), bench.line.take()), (0, 0));

    bench.start();

    assert_eq!((bench.take_interrupts(), bench.line.take()), (2, 1));
    assert!(!bench.transport.is_active());
    assert_eq!(calls(&mut bench), [Call::Reset]);
}

#[test]
fn the_first_thing_that_broke_the_device_is_kept() {
    let mut bench = Bench::new(Probe::new(&[8, 8]));
    assert!(bench.negotiate(Features::VERSION_1));

    assert!(!bench.set_up_at(1, 3, PARTS));
    assert!(!bench.set_up_at(0, 3, PARTS));

    assert_eq!(bench.transport.broken(), Some(&Broken::Queue { queue: 1 }));
}
