//! Features and status (2.1, 2.2, 3.1.1).

use super::*;

const OFFERED: u64 = 1 << 28 | 1 << 29 | 1 << 32;
const ALL: u32 = status::ACKNOWLEDGE | status::DRIVER | status::FEATURES_OK | status::DRIVER_OK;

#[test]
fn the_device_offers_its_features_and_the_transports() {
    let mut bench = fresh();
    bench.transport.device_mut().features = Features(1 << 5 | 1 << 63);

    assert_eq!(bench.offered(), Features(OFFERED | 1 << 5 | 1 << 63));
}

#[test]
fn features_beyond_the_63rd_are_not_offered() {
    let mut bench = fresh();

    for select in [2, 3, 0x8000_0000, u32::MAX] {
        bench.write(register::DEVICE_FEATURES_SEL, select);
        assert_eq!(bench.read(register::DEVICE_FEATURES), 0);
    }
}

#[test]
fn every_subset_of_what_is_offered_with_version_1_is_accepted() {
    for subset in 0..16_u64 {
        let mut bench = fresh();
        bench.transport.device_mut().features = Features(1 << 5);
        let bits = [5, 28, 29, 32];
        let chosen = bits.iter().enumerate().filter(|(index, _)| subset >> index & 1 != 0);
        let features = Features(chosen.map(|(_, bit)| 1 << bit).sum());

        let accepted = bench.negotiate(features);

        assert_eq!(accepted, features.contains(Features::VERSION_1), "{features:?}");
        assert_eq!(bench.transport.acked(), if accepted { features } else { Features(0) });
    }
}

#[test]
fn a_feature_that_is_not_offered_is_refused() {
    for bit in (0..64).filter(|bit| OFFERED >> bit & 1 == 0) {
        let mut bench = fresh();

        assert!(!bench.negotiate(Features::VERSION_1.with(Features(1 << bit))), "{bit}");
        assert_eq!(bench.status(), status::ACKNOWLEDGE | status::DRIVER);
    }
}

#[test]
fn a_feature_beyond_the_63rd_is_refused_and_its_absence_is_not() {
    for select in [2, 3, u32::MAX] {
        for (value, accepted) in [(0, true), (1, false), (0x8000_0000, false)] {
            let mut bench = fresh();
            bench.write(register::DRIVER_FEATURES_SEL, select);
            bench.write(register::DRIVER_FEATURES, value);
            bench.write(register::DRIVER_FEATURES_SEL, 1);
            bench.write(register::DRIVER_FEATURES, 1);

            bench.write(register::STATUS, ALL & !status::DRIVER_OK);

            assert_eq!(bench.status() & status::FEATURES_OK != 0, accepted);
        }
    }
}

#[test]
fn a_refused_driver_may_ask_for_less() {
    let mut bench = fresh();
    assert!(!bench.negotiate(Features(1 | 1 << 32)));

    bench.write(register::DRIVER_FEATURES_SEL, 0);
    bench.write(register::DRIVER_FEATURES, 0);
    bench.advance(status::FEATURES_OK);

    assert_eq!(bench.transport.acked(), Features::VERSION_1);
}

#[test]
fn features_are_settled_by_features_ok() {
    let mut bench = fresh();
    assert!(bench.negotiate(Features::VERSION_1));

    for (select, value) in [(0, 1 << 29), (1, 0), (2, 1)] {
        bench.write(register::DRIVER_FEATURES_SEL, select);
        bench.write(register::DRIVER_FEATURES, value);
    }
    bench.start();

    assert_eq!(bench.transport.acked(), Features::VERSION_1);
    assert!(calls(&mut bench).contains(&Call::Activate(Features::VERSION_1)));
}

