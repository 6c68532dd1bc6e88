#![allow(clippy::unwrap_used)]

use super::*;

#[test]
fn a_counter_grows_by_what_is_added() {
    let counter = Counter::default();
    counter.add(1);
    counter.add(41);
    assert_eq!(counter.get(), 42);
}

#[test]
fn the_first_entry_is_stamped_once() {
    let counters = VcpuCounters::default();
    assert_eq!(counters.first_entry(), 0);
    let before = monotonic().as_nanos() as u64;
    counters.stamp_first_entry();
    let stamped = counters.first_entry();
    let after = monotonic().as_nanos() as u64;
    assert!((before..=after).contains(&stamped), "{before} {stamped} {after}");
    while monotonic().as_nanos() as u64 == after {}
    counters.stamp_first_entry();
    assert_eq!(counters.first_entry(), stamped);
}

#[test]
fn the_report_has_every_counter_and_each_name_ends_in_its_unit() {
    let counters = VcpuCounters::default();
    counters.exits.add(3);
    counters.mmio_reads.add(2);
    counters.mmio_writes.add(1);
    let report = counters.to_json();
    assert_eq!(report["exits_total"], 3);
    assert_eq!(report["mmio_reads_total"], 2);
    assert_eq!(report["mmio_writes_total"], 1);
    assert_eq!(report["first_entry_monotonic_nanoseconds"], 0);
    for name in report.as_object().unwrap().keys() {
        assert!(name.ends_with("_total") || name.ends_with("_nanoseconds"), "{name}");
    }
}
