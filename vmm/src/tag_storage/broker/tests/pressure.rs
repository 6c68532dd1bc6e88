//! What clients have of each other: totals, refusals, and who gives when another lacks.

use super::*;
use crate::tag_storage::broker::protocol::refusal::Reason;

fn reason(error: &Error) -> Reason {
    match error {
        Error::Refused(refusal) => refusal.reason,
        other => panic!("{other}"),
    }
}

#[test]
fn what_is_reserved_and_freed_shows_in_the_totals() {
    let (_directory, path) = place();
    let broker = Broker::start(&path, 64);
    let (first, second) = (connect(&path, "first"), connect(&path, "second"));

    let slots = first.reserve(10).unwrap();
    second.reserve(5).unwrap();
    slots.iter().take(3).for_each(|slot| first.free(*slot));

    broker.wait_reserved(12);
    let report = broker.report();
    assert_eq!(report.pool.leases.len(), 2);
    for lease in &report.pool.leases {
        assert_eq!(report.pid_of(lease.id), Some(std::process::id()));
        assert_eq!(lease.chunks, if lease.name == "first" { 7 } else { 5 });
    }
    let counters = report.pool.counters;
    assert_eq!((counters.metadata_reserve_success, counters.metadata_reserve_free), (15, 3));
    assert_eq!(first.status().chunks, 7);
}

#[test]
fn a_large_guest_is_reserved_for_all_at_once_or_not_at_all() {
    let (_directory, path) = place();
    let broker = Broker::start(&path, 5000);
    let client = connect(&path, "large");

    assert_eq!(client.reserve(4000).unwrap().len(), 4000);
    let refused = client.reserve(1001).unwrap_err();

    assert!(matches!(reason(&refused), Reason::Exhausted { .. }), "{refused}");
    assert_eq!(broker.report().pool.chunks.reserved, 4000);
}

#[test]
fn a_client_that_goes_leaves_nothing() {
    let (_directory, path) = place();
    let broker = Broker::start(&path, 64);
    let client = connect(&path, "vm");
    client.reserve(30).unwrap();

    drop(client);

    broker.wait("an empty pool", |report| {
        report.pool.leases.is_empty() && report.pool.chunks.free == 64 && report.holders.is_empty()
    });
}

#[test]
fn terms_are_kept() {
    let (_directory, path) = place();
    let _broker = Broker::start(&path, 64);
    let wanted = LeaseTerms { name: "vm".to_owned(), min: Bytes::kib(640), max: Bytes::mib(1) };
    let _client = Vm::of(Client::connect(&path, wanted.clone()).unwrap());

    let greedy = connect(&path, "greedy");
    let refused = greedy.reserve(55).unwrap_err();
    assert!(matches!(reason(&refused), Reason::Exhausted { .. }), "{refused}");
    assert_eq!(greedy.reserve(54).unwrap().len(), 54);
    let refused = _client.reserve(17).unwrap_err();
    assert!(matches!(reason(&refused), Reason::OverMax { .. }), "{refused}");
    assert!(refused.to_string().contains("(ledger)"), "{refused}");

    let second = Client::connect(&path, wanted).unwrap_err();
    assert!(second.to_string().contains("exhausted"), "{second}");
    let nameless = Client::connect(&path, terms("")).unwrap_err();
    assert!(nameless.to_string().contains("name"), "{nameless}");
}

#[test]
fn who_has_is_asked_to_give_and_who_lacks_is_told() {
    let (_directory, path) = place();
    let broker = Broker::start(&path, 16);
    let (rich, poor) = (connect(&path, "rich"), connect(&path, "poor"));
    let idle = connect(&path, "idle");
    let mut slots = rich.reserve(16).unwrap();

    poor.reserve(2).unwrap_err();

    wait_for_event(&rich, |heard| heard == BrokerEvent::RequestReclaim { chunks: 2 });
    slots.drain(..4).for_each(|slot| rich.free(slot));
    wait_for_event(&poor, |heard| heard == BrokerEvent::Retry);
    until("the slots", || poor.reserve(2).is_ok());
    wait_for_event(&rich, |heard| heard == BrokerEvent::StopReclaim);
    let traffic = broker.report().traffic;
    assert!(traffic.give_backs >= 1 && traffic.reliefs >= 1, "{traffic:?}");
    assert_eq!(traffic.notices_lost, 0);
    idle.handle_events(|heard| panic!("{heard:?}"));
}

