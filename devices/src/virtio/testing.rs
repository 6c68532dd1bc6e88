//! A driver over mock memory, for unit tests of the transport and of devices behind it.
//!
//! ```text
//! let mut bench = Bench::started(Rng::new(..));
//! let head = bench.rings(0).offer(&[Descriptor::writable(DATA, 64)]);
//! bench.kick(0);
//! assert_eq!(bench.rings(0).used(), [(head.into(), 64)]);
//! ```

#![allow(clippy::unwrap_used)]

use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use virtio_queue::{Queue, QueueT};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

use super::mmio::{Served, Transport};
use super::{Device, Features};
use crate::bus::MmioDevice;
use crate::ports::{Doorbells, Entropy};
use crate::state::{RestoreError, Stateful};
use crate::testing::{CountingLine, through_a_file};

/// Where guest memory is, and how much.
pub(crate) const RAM: u64 = 0x4000_0000;
pub(crate) const RAM_SIZE: usize = 16 << 20;
/// The first address after it.
pub(crate) const RAM_END: u64 = RAM + RAM_SIZE as u64;
/// Where buffers can be: no queue is from here on.
pub(crate) const DATA: u64 = RAM + (8 << 20);
/// Room for one queue of any size.
const RINGS: u64 = 1 << 20;
const AVAILABLE: u64 = 32768 * 16;
const USED: u64 = AVAILABLE + 0x2_0000;

/// Flags of a descriptor (2.7.5).
pub(crate) const NEXT: u16 = 1;
pub(crate) const WRITE: u16 = 2;
pub(crate) const INDIRECT: u16 = 4;

/// Guest memory of [`RAM_SIZE`] bytes from [`RAM`] on.
pub(crate) fn memory() -> Arc<GuestMemoryMmap> {
    Arc::new(GuestMemoryMmap::from_ranges(&[(GuestAddress(RAM), RAM_SIZE)]).unwrap())
}

/// A descriptor as the driver writes it (2.7.5).
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Descriptor {
    pub(crate) address: u64,
    pub(crate) length: u32,
    pub(crate) flags: u16,
    pub(crate) next: u16,
}

impl Descriptor {
    /// A buffer that the device reads.
    pub(crate) const fn readable(address: u64, length: u32) -> Self {
        Self { address, length, flags: 0, next: 0 }
    }

    /// A buffer that the device writes.
    pub(crate) const fn writable(address: u64, length: u32) -> Self {
        Self { address, length, flags: WRITE, next: 0 }
    }

    /// A table of `length` bytes of descriptors.
    pub(crate) const fn table(address: u64, length: u32) -> Self {
        Self { address, length, flags: INDIRECT, next: 0 }
    }

    /// The same, with another descriptor after it.
    pub(crate) const fn then(self, next: u16) -> Self {
        Self { flags: self.flags | NEXT, next, ..self }
    }

    /// Writes it as number `index` of the table at `table`.
    pub(crate) fn put(self, memory: &GuestMemoryMmap, table: u64, index: u16) {
        let mut bytes = [0; 16];
        bytes[..8].copy_from_slice(&self.address.to_le_bytes());
        bytes[8..12].copy_from_slice(&self.length.to_le_bytes());
        bytes[12..14].copy_from_slice(&self.flags.to_le_bytes());
        bytes[14..].copy_from_slice(&self.next.to_le_bytes());
        memory.write_slice(&bytes, GuestAddress(table + 16 * u64::from(index))).unwrap();
    }
}

/// The driver's side of one queue.
#[derive(Debug)]
pub(crate) struct Rings {
    memory: Arc<GuestMemoryMmap>,
    /// Where its parts are.
    pub(crate) table: u64,
    pub(crate) available: u64,
    pub(crate) used: u64,
    size: u16,
    next_descriptor: u16,
    available_index: u16,
    used_index: u16,
}

impl Rings {
    /// Empty rings in a place of their own, for each `queue` below 8.
    pub(crate) fn new(memory: Arc<GuestMemoryMmap>, queue: usize, size: u16) -> Self {
        let table = RAM + RINGS * queue as u64;
        let (available, used) = (table + AVAILABLE, table + USED);
        // Flags and indices of an earlier driver; the rest is written before it is read.
        memory.write_slice(&[0; 4], GuestAddress(available)).unwrap();
        memory.write_slice(&[0; 4], GuestAddress(used)).unwrap();
        let (next_descriptor, available_index, used_index) = (0, 0, 0);
        Self { memory, table, available, used, size, next_descriptor, available_index, used_index }
    }

