//! The real-time clock: a PL031 that counts with the host's clock and has an alarm.
//!
//! The counter is the host's time in seconds plus an offset that the guest sets with RTCLR, modulo
//! 2^32. When it reaches RTCMR, RTCRIS is set and, with RTCIMSC, the interrupt line is high until the
//! guest writes RTCICR. [`vm_superio::Rtc`] has no alarm and forgets the offset when Linux enables the
//! counter, so this model has its own registers.
//!
//! # Differences from the manual
//! The counter runs from the start and with the right time, as if firmware had set and enabled it.
//! RTCCR reads 1, and writes to it have no effect (3.3.4: once enabled, until a reset).
//!
//! # References
//! - Arm DDI 0224, *PrimeCell Real Time Clock (PL031) Technical Reference Manual*
//! - Linux `drivers/rtc/rtc-pl031.c`

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::bus::MmioDevice;
use crate::ports::{LevelLine, WallClock};
use crate::state::{RestoreError, Stateful, check};

/// Width of every register in bytes.
const WIDTH: usize = 4;

/// RTCDR: the counter, read-only.
const DR: u16 = 0x00;
/// RTCMR: what the counter is compared with.
const MR: u16 = 0x04;
/// RTCLR: sets the counter; reads what was written last.
const LR: u16 = 0x08;
/// RTCCR: the counter is enabled.
const CR: u16 = 0x0c;
/// RTCIMSC: 1 lets the interrupt through.
const IMSC: u16 = 0x10;
/// RTCRIS: the counter has reached RTCMR, read-only.
const RIS: u16 = 0x14;
/// RTCMIS: the interrupt is raised, read-only.
const MIS: u16 = 0x18;
/// RTCICR: 1 clears RTCRIS, write-only.
const ICR: u16 = 0x1c;
/// The one bit of CR, IMSC, RIS, MIS and ICR.
const BIT: u32 = 1;
/// RTCPeriphID0 to 3 and RTCPCellID0 to 3.
const ID: u16 = 0xfe0;
const ID_BYTES: [u8; 8] = [0x31, 0x10, 0x04, 0x00, 0x0d, 0xf0, 0x05, 0xb1];

/// The state of a clock. A restored clock counts with the time of its host.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
pub struct State {
    /// The counter minus the host's time.
    offset: u32,
    match_value: u32,
    load_value: u32,
    /// RTCIMSC.
    enabled: bool,
    /// RTCRIS.
    reached: bool,
    /// The host's time at which the counter reaches the match value; `None` once it has, and before the
    /// guest sets either.
    alarm: Option<u64>,
}

/// A real-time clock.
pub struct Rtc {
    clock: Box<dyn WallClock>,
    irq: Box<dyn LevelLine>,
    state: State,
    irq_failures: u64,
}

impl Rtc {
    /// A clock that shows the time of `clock` and drives `irq`. When the alarm of `clock` goes off, its
    /// owner calls [`Rtc::on_alarm`].
    pub fn new(clock: Box<dyn WallClock>, irq: Box<dyn LevelLine>) -> Rtc {
        Rtc { clock, irq, state: State::default(), irq_failures: 0 }
    }

    /// The alarm has gone off, or may have. Spurious calls are harmless.
    pub fn on_alarm(&mut self) {
        if !self.compare()
            && let Some(at) = self.state.alarm
        {
            // The host's clock was set back.
            self.clock.set_alarm(Some(at));
        }
    }

    /// How often the interrupt line could not be driven.
    pub fn irq_failures(&self) -> u64 {
        self.irq_failures
    }

    /// RTCDR.
    fn counter(&self) -> u32 {
        (self.clock.now() as u32).wrapping_add(self.state.offset)
    }

    /// Looks whether the counter has reached the match value. A register access does so, too: the alarm
    /// may be late. Returns whether it has just done so.
    fn compare(&mut self) -> bool {
        let due = self.state.alarm.is_some_and(|at| at <= self.clock.now());
        if due {
            self.state.alarm = None;
            self.state.reached = true;
            self.drive();
        }
        due
    }

