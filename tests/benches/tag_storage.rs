//! What tag storage costs, in instructions: reserving and freeing that of a chunk, by the size of the pool and
//! of its blocks, and at a broker; a guest's start and its touching of memory, with tag storage reserved on
//! demand against all of it before the start.

use std::sync::Arc;
use std::time::{Duration, Instant};

use arch::layout::{CHUNK, RAM_BASE};
use arch::mte::granule::MEMORY_PER_TAG_STORAGE;
use tesseractl::bench::OWN;
use testing::broker::Broker;
use testing::figures::counted;
use testing::guest::Plan;
use testing::lab::Lab;
use vm_memory::{Address as _, Bytes as _};
use vmm::memory::{Attributes, Backing, GuestRam};
use vmm::tag_storage::broker::Client;
use vmm::tag_storage::{
    Bytes, ChunkIndex, Demand, Embedded, ExhaustionStatus, Geometry, LeaseId, LeaseTerms, Ledger,
    MAX_CAPACITY, Pool, SlotIndex,
};

const BENCH: &str = "tag_storage";

/// Instructions for reserving and freeing a chunk, where blocks are no larger than its tags: no hardware is
/// known to have larger ones.
const AIM: f64 = 500.0;

/// A chunk's tags.
const TAGS: Bytes = Bytes::kib(64);

/// What pools of all sizes differ by at most, in percent.
const SPREAD: f64 = 10.0;

/// Chunks that are measured together: 512 MiB, as many as the smallest pool has.
const CHUNKS: u32 = 256;

/// How often. The least counts: an interrupt of the host takes as long as thousands of chunks, and some
/// rounds have none.
const ROUNDS: u32 = 40;

/// The largest pool is made and used within a minute.
const LIMIT: Duration = Duration::from_secs(600);

/// What demand costs more than strict at most, in percent: of a guest's start, and of its touching memory.
const AIM_START: f64 = 1.0;
const AIM_TOUCH: f64 = 8.0;

/// The same of chunks that are touched in no order, none of which is beside the one before.
const AIM_RANDOM: f64 = 40.0;

/// Tag storage for all guests here: the supply is the ledger.
const BROKER: [&str; 4] = ["--supply", "ledger", "--capacity", "64M"];

const CHUNKS_A_GIB: f64 = 512.0;

/// How long a guest is left alone after its start.
const SETTLED: Duration = Duration::from_secs(3);

/// A lease that may have all.
fn terms() -> LeaseTerms {
    LeaseTerms { name: "bench".to_owned(), min: Bytes::ZERO, max: Bytes::MAX }
}

/// A pool with one lease that may have all of it.
struct Bench {
    pool: Pool,
    lease: LeaseId,
}

/// Instructions for one chunk.
#[derive(Clone, Copy, Debug)]
struct Cost {
    /// Of a reserve and a free, one chunk after the other.
    pair: f64,
    /// Of a reserve, many after another, their slots used before in no order.
    reserve: f64,
    /// Of a free, many after another.
    free: f64,
}

impl Cost {
    fn parts(self) -> f64 {
        self.reserve + self.free
    }
}

impl Bench {
    /// A pool for the tags of so much memory.
    fn new(memory: Bytes, block: Bytes) -> Self {
        let capacity = Bytes::new(memory.get() / MEMORY_PER_TAG_STORAGE);
        let geometry = Geometry::new(Bytes::kib(4), block).unwrap();
        let pool = Pool::new(geometry, capacity, Box::new(Ledger)).unwrap();
        let lease = pool.open_lease(terms()).unwrap();
        Self { pool, lease }
    }

    fn reserve(&self) -> SlotIndex {
        self.pool.reserve(self.lease).unwrap()
    }

    fn free(&self, slot: SlotIndex) {
        self.pool.free(self.lease, slot).unwrap();
    }