    /// The device's side, without a transport.
    pub(crate) fn queue(&self) -> Queue {
        let mut queue = Queue::new(self.size).unwrap();
        queue.try_set_desc_table_address(GuestAddress(self.table)).unwrap();
        queue.try_set_avail_ring_address(GuestAddress(self.available)).unwrap();
        queue.try_set_used_ring_address(GuestAddress(self.used)).unwrap();
        queue.set_ready(true);
        queue
    }

    /// Makes a chain of these descriptors available, the next free ones in turn. Returns its head.
    pub(crate) fn offer(&mut self, chain: &[Descriptor]) -> u16 {
        let head = self.next_descriptor;
        for (index, descriptor) in chain.iter().enumerate() {
            let here = self.next_descriptor;
            self.next_descriptor = (here + 1) % self.size;
            let last = index + 1 == chain.len();
            let linked = if last { *descriptor } else { descriptor.then(self.next_descriptor) };
            self.put(here, linked);
        }
        self.make_available(head);
        head
    }

    /// Writes one descriptor, as it is.
    pub(crate) fn put(&self, index: u16, descriptor: Descriptor) {
        descriptor.put(&self.memory, self.table, index);
    }

    /// Makes whatever chain begins at `head` available.
    pub(crate) fn make_available(&mut self, head: u16) {
        let slot = u64::from(self.available_index % self.size);
        self.store(self.available + 4 + 2 * slot, head);
        self.set_available_index(self.available_index.wrapping_add(1));
    }

    /// Says how many chains have been made available.
    pub(crate) fn set_available_index(&mut self, index: u16) {
        self.available_index = index;
        self.store(self.available + 2, index);
    }

    /// Says whether chains that are used need no interrupt (without event indices).
    pub(crate) fn set_available_flags(&self, flags: u16) {
        self.store(self.available, flags);
    }

    /// Asks for an interrupt after the used chain with this number (with event indices).
    pub(crate) fn set_used_event(&self, index: u16) {
        self.store(self.available + 4 + 2 * u64::from(self.size), index);
    }

    /// The available chain whose notification the device asks for (with event indices).
    pub(crate) fn available_event(&self) -> u16 {
        self.load(self.used + 4 + 8 * u64::from(self.size))
    }

    /// Whether the device says that notifications are not needed (without event indices).
    pub(crate) fn used_flags(&self) -> u16 {
        self.load(self.used)
    }

    /// The index of the used ring, which is all that the driver sees of progress.
    pub(crate) fn used_index(&self) -> u16 {
        self.load(self.used + 2)
    }

    /// The chains that have been used since the last call: their heads, and the bytes written.
    pub(crate) fn used(&mut self) -> Vec<(u32, u32)> {
        let mut used = Vec::new();
        while self.used_index != self.used_index() {
            let element = self.used + 4 + 8 * u64::from(self.used_index % self.size);
            let word = |at| u32::from_le(self.memory.read_obj(GuestAddress(at)).unwrap());
            used.push((word(element), word(element + 4)));
            self.used_index = self.used_index.wrapping_add(1);
        }
        used
    }

    fn store(&self, address: u64, value: u16) {
        self.memory.write_obj(value.to_le(), GuestAddress(address)).unwrap();
    }

    fn load(&self, address: u64) -> u16 {
        u16::from_le(self.memory.read_obj(GuestAddress(address)).unwrap())
    }
}

/// A source of bytes that count up from 0, which ends after some. Clones share the count.
#[derive(Clone)]
pub(crate) struct CountingEntropy {
    given: Arc<AtomicU64>,
    most: u64,
}

impl CountingEntropy {
    /// A source of at most this many bytes.
    pub(crate) fn of(most: u64) -> Self {
        Self { given: Arc::default(), most }
    }

    /// How many bytes it has given.
    pub(crate) fn given(&self) -> u64 {
        self.given.load(Ordering::Relaxed)
    }
}

impl Entropy for CountingEntropy {
    fn fill(&mut self, bytes: &mut [u8]) -> io::Result<()> {
        let length = bytes.len() as u64;
        if self.given() + length > self.most {
            return Err(io::Error::other("the source is dry"));
        }
        let first = self.given.fetch_add(length, Ordering::Relaxed);
        for (byte, value) in bytes.iter_mut().zip(first..) {
            *byte = value as u8;
        }
        Ok(())
    }
}

