//! The GPIO controller: a PL061 with eight lines, of which one is the power key.
//!
//! The host presses the key to ask the guest to power off. Lines are inputs from the host's side;
//! what the guest drives as output has no effect but reads back.
//!
//! # References
//! - Arm DDI 0190, *PrimeCell General Purpose Input/Output (PL061) Technical Reference Manual*
//! - Linux `drivers/gpio/gpio-pl061.c`, `drivers/input/keyboard/gpio_keys.c`

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::bus::MmioDevice;
use crate::ports::IrqLine;
use crate::state::{RestoreError, Stateful, check};

/// The line that the power key is on; the device tree says the same.
pub const POWER_KEY_LINE: u8 = 3;
const POWER_KEY: u8 = 1 << POWER_KEY_LINE;

/// GPIODATA takes the first KiB: address bits 2 to 9 select the lines of an access.
const DATA_LAST: u16 = 0x3ff;
/// GPIODIR: 1 is output.
const DIR: u16 = 0x400;
/// GPIOIS: 1 is level, 0 is edge.
const IS: u16 = 0x404;
/// GPIOIBE: 1 is both edges.
const IBE: u16 = 0x408;
/// GPIOIEV: 1 is rising edge or high level.
const IEV: u16 = 0x40c;
/// GPIOIE: 1 is enabled.
const IE: u16 = 0x410;
/// GPIORIS: status before the mask, read-only.
const RIS: u16 = 0x414;
/// GPIOMIS: status after the mask, read-only.
const MIS: u16 = 0x418;
/// GPIOIC: 1 clears an edge, write-only.
const IC: u16 = 0x41c;
/// GPIOAFSEL: 1 is hardware control, which nothing here does.
const AFSEL: u16 = 0x420;
/// GPIOPeriphID0 to 3 and GPIOPCellID0 to 3.
const ID: u16 = 0xfe0;
const ID_BYTES: [u8; 8] = [0x61, 0x10, 0x04, 0x00, 0x0d, 0xf0, 0x05, 0xb1];

/// The registers of the controller, one bit a line, which are its state.
///
/// A key that was pressed when the state was saved is pressed again after the restore: release it.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
pub struct State {
    /// Levels that the host drives.
    inputs: u8,
    /// Levels that the guest drives on the lines it has made outputs.
    outputs: u8,
    direction: u8,
    level_sense: u8,
    both_edges: u8,
    event: u8,
    enabled: u8,
    alternate: u8,
    /// Edges seen and not cleared.
    edges: u8,
}

/// A GPIO controller.
pub struct Gpio {
    irq: Box<dyn IrqLine>,
    state: State,
    irq_failures: u64,
}

impl Gpio {
    /// A controller after reset, all lines inputs and low, that raises `irq`.
    pub fn new(irq: Box<dyn IrqLine>) -> Gpio {
        Gpio { irq, state: State::default(), irq_failures: 0 }
    }

    /// Presses or releases the power key, and returns whether the guest takes its interrupt: its line is
    /// an input with its interrupt enabled. A guest that does not yet has missed nothing but
    /// the interrupt: the key's level stays readable.
    ///
    /// A press must last: the guest debounces the key and reads its level some milliseconds after
    /// the interrupt (`gpio_keys.c`; QEMU holds it for 100 ms).
    pub fn set_power_key(&mut self, pressed: bool) -> bool {
        self.update(|gpio| match pressed {
            true => gpio.state.inputs |= POWER_KEY,
            false => gpio.state.inputs &= !POWER_KEY,
        });
        self.state.enabled & !self.state.direction & POWER_KEY != 0
    }

    /// How many interrupts could not be raised.
    pub fn irq_failures(&self) -> u64 {
        self.irq_failures
    }

    /// The level of each line.
    fn levels(&self) -> u8 {
        self.state.outputs & self.state.direction | self.state.inputs & !self.state.direction
    }

