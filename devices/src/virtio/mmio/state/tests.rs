#![allow(clippy::unwrap_used)]

use proptest::prelude::*;

use super::super::queue::{Address, Position, QueueState};
use super::*;
use crate::state::RestoreError;
use crate::virtio::rng::{self, Rng};
use crate::virtio::testing::{Bench, CountingEntropy, DATA, Descriptor, RAM, register, status};

fn device() -> Rng {
    Rng::new(Box::new(CountingEntropy::of(u64::MAX)))
}

/// A device that has served one chain of 8 bytes, and whose driver has seen to it.
fn used() -> Bench<Rng> {
    let mut bench = Bench::started(device());
    bench.rings(0).offer(&[Descriptor::writable(DATA, 8)]);
    bench.kick(0);
    bench.rings(0).used();
    bench.take_interrupts();
    bench
}

fn restored(state: State<rng::State>) -> Result<Bench<Rng>, RestoreError> {
    let mut bench = Bench::new(device());
    bench.transport.restore(state).map(|()| bench)
}

#[test]
fn a_queue_goes_on_where_it_was() {
    let mut bench = used().migrate(device()).unwrap();

    bench.rings(0).set_used_event(1);
    let head = bench.rings(0).offer(&[Descriptor::writable(DATA, 16)]);
    bench.kick(0);

    assert_eq!(bench.rings(0).used(), [(head.into(), 16)]);
    assert_eq!(bench.rings(0).used_index(), 2);
    assert_eq!((bench.take_interrupts(), bench.line.take()), (1, 1));
}

#[test]
fn what_rang_before_the_save_is_served_after_the_restore() {
    let mut bench = used();
    let head = bench.rings(0).offer(&[Descriptor::writable(DATA, 8)]);

    let mut bench = bench.migrate(device()).unwrap();
    bench.answer();

    assert_eq!(bench.rings(0).used(), [(head.into(), 8)]);
}

#[test]
fn a_pending_interrupt_is_pending_and_raised_again() {
    let mut bench = used();
    bench.transport.config_changed();
    let generation = bench.read(register::CONFIG_GENERATION);

    let mut bench = bench.migrate(device()).unwrap();

    assert_eq!((bench.take_interrupts(), bench.line.take()), (2, 1));
    assert_eq!(bench.read(register::CONFIG_GENERATION), generation);
}

#[test]
fn a_driver_goes_on_with_its_initialisation() {
    let mut bench = Bench::new(device());
    assert!(bench.negotiate(Features::VERSION_1.with(Features::EVENT_IDX)));
    assert!(bench.set_up(0, 16));
    let head = bench.rings(0).offer(&[Descriptor::writable(DATA, 8)]);

    let mut bench = bench.migrate(device()).unwrap();
    assert!(bench.doorbells.take().is_empty());
    bench.start();

    assert_eq!(bench.rings(0).used(), [(head.into(), 8)]);
}

#[test]
fn a_broken_device_stays_broken_until_it_is_reset() {
    let mut bench = used();
    bench.rings(0).make_available(u16::MAX);
    bench.kick(0);
    bench.take_interrupts();

    let mut bench = bench.migrate(device()).unwrap();

    assert_eq!(bench.status() & status::NEEDS_RESET, status::NEEDS_RESET);
    assert!(!bench.transport.is_active());
    bench.initialise(Features::VERSION_1);
    assert!(bench.transport.is_active());
}

#[test]
fn a_device_that_offers_less_refuses_what_was_settled() {
    let mut state = used().transport.save();
    state.features.driver |= 1;

    let error = restored(state).err().unwrap();

    assert!(
        matches!(error, RestoreError::Configuration { field, .. } if field.contains("features"))
    );
}

#[test]
fn another_number_or_size_of_queues_is_another_configuration() {
    let state = used().transport.save();
    let mut none = state.clone();
    none.queues.clear();
    let mut larger = state;
    larger.queues[0].max *= 2;

    for state in [none, larger] {
        assert!(matches!(restored(state), Err(RestoreError::Configuration { .. })));
    }
}

