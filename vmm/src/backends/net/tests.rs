#![allow(clippy::unwrap_used)]

mod stream;
mod tap;
mod user;

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use arch::layout::RAM_BASE;
use arch::units::Bytes;
use devices::virtio::Features;
use devices::virtio::mmio::Transport;
use devices::virtio::net::{RECEIVE, TRANSMIT, features};
use event_manager::{EventManager, SubscriberOps};
use vm_memory::{Bytes as _, GuestAddress};
use vmm_sys_util::eventfd::EventFd;

use super::*;
use crate::backends::driver::{self, Line, QueuePlace};
use crate::backends::gate::QueueGate;
use crate::backends::queues::{QueueDoorbells, QueueEvents};
use crate::events::EventLog;
use crate::memory::{Attributes, GuestRam};
use crate::spec::{NetBackendSpec, NetSpec};

const MAC: [u8; 6] = [2, 0, 0, 0, 0, 9];
/// A queue of the driver's.
const SIZE: u16 = 64;
/// Where the driver has queue 0; the other one is [`QUEUE_ROOM`] further.
const QUEUES: u64 = RAM_BASE.0;
const QUEUE_ROOM: u64 = 0x4000;
const AVAILABLE: u64 = 0x1000;
const USED: u64 = 0x2000;
/// Where buffers are: one for each descriptor of each queue.
const BUFFERS: u64 = RAM_BASE.0 + 0x10_0000;
const BUFFER: u64 = 0x4000;

/// A network interface in an event loop, with its driver.
struct Bench {
    control: Control,
    transport: Shared<Net<Port>>,
    gate: QueueGate,
    memory: GuestRam,
    events: EventManager<NetEvents>,
    /// Of each queue: chains made available, and used chains seen.
    driver: [(u16, u16); 2],
}

fn spec(backend: NetBackendSpec) -> NetSpec {
    NetSpec {
        id: "eth0".into(),
        backend,
        mac: MAC,
        mtu: None,
        rx_limits: Default::default(),
        tx_limits: Default::default(),
    }
}

impl Bench {
    /// With the driver ready, and the features that it wants of those that are offered.
    fn new(spec: &NetSpec, acked: Features) -> Result<Self, OpenError> {
        let port = Port::open(spec)?;
        let doorbell = || EventFd::new(libc::EFD_NONBLOCK).unwrap();
        let doorbells = QueueDoorbells::from(vec![doorbell(), doorbell()]);
        let memory = GuestRam::new(Bytes::mib(4), Attributes::default()).unwrap();
        let net = Net::new(port, spec.mac, spec.mtu);
        let irq = Box::new(Line);
        let transport = Transport::new(net, memory.clone(), irq, Box::new(doorbells.clone()));
        let transport = Arc::new(Mutex::new(transport));
        let gate = QueueGate::default();
        let queues = QueueEvents::new(
            "network",
            transport.clone(),
            doorbells,
            gate.clone(),
            EventLog::default(),
        );
        let mut events = EventManager::new().unwrap();
        events.add_subscriber(NetEvents::new(queues).unwrap());
        let control = Control::new(spec, &transport);
        let bench = Self { control, transport, gate, memory, events, driver: [(0, 0); 2] };
        let place = |queue| {
            let base = QUEUES + QUEUE_ROOM * queue;
            QueuePlace {
                size: SIZE,
                descriptors: base,
                available: base + AVAILABLE,
                used: base + USED,
            }
        };
        let acked = acked.with(Features::EVENT_IDX);
        driver::start(&bench.transport, acked, &[0, 1].map(place));
        bench.gate.open();
        Ok(bench)
    }

    fn link_up(&self) -> bool {
        self.transport.lock().unwrap().device().is_link_up()
    }

    fn metric(&self, name: &str) -> u64 {
        self.control.reader()()[name].as_u64().unwrap()
    }

