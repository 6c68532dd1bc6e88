#![allow(clippy::unwrap_used)]

mod malformed;
mod random;

use std::sync::Mutex;

use vm_memory::{Bytes, GuestAddress};

use super::*;
use crate::virtio::testing::{Bench, DATA, Descriptor, register, status};

/// Where the header, the data and the status of a request are.
const HEADER: u64 = DATA;
const BUFFER: u64 = DATA + 0x1000;
const STATUS: u64 = DATA + 0x10_0000;
/// A status that no device writes.
const UNTOUCHED: u8 = 0xee;

const SECTORS: u64 = 64;

/// Lets through as many operations as it is told, and counts their bytes.
#[derive(Clone, Default)]
struct Allowance(Arc<Mutex<Option<u64>>>, Arc<AtomicU64>);

impl Throttle for Allowance {
    fn is_open(&mut self) -> bool {
        self.0.lock().unwrap().is_none_or(|left| left > 0)
    }

    fn spend(&mut self, bytes: u64) {
        add(&self.1, bytes);
        if let Some(left) = &mut *self.0.lock().unwrap() {
            *left -= 1;
        }
    }
}

fn disk() -> Disk {
    Disk { sectors: SECTORS, read_only: false, discards: true, block_size: 512 }
}

fn device(disk: Disk) -> Block {
    Block::new(disk, "a serial number that is too long", Box::new(Allowance::default()))
}

/// A device with a disk in memory, and the thread that serves it.
struct Drive {
    bench: Bench<Block>,
    data: Vec<u8>,
}

impl Drive {
    fn new(disk: Disk) -> Self {
        Self::over(Bench::started(device(disk)))
    }

    fn over(bench: Bench<Block>) -> Self {
        Self { bench, data: vec![0; (SECTORS * SECTOR) as usize] }
    }

    fn memory(&self) -> &vm_memory::GuestMemoryMmap {
        &self.bench.memory
    }

    fn perform(&mut self, operation: &Operation) {
        match operation {
            Operation::Read { offset, into } => {
                let at = *offset as usize;
                let bytes = &self.data[at..at + into.len() as usize];
                assert!(into.clone().write(&*self.bench.memory, bytes).unwrap());
            }
            Operation::Write { offset, from, .. } => {
                let at = *offset as usize;
                let bytes = &mut self.data[at..at + from.len() as usize];
                assert!(from.clone().read(&*self.bench.memory, bytes).unwrap());
            }
            Operation::Flush => {}
            Operation::Discard(parts) | Operation::WriteZeroes(parts) => {
                for Extent { offset, length, .. } in parts {
                    self.data[*offset as usize..(offset + length) as usize].fill(0);
                }
            }
        }
    }

    /// Does what was collected, and completes it.
    fn work(&mut self) -> usize {
        let requests = self.bench.transport.device_mut().take();
        let done: Vec<_> = requests
            .into_iter()
            .map(|request| {
                self.perform(request.operation());
                (request, Status::Ok)
            })
            .collect();
        let count = done.len();
        self.bench.transport.device().in_flight().done(count);
        self.bench.transport.with_queue(0, |device, ring| device.complete(ring, done));
        count
    }

    fn write_header(&self, kind: u32, sector: u64) {
        self.memory().write_obj(kind.to_le(), GuestAddress(HEADER)).unwrap();
        self.memory().write_obj(sector.to_le(), GuestAddress(HEADER + 8)).unwrap();
        self.memory().write_obj(UNTOUCHED, GuestAddress(STATUS)).unwrap();
    }

    /// A request with these buffers of data; its status, and the bytes that the used ring says.
    fn request(&mut self, kind: u32, sector: u64, data: &[Descriptor]) -> (u8, u32) {
        self.write_header(kind, sector);
        let mut chain = vec![Descriptor::readable(HEADER, 16)];
        chain.extend(data);
        chain.push(Descriptor::writable(STATUS, 1));
        self.send(&chain)
    }