    fn measure(&self) -> Cost {
        let mut slots: Vec<SlotIndex> = (0..CHUNKS).map(|_| self.reserve()).collect();
        let [mut pair, mut reserve, mut free] = [Duration::MAX; 3];
        for _ in 0..ROUNDS {
            shuffle(&mut slots);
            free = free.min(time(|| slots.iter().for_each(|slot| self.free(*slot))));
            let again = |slot: &mut SlotIndex| *slot = self.reserve();
            reserve = reserve.min(time(|| slots.iter_mut().for_each(again)));
            self.free(slots[0]);
            pair = pair.min(time(|| (0..CHUNKS).for_each(|_| self.free(self.reserve()))));
            slots[0] = self.reserve();
        }
        let each = |time: Duration| time.as_nanos() as f64 / f64::from(CHUNKS);
        Cost { pair: each(pair), reserve: each(reserve), free: each(free) }
    }

    /// Instructions for one chunk whose slot was never used, the kernel's for the pool's tables among them.
    fn measure_fresh(&self) -> f64 {
        let time = time(|| {
            (0..CHUNKS).for_each(|_| {
                self.reserve();
            })
        });
        time.as_nanos() as f64 / f64::from(CHUNKS)
    }
}

/// The same order each time, without rhyme.
fn shuffle(slots: &mut [SlotIndex]) {
    let mut state = 1u64;
    for at in (1..slots.len()).rev() {
        state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        slots.swap(at, (state >> 33) as usize % (at + 1));
    }
}

/// How long this takes: 1 ns is an instruction.
fn time(body: impl FnOnce()) -> Duration {
    let start = Instant::now();
    body();
    start.elapsed()
}

/// The memory whose tags the largest pool has.
fn largest() -> Bytes {
    Bytes::new(MAX_CAPACITY.get() * MEMORY_PER_TAG_STORAGE)
}

fn measure_all(block: Bytes) -> Vec<Cost> {
    let sizes = [Bytes::gib(1), Bytes::gib(1024), largest()];
    let costs = sizes.map(|memory| {
        let bench = Bench::new(memory, block);
        let fresh = bench.measure_fresh();
        let cost = Bench::new(memory, block).measure();
        println!(
            "ledger, tags of {memory} in blocks of {block}: {:.0} instructions for reserve and free \
             of a chunk; of many, {:.0} for a reserve and {:.0} for a free; {fresh:.0} for a reserve \
             of a fresh slot",
            cost.pair, cost.reserve, cost.free
        );
        let case = format!("tags of {memory}, blocks of {block}");
        let set = |name| {
            counted(BENCH, name, "instructions a chunk").case(&case).supply("ledger")
        };
        let pair = set("reserve and free");
        // Larger blocks have no aim.
        if block > TAGS { pair } else { pair.at_most(AIM) }.record(cost.pair);
        set("reserve, of many").record(cost.reserve);
        set("free, of many").record(cost.free);
        set("reserve of a slot that is fresh").record(fresh);
        cost
    });
    costs.to_vec()
}

/// Percent between the smallest and the largest.
fn spread(figures: impl Iterator<Item = f64> + Clone) -> f64 {
    let smallest = figures.clone().fold(f64::MAX, f64::min);
    figures.fold(0.0, f64::max) * 100.0 / smallest - 100.0
}

#[test]
fn reserving_and_freeing_a_chunk_costs_the_same_in_pools_of_any_size() {
    Lab::new().counting_instructions().timeout(LIMIT).run(|| {
        // The usual blocks; the largest that no two chunks share; such as four chunks share.
        for block in [Bytes::kib(4), TAGS, Bytes::kib(256)] {
            let costs = measure_all(block);

            let pairs = spread(costs.iter().map(|cost| cost.pair));
            let parts = spread(costs.iter().map(|cost| cost.parts()));
            println!("between pools: {pairs:.1} %, of many {parts:.1} %; aim: {AIM}, {SPREAD} %");
            assert!(pairs <= SPREAD && parts <= SPREAD, "the cost depends on the pool's size");
            let dearest = costs.iter().map(|cost| cost.pair).fold(0.0, f64::max);
            assert!(
                dearest < AIM || block > TAGS,
                "{dearest:.0} instructions are more than they may be"
            );
        }
    });
}

