//! transmitq (5.1.6.2): frames from the driver to the port.

use std::io::ErrorKind;

use vm_memory::GuestMemory;

use super::counters::count;
use super::{HEADER, LONGEST, Net, Progress, SHORTEST};
use crate::ports::NetPort;
use crate::virtio::{Broken, Chain, Ring};

/// What became of a frame.
enum Sent {
    /// The driver gets its buffers back.
    Done,
    /// It is to be sent again.
    Blocked,
}

impl<P: NetPort> Net<P> {
    /// A turn of transmitq: at most as many frames as it is long.
    ///
    /// # Errors
    /// When the driver has broken the device.
    pub fn transmit<M: GuestMemory>(&mut self, ring: &mut Ring<'_, M>) -> Result<Progress, Broken> {
        self.transmit_until(ring, false)
    }

    /// As [`transmit`](Self::transmit), but a turn that has sent frames leaves notifications off: there is
    /// [`Progress::More`].
    ///
    /// # Errors
    /// When the driver has broken the device.
    pub fn transmit_part<M: GuestMemory>(
        &mut self,
        ring: &mut Ring<'_, M>,
    ) -> Result<Progress, Broken> {
        self.transmit_until(ring, true)
    }

    fn transmit_until<M: GuestMemory>(
        &mut self,
        ring: &mut Ring<'_, M>,
        quiet: bool,
    ) -> Result<Progress, Broken> {
        ring.disable_notifications()?;
        let budget = ring.budget();
        loop {
            let Some(chain) = ring.take()? else {
                if quiet && ring.budget() != budget {
                    return Ok(Progress::More);
                }
                // A frame that came before notifications were enabled is announced by none (2.7.10). The driver
                // can move its index to and fro: others get their turn in between.
                let more = ring.is_exhausted() || ring.enable_notifications()?;
                return Ok(if more { Progress::More } else { Progress::Driver });
            };
            let head = chain.head();
            match self.send(chain, ring.memory())? {
                Sent::Done => ring.complete(head, 0)?,
                Sent::Blocked => {
                    ring.put_back(1);
                    count(&self.counters.tx_blocked, 1);
                    return Ok(Progress::Port);
                }
            }
        }
    }

    fn send<M: GuestMemory>(&mut self, chain: Chain, memory: &M) -> Result<Sent, Broken> {
        let (frame, written) = chain.into_streams()?;
        if !written.is_empty() {
            return Err(Broken::Form("a frame to be sent has a buffer to write (5.1.6.2)"));
        }
        if !(SHORTEST as u64..=LONGEST as u64).contains(&frame.len()) {
            count(&self.counters.tx_malformed, 1);
            return Ok(Sent::Done);
        }
        let bytes = frame.len() - HEADER as u64;
        // Without offloads the header says nothing (5.1.6.2).
        let skipped = if self.port.has_header() { 0 } else { HEADER };
        let mut slices = Vec::with_capacity(frame.buffers());
        frame.add_slices(memory, skipped as u64, &mut slices)?;
        match self.port.send(&slices) {
            Ok(()) => {
                count(&self.counters.tx_frames, 1);
                count(&self.counters.tx_bytes, bytes);
            }
            Err(error) => match error.kind() {
                ErrorKind::WouldBlock => return Ok(Sent::Blocked),
                ErrorKind::NotConnected => count(&self.counters.tx_unlinked, 1),
                _ => count(&self.counters.tx_failures, 1),
            },
        }
        Ok(Sent::Done)
    }
}