    fn send(&mut self, chain: &[Descriptor]) -> (u8, u32) {
        self.bench.rings(0).offer(chain);
        self.bench.kick(0);
        self.work();
        let used = self.bench.rings(0).used();
        assert_eq!(used.len(), 1, "{:?}", self.bench.transport.broken());
        (self.memory().read_obj(GuestAddress(STATUS)).unwrap(), used[0].1)
    }

    fn fill(&self, bytes: &[u8]) {
        self.memory().write_slice(bytes, GuestAddress(BUFFER)).unwrap();
    }

    fn segment(&self, index: u64, sector: u64, sectors: u32, flags: u32) {
        let mut bytes = sector.to_le_bytes().to_vec();
        bytes.extend(sectors.to_le_bytes());
        bytes.extend(flags.to_le_bytes());
        self.memory().write_slice(&bytes, GuestAddress(BUFFER + 16 * index)).unwrap();
    }
}

#[test]
fn the_configuration_shows_the_disk() {
    let mut bench = Bench::new(device(Disk { block_size: 4096, ..disk() }));
    let words: Vec<u32> = (0..15).map(|word| bench.read(register::CONFIG + 4 * word)).collect();

    let expected = [64, 0, 0, 254, 0, 4096, 0, 0, 0, 1 << 22, 32, 8, 1 << 16, 32, 1];
    assert_eq!(words, expected);
    assert_eq!(bench.read(register::CONFIG + 60), 0);
}

#[test]
fn what_the_disk_cannot_do_is_not_offered() {
    let offered = |disk| device(disk).features().0;

    assert_eq!(offered(disk()), 1 << 2 | 1 << 6 | 1 << 9 | 1 << 13 | 1 << 14);
    assert_eq!(offered(Disk { read_only: true, ..disk() }), 1 << 2 | 1 << 5 | 1 << 6 | 1 << 9);
    assert_eq!(offered(Disk { discards: false, ..disk() }), 1 << 2 | 1 << 6 | 1 << 9);
}

#[test]
fn what_was_written_is_read_back_whatever_the_layout() {
    let mut drive = Drive::new(disk());
    let bytes: Vec<u8> = (0..1024u32).map(|at| (at * 7) as u8).collect();
    drive.fill(&bytes);
    let written = [Descriptor::readable(BUFFER, 1), Descriptor::readable(BUFFER + 1, 1023)];
    assert_eq!(drive.request(1, 3, &written), (0, 1));

    // Header in three parts, data in odd parts, the status at the end of the last one.
    drive.write_header(0, 3);
    drive.fill(&[0; 1025]);
    let chain = [
        Descriptor::readable(HEADER, 5),
        Descriptor::readable(HEADER + 5, 0),
        Descriptor::readable(HEADER + 5, 11),
        Descriptor::writable(BUFFER, 500),
        Descriptor::writable(BUFFER + 500, 525),
    ];
    let head = drive.bench.rings(0).offer(&chain);
    drive.bench.kick(0);
    assert_eq!(drive.work(), 1);

    assert_eq!(drive.bench.rings(0).used(), [(head.into(), 1025)]);
    let mut read = [0xee; 1025];
    drive.memory().read_slice(&mut read, GuestAddress(BUFFER)).unwrap();
    assert_eq!((&read[..1024], read[1024]), (&bytes[..], 0));
}

#[test]
fn a_write_is_durable_for_a_driver_without_flush() {
    for (features, expected) in [(Features(0), true), (feature::FLUSH, false)] {
        let mut drive = Drive::over(Bench::started_with(device(disk()), features));
        drive.write_header(1, 0);
        let chain = [
            Descriptor::readable(HEADER, 16),
            Descriptor::readable(BUFFER, 512),
            Descriptor::writable(STATUS, 1),
        ];
        drive.bench.rings(0).offer(&chain);
        drive.bench.kick(0);

        let taken = drive.bench.transport.device_mut().take();

        let [Request { operation: Operation::Write { durable, .. }, .. }] = &taken[..] else {
            panic!("{taken:?}");
        };
        assert_eq!(*durable, expected);
        drive.bench.transport.device().in_flight().done(1);
    }
}

