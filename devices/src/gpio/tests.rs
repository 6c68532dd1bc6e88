use proptest::prelude::*;

use super::*;
use crate::testing::{BrokenLine, CountingLine, through_a_file};

/// GPIODATA with every line selected.
const ALL: u16 = DATA_LAST & !3;

fn bench() -> (Gpio, CountingLine) {
    let line = CountingLine::default();
    (Gpio::new(Box::new(line.clone())), line)
}

fn read(gpio: &mut Gpio, offset: u16) -> u8 {
    let mut data = [0xff; 4];
    gpio.read(offset.into(), &mut data);
    assert_eq!(data[1..], [0; 3]);
    data[0]
}

fn write(gpio: &mut Gpio, offset: u16, value: u8) {
    gpio.write(offset.into(), &[value, 0xee, 0xee, 0xee]);
}

/// What Linux does for a key: both edges, then the mask (gpio-pl061.c, pl061_irq_type).
fn listen(gpio: &mut Gpio) {
    write(gpio, IS, 0);
    write(gpio, IBE, POWER_KEY);
    write(gpio, IE, POWER_KEY);
}

#[test]
fn a_press_and_a_release_interrupt_a_guest_that_listens() {
    let (mut gpio, line) = bench();
    listen(&mut gpio);

    let pressed = (gpio.set_power_key(true), line.take(), read(&mut gpio, MIS));
    let level = read(&mut gpio, ALL);
    write(&mut gpio, IC, POWER_KEY);
    let released = (gpio.set_power_key(false), line.take(), read(&mut gpio, MIS));

    assert_eq!(pressed, (true, 1, POWER_KEY));
    assert_eq!(level, POWER_KEY);
    assert_eq!(released, (true, 1, POWER_KEY));
    assert_eq!(read(&mut gpio, ALL), 0);
}

#[test]
fn a_press_that_nobody_hears_is_reported_and_stays_readable() {
    let (mut gpio, line) = bench();

    let heard = gpio.set_power_key(true);

    assert!(!heard);
    assert_eq!(line.take(), 0);
    assert_eq!(read(&mut gpio, ALL), POWER_KEY);
}

#[test]
fn a_guest_that_made_the_line_an_output_does_not_listen() {
    let (mut gpio, line) = bench();
    listen(&mut gpio);
    write(&mut gpio, DIR, POWER_KEY);

    assert!(!gpio.set_power_key(true));
    assert_eq!(line.take(), 0);
    assert_eq!(read(&mut gpio, ALL), 0);
}

#[test]
fn holding_the_key_is_one_edge() {
    let (mut gpio, line) = bench();
    listen(&mut gpio);

    gpio.set_power_key(true);
    gpio.set_power_key(true);

    assert_eq!(line.take(), 1);
}

#[test]
fn one_edge_is_enough_for_a_guest_that_wants_one() {
    for (event, edges) in [(POWER_KEY, [1, 0]), (0, [0, 1])] {
        let (mut gpio, line) = bench();
        listen(&mut gpio);
        write(&mut gpio, IBE, 0);
        write(&mut gpio, IEV, event);

        let seen = [true, false].map(|pressed| {
            gpio.set_power_key(pressed);
            write(&mut gpio, IC, 0xff);
            line.take()
        });

        assert_eq!(seen, edges);
    }
}

#[test]
fn an_edge_before_the_mask_interrupts_when_the_mask_opens() {
    let (mut gpio, line) = bench();
    listen(&mut gpio);
    write(&mut gpio, IE, 0);
    gpio.set_power_key(true);

    let masked = (read(&mut gpio, RIS), read(&mut gpio, MIS), line.take());
    write(&mut gpio, IE, POWER_KEY);

    assert_eq!(masked, (POWER_KEY, 0, 0));
    assert_eq!((read(&mut gpio, MIS), line.take()), (POWER_KEY, 1));
}

#[test]
fn a_level_interrupts_as_long_as_it_lasts_and_cannot_be_cleared() {
    let (mut gpio, line) = bench();
    write(&mut gpio, IS, POWER_KEY);
    write(&mut gpio, IEV, POWER_KEY);
    write(&mut gpio, IE, POWER_KEY);
    gpio.set_power_key(true);

    write(&mut gpio, IC, POWER_KEY);
    let held = (read(&mut gpio, MIS), line.take());
    write(&mut gpio, IE, 0);
    write(&mut gpio, IE, POWER_KEY);
    let unmasked = line.take();
    gpio.set_power_key(false);

    assert_eq!(held, (POWER_KEY, 1));
    assert_eq!(unmasked, 1, "a handler that masks and unmasks is interrupted again");
    assert_eq!((read(&mut gpio, MIS), line.take()), (0, 0));
}

#[test]
fn a_low_level_interrupts_as_soon_as_it_is_enabled() {
    let (mut gpio, line) = bench();
    write(&mut gpio, IS, POWER_KEY);

    write(&mut gpio, IE, POWER_KEY);

    assert_eq!((read(&mut gpio, MIS), line.take()), (POWER_KEY, 1));
}

#[test]
fn outputs_change_only_the_lines_that_the_address_selects() {
    let (mut gpio, _) = bench();
    write(&mut gpio, DIR, 0xff);
    write(&mut gpio, ALL, 0b1010_1010);

    write(&mut gpio, 0b0000_1111 << 2, 0b0101_0101);

    assert_eq!(read(&mut gpio, ALL), 0b1010_0101);
    assert_eq!(read(&mut gpio, 0b0000_0111 << 2), 0b101);
    assert_eq!(read(&mut gpio, 0), 0);
}

