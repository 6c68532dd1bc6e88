//! Entropy device (section 5.4).
//!
//! The smallest device, and so an example: configuration space, features, queues, one function a
//! queue, state.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use vm_memory::{Bytes, GuestAddress, GuestMemory};

use super::{Broken, Buffer, Device, DeviceId, Features, Ring};
use crate::ports::Entropy;

/// The greatest size of its one queue, requestq (5.4.2). Linux has a single request under way.
const QUEUE_SIZE: u16 = 256;

/// Most bytes written into one chain; 5.4.6.2 lets a device write less than there is room for. A
/// request names up to 4 GiB, and the thread that fills it has others to serve. A driver wants
/// some tens of bytes, and can ask again.
const CHAIN_LIMIT: u64 = 64 << 10;

/// Bytes that pass from host to guest at a time.
const PIECE: usize = 4 << 10;

/// What an entropy device has given. Readable at any time, by any thread.
#[derive(Debug, Default)]
pub struct Counters {
    /// Random bytes written into guest memory.
    pub bytes: AtomicU64,
    /// Requests that ended early, perhaps without a byte, as the host had no more to give.
    pub failures: AtomicU64,
}

/// An entropy source for the guest.
pub struct Rng {
    entropy: Box<dyn Entropy>,
    counters: Arc<Counters>,
}

impl Rng {
    /// A device that hands out what `entropy` gives.
    pub fn new(entropy: Box<dyn Entropy>) -> Self {
        Self { entropy, counters: Arc::default() }
    }

    /// The device's counters.
    pub fn counters(&self) -> Arc<Counters> {
        self.counters.clone()
    }

    /// requestq (5.4.6): fills the buffers of a chain. Returns how many bytes it has written.
    fn fill<M: GuestMemory>(&mut self, buffers: &[Buffer], memory: &M) -> Result<u32, Broken> {
        if buffers.iter().any(|buffer| !buffer.writable) {
            return Err(Broken::Form("a request for random bytes has a buffer to read (5.4.6.1)"));
        }
        let room = buffers.iter().map(|buffer| u64::from(buffer.length)).sum::<u64>();
        if room == 0 {
            return Err(Broken::Form("a request for random bytes has no room for one (5.4.6.2)"));
        }
        for buffer in buffers {
            buffer.checked(memory)?;
        }
        let mut left = room.min(CHAIN_LIMIT) as u32;
        let mut written = 0;
        for buffer in buffers {
            let wanted = buffer.length.min(left);
            let filled = self.fill_buffer(Buffer { length: wanted, ..*buffer }, memory)?;
            written += filled;
            left -= filled;
            if filled < wanted {
                count(&self.counters.failures, 1);
                break;
            }
        }
        count(&self.counters.bytes, u64::from(written));
        Ok(written)
    }

    /// Fills one buffer, from its start, as far as the host has something to give.
    fn fill_buffer<M: GuestMemory>(&mut self, buffer: Buffer, memory: &M) -> Result<u32, Broken> {
        let Buffer { address, length, .. } = buffer;
        let mut piece = [0; PIECE];
        let mut filled = 0;
        while filled < length {
            let piece = &mut piece[..PIECE.min((length - filled) as usize)];
            if self.entropy.fill(piece).is_err() {
                break;
            }
            // The buffer is in guest memory, so its addresses do not wrap.
            let at = address.0.wrapping_add(u64::from(filled));
            memory
                .write_slice(piece, GuestAddress(at))
                .map_err(|_| Broken::Buffer { address, length })?;
            filled += piece.len() as u32;
        }
        Ok(filled)
    }
}

fn count(counter: &AtomicU64, by: u64) {
    counter.fetch_add(by, Ordering::Relaxed);
}

impl Device for Rng {
    fn id(&self) -> DeviceId {
        DeviceId::ENTROPY
    }

    /// It has no configuration space (5.4.4).
    fn read_config(&self, _: u64, data: &mut [u8]) {
        data.fill(0);
    }

    fn write_config(&mut self, _: u64, _: &[u8]) {}

    /// It has no features of its own (5.4.3).
    fn features(&self) -> Features {
        Features::default()
    }

    fn queue_sizes(&self) -> &[u16] {
        &[QUEUE_SIZE]
    }

    fn activate(&mut self, _: Features) {}

    fn serve<M: GuestMemory>(&mut self, _: usize, ring: &mut Ring<'_, M>) -> Result<(), Broken> {
        while let Some(chain) = ring.take()? {
            let written = self.fill(chain.buffers()?, ring.memory())?;
            ring.complete(chain.head(), written)?;
        }
        Ok(())
    }

    /// It holds no buffer.
    fn reset(&mut self) {}
}

impl fmt::Debug for Rng {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Rng").field("counters", &self.counters).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;