#[test]
fn the_serial_number_is_20_bytes_or_as_many_as_there_is_room_for() {
    let mut drive = Drive::new(disk());

    assert_eq!(drive.request(8, 0, &[Descriptor::writable(BUFFER, 20)]), (0, 21));
    let mut serial = [0; 20];
    drive.memory().read_slice(&mut serial, GuestAddress(BUFFER)).unwrap();
    assert_eq!(&serial, b"a serial number that");

    assert_eq!(drive.request(8, 0, &[Descriptor::writable(BUFFER, 3)]), (0, 4));
    assert_eq!(drive.request(8, 0, &[]), (0, 1));
    assert_eq!(drive.request(8, 0, &[Descriptor::writable(BUFFER, 4096)]), (0, 21));
}

#[test]
fn segments_are_discarded_and_zeroed() {
    let mut drive = Drive::new(disk());
    drive.data.fill(1);
    drive.segment(0, 1, 2, 0);
    drive.segment(1, 60, 4, 0);
    assert_eq!(drive.request(11, 0, &[Descriptor::readable(BUFFER, 32)]), (0, 1));
    drive.segment(0, 10, 1, 1);
    assert_eq!(drive.request(13, 0, &[Descriptor::readable(BUFFER, 16)]), (0, 1));

    let zero: Vec<usize> =
        (0..SECTORS as usize).filter(|sector| drive.data[sector * 512] == 0).collect();
    assert_eq!(zero, [1, 2, 10, 60, 61, 62, 63]);
    let counters = drive.bench.transport.device().counters();
    assert_eq!(counters.discards.load(Ordering::Relaxed), 2);
    assert_eq!(counters.discarded_bytes.load(Ordering::Relaxed), 7 * SECTOR);
}

#[test]
fn a_batch_is_interrupted_once() {
    let mut drive = Drive::over(Bench::started_with(device(disk()), feature::FLUSH));
    drive.bench.line.take();
    for sector in 0..80 {
        let header = DATA + 0x20_0000 + 16 * sector;
        drive.memory().write_obj(0u32, GuestAddress(header)).unwrap();
        drive.memory().write_obj(sector % SECTORS, GuestAddress(header + 8)).unwrap();
        let chain = [Descriptor::readable(header, 16), Descriptor::writable(BUFFER, 513)];
        drive.bench.rings(0).offer(&chain);
    }
    drive.bench.write(register::QUEUE_NOTIFY, 0);
    let mut batches = Vec::new();
    loop {
        let _ = drive.bench.transport.serve(0);
        match drive.work() {
            0 => break,
            count => batches.push(count),
        }
    }

    assert_eq!(batches, [32, 32, 16]);
    assert_eq!(drive.bench.line.take(), 3);
    assert_eq!(drive.bench.rings(0).used().len(), 80);
}

#[test]
fn limits_leave_requests_in_the_queue() {
    let allowance = Allowance::default();
    *allowance.0.lock().unwrap() = Some(2);
    let mut drive =
        Drive::over(Bench::started(Block::new(disk(), "", Box::new(allowance.clone()))));
    for _ in 0..3 {
        drive.write_header(4, 0);
        let chain = [Descriptor::readable(HEADER, 16), Descriptor::writable(STATUS, 1)];
        drive.bench.rings(0).offer(&chain);
    }
    drive.bench.kick(0);
    assert_eq!(drive.work(), 2);
    assert_eq!(drive.bench.transport.serve(0), crate::virtio::mmio::Served::Done);
    assert_eq!(drive.work(), 0);

    *allowance.0.lock().unwrap() = None;
    let _ = drive.bench.transport.serve(0);

    assert_eq!(drive.work(), 1);
}

/// Some file systems have to write zeros that may not be a hole.
#[test]
fn zeros_are_bytes_for_the_limits_and_holes_are_none() {
    for (kind, flags, expected) in [(13, 0, 4 * SECTOR), (13, 1, 0), (11, 0, 0)] {
        let allowance = Allowance::default();
        let device = Block::new(disk(), "", Box::new(allowance.clone()));
        let mut drive = Drive::over(Bench::started(device));
        drive.segment(0, 1, 3, flags);
        drive.segment(1, 9, 1, flags);

        assert_eq!(drive.request(kind, 0, &[Descriptor::readable(BUFFER, 32)]), (0, 1));

        assert_eq!(allowance.1.load(Ordering::Relaxed), expected, "{kind} {flags}");
    }
}

