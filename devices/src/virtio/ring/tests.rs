#![allow(clippy::unwrap_used)]

use std::sync::Arc;

use proptest::prelude::*;
use vm_memory::GuestMemoryMmap;

use super::*;
use crate::virtio::testing::{
    DATA, Descriptor, INDIRECT, NEXT, RAM, RAM_END, Rings, WRITE, memory,
};

/// A table of descriptors in guest memory.
const TABLE: u64 = DATA + 0x10_0000;

/// A queue with both of its sides.
struct Bench {
    memory: Arc<GuestMemoryMmap>,
    rings: Rings,
    queue: Queue,
}

impl Bench {
    fn new(size: u16) -> Self {
        let memory = memory();
        let rings = Rings::new(memory.clone(), 0, size);
        let queue = rings.queue();
        Self { memory, rings, queue }
    }

    fn with_event_idx(size: u16) -> Self {
        let mut bench = Self::new(size);
        bench.queue.set_event_idx(true);
        bench
    }

    fn ring(&mut self) -> Ring<'_, GuestMemoryMmap> {
        Ring::new(&mut self.queue, &self.memory)
    }

    fn offer_some(&mut self, chains: usize) {
        for _ in 0..chains {
            self.rings.offer(&[Descriptor::readable(DATA, 1)]);
        }
    }

    fn take(&mut self) -> Result<Option<Chain>, Broken> {
        self.ring().take()
    }

    /// Takes the chain that begins at descriptor 0.
    fn take_first(&mut self) -> Result<Chain, Broken> {
        self.rings.make_available(0);
        self.take().map(Option::unwrap)
    }

    fn put_table(&self, table: &[Descriptor]) {
        for (index, descriptor) in table.iter().enumerate() {
            descriptor.put(&self.memory, TABLE, index as u16);
        }
    }
}

fn buffer(address: u64, length: u32, writable: bool) -> Buffer {
    Buffer { address: GuestAddress(address), length, writable }
}

#[test]
fn a_chain_has_the_buffers_of_its_descriptors_in_their_order() {
    let mut bench = Bench::new(8);
    bench.rings.offer(&[Descriptor::readable(DATA, 1), Descriptor::writable(DATA + 8, 2)]);

    let chain = bench.take().unwrap().unwrap();

    let expected = [buffer(DATA, 1, false), buffer(DATA + 8, 2, true)];
    assert_eq!(chain.buffers().unwrap(), expected);
    assert_eq!(chain.leading_buffers(), expected);
}

#[test]
fn an_empty_ring_gives_nothing() {
    let mut bench = Bench::new(8);

    assert!(bench.take().unwrap().is_none());
}

#[test]
fn a_chain_is_taken_once() {
    let mut bench = Bench::new(8);
    bench.rings.offer(&[Descriptor::readable(DATA, 1)]);

    assert!(bench.take().unwrap().is_some());
    assert!(bench.take().unwrap().is_none());
}

#[test]
fn a_ring_takes_as_many_chains_as_the_queue_is_long() {
    let mut bench = Bench::new(4);
    bench.offer_some(4);
    let Bench { memory, rings, queue } = &mut bench;
    let mut ring = Ring::new(queue, &**memory);

    let taken: Vec<bool> = (0..6)
        .map(|_| {
            let taken = ring.take().unwrap().is_some();
            // The driver never stops.
            rings.offer(&[Descriptor::readable(DATA, 1)]);
            taken
        })
        .collect();

    assert_eq!(taken, [true, true, true, true, false, false]);
    assert!(ring.is_exhausted());
}

#[test]
fn a_device_may_end_its_turn_early() {
    let mut bench = Bench::new(4);
    bench.offer_some(3);
    let mut ring = bench.ring();
    assert!(ring.take().unwrap().is_some());

    ring.end_turn();

    assert!(ring.take().unwrap().is_none());
    assert!(ring.is_exhausted());
    assert!(bench.ring().take().unwrap().is_some());
}

#[test]
fn a_completed_chain_is_in_the_used_ring_with_its_length() {
    let mut bench = Bench::new(8);
    bench.rings.offer(&[Descriptor::readable(DATA, 1)]);
    let second = bench.rings.offer(&[Descriptor::writable(DATA, 9)]);
    let mut ring = bench.ring();
    ring.take().unwrap();
    let chain = ring.take().unwrap().unwrap();

    ring.complete(chain.head(), u32::MAX).unwrap();

    assert_eq!(bench.rings.used(), [(second.into(), u32::MAX)]);
}

