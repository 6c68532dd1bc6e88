//! Two VMs and a broker whose pool is too small for both.

use std::process::Stdio;

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use testing::balloon::reaches;
use testing::broker::Broker;
use testing::footprint::{Curve, mib};
use testing::guest::{Guest, Plan};
use testing::lab::Lab;
use testing::wait::until;

use crate::reporting::{plan, start};

/// Tag storage of a guest of 512 MiB is 16 MiB; of both, 32.
const MEMORY: u64 = 512;
const CAPACITY: &str = "20M";

/// A guest on demand of this broker, under a name.
fn demand(broker: &Broker, id: &str, on_exhausted: &str) -> Plan {
    plan(MEMORY)
        .with("--broker", broker.socket())
        .with("--tag-storage", "demand")
        .with("--on-exhausted", on_exhausted)
        .with("--id", id)
}

fn tag_storage(guest: &Guest) -> Value {
    guest.client().get("/tag-storage").unwrap()
}

/// What a lease has, in bytes.
fn reserved(broker: &Broker, name: &str) -> u64 {
    let report = broker.report();
    let leases = report.pool.leases.iter().filter(|lease| lease.name == name);
    leases.map(|lease| lease.reserved_bytes).sum()
}

fn show(broker: &Broker, what: &str) {
    let report = broker.report();
    println!("{what} (supply {}):", report.pool.supply);
    for lease in &report.pool.leases {
        println!("  {}: {:.2} MiB reserved", lease.name, mib(lease.reserved_bytes));
    }
    println!(
        "  {} of {} blocks free; {} gave back, {} relieved",
        report.pool.blocks.free,
        report.pool.blocks.total,
        report.traffic.give_backs,
        report.traffic.reliefs
    );
}

/// The broker has all of its tag storage again.
fn nothing_left(broker: Broker) {
    let report = broker.wait("all leases to end", |report| report.pool.leases.is_empty());
    assert_eq!(report.pool.blocks.free, report.pool.blocks.total, "{report:?}");
    assert_eq!(report.pool.chunks.reserved, 0, "{report:?}");
    let counters = report.pool.counters;
    assert_eq!(counters.metadata_reserve_success, counters.metadata_reserve_free, "{report:?}");
    let path = broker.path().to_owned();
    assert_eq!(broker.end().0, Some(143));
    assert!(!path.exists());
}

#[test]
#[ignore = "long"]
fn strict_refuses_the_second_vm_by_name() {
    Lab::new().as_root().run(|| {
        let broker = Broker::start(&["--capacity", CAPACITY]);
        print!("{}", broker.greeting);
        let strict = |id: &str| {
            let plan = plan(MEMORY).with("--broker", broker.socket()).with("--id", id);
            plan.with("--tag-storage", "strict")
        };
        let first = start(strict("vm-one"));
        assert_eq!(reserved(&broker, "vm-one"), 16 << 20);

        let output = strict("vm-two").command().stdin(Stdio::null()).output().unwrap();

        let message = String::from_utf8_lossy(&output.stderr);
        println!("{}", message.trim_end());
        assert_eq!(output.status.code(), Some(69), "{message}");
        for words in ["'vm-two'", "16 MiB", "4 MiB", "ledger"] {
            assert!(message.contains(words), "{words}: {message}");
        }
        assert_eq!(reserved(&broker, "vm-one"), 16 << 20);
        first.stop();
        let second = start(strict("vm-two"));
        assert_eq!(reserved(&broker, "vm-two"), 16 << 20);
        second.stop();
        nothing_left(broker);
    });
}

/// Two guests on demand; the first has touched memory and freed it, and its host has not got it back.
fn first_is_full(broker: &Broker) -> Guest {
    // Without reporting, so that only the broker's request makes it give.
    let plan = demand(broker, "vm-one", "wait").with("--balloon", "reporting=off");
    let mut first = start(plan);
    first.order("touch 400", "touched");
    assert_eq!(first.order("free", "freed")["wrong"], 0);
    first
}

#[test]
fn the_second_vm_goes_on_when_the_first_has_given_back() {
    Lab::new().as_root().run(|| {
        let broker = Broker::start(&["--capacity", CAPACITY]);
        let first = first_is_full(&broker);
        let before = reserved(&broker, "vm-one");
        show(&broker, "the first has touched and freed 400 MiB");
        assert!(before > 12 << 20, "{before}");

        // It waits for as long as it takes.
        let mut second = start(demand(&broker, "vm-two", "wait,deadline=60"));
        second.order("touch 300", "touched");

        show(&broker, "the second has touched 300 MiB");
        assert!(reserved(&broker, "vm-one") < before);
        assert!(broker.report().traffic.give_backs > 0);
        let told = tag_storage(&second);
        assert!(told["counters"]["exhausted_total"].as_u64().unwrap() > 0, "{told}");
        assert_eq!(second.order("free", "freed")["wrong"], 0);
        // Relieved, the first guest may have its memory again.
        let client = &mut first.client();
        reaches(client, 0);
        first.stop();
        second.stop();
        nothing_left(broker);
    });
}

