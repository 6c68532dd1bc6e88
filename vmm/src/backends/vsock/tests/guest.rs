//! A driver, with rings and buffers, and the event loop of its device.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Instant;

use arch::layout::RAM_BASE;
use arch::units::Bytes;
use devices::ports::Doorbells;
use devices::virtio::Features;
use devices::virtio::mmio::Transport;
use event_manager::{EventManager, SubscriberOps};
use tempfile::TempDir;
use vm_memory::{Bytes as _, GuestAddress};
use vmm_sys_util::eventfd::EventFd;

use super::*;
use crate::backends::driver::{self, Line, QueuePlace};
use crate::backends::gate::QueueGate;
use crate::backends::queues::QueueDoorbells;
use crate::events::EventLog;
use crate::memory::{Attributes, GuestRam};

pub(super) const CID: u32 = 3;

/// Operations of a packet (5.10.6).
pub(super) const REQUEST: u16 = 1;
pub(super) const RESPONSE: u16 = 2;
pub(super) const RESET: u16 = 3;
pub(super) const SHUTDOWN: u16 = 4;
pub(super) const DATA: u16 = 5;
pub(super) const CREDIT_UPDATE: u16 = 6;

/// Entries of each queue, and bytes of a buffer.
const SIZE: u16 = 16;
const BUFFER: u64 = 0x1_2000;

/// A packet, or what a test looks at of one.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub(super) struct Packet {
    pub(super) guest_port: u32,
    pub(super) host_port: u32,
    pub(super) operation: u16,
    pub(super) flags: u32,
    pub(super) data: Vec<u8>,
    /// How much of the guest's data the device says it has passed on.
    pub(super) forwarded: u32,
}

impl Packet {
    pub(super) fn new(guest_port: u32, host_port: u32, operation: u16) -> Self {
        Self { guest_port, host_port, operation, ..Self::default() }
    }
}

pub(super) struct TestGuest {
    pub(super) transport: Shared<Vsock<HostPeers>>,
    pub(super) gate: QueueGate,
    doorbells: QueueDoorbells,
    memory: GuestRam,
    events: EventManager<VsockEvents>,
    /// The bytes of data that the guest has taken of the last connection, which is the one with data.
    taken: u32,
    sent: u16,
    received: u16,
    directory: TempDir,
}