#[test]
#[cfg_attr(miri, ignore = "minutes: 70,000 turns, each of which other tests make")]
fn indices_pass_65536_and_go_on() {
    let mut bench = Bench::with_event_idx(2);
    for turn in 0..70_000_u32 {
        let head = bench.rings.offer(&[Descriptor::writable(DATA, 4)]);
        bench.rings.set_used_event(turn as u16);
        let mut ring = bench.ring();
        let chain = ring.take().unwrap().unwrap();
        ring.complete(chain.head(), turn).unwrap();

        assert!(ring.needs_interrupt().unwrap());
        assert!(!ring.enable_notifications().unwrap());
        assert_eq!(bench.rings.used(), [(head.into(), turn)]);
    }
}

#[test]
fn a_head_beyond_the_table_is_no_chain() {
    for head in [8, 9, 0x7fff, u16::MAX] {
        let mut bench = Bench::new(8);
        bench.rings.make_available(head);

        assert_eq!(bench.take().unwrap_err(), Broken::Chain);
    }
}

#[test]
fn an_available_index_may_be_as_far_ahead_as_the_queue_is_long_and_no_further() {
    let cases = [(8, true), (9, false), (0x8000, false), (0xffff, false)];
    for (index, followed) in cases {
        let mut bench = Bench::new(8);
        bench.offer_some(8);
        bench.rings.set_available_index(index);

        match bench.take() {
            Ok(chain) => assert!(followed && chain.is_some(), "{index}"),
            Err(broken) => assert!(!followed && broken == Broken::Available, "{index}"),
        }
    }
}

#[test]
fn an_available_index_that_goes_back_cannot_be_followed() {
    let mut bench = Bench::new(8);
    bench.rings.offer(&[Descriptor::readable(DATA, 1)]);
    bench.take().unwrap();

    bench.rings.set_available_index(0);

    assert_eq!(bench.take().unwrap_err(), Broken::Available);
}

#[test]
fn a_chain_may_be_as_long_as_its_queue() {
    let mut bench = Bench::new(8);
    bench.rings.offer(&[Descriptor::readable(DATA, 1); 8]);

    let chain = bench.take().unwrap().unwrap();

    assert_eq!(chain.buffers().unwrap().len(), 8);
}

#[test]
fn a_chain_that_loops_ends_with_an_error() {
    // Where each of four descriptors leads to.
    for next in [[0, 0, 0, 0], [1, 0, 0, 0], [1, 2, 3, 1], [1, 2, 3, 3]] {
        let mut bench = Bench::new(4);
        for (index, next) in next.into_iter().enumerate() {
            bench.rings.put(index as u16, Descriptor::readable(DATA, 1).then(next));
        }

        let chain = bench.take_first().unwrap();

        assert_eq!(chain.buffers(), Err(Broken::Chain));
        assert_eq!(chain.leading_buffers().len(), 4);
    }
}

#[test]
fn a_chain_that_leads_out_of_the_table_ends_with_an_error() {
    for next in [4, 5, u16::MAX] {
        let mut bench = Bench::new(4);
        bench.rings.put(0, Descriptor::readable(DATA, 1).then(next));

        let chain = bench.take_first().unwrap();

        assert_eq!(chain.buffers(), Err(Broken::Chain));
        assert_eq!(chain.leading_buffers(), [buffer(DATA, 1, false)]);
    }
}

#[test]
fn of_a_chain_longer_than_4_gib_the_beginning_is_kept() {
    let mut bench = Bench::new(4);
    let huge = Descriptor::writable(DATA, u32::MAX);
    bench.rings.offer(&[huge, Descriptor::writable(DATA, 1)]);

    let chain = bench.take().unwrap().unwrap();

    assert_eq!(chain.buffers(), Err(Broken::Chain));
    assert_eq!(chain.leading_buffers(), [buffer(DATA, u32::MAX, true)]);
}

