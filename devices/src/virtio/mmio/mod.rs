//! The virtio-mmio transport, version 2 (section 4.2).
//!
//! A [`Transport`] is a window of registers, and a configuration space from 0x100 on, before a device.
//! It leads the driver through its initialisation (3.1.1), keeps the queues, and interrupts. An access to
//! a register serves no queue: it rings that queue's doorbell, and the thread that waits for it calls
//! [`Transport::serve`]. So no vCPU does a device's work, and an access waits for one turn at most.
//!
//! # What is not as the specification wants it
//! What a driver must not do has no effect: registers that are not there, accesses of a register that
//! are not aligned or not 32 bits wide (4.2.2.2), writes to the registers of a queue that is ready, and
//! features or queues that come too late. A read of such gives 0. Only what cannot be passed over breaks
//! the device ([`Broken`]).

mod interrupt;
mod queue;
mod registers;
mod state;
mod window;

pub use interrupt::InterruptStatus;
pub use state::State;
pub use window::Window;

use std::fmt;
use std::ops::Deref;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use serde::{Deserialize, Serialize};
use virtio_queue::QueueT;
use vm_memory::GuestMemory;

use self::queue::{Half, Slot};
use self::registers::{
    CONFIGURATION_CHANGE, DEVICE_NEEDS_RESET, DRIVER_OK, FAILED, FEATURES_OK, STEPS, USED_BUFFER,
};
use super::{Broken, Device, Features, Ring};
use crate::bus::MmioDevice;
use crate::ports::{Acknowledgements, Doorbells, IrqLine};

/// Where in the window a driver writes the index of a queue to notify its device (QueueNotify): 32
/// bits, which an ioeventfd can match.
pub const QUEUE_NOTIFY: u64 = registers::QUEUE_NOTIFY;

/// Where in the window a driver acknowledges interrupts (InterruptACK): 32 bits, which an ioeventfd can match.
pub const INTERRUPT_ACK: u64 = registers::INTERRUPT_ACK;
/// The value that acknowledges that the device has used buffers, and nothing else.
pub const ACK_USED_BUFFER: u32 = USED_BUFFER;

/// What the transport offers for every device.
const TRANSPORT_FEATURES: Features =
    Features::INDIRECT_DESC.with(Features::EVENT_IDX).with(Features::VERSION_1);

/// What has passed through a transport. Readable at any time, by any thread.
#[derive(Debug, Default)]
pub struct Counters {
    /// Turns that queues of a working device got.
    pub turns: AtomicU64,
    /// Interrupts raised.
    pub interrupts: AtomicU64,
    /// Interrupts that could not be raised.
    pub irq_failures: AtomicU64,
    /// Resets by the driver.
    pub resets: AtomicU64,
    /// Times that a driver broke the device.
    pub broken: AtomicU64,
}

fn count(counter: &AtomicU64) {
    counter.fetch_add(1, Ordering::Relaxed);
}

/// What is left after a queue was served.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
#[must_use]
pub enum Served {
    /// Nothing: the driver notifies of the next chain.
    Done,
    /// There are more chains, and no notification comes for them: serve the queue again after others.
    More,
}

/// A device behind virtio-mmio registers.
pub struct Transport<D, S> {
    device: D,
    memory: S,
    irq: Box<dyn IrqLine>,
    doorbells: Box<dyn Doorbells>,
    counters: Arc<Counters>,
    /// STEPS that the driver has taken, and FAILED.
    status: u32,
    broken: Option<Broken>,
    /// The device has been activated since the reset.
    activated: bool,
    features: Negotiation,
    queue_sel: u32,
    slots: Vec<Slot>,
    interrupts: InterruptStatus,
    config_generation: u32,
}

/// The feature registers (2.2).
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
struct Negotiation {
    device_sel: u32,
    driver_sel: u32,
    driver: u64,
    /// The driver wants a feature that no device has, beyond bit 63.
    beyond: bool,
}

impl Negotiation {
    /// Takes the selected half of what the driver wants.
    fn write(&mut self, value: u32) {
        match self.driver_sel {
            0 => self.driver = self.driver >> 32 << 32 | u64::from(value),
            1 => self.driver = u64::from(value) << 32 | self.driver & u64::from(u32::MAX),
            _ => self.beyond |= value != 0,
        }
    }

