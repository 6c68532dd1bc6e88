#![allow(clippy::unwrap_used)]

use std::sync::atomic::Ordering;

use super::testing::{config, kernel, machine, spec};
use super::*;
use crate::config::{ClockMode, MemoryBacking, MteMode, MteSection};
use crate::exit_status::ExitStatus;
use crate::hypervisor::fake::FakeHypervisor;
use crate::snapshot::testing::untouched;
use crate::vcpu::fake::{Event, inside};

fn computing(vcpus: u32) -> (FakeHypervisor, Machine) {
    let hypervisor = FakeHypervisor::new((0..vcpus).map(|_| vec![]));
    let machine = machine(&hypervisor, vcpus);
    (hypervisor, machine)
}

fn position(events: &[Event], wanted: Event) -> usize {
    events.iter().position(|event| *event == wanted).unwrap()
}

#[test]
fn a_machine_is_made_in_one_order_and_waits() {
    let (hypervisor, machine) = computing(2);

    let events = hypervisor.guest.events();
    let created = position(&events, Event::Note("VM with MTE"));
    let vcpus = position(&events, Event::Note("vCPUs"));
    let interrupt = position(&events, Event::Note("interrupt"));
    let boot = events.iter().position(|event| matches!(event, Event::BootState { index: 0, .. }));
    assert!(created < vcpus && vcpus < interrupt && interrupt < boot.unwrap(), "{events:?}");
    assert!(!events.iter().any(|event| matches!(event, Event::Entered(..))), "{events:?}");
    assert!(machine.is_paused());
}

#[test]
fn the_first_vcpu_starts_at_the_kernel_with_the_device_tree() {
    let (hypervisor, machine) = computing(2);

    let events = hypervisor.guest.events();
    let states: Vec<_> = events
        .iter()
        .filter_map(|event| match event {
            Event::BootState { index, fdt, .. } => Some((*index, *fdt)),
            _ => None,
        })
        .collect();
    let [(0, fdt)] = states[..] else { panic!("{states:?}") };
    let magic: [u8; 4] = vm_memory::Bytes::read_obj(&**machine.ram(), fdt).unwrap();
    assert_eq!(u32::from_be_bytes(magic), 0xd00d_feed);
}

#[test]
fn the_vcpus_end_before_the_vm_is_gone() {
    for runs in [false, true] {
        let (hypervisor, mut machine) = computing(2);
        if runs {
            machine.resume().unwrap();
            hypervisor.guest.wait_until_inside(2);
        }

        drop(machine);

        let events = hypervisor.guest.events();
        assert_eq!(events.last(), Some(&Event::Note("VM dropped")), "{events:?}");
        let dropped = events.iter().filter(|event| matches!(event, Event::Dropped(_))).count();
        assert_eq!(dropped, 2, "{events:?}");
    }
}

#[test]
fn a_board_that_becomes_no_machine_leaves_nothing() {
    let hypervisor = FakeHypervisor::new([vec![]]);
    let kernel = kernel();
    let spec = spec(config(kernel.path(), 1));

    drop(Board::new(&spec, &hypervisor).unwrap());

    let events = hypervisor.guest.events();
    assert!(events.contains(&Event::Dropped(0)), "{events:?}");
    assert_eq!(events.last(), Some(&Event::Note("VM dropped")), "{events:?}");
}

#[test]
fn the_guest_runs_while_there_is_no_reason_for_a_pause() {
    let (hypervisor, mut machine) = computing(2);
    machine.resume().unwrap();
    hypervisor.guest.wait_until_inside(2);

    machine.pause_for(PauseReason::TagStorage, "none left").unwrap();
    machine.pause().unwrap();
    assert_eq!(inside(&hypervisor.guest.events()), 0);
    assert!(machine.is_paused() && machine.gate.enter().is_none());
    assert_eq!(machine.pause_reason(PauseReason::TagStorage), Some("none left"));

    machine.resume().unwrap();
    assert!(machine.is_paused(), "it waits for tag storage");

    machine.release_pause(PauseReason::TagStorage).unwrap();
    hypervisor.guest.wait_until_inside(2);
    assert!(!machine.is_paused() && machine.gate.enter().is_some());
}

