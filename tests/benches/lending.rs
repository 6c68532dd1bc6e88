//! What each way of lending tag storage that is a NUMA node costs VMs with MTE, and what it gives VMs without:
//! the measurement that the discussion of the kernel series asks for.
//!
//! The mix is one broker, one VM without MTE that borrows and one with MTE on demand, on a host of which one
//! part in five is the node. The borrower takes a good part of the host's memory, then all of it but a margin.
//! The other VM touches new memory at three loads.

use std::fs;
use std::time::Duration;

use arch::layout::CHUNK;
use arch::mte::granule::MEMORY_PER_TAG_STORAGE;
use tesseractl::bench::model::mix;
use tesseractl::bench::model::validation::{self, AT_FIRST, BENCH, FIRST};
use testing::broker::Broker;
use testing::figures::{Entry, counted, kept};
use testing::guest::{Guest, Plan};
use testing::lab::Lab;
use testing::memory::pages_on_node;
use testing::procfs::first_number;

const SUPPLY: &str = "node:1";
/// Memory of the guest with MTE.
const OWNER: &str = "384M";
// In MiB; the model asks for the same (`tesseractl bench model --validate`).
const TAKEN: u64 = mix::TAKEN.as_mib();
const TOUCHED: u64 = mix::TOUCHED.as_mib();
const STEP: u64 = mix::STEP.as_mib();
const MARGIN: u64 = mix::MARGIN.as_mib();
/// MiB that must be free outside the node for the guest with MTE to go on: it cannot live in tag storage, and
/// the kernel would kill for it.
const ROOM: u64 = mix::ROOM.as_mib();

/// Four mixes, each with two guests, at some 10^8 instructions a second.
const LIMIT: Duration = Duration::from_secs(1500);

/// Free memory of a node, in MiB.
fn free(node: u32) -> u64 {
    free_kib(node) >> 10
}

fn free_kib(node: u32) -> u64 {
    first_number(&format!("/sys/devices/system/node/node{node}/meminfo"), "MemFree:")
}

/// kB that the kernel keeps free on a node: below its zones' low watermarks it gives a guest memory of another node.
fn kept_free(node: u32) -> u64 {
    let text = fs::read_to_string("/proc/zoneinfo").unwrap();
    let (mut here, mut pages) = (false, 0);
    for line in text.lines() {
        let words: Vec<&str> = line.split_ascii_whitespace().collect();
        match words.as_slice() {
            ["Node", number, "zone", _] => here = number.trim_end_matches(',') == node.to_string(),
            ["low", low] if here => pages += low.parse::<u64>().unwrap(),
            _ => {}
        }
    }
    pages << 2
}

fn on_node(guest: &Guest) -> u64 {
    pages_on_node(guest.pid(), 1) >> 8
}

/// Chunks of a guest on demand that have memory. Where there is plenty of tag storage, more are reserved for than that.
fn populated(guest: &Guest) -> u64 {
    guest.client().tag_storage().unwrap().chunks.populated.unwrap()
}

/// What touching new memory came to.
#[derive(Clone, Copy, Debug)]
struct Touch {
    /// Instructions of the whole host for each chunk that was populated.
    each: u64,
    chunks: u64,
    evictions: u64,
    /// Blocks that were lent before.
    lent: u64,
}

struct Mix {
    broker: Broker,
    lodger: Guest,
    owner: Guest,
    lent: bool,
    /// Memory of node 0 that the borrower does not get.
    ballast: Vec<u8>,
}

impl Mix {
    fn new(policy: &str) -> Self {
        let broker = Broker::start(&["--supply", SUPPLY, "--lend", policy]);
        // The kernel at one address each time, so that no two runs differ in their caches and tables.
        let plan = |memory: &str, mte| {
            let plan = Plan::workload("memory").append("nokaslr").with("--memory", memory);
            let plan = plan.with("--balloon", "reporting=off").with("--mte", mte);
            plan.with("--broker", broker.socket())
        };
        let mut owner = plan(OWNER, "require").with("--tag-storage", "demand").start();
        owner.report("ready");
        let mut lodger = plan("1200M", "off").start();
        lodger.report("ready");
        // The programs of both are in memory from here on.
        owner.order("touch 16", "touched");
        let ballast = vec![1; (ROOM as usize) << 20];
        Self { broker, lodger, owner, lent: policy != "never", ballast }
    }

    fn touch(&mut self) -> Option<Touch> {
        if free(0) < mix::NEEDED.as_mib() {
            return None;
        }
        let count = |mix: &Self| {
            let pool = mix.broker.report().pool;
            (populated(&mix.owner), pool.counters.evictions, pool.blocks.lent)
        };
        // Huge pages for all, or the figures would be about luck.
        fs::write("/proc/sys/vm/compact_memory", "1").unwrap();
        let (chunks, evictions, lent) = count(self);
        // Only this thread's instructions count.
        self.lodger.client().pause().unwrap();
        let took = self.owner.order(&format!("touch {TOUCHED}"), "touched")["took_ns"].as_u64();
        self.lodger.client().resume().unwrap();
        let (chunks_now, evictions_now, _) = count(self);
        assert_eq!(pages_on_node(self.owner.pid(), 1), 0);
        let chunks = chunks_now - chunks;
        assert!(chunks * CHUNK.get() >= (TOUCHED - 4) << 20, "{chunks} chunks for {TOUCHED} MiB");
        let evictions = evictions_now - evictions;
        Some(Touch { each: took.unwrap() / chunks, chunks, evictions, lent })
    }

