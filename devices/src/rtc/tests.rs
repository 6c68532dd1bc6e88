#![allow(clippy::unwrap_used)]

use std::io;
use std::sync::{Arc, Mutex};

use proptest::prelude::*;

use super::*;
use crate::testing::through_a_file;

/// 2024-01-01, as the host's time of all tests begins.
const START: u64 = 1_704_067_200;

/// A host's clock that a test sets, and the alarm on it.
#[derive(Clone, Default)]
struct Host(Arc<Mutex<(u64, Option<u64>)>>);

impl Host {
    fn alarm(&self) -> Option<u64> {
        self.0.lock().unwrap().1
    }
}

impl WallClock for Host {
    fn now(&self) -> u64 {
        self.0.lock().unwrap().0
    }

    fn set_alarm(&self, at: Option<u64>) {
        self.0.lock().unwrap().1 = at;
    }
}

/// A line that remembers its level. Clones are the same line.
#[derive(Clone, Default)]
struct Line(Arc<Mutex<bool>>);

impl LevelLine for Line {
    fn set(&self, high: bool) -> io::Result<()> {
        *self.0.lock().unwrap() = high;
        Ok(())
    }
}

/// A line that is cut.
struct Cut;

impl LevelLine for Cut {
    fn set(&self, _: bool) -> io::Result<()> {
        Err(io::Error::other("the line is cut"))
    }
}

struct Bench {
    rtc: Rtc,
    host: Host,
    line: Line,
}

impl Bench {
    fn new() -> Self {
        let (host, line) = (Host::default(), Line::default());
        host.0.lock().unwrap().0 = START;
        let rtc = Rtc::new(Box::new(host.clone()), Box::new(line.clone()));
        Self { rtc, host, line }
    }

    fn read(&mut self, offset: u16) -> u32 {
        let mut data = [0xff; 4];
        self.rtc.read(offset.into(), &mut data);
        u32::from_le_bytes(data)
    }

    fn write(&mut self, offset: u16, value: u32) {
        self.rtc.write(offset.into(), &value.to_le_bytes());
    }

    /// The host's time advances, and its alarm goes off if it is due.
    fn pass(&mut self, seconds: u64) {
        let due = {
            let mut host = self.host.0.lock().unwrap();
            host.0 += seconds;
            let (now, alarm) = *host;
            host.1.take_if(|at| *at <= now).is_some() || alarm.is_some_and(|at| at <= now)
        };
        if due {
            self.rtc.on_alarm();
        }
    }

    fn line(&self) -> bool {
        *self.line.0.lock().unwrap()
    }

    /// RTCRIS, RTCMIS and the line.
    fn status(&mut self) -> (u32, u32, bool) {
        (self.read(RIS), self.read(MIS), self.line())
    }

    /// The same clock in another process, `seconds` later.
    fn migrate(&self, seconds: u64) -> Result<Self, RestoreError> {
        let mut other = Self::new();
        other.host.0.lock().unwrap().0 = self.host.now() + seconds;
        other.rtc.restore(through_a_file(&self.rtc.save()))?;
        Ok(other)
    }
}

#[test]
fn shows_the_time_of_the_host() {
    let mut bench = Bench::new();

    assert_eq!(bench.read(DR), START as u32);
    bench.pass(5);
    assert_eq!(bench.read(DR), START as u32 + 5);
}

#[test]
fn shows_the_time_that_the_guest_has_set_and_goes_on_from_there() {
    let mut bench = Bench::new();

    bench.write(LR, 1_000_000);
    bench.pass(7);

    assert_eq!((bench.read(DR), bench.read(LR)), (1_000_007, 1_000_000));
}

#[test]
fn enabling_the_counter_again_keeps_the_time() {
    let mut bench = Bench::new();
    bench.write(LR, 1_000_000);

    for value in [1, 0, u32::MAX] {
        bench.write(CR, value);
        assert_eq!((bench.read(CR), bench.read(DR)), (1, 1_000_000));
    }
}

#[test]
fn the_alarm_raises_the_line_until_it_is_cleared() {
    let mut bench = Bench::new();
    bench.write(IMSC, 1);
    bench.write(MR, START as u32 + 10);
    assert_eq!(bench.host.alarm(), Some(START + 10));

    bench.pass(9);
    assert_eq!(bench.status(), (0, 0, false));
    bench.pass(1);
    assert_eq!(bench.status(), (1, 1, true));
    bench.pass(100);
    assert_eq!(bench.status(), (1, 1, true));

    bench.write(ICR, 1);
    assert_eq!(bench.status(), (0, 0, false));
    bench.pass(100);
    assert_eq!(bench.status(), (0, 0, false));
}

