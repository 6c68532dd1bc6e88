//! A driver of a virtio-mmio device, for tests of what serves the device.
#![allow(clippy::unwrap_used)]

use std::io;

use devices::bus::MmioDevice;
use devices::ports::IrqLine;
use devices::virtio::{Device, Features};

use super::queues::Shared;

/// An interrupt line that leads nowhere: these drivers look at their rings.
pub(super) struct Line;

impl IrqLine for Line {
    fn trigger(&self) -> io::Result<()> {
        Ok(())
    }
}

/// Where a driver has a queue: below 4 GiB.
#[derive(Clone, Copy)]
pub(super) struct QueuePlace {
    pub(super) size: u16,
    pub(super) descriptors: u64,
    pub(super) available: u64,
    pub(super) used: u64,
}

/// Starts a device as a driver does that has reset it (3.1.1), with these features and VERSION_1, and these queues from
/// the first on.
pub(super) fn start<D: Device>(transport: &Shared<D>, features: Features, queues: &[QueuePlace]) {
    let features = features.with(Features::VERSION_1).0;
    write(transport, 0x070, 0);
    write(transport, 0x070, 3);
    for (half, value) in [(0, features), (1, features >> 32)] {
        write(transport, 0x024, half);
        write(transport, 0x020, value & 0xffff_ffff);
    }
    write(transport, 0x070, 11);
    for (index, queue) in (0..).zip(queues) {
        let QueuePlace { size, descriptors, available, used } = *queue;
        let places = [(0x080, descriptors), (0x090, available), (0x0a0, used)];
        for (register, value) in [(0x030, index), (0x038, size.into())].into_iter().chain(places) {
            write(transport, register, value);
        }
        write(transport, 0x044, 1);
    }
    write(transport, 0x070, 15);
    assert!(transport.lock().unwrap().is_active());
}

/// Writes a register of 32 bits.
pub(super) fn write<D: Device>(transport: &Shared<D>, register: u64, value: u64) {
    let value = u32::try_from(value).unwrap();
    transport.lock().unwrap().write(register, &value.to_le_bytes());
}
