//! Brokers that go, and come back.

use super::*;

fn is_attached(heard: BrokerEvent) -> bool {
    matches!(heard, BrokerEvent::Attached { .. })
}

#[test]
fn without_its_broker_a_vm_keeps_what_it_has_and_gets_nothing() {
    let (_directory, path) = place();
    let broker = Broker::start(&path, 64);
    let client = connect(&path, "vm");
    let slots = client.reserve(10).unwrap();

    drop(broker);

    wait_for_event(&client, |heard| heard == BrokerEvent::Detached);
    let refused = client.reserve(1).unwrap_err();
    assert!(matches!(refused, Error::Lost { .. } | Error::Detached { .. }), "{refused}");
    assert!(refused.to_string().contains("start it again"), "{refused}");
    client.free(slots[0]);
    let status = client.status();
    assert_eq!((status.attached, status.chunks, status.owed), (false, 0, 9));
}

#[test]
fn a_new_broker_takes_over_what_the_vms_hold() {
    let (_directory, path) = place();
    let broker = Broker::start(&path, 64);
    let clients = [connect(&path, "one"), connect(&path, "two")];
    let mut held: Vec<_> = clients.iter().map(|client| client.reserve(20).unwrap()).collect();
    drop(broker);
    for (client, slots) in clients.iter().zip(&mut held) {
        wait_for_event(client, |heard| heard == BrokerEvent::Detached);
        // What is freed meanwhile is not taken over.
        slots.drain(..5).for_each(|slot| client.free(slot));
    }

    let broker = Broker::start(&path, 64);

    for (client, slots) in clients.iter().zip(&mut held) {
        wait_for_event(client, |heard| heard == BrokerEvent::Attached { owed: 0 });
        slots.extend(client.reserve(1).unwrap());
        assert_eq!((client.status().chunks, client.status().losses), (16, 1));
    }
    assert_eq!(broker.report().pool.chunks.reserved, 32);
    assert_eq!(broker.report().traffic.adopted, 30);
    for (client, slots) in clients.iter().zip(held) {
        slots.into_iter().for_each(|slot| client.free(slot));
    }
    broker.wait_reserved(0);
    assert_eq!(broker.report().traffic.foreign_frees, 0);
}

#[test]
fn a_broker_that_comes_back_as_another_is_not_used() {
    let (_directory, path) = place();
    let broker = Broker::start(&path, 64);
    let (holder, borrower) = (connect(&path, "holder"), Client::borrow(&path, "borrower").unwrap());
    holder.reserve(4).unwrap();
    drop(broker);
    wait_for_event(&holder, |heard| heard == BrokerEvent::Detached);

    let mut other = server_resources(64);
    (other.terms.supply, other.terms.lend) = (SupplyName::Node(1), LendPolicy::Eager);
    let broker = Broker::serve(Server::with_places(&path, other, 64).unwrap(), &path);

    until("a reason", || {
        borrower.handle_events(|_| {});
        let refused = holder.reserve(1).unwrap_err().to_string();
        refused.contains("--supply ledger") && refused.contains("--supply node:1")
    });
    drop(broker);
    let mut lends = server_resources(64);
    lends.terms.lend = LendPolicy::Balanced;
    let broker = Broker::serve(Server::with_places(&path, lends, 64).unwrap(), &path);
    // Who holds does not mind how others borrow.
    wait_for_event(&holder, |heard| heard == BrokerEvent::Attached { owed: 0 });
    drop(broker);
    let broker = Broker::start(&path, 64);
    wait_for_event(&borrower, is_attached);
    assert_eq!(broker.report().borrowers, [std::process::id()]);
}

#[test]
fn a_large_guest_comes_back_whole() {
    let (_directory, path) = place();
    let broker = Broker::start(&path, 5000);
    let client = connect(&path, "large");
    client.reserve(4321).unwrap();
    drop(broker);

    let broker = Broker::start(&path, 5000);

    wait_for_event(&client, is_attached);
    assert_eq!(broker.report().pool.chunks.reserved, 4321);
}

#[test]
fn a_smaller_broker_leaves_a_debt_that_is_settled_by_freeing() {
    let (_directory, path) = place();
    let broker = Broker::start(&path, 64);
    let client = connect(&path, "vm");
    let mut slots = client.reserve(20).unwrap();
    drop(broker);

    let broker = Broker::start(&path, 16);
    wait_for_event(&client, |heard| heard == BrokerEvent::Attached { owed: 4 });
    let refused = client.reserve(1).unwrap_err();
    assert!(refused.to_string().contains("256 KiB that this guest uses already"), "{refused}");
    assert_eq!((client.status().chunks, client.status().owed), (16, 4));
    assert_eq!(broker.report().pool.chunks.free, 0);

    // A debt goes with its chunk, or with slots for it.
    slots.drain(..6).for_each(|slot| client.free(slot));
    until("the debt", || client.reserve(1).is_ok());
    assert_eq!(client.status().owed, 0);
    assert_eq!(broker.report().pool.chunks.reserved, 15);
}

