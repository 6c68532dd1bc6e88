//! Samples of what tag storage is reserved for, beside the pages whose tags the host's kernel counts as in use.

use std::cmp::Ordering;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::footprint::mib;
use crate::guest::Plan;
use crate::memory::{PageCounter, tagged_ram};
use crate::wait::{PATIENCE, TURNS, until};

const CHUNK: u64 = 2 << 20;
/// The tags of a chunk.
const TAGS: u64 = CHUNK / 32;

/// MiB of the guest's memory, of what it keeps taking and freeing, and of the balloon that comes and goes.
const MEMORY: u64 = 128;
const PRESSED: u64 = 24;
const IN_BALLOON: u64 = 56;

/// Samples between two changes of the balloon.
const EACH: u64 = 20;

/// How often there was more than at the sample before, and how often less.
fn changes(reserved: &[u64]) -> [u64; 2] {
    [Ordering::Greater, Ordering::Less]
        .map(|way| reserved.windows(2).filter(|pair| pair[1].cmp(&pair[0]) == way).count() as u64)
}

/// Has a guest on demand take and free memory, and looks so many times. The guest, which stands still at each look, has
/// `between` two of them to itself. Root only.
///
/// # Panics
/// When more pages have their tags in use at any look than tag storage is reserved for.
pub fn never_above_reserved(samples: u64, between: Duration) {
    let plan = Plan::workload("memory").with("--memory", &format!("{MEMORY}M"));
    let mut guest = plan.with("--mte", "require").with("--tag-storage", "demand").start();
    guest.report("ready");
    let mut client = guest.client();
    until("the balloon's driver", || {
        let balloon: Value = client.get("/balloon").unwrap();
        (balloon["driver"] == "active").then_some(())
    });
    guest.order(&format!("press {PRESSED}"), "pressing");
    let all = tagged_ram(guest.pid());
    // Its pieces follow one another. No other memory with tags is so large.
    let is_start =
        |start: &u64| all.iter().any(|piece| piece.addresses.end == start + (MEMORY << 20));
    let start = all.iter().map(|piece| piece.addresses.start).find(is_start).unwrap();
    let ram = start..start + (MEMORY << 20);
    let counter = PageCounter::new(guest.pid());
    let page = rustix::param::page_size() as u64;
    let mut reserved = Vec::new();
    let mut highest = 0.0f64;
    let (began, least) = (Instant::now(), (samples / 150).max(1));
    let is_enough = |reserved: &[u64]| changes(reserved).into_iter().all(|count| count >= least);
    // On a busy host the guest does little between two looks: they go on until enough has changed.
    for sample in 0.. {
        let is_late = began.elapsed() >= PATIENCE * TURNS;
        if sample >= samples && (is_late || is_enough(&reserved)) {
            break;
        }
        if sample.is_multiple_of(EACH) {
            let target = if (sample / EACH).is_multiple_of(2) { IN_BALLOON } else { 0 };
            client.send("PATCH", "/balloon", &json!({ "amount_mib": target })).unwrap();
        }
        client.pause().unwrap();
        // Before the pages: memory may go back meanwhile, and none comes.
        let told: Value = client.get("/tag-storage").unwrap();
        let tagged = counter.count(&ram).tagged * page;
        client.resume().unwrap();
        let bytes = told["reserved_bytes"].as_u64().unwrap() / TAGS * CHUNK;
        assert!(tagged <= bytes, "sample {sample}: {tagged} bytes tagged: {told}");
        highest = highest.max(tagged as f64 / bytes as f64);
        reserved.push(bytes);
        std::thread::sleep(between);
    }
    let relaxed = guest.order("relax", "relaxed");
    assert_eq!(relaxed["wrong"], 0, "{relaxed}");
    let [more, less] = changes(&reserved);
    let told: Value = client.get("/tag-storage").unwrap();
    println!(
        "{} samples: {:.0} to {:.0} MiB reserved for, {more} times more than at the one before, {less} times less; \
         {:.1} % of it tagged at most; {} pieces of 2 MiB taken and checked; {}",
        reserved.len(),
        mib(*reserved.iter().min().unwrap()),
        mib(*reserved.iter().max().unwrap()),
        highest * 100.0,
        relaxed["pieces"],
        told["counters"]
    );
    assert!(is_enough(&reserved), "hardly anything changed: {more} {less}");
    guest.stop();
}