#[test]
fn a_table_is_a_chain() {
    let mut bench = Bench::new(4);
    bench.put_table(&[Descriptor::readable(DATA, 1).then(2), Descriptor::default(), {
        Descriptor::writable(DATA, 2)
    }]);
    // 2.7.5.3.2: that the table would be writable means nothing.
    for flags in [INDIRECT, INDIRECT | WRITE] {
        bench.rings.put(0, Descriptor { flags, ..Descriptor::table(TABLE, 48) });

        let chain = bench.take_first().unwrap();

        let expected = [buffer(DATA, 1, false), buffer(DATA, 2, true)];
        assert_eq!(chain.buffers().unwrap(), expected);
    }
}

#[test]
fn a_table_may_end_a_chain() {
    let mut bench = Bench::new(4);
    bench.put_table(&[Descriptor::writable(DATA, 2)]);
    bench.rings.offer(&[Descriptor::readable(DATA, 1), Descriptor::table(TABLE, 16)]);

    let chain = bench.take().unwrap().unwrap();

    assert_eq!(chain.buffers().unwrap(), [buffer(DATA, 1, false), buffer(DATA, 2, true)]);
}

#[test]
fn a_table_may_be_as_long_as_the_queue_and_no_longer() {
    for (length, whole) in [(4, true), (5, false), (4096, false)] {
        let mut bench = Bench::new(4);
        let table: Vec<Descriptor> = (1..=length)
            .map(|next| {
                let descriptor = Descriptor::readable(DATA, 1);
                if next == length { descriptor } else { descriptor.then(next) }
            })
            .collect();
        bench.put_table(&table);
        bench.rings.put(0, Descriptor::table(TABLE, u32::from(length) * 16));

        let chain = bench.take_first().unwrap();

        assert_eq!(chain.buffers().is_ok(), whole, "{length}");
        assert_eq!(chain.leading_buffers().len(), 4);
    }
}

#[test]
fn a_table_in_a_table_is_not_followed() {
    let mut bench = Bench::new(4);
    bench.put_table(&[
        Descriptor::readable(DATA, 1).then(1),
        Descriptor::table(TABLE + 32, 16),
        Descriptor::readable(DATA, 2),
    ]);
    bench.rings.put(0, Descriptor::table(TABLE, 32));
    assert_eq!(bench.take_first().unwrap().buffers(), Err(Broken::Chain));

    bench.rings.put(0, Descriptor::table(TABLE + 16, 16));
    assert_eq!(bench.take_first().unwrap_err(), Broken::Chain);
}

#[test]
fn a_table_that_is_none_is_no_chain() {
    let cases = [
        ("empty", TABLE, 0),
        ("half a descriptor", TABLE, 8),
        ("odd", TABLE, 17),
        ("odd and huge", TABLE, u32::MAX),
        ("more than 65535 descriptors", TABLE, 65536 * 16),
        ("as long as lengths go", TABLE, u32::MAX - 15),
        ("below memory", RAM - 16, 16),
        ("above memory", RAM_END, 16),
        ("half above memory", RAM_END - 8, 16),
        ("nowhere", 0, 16),
        ("at the end of all addresses", u64::MAX - 15, 16),
        ("wrapping", u64::MAX, 32),
    ];
    for (name, address, length) in cases {
        let mut bench = Bench::new(4);
        bench.put_table(&[Descriptor::readable(DATA, 1)]);
        bench.rings.put(0, Descriptor::table(address, length));
        assert_eq!(bench.take_first().unwrap_err(), Broken::Chain, "{name}");

        bench.rings.put(0, Descriptor::readable(DATA, 1).then(1));
        bench.rings.put(1, Descriptor::table(address, length));
        assert_eq!(bench.take_first().unwrap().buffers(), Err(Broken::Chain), "{name}");
    }
}

#[test]
fn a_table_that_reaches_out_of_memory_is_followed_as_far_as_it_is_there() {
    let mut bench = Bench::new(4);
    Descriptor::readable(DATA, 1).then(1).put(&bench.memory, RAM_END - 16, 0);
    bench.rings.put(0, Descriptor::table(RAM_END - 16, 32));

    let chain = bench.take_first().unwrap();

    assert_eq!(chain.buffers(), Err(Broken::Chain));
    assert_eq!(chain.leading_buffers(), [buffer(DATA, 1, false)]);
}

