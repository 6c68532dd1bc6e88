#![allow(clippy::unwrap_used)]

use std::sync::Mutex;
use std::sync::atomic::Ordering;

use vm_memory::GuestAddress;

use super::*;
use crate::bus::MmioDevice;
use crate::virtio::testing::{
    Bench, CountingEntropy, DATA, Descriptor, INDIRECT, RAM, RAM_END, register, status,
};

/// What memory holds before the device writes it.
const FILLER: u8 = 0xee;

fn bench_with(entropy: CountingEntropy) -> Bench<Rng> {
    let bench = Bench::started(Rng::new(Box::new(entropy)));
    bench.memory.write_slice(&[FILLER; 1 << 18], GuestAddress(DATA)).unwrap();
    bench
}

fn bench() -> Bench<Rng> {
    bench_with(CountingEntropy::of(u64::MAX))
}

fn read(bench: &Bench<Rng>, address: u64, length: usize) -> Vec<u8> {
    let mut bytes = vec![0; length];
    bench.memory.read_slice(&mut bytes, GuestAddress(address)).unwrap();
    bytes
}

/// The bytes of [`CountingEntropy`] from number `first` on.
fn counted(first: usize, length: usize) -> Vec<u8> {
    (first..first + length).map(|number| number as u8).collect()
}

fn counters(bench: &Bench<Rng>) -> (u64, u64) {
    let counters = bench.transport.device().counters();
    (counters.bytes.load(Ordering::Relaxed), counters.failures.load(Ordering::Relaxed))
}

#[test]
fn it_is_an_entropy_source_without_features_or_configuration() {
    let mut bench = bench();

    assert_eq!(bench.read(0x008), 4);
    assert_eq!(bench.transport.device().features(), Features::default());
    assert_eq!(bench.transport.device().queue_sizes(), [256]);
    for width in 1..=16 {
        let mut data = vec![0xff; width];
        bench.transport.write(register::CONFIG + 3, &data);
        bench.transport.read(register::CONFIG + 3, &mut data);
        assert_eq!(data, vec![0; width]);
    }
}

#[test]
fn a_buffer_is_filled_and_its_neighbours_are_not() {
    let mut bench = bench();
    let head = bench.rings(0).offer(&[Descriptor::writable(DATA + 1, 63)]);

    bench.kick(0);

    assert_eq!(bench.rings(0).used(), [(head.into(), 63)]);
    assert_eq!(read(&bench, DATA, 65), [&[FILLER], &counted(0, 63)[..], &[FILLER]].concat());
    assert_eq!(counters(&bench), (63, 0));
    assert_eq!(bench.line.take(), 1);
}

#[test]
fn buffers_of_a_chain_are_filled_in_turn() {
    let mut bench = bench();
    let head = bench.rings(0).offer(&[
        Descriptor::writable(DATA, 3),
        Descriptor::writable(0, 0),
        Descriptor::writable(DATA + 0x1000, 4000),
    ]);

    bench.kick(0);

    assert_eq!(bench.rings(0).used(), [(head.into(), 4003)]);
    assert_eq!(read(&bench, DATA, 4), [0, 1, 2, FILLER]);
    assert_eq!(read(&bench, DATA + 0x1000, 4000), counted(3, 4000));
}

#[test]
fn buffers_in_a_table_are_filled() {
    let mut bench = bench();
    let table = DATA + 0x1_0000;
    Descriptor::writable(DATA, 16).put(&bench.memory, table, 0);
    let head = bench.rings(0).offer(&[Descriptor::table(table, 16)]);

    bench.kick(0);

    assert_eq!(bench.rings(0).used(), [(head.into(), 16)]);
    assert_eq!(read(&bench, DATA, 16), counted(0, 16));
}

#[test]
fn a_request_gets_4_kib_at_most() {
    let cases = [
        vec![Descriptor::writable(DATA, 4097)],
        vec![Descriptor::writable(DATA, 8 << 20)],
        vec![Descriptor::writable(DATA, 4095), Descriptor::writable(DATA + 4095, 9)],
        vec![Descriptor::writable(DATA, 4096), Descriptor::writable(DATA + 4096, 9)],
    ];
    for chain in cases {
        let mut bench = bench();
        let head = bench.rings(0).offer(&chain);

        bench.kick(0);

        assert_eq!(bench.rings(0).used(), [(head.into(), 4096)]);
        assert_eq!(read(&bench, DATA, 4097), [counted(0, 4096), vec![FILLER]].concat());
        assert_eq!(counters(&bench), (4096, 0));
    }
}

