//! One queue as the registers describe it, and the queue itself while it is ready (4.2.3.2).

use serde::{Deserialize, Serialize};
use virtio_queue::{Queue, QueueT};
use vm_memory::{GuestAddress, GuestMemory};

use crate::state::{RestoreError, check};

/// One half of an address register.
#[derive(Clone, Copy, Debug)]
pub(super) enum Half {
    Low,
    High,
}

/// An address that is written in halves. Any value can be written; one that will not do is found
/// when the queue is made ready, as the halves come in any order.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
pub(super) struct Address(pub(super) u64);

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
    /// The index of the used ring before the first chain was completed for which it is not decided whether the driver
    /// is interrupted.
    pub(super) undecided: Option<u16>,
}

impl Slot {
    /// A queue that the driver has not touched.
    pub(super) fn new(max: u16) -> Self {
        let none = Address::default();
        Self {
            max,
            size: 0,
            descriptors: none,
            available: none,
            used: none,
            queue: None,
            undecided: None,
        }
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

    /// What the registers hold, and how far a ready queue has come.
    pub(super) fn save(&self) -> QueueState {
        let Self { max, size, descriptors, available, used, ref queue, .. } = *self;
        let position = |queue: &Queue| Position {
            next_available: queue.next_avail(),
            next_used: queue.next_used(),
        };
        let ready = queue.as_ref().map(position);
        QueueState { max, size, descriptors, available, used, ready }
    }

    /// Takes over what [`save`](Self::save) gave.
    pub(super) fn restore<M: GuestMemory>(
        &mut self,
        state: QueueState,
        memory: &M,
        event_idx: bool,
    ) -> Result<(), RestoreError> {
        let QueueState { max, size, descriptors, available, used, ready } = state;
        if max != self.max {
            let problem = "is not that of the device";
            return Err(RestoreError::configuration("the greatest size of a queue", problem));
        }
        *self = Self { max, size, descriptors, available, used, queue: None, undecided: None };
        let Some(position) = ready else { return Ok(()) };
        let started = self.start(memory).and(self.queue.as_mut());
        check(
            started.is_some(),
            "a queue",
            "is not in guest memory, badly aligned or of a bad size",
        )?;
        if let Some(queue) = started {
            // Any index is possible: they wrap around. The driver's are checked as the ring is followed.
            queue.set_next_avail(position.next_available);
            queue.set_next_used(position.next_used);
            queue.set_event_idx(event_idx);
        }
        Ok(())
    }
}

/// A queue as it is saved. It holds any value that a driver can write into the registers.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub(super) struct QueueState {
    pub(super) max: u16,
    pub(super) size: u32,
    pub(super) descriptors: Address,
    pub(super) available: Address,
    pub(super) used: Address,
    pub(super) ready: Option<Position>,
}

impl QueueState {
    /// Whether chains have been taken or completed.
    pub(super) fn is_advanced(&self) -> bool {
        self.ready.is_some_and(|at| at != Position::default())
    }
}

/// How far a queue has come, in chains modulo 2^16.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
pub(super) struct Position {
    pub(super) next_available: u16,
    pub(super) next_used: u16,
}
