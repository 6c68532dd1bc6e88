//! The serial port: an ns16550a with 64 bytes of receive FIFO.
//!
//! The register model is [`vm_superio::Serial`]; this module gives it a register window, counts,
//! and notifies the event loop when the guest has room for more input.
//!
//! # References
//! - National Semiconductor, *PC16550D Universal Asynchronous Receiver/Transmitter with FIFOs*
//! - Linux `drivers/tty/serial/8250/8250_port.c`

use std::cell::{Cell, RefCell};
use std::fmt;
use std::io::{self, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use serde::{Deserialize, Serialize};
use vm_superio::Trigger;
use vm_superio::serial::{SerialEvents, SerialState};

use crate::bus::MmioDevice;
use crate::ports::IrqLine;
use crate::state::{RestoreError, Stateful, check};

/// Registers of the model: 8, one byte each.
const REGISTERS: u64 = 8;
/// Modem control register, and its loopback bit.
const MCR: u8 = 4;
const MCR_LOOPBACK: u8 = 1 << 4;
/// The interrupts that can be enabled (IER).
const INTERRUPTS: u8 = 0b1111;
/// Interrupt identification (IIR): none pending, or the transmitter's and the receiver's.
const NONE_PENDING: u8 = 1 << 0;
const PENDING: u8 = 0b110;
/// Interrupt enable (IER): the transmitter's, which has the same place in IIR, and the receiver's.
const TRANSMITTER: u8 = 1 << 1;
const RECEIVER: u8 = 1 << 0;
/// Interrupt identification (IIR): the receiver's.
const RECEIVED: u8 = 1 << 2;
/// Line status (LSR): there is input. The transmitter is always empty.
const DATA_READY: u8 = 1 << 0;

/// What has passed through a serial port. Readable at any time, by any thread.
#[derive(Debug, Default)]
pub struct Counters {
    /// Bytes that the guest sent and the output took.
    pub sent: AtomicU64,
    /// Bytes that the guest sent and the output refused: they are gone.
    pub lost: AtomicU64,
    /// Bytes put in the guest's FIFO.
    pub received: AtomicU64,
    /// Interrupts that could not be raised.
    pub irq_failures: AtomicU64,
}

fn count(counter: &AtomicU64, by: u64) {
    counter.fetch_add(by, Ordering::Relaxed);
}

/// A serial port.
pub struct Serial {
    model: vm_superio::Serial<Line, Events, Box<dyn Write + Send>>,
    counters: Arc<Counters>,
    drained: Option<Box<dyn Fn() + Send>>,
    /// While the guest tests its port, the receiver gets what the transmitter sends and nothing else.
    loopback: bool,
}

impl Serial {
    /// A port that raises `irq` and sends to `out`, byte by byte, flushing each.
    ///
    /// `out` should not block for long: a vCPU waits for it. Bytes that it refuses are counted as
    /// lost.
    pub fn new(irq: Box<dyn IrqLine>, out: Box<dyn Write + Send>) -> Serial {
        let counters = Arc::new(Counters::default());
        let events = Events { counters: counters.clone(), emptied: Cell::new(false) };
        let line = Line { irq: RefCell::new(Some(irq)), counters: counters.clone() };
        let model = vm_superio::Serial::with_events(line, events, out);
        Serial { model, counters, drained: None, loopback: false }
    }

    /// The port's counters.
    pub fn counters(&self) -> Arc<Counters> {
        self.counters.clone()
    }

    /// Calls `hook` whenever the guest has emptied the FIFO, or has room again after loopback.
    ///
    /// The hook runs on the guest's vCPU thread with the port locked: it should only wake a thread,
    /// and must not call the port. It replaces an earlier one.
    pub fn on_drained(&mut self, hook: Box<dyn Fn() + Send>) {
        self.drained = Some(hook);
    }

    /// How many bytes [`Serial::receive`] would take: 0 to 64.
    pub fn capacity(&self) -> usize {
        if self.loopback { 0 } else { self.model.fifo_capacity() }
    }

    /// Puts input in the FIFO and interrupts the guest if it asked for that. Returns how many of
    /// `bytes` fitted; offer the rest again when the hook of [`Serial::on_drained`] calls.
    pub fn receive(&mut self, bytes: &[u8]) -> usize {
        let fitting = bytes.len().min(self.capacity());
        if fitting == 0 {
            return 0;
        }
        // The model fails on a full FIFO, which was ruled out, and on its interrupt line, which
        // never fails (Line).
        let taken = self.model.enqueue_raw_bytes(&bytes[..fitting]).unwrap_or(0);
        count(&self.counters.received, taken as u64);
        taken
    }

    fn set_loopback(&mut self, on: bool) {
        let ended = self.loopback && !on;
        self.loopback = on;
        if ended && self.capacity() > 0 {
            self.notify();
        }
    }

    fn notify(&self) {
        if let Some(hook) = &self.drained {
            hook();
        }
    }
}

/// The state of a serial port. Line and modem status follow from the rest.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct State {
    divisor: [u8; 2],
    interrupt_enable: u8,
    interrupt_identification: u8,
    line_control: u8,
    modem_control: u8,
    scratch: u8,
    /// Input that the guest has not read.
    input: Vec<u8>,
}

impl Stateful for Serial {
    type State = State;