#[test]
fn a_reset_waits_for_what_is_under_way_and_forgets_it() {
    let mut drive = Drive::new(disk());
    drive.write_header(4, 0);
    let chain = [Descriptor::readable(HEADER, 16), Descriptor::writable(STATUS, 1)];
    drive.bench.rings(0).offer(&chain);
    drive.bench.kick(0);
    let requests = drive.bench.transport.device_mut().take();
    assert!(!drive.bench.transport.device_mut().quiesce());
    let in_flight = drive.bench.transport.device().in_flight();
    let (reset, was_reset) = std::sync::mpsc::channel();

    std::thread::scope(|scope| {
        let bench = &mut drive.bench;
        scope.spawn(move || {
            bench.reset();
            reset.send(()).unwrap();
        });
        // It has not been reset before the request is done, however long that takes.
        let early = was_reset.recv_timeout(std::time::Duration::from_millis(20));
        assert!(early.is_err());
        in_flight.done(1);
        was_reset.recv().unwrap();
    });

    assert!(drive.bench.transport.device_mut().quiesce());
    let offered = drive.bench.offered();
    drive.bench.initialise(offered);
    let done = requests.into_iter().map(|request| (request, Status::Ok));
    drive.bench.transport.with_queue(0, |device, ring| device.complete(ring, done)).unwrap();
    assert_eq!(drive.bench.rings(0).used(), []);
}

#[test]
fn a_reset_does_not_wait_for_a_disk_that_hangs_when_the_guest_has_ended() {
    let mut drive = Drive::new(disk());
    drive.write_header(4, 0);
    let chain = [Descriptor::readable(HEADER, 16), Descriptor::writable(STATUS, 1)];
    drive.bench.rings(0).offer(&chain);
    drive.bench.kick(0);
    assert_eq!(drive.bench.transport.device_mut().take().len(), 1);
    let in_flight = drive.bench.transport.device().in_flight();

    std::thread::scope(|scope| {
        let reset = scope.spawn(|| drive.bench.reset());
        in_flight.abandon();
        reset.join().unwrap();
    });

    assert!(!drive.bench.transport.device_mut().quiesce());
}

#[test]
fn a_disk_that_grows_is_shown_with_its_new_size() {
    let mut drive = Drive::new(disk());
    drive.bench.take_interrupts();

    drive.bench.transport.device_mut().resize(100);
    drive.data.resize(100 * 512, 0);
    drive.bench.transport.config_changed();

    assert_eq!(drive.bench.take_interrupts(), 2);
    assert_eq!(drive.bench.read(register::CONFIG), 100);
    assert_eq!(drive.request(0, 99, &[]), (0, 1));
}

#[test]
fn a_restored_device_serves_what_is_in_the_queue() {
    let mut drive = Drive::new(disk());
    drive.data[512] = 42;
    drive.write_header(0, 1);
    let chain = [Descriptor::readable(HEADER, 16), Descriptor::writable(BUFFER, 513)];
    drive.bench.rings(0).offer(&chain);
    let Drive { bench, data } = drive;

    let bench = bench.migrate(device(disk())).unwrap();
    let mut drive = Drive { bench, data };
    let _ = drive.bench.transport.serve(0);
    assert_eq!(drive.work(), 1);

    assert_eq!(drive.memory().read_obj::<u8>(GuestAddress(BUFFER)).unwrap(), 42);
    let smaller = device(Disk { sectors: SECTORS - 1, ..disk() });
    assert!(drive.bench.migrate(smaller).is_err());
}

#[test]
fn a_driver_that_fails_the_device_is_noticed() {
    let mut drive = Drive::new(disk());
    drive.bench.rings(0).offer(&[Descriptor::readable(HEADER, 16)]);
    drive.bench.kick(0);

    assert_ne!(drive.bench.status() & status::NEEDS_RESET, 0);
}