#[test]
fn the_counter_of_a_guest_advances_in_a_pause_where_that_is_asked_for() {
    for (clock, stops) in [(ClockMode::Stop, true), (ClockMode::Advance, false)] {
        let hypervisor = FakeHypervisor::new([vec![]]);
        let kernel = kernel();
        let mut config = config(kernel.path(), 1);
        config.machine_config.as_mut().unwrap().clock = Some(clock);
        let spec = spec(config);
        let board = Board::new(&spec, &hypervisor).unwrap();
        let (output, quiesce) = (Output::nowhere(), Quiesce::default());
        let mut machine = Machine::new(board, &spec, output, quiesce, EventLog::default()).unwrap();
        machine.resume().unwrap();
        hypervisor.guest.wait_until_inside(1);

        machine.pause().unwrap();
        machine.resume().unwrap();

        let events = hypervisor.guest.events();
        let set = events.iter().any(|event| matches!(event, Event::CounterSet(_)));
        assert_eq!(set, stops, "{clock:?}: {events:?}");
    }
}

#[test]
fn a_pause_by_request_that_fails_is_forgotten() {
    let hypervisor = FakeHypervisor::new([vec![]]);
    let mut fails = None;
    hypervisor.with_vcpus(|vcpu| fails = Some(Arc::clone(&vcpu.counter_fails)));
    let fails = fails.unwrap();
    let mut machine = machine(&hypervisor, 1);
    machine.resume().unwrap();
    fails.store(true, Ordering::SeqCst);

    machine.pause().unwrap_err();

    assert!(!machine.is_paused() && !machine.is_unsettled());
    assert!(machine.gate.enter().is_some());
    hypervisor.guest.wait_until_inside(1);
}

#[test]
fn a_pause_of_the_vmms_own_that_fails_is_tried_again() {
    let hypervisor = FakeHypervisor::new([vec![]]);
    let mut fails = None;
    hypervisor.with_vcpus(|vcpu| fails = Some(Arc::clone(&vcpu.counter_fails)));
    let fails = fails.unwrap();
    let mut machine = machine(&hypervisor, 1);
    machine.resume().unwrap();
    fails.store(true, Ordering::SeqCst);
    machine.pause_for(PauseReason::TagStorage, "none left").unwrap_err();
    assert!(!machine.is_paused() && machine.is_unsettled());

    fails.store(false, Ordering::SeqCst);
    machine.settle().unwrap();
    assert!(machine.is_paused() && !machine.is_unsettled());

    fails.store(true, Ordering::SeqCst);
    machine.release_pause(PauseReason::TagStorage).unwrap_err();
    assert!(machine.is_paused() && machine.is_unsettled());
    assert_eq!(machine.pause_reason(PauseReason::TagStorage), None);
    assert!(machine.gate.enter().is_none());

    fails.store(false, Ordering::SeqCst);
    machine.settle().unwrap();
    assert!(!machine.is_paused() && !machine.is_unsettled());
}

#[test]
fn metrics_have_a_section_a_device() {
    let (_hypervisor, machine) = computing(1);

    let metrics = machine.metrics();

    let sections: Vec<_> = metrics.as_object().unwrap().keys().map(String::as_str).collect();
    assert_eq!(sections, ["balloon", "entropy", "memory", "serial", "vcpu"]);
    assert_eq!(metrics["memory"]["guest_bytes"], 64 << 20);
    assert_eq!(metrics["serial"]["output_bytes"], 0);
    assert_eq!(metrics["entropy"]["failures_total"], 0);
}

