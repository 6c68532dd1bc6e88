//! The virtio-mmio transport with its queues, in front of the smallest device.

use std::io;

use devices::ports::Entropy;
use devices::virtio::rng::Rng;

use crate::guest::seed::{Buffer, chain, initialise, migrate, register};
use crate::guest::{Machine, Model, drive};
use crate::input::Input;

/// Bytes of one value, until they run out.
struct Bytes(u64);

impl Entropy for Bytes {
    fn fill(&mut self, bytes: &mut [u8]) -> io::Result<()> {
        self.0 = self.0.checked_sub(bytes.len() as u64).ok_or(io::ErrorKind::Other)?;
        bytes.fill(0xa5);
        Ok(())
    }
}

struct Machines;

impl Model for Machines {
    type Device = Rng;

    fn device(&mut self) -> Rng {
        Rng::new(Box::new(Bytes(4 << 20)))
    }

    fn host(&mut self, machine: &mut Machine<Rng>, input: &mut Input<'_>) {
        match input.below(3) {
            0 => machine.config_changed(),
            1 => machine.interrupt_for(input.below(2)),
            _ => {
                machine.with_queue_quietly(0, |_, ring| ring.take().map(drop));
            }
        }
    }
}

pub(super) fn run(data: &[u8]) {
    drive(Machines, data);
}

pub(super) fn seeds() -> Vec<Vec<u8>> {
    let buffers = [Buffer::Writable(64), Buffer::Writable(1)];
    let chains = [chain(0, &buffers), chain(0, &buffers[..1])].concat();
    vec![
        [initialise(0, 1, 3), chains.clone()].concat(),
        [initialise(u64::MAX, 1, 8), chains.clone(), migrate(), chains.clone()].concat(),
        [initialise(1 << 29, 1, 0), chains.clone(), register(0x70, 0), chains].concat(),
    ]
}
