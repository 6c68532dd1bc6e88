//! Virtio devices on the main thread: their queues as events of its loop.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use devices::ports::Doorbells;
use devices::virtio::Device;
use devices::virtio::mmio::{Served, Transport};
use event_manager::{EventOps, EventSet, Events, MutEventSubscriber};
use vmm_sys_util::eventfd::EventFd;

use crate::error::{chain, say};
use crate::memory::GuestRam;

/// A device with its transport: on the bus for the vCPUs, in the event loop for its queues.
///
/// Its lock is held for a turn of a queue. A vCPU that accesses the device's registers then waits,
/// for the balloon as long as one batch of pages takes to be given back, but not for the registers of
/// the interrupt handler ([`Window`](devices::virtio::mmio::Window)).
pub type Shared<D> = Arc<Mutex<Transport<D, GuestRam>>>;

/// The doorbells of a device: an eventfd for each queue, by its index. Clones are the same eventfds.
#[derive(Clone)]
pub struct QueueDoorbells(Arc<[EventFd]>);

impl From<Vec<EventFd>> for QueueDoorbells {
    fn from(doorbells: Vec<EventFd>) -> Self {
        Self(doorbells.into())
    }
}

impl Doorbells for QueueDoorbells {
    fn signal(&self, queue: usize) {
        if let Some(doorbell) = self.0.get(queue) {
            // A full event counter is an event as well.
            let _ = doorbell.write(1);
        }
    }
}

/// Whether devices serve the guest: not while the VM is paused, so that its memory does not change.
/// Clones are one gate, closed at first.
///
/// A thread that serves queues looks at it before each turn. Closing it ends no turn: on the main thread
/// none is under way then, and a device with a thread of its own is quiesced besides.
#[derive(Clone, Default)]
pub struct QueueGate(Arc<QueueGateState>);

#[derive(Default)]
struct QueueGateState {
    open: AtomicBool,
    doorbells: Mutex<Vec<QueueDoorbells>>,
}

impl QueueGate {
    /// Whether devices serve the guest.
    pub fn is_open(&self) -> bool {
        self.0.open.load(Ordering::Acquire)
    }

    /// Drops notifications until it is opened.
    pub fn close(&self) {
        self.0.open.store(false, Ordering::Release);
    }

    /// Opens the gate and signals every queue, because notifications are dropped while it is closed.
    pub fn open(&self) {
        self.0.open.store(true, Ordering::Release);
        for doorbells in self.doorbells().iter() {
            (0..doorbells.0.len()).for_each(|queue| doorbells.signal(queue));
        }
    }

    fn doorbells(&self) -> MutexGuard<'_, Vec<QueueDoorbells>> {
        self.0.doorbells.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Serves a device's queues when they are signalled.
///
/// KVM itself signals when the guest notifies (KVM_IOEVENTFD), so that costs the guest no exit to this
/// process. The transport signals for what the driver did before it was ready, and the balloon for the
/// guest's statistics.
pub struct QueueEvents<D: Device> {
    name: &'static str,
    transport: Shared<D>,
    doorbells: QueueDoorbells,
    gate: QueueGate,
    /// That the guest broke the device is printed once, not each time.
    reported: bool,
}

impl<D: Device> QueueEvents<D> {
    /// The queues of the device called `name`, served while `gate` is open.
    pub fn new(
        name: &'static str,
        transport: Shared<D>,
        doorbells: QueueDoorbells,
        gate: QueueGate,
    ) -> Self {
        gate.doorbells().push(doorbells.clone());
        Self { name, transport, doorbells, gate, reported: false }
    }

    fn serve(&mut self, queue: usize) {
        let mut transport = self.transport.lock().unwrap_or_else(PoisonError::into_inner);
        let served = transport.serve(queue);
        let broken = transport.broken().filter(|_| !self.reported).map(|broken| chain(broken));
        drop(transport);
        if served == Served::More {
            self.doorbells.signal(queue);
        }
        if let Some(broken) = broken {
            self.reported = true;
            say(&format!(
                "the guest's driver broke its {}: {broken}; load the driver again in the guest, or restart the guest",
                self.name
            ));
        }
    }
}

impl<D: Device> MutEventSubscriber for QueueEvents<D> {
    fn init(&mut self, ops: &mut EventOps<'_>) {
        for (queue, doorbell) in self.doorbells.0.iter().enumerate() {
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
        let signalled = self.doorbells.0.get(queue).is_some_and(|doorbell| doorbell.read().is_ok());
        if signalled && self.gate.is_open() {
            self.serve(queue);
        }
    }
}

#[cfg(test)]
mod tests;
