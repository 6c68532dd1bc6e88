#![allow(clippy::unwrap_used)]

use arch::layout::RAM_BASE;
use arch::units::Bytes;
use devices::bus::MmioDevice;
use devices::state::{RestoreError, Stateful};
use devices::virtio::mmio::QUEUE_NOTIFY;
use devices::virtio::{Broken, DeviceId, Features, Ring};
use event_manager::{EventManager, SubscriberOps};
use vm_memory::{Bytes as _, GuestAddress, GuestMemory};

use super::*;
use crate::backends::driver::{self, Line, QueuePlace};
use crate::memory::Attributes;

/// The queues of the device; the driver makes the first one ready.
const QUEUES: [u16; 2] = [8, 8];

/// A device that completes what it gets, and counts its turns.
#[derive(Default)]
struct Probe {
    turns: u32,
    /// The driver puts something new on the queue as often while it is served.
    more: u32,
}

impl Stateful for Probe {
    type State = ();

    fn save(&self) {}

    fn restore(&mut self, (): ()) -> Result<(), RestoreError> {
        Ok(())
    }
}

impl Device for Probe {
    fn id(&self) -> DeviceId {
        DeviceId(42)
    }

    fn features(&self) -> Features {
        Features::default()
    }

    fn queue_sizes(&self) -> &[u16] {
        &QUEUES
    }

    fn read_config(&self, _: u64, _: &mut [u8]) {}

    fn write_config(&mut self, _: u64, _: &[u8]) -> Option<usize> {
        None
    }

    fn activate(&mut self, _: Features) {}

    fn serve<M: GuestMemory>(&mut self, _: usize, ring: &mut Ring<'_, M>) -> Result<(), Broken> {
        self.turns += 1;
        while let Some(chain) = ring.take()? {
            ring.complete(chain.head(), 0)?;
            if let Some(more) = self.more.checked_sub(1) {
                self.more = more;
                let index: u16 = ring.memory().read_obj(AVAILABLE_INDEX).unwrap();
                ring.memory().write_obj(index.wrapping_add(1), AVAILABLE_INDEX).unwrap();
            }
        }
        Ok(())
    }

    fn reset(&mut self) {}
}

const TABLE: u64 = RAM_BASE.0;
const AVAILABLE: u64 = TABLE + 0x1000;
const AVAILABLE_INDEX: GuestAddress = GuestAddress(AVAILABLE + 2);
const USED: u64 = TABLE + 0x2000;

/// A device whose driver is ready, in an event loop.
struct Bench {
    transport: Shared<Probe>,
    doorbells: QueueDoorbells,
    gate: QueueGate,
    memory: GuestRam,
    events: EventManager<QueueEvents<Probe>>,
}

impl Bench {
    fn new() -> Self {
        let doorbell = || EventFd::new(libc::EFD_NONBLOCK).unwrap();
        let doorbells = QueueDoorbells::from(vec![doorbell(), doorbell()]);
        let memory = GuestRam::new(Bytes::mib(2), Attributes::default()).unwrap();
        let line = Box::new(Line);
        let transport =
            Transport::new(Probe::default(), memory.clone(), line, Box::new(doorbells.clone()));
        let transport = Arc::new(Mutex::new(transport));
        let gate = QueueGate::default();
        let queues = QueueEvents::new(
            "probe",
            transport.clone(),
            doorbells.clone(),
            gate.clone(),
            EventLog::default(),
        );
        let mut events = EventManager::new().unwrap();
        events.add_subscriber(queues);
        let queue = QueuePlace { size: 8, descriptors: TABLE, available: AVAILABLE, used: USED };
        driver::start(&transport, Features::default(), &[queue]);
        Self { transport, doorbells, gate, memory, events }
    }

    fn write(&mut self, register: u64, value: u32) {
        self.transport.lock().unwrap().write(register, &value.to_le_bytes());
    }

    /// Lets the loop go round until nothing more happens. The turns since the last call.
    fn turns(&mut self) -> u32 {
        while self.events.run_with_timeout(0).unwrap() > 0 {}
        std::mem::take(&mut self.transport.lock().unwrap().device_mut().turns)
    }
}

#[test]
fn a_queue_is_served_when_it_is_signalled_and_not_before() {
    let mut bench = Bench::new();
    bench.gate.open();
    bench.turns();

    assert_eq!(bench.turns(), 0);
    bench.write(QUEUE_NOTIFY, 0);
    bench.write(QUEUE_NOTIFY, 0);
    assert_eq!(bench.turns(), 1);
    bench.doorbells.signal(usize::MAX);
    assert_eq!(bench.turns(), 0);
}

#[test]
fn a_queue_that_has_more_gets_another_turn() {
    let mut bench = Bench::new();
    bench.gate.open();
    bench.turns();
    // A chain at a time, as often as three turns are long.
    bench.transport.lock().unwrap().device_mut().more = 23;
    bench.memory.write_obj(1_u16, AVAILABLE_INDEX).unwrap();

    bench.write(QUEUE_NOTIFY, 0);

    assert_eq!(bench.turns(), 3);
}

#[test]
fn a_paused_vm_serves_nothing_and_what_rang_is_served_later() {
    let mut bench = Bench::new();
    bench.gate.open();
    bench.turns();

    bench.gate.close();
    bench.write(QUEUE_NOTIFY, 0);
    assert_eq!(bench.turns(), 0);

    bench.gate.open();
    assert_eq!(bench.turns(), 1);
}

#[test]
fn a_device_may_be_served_by_a_thread_of_its_own() {
    fn is_send<T: Send>() {}

    is_send::<QueueEvents<Probe>>();
    is_send::<QueueGate>();
}

#[test]
fn a_broken_device_gets_no_turn() {
    let mut bench = Bench::new();
    bench.gate.open();
    bench.turns();
    bench.memory.write_obj(9_u16, AVAILABLE_INDEX).unwrap();

    bench.write(QUEUE_NOTIFY, 0);
    bench.write(QUEUE_NOTIFY, 1);

    assert_eq!(bench.turns(), 1);
    assert!(bench.transport.lock().unwrap().broken().is_some());
}
