//! A disk in an event loop, with a driver whose queue has one descriptor chain.

use std::sync::mpsc::channel;
use std::thread;
use std::time::Duration;

use devices::bus::MmioDevice;
use devices::virtio::Features;
use devices::virtio::mmio::Transport;
use event_manager::{EventManager, SubscriberOps};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::*;
use crate::backends::driver::{self, Line, QueuePlace};
use crate::backends::gate::QueueGate;
use crate::backends::queues::{QueueDoorbells, QueueEvents, Shared};
use crate::events::EventLog;

/// Where the driver has its queue and its buffers, from the start of guest memory.
const AVAILABLE: u64 = 0x1000;
const USED: u64 = 0x2000;
const HEADER: u64 = 0x3000;
const STATUS: u64 = 0x3010;
const SCRATCH: u64 = 0x4000;

/// How long a test waits for what must not take long.
const LONG: Duration = Duration::from_secs(60);

struct Bench {
    control: Control,
    transport: Shared<Block>,
    memory: GuestRam,
    events: EventManager<BlockEvents>,
}

impl Bench {
    /// The driver is ready. Each of its requests is a header, these pieces of memory, and a status.
    fn new(image: &Path, pieces: &[(u64, u32)]) -> Self {
        let opened = Opened::new(&spec(image)).unwrap();
        let doorbells = QueueDoorbells::from(vec![EventFd::new(EFD_NONBLOCK).unwrap()]);
        let memory = memory();
        let device = opened.device();
        let transport =
            Transport::new(device, memory.clone(), Box::new(Line), Box::new(doorbells.clone()));
        let transport = Arc::new(Mutex::new(transport));
        let gate = QueueGate::default();
        gate.open();
        let mut queues =
            QueueEvents::new("disk", Arc::clone(&transport), doorbells, gate, EventLog::default());
        let control = opened.control(&mut queues);
        let mut events = EventManager::new().unwrap();
        events.add_subscriber(BlockEvents::new(&control, queues, memory.clone()));
        let mut bench = Self { control, transport, memory, events };
        bench.start(pieces);
        bench
    }

    fn start(&mut self, pieces: &[(u64, u32)]) {
        let all = [&[(HEADER, 16)], pieces, &[(STATUS, 1)]].concat();
        for (index, (at, length)) in (0_u16..).zip(&all) {
            let (first, last) = (index == 0, usize::from(index) + 1 == all.len());
            let flags = u16::from(!last) | if first { 0 } else { 2 };
            let descriptor = RAM_BASE.0 + 16 * u64::from(index);
            self.memory.write_obj(RAM_BASE.0 + at, GuestAddress(descriptor)).unwrap();
            self.memory.write_obj(*length, GuestAddress(descriptor + 8)).unwrap();
            self.memory.write_obj(flags, GuestAddress(descriptor + 12)).unwrap();
            self.memory.write_obj(index + 1, GuestAddress(descriptor + 14)).unwrap();
        }
        let base = RAM_BASE.0;
        let queue = QueuePlace {
            size: 8,
            descriptors: base,
            available: base + AVAILABLE,
            used: base + USED,
        };
        driver::start(&self.transport, Features::default(), &[queue]);
    }

    /// Makes the chain available once more, as a read of this sector.
    fn read(&self, index: u16, sector: u64) {
        self.memory.write_obj(sector, GuestAddress(RAM_BASE.0 + HEADER + 8)).unwrap();
        self.memory.write_obj(index, GuestAddress(RAM_BASE.0 + AVAILABLE + 2)).unwrap();
        driver::write(&self.transport, 0x050, 0);
    }

    fn status(&self) -> u8 {
        self.memory.read_obj(GuestAddress(RAM_BASE.0 + STATUS)).unwrap()
    }

    fn settle(&mut self) {
        while self.events.run_with_timeout(0).unwrap() > 0 {}
    }

    fn capacity(&self) -> u64 {
        let mut bytes = [0; 8];
        self.transport.lock().unwrap().read(0x100, &mut bytes);
        u64::from_le_bytes(bytes)
    }
}

/// What a request reads is the one after the next: its sector, and the index that makes it available. Each is a
/// batch of its own, of 1 MiB.
#[test]
fn a_guest_whose_requests_make_requests_does_not_keep_the_thread() {
    let image = NamedTempFile::new().unwrap();
    let mut sectors = vec![0; (65536 + 2048) * 512];
    for (sector, bytes) in (0_u64..).zip(sectors.chunks_mut(512)) {
        bytes[..2].copy_from_slice(&(sector as u16).wrapping_add(3).to_le_bytes());
        bytes[2..10].copy_from_slice(&((sector + 1) % 65536).to_le_bytes());
    }
    fs::write(image.path(), sectors).unwrap();
    let pieces = [(AVAILABLE + 2, 2), (HEADER + 8, 8), (SCRATCH, (1 << 20) - 10)];
    let (sender, turned) = channel();
    thread::spawn(move || {
        let mut bench = Bench::new(image.path(), &pieces);
        bench.read(2, 0);
        // The second turn is there although the guest has not notified of it.
        for _ in 0..2 {
            sender.send(bench.events.run_with_timeout(0).unwrap()).unwrap();
        }
    });

    assert_eq!(turned.recv_timeout(LONG), Ok(1));
    assert_eq!(turned.recv_timeout(LONG), Ok(1));
}

/// A turn may wait for tag storage, and a reset for a slow disk. The main thread must not.
#[test]
fn a_change_of_a_disk_does_not_wait_for_a_turn_of_the_device() {
    let image = image();
    let mut bench = Bench::new(image.path(), &[(SCRATCH, 512)]);
    bench.settle();
    image.as_file().set_len(2 * SIZE).unwrap();
    let transport = Arc::clone(&bench.transport);
    let turn = transport.lock().unwrap();
    let Bench { mut control, transport, memory, events } = bench;
    let path = image.path().to_owned();
    let (sender, changed) = channel();
    thread::spawn(move || {
        control.limit(RateLimiterChange::default());
        control.refresh(&path).unwrap();
        sender.send(control).unwrap();
    });

    let control = changed.recv_timeout(LONG).unwrap();
    drop(turn);
    let mut bench = Bench { control, transport, memory, events };
    assert_eq!(bench.capacity(), SIZE / 512);
    bench.settle();

    assert_eq!(bench.capacity(), 2 * SIZE / 512);
    bench.read(1, SIZE / 512);
    bench.settle();
    assert_eq!(bench.status(), 0);
    assert_eq!(bench.control.id(), "d");
}
