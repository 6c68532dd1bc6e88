//! One queue as a device sees it: chains of buffers to take and to complete (2.7, split virtqueues).

use std::sync::atomic::Ordering;

use serde::{Deserialize, Serialize};
use virtio_queue::{Queue, QueueOwnedT, QueueT};
use vm_memory::{Bytes, GuestAddress, GuestMemory, Permissions};

use super::Broken;

/// Flag of the available ring: the driver does without interrupts (2.7.7, VIRTQ_AVAIL_F_NO_INTERRUPT).
const NO_INTERRUPT: u16 = 1;

/// One descriptor's buffer: its address and length are the driver's, and not checked.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Buffer {
    /// Where it begins.
    pub address: GuestAddress,
    /// Its length in bytes, 0 to 2^32 - 1.
    pub length: u32,
    /// The device writes it; otherwise it reads it.
    pub writable: bool,
}

impl Buffer {
    /// Itself, if all of it is in guest memory.
    ///
    /// # Errors
    /// [`Broken::Buffer`] when it is not.
    pub fn checked<M: GuestMemory>(self, memory: &M) -> Result<Self, Broken> {
        let Self { address, length, writable } = self;
        let access = if writable { Permissions::Write } else { Permissions::Read };
        // An empty range is nowhere, so it is harmless anywhere.
        if length == 0 || memory.check_range(address, length as usize, access) {
            Ok(self)
        } else {
            Err(Broken::Buffer { address, length })
        }
    }
}

/// What names a chain when it is completed. A restored one may be any: [`Ring::complete`] refuses what is
/// no descriptor of its queue.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct Head(pub(crate) u16);

/// A chain of buffers that the driver has made available, as it was when it was taken.
#[derive(Clone, Debug)]
pub struct Chain {
    head: Head,
    buffers: Vec<Buffer>,
    whole: bool,
}

impl Chain {
    /// What names it.
    pub fn head(&self) -> Head {
        self.head
    }

    /// Its buffers, one or more.
    ///
    /// # Errors
    /// [`Broken::Chain`] when the chain does not end as the specification wants it to.
    pub fn buffers(&self) -> Result<&[Buffer], Broken> {
        if self.whole { Ok(&self.buffers) } else { Err(Broken::Chain) }
    }

    /// Its buffers as far as the chain can be followed, one or more.
    pub fn leading_buffers(&self) -> &[Buffer] {
        &self.buffers
    }
}

/// A queue while a device serves it.
///
/// Tables of descriptors are followed whether or not VIRTIO_F_INDIRECT_DESC was acknowledged: a driver
/// that uses them without (which 2.7.5.3.1 forbids it) reaches nothing that it could not reach with it.
#[derive(Debug)]
pub struct Ring<'a, M> {
    queue: &'a mut Queue,
    memory: &'a M,
    /// Chains that may still be taken before others get their turn.
    budget: u16,
    /// Whether the last look at the available ring found no chain.
    found_none: bool,
    /// Whether a chain has been completed.
    completed: bool,
}

impl<'a, M: GuestMemory> Ring<'a, M> {
    /// A queue that is ready, over the memory it lies in.
    ///
    /// One ring takes as many chains as the queue is long: a driver that makes them available as fast as
    /// they are taken must not keep the thread.
    pub fn new(queue: &'a mut Queue, memory: &'a M) -> Self {
        let budget = queue.size();
        Self { queue, memory, budget, found_none: false, completed: false }
    }

    /// Guest memory.
    pub fn memory(&self) -> &'a M {
        self.memory
    }

    /// Takes the next available chain.
    ///
    /// # Errors
    /// When the available ring makes no sense, or the chain has not even a first buffer.
    pub fn take(&mut self) -> Result<Option<Chain>, Broken> {
        let Some(budget) = self.budget.checked_sub(1) else { return Ok(None) };
        let longest = self.queue.size();
        let mut available = self.queue.iter(self.memory).map_err(|_| Broken::Available)?;
        let next = available.next();
        self.found_none = next.is_none();
        let Some(descriptors) = next else { return Ok(None) };
        self.budget = budget;
        let head = Head(descriptors.head_index());
        let mut buffers = Vec::new();
        let mut whole = false;
        // 2.7.5.3.1: a chain, through a table too, is no longer than its queue.
        for descriptor in descriptors.take(usize::from(longest)) {
            buffers.push(Buffer {
                address: descriptor.addr(),
                length: descriptor.len(),
                writable: descriptor.is_write_only(),
            });
            whole = !descriptor.has_next();
        }
        match buffers.is_empty() {
            true => Err(Broken::Chain),
            false => Ok(Some(Chain { head, buffers, whole })),
        }
    }

    /// Leaves the chain that was taken last in the ring after all: the next one taken is that one again.
    pub fn put_back(&mut self, _: Chain) {
        self.queue.set_next_avail(self.queue.next_avail().wrapping_sub(1));
        self.budget += 1;
    }

    /// Gives a chain back to the driver, with the bytes that the device has written into it.
    ///
    /// # Errors
    /// When the used ring cannot be written.
    pub fn complete(&mut self, head: Head, written: u32) -> Result<(), Broken> {
        self.queue.add_used(self.memory, head.0, written).map_err(|_| Broken::Used)?;
        self.completed = true;
        Ok(())
    }

    /// Takes no more chains before others had their turn: those taken were work enough.
    pub fn end_turn(&mut self) {
        self.budget = 0;
    }

    /// Whether it has taken all that one turn allows; there may be chains left.
    pub fn is_exhausted(&self) -> bool {
        self.budget == 0
    }

    /// How many chains may still be taken.
    pub(super) fn budget(&self) -> u16 {
        self.budget
    }

    /// Whether the last look at the available ring since the notifications were disabled found no chain.
    pub(super) fn found_none(&self) -> bool {
        self.found_none
    }

    /// Asks the driver not to notify for now (2.7.10).
    pub(super) fn disable_notifications(&mut self) -> Result<(), Broken> {
        self.found_none = false;
        self.queue.disable_notification(self.memory).map_err(|_| Broken::Used)
    }

    /// Asks for a notification of the next chain (2.7.10). Whether there is one already, for which no
    /// notification comes.
    pub(super) fn enable_notifications(&mut self) -> Result<bool, Broken> {
        self.queue.enable_notification(self.memory).map_err(|_| Broken::Used)
    }

    /// Whether the driver wants an interrupt for the chains that have been completed (2.7.7.2).
    pub(super) fn needs_interrupt(&mut self) -> Result<bool, Broken> {
        if !self.completed {
            return Ok(false);
        }
        // With event indices this decides; otherwise it orders the reading of the flags, which it does
        // not look at, after the writing of the used ring.
        let wanted = self.queue.needs_notification(self.memory).map_err(|_| Broken::Available)?;
        if self.queue.event_idx_enabled() {
            return Ok(wanted);
        }
        let flags = GuestAddress(self.queue.avail_ring());
        let flags: u16 =
            self.memory.load(flags, Ordering::Relaxed).map_err(|_| Broken::Available)?;
        Ok(u16::from_le(flags) & NO_INTERRUPT == 0)
    }
}

#[cfg(test)]
mod tests;