/// Doorbells that record the queues. Clones share the record.
#[derive(Clone, Default)]
pub(crate) struct RecordingDoorbells(Arc<Mutex<Vec<usize>>>);

impl RecordingDoorbells {
    /// The signalled queues since the last call, in order.
    pub(crate) fn take(&self) -> Vec<usize> {
        std::mem::take(&mut *self.0.lock().unwrap())
    }
}

impl Doorbells for RecordingDoorbells {
    fn signal(&self, queue: usize) {
        self.0.lock().unwrap().push(queue);
    }
}

/// Turns that [`Bench::answer`] gives a queue for one ring: a driver may never stop.
pub(crate) const TURNS: usize = 16;

/// Registers, as in table 4.1 of the specification.
pub(crate) mod register {
    pub(crate) const DEVICE_FEATURES: u64 = 0x010;
    pub(crate) const DEVICE_FEATURES_SEL: u64 = 0x014;
    pub(crate) const DRIVER_FEATURES: u64 = 0x020;
    pub(crate) const DRIVER_FEATURES_SEL: u64 = 0x024;
    pub(crate) const QUEUE_SEL: u64 = 0x030;
    pub(crate) const QUEUE_NUM_MAX: u64 = 0x034;
    pub(crate) const QUEUE_NUM: u64 = 0x038;
    pub(crate) const QUEUE_READY: u64 = 0x044;
    pub(crate) const QUEUE_NOTIFY: u64 = 0x050;
    pub(crate) const INTERRUPT_STATUS: u64 = 0x060;
    pub(crate) const INTERRUPT_ACK: u64 = 0x064;
    pub(crate) const STATUS: u64 = 0x070;
    pub(crate) const QUEUE_DESC: u64 = 0x080;
    pub(crate) const QUEUE_DRIVER: u64 = 0x090;
    pub(crate) const QUEUE_DEVICE: u64 = 0x0a0;
    pub(crate) const CONFIG_GENERATION: u64 = 0x0fc;
    pub(crate) const CONFIG: u64 = 0x100;
}

/// Bits of the status (2.1).
pub(crate) mod status {
    pub(crate) const ACKNOWLEDGE: u32 = 1;
    pub(crate) const DRIVER: u32 = 2;
    pub(crate) const DRIVER_OK: u32 = 4;
    pub(crate) const FEATURES_OK: u32 = 8;
    pub(crate) const NEEDS_RESET: u32 = 64;
    pub(crate) const FAILED: u32 = 128;
}

/// A device behind a transport, and everything around it.
pub(crate) struct Bench<D> {
    pub(crate) transport: Transport<D, Arc<GuestMemoryMmap>>,
    pub(crate) memory: Arc<GuestMemoryMmap>,
    pub(crate) line: CountingLine,
    pub(crate) doorbells: RecordingDoorbells,
    rings: Vec<Option<Rings>>,
}

impl<D: Device> Bench<D> {
    /// A device that no driver has touched.
    pub(crate) fn new(device: D) -> Self {
        let (memory, line, doorbells) =
            (memory(), CountingLine::default(), RecordingDoorbells::default());
        let rings = device.queue_sizes().iter().map(|_| None).collect();
        let irq = Box::new(line.clone());
        let transport = Transport::new(device, memory.clone(), irq, Box::new(doorbells.clone()));
        Self { transport, memory, line, doorbells, rings }
    }

    /// The same machine in another process: the state goes through a file, into `device`.
    pub(crate) fn migrate(self, device: D) -> Result<Self, RestoreError> {
        let state = through_a_file(&self.transport.save());
        let (line, doorbells) = (CountingLine::default(), RecordingDoorbells::default());
        let irq = Box::new(line.clone());
        let mut transport =
            Transport::new(device, self.memory.clone(), irq, Box::new(doorbells.clone()));
        transport.restore(state)?;
        Ok(Self { transport, line, doorbells, ..self })
    }

    /// A device whose driver is ready, with all features and with queues of the greatest size.
    pub(crate) fn started(device: D) -> Self {
        let mut bench = Self::new(device);
        let offered = bench.offered();
        bench.initialise(offered);
        bench
    }

    /// A device whose driver is ready, with these features of the device's, and VERSION_1.
    pub(crate) fn started_with(device: D, features: Features) -> Self {
        let mut bench = Self::new(device);
        bench.initialise(features.with(Features::VERSION_1));
        bench
    }

