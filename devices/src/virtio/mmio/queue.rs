//! One queue as the registers describe it, and the queue itself while it is ready (4.2.3.2).

use virtio_queue::{Queue, QueueT};
use vm_memory::{GuestAddress, GuestMemory};

/// One half of an address register.
#[derive(Clone, Copy, Debug)]
pub(super) enum Half {
    Low,
    High,
}

/// An address that is written in halves. Any value can be written; one that will not do is found
/// when the queue is made ready, as the halves come in any order.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Address(u64);

impl Address {
    /// Replaces one half.
    pub(super) fn set(&mut self, half: Half, value: u32) {
        let value = u64::from(value);
        self.0 = match half {
            Half::Low => self.0 >> 32 << 32 | value,
            Half::High => value << 32 | self.0 & u64::from(u32::MAX),
        };
    }
}

/// What a driver has written about a queue.
#[derive(Debug)]
pub(super) struct Slot {
    /// The greatest size that the device offers.
    pub(super) max: u16,
    /// The size the driver chose: nothing that a register holds is refused before it is used.
    pub(super) size: u32,
    /// The descriptor table.
    pub(super) descriptors: Address,
    /// The available ring.
    pub(super) available: Address,
    /// The used ring.
    pub(super) used: Address,
    /// The queue, while it is ready.
    pub(super) queue: Option<Queue>,
}

impl Slot {
    /// A queue that the driver has not touched.
    pub(super) fn new(max: u16) -> Self {
        let none = Address::default();
        Self { max, size: 0, descriptors: none, available: none, used: none, queue: None }
    }

    /// Makes the queue ready, from its first chain on. `None` when its size is none that the device
    /// offers, or a part of it is badly aligned (2.7) or not in guest memory.
    pub(super) fn start<M: GuestMemory>(&mut self, memory: &M) -> Option<()> {
        let mut queue = Queue::new(self.max).ok()?;
        queue.try_set_size(u16::try_from(self.size).ok()?).ok()?;
        queue.try_set_desc_table_address(GuestAddress(self.descriptors.0)).ok()?;
        queue.try_set_avail_ring_address(GuestAddress(self.available.0)).ok()?;
        queue.try_set_used_ring_address(GuestAddress(self.used.0)).ok()?;
        queue.set_ready(true);
        self.queue = queue.is_valid(memory).then_some(queue);
        self.queue.as_ref().map(|_| ())
    }
}
