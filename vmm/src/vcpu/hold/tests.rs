#![allow(clippy::unwrap_used)]

use std::time::{Duration, Instant};

use super::*;
use crate::vcpu::VcpuSet;
use crate::vcpu::fake::{Guest, inside};

fn running(guest: &Guest, vcpus: usize) -> (VcpuSet, Hold) {
    let mut set = VcpuSet::computing(guest, vcpus);
    let hold = Hold::default();
    set.give_to(&hold);
    set.resume().unwrap();
    guest.wait_until_inside(vcpus);
    (set, hold)
}

fn is_out(guest: &Guest) {
    guest.wait_for(|events| inside(events) == 0);
}

#[test]
fn held_vcpus_leave_the_guest_and_come_back() {
    for vcpus in [1, 2, 8] {
        let guest = Guest::default();
        let (_set, hold) = running(&guest, vcpus);
        for _ in 0..100 {
            let held = hold.clone().hold();
            is_out(&guest);
            drop(held);
            guest.wait_until_inside(vcpus);
        }
    }
}

#[test]
fn the_guests_clock_goes_on_while_it_is_held() {
    let guest = Guest::default();
    let (_set, hold) = running(&guest, 2);
    let before = guest.events().iter().filter(|event| is_counter(event)).count();

    drop(hold.hold());
    guest.wait_until_inside(2);

    assert_eq!(guest.events().iter().filter(|event| is_counter(event)).count(), before);
}

fn is_counter(event: &crate::vcpu::fake::Event) -> bool {
    use crate::vcpu::fake::Event::{CounterRead, CounterSet};
    matches!(event, CounterRead(_) | CounterSet(_))
}

#[test]
fn a_pause_during_a_hold_outlives_it() {
    let guest = Guest::default();
    let (mut set, hold) = running(&guest, 2);

    let held = hold.hold();
    set.pause().unwrap();
    drop(held);
    std::thread::sleep(Duration::from_millis(20));
    assert_eq!(inside(&guest.events()), 0);

    let held = hold.hold();
    set.resume().unwrap();
    std::thread::sleep(Duration::from_millis(20));
    assert_eq!(inside(&guest.events()), 0);
    drop(held);
    guest.wait_until_inside(2);
}

#[test]
fn a_vm_can_end_while_it_is_held() {
    let guest = Guest::default();
    let (set, hold) = running(&guest, 2);
    let held = hold.hold();
    let start = Instant::now();

    drop(set);

    assert!(start.elapsed() < Duration::from_secs(60));
    drop(held);
    drop(hold.hold());
}

#[test]
fn without_vcpus_nothing_is_held() {
    drop(Hold::default().hold());
}