    /// Sets the alarm after a change of the counter or of the match value. The comparison is for equality
    /// (2.2.4): a match value that has passed is reached when the counter has wrapped around.
    fn arm(&mut self) {
        let now = self.clock.now();
        let ahead =
            self.state.match_value.wrapping_sub((now as u32).wrapping_add(self.state.offset));
        let at = now.saturating_add(ahead.into());
        self.state.alarm = Some(at);
        if !self.compare() {
            self.clock.set_alarm(Some(at));
        }
    }

    fn masked(&self) -> bool {
        self.state.reached && self.state.enabled
    }

    fn drive(&mut self) {
        if self.irq.set(self.masked()).is_err() {
            self.irq_failures = self.irq_failures.saturating_add(1);
        }
    }

    fn register(&mut self, offset: u16) -> u32 {
        self.compare();
        match offset {
            DR => self.counter(),
            MR => self.state.match_value,
            LR => self.state.load_value,
            CR => BIT,
            IMSC => self.state.enabled.into(),
            RIS => self.state.reached.into(),
            MIS => self.masked().into(),
            ID.. => identification(offset),
            _ => 0,
        }
    }

    fn set_register(&mut self, offset: u16, value: u32) {
        self.compare();
        match offset {
            MR => {
                self.state.match_value = value;
                self.arm();
            }
            LR => {
                self.state.load_value = value;
                self.state.offset = value.wrapping_sub(self.clock.now() as u32);
                self.arm();
            }
            IMSC => {
                self.state.enabled = value & BIT != 0;
                self.drive();
            }
            ICR if value & BIT != 0 => {
                self.state.reached = false;
                self.drive();
            }
            _ => {}
        }
    }
}

impl Stateful for Rtc {
    type State = State;

    fn save(&self) -> State {
        self.state.clone()
    }

    /// An alarm that was due since the save goes off now.
    fn restore(&mut self, state: State) -> Result<(), RestoreError> {
        // The counter reaches the match value at that time, in this turn of its 2^32 s or the next.
        let possible = |at: u64| {
            (at as u32).wrapping_add(state.offset) == state.match_value && at <= LAST_ALARM
        };
        check(state.alarm.is_none_or(possible), "the alarm", "is not when the clock reaches it")?;
        self.state = state;
        self.clock.set_alarm(self.state.alarm);
        if !self.compare() {
            self.drive();
        }
        Ok(())
    }
}

/// The latest time of an alarm that is restored: 34 bits, the year 2514. An alarm is at most 2^32 s ahead
/// of the host's clock.
const LAST_ALARM: u64 = (1 << 34) - 1;

impl MmioDevice for Rtc {
    /// Registers are words: a narrower read gets the low bytes, a wider one zeros above; between
    /// registers and beyond them there are zeros.
    fn read(&mut self, offset: u64, data: &mut [u8]) {
        let word = register(offset).map_or(0, |offset| self.register(offset)).to_le_bytes();
        data.fill(0);
        data.iter_mut().zip(word).for_each(|(to, from)| *to = from);
    }

    /// Registers are words, and only whole words change them.
    fn write(&mut self, offset: u64, data: &[u8]) {
        if let (Some(offset), Some(word)) = (register(offset), data.first_chunk()) {
            self.set_register(offset, u32::from_le_bytes(*word));
        }
    }
}

/// The offset, if a register can be there.
fn register(offset: u64) -> Option<u16> {
    u16::try_from(offset).ok().filter(|offset| usize::from(*offset) % WIDTH == 0)
}

fn identification(offset: u16) -> u32 {
    let index = usize::from(offset - ID) / WIDTH;
    ID_BYTES.get(index).copied().unwrap_or_default().into()
}

impl fmt::Debug for Rtc {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Rtc")
            .field("state", &self.state)
            .field("irq_failures", &self.irq_failures)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;