#[test]
fn all_that_is_available_is_served() {
    let mut bench = bench();
    let heads: Vec<_> = (0..256).map(|_| bench.rings(0).offer(&[ONE])).collect();

    bench.kick(0);

    let used: Vec<_> = heads.into_iter().map(|head| (head.into(), 1)).collect();
    assert_eq!(bench.rings(0).used(), used);
}

const ONE: Descriptor = Descriptor::writable(DATA, 1);

#[test]
fn a_host_without_entropy_gives_nothing_and_counts() {
    let mut bench = bench_with(CountingEntropy::of(0));
    let head = bench.rings(0).offer(&[Descriptor::writable(DATA, 64)]);

    bench.kick(0);

    assert_eq!(bench.rings(0).used(), [(head.into(), 0)]);
    assert_eq!(read(&bench, DATA, 64), [FILLER; 64]);
    assert_eq!(counters(&bench), (0, 1));
    assert!(bench.transport.is_active());
}

#[test]
fn a_host_that_runs_dry_is_asked_again() {
    let mut bench = bench_with(CountingEntropy::of(10));
    bench.rings(0).offer(&[Descriptor::writable(DATA, 11)]);
    bench.rings(0).offer(&[Descriptor::writable(DATA, 10)]);

    bench.kick(0);

    assert_eq!(bench.rings(0).used(), [(0, 0), (1, 10)]);
    assert_eq!(counters(&bench), (10, 1));
}

/// Chains that cannot be served, by name: what breaks the device, and the descriptors from 0 on.
fn malformed() -> Vec<(&'static str, Broken, Vec<Descriptor>)> {
    let writable = Descriptor::writable;
    let outside = |address, length| Broken::Buffer { address: GuestAddress(address), length };
    let readable = Broken::Form("a request for random bytes has a buffer to read (5.4.6.1)");
    let no_room = Broken::Form("a request for random bytes has no room for one (5.4.6.2)");
    let all = [writable(DATA, u32::MAX), writable(DATA, u32::MAX)];
    vec![
        ("below memory", outside(RAM - 1, 1), vec![writable(RAM - 1, 1)]),
        ("into memory", outside(RAM - 1, 2), vec![writable(RAM - 1, 2)]),
        ("above memory", outside(RAM_END, 1), vec![writable(RAM_END, 1)]),
        ("out of memory", outside(RAM_END - 1, 2), vec![writable(RAM_END - 1, 2)]),
        ("wrapping", outside(u64::MAX, 2), vec![writable(u64::MAX, 2)]),
        ("2^32 - 1 bytes", outside(DATA, u32::MAX), vec![writable(DATA, u32::MAX)]),
        ("2^33 bytes", Broken::Chain, vec![all[0].then(1), all[1]]),
        ("good, then outside", outside(0, 1), vec![ONE.then(1), writable(0, 1)]),
        ("no byte", no_room.clone(), vec![writable(DATA, 0)]),
        ("no byte, twice", no_room, vec![writable(0, 0).then(1), writable(DATA, 0)]),
        ("to read", readable.clone(), vec![Descriptor::readable(DATA, 1)]),
        ("to read first", readable.clone(), vec![Descriptor::readable(DATA, 1).then(1), ONE]),
        ("to read last", readable, vec![ONE.then(1), Descriptor::readable(DATA, 1)]),
        ("loop of one", Broken::Chain, vec![ONE.then(0)]),
        ("loop of two", Broken::Chain, vec![ONE.then(1), ONE.then(0)]),
        ("out of the table", Broken::Chain, vec![ONE.then(256)]),
        ("far out of the table", Broken::Chain, vec![ONE.then(u16::MAX)]),
        ("table of nothing", Broken::Chain, vec![Descriptor::table(DATA, 0)]),
        ("table of odd length", Broken::Chain, vec![Descriptor::table(DATA, 24)]),
        ("table outside", Broken::Chain, vec![Descriptor::table(RAM_END, 16)]),
        ("table that wraps", Broken::Chain, vec![Descriptor::table(u64::MAX - 7, 32)]),
        ("table too long", Broken::Chain, vec![Descriptor::table(DATA, u32::MAX - 15)]),
        // The queue's own table.
        ("table in a table", Broken::Chain, vec![Descriptor::table(RAM, 16)]),
        ("table that loops", Broken::Chain, vec![Descriptor::table(RAM + 16, 16), ONE.then(0)]),
        (
            "table after a table",
            Broken::Chain,
            vec![
                Descriptor::table(RAM + 32, 32),
                Descriptor::table(RAM + 32, 32),
                ONE.then(1),
                Descriptor { flags: INDIRECT, ..ONE },
            ],
        ),
    ]
}