    /// What a driver does (3.1.1), from the reset on.
    pub(crate) fn initialise(&mut self, features: Features) {
        assert!(self.negotiate(features));
        for queue in 0..self.rings.len() {
            let size = self.transport.device().queue_sizes()[queue];
            assert!(self.set_up(queue, size));
        }
        self.start();
    }

    /// The driver's side of a queue that is set up.
    pub(crate) fn rings(&mut self, queue: usize) -> &mut Rings {
        self.rings[queue].as_mut().unwrap()
    }

    /// Whether a queue has been set up.
    pub(crate) fn is_set_up(&self, queue: usize) -> bool {
        self.rings[queue].is_some()
    }

    /// The index of the first queue's used ring, if that has been set up.
    pub(crate) fn used_index(&self) -> Option<u16> {
        self.rings[0].as_ref().map(Rings::used_index)
    }

    /// Reads a register.
    pub(crate) fn read(&mut self, register: u64) -> u32 {
        let mut data = [0xff; 4];
        self.transport.read(register, &mut data);
        u32::from_le_bytes(data)
    }

    /// Writes a register.
    pub(crate) fn write(&mut self, register: u64, value: u32) {
        self.transport.write(register, &value.to_le_bytes());
    }

    /// The features that the device offers.
    pub(crate) fn offered(&mut self) -> Features {
        let mut half = |select| {
            self.write(register::DEVICE_FEATURES_SEL, select);
            u64::from(self.read(register::DEVICE_FEATURES))
        };
        Features(half(0) | half(1) << 32)
    }

    /// Resets the device and settles on features. Whether the device works with them.
    pub(crate) fn negotiate(&mut self, features: Features) -> bool {
        self.reset();
        self.write(register::STATUS, status::ACKNOWLEDGE);
        self.advance(status::DRIVER);
        for (select, half) in [(0, features.0), (1, features.0 >> 32)] {
            self.write(register::DRIVER_FEATURES_SEL, select);
            self.write(register::DRIVER_FEATURES, half as u32);
        }
        self.advance(status::FEATURES_OK);
        self.status() & status::FEATURES_OK != 0
    }

    /// Sets up one queue. Whether it is ready.
    pub(crate) fn set_up(&mut self, queue: usize, size: u16) -> bool {
        let rings = Rings::new(self.memory.clone(), queue, size);
        let parts = [rings.table, rings.available, rings.used];
        self.rings[queue] = Some(rings);
        self.set_up_at(queue, size.into(), parts)
    }

    /// Sets up one queue of any size, whose table, available and used ring are anywhere.
    pub(crate) fn set_up_at(&mut self, queue: usize, size: u32, parts: [u64; 3]) -> bool {
        self.write(register::QUEUE_SEL, queue as u32);
        self.write(register::QUEUE_NUM, size);
        let registers = [register::QUEUE_DESC, register::QUEUE_DRIVER, register::QUEUE_DEVICE];
        for (register, address) in registers.into_iter().zip(parts) {
            self.write(register, address as u32);
            self.write(register + 4, (address >> 32) as u32);
        }
        self.write(register::QUEUE_READY, 1);
        self.read(register::QUEUE_READY) == 1
    }

    /// Sets DRIVER_OK, and serves what that rings for.
    pub(crate) fn start(&mut self) {
        self.advance(status::DRIVER_OK);
        self.answer();
    }

    /// Serves the signalled queues, as the thread that waits for the doorbells does.
    pub(crate) fn answer(&mut self) {
        for queue in self.doorbells.take() {
            for _ in 0..TURNS {
                if self.transport.serve(queue) == Served::Done {
                    break;
                }
            }
        }
    }

    /// Sets another bit of the status, as drivers do.
    pub(crate) fn advance(&mut self, bit: u32) {
        let status = self.status();
        self.write(register::STATUS, status | bit);
    }

    /// The status.
    pub(crate) fn status(&mut self) -> u32 {
        self.read(register::STATUS)
    }

    /// Resets the device.
    pub(crate) fn reset(&mut self) {
        self.write(register::STATUS, 0);
    }

    /// Notifies of new chains on a queue, which are served.
    pub(crate) fn kick(&mut self, queue: u32) {
        self.write(register::QUEUE_NOTIFY, queue);
        self.answer();
    }

    /// Takes the pending interrupts, as a driver's handler does.
    pub(crate) fn take_interrupts(&mut self) -> u32 {
        let pending = self.read(register::INTERRUPT_STATUS);
        self.write(register::INTERRUPT_ACK, pending);
        pending
    }
}