#[test]
fn an_interrupt_that_is_masked_is_raised_when_it_is_let_through() {
    let mut bench = Bench::new();
    bench.write(MR, START as u32 + 1);
    bench.pass(2);
    assert_eq!(bench.status(), (1, 0, false));

    bench.write(IMSC, 1);
    assert_eq!(bench.status(), (1, 1, true));
    bench.write(IMSC, 0);
    assert_eq!(bench.status(), (1, 0, false));
}

#[test]
fn a_match_value_of_now_is_reached_at_once() {
    let mut bench = Bench::new();
    bench.write(IMSC, 1);

    bench.write(MR, START as u32);

    assert_eq!(bench.status(), (1, 1, true));
}

#[test]
fn a_match_value_that_has_passed_is_reached_when_the_counter_has_wrapped() {
    let mut bench = Bench::new();

    bench.write(MR, START as u32 - 1);

    assert_eq!(bench.host.alarm(), Some(START + u64::from(u32::MAX)));
    bench.pass(u32::MAX.into());
    assert_eq!(bench.status(), (1, 0, false));
}

#[test]
fn setting_the_time_moves_the_alarm() {
    let mut bench = Bench::new();
    bench.write(MR, 1_000_010);

    bench.write(LR, 1_000_000);

    assert_eq!(bench.host.alarm(), Some(START + 10));
}

#[test]
fn a_late_alarm_shows_in_the_registers_before_it_goes_off() {
    let mut bench = Bench::new();
    bench.write(IMSC, 1);
    bench.write(MR, START as u32 + 10);

    bench.host.0.lock().unwrap().0 += 10;

    assert_eq!(bench.status(), (1, 1, true));
    bench.rtc.on_alarm();
    assert_eq!(bench.status(), (1, 1, true));
}

#[test]
fn an_alarm_that_goes_off_early_is_set_again() {
    let mut bench = Bench::new();
    bench.write(MR, START as u32 + 10);
    bench.host.set_alarm(None);

    bench.rtc.on_alarm();

    assert_eq!((bench.read(RIS), bench.host.alarm()), (0, Some(START + 10)));
}

#[test]
fn before_the_guest_sets_one_there_is_no_alarm() {
    let mut bench = Bench::new();
    bench.write(IMSC, 1);

    bench.rtc.on_alarm();

    assert_eq!((bench.status(), bench.host.alarm()), ((0, 0, false), None));
}

#[test]
fn registers_that_are_read_only_keep_their_values() {
    let mut bench = Bench::new();
    let ids = (0..8).map(|index| ID + 4 * index);
    let read_only: Vec<u16> = [DR, RIS, MIS].into_iter().chain(ids).collect();

    for offset in read_only {
        let before = bench.read(offset);
        bench.write(offset, !before);
        assert_eq!(bench.read(offset), before, "{offset:#x}");
    }
}

#[test]
fn one_bit_of_a_register_of_one_bit_counts() {
    let mut bench = Bench::new();
    bench.write(MR, START as u32);
    bench.write(IMSC, !1);
    assert_eq!(bench.read(IMSC), 0);
    bench.write(IMSC, u32::MAX);
    assert_eq!(bench.read(IMSC), 1);

    bench.write(ICR, !1);
    assert_eq!(bench.status(), (1, 1, true));
    assert_eq!(bench.read(ICR), 0);
}

#[test]
fn carries_the_identification_that_linux_matches() {
    let mut bench = Bench::new();

    let id: Vec<_> = (0..8).map(|index| bench.read(ID + 4 * index)).collect();

    assert_eq!(id, [0x31, 0x10, 0x04, 0x00, 0x0d, 0xf0, 0x05, 0xb1]);
}

#[test]
fn a_narrow_write_changes_nothing() {
    let mut bench = Bench::new();

    bench.rtc.write(MR.into(), &[1, 2, 3]);

    assert_eq!(bench.read(MR), 0);
}

#[test]
fn a_wide_access_reaches_one_register() {
    let mut bench = Bench::new();
    let mut data = [0xff; 8];

    bench.rtc.write(MR.into(), &[1, 2, 3, 4, 5, 6, 7, 8]);
    bench.rtc.read(MR.into(), &mut data);

    assert_eq!(data, [1, 2, 3, 4, 0, 0, 0, 0]);
    assert_eq!(bench.read(LR), 0);
}