#[test]
fn a_debt_is_settled_by_itself_when_others_free() {
    let (_directory, path) = place();
    let broker = Broker::start(&path, 16);
    let client = connect(&path, "vm");
    client.reserve(10).unwrap();
    drop(broker);
    wait_for_event(&client, |heard| heard == BrokerEvent::Detached);

    // Where another VM is faster, it has what this one had.
    let aside = path.with_file_name("aside");
    let broker = Broker::start(&aside, 16);
    let other = connect(&aside, "other");
    let slots = other.reserve(10).unwrap();
    std::fs::rename(&aside, &path).unwrap();
    wait_for_event(&client, |heard| heard == BrokerEvent::Attached { owed: 4 });
    wait_for_event(&other, |heard| matches!(heard, BrokerEvent::RequestReclaim { .. }));
    slots.into_iter().take(5).for_each(|slot| other.free(slot));

    wait_for_event(&client, |heard| heard == BrokerEvent::Attached { owed: 0 });
    assert_eq!(client.status().chunks, 10);
    assert_eq!(crate::tag_storage::broker::report(&path).unwrap().pool.chunks.reserved, 15);
    drop(broker);
}

#[test]
fn brokers_come_and_go_while_a_vm_works() {
    let (_directory, path) = place();
    let mut broker = Some(Broker::start(&path, 64));
    let client = connect(&path, "vm");
    let stop = std::sync::atomic::AtomicBool::new(false);
    let stopped = || stop.load(std::sync::atomic::Ordering::Relaxed);

    let held: Vec<ChunkIndex> = std::thread::scope(|scope| {
        let workers: Vec<_> = (0..3usize)
            .map(|_| {
                scope.spawn(|| {
                    let mut held = Vec::new();
                    while !stopped() {
                        if held.len() < 15
                            && let Ok(slots) = client.reserve(1 + held.len() as u64 % 3)
                        {
                            held.extend(slots);
                        }
                        if held.len() > 7 {
                            held.drain(..5).for_each(|slot| client.free(slot));
                        }
                    }
                    held
                })
            })
            .collect();
        for _ in 0..10 {
            drop(broker.take());
            broker = Some(Broker::start(&path, 64));
            wait_for_event(&client, is_attached);
        }
        stop.store(true, std::sync::atomic::Ordering::Relaxed);
        workers.into_iter().flat_map(|worker| worker.join().unwrap()).collect()
    });

    until("everything settled", || client.reserve(0).is_ok());
    let broker = broker.unwrap();
    assert_eq!(client.status().chunks as usize, held.len());
    broker.wait_reserved(held.len() as u32);
    held.into_iter().for_each(|slot| client.free(slot));
    broker.wait_reserved(0);
    assert_eq!(broker.report().traffic.foreign_frees, 0);
}

#[test]
fn a_client_that_is_closed_does_not_come_back() {
    let (_directory, path) = place();
    let broker = Broker::start(&path, 64);
    let client = connect(&path, "vm");
    client.reserve(3).unwrap();
    drop(broker);
    wait_for_event(&client, |heard| heard == BrokerEvent::Detached);

    client.close();
    let broker = Broker::start(&path, 64);

    assert!(client.reserve(1).is_err());
    drop(client);
    broker.wait("no lease", |report| report.pool.leases.is_empty());
    assert_eq!(broker.report().traffic.adopted, 0);
}

#[test]
fn a_broker_that_hangs_up_in_the_middle_is_as_one_that_is_gone() {
    let (_directory, path) = place();
    let broker = Broker::start(&path, 64);
    let client = connect(&path, "vm");
    client.reserve(3).unwrap();

    // From the broker's side, as if it had been killed with a question under way.
    drop(broker);
    let refused = client.reserve(1).unwrap_err();

    assert!(matches!(refused, Error::Lost { .. } | Error::Detached { .. }), "{refused}");
    assert_eq!(client.status().owed, 3);
}

#[test]
fn the_thread_that_looks_for_a_broker_blocks_the_signals_that_end_a_vm() {
    let (_directory, path) = place();
    let broker = Broker::start(&path, 64);
    let client = connect(&path, "vm");
    drop(broker);
    wait_for_event(&client, |heard| heard == BrokerEvent::Detached);

    assert!(crate::tag_storage::reservation::testing::threads_block_signals("broker"));
}