#[test]
fn a_round_trip_to_a_broker() {
    Lab::new().counting_instructions().timeout(LIMIT).run(|| {
        let broker = Broker::start(&BROKER);
        let client = Client::connect(broker.path(), terms()).unwrap();
        let reserve_and_free = |chunks: &[ChunkIndex]| {
            client.reserve(chunks).unwrap();
            client.free(chunks);
        };
        let all: Vec<ChunkIndex> = (0..u64::from(CHUNKS)).map(ChunkIndex).collect();
        let pair = || reserve_and_free(&[ChunkIndex(0)]);
        let many = || reserve_and_free(&all);
        let least = |body: &dyn Fn()| (0..ROUNDS).map(|_| time(body)).min().unwrap();

        let pairs = least(&|| (0..CHUNKS).for_each(|_| pair()));
        let together = least(&many);

        let each = |time: Duration| time.as_nanos() as f64 / f64::from(CHUNKS);
        println!(
            "ledger, at a broker: {:.0} instructions for reserve and free of a chunk, {:.0} of one of \
             {CHUNKS} that are reserved together",
            each(pairs),
            each(together),
        );
        for (case, time) in [("one chunk", pairs), ("one of 256 together", together)] {
            let figure = counted(BENCH, "reserve and free at a broker", "instructions a chunk");
            figure.case(case).supply("ledger").record(each(time));
        }
        let report = broker.report();
        assert_eq!(report.pool.leases.len(), 1, "{report:?}");
    });
}

/// How tag storage is reserved for a guest.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Mode {
    Off,
    Strict,
    Demand,
    /// Demand, at a broker.
    Brokered,
}

/// Instructions of the host for a guest's start and for its touching 512 MiB.
fn measure_guest(mode: Mode) -> [f64; 2] {
    let broker = (mode == Mode::Brokered).then(|| Broker::start(&BROKER));
    // The kernel at one address each time, so that no two runs differ in their caches and tables. Memory
    // comes, and none goes.
    let mut plan = Plan::workload("memory").append("nokaslr").with("--balloon", "reporting=off");
    plan = plan.with("--memory", "1G").with("--mte", "require");
    plan = match mode {
        Mode::Off => plan,
        Mode::Strict => plan.with("--tag-storage", "strict"),
        Mode::Demand => plan.with("--tag-storage", "demand"),
        Mode::Brokered => plan.with("--broker", broker.as_ref().unwrap().socket()),
    };
    let begun = Instant::now();
    let mut guest = plan.start();
    guest.report("ready");
    let start = begun.elapsed();
    // What the guest's kernel puts off until after its start is over then: idle time costs no instructions.
    std::thread::sleep(SETTLED);
    let touched = guest.order("touch 512", "touched");
    let touch = Duration::from_nanos(touched["took_ns"].as_u64().unwrap());
    let told: serde_json::Value = guest.client().get("/tag-storage").unwrap();
    guest.stop();
    let [start, touch] = [start, touch].map(|time| time.as_nanos() as f64 / 1e6);
    println!(
        "{mode:?}: {start:.1} million instructions until the guest's init, {touch:.1} for 512 MiB ({}; {})",
        told["chunks"], told["counters"]
    );
    if let (Some(requests), Some(chunks)) =
        (told["counters"]["requests_total"].as_u64(), told["counters"]["populated_total"].as_u64())
    {
        let each = requests as f64 * CHUNKS_A_GIB / chunks as f64;
        println!("{mode:?}: {requests} requests for {chunks} chunks, {each:.0} a GiB");
    }
    [start, touch]
}

