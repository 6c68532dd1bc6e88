//! The host's randomness, and the limits on what a guest takes of it.

use std::io;

use devices::ports::Entropy;
use devices::virtio::Device;
use event_manager::{EventOps, EventSet, Events, MutEventSubscriber};
use rustix::io::Errno;
use rustix::rand::{GetRandomFlags, getrandom};

use super::queues::{QUEUES_END, QueueEvents};
use super::rate_limiter::SharedLimiter;
use crate::error::say;

/// Fills `bytes` from the host's random number generator. Early in the host's own boot it waits until
/// that is ready.
///
/// # Errors
/// When the host has none.
pub(crate) fn fill(bytes: &mut [u8]) -> Result<(), Errno> {
    let mut rest = bytes;
    while !rest.is_empty() {
        match getrandom(&mut *rest, GetRandomFlags::empty()) {
            Ok(n) => rest = &mut rest[n..],
            Err(Errno::INTR) => {}
            Err(errno) => return Err(errno),
        }
    }
    Ok(())
}

/// The host's random number generator, for a device.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct HostEntropy;

impl Entropy for HostEntropy {
    fn fill(&mut self, bytes: &mut [u8]) -> io::Result<()> {
        Ok(fill(bytes)?)
    }
}

/// The number of the limiter's event.
const LIMITER: u32 = QUEUES_END;

/// Serves the queue of a device when it is signalled, and when its limiter opens.
pub(crate) struct LimitedQueue<D: Device> {
    queues: QueueEvents<D>,
    limiter: SharedLimiter,
}

impl<D: Device> LimitedQueue<D> {
    /// The queue of a device that asks this limiter.
    pub(crate) fn new(queues: QueueEvents<D>, limiter: SharedLimiter) -> Self {
        Self { queues, limiter }
    }
}

impl<D: Device> MutEventSubscriber for LimitedQueue<D> {
    fn init(&mut self, ops: &mut EventOps<'_>) {
        self.queues.init(ops);
        let watched = ops.add(Events::with_data_raw(self.limiter.timer(), LIMITER, EventSet::IN));
        if let Err(error) = watched {
            say(&format!("the entropy source may get stuck at its limits: {error}"));
        }
    }

    fn process(&mut self, events: Events, ops: &mut EventOps<'_>) {
        if events.data() != LIMITER {
            return self.queues.process(events, ops);
        }
        let due = self.limiter.take_timer();
        let gate = self.queues.gate().clone();
        // While the gate is closed nothing is served: it signals every queue when it opens.
        if let Some(_turn) = gate.enter().filter(|_| due) {
            self.queues.serve(0);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_length_is_filled() {
        let mut none: [u8; 0] = [];
        assert!(HostEntropy.fill(&mut none).is_ok());
        let mut bytes = vec![0; 100_000];
        assert!(HostEntropy.fill(&mut bytes).is_ok());
        // 64 zero bytes in a row do not happen by chance.
        assert!(bytes.chunks_exact(64).all(|piece| piece.iter().any(|byte| *byte != 0)));
    }
}
