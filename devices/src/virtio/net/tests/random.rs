//! A driver that does what drivers may, and what they must not, against a model of what it is to get.

use std::collections::BTreeMap;

use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};

use super::*;
use crate::virtio::testing::{RAM, RAM_END, TURNS};

/// Where buffers to be received begin, each in a place of its own by its head.
const PLACE: u64 = 8192;

#[derive(Clone, Debug)]
enum Step {
    /// Offers a buffer of pieces of these sizes.
    Buffer(Vec<u32>),
    /// A frame comes.
    Frame(usize),
    /// Sends a frame of pieces of these sizes.
    Send(Vec<u32>),
    /// The port takes no frame, once.
    Block,
    /// Gives both queues a turn.
    Serve,
    /// A new process takes over.
    Migrate,
}

fn pieces() -> impl Strategy<Value = Vec<u32>> {
    prop::collection::vec(prop_oneof![0..40_u32, 500..1600_u32], 1..4)
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        6 => pieces().prop_map(Step::Buffer),
        4 => prop_oneof![14..2000_usize, 14..20_000_usize].prop_map(Step::Frame),
        3 => pieces().prop_map(Step::Send),
        1 => Just(Step::Block),
        6 => Just(Step::Serve),
        1 => Just(Step::Migrate),
    ]
}

struct Model {
    network: Network,
    bench: NetBench,
    /// Buffers that the device has: where each begins, and how long it is.
    offered: BTreeMap<u32, (u64, u32)>,
    expected: VecDeque<Vec<u8>>,
    sending: u64,
    next: u64,
}

impl Model {
    fn new(mergeable: bool) -> Self {
        let network = Network::default();
        let acked = if mergeable { features::MRG_RXBUF } else { Features::default() };
        let bench = bench(&network, acked);
        let (offered, expected) = (BTreeMap::new(), VecDeque::new());
        Self { network, bench, offered, expected, sending: 0, next: 0 }
    }

    fn step(&mut self, step: Step, mergeable: bool) {
        match step {
            Step::Buffer(sizes) => {
                let length: u32 = sizes.iter().sum();
                // 60 chains of three descriptors at most fit the queue.
                if length < HEADER as u32 || self.offered.len() >= 60 {
                    return;
                }
                let start = DATA + self.next % 128 * PLACE;
                self.next += 1;
                let mut address = start;
                let chain: Vec<_> = sizes
                    .iter()
                    .map(|size| {
                        let here = Descriptor::writable(address, *size);
                        address += u64::from(*size);
                        here
                    })
                    .collect();
                let head = self.bench.rings(RECEIVE).offer(&chain);
                self.offered.insert(head.into(), (start, length));
            }
            Step::Frame(length) => {
                if self.network.coming() < 100 {
                    let mut frame = frame(length);
                    frame[..8].copy_from_slice(&self.next.to_le_bytes());
                    self.next += 1;
                    self.network.put(&frame);
                    self.expected.push_back(frame);
                }
            }
            Step::Send(sizes) => {
                let mut address = DATA;
                let chain: Vec<_> = sizes
                    .iter()
                    .map(|size| {
                        let here = Descriptor::readable(address, *size);
                        address += u64::from(*size);
                        here
                    })
                    .collect();
                if self.sending < 60 {
                    self.bench.rings(TRANSMIT).offer(&chain);
                    self.sending += 1;
                }
            }
            Step::Block => self.network.answer(ErrorKind::WouldBlock),
            Step::Serve => self.serve(mergeable),
            Step::Migrate => {
                // A frame that waits for buffers is lost with the process.
                let held = self.bench.transport.device().receiver.held.is_some();
                let bench = std::mem::replace(
                    &mut self.bench,
                    Bench::new(Net::new(self.network.clone(), MAC, None)),
                );
                self.bench = bench.migrate(Net::new(self.network.clone(), MAC, None)).unwrap();
                if held {
                    self.expected.pop_front();
                }
            }
        }
    }

    fn serve(&mut self, mergeable: bool) {
        assert!(receive(&mut self.bench).is_some());
        let sent = transmit(&mut self.bench);
        assert!(sent.is_some());
        self.take_received(mergeable);
        let given_back = self.bench.rings(TRANSMIT).used();
        self.sending -= given_back.len() as u64;
        assert!(sent == Some(Progress::Port) || self.sending == 0);
    }