/// Hosts that cannot give a guest MTE, each in its own way, and what they say.
fn without_mte() -> [(FakeHypervisor, &'static str); 3] {
    let host = || FakeHypervisor::new([vec![]]);
    [
        (FakeHypervisor { mte: Err("its CPUs have no MTE"), ..host() }, "no MTE"),
        (FakeHypervisor { tagged_memory: false, ..host() }, "does not take memfd memory"),
        (FakeHypervisor { enables_mte: false, ..host() }, "does not enable MTE"),
    ]
}

fn with_mte(mode: MteMode) -> Spec {
    let kernel = kernel();
    let mut config = config(kernel.path(), 1);
    config.mte = Some(MteSection { mode });
    config.machine_config.as_mut().unwrap().memory_backing = Some(MemoryBacking::Memfd);
    let mut spec = spec(config);
    // The file goes with its handle.
    spec.kernel = kernel.into_temp_path().keep().unwrap();
    spec
}

#[test]
fn with_mte_auto_a_guest_boots_without_where_mte_cannot_be_had() {
    for (hypervisor, why) in without_mte() {
        let spec = with_mte(MteMode::Auto);

        let board = Board::new(&spec, &hypervisor).unwrap();

        let Mte::Unavailable(said) = board.mte() else { panic!("{:?}", board.mte()) };
        assert!(said.contains(why), "{said}");
        assert!(hypervisor.guest.events().contains(&Event::Note("VM")));
        std::fs::remove_file(&spec.kernel).unwrap();
    }
}

#[test]
fn with_mte_required_the_vm_is_refused_where_it_cannot_be_had() {
    for (hypervisor, why) in without_mte() {
        let spec = with_mte(MteMode::Require);

        let error = Board::new(&spec, &hypervisor).map(drop).unwrap_err();

        assert_eq!(error.status(), ExitStatus::Unavailable);
        assert!(crate::error::chain(&error).contains(why), "{error}");
        std::fs::remove_file(&spec.kernel).unwrap();
    }
}

#[test]
fn nothing_is_added_to_a_bare_command_line() {
    let kernel = kernel();
    for (bare, same) in [(true, true), (false, false)] {
        let hypervisor = FakeHypervisor::new([vec![]]);
        let mut config = config(kernel.path(), 1);
        config.boot_source.as_mut().unwrap().bare_boot_args = Some(bare);
        // A guest so small that the order of page reporting is lowered on its command line.
        let spec = spec(config);

        let line = Board::new(&spec, &hypervisor).unwrap().command_line(&spec);

        assert_eq!(line.is_empty(), same, "{line}");
        assert_eq!(line.contains("page_reporting_order"), !same, "{line}");
    }
}

#[test]
fn a_machine_that_runs_is_not_saved() {
    let (hypervisor, mut machine) = computing(1);
    machine.resume().unwrap();
    hypervisor.guest.wait_until_inside(1);

    assert!(matches!(machine.save(), Err(SaveStateError::Running)));
}

/// A machine of so many vCPUs, saved at this value of the counter.
fn saved(vcpus: u32, counter: u64) -> MachineState {
    let (hypervisor, mut machine) = computing(vcpus);
    machine.resume().unwrap();
    hypervisor.guest.wait_until_inside(vcpus as usize);
    hypervisor.guest.pass_time(counter);
    machine.pause().unwrap();
    hypervisor.guest.pass_time(1000);

    let state = machine.save().unwrap();

    let events = hypervisor.guest.events();
    let last_vcpu = position(&events, Event::Saved(vcpus as usize - 1));
    assert!(last_vcpu < position(&events, Event::Note("GIC saved")), "{events:?}");
    assert_eq!(state.clock.counter, counter, "the counter stands still in a pause");
    state
}

fn restored(
    hypervisor: &FakeHypervisor,
    vcpus: u32,
    state: MachineState,
) -> Result<Machine, Error> {
    let kernel = kernel();
    let spec = spec(config(kernel.path(), vcpus));
    let memory = SavedMemory::Eager(untouched(spec.memory, state.mte));
    let board = Board::restored(&spec, hypervisor, state, memory)?;
    Machine::new(board, &spec, Output::nowhere(), Quiesce::default(), EventLog::default())
}

#[test]
fn a_saved_machine_is_restored_in_one_order_and_its_counter_continues() {
    let state = saved(2, 5000);
    let hypervisor = FakeHypervisor::new([vec![], vec![]]);
    hypervisor.guest.pass_time(77);

    let mut machine = restored(&hypervisor, 2, state).unwrap();
    machine.resume().unwrap();
    hypervisor.guest.wait_until_inside(2);

    let events = hypervisor.guest.events();
    let second = position(&events, Event::Restored(1));
    let gic = position(&events, Event::Note("GIC restored"));
    let counter = position(&events, Event::CounterSet(5000));
    let entered = events.iter().position(|event| matches!(event, Event::Entered(..))).unwrap();
    assert!(second < gic && gic < counter && counter < entered, "{events:?}");
    assert!(!events.iter().any(|event| matches!(event, Event::BootState { .. })), "{events:?}");
}

/// The generation ID that a guest finds, and where.
fn generation(hypervisor: &FakeHypervisor) -> [u8; 16] {
    let events = hypervisor.guest.events();
    let shown = events.iter().filter_map(|event| match event {
        Event::Shown(at, id) => Some((*at, *id)),
        _ => None,
    });
    let [(at, id)] = shown.collect::<Vec<_>>()[..] else { panic!("{events:?}") };
    assert_eq!(at, layout::GENERATION.base);
    let (shown, entered) = (
        position(&events, Event::Shown(at, id)),
        events.iter().position(|event| matches!(event, Event::Entered(..))).unwrap(),
    );
    assert!(shown < entered, "{events:?}");
    id
}

#[test]
fn each_boot_and_each_restore_has_an_id_of_its_own_and_a_restored_guest_is_notified() {
    let level = |high| Event::Level(layout::GENERATION_SPI, high);
    let ids = || {
        let booted = FakeHypervisor::new([vec![]]);
        let mut machine = machine(&booted, 1);
        machine.resume().unwrap();
        booted.guest.wait_until_inside(1);
        machine.pause().unwrap();
        let state = machine.save().unwrap();
        assert!(!booted.guest.events().contains(&level(true)));
        // A pause makes no other VM of it.
        machine.resume().unwrap();
        let id = generation(&booted);

        let hypervisor = FakeHypervisor::new([vec![]]);
        let mut machine = restored(&hypervisor, 1, state).unwrap();
        machine.resume().unwrap();
        hypervisor.guest.wait_until_inside(1);
        let events = hypervisor.guest.events();
        let gic = position(&events, Event::Note("GIC restored"));
        let (up, down) = (position(&events, level(true)), position(&events, level(false)));
        assert!(gic < up && up < down, "{events:?}");
        [id, generation(&hypervisor)]
    };

    let ids: std::collections::BTreeSet<_> = [ids(), ids()].concat().into_iter().collect();

    assert_eq!(ids.len(), 4, "{ids:?}");
}

#[test]
fn a_machine_that_was_restored_can_be_saved_before_it_runs() {
    let state = saved(1, 5000);
    let hypervisor = FakeHypervisor::new([vec![]]);
    let machine = restored(&hypervisor, 1, state.clone()).unwrap();

    let again = machine.save().unwrap();

    assert_eq!(again.clock.counter, state.clock.counter);
    assert_eq!(again.devices, state.devices);
}

#[test]
fn a_state_that_is_not_of_this_machine_is_refused() {
    let refused = |change: &dyn Fn(&mut MachineState)| {
        let mut state = saved(2, 1);
        change(&mut state);
        restored(&FakeHypervisor::new([vec![], vec![]]), 2, state).err().unwrap()
    };

    let error = refused(&|state| state.clock.frequency = 62_500_000);
    assert!(matches!(error, Error::CounterFrequency { saved: 62_500_000, .. }), "{error}");
    let error = refused(&|state| drop(state.vcpus.pop()));
    assert!(matches!(error, Error::SavedVcpus { saved: 1, vcpus: 2 }), "{error}");
    let error = refused(&|state| state.vcpus[1].registers = Default::default());
    assert!(matches!(error, Error::Hypervisor(_)), "{error}");
    let error = refused(&|state| state.gic.version = 2);
    assert!(matches!(error, Error::Hypervisor(_)), "{error}");
    let error = refused(&|state| drop(state.devices.remove("serial")));
    assert!(matches!(error, Error::State(_)), "{error}");
}
