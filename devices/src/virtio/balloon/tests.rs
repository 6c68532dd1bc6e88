#![allow(clippy::unwrap_used)]

mod gathering;
mod inflation;
mod lifecycle;
mod malformed;
mod random;
mod reporting;
mod state;
mod statistics;

use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64};

use virtio_queue::desc::{RawDescriptor, split};
use virtio_queue::{Queue, QueueT};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

use super::*;
use crate::ports::Discarded;

const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;

const RAM: GuestRange = GuestRange { start: GuestAddress(0x8000_0000), length: 8 * MIB };
/// Number of the first page of guest memory.
const FIRST: u32 = 0x8_0000;
/// Where tests put what they send: behind the queues, with 4 MiB of room.
const DATA: u64 = RAM.start.0 + MIB;

const QUEUE_SIZE: u16 = 128;
/// Distance of the queues in memory: each takes 16, then 2, then 8 bytes an entry, and headers.
const QUEUE_STRIDE: u64 = 0x2000;
const AVAILABLE: u64 = 0x800;
const USED: u64 = 0x1000;

const NEXT: u16 = 1;
const WRITE: u16 = 2;
const INDIRECT: u16 = 4;

const INFLATE: usize = 0;
const DEFLATE: usize = 1;
const STATISTICS: usize = 2;
const REPORTING: usize = 3;

const OFFERED: [Features; 4] = [
    Features::BALLOON_STATS_VQ,
    Features::BALLOON_DEFLATE_ON_OOM,
    Features::BALLOON_PAGE_POISON,
    Features::BALLOON_PAGE_REPORTING,
];
const EVERYTHING: BalloonConfig =
    BalloonConfig { reporting: true, deflate_on_oom: true, target: 0 };

type Memory = Arc<GuestMemoryMmap<()>>;

/// What was discarded, and the used indices of the queues while it was.
#[derive(Clone, Debug, Eq, PartialEq)]
struct Call {
    range: GuestRange,
    used: [u16; 4],
}

/// A report that the host was told of: how much, and the used index of the queue when it began and ended.
type Report = (u64, u16, Option<u16>);

/// A host that writes down what it takes back, in whole pages of its own.
struct Host {
    page_size: u64,
    huge_page_size: Option<u64>,
    memory: Memory,
    calls: Arc<Mutex<Vec<Call>>>,
    refuses: Arc<AtomicBool>,
    reports: Arc<Mutex<Vec<Report>>>,
    renewed: Arc<Mutex<Vec<GuestRange>>>,
}

impl Reclaim for Host {
    fn page_size(&self) -> u64 {
        self.page_size
    }

    fn begin_report(&mut self, bytes: u64) {
        let report = (bytes, used_index(&self.memory, REPORTING), None);
        self.reports.lock().unwrap().push(report);
    }

    fn end_report(&mut self) {
        let used = used_index(&self.memory, REPORTING);
        if let Some(report) = self.reports.lock().unwrap().last_mut() {
            report.2.get_or_insert(used);
        }
    }

    fn huge_page_size(&self) -> Option<u64> {
        self.huge_page_size
    }

    fn renew(&mut self, range: GuestRange) {
        self.renewed.lock().unwrap().push(range);
    }

    fn discard(&mut self, range: GuestRange) -> Discarded {
        let used = [0, 1, 2, 3].map(|queue| used_index(&self.memory, queue));
        self.calls.lock().unwrap().push(Call { range, used });
        let first = range.start.0.next_multiple_of(self.page_size);
        let last = ranges::end(range) / self.page_size * self.page_size;
        let bytes = last.saturating_sub(first);
        match self.refuses.load(Ordering::Relaxed) {
            true => Discarded { discarded: 0, failed: bytes },
            false => Discarded { discarded: bytes, failed: 0 },
        }
    }
}

fn queue_base(queue: usize) -> u64 {
    RAM.start.0 + queue as u64 * QUEUE_STRIDE
}

fn used_index(memory: &Memory, queue: usize) -> u16 {
    u16::from_le(memory.read_obj(GuestAddress(queue_base(queue) + USED + 2)).unwrap())
}

/// A descriptor as a test gives it: address, length, flags other than NEXT.
type Part = (u64, u32, u16);

/// A balloon with a driver and a host around it.
struct Bench {
    balloon: Balloon,
    memory: Memory,
    queues: [Queue; 4],
    /// Descriptors that the driver has used of each queue.
    descriptors: [u16; 4],
    available: [u16; 4],
    calls: Arc<Mutex<Vec<Call>>>,
    refuses: Arc<AtomicBool>,
    reports: Arc<Mutex<Vec<Report>>>,
    renewed: Arc<Mutex<Vec<GuestRange>>>,
}

impl Bench {
    /// With all features, on a host with pages of 4 KiB.
    fn new() -> Self {
        Self::with(EVERYTHING, 4 * KIB)
    }

    /// With all that is offered acknowledged, but for PAGE_POISON.
    fn with(config: BalloonConfig, page_size: u64) -> Self {
        let mut bench = Self::idle(config, page_size);
        let acked = bench.balloon.features().0 & !Features::BALLOON_PAGE_POISON.0;
        bench.balloon.activate(Features(acked).with(Features::VERSION_1));
        bench
    }

    /// With a driver that is not ready.
    fn idle(config: BalloonConfig, page_size: u64) -> Self {
        Self::on(config, page_size, None)
    }

