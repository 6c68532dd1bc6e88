#![allow(clippy::unwrap_used)]

use std::sync::Mutex;
use std::sync::atomic::AtomicUsize;

use proptest::prelude::*;

use super::*;
use crate::testing::{BrokenLine, CountingLine, through_a_file};

const DATA: u64 = 0;
const IER: u64 = 1;
const LSR: u64 = 5;
const RECEIVE_INTERRUPT: u8 = 1;
const DATA_READY: u8 = 1;

/// An output that can be looked at.
#[derive(Clone, Default)]
struct Screen(Arc<Mutex<Vec<u8>>>);

impl Write for Screen {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// An output that is full.
struct Full;

impl Write for Full {
    fn write(&mut self, _: &[u8]) -> io::Result<usize> {
        Err(io::ErrorKind::StorageFull.into())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// A port with everything around it.
struct Bench {
    serial: Serial,
    line: CountingLine,
    screen: Screen,
    drained: Arc<AtomicUsize>,
}

impl Bench {
    fn new() -> Bench {
        let (line, screen) = (CountingLine::default(), Screen::default());
        let mut serial = Serial::new(Box::new(line.clone()), Box::new(screen.clone()));
        let drained = Arc::new(AtomicUsize::new(0));
        let hook = drained.clone();
        serial.on_drained(Box::new(move || {
            hook.fetch_add(1, Ordering::Relaxed);
        }));
        Bench { serial, line, screen, drained }
    }

    fn read(&mut self, offset: u64) -> u8 {
        let mut data = [0xff];
        self.serial.read(offset, &mut data);
        data[0]
    }

    fn drained(&self) -> usize {
        self.drained.load(Ordering::Relaxed)
    }
}

fn loaded(counter: &AtomicU64) -> u64 {
    counter.load(Ordering::Relaxed)
}

#[test]
fn what_the_guest_sends_comes_out() {
    let mut bench = Bench::new();

    for byte in b"hello" {
        bench.serial.write(DATA, &[*byte]);
    }

    assert_eq!(*bench.screen.0.lock().unwrap(), b"hello");
    assert_eq!(loaded(&bench.serial.counters().sent), 5);
    assert_eq!(loaded(&bench.serial.counters().lost), 0);
}

#[test]
fn what_the_host_sends_arrives_with_an_interrupt() {
    let mut bench = Bench::new();
    bench.serial.write(IER, &[RECEIVE_INTERRUPT]);

    let taken = bench.serial.receive(b"ok");

    assert_eq!((taken, bench.line.take()), (2, 1));
    assert_eq!(bench.read(LSR) & DATA_READY, DATA_READY);
    assert_eq!([bench.read(DATA), bench.read(DATA)], *b"ok");
    assert_eq!(bench.read(LSR) & DATA_READY, 0);
    assert_eq!(loaded(&bench.serial.counters().received), 2);
}

#[test]
fn input_beyond_the_fifo_is_left_to_the_caller() {
    let mut bench = Bench::new();

    let taken = [bench.serial.receive(&[b'x'; 100]), bench.serial.receive(b"y")];

    assert_eq!(taken, [FIFO_SIZE, 0]);
    assert_eq!(bench.serial.capacity(), 0);
    assert_eq!(loaded(&bench.serial.counters().received), FIFO_SIZE as u64);
}

#[test]
fn the_fifo_has_the_size_of_the_models() {
    assert_eq!(Bench::new().serial.capacity(), FIFO_SIZE);
}

#[test]
fn the_hook_is_called_once_when_the_guest_has_emptied_the_fifo() {
    let mut bench = Bench::new();
    bench.serial.receive(b"abc");

    let calls = [(); 3].map(|()| {
        bench.read(DATA);
        bench.drained()
    });

    assert_eq!(calls, [0, 0, 1]);
}

#[test]
fn reading_an_empty_fifo_wakes_nobody() {
    let mut bench = Bench::new();

    bench.read(DATA);

    assert_eq!(bench.drained(), 0);
}

#[test]
fn in_loopback_input_waits_and_the_hook_tells_its_end() {
    let mut bench = Bench::new();
    bench.serial.write(MCR.into(), &[MCR_LOOPBACK]);

    let taken = bench.serial.receive(b"early");
    bench.serial.write(MCR.into(), &[0]);

    assert_eq!((taken, bench.drained()), (0, 1));
    assert_eq!(bench.serial.receive(b"early"), 5);
}

#[test]
fn the_end_of_loopback_alone_makes_room() {
    let mut bench = Bench::new();

    bench.serial.write(MCR.into(), &[0]);
    bench.serial.write(MCR.into(), &[MCR_LOOPBACK]);
    assert_eq!(bench.drained(), 0);

    bench.serial.write(MCR.into(), &[0]);
    bench.serial.receive(&[b'x'; FIFO_SIZE]);
    bench.serial.write(MCR.into(), &[MCR_LOOPBACK]);
    bench.serial.write(MCR.into(), &[0]);
    assert_eq!(bench.drained(), 1, "a FIFO that is full has no room");
}

#[test]
fn an_output_that_refuses_loses_the_byte_and_counts_it() {
    let line = CountingLine::default();
    let mut serial = Serial::new(Box::new(line.clone()), Box::new(Full));
    serial.write(IER, &[2]);
    line.take();

    serial.read(2, &mut [0]);
    serial.write(DATA, b"x");

    assert_eq!(loaded(&serial.counters().lost), 1);
    assert_eq!(loaded(&serial.counters().sent), 0);
    assert_eq!(line.take(), 1, "the guest continues");
}

#[test]
fn a_cut_interrupt_line_is_counted_and_the_data_still_passes() {
    let mut serial = Serial::new(Box::new(BrokenLine), Box::new(io::sink()));
    serial.write(IER, &[RECEIVE_INTERRUPT]);

    let taken = serial.receive(b"z");

    assert_eq!(taken, 1);
    assert_eq!(loaded(&serial.counters().irq_failures), 1);
    assert_eq!(loaded(&serial.counters().received), 1);
}

#[test]
fn a_wide_access_reaches_one_register() {
    let mut bench = Bench::new();
    bench.serial.receive(b"ab");
    let mut data = [0xff; 4];

    bench.serial.read(DATA, &mut data);
    bench.serial.write(DATA, b"wxyz");

    assert_eq!(data, [b'a', 0, 0, 0]);
    assert_eq!(*bench.screen.0.lock().unwrap(), b"w");
}

#[test]
fn beyond_the_registers_there_are_zeros() {
    let mut bench = Bench::new();
    bench.serial.receive(b"a");

    bench.serial.write(0x100, b"x");

    assert_eq!([bench.read(8), bench.read(0x100), bench.read(u64::MAX)], [0; 3]);
    assert_eq!(bench.serial.capacity(), FIFO_SIZE - 1);
    assert!(bench.screen.0.lock().unwrap().is_empty());
}

#[test]
fn an_access_of_no_width_does_nothing() {
    let mut bench = Bench::new();
    bench.serial.receive(b"a");

    bench.serial.read(DATA, &mut []);
    bench.serial.write(DATA, &[]);

    assert_eq!(bench.serial.capacity(), FIFO_SIZE - 1);
}

#[test]
fn a_port_prints_its_state() {
    assert!(format!("{:?}", Bench::new().serial).starts_with("Serial { capacity: 64"));
}

/// Another port with the state of this one.
fn migrated(bench: &Bench) -> Bench {
    let mut other = Bench::new();
    other.serial.restore(through_a_file(&bench.serial.save())).unwrap();
    other
}

#[test]
fn input_and_registers_go_along() {
    let mut bench = Bench::new();
    bench.serial.write(3, &[0x1b]);
    bench.serial.write(7, &[0x5a]);
    bench.serial.write(IER, &[RECEIVE_INTERRUPT]);
    bench.serial.receive(b"hi");

    let mut other = migrated(&bench);

    assert_eq!([other.read(3), other.read(7), other.read(IER)], [0x1b, 0x5a, RECEIVE_INTERRUPT]);
    assert_eq!(other.line.take(), 1);
    assert_eq!([other.read(LSR) & DATA_READY, other.read(DATA), other.read(DATA)], [1, b'h', b'i']);
    assert_eq!(other.read(LSR) & DATA_READY, 0);
    assert_eq!(other.drained(), 1);
}

#[test]
fn the_divisor_goes_along() {
    const DIVISOR_LATCH: u8 = 0x80;
    let mut bench = Bench::new();
    bench.serial.write(3, &[DIVISOR_LATCH]);
    bench.serial.write(DATA, &[0x12]);
    bench.serial.write(IER, &[0x34]);

    let mut other = migrated(&bench);

    assert_eq!([other.read(DATA), other.read(IER)], [0x12, 0x34]);
}

#[test]
fn a_restored_port_keeps_its_output_and_its_line() {
    let mut other = migrated(&Bench::new());

    other.serial.write(DATA, b"x");
    other.serial.write(IER, &[RECEIVE_INTERRUPT]);
    other.serial.receive(b"y");

    assert_eq!(*other.screen.0.lock().unwrap(), b"x");
    assert_eq!((other.line.take(), loaded(&other.serial.counters().sent)), (1, 1));
}

#[test]
fn an_interrupt_that_is_masked_at_the_save_is_raised_when_it_is_enabled() {
    for enable in [RECEIVE_INTERRUPT, TRANSMITTER] {
        let mut bench = Bench::new();
        bench.serial.write(IER, &[enable]);
        bench.serial.receive(b"x");
        bench.serial.write(IER, &[0]);

        let mut other = migrated(&bench);
        assert_eq!(other.line.take(), 0);

        other.serial.write(IER, &[enable]);
        assert_eq!(other.line.take(), 1, "{enable}");
    }
}

#[test]
fn loopback_goes_along() {
    let mut bench = Bench::new();
    bench.serial.write(4, &[MCR_LOOPBACK]);

    let mut other = migrated(&bench);

    assert_eq!(other.serial.capacity(), 0);
    other.serial.write(4, &[0]);
    assert_eq!((other.serial.capacity(), other.drained()), (FIFO_SIZE, 1));
}

#[test]
fn a_state_that_no_port_has_is_refused() {
    let damage: [fn(&mut State); 4] = [
        |state| state.interrupt_enable = 0x10,
        |state| state.interrupt_identification = 0,
        |state| state.interrupt_identification = 3,
        |state| state.input = vec![0; FIFO_SIZE + 1],
    ];
    for damage in damage {
        let mut bench = Bench::new();
        let before = bench.serial.save();
        let mut state = before.clone();
        damage(&mut state);

        assert!(bench.serial.restore(state).is_err());
        assert_eq!(bench.serial.save(), before);
    }
}

proptest! {
    #[test]
    fn a_hostile_state_is_refused_or_gives_a_port_that_works(
        registers: [u8; 7],
        input in prop::collection::vec(any::<u8>(), 0..80),
        accesses: Vec<(u8, u8, bool)>,
    ) {
        let [low, high, enable, identification, line_control, modem_control, scratch] = registers;
        let state = State {
            divisor: [low, high],
            interrupt_enable: enable & 0x1f,
            interrupt_identification: identification & 7,
            line_control,
            modem_control,
            scratch,
            input,
        };
        let mut bench = Bench::new();
        if bench.serial.restore(state.clone()).is_err() {
            return Ok(());
        }

        let State { interrupt_enable, interrupt_identification, .. } = state;
        let interrupt_identification = enabled_of(interrupt_identification, interrupt_enable);
        prop_assert_eq!(bench.serial.save(), State { interrupt_identification, ..state });
        for (offset, value, write) in accesses {
            match write {
                true => bench.serial.write(offset.into(), &[value]),
                false => drop(bench.read(offset.into())),
            }
            bench.serial.receive(&[value]);
        }
        let other = migrated(&bench);
        prop_assert_eq!(other.serial.save(), bench.serial.save());
    }

    #[test]
    fn no_access_panics(accesses: Vec<(u8, Vec<u8>, u8)>) {
        let mut bench = Bench::new();
        for (offset, mut data, kind) in accesses {
            match kind % 3 {
                0 => bench.serial.read((offset % 10).into(), &mut data),
                1 => bench.serial.write((offset % 10).into(), &data),
                _ => {
                    let room = bench.serial.capacity();
                    prop_assert_eq!(bench.serial.receive(&data), data.len().min(room));
                }
            }
            prop_assert!(bench.serial.capacity() <= FIFO_SIZE);
        }
    }

    #[test]
    fn every_byte_arrives_in_order_when_the_rest_is_offered_again(input: Vec<u8>) {
        let mut bench = Bench::new();
        let (mut arrived, mut rest) = (Vec::new(), &input[..]);
        while !rest.is_empty() {
            let calls = bench.drained();
            let taken = bench.serial.receive(rest);
            prop_assert!(taken > 0);
            rest = &rest[taken..];
            while bench.read(LSR) & DATA_READY != 0 {
                arrived.push(bench.read(DATA));
            }
            prop_assert_eq!(bench.drained(), calls + 1);
        }
        prop_assert_eq!(arrived, input);
    }
}
