//! Threads at one pool, one interleaving after the other: no thread waits for ever, the books are right at the
//! end, and each history makes sense in some order.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Mutex, PoisonError};

use super::histories::{Answer, Event, Ideal, IdealLease, Request, is_linear};
use super::*;
use crate::tag_storage::pool::sync::interleaved;

/// Interleavings of each program. Shuttle's choices follow from the program's number: a failure repeats.
const INTERLEAVINGS: usize = 100;

/// Programs of each kind.
const PROGRAMS: u64 = 120;

/// What one thread does next.
#[derive(Clone, Copy, Debug)]
enum Step {
    Ask(Request),
    /// Frees the oldest slot that this thread got.
    FreeOwn(usize),
}

/// A program: a pool, its leases, and the steps of its threads.
#[derive(Clone, Debug)]
struct Program {
    block: u64,
    chunks: u32,
    leases: Vec<(u32, u32)>,
    pinned: BTreeSet<u64>,
    threads: Vec<Vec<Step>>,
}

/// Small numbers that follow from a seed.
struct Numbers(u64);

impl Numbers {
    fn below(&mut self, bound: u64) -> u64 {
        // Knuth's MMIX generator; the high bits are the good ones.
        self.0 = self.0.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (self.0 >> 33) % bound
    }

    /// Of one of two leases. Frees what others got, or what no lease got, only where no thread asks for many: a
    /// slot may not be freed before it is given.
    fn step(&mut self, many: bool) -> Step {
        let lease = self.below(2) as usize;
        match self.below(16) {
            0..=5 => Step::Ask(Request::Reserve(lease)),
            6..=9 => Step::FreeOwn(lease),
            10..=13 if many => Step::Ask(Request::ReserveMany(lease, 2)),
            10..=13 => Step::Ask(Request::Free(lease, SlotIndex(self.below(3) as u32))),
            14 => Step::Ask(Request::Open { min: 1 }),
            _ => Step::Ask(Request::Close(lease)),
        }
    }
}

impl Program {
    /// Three threads of up to three steps, two leases, some three chunks.
    fn new(seed: u64, block: u64) -> Self {
        let mut numbers = Numbers(seed);
        numbers.below(2);
        let leases = (0..2).map(|_| (numbers.below(2) as u32, 2 + numbers.below(2) as u32));
        let leases: Vec<(u32, u32)> = leases.collect();
        let threads = (0..3).map(|_| {
            let steps = 1 + numbers.below(3);
            (0..steps).map(|_| numbers.step(seed % 4 < 2)).collect()
        });
        let threads = threads.collect();
        // Such that both kinds of shared blocks have room for both leases' minima.
        let chunks = if block == 32 { 2 + numbers.below(2) as u32 } else { block as u32 / 32 };
        Self { block, chunks, leases, pinned: BTreeSet::new(), threads }
    }

    fn bench(&self) -> Bench {
        let bench = Bench::new(Bytes::kib(4), Bytes::kib(self.block), self.chunks, false);
        bench.fake.books().yields = true;
        bench.fake.books().pinned.clone_from(&self.pinned);
        if !self.pinned.is_empty() {
            bench.pool.lend(u64::MAX);
        }
        bench
    }

    /// What there is before the threads start. A pinned block makes its slot unusable.
    fn ideal(&self, bench: &Bench) -> Ideal {
        let per_slot = 64 / self.block.min(64);
        let total = bench.pool.snapshot().chunks.total;
        let is_stuck = |slot: &SlotIndex| {
            let blocks = u64::from(slot.0) * per_slot..u64::from(slot.0 + 1) * per_slot;
            self.pinned.range(blocks).next().is_some()
        };
        let (stuck, free) = (0..total).map(SlotIndex).partition(is_stuck);
        let lease =
            |(min, max): &(u32, u32)| IdealLease { min: *min, max: *max, held: BTreeSet::new() };
        let leases = self.leases.iter().map(lease).enumerate().collect();
        Ideal { free, stuck, extra: 0, leases }
    }

    /// Runs it once, in the interleaving that shuttle chooses.
    fn run(&self) {
        let bench = self.bench();
        let ideal = self.ideal(&bench);
        let open = |(min, max): &(u32, u32)| bench.pool.open_lease(terms(*min, *max)).unwrap();
        let leases: Vec<LeaseId> = self.leases.iter().map(open).collect();
        let history = Arc::new(History::default());
        let threads: Vec<_> = self
            .threads
            .iter()
            .map(|steps| {
                let (pool, history) = (Arc::clone(&bench.pool), Arc::clone(&history));
                let (steps, leases) = (steps.clone(), leases.clone());
                shuttle::thread::spawn(move || perform(&pool, &leases, &steps, &history))
            })
            .collect();
        let report = bench.pool.snapshot();
        check_sums(&report);
        for thread in threads {
            thread.join().unwrap();
        }

        bench.examine();
        let events = history.events.lock().unwrap_or_else(PoisonError::into_inner).clone();
        assert!(is_linear(&ideal, &events), "{self:#?}\n{events:#?}");
    }

    fn check(self, seed: u64) {
        let scheduler = shuttle::scheduler::RandomScheduler::new_from_seed(seed, INTERLEAVINGS);
        let runner = shuttle::Runner::new(scheduler, shuttle::Config::default());
        interleaved(|| {
            runner.run(move || self.run());
        });
    }
}

