//! The devices that are registers alone: serial port, clock, GPIO controller.

use std::io::{self, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use devices::bus::MmioDevice;
use devices::gpio::Gpio;
use devices::ports::{IrqLine, LevelLine, WallClock};
use devices::rtc::Rtc;
use devices::serial::Serial;
use devices::state::Stateful;

use crate::input::Input;

/// Accesses of one execution; more find little and cost time.
const MOST_STEPS: usize = 200;

/// An interrupt line, which is cut at times.
#[derive(Clone, Default)]
struct Line(Arc<AtomicU64>);

impl Line {
    fn drive(&self) -> io::Result<()> {
        match self.0.fetch_add(1, Ordering::Relaxed) % 7 {
            6 => Err(io::ErrorKind::Other.into()),
            _ => Ok(()),
        }
    }
}

impl IrqLine for Line {
    fn trigger(&self) -> io::Result<()> {
        self.drive()
    }
}

impl LevelLine for Line {
    fn set(&self, _: bool) -> io::Result<()> {
        self.drive()
    }
}

/// A port's reader, who is gone at times.
struct Reader(u64);

impl Write for Reader {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0 += 1;
        if self.0.is_multiple_of(5) {
            Err(io::ErrorKind::WouldBlock.into())
        } else {
            Ok(bytes.len())
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// A clock that is set to what the input says.
#[derive(Clone, Default)]
struct Clock(Arc<AtomicU64>);

impl WallClock for Clock {
    fn now(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }

    fn set_alarm(&self, _: Option<u64>) {}
}

/// A guest that reads and writes registers, a host that does `host`, and moves to another machine.
#[allow(clippy::unwrap_used)]
fn drive<D: MmioDevice + Stateful>(
    data: &[u8],
    device: impl Fn() -> D,
    mut host: impl FnMut(&mut D, &mut Input<'_>),
) {
    let mut input = Input::new(data);
    let mut model = device();
    for _ in 0..MOST_STEPS {
        if input.is_empty() {
            break;
        }
        match input.below(8) {
            0..=2 => {
                let offset = offset(&mut input);
                let width = input.below(9);
                model.write(offset, input.take(width));
            }
            3..=4 => model.read(offset(&mut input), &mut vec![0; input.below(9)]),
            5 => host(&mut model, &mut input),
            6 => {
                let file = postcard::to_allocvec(&model.save()).unwrap();
                let mut other = device();
                other.restore(postcard::from_bytes(&file).unwrap()).unwrap();
                assert_eq!(postcard::to_allocvec(&other.save()).unwrap(), file);
                model = other;
            }
            _ => {
                let mut file = postcard::to_allocvec(&model.save()).unwrap();
                let at = input.below(256) % file.len();
                file[at] = input.u8();
                if let Ok(state) = postcard::from_bytes(&file) {
                    let mut other = device();
                    let _ = other.restore(state);
                    model = other;
                }
            }
        }
    }
}

/// Mostly a register of the first that there are.
fn offset(input: &mut Input<'_>) -> u64 {
    match input.u8() {
        0xff => input.u64(),
        0xfe => u64::from(input.u16()) % 0x1000,
        register => u64::from(register % 16) * if register & 0x80 == 0 { 1 } else { 4 },
    }
}

pub(super) fn serial(data: &[u8]) {
    let device = || Serial::new(Box::new(Line::default()), Box::new(Reader(0)));
    drive(data, device, |serial, input| {
        let length = input.below(80);
        let bytes = input.take(length);
        let (room, taken) = (serial.capacity(), serial.receive(bytes));
        assert!(taken <= room && taken <= bytes.len());
    });
}

pub(super) fn rtc(data: &[u8]) {
    let clock = Clock::default();
    let device = || Rtc::new(Box::new(clock.clone()), Box::new(Line::default()));
    drive(data, device, |rtc, input| {
        // The host's time, up to the year 2242.
        let now = match input.flag() {
            true => input.u64(),
            false => clock.now() + u64::from(input.u16()),
        };
        clock.0.store(now % (1 << 33), Ordering::Relaxed);
        rtc.on_alarm();
    });
}

pub(super) fn gpio(data: &[u8]) {
    let device = || Gpio::new(Box::new(Line::default()));
    drive(data, device, |gpio, input| {
        gpio.set_power_key(input.flag());
    });
}

pub(super) fn seeds() -> Vec<Vec<u8>> {
    let all = |step: u8, width: u8| {
        (0..16).flat_map(move |register: u8| {
            let mut access = vec![step, register, width];
            access.extend([0x5a; 4].iter().take(if step == 0 { width.into() } else { 0 }));
            access
        })
    };
    let words = |step: u8| {
        (0..16).flat_map(move |register: u8| {
            let mut access = vec![step, register | 0x80, 4];
            access.extend([0xff, 0, 0, 0].iter().take(if step == 0 { 4 } else { 0 }));
            access
        })
    };
    vec![
        all(0, 1).chain(all(3, 1)).chain([5, 20, 1, 2, 3, 6]).collect(),
        words(0).chain(words(3)).chain([5, 1, 6, 5, 0, 6]).collect(),
        words(3).chain([7, 3, 9]).chain(words(0)).collect(),
    ]
}