#[test]
fn a_state_that_no_driver_leads_to_is_refused_and_leaves_a_device_after_reset() {
    let damage: [fn(&mut State<rng::State>); 8] = [
        |state| state.status = DRIVER_OK,
        |state| state.status |= 1 << 31,
        |state| state.activated = false,
        |state| state.status &= !DRIVER_OK,
        |state| state.interrupts = 4,
        |state| state.queues[0].size = 3,
        |state| state.queues[0].used = Address(RAM + 1),
        |state| state.queues[0].descriptors = Address(!0xf),
    ];
    for damage in damage {
        let mut state = used().transport.save();
        damage(&mut state);
        let mut bench = Bench::started(device());

        let error = bench.transport.restore(state).unwrap_err();

        assert!(matches!(error, RestoreError::Damaged { .. }), "{error}");
        assert_eq!(bench.transport.save(), Bench::new(device()).transport.save());
        bench.initialise(Features::VERSION_1);
        assert!(bench.transport.is_active());
    }
}

fn address() -> impl Strategy<Value = Address> {
    let near = (0_u64..0x2000).prop_map(|offset| RAM + 4 * offset);
    prop_oneof![4 => near, 1 => any::<u64>()].prop_map(Address)
}

fn queue() -> impl Strategy<Value = QueueState> {
    let max = prop_oneof![8 => Just(256_u16), 1 => any::<u16>()];
    let size = prop_oneof![4 => (0_u32..10).prop_map(|order| 1 << order), 1 => any::<u32>()];
    let position = (any::<u16>(), any::<u16>())
        .prop_map(|(next_available, next_used)| Position { next_available, next_used });
    (max, size, address(), address(), address(), proptest::option::of(position)).prop_map(
        |(max, size, descriptors, available, used, ready)| QueueState {
            max,
            size,
            descriptors,
            available,
            used,
            ready,
        },
    )
}

fn state() -> impl Strategy<Value = State<rng::State>> {
    let status = prop_oneof![
        4 => proptest::sample::select(vec![0, 1, 3, 11, 15, 0x8f]),
        1 => any::<u32>(),
    ];
    let driver = prop_oneof![3 => Just(1 << 32), 3 => Just(7 << 28), 1 => any::<u64>()];
    let features = (any::<u32>(), any::<u32>(), driver, proptest::bool::weighted(0.1)).prop_map(
        |(device_sel, driver_sel, driver, beyond)| Negotiation {
            device_sel,
            driver_sel,
            driver,
            beyond,
        },
    );
    let queues = prop_oneof![
        8 => proptest::collection::vec(queue(), 1),
        1 => proptest::collection::vec(queue(), 0..3),
    ];
    let interrupts = prop_oneof![8 => 0_u32..4, 1 => any::<u32>()];
    (
        (status, proptest::bool::weighted(0.2), any::<bool>(), features),
        (any::<u32>(), queues, interrupts, any::<u32>()),
    )
        .prop_map(|((status, broken, activated, features), rest)| {
            let (queue_sel, queues, interrupts, config_generation) = rest;
            let device = rng::State {};
            State {
                status,
                broken,
                activated,
                features,
                queue_sel,
                queues,
                interrupts,
                config_generation,
                device,
            }
        })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1024))]

    #[test]
    fn a_hostile_state_is_refused_or_gives_a_device_that_works(state in state()) {
        let Ok(mut bench) = restored(state.clone()) else { return Ok(()) };

        prop_assert_eq!(bench.transport.save(), state.clone());
        prop_assert_eq!(bench.status() & !status::NEEDS_RESET, state.status);
        bench.answer();
        bench.kick(0);
        bench.transport.config_changed();
        let mut bench = bench.migrate(device()).unwrap();
        bench.initialise(Features::VERSION_1);
        let head = bench.rings(0).offer(&[Descriptor::writable(DATA, 8)]);
        bench.kick(0);
        prop_assert_eq!(bench.rings(0).used(), [(u32::from(head), 8)]);
    }
}