    fn save(&self) -> State {
        let model = self.model.state();
        State {
            divisor: [model.baud_divisor_low, model.baud_divisor_high],
            interrupt_enable: model.interrupt_enable,
            interrupt_identification: enabled_of(
                model.interrupt_identification,
                model.interrupt_enable,
            ),
            line_control: model.line_control,
            modem_control: model.modem_control,
            scratch: model.scratch,
            input: model.in_buffer,
        }
    }

    /// Raises an edge for each interrupt that is pending.
    fn restore(&mut self, state: State) -> Result<(), RestoreError> {
        let identified = state.interrupt_identification;
        check(
            state.interrupt_enable & !INTERRUPTS == 0,
            "the interrupt enable",
            "has unknown bits",
        )?;
        check(
            identified == NONE_PENDING || identified != 0 && identified & !PENDING == 0,
            "the interrupt identification",
            "is none that there is",
        )?;
        check(state.input.len() <= FIFO_SIZE, "the input", "is longer than the receive FIFO")?;
        let [baud_divisor_low, baud_divisor_high] = state.divisor;
        let ready = if state.input.is_empty() { 0 } else { DATA_READY };
        let default = SerialState::default();
        let model = SerialState {
            baud_divisor_low,
            baud_divisor_high,
            interrupt_enable: state.interrupt_enable,
            interrupt_identification: enabled_of(identified, state.interrupt_enable),
            line_control: state.line_control,
            line_status: default.line_status | ready,
            modem_control: state.modem_control,
            scratch: state.scratch,
            in_buffer: state.input,
            ..default
        };
        self.loopback = model.modem_control & MCR_LOOPBACK != 0;
        self.set_model(&model);
        Ok(())
    }
}

/// What IIR identifies of this while these interrupts are enabled (IER). The model raises no edge for an interrupt that is
/// identified already: one that is kept while it is masked would not be raised again when the guest enables it.
fn enabled_of(identified: u8, enabled: u8) -> u8 {
    let transmitter = if enabled & TRANSMITTER == 0 { 0 } else { TRANSMITTER };
    let receiver = if enabled & RECEIVER == 0 { 0 } else { RECEIVED };
    match identified & (transmitter | receiver) {
        0 => NONE_PENDING,
        pending => pending,
    }
}

impl Serial {
    /// Replaces the registers of the model, which can be given only when one is made, and keeps its ports.
    fn set_model(&mut self, state: &SerialState) {
        let line = self.model.interrupt_evt().take();
        let events = Events { counters: self.counters.clone(), emptied: Cell::new(false) };
        let out = std::mem::replace(self.model.writer_mut(), Box::new(io::sink()));
        // The model fails on a long input, which was ruled out, and on its interrupt line, which never
        // fails (Line).
        if let Ok(model) = vm_superio::Serial::from_state(state, line, events, out) {
            self.model = model;
        }
    }
}

impl MmioDevice for Serial {
    /// Registers are one byte wide: a wider read gets the register at `offset` and zeros.
    fn read(&mut self, offset: u64, data: &mut [u8]) {
        data.fill(0);
        let Some(first) = data.first_mut().filter(|_| offset < REGISTERS) else {
            return;
        };
        let had_input = self.model.fifo_capacity() < FIFO_SIZE;
        self.model.events().emptied.set(false);
        *first = self.model.read(offset as u8);
        if had_input && self.model.events().emptied.get() {
            self.notify();
        }
    }

    /// Registers are one byte wide: of a wider write the first byte counts.
    fn write(&mut self, offset: u64, data: &[u8]) {
        let Some(value) = data.first().copied().filter(|_| offset < REGISTERS) else {
            return;
        };
        let register = offset as u8;
        // The only failure is that of the output, and Events has counted the byte as lost.
        let _ = self.model.write(register, value);
        if register == MCR {
            self.set_loopback(value & MCR_LOOPBACK != 0);
        }
    }
}

impl fmt::Debug for Serial {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Serial")
            .field("capacity", &self.capacity())
            .field("counters", &self.counters)
            .finish_non_exhaustive()
    }
}

/// Size of the model's receive FIFO in bytes; a test holds it to the model.
const FIFO_SIZE: usize = 64;

/// The interrupt line, for the model. A failure is counted here and not passed on: the model would
/// stop in the middle of a register access for it.
struct Line {
    /// Until another model has it.
    irq: RefCell<Option<Box<dyn IrqLine>>>,
    counters: Arc<Counters>,
}

impl Line {
    /// The same line, for another model.
    fn take(&self) -> Self {
        Self { irq: RefCell::new(self.irq.take()), counters: self.counters.clone() }
    }
}

impl Trigger for Line {
    type E = io::Error;

    fn trigger(&self) -> io::Result<()> {
        let failed = self.irq.borrow().as_ref().is_some_and(|irq| irq.trigger().is_err());
        if failed {
            count(&self.counters.irq_failures, 1);
        }
        Ok(())
    }
}

/// What the model reports.
struct Events {
    counters: Arc<Counters>,
    emptied: Cell<bool>,
}

impl SerialEvents for Events {
    fn buffer_read(&self) {}

    fn out_byte(&self) {
        count(&self.counters.sent, 1);
    }

    fn tx_lost_byte(&self) {
        count(&self.counters.lost, 1);
    }

    fn in_buffer_empty(&self) {
        self.emptied.set(true);
    }
}

#[cfg(test)]
mod tests;
