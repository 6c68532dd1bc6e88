#![allow(clippy::unwrap_used)]

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc;
use std::time::Duration;

use vm_memory::{GuestAddress, GuestMemoryMmap};

use super::*;
use crate::bus::Bus;
use crate::ports::Acknowledgements;
use crate::testing::CountingLine;
use crate::virtio::rng::Rng;
use crate::virtio::testing::{CountingEntropy, RecordingDoorbells, memory, register, status};

/// How long an access may take before it counts as one that waits: far more than any busy machine needs.
const PATIENCE: Duration = Duration::from_secs(60);

type Shared = Arc<Mutex<Transport<Rng, Arc<GuestMemoryMmap>>>>;

const BASE: GuestAddress = GuestAddress(0x1000);

fn on_a_bus() -> (Shared, Arc<Bus>) {
    let device = Rng::new(Box::new(CountingEntropy::of(0)));
    let line = Box::new(CountingLine::default());
    let transport = Transport::new(device, memory(), line, Box::new(RecordingDoorbells::default()));
    let transport = Arc::new(Mutex::new(transport));
    let mut bus = Bus::new();
    bus.insert(BASE, 0x200, Arc::new(Window::new(transport.clone()))).unwrap();
    (transport, Arc::new(bus))
}

fn read(bus: &Bus, register: u64) -> u32 {
    let mut data = [0xff; 4];
    bus.read(GuestAddress(BASE.0 + register), &mut data).unwrap();
    u32::from_le_bytes(data)
}

fn write(bus: &Bus, register: u64, value: u32) {
    bus.write(GuestAddress(BASE.0 + register), &value.to_le_bytes()).unwrap();
}

#[test]
fn an_interrupt_handler_does_not_wait_for_the_turn_of_a_queue() {
    let (transport, bus) = on_a_bus();
    let turn = transport.lock().unwrap();
    turn.interrupt_status().raise(3);

    let (done, handled) = mpsc::channel();
    std::thread::spawn(move || {
        let pending = read(&bus, register::INTERRUPT_STATUS);
        write(&bus, register::INTERRUPT_ACK, pending & 1);
        done.send((pending, read(&bus, register::INTERRUPT_STATUS))).unwrap();
    });

    assert_eq!(handled.recv_timeout(PATIENCE), Ok((3, 2)));
    drop(turn);
}

#[test]
fn other_registers_are_those_of_the_transport() {
    let (transport, bus) = on_a_bus();

    write(&bus, register::STATUS, status::ACKNOWLEDGE);

    assert_eq!(read(&bus, register::STATUS), status::ACKNOWLEDGE);
    assert_eq!(read(&bus, 0x000), u32::from_le_bytes(*b"virt"));
    assert!(!transport.lock().unwrap().is_active());
}

#[test]
fn the_status_is_one_register_and_32_bits_wide() {
    let (transport, bus) = on_a_bus();
    transport.lock().unwrap().interrupt_status().raise(3);

    // A status that is written, an acknowledgement that is read, and accesses of other widths.
    write(&bus, register::INTERRUPT_STATUS, u32::MAX);
    assert_eq!(read(&bus, register::INTERRUPT_ACK), 0);
    for width in [1, 2, 8] {
        let mut data = vec![0xff; width];
        bus.write(GuestAddress(BASE.0 + register::INTERRUPT_ACK), &data).unwrap();
        bus.read(GuestAddress(BASE.0 + register::INTERRUPT_STATUS), &mut data).unwrap();
        assert_eq!(data, vec![0; width]);
    }

    assert_eq!(read(&bus, register::INTERRUPT_STATUS), 3);
}

#[test]
fn a_reset_takes_pending_interrupts_away() {
    let (transport, bus) = on_a_bus();
    transport.lock().unwrap().interrupt_status().raise(3);

    write(&bus, register::STATUS, 0);

    assert_eq!(read(&bus, register::INTERRUPT_STATUS), 0);
}

/// A hypervisor that has taken an acknowledgement, or not.
#[derive(Clone, Default)]
struct Taken(Arc<AtomicBool>);

impl Acknowledgements for Taken {
    fn take(&self) -> bool {
        self.0.swap(false, Ordering::SeqCst)
    }
}

#[test]
fn an_acknowledgement_that_the_hypervisor_takes_is_one_of_used_buffers() {
    let taken = Taken::default();
    let status = InterruptStatus::acknowledged_through(Box::new(taken.clone()));
    status.raise(3);
    assert_eq!(status.pending(), 3);

    taken.0.store(true, Ordering::SeqCst);

    assert_eq!(status.pending(), 2);
    status.acknowledge(2);
    assert_eq!(status.pending(), 0);
}

#[test]
fn an_interrupt_after_an_acknowledgement_that_the_hypervisor_took_stays_pending() {
    for change in
        [|status: &InterruptStatus| status.raise(1), |status: &InterruptStatus| status.set(1)]
    {
        let taken = Taken::default();
        let status = InterruptStatus::acknowledged_through(Box::new(taken.clone()));
        status.raise(1);
        taken.0.store(true, Ordering::SeqCst);

        change(&status);

        assert_eq!(status.pending(), 1);
    }
}

#[test]
fn an_acknowledgement_of_nothing_does_not_take_the_next_interrupt_away() {
    let taken = Taken::default();
    let status = InterruptStatus::acknowledged_through(Box::new(taken.clone()));
    taken.0.store(true, Ordering::SeqCst);

    status.raise(1);

    assert_eq!(status.pending(), 1);
}
