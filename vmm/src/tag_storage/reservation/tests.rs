#![allow(clippy::unwrap_used)]

use arch::layout::RAM_BASE;
use vm_memory::Bytes as _;

use super::testing::{may_catch_faults, ram};
use super::*;
use crate::config::OnExhausted;

const DEMAND: ReservationMode =
    ReservationMode::Demand { on_exhausted: OnExhausted::Wait, deadline_s: 5 };

fn spec(when: ReservationMode, max: Bytes) -> TagStorageSpec {
    TagStorageSpec { when, broker: None, min: Bytes::ZERO, max }
}

fn message(error: &Error) -> String {
    crate::error::chain(error)
}

#[test]
fn a_strict_vm_that_does_not_fit_is_refused_by_name() {
    let ram = ram(8);

    let error = TagReservation::new(&spec(ReservationMode::Strict, Bytes::kib(192)), "vm7", &ram)
        .err()
        .unwrap();

    let message = message(&error);
    for word in ["'vm7'", "256 KiB", "192 KiB", "ledger", "8 MiB"] {
        assert!(message.contains(word), "{word} is not in: {message}");
    }
}

#[test]
fn a_strict_vm_has_all_from_the_start() {
    let ram = ram(8);
    let holding =
        TagReservation::new(&spec(ReservationMode::Strict, Bytes::MAX), "vm", &ram).unwrap();
    holding.finish_loading().unwrap();

    let status = holding.status();

    assert_eq!((status.mode, status.reserved), (ReservationMode::Strict, Bytes::kib(256)));
    assert_eq!((status.chunks, status.populated), (4, None));
    assert_eq!(status.supply.to_string(), "ledger");
    assert_eq!(status.max, None);
}

#[test]
fn a_demanding_vm_has_what_it_touches() {
    if !may_catch_faults() {
        return;
    }
    let ram = ram(8);
    let holding = TagReservation::new(&spec(DEMAND, Bytes::mib(1)), "vm", &ram).unwrap();
    ram.write_slice(&[1; 3 << 20], RAM_BASE).unwrap();
    holding.finish_loading().unwrap();

    let status = holding.status();

    assert_eq!((status.chunks, status.populated), (4, Some(2)));
    assert_eq!((status.reserved, status.max), (Bytes::kib(128), Some(Bytes::mib(1))));
    assert_eq!(status.exhaustion.lacking, None);
    assert_eq!(status.counters["populated_total"], 2);
    assert_eq!(status.counters["metadata_reserve_success_total"], 2);
    assert_eq!(holding.metrics()["events"], status.counters);
}

#[test]
fn a_demanding_vm_that_cannot_be_loaded_is_refused_by_name() {
    if !may_catch_faults() {
        return;
    }
    let ram = ram(8);
    let holding = TagReservation::new(&spec(DEMAND, Bytes::kib(64)), "vm7", &ram).unwrap();
    ram.write_slice(&[1; 3 << 20], RAM_BASE).unwrap();

    let message = message(&holding.finish_loading().unwrap_err());

    for word in ["'vm7'", "128 KiB", "64 KiB", "ledger"] {
        assert!(message.contains(word), "{word} is not in: {message}");
    }
}