#[test]
fn who_gets_the_least_lacks_nothing() {
    let (_directory, path) = place();
    let broker = Broker::start(&path, 16);
    let (rich, poor) = (connect(&path, "rich"), connect(&path, "poor"));
    rich.reserve(13).unwrap();
    let chunks: Vec<ChunkIndex> = (0..8).map(ChunkIndex).collect();

    assert_eq!(poor.reserve_at_least(&chunks, 2).unwrap(), 2);

    let report = broker.report();
    assert_eq!((report.pool.chunks.reserved, report.pool.counters.metadata_reserve_fail), (15, 0));
    assert_eq!(report.traffic.give_backs, 0);
    rich.handle_events(|event| panic!("{event:?}"));

    // One is left: what is lacking is what is asked for at least.
    poor.reserve_at_least(&chunks[2..], 3).unwrap_err();
    wait_for_event(&rich, |event| event == BrokerEvent::RequestReclaim { chunks: 2 });
}

#[test]
fn a_client_has_headroom_unless_it_is_asked_to_give() {
    let (_directory, path) = place();
    let broker = Broker::start(&path, 256);
    let (rich, poor) = (connect(&path, "rich"), connect(&path, "poor"));
    let wanted = LeaseTerms { max: Bytes::kib(3 * 64), ..terms("small") };
    let small = Vm::of(Client::connect(&path, wanted).unwrap());
    small.reserve(2).unwrap();
    let mut slots = rich.reserve(254).unwrap();
    assert_eq!([&rich, &small].map(|vm| vm.headroom()), [4, 1]);

    poor.reserve(2).unwrap_err();
    wait_for_event(&rich, |heard| matches!(heard, BrokerEvent::RequestReclaim { .. }));
    assert_eq!(rich.headroom(), 0);

    slots.drain(..4).for_each(|slot| rich.free(slot));
    until("the slots", || poor.reserve(2).is_ok());
    wait_for_event(&rich, |heard| heard == BrokerEvent::StopReclaim);
    assert_eq!(rich.headroom(), 4);
    drop(broker);
    wait_for_event(&rich, |heard| heard == BrokerEvent::Detached);
    assert_eq!(rich.headroom(), 0);
}

#[test]
fn nobody_gives_for_a_request_that_does_not_wait() {
    let (_directory, path) = place();
    let broker = Broker::start(&path, 128);
    let (rich, large) = (connect(&path, "rich"), connect(&path, "large"));
    rich.reserve(64).unwrap();

    // All of a VM's memory before it starts: it is refused, and goes.
    large.reserve(100).unwrap_err();
    large.reserve(1 << 20).unwrap_err();

    assert_eq!(broker.report().traffic.give_backs, 0);
    rich.handle_events(|heard| panic!("{heard:?}"));
}

#[test]
fn a_vm_that_ends_relieves_who_lacks() {
    let (_directory, path) = place();
    let _broker = Broker::start(&path, 16);
    let (rich, poor) = (connect(&path, "rich"), connect(&path, "poor"));
    rich.reserve(16).unwrap();
    poor.reserve(16).unwrap_err();

    drop(rich);

    wait_for_event(&poor, |heard| heard == BrokerEvent::Retry);
    until("the slots", || poor.reserve(16).is_ok());
}

#[test]
fn whoever_asks_without_end_makes_no_flood_of_notices() {
    let (_directory, path) = place();
    let broker = Broker::start(&path, 4);
    let (rich, poor) = (connect(&path, "rich"), connect(&path, "poor"));
    rich.reserve(4).unwrap();

    let start = Instant::now();
    for _ in 0..500 {
        poor.reserve(1).unwrap_err();
    }

    let most = 1 + start.elapsed().as_millis() / 250;
    let given = broker.report().traffic.give_backs;
    assert!((1..=most).contains(&u128::from(given)), "{given} of at most {most}");
}

#[test]
fn a_client_that_does_not_listen_holds_up_nobody() {
    let (_directory, path) = place();
    let broker = Broker::start(&path, 4);
    let (deaf, poor) = (connect(&path, "deaf"), connect(&path, "poor"));
    let mut slots = deaf.reserve(4).unwrap();

    // Each round makes two notices for `poor` and one for `deaf` at most; none of them is ever read.
    for _ in 0..400 {
        poor.reserve(1).unwrap_err();
        deaf.free(slots.pop().unwrap());
        let mut taken = None;
        until("the slot", || {
            taken = poor.reserve(1).ok();
            taken.is_some()
        });
        poor.free(taken.unwrap()[0]);
        until("the slot again", || match deaf.reserve(1) {
            Ok(more) => {
                slots.extend(more);
                true
            }
            Err(_) => false,
        });
    }

    broker.wait_reserved(4);
}

#[test]
fn a_borrower_is_known_for_as_long_as_it_is_there() {
    let (_directory, path) = place();
    let broker = Broker::start(&path, 4);

    let borrower = Client::borrow(&path, "borrower").unwrap();
    assert_eq!(borrower.status().terms.lend, LendPolicy::Never);
    assert_eq!(broker.report().borrowers, [std::process::id()]);

    drop(borrower);
    broker.wait("no borrower", |report| report.borrowers.is_empty());
}