#[test]
fn a_step_is_taken_after_those_before_it() {
    let cases = [
        (status::DRIVER, 0),
        (status::FEATURES_OK, 0),
        (status::DRIVER_OK, 0),
        (status::ACKNOWLEDGE | status::FEATURES_OK, status::ACKNOWLEDGE),
        (ALL & !status::FEATURES_OK, status::ACKNOWLEDGE | status::DRIVER),
        (ALL, ALL),
    ];
    for (written, expected) in cases {
        let mut bench = fresh();
        bench.write(register::DRIVER_FEATURES_SEL, 1);
        bench.write(register::DRIVER_FEATURES, 1);

        bench.write(register::STATUS, written);

        assert_eq!(bench.status(), expected, "{written:#x}");
        assert_eq!(bench.transport.is_active(), expected == ALL, "{written:#x}");
    }
}

#[test]
fn a_step_is_taken_once() {
    let mut bench = started(Features::default());

    bench.write(register::STATUS, ALL);
    bench.write(register::STATUS, status::DRIVER_OK);

    assert_eq!(calls(&mut bench), []);
}

#[test]
fn bits_are_not_cleared_one_by_one() {
    let mut bench = started(Features::default());

    for value in [status::ACKNOWLEDGE, status::DRIVER_OK, 0x10, 0x100] {
        bench.write(register::STATUS, value);
        assert_eq!(bench.status(), ALL);
    }
}

#[test]
fn bits_that_are_not_the_drivers_are_ignored() {
    let mut bench = fresh();

    bench.write(register::STATUS, !(ALL | status::FAILED));

    assert_eq!(bench.status(), 0);
    assert_eq!(bench.transport.broken(), None);
}

#[test]
fn a_driver_that_has_given_up_begins_again_with_a_reset() {
    let mut bench = fresh();
    assert!(bench.negotiate(Features::VERSION_1));

    bench.write(register::STATUS, ALL | status::FAILED);
    bench.start();

    assert_eq!(bench.status(), ALL & !status::DRIVER_OK | status::FAILED);
    assert!(!bench.transport.is_active());
    bench.initialise(Features::VERSION_1);
    assert!(bench.transport.is_active());
}

#[test]
fn a_device_whose_driver_gives_up_serves_nothing() {
    let mut bench = started(Features::default());
    bench.advance(status::FAILED);
    bench.rings(0).offer(&[ANY]);

    bench.kick(0);

    assert_eq!(calls(&mut bench), []);
    assert!(!bench.transport.is_active());
}

#[test]
fn a_reset_makes_the_device_as_it_was() {
    let mut bench = started(Features::EVENT_IDX);
    bench.rings(0).offer(&[ANY]);
    bench.kick(0);
    bench.transport.config_changed();
    calls(&mut bench);

    bench.write(register::QUEUE_SEL, 1);
    bench.reset();

    assert_eq!(calls(&mut bench), [Call::Reset]);
    assert_eq!(bench.status(), 0);
    assert_eq!(bench.read(register::INTERRUPT_STATUS), 0);
    // Of the first queue, as that is selected again.
    assert_eq!(bench.read(register::QUEUE_NUM_MAX), 8);
    for queue in [0, 1] {
        bench.write(register::QUEUE_SEL, queue);
        assert_eq!(bench.read(register::QUEUE_READY), 0);
    }
    assert_eq!(bench.transport.acked(), Features::default());
    // Nothing of the features is left: VERSION_1 is missing.
    bench.write(register::STATUS, ALL);
    assert_eq!(bench.status(), status::ACKNOWLEDGE | status::DRIVER);
}

#[test]
fn a_reset_leaves_the_generation_of_the_configuration() {
    let mut bench = started(Features::default());
    bench.transport.config_changed();
    let before = bench.read(register::CONFIG_GENERATION);

    bench.reset();

    assert_eq!(bench.read(register::CONFIG_GENERATION), before);
}

#[test]
fn a_device_can_be_started_and_reset_again_and_again() {
    let mut bench = fresh();

    for round in 0..100 {
        bench.initialise(Features::VERSION_1);
        let head = bench.rings(0).offer(&[ANY]);
        bench.kick(0);
        assert_eq!(bench.rings(0).used(), [(head.into(), 0)], "{round}");
        bench.reset();
    }
}
