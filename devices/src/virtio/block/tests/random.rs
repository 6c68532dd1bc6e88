//! Random drivers: nothing panics, and what is completed is right.

use proptest::prelude::*;

use super::*;
use crate::virtio::testing::RAM_END;

/// A buffer, most of them usable.
fn buffers() -> impl Strategy<Value = Vec<Descriptor>> {
    let address = prop_oneof![
        8 => DATA..DATA + 0x8000,
        1 => Just(RAM_END - 8),
        1 => any::<u64>(),
    ];
    let length =
        prop_oneof![Just(0u32), Just(1), Just(16), Just(512), Just(513), 0u32..4096, any::<u32>()];
    let buffer =
        (address, length, any::<bool>()).prop_map(|(address, length, writable)| match writable {
            true => Descriptor::writable(address, length),
            false => Descriptor::readable(address, length),
        });
    prop::collection::vec(buffer, 1..6)
}

proptest! {
    // With the chains of each case, over 10^5 requests.
    #![proptest_config(ProptestConfig::with_cases(8000))]

    #[test]
    fn any_chain_is_answered_or_breaks_the_device(
        read_only: bool,
        chains in prop::collection::vec(
            (buffers(), prop_oneof![0u32..15, any::<u32>()], prop_oneof![0u64..70, any::<u64>()]),
            1..25,
        ),
    ) {
        let mut bench = Bench::started(device(Disk { read_only, ..disk() }));
        for (mut chain, kind, sector) in chains {
            bench.memory.write_obj(kind.to_le(), GuestAddress(HEADER)).unwrap();
            bench.memory.write_obj(sector.to_le(), GuestAddress(HEADER + 8)).unwrap();
            if kind.is_multiple_of(3) {
                chain.insert(0, Descriptor::readable(HEADER, 16));
            }
            bench.rings(0).offer(&chain);
            bench.kick(0);
            let requests = bench.transport.device_mut().take();
            bench.transport.device().in_flight().done(requests.len());
            let done: Vec<_> = requests.into_iter().map(|request| {
                let valid = match request.operation() {
                    Operation::Read { offset, into } => {
                        let _ = into.slices(&*bench.memory);
                        offset + into.len() <= SECTORS * SECTOR
                    }
                    Operation::Write { offset, from, .. } => {
                        let _ = from.slices(&*bench.memory);
                        offset + from.len() <= SECTORS * SECTOR && !read_only
                    }
                    Operation::Flush => true,
                    Operation::Discard(parts) | Operation::WriteZeroes(parts) => {
                        let inside = |part: &Extent| part.offset + part.length <= SECTORS * SECTOR;
                        parts.iter().all(inside) && !read_only
                    }
                };
                assert!(valid, "{request:?}");
                (request, Status::Ok)
            }).collect();
            bench.transport.with_queue(0, |device, ring| device.complete(ring, done));
            if bench.transport.broken().is_some() {
                return Ok(());
            }
            prop_assert_eq!(bench.rings(0).used().len(), 1);
        }
    }
}
