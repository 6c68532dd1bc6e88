//! What reports of free pages do.

use super::*;

fn poisoned(value: u32) -> Bench {
    let mut bench = Bench::idle(EVERYTHING, 4 * KIB);
    bench.balloon.write_config(12, &value.to_le_bytes());
    bench.balloon.activate(bench.balloon.features());
    bench
}

#[test]
fn a_reported_range_is_discarded_and_answered_with_no_bytes() {
    let mut bench = Bench::new();

    bench.send(REPORTING, &[(DATA, 0x20_0000, WRITE)]).unwrap();

    assert_eq!(bench.discarded(), [range(DATA, 2 * MIB)]);
    assert_eq!(bench.used(REPORTING), [(0, 0)]);
    assert_eq!(bench.counter(|counters| &counters.reported), 2 * MIB);
    assert_eq!(bench.counter(|counters| &counters.discarded), 2 * MIB);
    assert_eq!(bench.counter(|counters| &counters.reports), 1);
}

#[test]
fn reports_of_much_memory_take_turns() {
    let mut bench = Bench::new();
    let Bench { memory, calls, refuses, reports, renewed, .. } = &bench;
    let host = Host {
        page_size: PAGE,
        huge_page_size: None,
        memory: Arc::clone(memory),
        calls: Arc::clone(calls),
        refuses: Arc::clone(refuses),
        reports: Arc::clone(reports),
        renewed: Arc::clone(renewed),
    };
    bench.balloon = Balloon::new(EVERYTHING, Box::new(host), range(RAM.start.0, 1 << 40));
    bench.balloon.activate(Features::BALLOON_STATS_VQ.with(Features::BALLOON_PAGE_REPORTING));
    for chain in 0..3 {
        bench.post(REPORTING, &[(RAM.start.0 + chain * 3 * 1024 * MIB, 0xc000_0000, WRITE)]);
    }

    bench.serve(REPORTING).unwrap();
    assert_eq!(bench.used(REPORTING).len(), 2);
    bench.serve(REPORTING).unwrap();
    assert_eq!(bench.used(REPORTING).len(), 3);
}

#[test]
fn the_host_is_told_of_a_report_from_before_it_is_discarded_until_it_is_answered() {
    let mut bench = Bench::new();
    let reported = |bench: &Bench| bench.reports.lock().unwrap().clone();

    bench.send(REPORTING, &[(DATA, 8192, WRITE), (DATA + 16384, 4096, WRITE)]).unwrap();
    bench.send(REPORTING, &[(DATA, 4096, WRITE)]).unwrap();
    assert_eq!(reported(&bench), [(12288, 0, Some(1)), (4096, 1, Some(2))]);

    bench.balloon.set_reporting(false);
    bench.send(REPORTING, &[(DATA, 4096, WRITE)]).unwrap();
    bench.send(INFLATE, &[(DATA, 4, 0)]).unwrap();
    assert_eq!(reported(&bench).len(), 2);
}

#[test]
fn either_direction_is_a_report() {
    let mut bench = Bench::new();

    bench.send(REPORTING, &[(DATA, 4096, 0), (DATA + 0x2000, 4096, WRITE)]).unwrap();

    assert_eq!(bench.discarded(), [range(DATA, 4096), range(DATA + 0x2000, 4096)]);
}

#[test]
fn a_full_chain_of_neighbours_is_one_discard() {
    let mut bench = Bench::new();
    let chunk = 128 * KIB;
    let mut parts: Vec<Part> =
        (0..32).map(|part| (DATA + part * chunk, 128 * 1024, WRITE)).collect();
    parts.rotate_left(7);
    parts.reverse();

    bench.send(REPORTING, &parts).unwrap();

    assert_eq!(bench.discarded(), [range(DATA, 32 * chunk)]);
    assert_eq!(bench.counter(|counters| &counters.reported), 32 * chunk);
}

#[test]
fn what_is_reported_twice_in_a_chain_counts_once() {
    let mut bench = Bench::new();

    bench
        .send(
            REPORTING,
            &[(DATA, 0x4000, 0), (DATA + 0x1000, 0x1000, 0), (DATA + 0x2000, 0x4000, 0)],
        )
        .unwrap();

    assert_eq!(bench.discarded(), [range(DATA, 0x6000)]);
    assert_eq!(bench.counter(|counters| &counters.reported), 0x6000);
}

#[test]
fn ranges_are_clamped_to_guest_memory() {
    let end = ranges::end(RAM);
    let cases: [(Part, Option<GuestRange>, u64); 8] = [
        ((0, 4096, 0), None, 4096),
        ((DATA, 0, 0), None, 0),
        ((0, u32::MAX, 0), Some(range(RAM.start.0, 8 * MIB)), u64::from(u32::MAX) - 8 * MIB),
        ((RAM.start.0 - 4096, 8192, 0), Some(range(RAM.start.0, 4096)), 4096),
        ((end - 4096, u32::MAX, 0), Some(range(end - 4096, 4096)), u64::from(u32::MAX) - 4096),
        ((end, 4096, WRITE), None, 4096),
        ((u64::MAX, u32::MAX, 0), None, u64::from(u32::MAX)),
        ((u64::MAX - 4095, 8192, WRITE), None, 8192),
    ];
    for (part, expected, outside) in cases {
        let mut bench = Bench::new();

        bench.send(REPORTING, &[part]).unwrap();

        assert_eq!(bench.discarded(), Vec::from_iter(expected), "{part:x?}");
        assert_eq!(bench.counter(|counters| &counters.outside), outside, "{part:x?}");
        assert_eq!(bench.used(REPORTING), [(0, 0)]);
    }
}

