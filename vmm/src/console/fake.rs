//! A serial port without a machine, and the guest's side of it.
#![allow(clippy::unwrap_used)]

use std::fs::File;
use std::io;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use devices::bus::MmioDevice;
use devices::ports::IrqLine;
use devices::serial::Serial;
use event_manager::{EventManager, MutEventSubscriber};
use rustix::pipe::PipeFlags;

struct NoIrq;

impl IrqLine for NoIrq {
    fn trigger(&self) -> io::Result<()> {
        Ok(())
    }
}

pub(super) fn serial() -> Arc<Mutex<Serial>> {
    Arc::new(Mutex::new(Serial::new(Box::new(NoIrq), Box::new(io::sink()))))
}

/// The reading and the writing end of a pipe.
pub(super) fn pipe() -> (File, File) {
    let (reader, writer) = rustix::pipe::pipe_with(PipeFlags::CLOEXEC).unwrap();
    (reader.into(), writer.into())
}

/// Takes what the port has received, as a guest's driver does.
pub(super) fn guest_reads(serial: &Mutex<Serial>) -> Vec<u8> {
    const DATA: u64 = 0;
    const LINE_STATUS: u64 = 5;
    const DATA_READY: u8 = 1;
    let mut serial = serial.lock().unwrap();
    let mut read = |register| {
        let mut byte = [0];
        serial.read(register, &mut byte);
        byte[0]
    };
    let mut taken = Vec::new();
    while read(LINE_STATUS) & DATA_READY != 0 {
        taken.push(read(DATA));
    }
    taken
}

/// How many bytes wait in the port's FIFO.
pub(super) fn waiting(serial: &Mutex<Serial>) -> usize {
    64 - serial.lock().unwrap().capacity()
}

/// Turns an event loop until something is so; at least once.
pub(super) fn turn_until<S: MutEventSubscriber>(
    events: &mut EventManager<S>,
    mut done: impl FnMut() -> bool,
) {
    let deadline = Instant::now() + Duration::from_secs(30);
    loop {
        events.run_with_timeout(10).unwrap();
        if done() {
            return;
        }
        assert!(Instant::now() < deadline, "the event loop does not get there");
    }
}

/// Turns an event loop until it has nothing to do, and says how many events there were.
pub(super) fn settle<S: MutEventSubscriber>(events: &mut EventManager<S>) -> usize {
    let mut seen = 0;
    loop {
        match events.run_with_timeout(0).unwrap() {
            0 => return seen,
            n => seen += n,
        }
        assert!(seen < 10_000, "the event loop is busy for ever");
    }
}
