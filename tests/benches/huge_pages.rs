//! What a guest's touches cost after its memory went back to the host and came again: whether the host backs it by
//! huge pages as before. Instructions of the host.

use std::time::{Duration, Instant};

use tesseractl::bench::OWN;
use testing::balloon;
use testing::figures::{Entry, counted, kept};
use testing::footprint::{Curve, Footprint, mib};
use testing::guest::{Guest, Plan};
use testing::lab::Lab;
use testing::wait::until;

const BENCH: &str = "huge_pages";
/// The first touch, beside which the others are.
const FRESH: &str = "fresh memory";

/// MiB: of the guest, of what it touches each time, and of the balloon between.
const MEMORY: &str = "1G";
const TOUCHED: u64 = 400;
const BALLOON: u64 = 700;
const CYCLES: u64 = 10;

/// The least of the memory that is huge then, in percent, and what touches cost at most, of those of fresh memory.
const HUGE: f64 = 95.0;
const COST: f64 = 1.05;

const LIMIT: Duration = Duration::from_secs(1500);

/// What a guest's touches cost, in millions of instructions, and how much of its memory is huge then, in percent.
struct Touches {
    cost: f64,
    huge: f64,
}

/// Has a guest touch memory and free it.
fn touch(guest: &mut Guest, what: &str) -> Touches {
    let report = guest.order(&format!("touch {TOUCHED}"), "touched");
    let cost = report["took_ns"].as_u64().unwrap() as f64 / 1e6;
    let footprint = Footprint::of(&mut guest.client());
    let huge = footprint.huge as f64 * 100.0 / footprint.resident as f64;
    println!(
        "{what}: {cost:.0} million instructions; {:.0} MiB resident, {:.0} MiB huge ({huge:.1} %)",
        mib(footprint.resident),
        mib(footprint.huge)
    );
    let figure = counted(BENCH, "touch of 400 MiB", "million instructions");
    let figure = figure.case(what).guest(MEMORY, 1).supply("ledger");
    figure.at_most_of(COST, OWN, Some(FRESH)).record(cost);
    let figure = kept(BENCH, "huge of what is resident after it", "%").more_is_better();
    figure.case(what).guest(MEMORY, 1).supply("ledger").at_least(HUGE).record(huge);
    assert_eq!(guest.order("free", "freed")["wrong"], 0);
    Touches { cost, huge }
}

#[test]
fn memory_that_was_in_a_balloon_costs_as_much_as_before() {
    Lab::new().counting_instructions().timeout(LIMIT).run(|| {
        let plan = Plan::workload("memory").append("nokaslr").with("--memory", MEMORY);
        let mut guest =
            plan.with("--mte", "require").with("--balloon", "reporting=off,target=0").start();
        guest.report("ready");
        let fresh = touch(&mut guest, FRESH);
        touch(&mut guest, "the same again");
        for cycle in 1..=CYCLES {
            balloon::resize(&guest, BALLOON);
            let left = Footprint::of(&mut guest.client());
            balloon::resize(&guest, 0);
            println!(
                "in a balloon of {BALLOON} MiB: {:.0} MiB resident, {:.0} MiB huge",
                mib(left.resident),
                mib(left.huge)
            );
            let again = touch(&mut guest, &format!("after {cycle} balloons"));
            assert!(again.huge >= HUGE, "huge pages are lost");
            assert!(
                again.cost <= fresh.cost * COST,
                "touches cost more than those of fresh memory"
            );
        }
        touch(&mut guest, "the same again after all");
        let metrics = guest.client().metrics().unwrap();
        println!("renewed: {}", metrics["balloon"]["renewed_chunks_total"]);
        guest.stop();
    });
}

/// How long after the guest's last change its memory is huge again.
const SOON: Duration = Duration::from_secs(10);

/// Waits until what is resident is huge.
fn until_huge(guest: &Guest) -> Footprint {
    let start = Instant::now();
    until("memory to be huge", || {
        let footprint = Footprint::of(&mut guest.client());
        let is_huge = footprint.huge as f64 >= footprint.resident as f64 * HUGE / 100.0;
        let waited = start.elapsed();
        assert!(
            waited < SOON,
            "{:.0} of {:.0} MiB are huge after {waited:?}",
            mib(footprint.huge),
            mib(footprint.resident)
        );
        is_huge.then_some(footprint)
    })
}

/// Has a guest touch memory, free it, and report it.
fn touch_and_report(guest: &mut Guest, what: &str) {
    const SMALL: u64 = 120;
    let report = guest.order(&format!("touch {SMALL}"), "touched");
    let cost = report["took_ns"].as_u64().unwrap() / 1_000_000;
    let footprint = Footprint::of(&mut guest.client());
    let start = Instant::now();
    let later = until_huge(guest);
    let waited = start.elapsed().as_secs_f64();
    println!(
        "{what}: {cost} million instructions; {:.0} MiB resident, {:.0} MiB huge, {:.0} after {waited:.1} s",
        mib(footprint.resident),
        mib(footprint.huge),
        mib(later.huge),
    );
    let set = |figure: Entry| figure.case(what).guest("256M", 1).supply("ledger");
    let spent =
        counted(BENCH, "touch of 120 MiB, all of it reported before", "million instructions");
    set(spent).record(cost as f64);
    let percent = |footprint: &Footprint| footprint.huge as f64 * 100.0 / footprint.resident as f64;
    for (when, footprint) in [("at once", &footprint), ("later", &later)] {
        let name = format!("huge of what is resident after it, {when}");
        set(kept(BENCH, &name, "%").more_is_better()).record(percent(footprint));
    }
    set(counted(BENCH, "until 95 % are huge", "seconds of the counting clock"))
        .at_most(SOON.as_secs_f64())
        .record(waited);
    assert_eq!(guest.order("free", "freed")["wrong"], 0);
    Curve::until_still(guest);
}

/// A guest whose units of reporting are parts of huge pages, for the sake of what goes back.
#[test]
fn memory_that_a_small_guest_reports_is_huge_again_when_it_is_whole() {
    Lab::new().counting_instructions().timeout(LIMIT).run(|| {
        let plan = Plan::workload("memory").append("nokaslr").with("--memory", "256M");
        let mut guest = plan.with("--mte", "require").start();
        guest.report("ready");
        touch_and_report(&mut guest, "fresh memory");
        (1..=6).for_each(|times| touch_and_report(&mut guest, &format!("reported {times} times")));
        let metrics = guest.client().metrics().unwrap();
        let renewed = metrics["balloon"]["renewed_chunks_total"].as_u64().unwrap();
        let count = |name: &str| metrics["balloon"][name].as_u64().unwrap();
        let (split, mended) = (count("split_chunks_total"), count("mended_chunks_total"));
        println!("renewed: {renewed} chunks, split: {split}, mended: {mended}");
        assert!(renewed > 0, "no chunk that went in pieces is whole again");
        guest.stop();
    });
}
