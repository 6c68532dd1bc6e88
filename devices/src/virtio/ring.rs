//! One queue as a device sees it: chains of buffers to take and to complete (2.7, split virtqueues).

use std::sync::atomic::{Ordering, fence};

use serde::{Deserialize, Serialize};
use virtio_queue::{Queue, QueueOwnedT, QueueT};
use vm_memory::{Bytes, GuestAddress, GuestMemory, Permissions};

use super::Broken;
use super::buffer_list::BufferList;

/// Flag of the available ring: the driver does without interrupts (2.7.7, VIRTQ_AVAIL_F_NO_INTERRUPT).
const NO_INTERRUPT: u16 = 1;

/// How many elements of the used ring are written in one piece: as many as a frame of 64 KiB has buffers at most, when
/// they are as small as Linux's (`GOOD_PACKET_LEN` in `drivers/net/virtio_net.c`).
const ELEMENTS: usize = 44;

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
    buffers: BufferList,
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

    /// As [`buffers`](Self::buffers).
    ///
    /// # Errors
    /// As for [`buffers`](Self::buffers).
    pub(super) fn into_buffers(self) -> Result<BufferList, Broken> {
        if self.whole { Ok(self.buffers) } else { Err(Broken::Chain) }
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
    /// The index of the used ring before any chain was completed.
    used_before: u16,
}

impl<'a, M: GuestMemory> Ring<'a, M> {
    /// A queue that is ready, over the memory it lies in.
    ///
    /// One ring takes as many chains as the queue is long: a driver that makes them available as fast as
    /// they are taken must not keep the thread.
    pub fn new(queue: &'a mut Queue, memory: &'a M) -> Self {
        let budget = queue.size();
        let used_before = queue.next_used();
        Self { queue, memory, budget, found_none: false, used_before }
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
        let mut buffers = BufferList::default();
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

    /// Gives a chain back to the driver, with the bytes that the device has written into it.
    ///
    /// # Errors
    /// When the used ring cannot be written.
    pub fn complete(&mut self, head: Head, written: u32) -> Result<(), Broken> {
        self.queue.add_used(self.memory, head.0, written).map_err(|_| Broken::Used)
    }

    /// Gives chains back that belong together: the driver sees all of them or none, as it must for a frame
    /// that lies in several (5.1.6.4).
    ///
    /// # Errors
    /// When the used ring cannot be written.
    pub fn complete_together(&mut self, chains: &[(Head, u32)]) -> Result<(), Broken> {
        let Some(((last, last_written), others)) = chains.split_last() else { return Ok(()) };
        let size = self.queue.size();
        let first = self.queue.next_used();
        let mut place = first;
        let mut rest = others;
        while !rest.is_empty() {
            // The size is a power of two. Elements lie behind each other up to the end of the ring.
            let index = place & (size - 1);
            let (here, after) = rest.split_at(rest.len().min((size - index).into()).min(ELEMENTS));
            let mut elements = [[0; 8]; ELEMENTS];
            for ((head, written), element) in here.iter().zip(&mut elements) {
                if head.0 >= size {
                    return Err(Broken::Used);
                }
                element[..4].copy_from_slice(&u32::from(head.0).to_le_bytes());
                element[4..].copy_from_slice(&written.to_le_bytes());
            }
            let address = self.queue.used_ring().saturating_add(4 + 8 * u64::from(index));
            let bytes = elements[..here.len()].as_flattened();
            let put = self.memory.write_slice(bytes, GuestAddress(address));
            put.map_err(|_| Broken::Used)?;
            // At most ELEMENTS.
            place = place.wrapping_add(here.len() as u16);
            rest = after;
        }
        // Adding the last one moves the index over all of them.
        self.queue.set_next_used(first.wrapping_add(others.len() as u16));
        self.complete(*last, *last_written)
    }

    /// Puts the last chains that were taken back to where they were. None taken after them has been completed.
    pub fn put_back(&mut self, chains: u16) {
        self.queue.set_next_avail(self.queue.next_avail().wrapping_sub(chains));
        self.budget = self.budget.saturating_add(chains);
    }

    /// The driver's count of the chains that it has made available, modulo 2^16 (2.7.6).
    ///
    /// # Errors
    /// When the available ring cannot be read.
    pub fn available_index(&self) -> Result<u16, Broken> {
        let index = self.queue.avail_idx(self.memory, Ordering::Acquire);
        index.map(|index| index.0).map_err(|_| Broken::Available)
    }

    /// How many chains the queue holds at most.
    pub fn size(&self) -> u16 {
        self.queue.size()
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

    /// Counts chains as completed in this turn from this index of the used ring on, if there is one: it is not decided
    /// yet whether the driver is interrupted for them.
    pub(super) fn decide_from(&mut self, used: Option<u16>) {
        self.used_before = used.unwrap_or(self.used_before);
    }

    /// The index of the used ring from which on chains have been completed without a decision whether the driver is
    /// interrupted. `None` when there are no such chains.
    pub(super) fn undecided(&self) -> Option<u16> {
        Some(self.used_before).filter(|before| *before != self.queue.next_used())
    }

    /// Whether the driver wants an interrupt for the chains that have been completed (2.7.7.2).
    pub(super) fn needs_interrupt(&mut self) -> Result<bool, Broken> {
        let (before, now) = (self.used_before, self.queue.next_used());
        if before == now {
            return Ok(false);
        }
        self.used_before = now;
        // What the driver asks for is read after the used ring has been written: it writes in the other order.
        fence(Ordering::SeqCst);
        let load = |offset: u64| -> Result<u16, Broken> {
            let address = GuestAddress(self.queue.avail_ring().saturating_add(offset));
            let value: u16 =
                self.memory.load(address, Ordering::Relaxed).map_err(|_| Broken::Available)?;
            Ok(u16::from_le(value))
        };
        if self.queue.event_idx_enabled() {
            // The driver wants to know when the index passes this one.
            let event = load(4 + 2 * u64::from(self.queue.size()))?;
            return Ok(now.wrapping_sub(event).wrapping_sub(1) < now.wrapping_sub(before));
        }
        Ok(load(0)? & NO_INTERRUPT == 0)
    }
}

#[cfg(test)]
mod tests;
