#![allow(clippy::unwrap_used)]

use std::sync::atomic::{AtomicBool, Ordering};

use super::*;
use crate::hypervisor::fake::FakeHypervisor;
use crate::machine::testing::machine;

/// A machine that runs, its counter failing on demand, under `--on-exhausted pause`.
fn pausing() -> (FakeHypervisor, TagEvents, Arc<AtomicBool>) {
    let hypervisor = FakeHypervisor::new([vec![]]);
    let mut fails = None;
    hypervisor.with_vcpus(|vcpu| fails = Some(Arc::clone(&vcpu.counter_fails)));
    let mut machine = machine(&hypervisor, 1);
    machine.resume().unwrap();
    let machine = Rc::new(RefCell::new(machine));
    let notices = Arc::new(ExhaustionStatus::new().unwrap());
    let shutdown = ShutdownRequest::default();
    let events = TagEvents::new(machine, notices, OnExhausted::Pause, shutdown).unwrap();
    (hypervisor, events, fails.unwrap())
}

fn lacking(expired: bool) -> ExhaustionSnapshot {
    ExhaustionSnapshot { lacking: Some("none left".to_owned()), expired, failed: None }
}

fn relief() -> ExhaustionSnapshot {
    ExhaustionSnapshot { lacking: None, expired: false, failed: None }
}

#[test]
fn the_guest_is_paused_at_the_deadline_and_until_relief() {
    let (_hypervisor, mut events, _) = pausing();
    let is_paused = |events: &TagEvents| events.machine.borrow().is_paused();
    events.act_on(lacking(false));
    assert!(!is_paused(&events));

    events.act_on(lacking(true));
    assert!(is_paused(&events));

    events.act_on(relief());
    assert!(!is_paused(&events));
}

#[test]
fn a_pause_that_fails_is_tried_again() {
    let (_hypervisor, mut events, fails) = pausing();
    fails.store(true, Ordering::SeqCst);
    events.act_on(lacking(true));
    assert!(!events.machine.borrow().is_paused());

    fails.store(false, Ordering::SeqCst);
    events.settle();

    assert!(events.machine.borrow().is_paused());
}

#[test]
fn an_end_of_a_pause_that_fails_is_tried_again() {
    let (_hypervisor, mut events, fails) = pausing();
    events.act_on(lacking(true));
    fails.store(true, Ordering::SeqCst);
    events.act_on(relief());
    assert!(events.machine.borrow().is_paused());

    fails.store(false, Ordering::SeqCst);
    events.settle();

    assert!(!events.machine.borrow().is_paused());
}
