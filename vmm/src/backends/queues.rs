//! The queues of virtio devices as events of a loop: the main thread's, or that of a device's worker.

use std::sync::{Arc, Mutex, PoisonError};

use devices::ports::{Acknowledgements, Doorbells};
use devices::virtio::Device;
use devices::virtio::mmio::{Served, Transport};
use event_manager::{EventOps, EventSet, Events, MutEventSubscriber};
use vmm_sys_util::eventfd::EventFd;

use super::gate::QueueGate;
use crate::error::{chain, say};
use crate::events::{Event, EventLog};
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

impl QueueDoorbells {
    /// Has every queue served soon.
    pub(super) fn signal_all(&self) {
        (0..self.0.len()).for_each(|queue| self.signal(queue));
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

/// The acknowledgements of a device's interrupts, which KVM writes to an eventfd (KVM_IOEVENTFD): each would cost the
/// guest an exit to this process.
pub struct InterruptAcks(EventFd);

impl From<EventFd> for InterruptAcks {
    fn from(event: EventFd) -> Self {
        Self(event)
    }
}

impl Acknowledgements for InterruptAcks {
    fn take(&self) -> bool {
        self.0.read().is_ok()
    }
}

/// Numbers of events below this one are those of queues' doorbells: no device has as many.
pub const QUEUES_END: u32 = 64;

/// Serves a device's queues when they are signalled.
///
/// KVM itself signals when the guest notifies (KVM_IOEVENTFD), so that costs the guest no exit to this
/// process. The transport signals for what the driver did before it was ready, and the balloon for the
/// guest's statistics.
pub struct QueueEvents<D: Device> {
    name: Arc<str>,
    transport: Shared<D>,
    doorbells: QueueDoorbells,
    gate: QueueGate,
    log: EventLog,
    /// That the guest broke the device is printed once, not each time.
    reported: bool,
}

impl<D: Device> QueueEvents<D> {
    /// The queues of the device called `name`, served while `gate` is open. That the guest breaks it is an event.
    pub fn new(
        name: impl Into<Arc<str>>,
        transport: Shared<D>,
        doorbells: QueueDoorbells,
        gate: QueueGate,
        log: EventLog,
    ) -> Self {
        gate.watch(doorbells.clone());
        Self { name: name.into(), transport, doorbells, gate, log, reported: false }
    }

    /// The doorbells of the queues.
    pub fn doorbells(&self) -> QueueDoorbells {
        self.doorbells.clone()
    }

    /// What every turn of the device enters.
    pub fn gate(&self) -> &QueueGate {
        &self.gate
    }

    /// Whose doorbell an event is, which is taken; `None` for events of others. For a device with descriptors of
    /// its own, whose events have numbers from [`QUEUES_END`] on.
    pub fn signalled(&self, events: &Events) -> Option<usize> {
        let queue = events.data() as usize;
        self.doorbells.0.get(queue)?.read().is_ok().then_some(queue)
    }

    /// Has a queue served soon.
    pub fn signal(&self, queue: usize) {
        self.doorbells.signal(queue);
    }

    /// Gives a queue a turn, and another one soon if it has more. The caller has entered the gate.
    pub fn serve(&mut self, queue: usize) {
        if self.with(|transport| transport.serve(queue)) == Served::More {
            self.doorbells.signal(queue);
        }
    }

    /// Does something with the device locked. That the guest has broken it is printed once.
    pub fn with<T>(&mut self, work: impl FnOnce(&mut Transport<D, GuestRam>) -> T) -> T {
        let mut transport = self.transport.lock().unwrap_or_else(PoisonError::into_inner);
        let done = work(&mut transport);
        let broken = transport.broken().filter(|_| !self.reported).map(|broken| chain(broken));
        drop(transport);
        if let Some(broken) = broken {
            self.reported = true;
            self.log.publish(&Event::DeviceBroken {
                device: (&*self.name).into(),
                detail: (&*broken).into(),
            });
            say(&format!(
                "the guest's driver broke its {}: {broken}; load the driver again in the guest, or restart the guest",
                self.name
            ));
        }
        done
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
        let Some(queue) = self.signalled(&events) else { return };
        let gate = self.gate.clone();
        if let Some(_turn) = gate.enter() {
            self.serve(queue);
        }
    }
}

#[cfg(test)]
mod tests;