/// Prints what demand costs beside strict, on a host with these words on its kernel's command line.
fn compare(append: &str) {
    Lab::new().append(append).counting_instructions().timeout(LIMIT).run(|| {
        // The first fills the host's caches.
        measure_guest(Mode::Off);
        let off = measure_guest(Mode::Off);
        let strict = measure_guest(Mode::Strict);
        let record = |mode: Mode, [start, touch]: [f64; 2]| {
            let host = if append.is_empty() { String::new() } else { format!(", host with {append}") };
            let case = format!("{mode:?}{host}").to_lowercase();
            let against = format!("strict{host}");
            let set = |name, aim: f64| {
                let figure = counted(BENCH, name, "million instructions").case(&case).guest("1G", 1);
                let figure = if mode == Mode::Off { figure } else { figure.supply("ledger") };
                let has_aim = matches!(mode, Mode::Demand | Mode::Brokered);
                let most = 1.0 + aim / 100.0;
                if has_aim { figure.at_most_of(most, OWN, Some(&against)) } else { figure }
            };
            set("start to the guest's init", AIM_START).record(start);
            set("touch of 512 MiB", AIM_TOUCH).record(touch);
        };
        record(Mode::Off, off);
        record(Mode::Strict, strict);

        for mode in [Mode::Demand, Mode::Brokered] {
            let cost = measure_guest(mode);
            record(mode, cost);
            let more = |what: usize, than: [f64; 2]| cost[what] * 100.0 / than[what] - 100.0;
            println!(
                "{mode:?} against strict: {:+.1} % to start, {:+.1} % to touch; against none: {:+.1} %, \
                 {:+.1} %; aim: {AIM_START} %, {AIM_TOUCH} %",
                more(0, strict),
                more(1, strict),
                more(0, off),
                more(1, off),
            );
        }
    });
}

#[test]
fn demand_against_strict_at_the_start_and_at_512_mib_touched() {
    compare("");
}

/// Debian's kernel clears each page twice, unless a parameter forbids it.
#[test]
fn demand_against_strict_on_a_host_that_clears_pages_once() {
    compare("init_on_alloc=0");
}

/// Instructions for touching each of these chunks once, a byte of each, in this process: with tag storage on demand, or
/// without.
fn touch_chunks(order: &[u64], on_demand: bool) -> f64 {
    let size = Bytes::new(order.len() as u64 * CHUNK.get());
    let attributes = Attributes { tags: true, huge_pages: true, backing: Backing::Anonymous };
    let ram = GuestRam::new(size, attributes).unwrap();
    let demand = on_demand.then(|| {
        let Bench { pool, lease } = Bench::new(Bytes::gib(8), Bytes::kib(4));
        let client = Arc::new(Embedded::new(Arc::new(pool), lease));
        let listener = Arc::new(ExhaustionStatus::new().unwrap());
        let demand = Demand::start(ram.clone(), client, Duration::MAX, listener).unwrap();
        demand.finish_loading().unwrap();
        demand
    });
    let took = time(|| {
        for chunk in order {
            let at = RAM_BASE.unchecked_add(chunk * CHUNK.get());
            ram.write_obj(1u8, at).unwrap();
        }
    });
    if let Some(demand) = demand {
        let counters = demand.counters();
        println!(
            "{} chunks: {} touches caught, {} chunks reserved before they were touched",
            order.len(),
            counters.touches.get(),
            counters.ahead.get()
        );
    }
    took.as_nanos() as f64 / order.len() as f64
}

#[test]
fn a_touch_of_a_chunk_on_demand_against_one_without() {
    Lab::new().as_root().counting_instructions().timeout(LIMIT).run(|| {
        let walk: Vec<u64> = (0..u64::from(CHUNKS)).collect();
        // 101 is prime to the number of chunks: all are touched, and none is beside the one before.
        let random: Vec<u64> = walk.iter().map(|chunk| chunk * 101 % u64::from(CHUNKS)).collect();
        // The first fills the host's caches.
        touch_chunks(&walk, false);
        for (what, order, aim) in [("walk", &walk, AIM_TOUCH), ("no order", &random, AIM_RANDOM)] {
            let [without, with] = [false, true].map(|on_demand| touch_chunks(order, on_demand));
            let more = with * 100.0 / without - 100.0;
            println!(
                "{what}: {:.0} thousand instructions a chunk without, {:.0} on demand, {more:+.1} %; aim: {aim} %",
                without / 1e3,
                with / 1e3,
            );
            let figure = |case: &str| {
                let case = format!("{what}, {case}");
                counted(BENCH, "touch of a chunk, no guest", "instructions a chunk").case(&case)
            };
            figure("without").record(without);
            let most = 1.0 + aim / 100.0;
            let on_demand = figure("on demand").supply("ledger");
            on_demand.at_most_of(most, OWN, Some(&format!("{what}, without"))).record(with);
            assert!(more <= aim, "touches on demand cost more than they may");
        }
    });
}