#[test]
fn a_table_whose_descriptor_leads_elsewhere_too_is_the_end_of_the_chain() {
    let mut bench = Bench::new(4);
    bench.put_table(&[Descriptor::readable(DATA, 1)]);
    bench.rings.put(0, Descriptor { flags: INDIRECT | NEXT, ..Descriptor::table(TABLE, 16) });

    let chain = bench.take_first().unwrap();

    assert_eq!(chain.buffers().unwrap(), [buffer(DATA, 1, false)]);
}

#[test]
fn a_table_that_loops_ends_with_an_error() {
    let mut bench = Bench::new(4);
    bench.put_table(&[Descriptor::readable(DATA, 1).then(0)]);
    bench.rings.put(0, Descriptor::table(TABLE, 16));

    assert_eq!(bench.take_first().unwrap().buffers(), Err(Broken::Chain));
}

#[test]
fn a_buffer_is_in_guest_memory_as_a_whole() {
    let memory = memory();
    let cases = [
        (RAM, 1, true),
        (RAM, 16 << 20, true),
        (RAM_END - 1, 1, true),
        (RAM_END - 1, 2, false),
        (RAM_END, 1, false),
        (RAM - 1, 2, false),
        (RAM, u32::MAX, false),
        (0, 1, false),
        (u64::MAX, 1, false),
        (u64::MAX, u32::MAX, false),
        (u64::MAX - 3, 8, false),
        // Nothing is read or written there.
        (0, 0, true),
        (u64::MAX, 0, true),
    ];
    for (address, length, inside) in cases {
        for writable in [false, true] {
            let buffer = buffer(address, length, writable);
            let expected = match inside {
                true => Ok(buffer),
                false => Err(Broken::Buffer { address: GuestAddress(address), length }),
            };
            assert_eq!(buffer.checked(&*memory), expected);
        }
    }
}

#[test]
fn without_event_indices_flags_turn_notifications_off_and_on() {
    let mut bench = Bench::new(4);

    bench.ring().disable_notifications().unwrap();
    let off = bench.rings.used_flags();
    bench.ring().enable_notifications().unwrap();

    assert_eq!((off, bench.rings.used_flags()), (1, 0));
}

#[test]
fn with_event_indices_the_next_chain_is_asked_for() {
    let mut bench = Bench::with_event_idx(4);
    bench.rings.offer(&[Descriptor::readable(DATA, 1)]);
    bench.take().unwrap();

    bench.ring().disable_notifications().unwrap();
    bench.ring().enable_notifications().unwrap();

    assert_eq!((bench.rings.available_event(), bench.rings.used_flags()), (1, 0));
}

#[test]
fn a_chain_that_came_before_notifications_were_enabled_is_seen() {
    for mut bench in [Bench::new(4), Bench::with_event_idx(4)] {
        assert!(!bench.ring().enable_notifications().unwrap());
        bench.rings.offer(&[Descriptor::readable(DATA, 1)]);

        assert!(bench.ring().enable_notifications().unwrap());
    }
}

#[test]
fn an_interrupt_is_for_completed_chains_that_the_driver_waits_for() {
    for (flags, wanted) in [(0, true), (1, false), (0xfffe, true)] {
        let mut bench = Bench::new(4);
        bench.rings.offer(&[Descriptor::readable(DATA, 1)]);
        bench.rings.set_available_flags(flags);
        let mut ring = bench.ring();
        let chain = ring.take().unwrap().unwrap();
        assert!(!ring.needs_interrupt().unwrap());

        ring.complete(chain.head(), 0).unwrap();

        assert_eq!(ring.needs_interrupt().unwrap(), wanted, "{flags:#x}");
    }
}

#[test]
fn with_event_indices_the_driver_names_the_chain_it_waits_for() {
    // After three chains, numbers 0 to 2.
    for (event, wanted) in [(0, true), (2, true), (3, false), (0xffff, false)] {
        let mut bench = Bench::with_event_idx(4);
        bench.offer_some(3);
        bench.rings.set_used_event(event);
        // Flags mean nothing now.
        bench.rings.set_available_flags(1);
        let mut ring = bench.ring();
        while let Some(chain) = ring.take().unwrap() {
            ring.complete(chain.head(), 0).unwrap();
        }

        assert_eq!(ring.needs_interrupt().unwrap(), wanted, "{event}");
    }
}

