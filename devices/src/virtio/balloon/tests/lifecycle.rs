//! Features, queue roles, configuration space, target, and reset.

use super::*;

const ROLES: [Role; 4] = [Role::Inflate, Role::Deflate, Role::Statistics, Role::Reporting];

#[test]
fn it_offers_what_it_was_told_to_and_never_hinting() {
    let offers = |reporting, deflate_on_oom, page_size| {
        Bench::idle(BalloonConfig { reporting, deflate_on_oom, target: 0 }, page_size)
            .balloon
            .features()
            .0
    };

    assert_eq!(offers(false, false, 4 * KIB), 0b01_0011);
    assert_eq!(offers(true, false, 4 * KIB), 0b11_0011);
    assert_eq!(offers(false, true, 4 * KIB), 0b01_0111);
    assert_eq!(offers(true, true, 4 * KIB), 0b11_0111);
}

#[test]
fn it_has_a_queue_for_each_role_that_it_can_have() {
    let without = BalloonConfig { reporting: false, ..EVERYTHING };

    assert_eq!(Bench::new().balloon.queue_sizes(), [128; 4]);
    assert_eq!(Bench::with(without, 4 * KIB).balloon.queue_sizes(), [128; 3]);
}

#[test]
fn every_subset_of_features_has_its_roles() {
    let transport = Features::VERSION_1.with(Features::EVENT_IDX).with(Features::INDIRECT_DESC);
    for chosen in 0..1 << OFFERED.len() {
        let subset = OFFERED.iter().enumerate().filter(|(bit, _)| chosen >> bit & 1 == 1);
        let acked = subset.fold(transport, |acked, (_, feature)| acked.with(*feature));
        let mut bench = Bench::idle(EVERYTHING, 4 * KIB);

        bench.balloon.activate(acked);

        let statistics = acked.contains(Features::BALLOON_STATS_VQ);
        let expected = match (statistics, acked.contains(Features::BALLOON_PAGE_REPORTING)) {
            (false, false) => &ROLES[..2],
            (true, false) => &ROLES[..3],
            (false, true) => &[Role::Inflate, Role::Deflate, Role::Reporting],
            (true, true) => &ROLES[..],
        };
        let found: Vec<Role> = (0..8).filter_map(|queue| bench.balloon.role(queue)).collect();
        assert_eq!(found, expected, "{acked:?}");
        for role in ROLES {
            let queue = expected.iter().position(|other| *other == role);
            assert_eq!(bench.balloon.queue_of(role), queue, "{acked:?}");
        }
        assert_eq!(bench.balloon.driver_features(), Some(acked));
        let poisons = acked.contains(Features::BALLOON_PAGE_POISON);
        assert_eq!(bench.balloon.poison(), poisons.then_some(0));
    }
}

#[test]
fn a_queue_does_what_its_role_is_under_every_subset() {
    for (acked, queue) in [
        (Features::BALLOON_STATS_VQ.with(Features::BALLOON_PAGE_REPORTING), 3),
        (Features::BALLOON_PAGE_REPORTING, 2),
    ] {
        let mut bench = Bench::idle(EVERYTHING, 4 * KIB);
        bench.balloon.activate(acked);

        bench.send(queue, &[(DATA, 0x20_0000, WRITE)]).unwrap();

        assert_eq!(bench.discarded(), [range(DATA, 2 * MIB)]);
    }
}

#[test]
fn before_the_driver_is_ready_there_are_no_roles() {
    let mut bench = Bench::idle(EVERYTHING, 4 * KIB);

    assert_eq!(bench.balloon.role(0), None);
    assert_eq!(bench.balloon.queue_of(Role::Inflate), None);
    assert_eq!(bench.balloon.driver_features(), None);
    for queue in 0..4 {
        bench.send_pages(queue, [FIRST]).unwrap();
        assert_eq!(bench.used(queue), []);
    }
}

#[test]
fn a_queue_without_a_role_is_left_alone() {
    let mut bench = Bench::idle(EVERYTHING, 4 * KIB);
    bench.balloon.activate(Features::VERSION_1);

    bench.send(STATISTICS, &[(0, 10, 0)]).unwrap();
    bench.send(REPORTING, &[(DATA, 4096, WRITE)]).unwrap();

    assert_eq!((bench.used(STATISTICS), bench.used(REPORTING)), (vec![], vec![]));
    assert_eq!(bench.discarded(), []);
}

#[test]
fn spurious_calls_do_nothing() {
    let mut bench = Bench::new();

    for queue in [INFLATE, DEFLATE, STATISTICS, REPORTING] {
        bench.serve(queue).unwrap();

        assert_eq!(bench.used(queue), []);
    }
    assert_eq!(bench.discarded(), []);
}