    /// The selected half of what is offered.
    fn read(&self, offered: Features) -> u32 {
        match self.device_sel {
            0 => offered.0 as u32,
            1 => (offered.0 >> 32) as u32,
            _ => 0,
        }
    }

    /// Whether a device that offers `offered` works with what the driver wants (2.2.2). It need not
    /// without VERSION_1 (6.2), and this one has no legacy interface.
    fn is_acceptable(&self, offered: Features) -> bool {
        let wanted = Features(self.driver);
        !self.beyond && offered.contains(wanted) && wanted.contains(Features::VERSION_1)
    }
}

impl<D: Device, S: Deref<Target: GuestMemory + Sized> + Send> Transport<D, S> {
    /// Registers before `device`, whose queues and buffers lie in `memory`. Interrupts are edges
    /// of `irq`; the thread that waits for `doorbells` serves the queues.
    pub fn new(device: D, memory: S, irq: Box<dyn IrqLine>, doorbells: Box<dyn Doorbells>) -> Self {
        let slots = device.queue_sizes().iter().copied().map(Slot::new).collect();
        Self {
            device,
            memory,
            irq,
            doorbells,
            counters: Arc::default(),
            status: 0,
            broken: None,
            activated: false,
            features: Negotiation::default(),
            queue_sel: 0,
            slots,
            interrupts: InterruptStatus::default(),
            config_generation: 0,
        }
    }

    /// Has the hypervisor take the writes of [`ACK_USED_BUFFER`] to [`INTERRUPT_ACK`]. Call it before the transport is
    /// used.
    #[must_use]
    pub fn acknowledged_through(self, taken: Box<dyn Acknowledgements>) -> Self {
        Self { interrupts: InterruptStatus::acknowledged_through(taken), ..self }
    }

    /// The transport's counters.
    pub fn counters(&self) -> Arc<Counters> {
        self.counters.clone()
    }

    /// The pending interrupts, which can be read and acknowledged without the transport.
    pub fn interrupt_status(&self) -> InterruptStatus {
        self.interrupts.clone()
    }

    /// The device.
    pub fn device(&self) -> &D {
        &self.device
    }

    /// The device, to control it. After a change that the driver is to see in configuration space,
    /// call [`Transport::config_changed`].
    pub fn device_mut(&mut self) -> &mut D {
        &mut self.device
    }

    /// What the driver has done to the device, until it resets it.
    pub fn broken(&self) -> Option<&Broken> {
        self.broken.as_ref()
    }

    /// Whether a driver uses the device: it is initialised, has not given up, and has not broken it.
    pub fn is_active(&self) -> bool {
        self.is_driven() && self.broken.is_none()
    }

    /// The features that driver and device agreed on: none before they did.
    fn acked(&self) -> Features {
        Features(if self.status & FEATURES_OK != 0 { self.features.driver } else { 0 })
    }

    /// Has a queue served when it is its turn: the driver has put something there, or the device has.
    pub fn notify(&self, queue: usize) {
        self.doorbells.signal(queue);
    }

    /// Gives a queue one turn: the device takes at most as many chains as it is long, and the driver
    /// is interrupted if it wants to be.
    ///
    /// The thread that waits for the doorbells calls it, after spurious notifications as well. It does
    /// nothing for a queue or a device that is not ready (2.1.2, 4.2.2.1).
    pub fn serve(&mut self, queue: usize) -> Served {
        self.with_queue(queue, |device, ring| turn(device, queue, ring)).unwrap_or(Served::Done)
    }

