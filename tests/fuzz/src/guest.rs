//! A guest that does anything to a virtio device: registers, queues and memory, out of bytes.
//!
//! Each step is a byte and what it needs; [`seed`] writes the same form. What is usual, such as an initialisation or
//! a chain, is one step, so that few bytes lead far.

use std::cell::RefCell;
use std::io;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError};

use devices::bus::MmioDevice;
use devices::ports::{Doorbells, IrqLine};
use devices::state::Stateful;
use devices::virtio::mmio::{Served, Transport};
use devices::virtio::{Device, Features};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

use crate::input::Input;

/// Where guest memory is, and how much.
pub const RAM: u64 = 0x8000_0000;
/// Its size in bytes: little, as each execution clears it.
pub const SIZE: usize = 128 << 10;
/// Room for one queue of at most [`MOST_CHAINS`] chains: descriptors, the available ring, the used ring.
const RINGS: u64 = 0x4000;
const AVAILABLE: u64 = 0x1000;
const USED: u64 = 0x2000;
/// The greatest order of a queue that is set up.
const MOST_ORDER: u32 = 8;
/// The greatest size of a queue that is set up.
const MOST_CHAINS: u16 = 1 << MOST_ORDER;
/// Where buffers of chains are: behind the rings of five queues.
const DATA: u64 = RAM + 5 * RINGS;
const DATA_SIZE: u64 = SIZE as u64 - 5 * RINGS;
/// Steps of one execution; more find little and cost time.
const MOST_STEPS: usize = 80;
/// Turns that the queues get after a step: a driver may never stop.
const TURNS: usize = 16;

/// Registers (table 4.1 of the specification).
mod register {
    pub(super) const DEVICE_FEATURES: u64 = 0x010;
    pub(super) const DEVICE_FEATURES_SEL: u64 = 0x014;
    pub(super) const DRIVER_FEATURES: u64 = 0x020;
    pub(super) const DRIVER_FEATURES_SEL: u64 = 0x024;
    pub(super) const QUEUE_SEL: u64 = 0x030;
    pub(super) const QUEUE_NUM: u64 = 0x038;
    pub(super) const QUEUE_READY: u64 = 0x044;
    pub(super) const STATUS: u64 = 0x070;
    pub(super) const QUEUE_DESC: u64 = 0x080;
    pub(super) const QUEUE_DRIVER: u64 = 0x090;
    pub(super) const QUEUE_DEVICE: u64 = 0x0a0;
}

/// ACKNOWLEDGE, DRIVER, FEATURES_OK, DRIVER_OK, DEVICE_NEEDS_RESET (2.1).
const FOUND: u32 = 3;
const FEATURES_OK: u32 = 8;
const DRIVER_OK: u32 = 4;
const NEEDS_RESET: u32 = 64;

/// Flags of a descriptor (2.7.5).
const NEXT: u16 = 1;
const WRITE: u16 = 2;

/// Guest memory as a transport holds it.
pub type Ram = Arc<GuestMemoryMmap>;

/// A device in its machine.
pub type Machine<D> = Transport<D, Ram>;

/// What is particular to a device.
pub trait Model {
    /// Its kind.
    type Device: Device;

    /// One as it starts, always of the same configuration. What was the host's of the one before is gone.
    fn device(&mut self) -> Self::Device;

    /// The memory of its guest.
    fn has(&mut self, ram: &Ram) {
        let _ = ram;
    }

    /// Serves a queue, as its thread does.
    fn serve(&mut self, machine: &mut Machine<Self::Device>, queue: usize) -> Served {
        machine.serve(queue)
    }

