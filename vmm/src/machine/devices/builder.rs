//! Gives devices their places: an address and an interrupt, and a doorbell for each queue.

use std::sync::{Arc, Mutex};

use arch::fdt::MmioNode;
use arch::layout;
use arch::range::MemoryRange;
use devices::bus::{Bus, MmioDevice, SharedDevice};
use devices::state::Stateful;
use devices::virtio::Device;
use devices::virtio::mmio::{self, Transport, Window};
use event_manager::MutEventSubscriber;
use vm_memory::GuestAddress;

use super::attached::{Attached, Metrics, Model};
use super::{Error, Plugged};
use crate::backends::gate::QueueGate;
use crate::backends::queues::{InterruptAcks, QueueDoorbells, QueueEvents, Shared};
use crate::backends::worker::{Worker, WorkerEvents};
use crate::events::EventLog;
use crate::hypervisor::Vm;
use crate::sys::thread::Role;

/// Puts devices into a machine, one after the other.
pub(super) struct Builder<'a> {
    vm: &'a dyn Vm,
    gate: &'a QueueGate,
    log: EventLog,
    pub(super) plugged: Plugged,
    pub(super) attached: Vec<Box<dyn Attached>>,
    pub(super) events: Vec<Box<dyn MutEventSubscriber>>,
    pub(super) workers: Vec<Worker>,
}

impl<'a> Builder<'a> {
    /// The queues of the devices are served while `gate` is open.
    pub(super) fn new(vm: &'a dyn Vm, gate: &'a QueueGate, log: EventLog) -> Self {
        let plugged = Plugged { bus: Bus::new(), nodes: Vec::new() };
        Self {
            vm,
            gate,
            log,
            plugged,
            attached: Vec::new(),
            events: Vec::new(),
            workers: Vec::new(),
        }
    }

    pub(super) fn gate(&self) -> &QueueGate {
        self.gate
    }

    pub(super) fn log(&self) -> &EventLog {
        &self.log
    }

    pub(super) fn vm(&self) -> &'a dyn Vm {
        self.vm
    }

    /// Puts a device on the bus that has no state.
    pub(super) fn map(&mut self, range: MemoryRange, device: SharedDevice) -> Result<(), Error> {
        Ok(self.plugged.bus.insert(range.base, range.size.get(), device)?)
    }

    /// Puts a device at its fixed place.
    pub(super) fn add<D: MmioDevice + Stateful + 'static>(
        &mut self,
        name: &str,
        range: MemoryRange,
        device: D,
        metrics: Option<Metrics>,
    ) -> Result<Arc<Mutex<D>>, Error> {
        let device = Arc::new(Mutex::new(device));
        self.map(range, device.clone())?;
        self.attach(name, Arc::clone(&device), metrics);
        Ok(device)
    }

    /// Gives a virtio device the next place. The main thread serves its queues. `called` is its name in messages
    /// to the user.
    ///
    /// # Errors
    /// When there is no place, or the host runs out of something.
    pub(super) fn plug<D: Device + 'static>(
        &mut self,
        called: &str,
        device: D,
    ) -> Result<Shared<D>, Error> {
        let (shared, events) = self.place(called, device)?;
        self.events.push(Box::new(events));
        Ok(shared)
    }

    /// Gives a virtio device the next place. The events of its queues are for a [worker](Self::work).
    ///
    /// # Errors
    /// When there is no place, or the host runs out of something.
    pub(super) fn place<D: Device + 'static>(
        &mut self,
        called: &str,
        device: D,
    ) -> Result<(Shared<D>, QueueEvents<D>), Error> {
        let index = self.plugged.nodes.len() as u32;
        let (range, spi) = layout::virtio(index).ok_or(Error::NoSlot)?;
        let irq = self.vm.irq(spi)?;
        let doorbell = GuestAddress(range.base.0 + mmio::QUEUE_NOTIFY);
        let doorbells: QueueDoorbells = (0..device.queue_sizes().len() as u32)
            .map(|queue| self.vm.doorbell(doorbell, queue))
            .collect::<Result<Vec<_>, _>>()?
            .into();
        let memory = self.vm.ram().clone();
        let ack = GuestAddress(range.base.0 + mmio::INTERRUPT_ACK);
        let acks = InterruptAcks::from(self.vm.doorbell(ack, mmio::ACK_USED_BUFFER)?);
        let transport = Transport::new(device, memory, irq, Box::new(doorbells.clone()))
            .acknowledged_through(Box::new(acks));
        let shared = Arc::new(Mutex::new(transport));
        self.map(range, Arc::new(Window::new(Arc::clone(&shared))))?;
        self.plugged.nodes.push(MmioNode { range, spi });
        let (gate, log) = (self.gate.clone(), self.log.clone());
        let events = QueueEvents::new(called, Arc::clone(&shared), doorbells, gate, log);
        Ok((shared, events))
    }

    /// Starts a thread that serves a device. `name` is the thread's.
    ///
    /// # Errors
    /// When the host has no thread or descriptor left.
    pub(super) fn work(
        &mut self,
        role: Role,
        name: &str,
        events: WorkerEvents,
    ) -> Result<(), Error> {
        let worker = Worker::start(role, name, events)
            .map_err(|source| Error::Worker { name: name.to_owned(), source })?;
        self.workers.push(worker);
        Ok(())
    }

    /// Puts a device into the list.
    pub(super) fn attach<D: Stateful + 'static>(
        &mut self,
        name: &str,
        device: Arc<Mutex<D>>,
        metrics: Option<Metrics>,
    ) {
        self.attached.push(Box::new(Model { name: name.into(), device, metrics }));
    }
}