#[test]
fn a_borrower_comes_back_to_a_broker_that_is_started_again() {
    let (_directory, path) = place();
    let broker = Broker::start(&path, 4);
    let borrower = Client::borrow(&path, "borrower").unwrap();

    drop(broker);
    let broker = Broker::start(&path, 4);

    // No request is pending: it sees the end of its connection when it handles events.
    broker.wait("the borrower", |report| {
        borrower.handle_events(|_| {});
        report.borrowers == [std::process::id()]
    });
}

#[test]
fn threads_of_one_client_share_its_connection() {
    let (_directory, path) = place();
    let broker = Broker::start(&path, 256);
    let client = connect(&path, "vm");

    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                for round in 0..200 {
                    let slots = client.reserve(1 + round % 5).unwrap();
                    slots.into_iter().for_each(|slot| client.free(slot));
                }
            });
        }
    });

    client.reserve(0).unwrap();
    broker.wait_reserved(0);
    let report = broker.report();
    assert_eq!(report.traffic.foreign_frees, 0);
    let counters = report.pool.counters;
    assert_eq!(counters.metadata_reserve_success, counters.metadata_reserve_free);
}

/// What a client has been sent so far. Notices to others are sent before a refusal.
fn heard(client: &Client) -> Vec<BrokerEvent> {
    let mut heard = Vec::new();
    client.handle_events(|event| heard.push(event));
    heard
}

#[test]
fn a_vm_at_its_minimum_is_not_asked_for_memory() {
    let (_directory, path) = place();
    let _broker = Broker::start(&path, 16);
    let guaranteed = LeaseTerms { min: Bytes::kib(256), ..terms("guaranteed") };
    let guaranteed = Vm::of(Client::connect(&path, guaranteed).unwrap());
    let (rich, poor) = (connect(&path, "rich"), connect(&path, "poor"));
    guaranteed.reserve(3).unwrap();
    rich.reserve(12).unwrap();

    poor.reserve(1).unwrap_err();

    assert_eq!(heard(&rich), [BrokerEvent::RequestReclaim { chunks: 1 }]);
    assert_eq!(heard(&guaranteed), []);
}

#[test]
fn a_starved_vm_is_not_asked_for_memory() {
    let (_directory, path) = place();
    let _broker = Broker::start(&path, 16);
    let (first, second) = (connect(&path, "first"), connect(&path, "second"));
    first.reserve(8).unwrap();
    second.reserve(8).unwrap();

    first.reserve(1).unwrap_err();
    assert_eq!(heard(&second), [BrokerEvent::RequestReclaim { chunks: 1 }]);
    second.reserve(1).unwrap_err();

    assert_eq!(heard(&first), []);
    assert_eq!(heard(&second), [BrokerEvent::StopReclaim]);
}

#[test]
fn what_is_lacking_is_asked_for_once_and_in_proportion() {
    let (_directory, path) = place();
    let _broker = Broker::start(&path, 16);
    let (large, small) = (connect(&path, "large"), connect(&path, "small"));
    let poor = connect(&path, "poor");
    large.reserve(12).unwrap();
    small.reserve(4).unwrap();

    poor.reserve(4).unwrap_err();

    assert_eq!(heard(&large), [BrokerEvent::RequestReclaim { chunks: 3 }]);
    assert_eq!(heard(&small), [BrokerEvent::RequestReclaim { chunks: 1 }]);
}

#[test]
fn a_freed_chunk_goes_to_the_vm_furthest_below_its_share() {
    let (_directory, path) = place();
    let broker = Broker::start(&path, 16);
    let (leaking, other) = (connect(&path, "leaking"), connect(&path, "other"));
    let poor = connect(&path, "poor");
    leaking.reserve(12).unwrap();
    let slots = other.reserve(4).unwrap();
    leaking.reserve(1).unwrap_err();
    poor.reserve(1).unwrap_err();

    other.free(slots[0]);
    broker.wait_reserved(15);

    let refused = leaking.reserve(1).unwrap_err();
    assert!(matches!(reason(&refused), Reason::Exhausted { .. }), "{refused}");
    poor.reserve(1).unwrap();
}

#[test]
fn a_waiting_vm_that_has_gone_keeps_nothing_from_others() {
    let (_directory, path) = place();
    let broker = Broker::start(&path, 16);
    let (leaking, other) = (connect(&path, "leaking"), connect(&path, "other"));
    let poor = connect(&path, "poor");
    leaking.reserve(12).unwrap();
    let slots = other.reserve(4).unwrap();
    poor.reserve(1).unwrap_err();

    drop(poor);
    other.free(slots[0]);

    broker.wait("the end of the waiting VM", |report| report.pool.leases.len() == 2);
    until("the slot", || leaking.reserve(1).is_ok());
}