#[test]
#[ignore = "long"]
fn each_on_exhausted_does_what_it_says_beside_another_vm() {
    Lab::new().as_root().run(|| {
        let broker = Broker::start(&["--capacity", CAPACITY]);
        // It holds on to its memory: there is nothing that its balloon could take.
        let mut first = demand(&broker, "vm-one", "wait").flag("--no-balloon").start();
        first.report("ready");
        first.order("touch 400", "touched");

        let mut waits = start(demand(&broker, "vm-waits", "wait,deadline=1"));
        waits.type_line("touch 300");
        until("a touch that has waited too long", || {
            (tag_storage(&waits)["expired"] == true).then_some(())
        });
        assert_eq!(waits.client().instance().unwrap().state.as_str(), "Running");
        waits.stop();

        let mut killed = start(demand(&broker, "vm-killed", "kill,deadline=20"));
        killed.type_line("touch 300");
        let finished = killed.finish();
        assert_eq!(finished.code, Some(14), "{finished:#?}");
        println!("{}", finished.messages.trim_end());

        let mut paused = start(demand(&broker, "vm-paused", "pause,deadline=1"));
        paused.type_line("touch 300");
        let reason = until("the pause", || paused.client().instance().unwrap().pause_reason);
        println!("paused: {reason}");
        show(&broker, "exhausted");

        // Its memory free, the one that is paused resumes by itself.
        assert_eq!(first.order("free", "freed")["wrong"], 0);
        first.stop();
        paused.report("touched");
        assert_eq!(paused.client().instance().unwrap().pause_reason, None);
        assert_eq!(paused.order("free", "freed")["wrong"], 0);
        paused.stop();
        nothing_left(broker);
    });
}

#[test]
#[ignore = "long"]
fn a_broker_that_is_stopped_holds_up_no_deadline() {
    Lab::new().as_root().run(|| {
        let broker = Broker::start(&["--capacity", CAPACITY]);
        let mut guest = start(demand(&broker, "vm", "pause,deadline=2"));
        guest.order("touch 50", "touched");
        let signal = |signal| {
            let pid = Pid::from_raw(broker.pid() as i32).unwrap();
            kill_process(pid, signal).unwrap();
        };

        signal(Signal::STOP);
        guest.type_line("touch 100");
        let reason = until("the pause", || guest.client().instance().unwrap().pause_reason);
        println!("paused: {reason}");
        // Not the end of the connection, which the guest's client declares after half a minute.
        assert!(reason.contains("has not answered"), "{reason}");
        assert_eq!(tag_storage(&guest)["expired"], true);

        signal(Signal::CONT);
        guest.report("touched");
        assert_eq!(guest.client().instance().unwrap().pause_reason, None);
        assert_eq!(guest.order("free", "freed")["wrong"], 0);
        guest.stop();
        nothing_left(broker);
    });
}

#[test]
#[ignore = "long"]
fn guests_survive_their_broker_and_the_next_one_takes_them_over() {
    Lab::new().as_root().run(|| {
        let scratch = testing::scratch::Scratch::new();
        let path = scratch.join("broker");
        let broker = Broker::start_at(&path, &["--capacity", CAPACITY]);
        let mut guest = start(demand(&broker, "vm", "wait,deadline=60"));
        guest.order("touch 100", "touched");
        Curve::until_still(&guest);
        let before = reserved(&broker, "vm");

        broker.kill();
        // It runs with what it has, and waits for the rest.
        assert!(guest.order("figures", "figures")["free_kib"].as_u64().unwrap() > 0);
        guest.type_line("touch 100");
        until("a touch that waits for the broker", || {
            let told = tag_storage(&guest);
            let reason = told["reason"].as_str().unwrap_or_default().to_owned();
            (told["exhausted"] == true && reason.contains("broker")).then_some(())
        });
        let next = Broker::start_at(&path, &["--capacity", CAPACITY]);
        guest.report("touched");

        // All but what was freed before and not yet reported.
        assert!(reserved(&next, "vm") >= before + (40 << 16), "{:?}", next.report());
        assert_eq!(guest.order("free", "freed")["wrong"], 0);
        next.wait("the lease to shrink", |report| {
            report.pool.leases.iter().all(|lease| lease.reserved_bytes <= before)
        });
        guest.stop();
        nothing_left(next);
        assert_eq!(scratch.names(), Vec::<String>::new());
    });
}