#[test]
fn a_malformed_chain_breaks_the_device_until_it_is_reset() {
    for (name, broken, chain) in malformed() {
        let mut bench = bench();
        for (index, descriptor) in chain.into_iter().enumerate() {
            bench.rings(0).put(index as u16, descriptor);
        }
        bench.rings(0).make_available(0);
        bench.kick(0);

        assert_eq!(bench.transport.broken(), Some(&broken), "{name}");
        assert_eq!(bench.status() & status::NEEDS_RESET, status::NEEDS_RESET, "{name}");
        assert_eq!((bench.take_interrupts(), bench.line.take()), (2, 1), "{name}");
        assert_eq!(counters(&bench), (0, 0), "{name}");

        // A chain in order is not served now ...
        bench.rings(0).put(0, ONE);
        bench.rings(0).make_available(0);
        bench.kick(0);
        assert_eq!((bench.rings(0).used_index(), bench.line.take()), (0, 0), "{name}");

        // ... but after a reset.
        bench.initialise(Features::VERSION_1);
        bench.rings(0).offer(&[ONE]);
        bench.kick(0);
        assert_eq!(bench.rings(0).used(), [(0, 1)], "{name}");
    }
}

#[test]
fn chains_before_a_malformed_one_are_completed() {
    let mut bench = bench();
    let head = bench.rings(0).offer(&[ONE]);
    bench.rings(0).offer(&[Descriptor::readable(DATA, 1)]);

    bench.kick(0);

    assert_eq!(bench.rings(0).used(), [(head.into(), 1)]);
    assert_eq!(bench.take_interrupts(), 3);
}

#[test]
fn an_available_ring_that_makes_no_sense_breaks_the_device() {
    for index in [257, 0x8000, u16::MAX] {
        let mut bench = bench();
        bench.rings(0).set_available_index(index);

        bench.kick(0);

        assert_eq!(bench.transport.broken(), Some(&Broken::Available), "{index}");
    }
}

#[test]
fn a_head_beyond_the_table_breaks_the_device() {
    for head in [256, 0x7fff, u16::MAX] {
        let mut bench = bench();
        bench.rings(0).make_available(head);

        bench.kick(0);

        assert_eq!(bench.transport.broken(), Some(&Broken::Chain), "{head}");
    }
}

/// Lets so many bytes through.
#[derive(Clone)]
struct Allowance(Arc<Mutex<u64>>);

impl Throttle for Allowance {
    fn is_open(&mut self) -> bool {
        *self.0.lock().unwrap() > 0
    }

    fn spend(&mut self, bytes: u64) {
        let mut left = self.0.lock().unwrap();
        *left = left.saturating_sub(bytes);
    }
}

#[test]
fn limits_leave_requests_in_the_queue() {
    let allowance = Allowance(Arc::new(Mutex::new(65)));
    let rng = Rng::new(Box::new(CountingEntropy::of(u64::MAX)));
    let mut bench = Bench::started(rng.with_limits(Box::new(allowance.clone())));
    for _ in 0..3 {
        bench.rings(0).offer(&[Descriptor::writable(DATA, 64)]);
    }

    bench.kick(0);
    assert_eq!(bench.rings(0).used().len(), 2);
    assert_eq!(bench.transport.serve(0), crate::virtio::mmio::Served::Done);
    assert!(bench.rings(0).used().is_empty());

    *allowance.0.lock().unwrap() = 1;
    let _ = bench.transport.serve(0);
    assert_eq!(bench.rings(0).used().len(), 1);
}
