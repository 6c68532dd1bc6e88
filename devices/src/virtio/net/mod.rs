//! Network device (section 5.1).
//!
//! Two queues, receiveq and transmitq. It has no control queue, so one pair of them and no filters: it gives
//! the driver every frame that its port has.
//!
//! # Who calls
//! [`Net::receive`] and [`Net::transmit`] are a turn of a queue, outside of
//! [`Transport::serve`](super::mmio::Transport::serve), and say what the queue waits for ([`Progress`]). Frames
//! go between the port and guest memory without a copy, except for those that are larger than expected.

mod config;
mod counters;
pub mod features;
mod receive;
mod state;
mod transmit;

pub use config::Mac;
pub use counters::Counters;
pub use state::State;

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use vm_memory::GuestMemory;

use self::config::Space;
use self::counters::count;
use self::receive::Receiver;
use super::{Broken, Device, DeviceId, Features, Ring};
use crate::ports::NetPort;

/// The index of the queue of frames that the driver gets (5.1.2).
pub const RECEIVE: usize = 0;
/// The index of the queue of frames that the driver sends.
pub const TRANSMIT: usize = 1;

/// The greatest sizes of the queues: as QEMU's. A turn is as many frames at most.
const QUEUE_SIZES: [u16; 2] = [256, 256];

/// `virtio_net_hdr_v1` (5.1.6).
const HEADER: usize = 12;
/// Where the header says in how many buffers the frame lies (`num_buffers`).
const NUM_BUFFERS: usize = 10;
/// The largest frame with its header: 5.1.6.3.1 has the driver make room for 65562 bytes.
pub const LONGEST: usize = 65562;
/// Less than two addresses and a type is no Ethernet frame.
const SHORTEST: usize = HEADER + 14;

/// What a queue waits for.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
#[must_use]
pub enum Progress {
    /// For the port: it has no frame, or takes none.
    Port,
    /// For the driver, which notifies.
    Driver,
    /// For nothing: it is to get another turn after others had theirs.
    More,
}

/// A network interface for the guest.
pub struct Net<P> {
    port: P,
    space: Space,
    /// Whether the driver takes a frame in several buffers.
    mergeable: bool,
    receiver: Receiver,
    counters: Arc<Counters>,
}

impl<P: NetPort> Net<P> {
    /// An interface with this address before a port, its link up. With `mtu` the driver gets to know the
    /// greatest packet.
    pub fn new(port: P, mac: Mac, mtu: Option<u16>) -> Self {
        let space = Space { mac, link_up: true, mtu };
        let counters = Arc::<Counters>::default();
        counters.link_up.store(1, Ordering::Relaxed);
        Self { port, space, mergeable: false, receiver: Receiver::default(), counters }
    }

    /// The device's counters.
    pub fn counters(&self) -> Arc<Counters> {
        self.counters.clone()
    }

    /// Where frames come from and go to.
    pub fn port(&self) -> &P {
        &self.port
    }

    /// Where frames come from and go to, to control it.
    pub fn port_mut(&mut self) -> &mut P {
        &mut self.port
    }

    /// Whether the driver sees its link up.
    pub fn is_link_up(&self) -> bool {
        self.space.link_up
    }

    /// Has the driver see its link up or down; whether that is a change, of which it is to be notified
    /// ([`config_changed`](super::mmio::Transport::config_changed)).
    pub fn set_link(&mut self, up: bool) -> bool {
        let changed = self.space.link_up != up;
        self.space.link_up = up;
        self.counters.link_up.store(up.into(), Ordering::Relaxed);
        count(&self.counters.link_changes, changed.into());
        changed
    }
}

impl<P: NetPort> Device for Net<P> {
    fn id(&self) -> DeviceId {
        DeviceId::NETWORK
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        self.space.read(offset, data);
    }

    /// The driver writes nothing (5.1.4): its address is read-only since virtio 1.0.
    fn write_config(&mut self, _: u64, _: &[u8]) -> Option<usize> {
        None
    }

    fn features(&self) -> Features {
        let own = features::MAC.with(features::STATUS).with(features::MRG_RXBUF);
        let mtu = if self.space.mtu.is_some() { features::MTU } else { Features::default() };
        let offloads = Features(self.port.offloads().0 & features::OFFLOADS.0);
        let offloads = if self.port.has_header() { offloads } else { Features::default() };
        own.with(mtu).with(offloads)
    }

    fn queue_sizes(&self) -> &[u16] {
        &QUEUE_SIZES
    }

    fn activate(&mut self, acked: Features) {
        self.mergeable = acked.contains(features::MRG_RXBUF);
        if self.port.has_header() {
            self.port.set_offloads(Features(acked.0 & features::OFFLOADS.0));
        }
    }

    fn serve<M: GuestMemory>(
        &mut self,
        queue: usize,
        ring: &mut Ring<'_, M>,
    ) -> Result<(), Broken> {
        let _ = match queue {
            RECEIVE => self.receive(ring)?,
            _ => self.transmit(ring)?,
        };
        Ok(())
    }

    fn reset(&mut self) {
        self.mergeable = false;
        self.receiver = Receiver::default();
    }
}

impl<P: fmt::Debug> fmt::Debug for Net<P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Net")
            .field("port", &self.port)
            .field("space", &self.space)
            .field("counters", &self.counters)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;