    /// MiB that the borrower may have and that are free.
    fn left(&self) -> u64 {
        free(0) + if self.lent { free(1) } else { 0 }
    }
}

fn show(touch: Option<Touch>) -> String {
    touch.map_or_else(
        || "-".to_owned(),
        |touch| format!("{} ({} of {})", touch.each, touch.evictions, touch.chunks),
    )
}

/// What the host has before the first load, for the model.
fn record_first(policy: &str, mix: &Mix) {
    let pool = mix.broker.report().pool;
    let tags: u64 = pool.leases.iter().map(|lease| lease.reserved_bytes).sum();
    let kib = [
        free_kib(0),
        free_kib(1),
        kept_free(0),
        kept_free(1),
        pool.capacity_bytes >> 10,
        tags >> 10,
        pages_on_node(mix.lodger.pid(), 1) << 2,
    ];
    for (what, kib) in FIRST.iter().zip(kib) {
        let figure = kept(BENCH, AT_FIRST.0, AT_FIRST.1).case(&format!("{policy}, {what}"));
        figure.supply(SUPPLY).record(kib as f64);
    }
}

/// What the guest with MTE saw at each load; nothing where there was no memory to touch.
fn record(policy: &str, touches: [Option<Touch>; 3]) {
    for (load, touch) in validation::loads().into_iter().zip(touches) {
        let case = format!("{policy}, {load}");
        let latency = counted(BENCH, "touch of a chunk with tags", "instructions a chunk");
        let figures = [
            (latency, touch.map(|touch| touch.each)),
            (entry(validation::CHUNKS), touch.map(|touch| touch.chunks)),
            (entry(validation::EVICTIONS), touch.map(|touch| touch.evictions)),
            (entry(validation::LENT), touch.map(|touch| touch.lent >> 8)),
        ];
        for (figure, value) in figures {
            let figure = figure.case(&case).guest(OWNER, 1).supply(SUPPLY);
            match value {
                Some(value) => figure.record(value as f64),
                None => figure.cannot("no memory is left to touch"),
            }
        }
    }
}

fn entry((name, unit): (&str, &str)) -> Entry {
    kept(BENCH, name, unit)
}

/// A line of the table.
fn measure(policy: &str) -> String {
    let mut mix = Mix::new(policy);
    println!("{policy}: at first {} + {} MiB free", free(0), free(1));
    record_first(policy, &mix);
    let idle = mix.touch();

    mix.lodger.order(&format!("touch {TAKEN}"), "touched");
    let lent = on_node(&mix.lodger);
    println!("{policy}: {TAKEN} MiB taken, {lent} on the node, {} + {} free", free(0), free(1));
    let loaded = mix.touch();

    let mut taken = TAKEN;
    while mix.left() >= MARGIN + STEP {
        mix.lodger.order(&format!("touch {STEP}"), "touched");
        taken += STEP;
    }
    let (most, here, there) = (on_node(&mix.lodger), free(0), free(1));
    println!("{policy}: {taken} MiB taken, {most} on the node, {here} + {there} free");
    // A guest with MTE cannot live in tag storage: it needs other memory.
    mix.ballast = Vec::new();
    let full = mix.touch();

    let report = mix.broker.report().pool;
    record(policy, [idle, loaded, full]);
    for (figure, mib) in [(validation::MOST, taken), (validation::ON_NODE, most)] {
        entry(figure).case(policy).supply(SUPPLY).more_is_better().record(mib as f64);
    }
    assert_eq!(mix.lodger.order("free", "freed")["wrong"], 0);
    assert_eq!(mix.owner.order("free", "freed")["wrong"], 0);
    mix.lodger.stop();
    mix.owner.stop();
    format!(
        "{policy:<12} {:>20} {:>20} {:>20} {:>9} {taken:>7} {lent:>5} {most:>5} {here:>6}",
        show(idle),
        show(loaded),
        show(full),
        report.counters.evictions,
    )
}

#[test]
fn ways_of_lending_differ_in_latency_evictions_and_usable_memory() {
    let lab = Lab::new().memory("1280M").second_node("256M");
    lab.counting_instructions().timeout(LIMIT).run(|| {
        // Once for the page cache.
        drop(Mix::new("never"));

        let lines: Vec<String> =
            ["never", "last-resort", "balanced", "eager"].map(measure).to_vec();

        println!(
            "supply node:1; instructions for a tagged chunk (evicted blocks of 4 KiB, of chunks touched); \
             MiB; a chunk's tags are 1/{MEMORY_PER_TAG_STORAGE} of it"
        );
        println!(
            "{:<12} {:>20} {:>20} {:>20} {:>9} {:>7} {:>5} {:>5} {:>6}",
            "policy", "idle", format!("{TAKEN} taken"), "all taken", "evictions", "usable", "lent", "most", "left 0"
        );
        lines.iter().for_each(|line| println!("{line}"));
    });
}
