//! Entropy device (section 5.4).
//!
//! The smallest device, and so an example: configuration space, features, queues, one function a
//! queue, state.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use serde::{Deserialize, Serialize};
use vm_memory::{Bytes, GuestMemory};

use super::{Broken, Buffer, Device, DeviceId, Features, Ring};
use crate::ports::{Entropy, Throttle};
use crate::state::{RestoreError, Stateful};

/// The greatest size of its one queue, requestq (5.4.2). Linux has a single request under way.
const QUEUE_SIZE: u16 = 256;

/// Most bytes written into one chain; 5.4.6.2 lets a device write less than there is room for. A
/// request names up to 4 GiB, and the thread that fills it has others to serve: a full queue is
/// 1 MiB. A driver wants some tens of bytes, and can ask again.
const CHAIN_LIMIT: usize = 4 << 10;

/// What an entropy device has given. Readable at any time, by any thread.
#[derive(Debug, Default)]
pub struct Counters {
    /// Random bytes written into guest memory.
    pub bytes: AtomicU64,
    /// Requests that ended without a byte, as the host had none to give.
    pub failures: AtomicU64,
}

/// The state of an entropy device: it has none.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
pub struct State {}

/// An entropy source for the guest.
pub struct Rng {
    entropy: Box<dyn Entropy>,
    throttle: Option<Box<dyn Throttle>>,
    counters: Arc<Counters>,
}

impl Rng {
    /// A device that hands out what `entropy` gives.
    pub fn new(entropy: Box<dyn Entropy>) -> Self {
        Self { entropy, throttle: None, counters: Arc::default() }
    }

    /// The same with limits on what it gives.
    #[must_use]
    pub fn with_limits(self, throttle: Box<dyn Throttle>) -> Self {
        Self { throttle: Some(throttle), ..self }
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
        let mut bytes = [0; CHAIN_LIMIT];
        let wanted = usize::try_from(room).map_or(CHAIN_LIMIT, |room| room.min(CHAIN_LIMIT));
        let bytes = &mut bytes[..wanted];
        if self.entropy.fill(bytes).is_err() {
            count(&self.counters.failures, 1);
            return Ok(0);
        }
        let mut rest = &*bytes;
        for Buffer { address, length, .. } in buffers {
            let (piece, after) = rest.split_at(rest.len().min(*length as usize));
            let outside = |_| Broken::Buffer { address: *address, length: *length };
            memory.write_slice(piece, *address).map_err(outside)?;
            rest = after;
        }
        count(&self.counters.bytes, wanted as u64);
        Ok(wanted as u32)
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

    fn write_config(&mut self, _: u64, _: &[u8]) -> Option<usize> {
        None
    }

    /// It has no features of its own (5.4.3).
    fn features(&self) -> Features {
        Features::default()
    }

    fn queue_sizes(&self) -> &[u16] {
        &[QUEUE_SIZE]
    }

    fn activate(&mut self, _: Features) {}

    fn serve<M: GuestMemory>(&mut self, _: usize, ring: &mut Ring<'_, M>) -> Result<(), Broken> {
        // A limiter's timer has the queue served again.
        while self.throttle.as_mut().is_none_or(|throttle| throttle.is_open()) {
            let Some(chain) = ring.take()? else { break };
            let written = self.fill(chain.buffers()?, ring.memory())?;
            ring.complete(chain.head(), written)?;
            if let Some(throttle) = &mut self.throttle {
                throttle.spend(written.into());
            }
        }
        Ok(())
    }

    /// It holds no buffer.
    fn reset(&mut self) {}
}

impl Stateful for Rng {
    type State = State;

    fn save(&self) -> State {
        State {}
    }

    fn restore(&mut self, _: State) -> Result<(), RestoreError> {
        Ok(())
    }
}

impl fmt::Debug for Rng {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Rng").field("counters", &self.counters).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;