impl TestGuest {
    /// A guest whose driver is not ready yet.
    pub(super) fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let gate = QueueGate::default();
        gate.open();
        let peers = HostPeers::listen(&directory.path().join("v"), gate.clone()).unwrap();
        let doorbell = || EventFd::new(libc::EFD_NONBLOCK).unwrap();
        let doorbells = QueueDoorbells::from(vec![doorbell(), doorbell(), doorbell()]);
        let memory = GuestRam::new(Bytes::mib(4), Attributes::default()).unwrap();
        let device = Vsock::new(CID, peers);
        let transport =
            Transport::new(device, memory.clone(), Box::new(Line), Box::new(doorbells.clone()));
        let transport = Arc::new(Mutex::new(transport));
        let queues = QueueEvents::new(
            "sockets",
            transport.clone(),
            doorbells.clone(),
            gate.clone(),
            EventLog::default(),
        );
        let mut events = EventManager::new().unwrap();
        events.add_subscriber(VsockEvents::new(&transport, queues).unwrap());
        let (taken, sent, received) = (0, 0, 0);
        Self { transport, gate, doorbells, memory, events, taken, sent, received, directory }
    }

    /// A guest whose driver is ready, with buffers to receive.
    pub(super) fn started() -> Self {
        let mut guest = Self::new();
        guest.start();
        guest
    }

    pub(super) fn start(&mut self) {
        (self.sent, self.received) = (0, 0);
        let places = [0, 1].map(|queue| {
            let base = Self::rings(queue);
            self.memory.write_slice(&[0; 0x3000], GuestAddress(base)).unwrap();
            let (available, used) = (base + 0x1000, base + 0x2000);
            QueuePlace { size: SIZE, descriptors: base, available, used }
        });
        driver::start(&self.transport, Features::default(), &places);
        for index in 0..SIZE {
            self.post(index);
        }
        self.settle();
    }

    fn rings(queue: u64) -> u64 {
        RAM_BASE.0 + queue * 0x4000
    }

    fn buffer(queue: u64, index: u16) -> u64 {
        RAM_BASE.0 + 0x1_0000 + (queue * u64::from(SIZE) + u64::from(index)) * BUFFER
    }

    /// Makes a buffer available, by the number of times that this was done.
    fn offer(&self, queue: u64, count: u16, length: u32, flags: u16) {
        let slot = count % SIZE;
        let mut descriptor = Self::buffer(queue, slot).to_le_bytes().to_vec();
        descriptor.extend(length.to_le_bytes());
        descriptor.extend([flags, 0].map(u16::to_le_bytes).concat());
        let rings = Self::rings(queue);
        let at = |offset: u64| GuestAddress(rings + offset);
        self.memory.write_slice(&descriptor, at(16 * u64::from(slot))).unwrap();
        self.memory.write_obj(slot, at(0x1004 + 2 * u64::from(slot))).unwrap();
        self.memory.write_obj(count.wrapping_add(1), at(0x1002)).unwrap();
        self.doorbells.signal(queue as usize);
    }

    fn post(&self, count: u16) {
        self.offer(RX as u64, count, BUFFER as u32, 2);
    }

    /// Has the event loop go round until nothing more happens; that it does so is what every test shows.
    pub(super) fn settle(&mut self) {
        for _ in 0..10_000 {
            if self.events.run_with_timeout(0).unwrap() == 0 {
                return;
            }
        }
        panic!("the event loop spins");
    }

    /// Has the loop go round until this is so.
    pub(super) fn until(&mut self, what: &str, mut so: impl FnMut(&mut Self) -> bool) {
        let deadline = Instant::now() + Duration::from_secs(60);
        while !so(self) {
            assert!(Instant::now() < deadline, "{what}");
            self.events.run_with_timeout(10).unwrap();
        }
    }

    pub(super) fn send(&mut self, packet: &Packet) {
        self.send_with_room(packet, 1 << 18);
    }

    pub(super) fn send_with_room(&mut self, packet: &Packet, room: u32) {
        if matches!(packet.operation, REQUEST | RESPONSE) {
            self.taken = 0;
        }
        let mut bytes = Vec::new();
        bytes.extend(u64::from(CID).to_le_bytes());
        bytes.extend(2_u64.to_le_bytes());
        bytes.extend(packet.guest_port.to_le_bytes());
        bytes.extend(packet.host_port.to_le_bytes());
        bytes.extend((packet.data.len() as u32).to_le_bytes());
        bytes.extend(1_u16.to_le_bytes());
        bytes.extend(packet.operation.to_le_bytes());
        bytes.extend(packet.flags.to_le_bytes());
        bytes.extend(room.to_le_bytes());
        bytes.extend(self.taken.to_le_bytes());
        bytes.extend(&packet.data);
        let address = Self::buffer(TX as u64, self.sent % SIZE);
        self.memory.write_slice(&bytes, GuestAddress(address)).unwrap();
        self.offer(TX as u64, self.sent, bytes.len() as u32, 0);
        self.sent = self.sent.wrapping_add(1);
        self.settle();
    }

    /// Packets that have come.
    pub(super) fn receive(&mut self) -> Vec<Packet> {
        self.settle();
        let mut packets = Vec::new();
        let used = GuestAddress(Self::rings(RX as u64) + 0x2002);
        while self.memory.read_obj::<u16>(used).unwrap() != self.received {
            let slot = u64::from(self.received % SIZE);
            let element = Self::rings(RX as u64) + 0x2004 + 8 * slot;
            let head: u32 = self.memory.read_obj(GuestAddress(element)).unwrap();
            let length: u32 = self.memory.read_obj(GuestAddress(element + 4)).unwrap();
            let mut bytes = vec![0; length as usize];
            let address = Self::buffer(RX as u64, head as u16);
            self.memory.read_slice(&mut bytes, GuestAddress(address)).unwrap();
            packets.push(parse(&bytes));
            self.post(self.received.wrapping_add(SIZE));
            self.received = self.received.wrapping_add(1);
        }
        self.taken = packets
            .iter()
            .fold(self.taken, |taken, packet| taken.wrapping_add(packet.data.len() as u32));
        packets
    }

    /// The next packet.
    pub(super) fn next(&mut self) -> Packet {
        let mut packets = Vec::new();
        self.until("a packet comes", |guest| {
            packets.extend(guest.receive());
            !packets.is_empty()
        });
        assert_eq!(packets.len(), 1, "{packets:?}");
        packets.remove(0)
    }

    pub(super) fn path(&self) -> PathBuf {
        self.directory.path().join("v")
    }

    pub(super) fn port_path(&self, port: u32) -> PathBuf {
        let path = self.path();
        Path::new(&format!("{}_{port}", path.display())).to_owned()
    }

    pub(super) fn open_streams(&self) -> (usize, usize) {
        self.transport.lock().unwrap().device().peers().open_streams()
    }

    pub(super) fn turns(&self) -> u64 {
        self.transport.lock().unwrap().counters().turns.load(std::sync::atomic::Ordering::Relaxed)
    }
}

fn parse(bytes: &[u8]) -> Packet {
    let word = |at: usize| u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap());
    assert_eq!(bytes[..8], 2_u64.to_le_bytes());
    assert_eq!(bytes[8..16], u64::from(CID).to_le_bytes());
    assert_eq!(word(24) as usize, bytes.len() - 44);
    Packet {
        host_port: word(16),
        guest_port: word(20),
        operation: (word(28) >> 16) as u16,
        flags: word(32),
        data: bytes[44..].to_vec(),
        forwarded: word(40),
    }
}