    /// Something happens on the host's side.
    fn host(&mut self, machine: &mut Machine<Self::Device>, input: &mut Input<'_>);

    /// What holds after each step.
    fn check(&self, machine: &Machine<Self::Device>) {
        let _ = machine;
    }
}

/// Takes edges, and counts none.
pub struct Line;

impl IrqLine for Line {
    fn trigger(&self) -> io::Result<()> {
        Ok(())
    }
}

/// The queues that are to be served.
#[derive(Clone, Default)]
struct Signalled(Arc<Mutex<Vec<usize>>>);

impl Signalled {
    fn take(&self) -> Vec<usize> {
        std::mem::take(&mut *self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Doorbells for Signalled {
    fn signal(&self, queue: usize) {
        let mut queues = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if !queues.contains(&queue) {
            queues.push(queue);
        }
    }
}

/// Guest memory that is zero: the same for all executions of a thread, as mapping it takes longer than most.
#[allow(clippy::unwrap_used)]
fn ram() -> Ram {
    thread_local! {
        static RAM: RefCell<Option<Ram>> = const { RefCell::new(None) };
    }
    static ZEROS: [u8; SIZE] = [0; SIZE];
    let ram = RAM.with_borrow_mut(|ram| {
        ram.get_or_insert_with(|| {
            Arc::new(GuestMemoryMmap::from_ranges(&[(GuestAddress(self::RAM), SIZE)]).unwrap())
        })
        .clone()
    });
    ram.write_slice(&ZEROS, GuestAddress(self::RAM)).unwrap();
    ram
}

/// The driver's side of a queue.
#[derive(Clone, Copy, Default)]
struct Rings {
    size: u16,
    next: u16,
    available: u16,
}

struct Guest<M: Model> {
    model: M,
    machine: Machine<M::Device>,
    ram: Ram,
    signalled: Signalled,
    rings: Vec<Rings>,
}

/// Has the guest do what the bytes say.
pub fn drive<M: Model>(model: M, data: &[u8]) {
    let mut guest = Guest::new(model);
    let mut input = Input::new(data);
    for _ in 0..MOST_STEPS {
        if input.is_empty() {
            break;
        }
        guest.step(&mut input);
    }
}

impl<M: Model> Guest<M> {
    fn new(mut model: M) -> Self {
        let (device, ram, signalled) = (model.device(), ram(), Signalled::default());
        let rings = vec![Rings::default(); device.queue_sizes().len()];
        model.has(&ram);
        let machine =
            Transport::new(device, ram.clone(), Box::new(Line), Box::new(signalled.clone()));
        Self { model, machine, ram, signalled, rings }
    }

    fn step(&mut self, input: &mut Input<'_>) {
        let broken = self.machine.broken().cloned();
        let resets = self.machine.counters().resets.load(Ordering::Relaxed);
        let moved = self.act(input);
        self.answer();

        let reset = moved || self.machine.counters().resets.load(Ordering::Relaxed) != resets;
        if broken.is_some() && !reset {
            assert_eq!(self.machine.broken(), broken.as_ref(), "broken until a reset");
            assert!(!self.machine.is_active());
        }
        let needs_reset = self.read(register::STATUS) & NEEDS_RESET != 0;
        assert_eq!(needs_reset, self.machine.broken().is_some());
        self.model.check(&self.machine);
    }

    /// Does one thing. Whether the device is another one now.
    fn act(&mut self, input: &mut Input<'_>) -> bool {
        match input.below(16) {
            seed::READ => {
                let offset =
                    if input.flag() { input.u64() } else { u64::from(input.u16()) % 0x140 };
                let mut data = vec![0xff; input.below(9)];
                self.machine.read(offset, &mut data);
            }
            seed::REGISTER => {
                let register = u64::from(input.u8()) % 0x50 * 4;
                let value = self.value(input);
                self.write(register, value);
            }
            seed::WRITE => {
                let offset =
                    if input.flag() { input.u64() } else { u64::from(input.u16()) % 0x140 };
                let width = input.below(9);
                let data = input.take(width);
                self.machine.write(offset, data);
            }
            seed::INITIALISE => self.initialise(input),
            seed::POKE => {
                let address = RAM + u64::from(input.u16()) * 2;
                let length = input.below(17);
                let _ = self.ram.write_slice(input.take(length), GuestAddress(address));
            }
            seed::DESCRIPTOR => {
                let queue = input.below(self.rings.len());
                let index = u16::from(input.u8());
                let (address, length) = (self.address(input), self.length(input));
                let (flags, next) = (u16::from(input.u8()), u16::from(input.u8()));
                self.put(queue, index, address, length, flags, next);
            }
            seed::CHAIN..=9 => self.chain(input),
            seed::OFFER => {
                let queue = input.below(self.rings.len());
                let head = input.u16();
                self.make_available(queue, head);
            }
            seed::SERVE => {
                let queue = input.below(self.rings.len() + 1);
                let _ = self.model.serve(&mut self.machine, queue);
            }
            12 => {
                let _ = self.machine.serve_part(input.below(self.rings.len()));
            }
            seed::HOST => self.model.host(&mut self.machine, input),
            seed::MIGRATE => return self.migrate(),
            _ => return self.restore(input),
        }
        false
    }

    /// Serves what is signalled, for some turns.
    fn answer(&mut self) {
        for _ in 0..TURNS {
            let queues = self.signalled.take();
            if queues.is_empty() {
                break;
            }
            for queue in queues {
                if self.model.serve(&mut self.machine, queue) == Served::More {
                    self.signalled.signal(queue);
                }
            }
        }
    }

    /// What a driver does (3.1.1), from the reset on.
    fn initialise(&mut self, input: &mut Input<'_>) {
        let wanted = Features(input.u64());
        self.write(register::STATUS, 0);
        self.write(register::STATUS, FOUND);
        for half in 0..2 {
            self.write(register::DEVICE_FEATURES_SEL, half);
            let offered = self.read(register::DEVICE_FEATURES);
            // VERSION_1 in any case, without which no device works.
            let wanted = wanted.with(Features::VERSION_1).0 >> (32 * half);
            self.write(register::DRIVER_FEATURES_SEL, half);
            self.write(register::DRIVER_FEATURES, wanted as u32 & offered);
        }
        self.write(register::STATUS, FOUND | FEATURES_OK);
        for queue in 0..self.rings.len() {
            let order = input.u8();
            // A queue may stay away.
            if order == u8::MAX {
                continue;
            }
            let most = self.machine.device().queue_sizes()[queue].min(MOST_CHAINS);
            let size = most.min(1 << (u32::from(order) % (MOST_ORDER + 1)));
            self.set_up(queue, size);
        }
        self.write(register::STATUS, FOUND | FEATURES_OK | DRIVER_OK);
    }

    fn set_up(&mut self, queue: usize, size: u16) {
        let table = table(queue);
        self.write(register::QUEUE_SEL, queue as u32);
        self.write(register::QUEUE_NUM, size.into());
        for (register, address) in [
            (register::QUEUE_DESC, table),
            (register::QUEUE_DRIVER, table + AVAILABLE),
            (register::QUEUE_DEVICE, table + USED),
        ] {
            self.write(register, address as u32);
            self.write(register + 4, (address >> 32) as u32);
        }
        for ring in [table + AVAILABLE, table + USED] {
            let _ = self.ram.write_slice(&[0; 4], GuestAddress(ring));
        }
        self.write(register::QUEUE_READY, 1);
        self.rings[queue] = Rings { size, ..Rings::default() };
    }

    /// A chain of buffers, of which those that the device reads have bytes of the input.
    fn chain(&mut self, input: &mut Input<'_>) {
        let queue = input.below(self.rings.len());
        let count = input.below(seed::MOST_BUFFERS) + 1;
        let head = self.rings[queue].next;
        for at in 0..count {
            let flags = input.u8();
            let (address, length) = (self.address(input), self.length(input));
            if flags & seed::FILLED != 0 {
                let bytes = input.take(length.min(96) as usize);
                let _ = self.ram.write_slice(bytes, GuestAddress(address));
            }
            let here = self.rings[queue].next;
            let next = (here + 1) % self.rings[queue].size.max(1);
            let link = if at + 1 < count { NEXT } else { 0 };
            self.put(queue, here, address, length, u16::from(flags) & WRITE | link, next);
            self.rings[queue].next = next;
        }
        self.make_available(queue, head);
        self.machine.notify(queue);
    }

    fn put(&mut self, queue: usize, index: u16, address: u64, length: u32, flags: u16, next: u16) {
        let mut bytes = [0; 16];
        bytes[..8].copy_from_slice(&address.to_le_bytes());
        bytes[8..12].copy_from_slice(&length.to_le_bytes());
        bytes[12..14].copy_from_slice(&flags.to_le_bytes());
        bytes[14..].copy_from_slice(&next.to_le_bytes());
        let at = table(queue) + 16 * u64::from(index % MOST_CHAINS);
        let _ = self.ram.write_slice(&bytes, GuestAddress(at));
    }

    fn make_available(&mut self, queue: usize, head: u16) {
        let rings = &mut self.rings[queue];
        let ring = table(queue) + AVAILABLE;
        let slot = u64::from(rings.available % rings.size.max(1));
        rings.available = rings.available.wrapping_add(1);
        let index = rings.available;
        let _ = self.ram.write_slice(&head.to_le_bytes(), GuestAddress(ring + 4 + 2 * slot));
        let _ = self.ram.write_slice(&index.to_le_bytes(), GuestAddress(ring + 2));
    }

    /// An address: mostly of a buffer.
    fn address(&self, input: &mut Input<'_>) -> u64 {
        match input.u8() {
            0 => input.u64(),
            1 => RAM + SIZE as u64 - u64::from(input.u8()),
            2 => u64::MAX - u64::from(input.u8()),
            3 => RAM + u64::from(input.u16()) * 2,
            place => DATA + u64::from(place) * 128 % DATA_SIZE,
        }
    }

    /// The length of a buffer: mostly a short one.
    fn length(&self, input: &mut Input<'_>) -> u32 {
        match input.u8() {
            0xff => input.u32(),
            0xfe => u32::from(input.u16()),
            0xfd => 4096,
            0xfc => 512,
            length => length.into(),
        }
    }

    /// A value for a register: mostly a small one, or an address.
    fn value(&self, input: &mut Input<'_>) -> u32 {
        match input.u8() {
            0xff => input.u32(),
            0xfe => RAM as u32 + u32::from(input.u16()) * 2,
            0xfd => 1 << input.below(32),
            value => value.into(),
        }
    }

    /// The same machine elsewhere: the state goes through a file. Whether it did.
    #[allow(clippy::unwrap_used)]
    fn migrate(&mut self) -> bool {
        if !self.machine.quiesce() {
            return false;
        }
        let state = self.machine.save();
        let file = postcard::to_allocvec(&state).unwrap();
        let active = self.machine.is_active();
        let mut machine = self.another();
        machine.restore(postcard::from_bytes(&file).unwrap()).unwrap();
        assert_eq!(postcard::to_allocvec(&machine.save()).unwrap(), file, "restored as saved");
        assert_eq!(machine.is_active(), active);
        self.machine = machine;
        true
    }

    /// A state out of a file that is not what was saved. Whether it was taken.
    #[allow(clippy::unwrap_used)]
    fn restore(&mut self, input: &mut Input<'_>) -> bool {
        if !self.machine.quiesce() {
            return false;
        }
        let mut file = postcard::to_allocvec(&self.machine.save()).unwrap();
        for _ in 0..input.below(4) + 1 {
            let at = usize::from(input.u8()) % file.len();
            file[at] = input.u8();
        }
        let Ok(state) = postcard::from_bytes(&file) else { return false };
        let mut machine = self.another();
        // The driver of a device that was not restored is gone, as is its host's side.
        let _ = machine.restore(state);
        self.machine = machine;
        true
    }

    fn another(&mut self) -> Machine<M::Device> {
        self.signalled.take();
        let doorbells = Box::new(self.signalled.clone());
        Transport::new(self.model.device(), self.ram.clone(), Box::new(Line), doorbells)
    }

    fn read(&mut self, register: u64) -> u32 {
        let mut data = [0; 4];
        self.machine.read(register, &mut data);
        u32::from_le_bytes(data)
    }

    fn write(&mut self, register: u64, value: u32) {
        self.machine.write(register, &value.to_le_bytes());
    }
}

fn table(queue: usize) -> u64 {
    RAM + RINGS * queue as u64
}

/// Steps as bytes, for the first inputs of a corpus.
pub mod seed {
    pub(super) const READ: usize = 0;
    pub(super) const REGISTER: usize = 1;
    pub(super) const WRITE: usize = 2;
    pub(super) const INITIALISE: usize = 3;
    pub(super) const POKE: usize = 4;
    pub(super) const DESCRIPTOR: usize = 5;
    pub(super) const CHAIN: usize = 6;
    pub(super) const OFFER: usize = 10;
    pub(super) const SERVE: usize = 11;
    pub(super) const HOST: usize = 13;
    pub(super) const MIGRATE: usize = 14;

    /// Buffers of a chain in one step, at most.
    pub(super) const MOST_BUFFERS: usize = 6;
    /// Of a buffer's flags: its bytes follow.
    pub(super) const FILLED: u8 = 1;

    /// An initialisation with these features and queues of this order.
    pub fn initialise(features: u64, queues: usize, order: u8) -> Vec<u8> {
        let mut bytes = vec![INITIALISE as u8];
        bytes.extend(features.to_le_bytes());
        bytes.extend(std::iter::repeat_n(order, queues));
        bytes
    }

    /// One buffer of a chain.
    #[derive(Clone, Copy)]
    pub enum Buffer<'a> {
        /// The device reads these bytes, at most 96.
        Filled(&'a [u8]),
        /// The device reads so many bytes that are there, at most 96.
        Readable(u8),
        /// The device writes as many, at most 96.
        Writable(u8),
    }

    /// A chain of these buffers, which is signalled.
    pub fn chain(queue: u8, buffers: &[Buffer<'_>]) -> Vec<u8> {
        let mut bytes = vec![CHAIN as u8, queue, buffers.len() as u8 - 1];
        // Each has a place of its own.
        for (place, buffer) in (4..).zip(buffers) {
            match buffer {
                Buffer::Filled(content) => {
                    bytes.extend([FILLED, place, content.len() as u8]);
                    bytes.extend_from_slice(content);
                }
                Buffer::Readable(length) => bytes.extend([0, place, *length]),
                Buffer::Writable(length) => bytes.extend([super::WRITE as u8, place, *length]),
            }
        }
        bytes
    }

    /// Something on the host's side, by its bytes.
    pub fn host(bytes: &[u8]) -> Vec<u8> {
        [&[HOST as u8], bytes].concat()
    }

    /// A move to another machine.
    pub fn migrate() -> Vec<u8> {
        vec![MIGRATE as u8]
    }

    /// A register of 32 bits is written.
    pub fn register(register: u8, value: u8) -> Vec<u8> {
        vec![REGISTER as u8, register / 4, value]
    }
}