    /// GPIORIS: edges are latched, levels are as they are.
    fn raw_status(&self) -> u8 {
        let at_level = !(self.levels() ^ self.state.event);
        self.state.edges & !self.state.level_sense | at_level & self.state.level_sense
    }

    /// GPIOMIS.
    fn masked_status(&self) -> u8 {
        self.raw_status() & self.state.enabled
    }

    /// Applies `change`, latches the edges it makes and raises the interrupt for every line that
    /// wants attention now and did not before. The controller's output is a level; the interrupt
    /// line carries edges, so each new reason is one.
    fn update(&mut self, change: impl FnOnce(&mut Gpio)) {
        let (levels, wanted) = (self.levels(), self.masked_status());
        change(self);
        let changed = levels ^ self.levels();
        let wanted_edge = self.state.both_edges | !(self.levels() ^ self.state.event);
        self.state.edges |= changed & wanted_edge & !self.state.level_sense;
        if self.masked_status() & !wanted != 0 {
            self.interrupt();
        }
    }

    fn interrupt(&mut self) {
        if self.irq.trigger().is_err() {
            self.irq_failures = self.irq_failures.saturating_add(1);
        }
    }

    fn register(&self, offset: u16) -> u8 {
        match offset {
            0..=DATA_LAST => self.levels() & line_mask(offset),
            DIR => self.state.direction,
            IS => self.state.level_sense,
            IBE => self.state.both_edges,
            IEV => self.state.event,
            IE => self.state.enabled,
            RIS => self.raw_status(),
            MIS => self.masked_status(),
            AFSEL => self.state.alternate,
            ID.. => identification(offset),
            _ => 0,
        }
    }

    fn set_register(&mut self, offset: u16, value: u8) {
        match offset {
            0..=DATA_LAST => {
                let mask = line_mask(offset);
                self.state.outputs = self.state.outputs & !mask | value & mask;
            }
            DIR => self.state.direction = value,
            IS => self.state.level_sense = value,
            IBE => self.state.both_edges = value,
            IEV => self.state.event = value,
            IE => self.state.enabled = value,
            IC => self.state.edges &= !value,
            AFSEL => self.state.alternate = value,
            _ => {}
        }
    }
}

impl Stateful for Gpio {
    type State = State;

    fn save(&self) -> State {
        self.state.clone()
    }

    /// Raises an edge if an interrupt is pending.
    fn restore(&mut self, state: State) -> Result<(), RestoreError> {
        check(state.inputs & !POWER_KEY == 0, "the GPIO inputs", "have lines that nothing drives")?;
        self.state = state;
        if self.masked_status() != 0 {
            self.interrupt();
        }
        Ok(())
    }
}

impl MmioDevice for Gpio {
    /// Registers are eight bits in a word: a wider read gets zeros above; between registers and
    /// beyond them there are zeros.
    fn read(&mut self, offset: u64, data: &mut [u8]) {
        data.fill(0);
        if let (Some(first), Some(offset)) = (data.first_mut(), word(offset)) {
            *first = self.register(offset);
        }
    }

    /// Registers are eight bits in a word: of a wider write the first byte counts.
    fn write(&mut self, offset: u64, data: &[u8]) {
        if let (Some(value), Some(offset)) = (data.first(), word(offset)) {
            self.update(|gpio| gpio.set_register(offset, *value));
        }
    }
}

/// The offset, if a register can be there.
fn word(offset: u64) -> Option<u16> {
    u16::try_from(offset).ok().filter(|offset| offset % 4 == 0)
}

/// The lines that an access to GPIODATA at `offset` reaches.
fn line_mask(offset: u16) -> u8 {
    (offset >> 2 & 0xff) as u8
}

fn identification(offset: u16) -> u8 {
    let index = usize::from((offset - ID) / 4);
    ID_BYTES.get(index).copied().unwrap_or_default()
}

impl fmt::Debug for Gpio {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Gpio")
            .field("levels", &self.levels())
            .field("enabled", &self.state.enabled)
            .field("raw_status", &self.raw_status())
            .field("irq_failures", &self.irq_failures)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;