#[test]
fn between_and_beyond_registers_there_are_zeros() {
    let mut bench = Bench::new();
    bench.write(MR, u32::MAX);

    for offset in [u64::from(MR) + 1, 0x20, 0x800, 0xfdc, 0x1000, 0x1_0004, u64::MAX] {
        let mut data = [0xff; 4];
        bench.rtc.read(offset, &mut data);
        assert_eq!(data, [0; 4], "{offset:#x}");
    }
}

#[test]
fn a_cut_line_is_counted() {
    let mut rtc = Rtc::new(Box::new(Host::default()), Box::new(Cut));
    assert_eq!(rtc.irq_failures(), 0);

    rtc.write(IMSC.into(), &[1, 0, 0, 0]);

    assert_eq!(rtc.irq_failures(), 1);
}

#[test]
fn prints_its_registers() {
    let mut bench = Bench::new();
    bench.write(IMSC, 1);

    assert!(format!("{:?}", bench.rtc).contains("enabled: true"));
}

#[test]
fn a_restored_clock_goes_on_with_the_time_of_its_host() {
    let mut bench = Bench::new();
    bench.write(LR, 500);
    bench.write(MR, 600);
    bench.write(IMSC, 1);

    let mut other = bench.migrate(90).unwrap();

    assert_eq!((other.read(DR), other.read(LR)), (590, 500));
    assert_eq!(other.host.alarm(), Some(START + 100));
    other.pass(10);
    assert_eq!(other.status(), (1, 1, true));
}

#[test]
fn an_alarm_that_was_due_meanwhile_goes_off_at_the_restore() {
    let mut bench = Bench::new();
    bench.write(MR, START as u32 + 10);
    bench.write(IMSC, 1);

    let mut other = bench.migrate(1000).unwrap();

    assert_eq!(other.status(), (1, 1, true));
}

#[test]
fn a_raised_line_is_raised_again() {
    let mut bench = Bench::new();
    bench.write(IMSC, 1);
    bench.write(MR, START as u32);

    assert!(bench.migrate(0).unwrap().line());
}

#[test]
fn an_alarm_that_the_counter_does_not_reach_then_is_refused() {
    let start = START as u32;
    for (match_value, alarm) in [(start, START + 1), (0, 1 << 34), (u32::MAX, u64::MAX)] {
        let mut bench = Bench::new();
        let state = State { match_value, alarm: Some(alarm), ..State::default() };

        assert!(bench.rtc.restore(state).is_err());
        assert_eq!(bench.rtc.save(), State::default());
    }
}

proptest! {
    #[test]
    fn the_line_follows_the_masked_status_whatever_happens(
        steps in prop::collection::vec((0_u16..9, any::<u32>(), 0_u64..5, any::<bool>()), 0..60),
    ) {
        let mut bench = Bench::new();
        for (register, value, seconds, near) in steps {
            let value = if near { bench.read(DR).wrapping_add(value % 4) } else { value };
            bench.write(4 * register, value);
            bench.pass(seconds);
            let (raw, masked, line) = bench.status();
            prop_assert_eq!(masked, raw & bench.read(IMSC));
            prop_assert_eq!(line, masked == 1);
            let other = bench.migrate(0).unwrap();
            prop_assert_eq!(other.rtc.save(), bench.rtc.save());
            prop_assert_eq!(other.line(), line);
        }
    }

    #[test]
    fn a_hostile_state_is_refused_or_gives_a_clock_that_works(
        words: [u32; 3],
        bits: (bool, bool),
        alarm in prop::option::of(any::<u64>()),
        fits: bool,
    ) {
        let [offset, match_value, load_value] = words;
        let right = u64::from(match_value.wrapping_sub(offset));
        let alarm = alarm.map(|at| if fits { right | at << 32 } else { at });
        let state =
            State { offset, match_value, load_value, enabled: bits.0, reached: bits.1, alarm };
        let mut bench = Bench::new();
        if bench.rtc.restore(state).is_ok() {
            bench.pass(1 << 33);
            prop_assert_eq!(bench.status().1 == 1, bench.line());
            bench.write(MR, load_value);
            bench.write(LR, match_value);
        }
    }

    #[test]
    fn no_access_panics(accesses: Vec<(u16, Vec<u8>, bool)>) {
        let mut bench = Bench::new();
        for (offset, mut data, write) in accesses {
            match write {
                true => bench.rtc.write(offset.into(), &data),
                false => bench.rtc.read(offset.into(), &mut data),
            }
        }
    }
}