#[test]
fn a_cut_interrupt_line_is_counted() {
    let mut gpio = Gpio::new(Box::new(BrokenLine));
    listen(&mut gpio);
    assert_eq!(gpio.irq_failures(), 0);

    assert!(gpio.set_power_key(true));

    assert_eq!(gpio.irq_failures(), 1);
    assert!(format!("{gpio:?}").contains("irq_failures: 1"));
}

#[test]
fn carries_the_identification_that_linux_matches() {
    let (mut gpio, _) = bench();

    let id: Vec<_> = (0..8).map(|index| read(&mut gpio, ID + 4 * index)).collect();

    assert_eq!(id, ID_BYTES);
    assert_eq!(read(&mut gpio, 0x1000), 0);
}

#[test]
fn after_reset_every_register_is_zero() {
    let (mut gpio, _) = bench();

    let registers = [ALL, DIR, IS, IBE, IEV, IE, RIS, MIS, IC, AFSEL, 0x424, 0xfdc];

    assert!(registers.iter().all(|offset| read(&mut gpio, *offset) == 0));
}

#[test]
fn odd_offsets_and_empty_accesses_do_nothing() {
    let (mut gpio, _) = bench();

    gpio.write(u64::from(DIR) + 1, &[0xff]);
    gpio.write(u64::from(DIR) + (1 << 16), &[0xff]);
    gpio.write(DIR.into(), &[]);
    gpio.read(DIR.into(), &mut []);

    assert_eq!(read(&mut gpio, DIR), 0);
}

#[test]
fn a_pressed_key_goes_along_and_is_released_elsewhere() {
    let (mut gpio, _) = bench();
    listen(&mut gpio);
    gpio.set_power_key(true);
    write(&mut gpio, IC, POWER_KEY);

    let (mut other, line) = bench();
    let restored = other.restore(through_a_file(&gpio.save()));

    assert_eq!((restored, line.take(), read(&mut other, ALL)), (Ok(()), 0, POWER_KEY));
    assert!(other.set_power_key(false));
    assert_eq!((line.take(), read(&mut other, MIS)), (1, POWER_KEY));
}

#[test]
fn an_edge_that_is_pending_is_raised_again() {
    let (mut gpio, _) = bench();
    listen(&mut gpio);
    gpio.set_power_key(true);

    let (mut other, line) = bench();
    assert_eq!(other.restore(through_a_file(&gpio.save())), Ok(()));

    assert_eq!((line.take(), read(&mut other, MIS)), (1, POWER_KEY));
}

#[test]
fn a_line_that_nothing_drives_is_refused() {
    let (mut gpio, _) = bench();

    assert!(gpio.restore(State { inputs: 1, ..State::default() }).is_err());
    assert_eq!(gpio.save(), State::default());
}

proptest! {
    #[test]
    fn any_registers_are_a_state(registers: [u8; 8], pressed: bool) {
        let [outputs, direction, level_sense, both_edges, event, enabled, alternate, edges] = registers;
        let inputs = if pressed { POWER_KEY } else { 0 };
        let state = State {
            inputs, outputs, direction, level_sense, both_edges, event, enabled, alternate, edges,
        };
        let (mut gpio, line) = bench();

        prop_assert_eq!(gpio.restore(state.clone()), Ok(()));

        prop_assert_eq!(line.take(), usize::from(read(&mut gpio, MIS) != 0));
        prop_assert_eq!(gpio.save(), state);
        gpio.set_power_key(!pressed);
    }

    #[test]
    fn registers_hold_what_is_written(value: u8, index in 0usize..6) {
        let (mut gpio, _) = bench();
        let offset = [DIR, IS, IBE, IEV, IE, AFSEL][index];
        write(&mut gpio, offset, value);
        prop_assert_eq!(read(&mut gpio, offset), value);
    }

    #[test]
    fn status_and_identification_are_read_only(value: u8, index in 0usize..4) {
        let (mut gpio, _) = bench();
        let offset = [RIS, MIS, ID, ID + 4][index];
        let before = read(&mut gpio, offset);
        write(&mut gpio, offset, value);
        prop_assert_eq!(read(&mut gpio, offset), before);
    }

    #[test]
    fn data_reads_and_writes_are_masked_by_the_address(first: u8, second: u8, mask: u8, shown: u8) {
        let (mut gpio, _) = bench();
        write(&mut gpio, DIR, 0xff);
        write(&mut gpio, ALL, first);
        write(&mut gpio, u16::from(mask) << 2, second);
        let expected = first & !mask | second & mask;
        prop_assert_eq!(read(&mut gpio, u16::from(shown) << 2), expected & shown);
    }

    #[test]
    fn every_new_reason_is_an_edge_and_nothing_else_is(
        steps: Vec<(u16, u8, Option<bool>)>,
    ) {
        let (mut gpio, line) = bench();
        for (offset, value, key) in steps {
            let before = read(&mut gpio, MIS);
            match key {
                Some(pressed) => {
                    let listens = read(&mut gpio, IE) & !read(&mut gpio, DIR) & POWER_KEY != 0;
                    prop_assert_eq!(gpio.set_power_key(pressed), listens);
                }
                None => write(&mut gpio, offset & 0x43f, value),
            }
            let after = read(&mut gpio, MIS);
            prop_assert_eq!(after, read(&mut gpio, RIS) & read(&mut gpio, IE));
            prop_assert_eq!(line.take(), usize::from(after & !before != 0));
        }
    }

    #[test]
    fn no_access_panics(accesses: Vec<(u64, Vec<u8>, bool)>) {
        let (mut gpio, _) = bench();
        for (offset, mut data, write) in accesses {
            match write {
                true => gpio.write(offset, &data),
                false => gpio.read(offset % 0x1000, &mut data),
            }
        }
    }
}