#[test]
fn chains_that_belong_together_are_used_in_their_order_across_the_end_of_the_ring() {
    let mut bench = Bench::with_event_idx(4);
    for round in 0..5 {
        let heads: Vec<u16> =
            (0..3).map(|_| bench.rings.offer(&[Descriptor::writable(DATA, 8)])).collect();
        // In the middle of them.
        bench.rings.set_used_event(round * 3 + 1);
        let mut ring = bench.ring();
        let mut chains = Vec::new();
        while let Some(chain) = ring.take().unwrap() {
            chains.push((chain.head(), 5 + chains.len() as u32));
        }

        ring.complete_together(&chains).unwrap();

        assert!(ring.needs_interrupt().unwrap());
        let expected: Vec<_> = heads.into_iter().map(u32::from).zip(5..).collect();
        assert_eq!(bench.rings.used(), expected, "{round}");
    }
}

#[test]
fn of_chains_that_belong_together_a_wrong_one_leaves_the_driver_none() {
    for wrong in 0..3 {
        let mut bench = Bench::new(4);
        bench.offer_some(3);
        let mut chains = [0, 1, 2].map(|head| (Head(head), 1));
        chains[wrong].0 = Head(4);

        assert_eq!(bench.ring().complete_together(&chains), Err(Broken::Used));

        assert_eq!(bench.rings.used_index(), 0);
    }
    let mut bench = Bench::new(4);
    assert_eq!(bench.ring().complete_together(&[]), Ok(()));
    assert_eq!(bench.rings.used_index(), 0);
}

#[test]
fn chains_that_are_put_back_are_taken_again_and_do_not_count_for_the_turn() {
    let mut bench = Bench::with_event_idx(4);
    bench.offer_some(4);
    let mut ring = bench.ring();
    let first = ring.take().unwrap().unwrap().head();
    let second = ring.take().unwrap().unwrap().head();
    ring.complete(first, 0).unwrap();

    ring.put_back(1);

    for expected in [second.0, 2, 3] {
        assert_eq!(ring.take().unwrap().unwrap().head().0, expected);
    }
    assert!(ring.take().unwrap().is_none() && ring.is_exhausted());
    ring.put_back(3);
    let mut next = bench.ring();
    assert_eq!(next.take().unwrap().unwrap().head(), second);
}

#[test]
fn a_queue_that_is_nowhere_is_an_error_and_no_panic() {
    let mut bench = Bench::new(4);
    for nowhere in [0x1000, RAM_END, !0xf] {
        let nowhere = GuestAddress(nowhere);
        bench.queue.try_set_avail_ring_address(nowhere).unwrap();
        bench.queue.try_set_used_ring_address(nowhere).unwrap();
        bench.queue.try_set_desc_table_address(nowhere).unwrap();
        let mut ring = bench.ring();

        assert_eq!(ring.take().unwrap_err(), Broken::Available);
        assert_eq!(ring.complete(Head(0), 0), Err(Broken::Used));
        assert_eq!(ring.complete(Head(4), 0), Err(Broken::Used));
        assert_eq!(ring.disable_notifications(), Err(Broken::Used));
        assert_eq!(ring.enable_notifications(), Err(Broken::Used));
    }
}

proptest! {
    #[test]
    fn any_table_gives_chains_within_bounds(
        order in 0_u32..6,
        table in proptest::collection::vec(any::<(u64, u32, u16, u16)>(), 64),
        near in any::<bool>(),
        heads in proptest::collection::vec(0_u16..80, 1..64),
    ) {
        let size = 1 << order;
        let mut bench = Bench::new(size);
        for (index, (address, length, flags, next)) in table.into_iter().enumerate() {
            // Half of the time the tables lead to each other.
            let address = if near { bench.rings.table + address % 1024 } else { address };
            let (flags, next) = (flags & 7, next % 70);
            let length = if near { length % 64 * 8 } else { length };
            let descriptor = Descriptor { address, length, flags, next };
            descriptor.put(&bench.memory, bench.rings.table, index as u16);
        }
        heads.into_iter().take(size.into()).for_each(|head| bench.rings.make_available(head));
        let mut ring = bench.ring();

        while let Ok(Some(chain)) = ring.take() {
            let buffers = chain.leading_buffers();
            prop_assert!(!buffers.is_empty() && buffers.len() <= usize::from(size));
            for buffer in buffers {
                let _ = buffer.checked(ring.memory());
            }
            ring.complete(chain.head(), 0).unwrap();
        }
    }
}