    /// Each frame that the driver gets is the next one that came, but for those too large without merging.
    fn take_received(&mut self, mergeable: bool) {
        let used = self.bench.rings(RECEIVE).used();
        let mut used = used.into_iter();
        while let Some((head, written)) = used.next() {
            let (start, length) = self.offered.remove(&head).unwrap();
            assert!(written <= length);
            let mut bytes = memory(&self.bench, start, written as usize);
            let buffers = u16::from_le_bytes([bytes[10], bytes[11]]);
            for _ in 1..buffers {
                let (head, written) = used.next().expect("all buffers of a frame come together");
                let (start, length) = self.offered.remove(&head).unwrap();
                assert!(written > 0 && written <= length);
                bytes.extend(memory(&self.bench, start, written as usize));
            }
            assert!(mergeable || buffers == 1);
            let frame = &bytes[HEADER..];
            loop {
                let expected = self.expected.pop_front().expect("a frame that came");
                if expected == frame {
                    break;
                }
                assert!(!mergeable, "a frame is lost or damaged");
            }
        }
    }
}

/// Runs of 100 steps; together a hundred thousand, and a few where each step is interpreted.
const RUNS: u32 = if cfg!(miri) { 2 } else { 1000 };

#[test]
fn a_driver_gets_every_frame_whole_and_in_order() {
    let mut runner = TestRunner::new(Config { cases: RUNS, ..Config::default() });
    let strategy = (any::<bool>(), prop::collection::vec(step(), 100));
    runner
        .run(&strategy, |(mergeable, steps)| {
            let mut model = Model::new(mergeable);
            for step in steps {
                model.step(step, mergeable);
            }
            assert!(model.bench.transport.broken().is_none());
            Ok(())
        })
        .unwrap();
}

#[derive(Clone, Debug)]
struct Wild {
    queue: usize,
    descriptors: Vec<Descriptor>,
    raw: bool,
    index: Option<u16>,
    frame: usize,
}

fn wild() -> impl Strategy<Value = Wild> {
    let address = prop_oneof![
        8 => DATA..DATA + 0x8000,
        2 => RAM..RAM_END,
        1 => RAM_END - 64..RAM_END + 64,
        1 => any::<u64>(),
        1 => u64::MAX - 64..=u64::MAX,
    ];
    let length = prop_oneof![8 => 0..3000_u32, 1 => any::<u32>(), 1 => Just(u32::MAX)];
    let flags = prop_oneof![6 => Just(2_u16), 3 => Just(0), 1 => 0..8_u16];
    let descriptor = (address, length, flags, any::<u16>());
    let descriptor = descriptor.prop_map(|(address, length, flags, next)| Descriptor {
        address,
        length,
        flags,
        next,
    });
    (
        0..2_usize,
        prop::collection::vec(descriptor, 1..6),
        prop::bool::weighted(0.2),
        prop::option::weighted(0.05, any::<u16>()),
        0..70_000_usize,
    )
        .prop_map(|(queue, descriptors, raw, index, frame)| Wild {
            queue,
            descriptors,
            raw,
            index,
            frame,
        })
}

#[test]
fn no_driver_makes_it_panic_or_stay() {
    let mut runner = TestRunner::new(Config { cases: RUNS, ..Config::default() });
    let strategy = (any::<bool>(), prop::collection::vec(wild(), 100));
    runner
        .run(&strategy, |(mergeable, steps)| {
            let network = Network::default();
            let acked = if mergeable { features::MRG_RXBUF } else { Features::default() };
            let mut bench = bench(&network, acked);
            for Wild { queue, descriptors, raw, index, frame: length } in steps {
                if raw {
                    for (slot, descriptor) in (0..).zip(&descriptors) {
                        bench.rings(queue).put(slot, *descriptor);
                    }
                    bench.rings(queue).make_available(descriptors[0].next % 300);
                } else {
                    bench.rings(queue).offer(&descriptors);
                }
                if let Some(index) = index {
                    bench.rings(queue).set_available_index(index);
                }
                network.put(&vec![1; length]);
                for _ in 0..TURNS {
                    let _ = (receive(&mut bench), transmit(&mut bench));
                }
                if bench.transport.broken().is_some() {
                    bench.initialise(acked.with(Features::VERSION_1));
                }
                network.0.lock().unwrap().coming.clear();
                network.sent();
            }
            Ok(())
        })
        .unwrap();
}
