//! Socket device (section 5.10): streams between processes of the guest and of the host.
//!
//! ```text
//! tx queue -> Muxer::receive -> a stream of the host, by the port Peers
//! rx queue <- Muxer::give    <-
//! ```
//!
//! Data goes between guest memory and the stream in one call. Only what a stream does not take at once is
//! kept, within the credit that the guest has for it.

mod connection;
mod counters;
mod muxer;
mod packet;
mod peers;
mod state;

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use vm_memory::GuestMemory;

use self::muxer::Muxer;
use self::packet::{HEADER, Header};
use super::{Broken, Device, DeviceId, Features, Ring, Stream, read_bytes};

pub use counters::Counters;
pub use muxer::{CLOSE_TIMEOUT, DRIVER_TIMEOUT, LINGER_TIMEOUT, MOST_CONNECTIONS, REQUEST_TIMEOUT};
pub use peers::{PeerId, Peers, Readiness};
pub use state::State;

/// Packets for the guest.
pub const RX: usize = 0;
/// Packets of the guest.
pub const TX: usize = 1;
/// Events for the guest's driver.
pub const EVENT: usize = 2;

/// The greatest size of each queue. Linux uses all of the first two, and 8 buffers for events.
const QUEUE_SIZES: [u16; 3] = [256, 256, 16];

/// All connections are gone (5.10.6.7, VIRTIO_VSOCK_EVENT_TRANSPORT_RESET).
const TRANSPORT_RESET: u32 = 0;

/// How long the driver is waited for that has the event, and does not give its buffer back: a guest is slow where the
/// host is, but its sockets must not wait for a driver that never does.
const RESET_TIMEOUT: Duration = Duration::from_secs(2);
/// How often it is looked whether it has: its notification may not come, as it has other buffers there.
const RESET_LOOK: Duration = Duration::from_millis(5);

/// What the driver knows of connections that are gone.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Reset {
    /// All there is to know.
    Known,
    /// It has not got the event.
    Due,
    /// It has the event. Until it gives buffers back, it may end whatever connections it has, new ones, too.
    Told {
        /// Its count of available buffers when it was told.
        available: u16,
        /// When it is looked at again.
        look: Duration,
        /// When it is waited for no more.
        until: Duration,
    },
}

/// A socket device.
pub struct Vsock<P> {
    muxer: Muxer<P>,
    reset: Reset,
    /// The driver has packets that wait for room for answers.
    stalled: bool,
}

impl<P: Peers> Vsock<P> {
    /// A device of the guest with this context identifier.
    pub fn new(cid: u32, peers: P) -> Self {
        Self { muxer: Muxer::new(cid, peers), reset: Reset::Known, stalled: false }
    }

    /// The device's counters.
    pub fn counters(&self) -> Arc<Counters> {
        Arc::clone(self.muxer.counters())
    }

    /// The host's side.
    pub fn peers(&self) -> &P {
        self.muxer.peers()
    }

    /// The host's side, to take what happens there.
    pub fn peers_mut(&mut self) -> &mut P {
        self.muxer.peers_mut()
    }

    /// A peer wants a connection to a port of the guest. If there is no place, its stream is closed.
    pub fn connect(&mut self, peer: PeerId, port: u32) {
        self.muxer.connect(peer, port);
    }

    /// Something has happened to a stream.
    pub fn on_peer(&mut self, peer: PeerId, news: Readiness) {
        self.muxer.on_peer(peer, news);
    }

    /// When [`expire`](Self::expire) is to be called, at the latest.
    pub fn next_deadline(&self) -> Option<Duration> {
        let look = match self.reset {
            Reset::Told { look, .. } => Some(look),
            Reset::Known | Reset::Due => None,
        };
        self.muxer.next_deadline().into_iter().chain(look).min()
    }

    /// Whether the event queue is to be served, although its driver may not notify.
    pub fn awaits_driver(&self) -> bool {
        matches!(self.reset, Reset::Told { .. })
    }

    /// Gives up what has waited for too long.
    pub fn expire(&mut self) {
        self.muxer.expire();
        // Here, as the queue of a device that is broken is not served.
        if let Reset::Told { available, until, .. } = self.reset {
            let now = self.muxer.peers().now();
            let look = now + RESET_LOOK;
            self.reset =
                if now >= until { Reset::Known } else { Reset::Told { available, look, until } };
        }
    }

    /// Whether there are packets for the guest: the rx queue is to be served, although its driver may not notify.
    pub fn has_packets(&self) -> bool {
        self.reset == Reset::Known && self.muxer.has_packets()
    }

