//! A driver that does anything, before a device that writes guest memory.

use std::sync::atomic::AtomicBool;
use std::thread;

use proptest::prelude::*;

use super::*;
use crate::virtio::rng::Rng;
use crate::virtio::testing::RAM;

/// One thing that a guest does.
#[derive(Clone, Debug)]
enum Act {
    Read(u64, usize),
    Write(u64, Vec<u8>),
    Register(u64, u32),
    /// All of the initialisation, with a queue of this order.
    Initialise(u64, u32),
    /// A descriptor of the queue, or of any table.
    Descriptor(u16, Descriptor),
    /// A chain becomes available.
    Offer(u16),
    /// A word of a ring.
    Poke(u64, u16),
    Serve(usize),
    ConfigChanged,
}

fn register() -> impl Strategy<Value = u64> {
    (0_u64..68).prop_map(|index| 4 * index)
}

fn value() -> impl Strategy<Value = u32> {
    prop_oneof![
        4 => 0_u32..16,
        1 => (0_u32..32).prop_map(|bit| 1 << bit),
        1 => (RAM as u32..RAM as u32 + 0x1000).prop_map(|address| address & !0xf),
        1 => any::<u32>(),
    ]
}

fn descriptor() -> impl Strategy<Value = Descriptor> {
    let address = prop_oneof![
        4 => DATA..DATA + 0x1_0000,
        1 => RAM..RAM + 0x100,
        1 => any::<u64>(),
    ];
    let length =
        prop_oneof![4 => 0_u32..100, 1 => (0_u32..9).prop_map(|n| n * 16), 1 => any::<u32>()];
    (address, length, prop_oneof![4 => Just(2_u16), 1 => 0_u16..8], 0_u16..10)
        .prop_map(|(address, length, flags, next)| Descriptor { address, length, flags, next })
}

fn act() -> impl Strategy<Value = Act> {
    prop_oneof![
        1 => (0_u64..0x120, 0_usize..9).prop_map(|(offset, width)| Act::Read(offset, width)),
        1 => (any::<u64>(), 0_usize..9).prop_map(|(offset, width)| Act::Read(offset, width)),
        1 => (0_u64..0x120, proptest::collection::vec(any::<u8>(), 0..9))
            .prop_map(|(offset, data)| Act::Write(offset, data)),
        4 => (register(), value()).prop_map(|(offset, value)| Act::Register(offset, value)),
        2 => (0_u64..4, 0_u32..5).prop_map(|(bits, order)| Act::Initialise(bits << 28, order)),
        6 => (0_u16..16, descriptor()).prop_map(|(index, it)| Act::Descriptor(index, it)),
        8 => (0_u16..17).prop_map(Act::Offer),
        1 => (0_u64..64, any::<u16>()).prop_map(|(word, value)| Act::Poke(word, value)),
        4 => (0_usize..3).prop_map(Act::Serve),
        1 => Just(Act::ConfigChanged),
    ]
}

fn perform(bench: &mut Bench<Rng>, act: Act) {
    match act {
        Act::Read(offset, width) => bench.transport.read(offset, &mut vec![0; width]),
        Act::Write(offset, data) => bench.transport.write(offset, &data),
        Act::Register(offset, value) => bench.write(offset, value),
        Act::Initialise(features, order) => {
            bench.negotiate(Features(features).with(Features::VERSION_1));
            bench.set_up(0, 1 << order);
            bench.start();
        }
        Act::Descriptor(index, it) => it.put(&bench.memory, RAM, index),
        Act::Offer(head) => {
            if bench.is_set_up(0) {
                bench.rings(0).make_available(head);
            }
        }
        Act::Poke(word, value) => {
            if bench.is_set_up(0) {
                let (available, used) = (bench.rings(0).available, bench.rings(0).used);
                let ring = if word < 32 { available } else { used };
                bench.memory.write_obj(value, GuestAddress(ring + word % 32 * 2)).unwrap();
            }
        }
        Act::Serve(queue) => drop(bench.transport.serve(queue)),
        Act::ConfigChanged => bench.transport.config_changed(),
    }
    bench.answer();
}

