//! Virtio devices on the main thread: their queues as events of its loop.

use std::sync::{Arc, Mutex, PoisonError};

use devices::ports::Doorbells;
use devices::virtio::Device;
use devices::virtio::mmio::{Served, Transport};
use event_manager::{EventOps, EventSet, Events, MutEventSubscriber};
use vmm_sys_util::eventfd::EventFd;

use crate::error::{chain, say};
use crate::memory::GuestRam;

/// A device with its transport: on the bus for the vCPUs, in the event loop for its queues.
///
/// Its lock is held for a turn of a queue. A vCPU that touches the device's registers meanwhile
/// waits: for the balloon as long as one batch of pages takes to be given back.
pub type Shared<D> = Arc<Mutex<Transport<D, GuestRam>>>;

/// The doorbells of a device, an event each by the queue's index. Clones are the same bells.
#[derive(Clone)]
pub struct QueueBells(Arc<[EventFd]>);

impl From<Vec<EventFd>> for QueueBells {
    fn from(bells: Vec<EventFd>) -> Self {
        Self(bells.into())
    }
}

impl Doorbells for QueueBells {
    fn ring(&self, queue: usize) {
        if let Some(bell) = self.0.get(queue) {
            // A full event counter is an event as well.
            let _ = bell.write(1);
        }
    }
}

/// Serves a device's queues when they are rung for.
///
/// KVM rings itself when the guest notifies (KVM_IOEVENTFD), so that costs the guest no exit to this
/// process. The transport rings for what the driver did before it was ready, and the balloon for the
/// guest's statistics.
pub struct QueueEvents<D: Device> {
    name: &'static str,
    transport: Shared<D>,
    bells: QueueBells,
    /// The guest is told of by name once, not each time it breaks the device.
    told: bool,
}

impl<D: Device> QueueEvents<D> {
    /// The queues of the device called `name`.
    pub fn new(name: &'static str, transport: Shared<D>, bells: QueueBells) -> Self {
        Self { name, transport, bells, told: false }
    }

    fn serve(&mut self, queue: usize) {
        let mut transport = self.transport.lock().unwrap_or_else(PoisonError::into_inner);
        let served = transport.serve(queue);
        let broken = transport.broken().filter(|_| !self.told).map(|broken| chain(broken));
        drop(transport);
        if served == Served::More {
            self.bells.ring(queue);
        }
        if let Some(broken) = broken {
            self.told = true;
            say(&format!(
                "the guest's driver broke its {}: {broken}; it stands still until the driver resets it",
                self.name
            ));
        }
    }
}

impl<D: Device> MutEventSubscriber for QueueEvents<D> {
    fn init(&mut self, ops: &mut EventOps<'_>) {
        for (queue, bell) in self.bells.0.iter().enumerate() {
            let watched = ops.add(Events::with_data(bell, queue as u32, EventSet::IN));
            if let Err(error) = watched {
                // The guest's driver waits for ever then; the rest of the guest does not.
                say(&format!(
                    "the {} is dead, as its events cannot be watched: {error}",
                    self.name
                ));
            }
        }
    }

    fn process(&mut self, events: Events, _: &mut EventOps<'_>) {
        let queue = events.data() as usize;
        if self.bells.0.get(queue).is_some_and(|bell| bell.read().is_ok()) {
            self.serve(queue);
        }
    }
}