    /// Whether the tx queue is to be served although its driver does not notify, once: there is room for answers
    /// again.
    pub fn resume_packets(&mut self) -> bool {
        let resumed = self.stalled && self.muxer.takes_packets();
        self.stalled &= !resumed;
        resumed
    }

    /// tx (5.10.6): packets of the guest, while there is room for answers.
    fn take<M: GuestMemory>(&mut self, ring: &mut Ring<'_, M>) -> Result<(), Broken> {
        self.stalled = false;
        loop {
            if !self.muxer.takes_packets() {
                self.stalled = true;
                return Ok(());
            }
            let Some(chain) = ring.take()? else { return Ok(()) };
            let head = chain.head();
            let (mut packet, _) = chain.into_streams()?;
            let mut header = [0; HEADER];
            if !packet.read(ring.memory(), &mut header)? {
                return Err(Broken::Form("a packet is shorter than its header (5.10.6)"));
            }
            self.muxer.receive(&Header::from_bytes(&header), packet, ring.memory())?;
            ring.complete(head, 0)?;
        }
    }

    /// rx (5.10.6): packets for the guest, each into a buffer of its own.
    fn give<M: GuestMemory>(&mut self, ring: &mut Ring<'_, M>) -> Result<(), Broken> {
        // The driver is to end its connections before it sees packets of new ones.
        while self.has_packets() {
            let Some(chain) = ring.take()? else { break };
            let head = chain.head();
            let (_, buffer) = chain.into_streams()?;
            // With room for less, data would never get through.
            if buffer.len() <= HEADER as u64 {
                return Err(Broken::Form("a buffer has no room for a packet (5.10.6)"));
            }
            match self.muxer.give(&buffer, ring.memory())? {
                Some(length) => ring.complete(head, length)?,
                None => ring.put_back(1),
            }
        }
        Ok(())
    }

    /// event (5.10.6.7): that all connections are gone.
    fn announce<M: GuestMemory>(&mut self, ring: &mut Ring<'_, M>) -> Result<(), Broken> {
        match self.reset {
            Reset::Known => {}
            Reset::Due => {
                let Some(chain) = ring.take()? else { return Ok(()) };
                let head = chain.head();
                let (_, mut buffer): (_, Stream) = chain.into_streams()?;
                let event = TRANSPORT_RESET.to_le_bytes();
                if !buffer.write(ring.memory(), &event)? {
                    return Err(Broken::Form("a buffer has no room for an event (5.10.6.7)"));
                }
                let available = ring.available_index()?;
                ring.complete(head, event.len() as u32)?;
                let now = self.muxer.peers().now();
                let (look, until) = (now + RESET_LOOK, now + RESET_TIMEOUT);
                self.reset = Reset::Told { available, look, until };
            }
            Reset::Told { available, .. } => {
                if ring.available_index()? != available {
                    self.reset = Reset::Known;
                }
            }
        }
        Ok(())
    }
}

impl<P: Peers> Device for Vsock<P> {
    fn id(&self) -> DeviceId {
        DeviceId::SOCKET
    }

    /// None: without them the device has sockets of streams (5.10.3).
    fn features(&self) -> Features {
        Features::default()
    }

    fn queue_sizes(&self) -> &[u16] {
        &QUEUE_SIZES
    }

    /// The guest's context identifier (5.10.4).
    fn read_config(&self, offset: u64, data: &mut [u8]) {
        read_bytes(&self.muxer.cid().to_le_bytes(), offset, data);
    }

    fn write_config(&mut self, _: u64, _: &[u8]) -> Option<usize> {
        None
    }

    fn activate(&mut self, _: Features) {}

    fn serve<M: GuestMemory>(
        &mut self,
        queue: usize,
        ring: &mut Ring<'_, M>,
    ) -> Result<(), Broken> {
        match queue {
            RX => self.give(ring),
            TX => self.take(ring),
            _ => self.announce(ring),
        }
    }

    /// Connections end. Those that the driver does not know of wait for the next driver.
    fn reset(&mut self) {
        (self.reset, self.stalled) = (Reset::Known, false);
        self.muxer.reset();
    }
}

impl<P: fmt::Debug> fmt::Debug for Vsock<P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Vsock")
            .field("muxer", &self.muxer)
            .field("reset", &self.reset)
            .field("stalled", &self.stalled)
            .finish()
    }
}

#[cfg(test)]
mod tests;
