//! Virtio devices on the main thread: their queues as events of its loop.

use std::sync::{Arc, Mutex, PoisonError};

use devices::virtio::Device;
use devices::virtio::mmio::{Served, Transport};
use event_manager::{EventOps, EventSet, Events, MutEventSubscriber};
use vmm_sys_util::eventfd::EventFd;

use crate::error::{chain, say};
use crate::memory::GuestRam;

/// A device with its transport: on the bus for the vCPUs, in the event loop for its queues.
///
/// Its lock is held while a queue is served. A vCPU that touches the device's registers meanwhile
/// waits: for the balloon as long as one batch of pages takes to be given back.
pub type Shared<D> = Arc<Mutex<Transport<D, GuestRam>>>;

/// Serves a device's queues when the guest notifies them.
///
/// KVM writes each event itself (KVM_IOEVENTFD), so a notification costs the guest no exit to this
/// process.
pub struct QueueEvents<D: Device> {
    name: &'static str,
    transport: Shared<D>,
    /// By the queue's index.
    doorbells: Vec<EventFd>,
    /// The guest is told of by name once, not each time it breaks the device.
    told: bool,
}

impl<D: Device> QueueEvents<D> {
    /// The queues of the device called `name`; the doorbell of each in order.
    pub fn new(name: &'static str, transport: Shared<D>, doorbells: Vec<EventFd>) -> Self {
        Self { name, transport, doorbells, told: false }
    }

    fn serve(&mut self, queue: usize) {
        let mut transport = self.transport.lock().unwrap_or_else(PoisonError::into_inner);
        let served = transport.serve(queue);
        let broken = transport.broken().filter(|_| !self.told).map(|broken| chain(broken));
        drop(transport);
        if let Served::More = served
            && let Some(doorbell) = self.doorbells.get(queue)
        {
            // A full event counter is an event as well.
            let _ = doorbell.write(1);
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
        for (queue, doorbell) in self.doorbells.iter().enumerate() {
            let watched = ops.add(Events::with_data(doorbell, queue as u32, EventSet::IN));
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
        // Nothing to read: somebody has served the queue meanwhile.
        if self.doorbells.get(queue).is_some_and(|doorbell| doorbell.read().is_ok()) {
            self.serve(queue);
        }
    }
}
