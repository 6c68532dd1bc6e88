//! The places of virtio devices: an address, an interrupt and a doorbell a queue for each.

use std::sync::{Arc, Mutex};

use arch::fdt::MmioNode;
use arch::layout;
use devices::bus::Bus;
use devices::virtio::Device;
use devices::virtio::mmio::{self, Transport, Window};
use event_manager::MutEventSubscriber;
use vm_memory::GuestAddress;

use super::{Error, attach};
use crate::backends::queues::{Gate, QueueBells, QueueEvents, Shared};
use crate::kvm::Vm;
use crate::memory::GuestRam;

/// Puts virtio devices into a machine, one after the other.
pub(super) struct Slots<'a> {
    vm: &'a Vm,
    bus: &'a mut Bus,
    gate: &'a Gate,
    nodes: Vec<MmioNode>,
    events: Vec<Box<dyn MutEventSubscriber>>,
}

impl<'a> Slots<'a> {
    /// Their queues are served while `gate` is open.
    pub(super) fn new(vm: &'a Vm, bus: &'a mut Bus, gate: &'a Gate) -> Self {
        Self { vm, bus, gate, nodes: Vec::new(), events: Vec::new() }
    }

    /// What the queues of its devices are served behind.
    pub(super) fn gate(&self) -> &Gate {
        self.gate
    }

    /// The guest's memory.
    pub(super) fn ram(&self) -> &'a GuestRam {
        self.vm.ram()
    }

    /// Gives the device called `name` the next place.
    ///
    /// # Errors
    /// When there is none, or the host runs out of something.
    pub(super) fn add<D: Device + 'static>(
        &mut self,
        name: &'static str,
        device: D,
    ) -> Result<Shared<D>, Error> {
        let (range, spi) = layout::virtio(self.nodes.len() as u32).ok_or(Error::NoSlot)?;
        let irq = Box::new(self.vm.irq(spi)?);
        let bell = GuestAddress(range.base.0 + mmio::QUEUE_NOTIFY);
        let bells: QueueBells = (0..device.queue_sizes().len() as u32)
            .map(|queue| self.vm.doorbell(bell, queue))
            .collect::<Result<Vec<_>, _>>()?
            .into();
        let memory = self.vm.ram().clone();
        let transport = Transport::new(device, memory, irq, Box::new(bells.clone()));
        let shared = Arc::new(Mutex::new(transport));
        attach(self.bus, range, Arc::new(Window::new(Arc::clone(&shared))))?;
        self.nodes.push(MmioNode { range, spi });
        let events = QueueEvents::new(name, Arc::clone(&shared), bells, self.gate.clone());
        self.events.push(Box::new(events));
        Ok(shared)
    }

    /// What describes the devices to the guest, and what serves their queues.
    pub(super) fn finish(self) -> (Vec<MmioNode>, Vec<Box<dyn MutEventSubscriber>>) {
        (self.nodes, self.events)
    }
}