#[test]
fn a_chain_beyond_4_gib_is_read_up_to_there_and_the_rest_is_kept() {
    let mut bench = Bench::new();
    let huge = 0x2000_0000;
    let mut parts = vec![(DATA, 4096, WRITE)];
    parts.extend((0..16).map(|part| (0x1_0000_0000 + u64::from(huge) * part, huge, WRITE)));
    parts.push((DATA + 0x2000, 4096, WRITE));

    bench.send(REPORTING, &parts).unwrap();

    assert_eq!(bench.discarded(), [range(DATA, 4096)]);
    assert_eq!(bench.used(REPORTING), [(0, 0)]);
}

#[test]
fn a_chain_that_loops_is_a_report_of_what_it_names() {
    let mut bench = Bench::new();
    bench.descriptor(queue_base(REPORTING), (DATA, 4096, NEXT), 0);
    bench.offer(REPORTING, 0);

    bench.serve(REPORTING).unwrap();

    assert_eq!(bench.discarded(), [range(DATA, 4096)]);
    assert_eq!(bench.used(REPORTING), [(0, 0)]);
}

#[test]
fn parts_of_host_pages_are_reported_and_not_discarded() {
    let mut bench = Bench::with(EVERYTHING, 64 * KIB);

    bench.send(REPORTING, &[(DATA + 4096, 128 * 1024, WRITE)]).unwrap();

    assert_eq!(bench.discarded(), [range(DATA + 4096, 128 * KIB)]);
    assert_eq!(bench.counter(|counters| &counters.reported), 128 * KIB);
    assert_eq!(bench.counter(|counters| &counters.discarded), 64 * KIB);
}

#[test]
fn while_reporting_is_off_reports_are_answered_and_kept() {
    let mut bench = Bench::new();

    bench.balloon.set_reporting(false);
    bench.send(REPORTING, &[(DATA, 4096, WRITE)]).unwrap();
    let off = bench.discarded();
    bench.balloon.set_reporting(true);
    bench.send(REPORTING, &[(DATA, 8192, WRITE)]).unwrap();

    assert_eq!((off, bench.discarded()), (vec![], vec![range(DATA, 8192)]));
    assert_eq!(bench.counter(|counters| &counters.kept), 4096);
    assert_eq!(bench.counter(|counters| &counters.reported), 12288);
    assert_eq!(bench.used(REPORTING).len(), 2);
}

#[test]
fn pages_poisoned_with_zero_are_discarded() {
    let mut bench = poisoned(0);

    bench.send(REPORTING, &[(DATA, 4096, WRITE)]).unwrap();

    assert_eq!(bench.discarded(), [range(DATA, 4096)]);
    assert_eq!(bench.counter(|counters| &counters.poison_skipped), 0);
}

#[test]
fn pages_poisoned_otherwise_are_answered_and_kept() {
    for value in [0xaaaa_aaaa, 1, 1 << 31, u32::MAX] {
        let mut bench = poisoned(value);

        bench.send(REPORTING, &[(DATA, 4096, WRITE)]).unwrap();

        assert_eq!(bench.discarded(), []);
        assert_eq!(bench.counter(|counters| &counters.poison_skipped), 4096);
        assert_eq!(bench.counter(|counters| &counters.kept), 0);
        assert_eq!(bench.used(REPORTING), [(0, 0)]);
    }
}

#[test]
fn poison_that_was_not_acknowledged_means_nothing() {
    let mut bench = Bench::new();
    bench.balloon.write_config(12, &[0xaa; 4]);

    bench.send(REPORTING, &[(DATA, 4096, WRITE)]).unwrap();

    assert_eq!(bench.balloon.poison(), None);
    assert_eq!(bench.discarded(), [range(DATA, 4096)]);
}

#[test]
fn what_the_host_refuses_is_counted_and_answered() {
    let mut bench = Bench::new();
    bench.refuses.store(true, Ordering::Relaxed);

    bench.send(REPORTING, &[(DATA, 8192, WRITE)]).unwrap();

    assert_eq!(bench.counter(|counters| &counters.failed), 8192);
    assert_eq!(bench.used(REPORTING), [(0, 0)]);
}

#[test]
fn while_pages_are_discarded_the_driver_has_no_answer() {
    let mut bench = Bench::new();
    for chain in 0..3 {
        bench.post(REPORTING, &[(DATA + chain * 0x4000, 4096, 0), (DATA + 0x2000, 4096, WRITE)]);
    }

    bench.serve(REPORTING).unwrap();

    let calls = bench.calls.lock().unwrap().clone();
    let seen: Vec<u16> = calls.iter().map(|call| call.used[REPORTING]).collect();
    assert_eq!(seen, [0, 0, 1, 1, 2, 2]);
    assert_eq!(bench.used(REPORTING).len(), 3);
}