    /// The same, on a host with huge pages.
    fn on(config: BalloonConfig, page_size: u64, huge_page_size: Option<u64>) -> Self {
        let size = usize::try_from(RAM.length).unwrap();
        let memory: Memory = Arc::new(GuestMemoryMmap::from_ranges(&[(RAM.start, size)]).unwrap());
        let (calls, refuses, reports) = (Arc::default(), Arc::default(), Arc::default());
        let renewed = Arc::default();
        let host = Host {
            page_size,
            huge_page_size,
            memory: Arc::clone(&memory),
            calls: Arc::clone(&calls),
            refuses: Arc::clone(&refuses),
            reports: Arc::clone(&reports),
            renewed: Arc::clone(&renewed),
        };
        Self {
            balloon: Balloon::new(config, Box::new(host), RAM),
            memory,
            queues: [0, 1, 2, 3].map(new_queue),
            descriptors: [0; 4],
            available: [0; 4],
            calls,
            refuses,
            reports,
            renewed,
        }
    }

    /// The driver resets the device, and begins again with other features.
    fn restart(&mut self, acked: Features) {
        self.balloon.reset();
        for queue in 0..4 {
            self.queues[queue] = new_queue(queue);
            let zeros = [0; QUEUE_STRIDE as usize];
            self.memory.write_slice(&zeros, GuestAddress(queue_base(queue))).unwrap();
        }
        (self.descriptors, self.available) = ([0; 4], [0; 4]);
        self.balloon.activate(acked);
    }

    fn store(&self, address: u64, bytes: &[u8]) {
        self.memory.write_slice(bytes, GuestAddress(address)).unwrap();
    }

    fn descriptor(&self, address: u64, (buffer, length, flags): Part, next: u16) {
        let descriptor = RawDescriptor::from(split::Descriptor::new(buffer, length, flags, next));
        self.memory.write_obj(descriptor, GuestAddress(address)).unwrap();
    }

    /// Puts a head on the available ring.
    fn offer(&mut self, queue: usize, head: u16) {
        let (base, index) = (queue_base(queue) + AVAILABLE, self.available[queue]);
        self.store(base + 4 + 2 * u64::from(index % QUEUE_SIZE), &head.to_le_bytes());
        self.available[queue] = index.wrapping_add(1);
        self.store(base + 2, &self.available[queue].to_le_bytes());
    }

    /// Makes a chain available and returns its head.
    fn post(&mut self, queue: usize, parts: &[Part]) -> u16 {
        let first = self.descriptors[queue];
        for (part, index) in parts.iter().zip(first..) {
            let last = usize::from(index - first) + 1 == parts.len();
            let flags = if last { part.2 } else { part.2 | NEXT };
            let (slot, next) = (index % QUEUE_SIZE, (index + 1) % QUEUE_SIZE);
            let address = queue_base(queue) + 16 * u64::from(slot);
            self.descriptor(address, (part.0, part.1, flags), next);
        }
        let head = first % QUEUE_SIZE;
        self.descriptors[queue] = (first + u16::try_from(parts.len()).unwrap()) % QUEUE_SIZE;
        self.offer(queue, head);
        head
    }

    fn serve(&mut self, queue: usize) -> Result<(), Broken> {
        let mut ring = Ring::new(&mut self.queues[queue], &*self.memory);
        self.balloon.serve(queue, &mut ring)
    }

    fn send(&mut self, queue: usize, parts: &[Part]) -> Result<(), Broken> {
        self.post(queue, parts);
        self.serve(queue)
    }

    /// Sends bytes in one buffer.
    fn send_bytes(&mut self, queue: usize, bytes: &[u8]) -> Result<(), Broken> {
        self.store(DATA, bytes);
        self.send(queue, &[(DATA, u32::try_from(bytes.len()).unwrap(), 0)])
    }

    /// Sends a list of pages.
    fn send_pages(
        &mut self,
        queue: usize,
        pages: impl IntoIterator<Item = u32>,
    ) -> Result<(), Broken> {
        let bytes: Vec<u8> = pages.into_iter().flat_map(u32::to_le_bytes).collect();
        self.send_bytes(queue, &bytes)
    }

    /// Chains completed so far: their heads, and the bytes written.
    fn used(&self, queue: usize) -> Vec<(u32, u32)> {
        let entries = (0..used_index(&self.memory, queue)).map(|index| {
            let entry = queue_base(queue) + USED + 4 + 8 * u64::from(index % QUEUE_SIZE);
            [entry, entry + 4]
                .map(|word| u32::from_le(self.memory.read_obj::<u32>(GuestAddress(word)).unwrap()))
        });
        entries.map(|[head, written]| (head, written)).collect()
    }

    /// What was discarded since the last call.
    fn discarded(&self) -> Vec<GuestRange> {
        self.calls.lock().unwrap().drain(..).map(|call| call.range).collect()
    }

    fn counter(&self, counter: impl Fn(&Counters) -> &AtomicU64) -> u64 {
        counter(&self.balloon.counters).load(Ordering::Relaxed)
    }

    fn inflated(&self) -> u64 {
        self.counter(|counters| &counters.inflated)
    }
}

fn new_queue(queue: usize) -> Queue {
    let base = u32::try_from(queue_base(queue)).unwrap();
    let mut made = Queue::new(QUEUE_SIZE).unwrap();
    made.set_size(QUEUE_SIZE);
    made.set_desc_table_address(Some(base), Some(0));
    made.set_avail_ring_address(Some(base + AVAILABLE as u32), Some(0));
    made.set_used_ring_address(Some(base + USED as u32), Some(0));
    made.set_ready(true);
    made
}

fn range(start: u64, length: u64) -> GuestRange {
    GuestRange { start: GuestAddress(start), length }
}

/// The memory of some pages in a row.
fn page_range(first: u32, pages: u64) -> GuestRange {
    range(u64::from(first) * PAGE, pages * PAGE)
}
