//! Virtio devices (Virtual I/O Device specification, version 1.2 and later) and what they share.
//!
//! ```text
//! bus  ->  mmio::Transport (registers, status, queues)  ->  Device (rng, block, net, ...)
//!                                                              Ring (chains of one queue)
//! ```
//!
//! # A device
//! A small file or folder in one order: configuration space, features, the roles of its queues, one
//! function a queue, state. It implements [`Device`] and knows neither registers nor notifications.
//!
//! # What a driver may do
//! Anything, in any order. A device believes no address, length, index or order of calls; what the
//! specification forbids a driver either is ignored, where it says so, or breaks the device:
//! [`Broken`] makes the transport set DEVICE_NEEDS_RESET (2.1.2), and nothing but a reset is served.

pub mod balloon;
pub mod block;
mod buffer_list;
mod buffers;
pub mod mmio;
pub mod net;
mod ring;
pub mod rng;
#[cfg(test)]
pub(crate) mod testing;
pub mod vsock;

pub use buffers::{Slice, Stream};
pub use ring::{Buffer, Chain, Head, Ring};

use std::fmt;

use thiserror::Error;
use vm_memory::{GuestAddress, GuestMemory};

use crate::state::Stateful;

/// The kind of a device (section 5).
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub struct DeviceId(pub u32);

impl DeviceId {
    /// Block device (5.2).
    pub const BLOCK: Self = Self(2);
    /// Network device (5.1).
    pub const NETWORK: Self = Self(1);
    /// Entropy source (5.4).
    pub const ENTROPY: Self = Self(4);
    /// Traditional memory balloon (5.5).
    pub const BALLOON: Self = Self(5);
    /// Socket device (5.10).
    pub const SOCKET: Self = Self(19);
}

/// A set of feature bits, offered or acknowledged (2.2).
#[derive(Clone, Copy, Default, Eq, PartialEq)]
pub struct Features(pub u64);

impl Features {
    /// Descriptors may point at tables of descriptors (VIRTIO_F_INDIRECT_DESC).
    pub const INDIRECT_DESC: Self = Self(1 << 28);
    /// Each side says which chain it wants a notification for (VIRTIO_F_EVENT_IDX).
    pub const EVENT_IDX: Self = Self(1 << 29);
    /// Not a legacy device (VIRTIO_F_VERSION_1).
    pub const VERSION_1: Self = Self(1 << 32);

    /// Whether all bits of `other` are in here.
    pub const fn contains(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }

    /// The bits of both.
    #[must_use]
    pub const fn with(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }
}

impl fmt::Debug for Features {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Features({:#x})", self.0)
    }
}

/// What a driver did that only a reset can mend.
#[derive(Clone, Debug, Error, Eq, PartialEq)]
pub enum Broken {
    /// A queue was made ready, or used, outside guest memory, badly aligned, or of a bad size.
    #[error("queue {queue} is not a queue in guest memory")]
    Queue {
        /// The queue's index.
        queue: usize,
    },
    /// The ring of available chains makes no sense, such as an index further ahead than it is long.
    #[error("the available ring cannot be followed")]
    Available,
    /// The ring of used chains cannot be written.
    #[error("the used ring cannot be written")]
    Used,
    /// A chain has no descriptor, loops, is longer than its queue or 4 GiB, or leads out of its table or
    /// guest memory.
    #[error(
        "a chain of descriptors is empty, loops, is too long, or leaves its table or guest memory"
    )]
    Chain,
    /// A buffer is not in guest memory.
    #[error("a buffer of {length} bytes at {:#x} is not in guest memory", address.0)]
    Buffer {
        /// Where it begins.
        address: GuestAddress,
        /// Its length in bytes.
        length: u32,
    },
    /// The device was broken when its state was saved.
    #[error("the driver had broken the device before the snapshot was taken")]
    Restored,
    /// A chain is not of the form that its queue takes.
    #[error("{0}")]
    Form(&'static str),
}

/// Reads bytes of a configuration space. Beyond its end there are zeros.
fn read_bytes(space: &[u8], offset: u64, data: &mut [u8]) {
    data.fill(0);
    if let Some(rest) = usize::try_from(offset).ok().and_then(|offset| space.get(offset..)) {
        data.iter_mut().zip(rest).for_each(|(to, from)| *to = *from);
    }
}

/// A device behind a transport.
///
/// The transport calls its methods with the device locked: `activate` at most once after each reset, then
/// `serve` for each queue that is ready, soon after that and after each notification, until `reset`. Configuration
/// space may be read and written at any time.
///
/// A state is saved between turns. It is restored after `reset`, and after `activate` if the device was
/// active, so it holds neither features nor queues. A device may keep a [`Head`] in its state: a chain
/// that was taken and not completed stays taken.
pub trait Device: Stateful + Send {
    /// Its kind.
    fn id(&self) -> DeviceId;

    /// The features of its own that it offers: bits 0 to 23 and 50 upwards.
    fn features(&self) -> Features;

    /// The greatest size of each of its queues, powers of two from 1 to 32768.
    fn queue_sizes(&self) -> &[u16];

    /// Reads its configuration space; bytes beyond its end read zero.
    fn read_config(&self, offset: u64, data: &mut [u8]);

    /// Writes its configuration space; what is read-only or beyond its end is ignored. Returns a queue that is to be served
    /// for what the write makes due: a vCPU's thread writes, which may do less than the one that serves queues.
    fn write_config(&mut self, offset: u64, data: &[u8]) -> Option<usize>;

    /// The driver is ready, with these features.
    fn activate(&mut self, acked: Features);

    /// Takes what the driver has put on a queue. Spurious calls are harmless.
    ///
    /// A device that returns although [`Ring::take`] might give it more chains waits for an event of its
    /// own, such as data from the host. When that comes, [`Transport::notify`](mmio::Transport::notify)
    /// has the queue served again.
    ///
    /// # Errors
    /// When the driver has broken the device.
    fn serve<M: GuestMemory>(&mut self, queue: usize, ring: &mut Ring<'_, M>)
    -> Result<(), Broken>;

    /// Forgets the driver and all of its buffers (2.1: reset).
    fn reset(&mut self);
}