#[test]
fn a_target_is_whole_pages_within_guest_memory() {
    let mut bench = Bench::new();
    let cases = [
        (0, false, 0),
        (4095, false, 0),
        (4096, true, 4096),
        (8191, false, 4096),
        (3 * MIB, true, 3 * MIB),
        (u64::MAX, true, RAM.length),
        (RAM.length + 1, false, RAM.length),
        (0, true, 0),
    ];
    for (bytes, changes, target) in cases {
        assert_eq!(bench.balloon.set_target(bytes), changes, "{bytes}");

        let mut num_pages = [0; 4];
        bench.balloon.read_config(0, &mut num_pages);
        assert_eq!(bench.balloon.target(), target);
        assert_eq!(u64::from(u32::from_le_bytes(num_pages)) * PAGE, target);
    }
}

#[test]
fn the_first_target_is_the_configured_one() {
    let config = BalloonConfig { target: 5 * MIB + 1, ..EVERYTHING };

    assert_eq!(Bench::idle(config, 4 * KIB).balloon.target(), 5 * MIB);
}

#[test]
fn memory_beyond_16_tib_does_not_overflow_the_target() {
    let host = || {
        let bench = Bench::new();
        let (calls, refuses, reports) = (Arc::default(), Arc::default(), Arc::default());
        Box::new(Host {
            page_size: 4 * KIB,
            huge_page_size: None,
            memory: bench.memory,
            calls,
            refuses,
            reports,
            renewed: Arc::default(),
        })
    };
    let huge = GuestRange { start: RAM.start, length: u64::MAX };

    let balloon = Balloon::new(BalloonConfig { target: u64::MAX, ..EVERYTHING }, host(), huge);

    assert_eq!(balloon.target(), u64::from(u32::MAX) * PAGE);
}

#[test]
fn the_driver_writes_actual_and_poison_and_nothing_else() {
    let mut bench = Bench::new();
    bench.balloon.set_target(4 * MIB);

    bench.balloon.write_config(0, &[0xff; 32]);

    assert_eq!(bench.balloon.target(), 4 * MIB);
    assert_eq!(bench.balloon.actual(), u64::from(u32::MAX) * PAGE);
    let mut hint = [0xee; 4];
    bench.balloon.read_config(8, &mut hint);
    assert_eq!(hint, [0; 4]);
}

#[test]
fn actual_is_in_bytes() {
    let mut bench = Bench::new();

    bench.balloon.write_config(4, &3_u32.to_le_bytes());

    assert_eq!(bench.balloon.actual(), 12 * KIB);
}

#[test]
fn poison_written_before_the_driver_is_ready_counts_when_it_is() {
    let mut bench = Bench::idle(EVERYTHING, 4 * KIB);

    bench.balloon.write_config(12, &0xaaaa_aaaa_u32.to_le_bytes());
    let early = bench.balloon.poison();
    bench.balloon.activate(Features::BALLOON_PAGE_POISON);

    assert_eq!((early, bench.balloon.poison()), (None, Some(0xaaaa_aaaa)));
}

#[test]
fn a_reset_with_requests_in_flight_empties_the_balloon() {
    let mut bench = Bench::new();
    bench.balloon.set_target(2 * MIB);
    bench.balloon.set_reporting(false);
    bench.send_pages(INFLATE, FIRST..FIRST + 100).unwrap();
    bench.send_bytes(STATISTICS, &[0; 10]).unwrap();
    bench.balloon.write_config(0, &[0xff; 16]);
    bench.balloon.request_statistics();
    bench.post(INFLATE, &[(DATA, 400, 0)]);
    bench.discarded();

    bench.balloon.reset();
    bench.serve(INFLATE).unwrap();

    assert_eq!((bench.inflated(), bench.balloon.actual()), (0, 0));
    assert_eq!((bench.balloon.poison(), bench.balloon.driver_features()), (None, None));
    assert_eq!(bench.balloon.statistics(), None);
    assert_eq!(bench.discarded(), []);
    assert_eq!(bench.balloon.target(), 2 * MIB, "the target is the host's");
    assert!(!bench.balloon.reporting(), "the switch is the host's");
    assert_eq!(bench.counter(|counters| &counters.discarded), 400 * KIB, "what was done was done");
}

#[test]
fn after_a_reset_the_next_driver_begins_with_nothing() {
    let mut bench = Bench::new();
    bench.send_pages(INFLATE, [FIRST]).unwrap();
    bench.send_bytes(STATISTICS, &[0; 10]).unwrap();
    bench.balloon.write_config(12, &[1; 4]);
    bench.discarded();

    bench.restart(Features::BALLOON_STATS_VQ.with(Features::BALLOON_PAGE_POISON));
    bench.balloon.request_statistics();
    bench.serve(STATISTICS).unwrap();
    bench.send_pages(INFLATE, [FIRST]).unwrap();

    assert_eq!(bench.used(STATISTICS), [], "the old driver's buffer is not the new one's");
    assert_eq!(bench.balloon.poison(), Some(0));
    assert_eq!(bench.discarded(), [page_range(FIRST, 1)]);
    assert_eq!(bench.inflated(), 4 * KIB);
}

#[test]
fn it_can_be_looked_at() {
    let bench = Bench::new();

    assert_eq!(bench.balloon.id(), DeviceId::BALLOON);
    assert!(format!("{:?}", bench.balloon).contains("reporting: true"));
}