    /// Makes one more buffer available: that of the next descriptor. `readable` is what the device is to read.
    fn offer(&mut self, queue: usize, readable: Option<&[u8]>) {
        let base = QUEUES + QUEUE_ROOM * queue as u64;
        let (available, _) = self.driver[queue];
        let index = u64::from(available % SIZE);
        let buffer = BUFFERS + (u64::from(SIZE) * queue as u64 + index) * BUFFER;
        let (length, flags) = match readable {
            Some(bytes) => {
                self.memory.write_slice(bytes, GuestAddress(buffer)).unwrap();
                (bytes.len() as u32, 0_u16)
            }
            None => (BUFFER as u32, 2),
        };
        let descriptor = GuestAddress(base + 16 * index);
        self.memory.write_obj(buffer, descriptor).unwrap();
        self.memory.write_obj(length, GuestAddress(descriptor.0 + 8)).unwrap();
        self.memory.write_obj(flags, GuestAddress(descriptor.0 + 12)).unwrap();
        let slot = GuestAddress(base + AVAILABLE + 4 + 2 * index);
        self.memory.write_obj(index as u16, slot).unwrap();
        self.driver[queue].0 = available.wrapping_add(1);
        let at = GuestAddress(base + AVAILABLE + 2);
        self.memory.write_obj(available.wrapping_add(1), at).unwrap();
        driver::write(&self.transport, 0x050, queue as u64);
    }

    /// Whether the driver has a descriptor for another frame.
    fn has_room(&self, queue: usize) -> bool {
        let (available, used) = self.driver[queue];
        available.wrapping_sub(used) < SIZE
    }

    fn send(&mut self, frame: &[u8]) {
        self.offer(TRANSMIT, Some(&[&[0; 12], frame].concat()));
    }

    /// The next chain that has been used: the buffer and how much of it.
    fn take_used(&mut self, queue: usize) -> Option<(u64, u32)> {
        let base = QUEUES + QUEUE_ROOM * queue as u64;
        let index: u16 = self.memory.read_obj(GuestAddress(base + USED + 2)).unwrap();
        let (_, seen) = self.driver[queue];
        if index == seen {
            return None;
        }
        let element = base + USED + 4 + 8 * u64::from(seen % SIZE);
        let id: u32 = self.memory.read_obj(GuestAddress(element)).unwrap();
        let length: u32 = self.memory.read_obj(GuestAddress(element + 4)).unwrap();
        self.driver[queue].1 = seen.wrapping_add(1);
        Some((BUFFERS + (u64::from(SIZE) * queue as u64 + u64::from(id)) * BUFFER, length))
    }

    /// The next frame that has been received.
    fn take_frame(&mut self) -> Option<Vec<u8>> {
        let (buffer, length) = self.take_used(RECEIVE)?;
        let mut bytes = vec![0; length as usize];
        self.memory.read_slice(&mut bytes, GuestAddress(buffer)).unwrap();
        Some(bytes.split_off(12))
    }

    /// Lets the loop go round until this is so.
    fn until<T>(&mut self, what: &str, mut done: impl FnMut(&mut Self) -> Option<T>) -> T {
        let deadline = Instant::now() + Duration::from_secs(60);
        loop {
            self.events.run_with_timeout(10).unwrap();
            if let Some(done) = done(self) {
                return done;
            }
            assert!(Instant::now() < deadline, "no {what}");
        }
    }

    /// Lets the loop go round until nothing happens. It is a fault if something always does.
    fn settle(&mut self) {
        let deadline = Instant::now() + Duration::from_secs(60);
        while self.events.run_with_timeout(0).unwrap() > 0 {
            assert!(Instant::now() < deadline, "the loop is never idle");
        }
    }
}

/// Bytes that differ from their neighbours.
fn frame(length: usize, seed: usize) -> Vec<u8> {
    (0..length).map(|at| (at * 7 + at / 256 + seed) as u8).collect()
}