proptest! {
    #[test]
    fn whatever_a_guest_does_the_device_keeps_to_its_states(
        acts in proptest::collection::vec(act(), 1..150),
    ) {
        let entropy = CountingEntropy::of(u64::MAX);
        let mut bench = Bench::new(Rng::new(Box::new(entropy.clone())));
        for act in acts {
            let resets = bench.transport.counters().resets.load(Ordering::Relaxed);
            let broken = bench.transport.broken().cloned();
            let active = bench.transport.is_active();
            let (given, used) = (entropy.given(), bench.used_index());
            let initialises = matches!(act, Act::Initialise(..));
            let pokes = matches!(act, Act::Poke(..));

            perform(&mut bench, act);

            let reset = bench.transport.counters().resets.load(Ordering::Relaxed) != resets;
            // Broken stays broken, by the same, until a reset.
            if broken.is_some() && !reset {
                prop_assert_eq!(bench.transport.broken(), broken.as_ref());
                prop_assert!(!bench.transport.is_active());
            }
            // A device that was not active, and did not become it, touched nothing.
            if !active && !bench.transport.is_active() && !initialises {
                let broke = bench.transport.broken() != broken.as_ref();
                prop_assert!(broke || entropy.given() == given);
                prop_assert!(broke || pokes || bench.used_index() == used);
            }
            let status = bench.status();
            let broken = bench.transport.broken().is_some();
            prop_assert_eq!(status & status::NEEDS_RESET != 0, broken);
            if status & status::DRIVER_OK == 0 {
                prop_assert_eq!(bench.read(register::INTERRUPT_STATUS), 0);
            }
        }
    }

    #[test]
    fn whatever_a_guest_did_the_device_goes_on_elsewhere(
        acts in proptest::collection::vec(act(), 1..100),
        more in proptest::collection::vec(act(), 1..50),
    ) {
        let device = || Rng::new(Box::new(CountingEntropy::of(u64::MAX)));
        let mut bench = Bench::new(device());
        for act in acts {
            perform(&mut bench, act);
        }
        let state = bench.transport.save();
        let active = bench.transport.is_active();

        let mut bench = bench.migrate(device()).unwrap();

        prop_assert_eq!(bench.transport.save(), state);
        prop_assert_eq!(bench.transport.is_active(), active);
        for act in more {
            perform(&mut bench, act);
        }
    }
}

#[test]
#[cfg_attr(miri, ignore = "a guest that is a thread races, by intent")]
fn a_guest_may_change_memory_while_the_device_looks_at_it() {
    let mut bench = Bench::started(Rng::new(Box::new(CountingEntropy::of(u64::MAX))));
    let (memory, stop) = (bench.memory.clone(), Arc::new(AtomicBool::new(false)));
    let stopped = stop.clone();
    let guest = thread::spawn(move || scribble(&memory, &stopped));

    for _ in 0..2000 {
        if bench.transport.broken().is_some() {
            bench.initialise(Features::VERSION_1.with(Features::EVENT_IDX));
        }
        for head in 0..8 {
            bench.rings(0).make_available(head);
        }
        bench.kick(0);
    }

    stop.store(true, Ordering::Relaxed);
    guest.join().unwrap();
}

/// Writes over the first descriptors of the first queue until it is stopped.
fn scribble(memory: &GuestMemoryMmap, stop: &AtomicBool) {
    let mut step = 0_u64;
    while !stop.load(Ordering::Relaxed) {
        step = step.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        let flags = [2, 2, 3, 6][(step >> 40) as usize % 4];
        let next = (step >> 50) as u16 % 10;
        let address = if step >> 60 == 0 { u64::MAX } else { DATA };
        let it = Descriptor { address, length: (step >> 33) as u32 % 64 * 16, flags, next };
        it.put(memory, RAM, (step >> 20) as u16 % 8);
    }
}