/// What holds at any moment.
fn check_sums(report: &PoolReport) {
    let BlocksReport {
        total,
        free,
        reserving,
        reserved,
        releasing,
        lent,
        evicting,
        pinned,
        disabled,
    } = report.blocks;
    let sum = free + reserving + reserved + releasing + lent + evicting + pinned + disabled;
    assert_eq!(sum, total);
    let ChunksReport { total, reserved, set_aside, free } = report.chunks;
    assert_eq!(reserved + set_aside + free, total);
    let Counters { metadata_reserve_success, metadata_reserve_free, .. } = report.counters;
    assert!(metadata_reserve_success - metadata_reserve_free <= u64::from(reserved));
}

#[derive(Default)]
struct History {
    clock: AtomicU32,
    events: Mutex<Vec<Event>>,
}

impl History {
    fn now(&self) -> u32 {
        self.clock.fetch_add(1, Ordering::Relaxed)
    }
}

fn perform(pool: &Pool, leases: &[LeaseId], steps: &[Step], history: &History) {
    let mut own = Vec::new();
    for step in steps {
        let request = match *step {
            Step::Ask(request) => request,
            Step::FreeOwn(_) if own.is_empty() => continue,
            Step::FreeOwn(lease) => Request::Free(lease, own.remove(0)),
        };
        let made = history.now();
        let answer = ask(pool, leases, request);
        let answered = history.now();
        if let Answer::Slots(slots) = &answer {
            own.extend(slots);
        }
        check_sums(&pool.snapshot());
        let event = Event { made, answered, request, answer };
        history.events.lock().unwrap_or_else(PoisonError::into_inner).push(event);
    }
}

fn ask(pool: &Pool, leases: &[LeaseId], request: Request) -> Answer {
    match request {
        Request::Reserve(lease) => Answer::of(pool.reserve(leases[lease]).map(|slot| vec![slot])),
        Request::ReserveMany(lease, chunks) => Answer::of(pool.reserve_many(leases[lease], chunks)),
        Request::Free(lease, slot) => Answer::of_free(pool.free(leases[lease], slot)),
        Request::Close(lease) => Answer::of_free(pool.close_lease(leases[lease])),
        Request::Open { min } => match pool.open_lease(terms(min, 9)) {
            Ok(_) => Answer::Done,
            Err(error) => Answer::of(Err(error)),
        },
    }
}

#[test]
fn slots_with_blocks_of_their_own() {
    for seed in 0..PROGRAMS {
        Program::new(seed, 32).check(seed);
    }
}

#[test]
fn slots_that_share_blocks() {
    for seed in 0..PROGRAMS {
        Program::new(seed, 128).check(seed);
        Program::new(seed, 96).check(seed);
    }
}

#[test]
fn slots_whose_blocks_are_lent_and_pinned() {
    for seed in 0..PROGRAMS {
        let mut program = Program::new(seed, 32);
        // Of the first slot, or of one that there is not: all are merely lent then.
        program.pinned = [1 + 100 * (seed % 2)].into();
        program.check(seed);
    }
}

/// One thread lends what the others reserve.
#[test]
fn lending_while_others_reserve() {
    let test = || {
        let bench = Bench::small(2, false);
        bench.fake.books().yields = true;
        let leases = [bench.lease(), bench.lease()];
        let lender = Arc::clone(&bench.pool);
        let lender = shuttle::thread::spawn(move || {
            lender.lend(24);
            lender.lend(4);
            lender.retry_pinned();
        });
        let takers = leases.map(|lease| {
            let pool = Arc::clone(&bench.pool);
            shuttle::thread::spawn(move || {
                // There is a slot for each, lent or not.
                let slot = pool.reserve(lease).unwrap();
                check_sums(&pool.snapshot());
                pool.free(lease, slot).unwrap();
                pool.reserve(lease).unwrap();
            })
        });
        lender.join().unwrap();
        for taker in takers {
            taker.join().unwrap();
        }
        assert_eq!(bench.examine().holders.len(), 2);
    };
    interleaved(|| shuttle::check_pct(test, 1500, 4));
}

/// Adopting, as after a restart, while others take slots and a lease is closed.
#[test]
fn adopting_while_others_reserve() {
    let test = || {
        let bench = Bench::new(Bytes::kib(4), Bytes::kib(128), 4, false);
        bench.fake.books().yields = true;
        let [first, second, third] = [bench.lease(), bench.lease(), bench.lease()];
        let wanted = [SlotIndex(0), SlotIndex(3)];
        let threads = [first, second].map(|lease| {
            let pool = Arc::clone(&bench.pool);
            shuttle::thread::spawn(move || {
                let adopted = pool.adopt(lease, &wanted, Order::First)?;
                Ok::<_, ReserveError>(adopted.slots.into_iter().flatten().count())
            })
        });
        let pool = Arc::clone(&bench.pool);
        let closer = shuttle::thread::spawn(move || {
            let _ = pool.reserve(third);
            pool.close_lease(third).unwrap();
        });
        closer.join().unwrap();
        let counts: usize = threads.map(|thread| thread.join().unwrap().unwrap()).iter().sum();
        let books = bench.examine();
        assert_eq!(books.holders.len(), counts);
        assert!(counts >= 3, "{counts}");
    };
    interleaved(|| shuttle::check_random(test, 1500));
}