    /// As [`serve`](Self::serve), for a device whose chains are worked on after its turn: when it has taken some, the
    /// driver's notifications stay off, and the queue is to be served again once that work is done.
    pub fn serve_part(&mut self, queue: usize) -> Served {
        let part = |device: &mut D, ring: &mut Ring<'_, S::Target>| {
            let budget = ring.budget();
            ring.disable_notifications()?;
            device.serve(queue, ring)?;
            match ring.budget() == budget {
                true => settle(ring, true),
                false => Ok(Served::More),
            }
        };
        self.with_queue(queue, part).unwrap_or(Served::Done)
    }

    /// Has the device use a queue outside of a turn, for example to complete chains whose work was done
    /// meanwhile, and interrupts the driver if it wants to be. `None` for a queue or a device that is not
    /// ready, or that breaks.
    pub fn with_queue<T>(
        &mut self,
        queue: usize,
        work: impl FnOnce(&mut D, &mut Ring<'_, S::Target>) -> Result<T, Broken>,
    ) -> Option<T> {
        self.use_queue(queue, true, work)
    }

    /// As [`with_queue`](Self::with_queue), but the driver is not interrupted before the next turn of the queue that is
    /// not quiet ([`interrupt_for`](Self::interrupt_for)): it may find what was completed by itself, or there may soon
    /// be more. That turn has to come before the device is saved.
    pub fn with_queue_quietly<T>(
        &mut self,
        queue: usize,
        work: impl FnOnce(&mut D, &mut Ring<'_, S::Target>) -> Result<T, Broken>,
    ) -> Option<T> {
        self.use_queue(queue, false, work)
    }

    /// Interrupts the driver, if it wants to be, for what was completed in quiet turns of a queue.
    pub fn interrupt_for(&mut self, queue: usize) {
        if self.slots.get(queue).is_some_and(|slot| slot.undecided.is_some()) {
            self.use_queue(queue, true, |_, _| Ok(()));
        }
    }

    fn use_queue<T>(
        &mut self,
        queue: usize,
        decide: bool,
        work: impl FnOnce(&mut D, &mut Ring<'_, S::Target>) -> Result<T, Broken>,
    ) -> Option<T> {
        if !self.is_active() {
            return None;
        }
        let slot = self.slots.get_mut(queue)?;
        let ready = slot.queue.as_mut()?;
        count(&self.counters.turns);
        let mut ring = Ring::new(ready, &*self.memory);
        ring.decide_from(slot.undecided.take());
        let done = work(&mut self.device, &mut ring);
        // Chains that were completed before the driver broke the device are completed.
        let interrupt = match decide || done.is_err() {
            true => ring.needs_interrupt(),
            false => {
                slot.undecided = ring.undecided();
                Ok(false)
            }
        };
        if let Ok(true) = interrupt {
            self.interrupt(USED_BUFFER);
        }
        match done.and_then(|done| interrupt.map(|_| done)) {
            Ok(done) => Some(done),
            Err(broken) => {
                self.break_down(broken);
                None
            }
        }
    }

    /// Says that configuration space has changed (2.5, 4.2.2.1).
    ///
    /// A driver that is not there yet is not interrupted: it reads the space when it starts.
    pub fn config_changed(&mut self) {
        self.config_generation = self.config_generation.wrapping_add(1);
        if self.is_driven() {
            self.interrupt(CONFIGURATION_CHANGE);
        }
    }

    /// Whether there is a driver that takes interrupts.
    fn is_driven(&self) -> bool {
        self.status & (DRIVER_OK | FAILED) == DRIVER_OK
    }

    fn offered(&self) -> Features {
        self.device.features().with(TRANSPORT_FEATURES)
    }

    fn interrupt(&mut self, event: u32) {
        self.interrupts.raise(event);
        let raised = match self.irq.trigger() {
            Ok(()) => &self.counters.interrupts,
            Err(_) => &self.counters.irq_failures,
        };
        count(raised);
    }

    /// Sets DEVICE_NEEDS_RESET, and interrupts a driver that has set DRIVER_OK (2.1.2).
    fn break_down(&mut self, broken: Broken) {
        if self.broken.is_some() {
            return;
        }
        self.broken = Some(broken);
        count(&self.counters.broken);
        if self.is_driven() {
            self.interrupt(CONFIGURATION_CHANGE);
        }
    }

    /// The status is 0 again, no interrupt is pending and no queue ready (2.4.1, 4.2.2.1). Only the
    /// generation of configuration space is kept: it counts changes across resets.
    fn reset(&mut self) {
        count(&self.counters.resets);
        self.clear();
    }

    fn clear(&mut self) {
        self.status = 0;
        self.broken = None;
        self.activated = false;
        self.features = Negotiation::default();
        self.queue_sel = 0;
        self.interrupts.set(0);
        for slot in &mut self.slots {
            *slot = Slot::new(slot.max);
        }
        self.device.reset();
    }

    /// The driver's progress (2.1, 3.1.1). Bits add up until a reset takes them away. One that comes
    /// before its turn, or that the device refuses, stays clear for the driver to find.
    fn write_status(&mut self, value: u32) {
        if value == 0 {
            return self.reset();
        }
        // 2.1.1: a driver that has given up begins again with a reset.
        self.status |= value & FAILED;
        if self.status & FAILED != 0 {
            return;
        }
        for step in STEPS {
            if self.status & step != 0 {
                continue;
            }
            if value & step == 0 || !self.may_take(step) {
                return;
            }
            self.status |= step;
            if step == DRIVER_OK {
                self.start();
            }
        }
    }

    /// Whether a step can be taken, those before it having been.
    fn may_take(&self, step: u32) -> bool {
        step != FEATURES_OK || self.features.is_acceptable(self.offered())
    }

    /// The driver is ready.
    fn start(&mut self) {
        if self.broken.is_some() {
            // A queue was invalid. 2.1.2 demands a notification, which can be sent from DRIVER_OK on.
            return self.interrupt(CONFIGURATION_CHANGE);
        }
        let event_idx = self.acked().contains(Features::EVENT_IDX);
        for queue in self.slots.iter_mut().filter_map(|slot| slot.queue.as_mut()) {
            queue.set_event_idx(event_idx);
        }
        self.activate();
        // Linux puts a buffer on the balloon's statistics queue, and notifies of it, before it sets
        // DRIVER_OK (drivers/virtio/virtio_balloon.c, init_vqs), when nothing may be served.
        (0..self.slots.len()).for_each(|queue| self.notify(queue));
    }

    fn activate(&mut self) {
        self.activated = true;
        self.device.activate(self.acked());
    }

    fn selected(&self) -> Option<&Slot> {
        self.slots.get(usize::try_from(self.queue_sel).ok()?)
    }

    /// The selected queue, if its registers can be written: until it is ready (4.2.2.2).
    fn selected_mut(&mut self) -> Option<&mut Slot> {
        let slot = self.slots.get_mut(usize::try_from(self.queue_sel).ok()?)?;
        slot.queue.is_none().then_some(slot)
    }

    /// Queues are set up before DRIVER_OK (3.1.1, step 7). One that is stopped later does not start again
    /// without a reset: the device may hold its buffers, and VIRTIO_F_RING_RESET is not offered.
    fn write_queue_ready(&mut self, value: u32) {
        let Ok(queue) = usize::try_from(self.queue_sel) else { return };
        let Some(slot) = self.slots.get_mut(queue) else { return };
        if value == 0 {
            slot.queue = None;
        } else if value == 1
            && slot.queue.is_none()
            && self.status & DRIVER_OK == 0
            && slot.start(&*self.memory).is_none()
        {
            self.break_down(Broken::Queue { queue });
            // Nothing is served, but the thread that serves the queue finds the device broken.
            self.notify(queue);
        }
    }

    fn read_register(&self, offset: u64) -> u32 {
        match offset {
            registers::MAGIC_VALUE => registers::MAGIC,
            registers::VERSION => 2,
            registers::DEVICE_ID => self.device.id().0,
            registers::VENDOR_ID => registers::VENDOR,
            registers::DEVICE_FEATURES => self.features.read(self.offered()),
            registers::QUEUE_NUM_MAX => self.selected().map_or(0, |slot| slot.max.into()),
            registers::QUEUE_READY => {
                self.selected().is_some_and(|slot| slot.queue.is_some()).into()
            }
            registers::INTERRUPT_STATUS => self.interrupts.pending(),
            registers::STATUS if self.broken.is_some() => self.status | DEVICE_NEEDS_RESET,
            registers::STATUS => self.status,
            registers::SHM_LEN_LOW..=registers::SHM_BASE_HIGH => u32::MAX,
            registers::CONFIG_GENERATION => self.config_generation,
            _ => 0,
        }
    }

    fn write_register(&mut self, offset: u64, value: u32) {
        match offset {
            registers::DEVICE_FEATURES_SEL => self.features.device_sel = value,
            registers::DRIVER_FEATURES_SEL => self.features.driver_sel = value,
            // They are settled then (3.1.1, step 5).
            registers::DRIVER_FEATURES if self.status & FEATURES_OK != 0 => {}
            registers::DRIVER_FEATURES => self.features.write(value),
            registers::QUEUE_SEL => self.queue_sel = value,
            registers::QUEUE_READY => self.write_queue_ready(value),
            registers::QUEUE_NOTIFY => {
                if let Ok(queue) = usize::try_from(value) {
                    self.notify(queue);
                }
            }
            registers::INTERRUPT_ACK => self.interrupts.acknowledge(value),
            registers::STATUS => self.write_status(value),
            _ => self.write_queue_register(offset, value),
        }
    }

    fn write_queue_register(&mut self, offset: u64, value: u32) {
        let Some(slot) = self.selected_mut() else { return };
        match offset {
            registers::QUEUE_NUM => slot.size = value,
            registers::QUEUE_DESC_LOW => slot.descriptors.set(Half::Low, value),
            registers::QUEUE_DESC_HIGH => slot.descriptors.set(Half::High, value),
            registers::QUEUE_DRIVER_LOW => slot.available.set(Half::Low, value),
            registers::QUEUE_DRIVER_HIGH => slot.available.set(Half::High, value),
            registers::QUEUE_DEVICE_LOW => slot.used.set(Half::Low, value),
            registers::QUEUE_DEVICE_HIGH => slot.used.set(Half::High, value),
            _ => {}
        }
    }
}

/// Lets a device take what is on a queue, with the driver's notifications off meanwhile.
fn turn<D: Device, M: GuestMemory>(
    device: &mut D,
    queue: usize,
    ring: &mut Ring<'_, M>,
) -> Result<Served, Broken> {
    loop {
        let budget = ring.budget();
        ring.disable_notifications()?;
        device.serve(queue, ring)?;
        let idle = ring.budget() == budget;
        // A driver can move its index to and fro as often as it is read: without progress, others get
        // their turn first.
        let served = settle(ring, idle)?;
        if served == Served::Done || idle || ring.is_exhausted() {
            return Ok(served);
        }
    }
}

/// Turns the driver's notifications on, unless the device, which took no chain if it was `idle`, is to look again.
fn settle<M: GuestMemory>(ring: &mut Ring<'_, M>, idle: bool) -> Result<Served, Broken> {
    let more = ring.enable_notifications()?;
    // A chain that the device left in the ring on purpose waits for an event of the device, which
    // rings for the queue. One that came after the device had found none was added with notifications
    // disabled (2.7.10), so nothing else announces it.
    if !more || idle && !ring.found_none() {
        return Ok(Served::Done);
    }
    ring.disable_notifications()?;
    Ok(Served::More)
}

impl<D: Device, S: Deref<Target: GuestMemory + Sized> + Send> MmioDevice for Transport<D, S> {
    fn read(&mut self, offset: u64, data: &mut [u8]) {
        data.fill(0);
        if let Some(offset) = offset.checked_sub(registers::CONFIG) {
            self.device.read_config(offset, data);
        } else if let (Ok(data), true) = (<&mut [u8; 4]>::try_from(data), offset.is_multiple_of(4))
        {
            *data = self.read_register(offset).to_le_bytes();
        }
    }

    fn write(&mut self, offset: u64, data: &[u8]) {
        if let Some(offset) = offset.checked_sub(registers::CONFIG) {
            if let Some(queue) = self.device.write_config(offset, data) {
                self.notify(queue);
            }
        } else if let (Ok(data), true) = (<[u8; 4]>::try_from(data), offset.is_multiple_of(4)) {
            self.write_register(offset, u32::from_le_bytes(data));
        }
    }
}

impl<D: Device + fmt::Debug, S> fmt::Debug for Transport<D, S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Transport")
            .field("device", &self.device)
            .field("status", &self.status)
            .field("broken", &self.broken)
            .field("features", &self.features)
            .field("slots", &self.slots)
            .field("interrupts", &self.interrupts)
            .field("counters", &self.counters)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;
