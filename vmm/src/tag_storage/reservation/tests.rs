#![allow(clippy::unwrap_used)]

use arch::layout::RAM_BASE;
use vm_memory::Bytes as _;

use super::testing::{may_catch_faults, ram};
use super::*;
use crate::config::{OnExhausted, TagStorageMode};

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
    holding.loaded().unwrap();

    let told = holding.describe();

    assert_eq!((told.mode, told.reserved_bytes), (TagStorageMode::Strict, 256 << 10));
    assert_eq!((told.chunks.total, told.chunks.populated), (4, None));
    assert_eq!(told.supply.as_deref(), Some("ledger"));
    assert_eq!(told.max_bytes, None);
}

#[test]
fn a_demanding_vm_has_what_it_touches() {
    if !may_catch_faults() {
        return;
    }
    let ram = ram(8);
    let holding = TagReservation::new(&spec(DEMAND, Bytes::mib(1)), "vm", &ram).unwrap();
    ram.write_slice(&[1; 3 << 20], RAM_BASE).unwrap();
    holding.loaded().unwrap();

    let told = holding.describe();

    assert_eq!((told.chunks.populated, told.chunks.absent), (Some(2), Some(2)));
    assert_eq!((told.reserved_bytes, told.max_bytes), (128 << 10, Some(1 << 20)));
    assert!(!told.exhausted);
    assert_eq!(told.counters["populated_total"], 2);
    assert_eq!(told.counters["metadata_reserve_success_total"], 2);
    assert_eq!(holding.metrics()["events"], told.counters);
}

#[test]
fn a_demanding_vm_that_cannot_be_loaded_is_refused_by_name() {
    if !may_catch_faults() {
        return;
    }
    let ram = ram(8);
    let holding = TagReservation::new(&spec(DEMAND, Bytes::kib(64)), "vm7", &ram).unwrap();
    ram.write_slice(&[1; 3 << 20], RAM_BASE).unwrap();

    let message = message(&holding.loaded().unwrap_err());

    for word in ["'vm7'", "128 KiB", "64 KiB", "ledger"] {
        assert!(message.contains(word), "{word} is not in: {message}");
    }
}
