#![allow(clippy::unwrap_used)]

use std::fs::{self, File};
use std::thread;
use std::time::Instant;

use arch::layout::RAM_BASE;
use arch::mte::geometry::Geometry;
use devices::ports::{GuestRange, Reclaim as _};
use vm_memory::{Bytes as _, GuestAddress};

use super::*;
use crate::memory::{Footprint, Reclaimer};
use crate::sys::huge_pages::huge_page_size;
use crate::tag_storage::chunk::{each, one};
use crate::tag_storage::pool::{LeaseTerms, Pool};
use crate::tag_storage::reservation::Embedded;
use crate::tag_storage::reservation::testing::{
    FakeHold, may_catch_faults, ram, ram_of, threads_block_signals,
};
use crate::tag_storage::supply::Ledger;
use crate::testing::{Means, skip};

mod ahead;
mod broker;
mod exhaustion;
mod huge;
mod loader;
mod stress;
mod template;

const PAGE: u64 = 4096;
const BACKINGS: [Backing; 2] = [Backing::Anonymous, Backing::Memfd];

/// Chunks are reserved for when they are touched, and not before.
const NONE_AHEAD: AheadLimits = AheadLimits { most: 0, calm: Duration::MAX, idle: Duration::MAX };

/// What was told.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Told {
    Exhausted(ChunkIndex),
    Relieved,
    Expired(ChunkIndex),
    Failed,
}

/// Records what is reported to it.
#[derive(Default)]
struct Listener {
    told: Mutex<Vec<Told>>,
    changed: Condvar,
}

impl Listener {
    fn add(&self, told: Told) {
        self.told.lock().unwrap().push(told);
        self.changed.notify_all();
    }

    fn all(&self) -> Vec<Told> {
        self.told.lock().unwrap().clone()
    }

    fn wait_for(&self, wanted: Told) {
        let told = self.told.lock().unwrap();
        let missing = |told: &mut Vec<Told>| !told.contains(&wanted);
        let limit = Duration::from_secs(60);
        let (told, _) = self.changed.wait_timeout_while(told, limit, missing).unwrap();
        assert!(told.contains(&wanted), "{wanted:?} is not among {told:?}");
    }
}

impl Exhaustion for Listener {
    fn exhausted(&self, chunk: ChunkIndex, why: &PoolClientError) {
        assert!(!matches!(why, PoolClientError::Broker(_)), "{why}");
        self.add(Told::Exhausted(chunk));
    }

    fn relieved(&self) {
        self.add(Told::Relieved);
    }

    fn expired(&self, chunk: ChunkIndex) {
        self.add(Told::Expired(chunk));
    }

    fn is_taken(&self) -> bool {
        true
    }

    fn failed(&self, why: &Error) {
        eprintln!("failed: {why}: {:?}", std::error::Error::source(why).map(ToString::to_string));
        self.add(Told::Failed);
    }
}

/// Guest memory that is reserved for on demand.
struct Guest {
    ram: GuestRam,
    hold: Arc<FakeHold>,
    demand: Demand,
    listener: Arc<Listener>,
}

impl Guest {
    fn new(ram: GuestRam, capacity: u64) -> Self {
        Self::with(ram, capacity, Duration::MAX)
    }

    fn with(ram: GuestRam, capacity: u64, deadline: Duration) -> Self {
        Self::ahead(ram, capacity, deadline, NONE_AHEAD)
    }

    /// One for which chunks may be reserved before they are touched.
    fn ahead(ram: GuestRam, capacity: u64, deadline: Duration, ahead: AheadLimits) -> Self {
        let hold = FakeHold::new(capacity);
        hold.allow_ahead(ahead.most);
        let listener = Arc::new(Listener::default());
        let limits = Limits::new(deadline, ahead);
        let demand =
            Demand::with_limits(ram.clone(), hold.clone(), limits, listener.clone()).unwrap();
        demand.finish_loading().unwrap();
        Self { ram, hold, demand, listener }
    }

    fn reclaimer(&self) -> Reclaimer {
        Reclaimer::new(self.ram.clone(), Box::new(self.demand.releaser()))
    }

    /// Live slots, after seeing that they are those of the chunks that have one.
    fn live(&self) -> u64 {
        let live = self.hold.live();
        assert_eq!((self.demand.reserved(), self.hold.wrong()), (live, 0));
        live
    }

    fn touches(&self) -> u64 {
        self.demand.counters().touches.get()
    }

    fn state(&self, chunk: u64) -> State {
        self.demand.shared.table().state(ChunkIndex(chunk)).unwrap()
    }
}

fn at(chunk: u64, page: u64) -> GuestAddress {
    GuestAddress(RAM_BASE.0 + chunk * CHUNK.get() + page * PAGE)
}

/// So many pages from a page of a chunk on.
fn pages(chunk: u64, page: u64, count: u64) -> GuestRange {
    GuestRange { start: at(chunk, page), length: count * PAGE }
}

/// How many mappings guest memory is made of.
fn mappings(ram: &GuestRam) -> usize {
    let start = ram.host_address();
    let end = start + ram.range().size.get();
    let maps = fs::read_to_string("/proc/self/maps").unwrap();
    let starts = maps.lines().map(|line| line.split('-').next().unwrap());
    starts.filter(|at| (start..end).contains(&u64::from_str_radix(at, 16).unwrap())).count()
}

#[test]
fn a_chunk_is_reserved_for_when_it_is_first_touched_and_never_again() {
    if !may_catch_faults() {
        return;
    }
    for backing in BACKINGS {
        let guest = Guest::new(ram_of(16, backing, false), 8);
        assert_eq!(guest.live(), 0);

        for chunk in [3, 0, 7] {
            for page in [17, 0, 511] {
                assert_eq!(guest.ram.read_obj::<u8>(at(chunk, page)).unwrap(), 0);
                guest.ram.write_obj(chunk as u8 + 1, at(chunk, page)).unwrap();
            }
        }

        assert_eq!((guest.live(), guest.touches()), (3, 3), "{backing}");
        assert_eq!(guest.ram.read_obj::<u8>(at(3, 17)).unwrap(), 4);
        assert_eq!(guest.listener.all(), []);
    }
}

#[test]
fn the_kernel_touches_memory_like_the_guest() {
    if !may_catch_faults() {
        return;
    }
    for backing in BACKINGS {
        let guest = Guest::new(ram_of(8, backing, false), 4);
        let mut zeroes = File::open("/dev/zero").unwrap();

        // Over the border of two chunks, by a system call.
        let length = 8 * PAGE as usize;
        guest.ram.read_exact_volatile_from(at(1, 508), &mut zeroes, length).unwrap();

        assert_eq!((guest.live(), guest.touches()), (2, 2), "{backing}");
    }
}

#[test]
fn a_touched_chunk_is_one_huge_page_where_the_host_has_them() {
    if !may_catch_faults() {
        return;
    }
    let enabled = fs::read_to_string("/sys/kernel/mm/transparent_hugepage/enabled");
    let never = enabled.map_or(true, |modes| modes.contains("[never]"));
    if never || huge_page_size() != Some(CHUNK) {
        return skip(Means::HugePages, "no huge pages of 2 MiB for anonymous memory");
    }
    let guest = Guest::new(ram_of(16, Backing::Anonymous, true), 8);
    let mut reclaimer = guest.reclaimer();

    let mut rounds = 0;
    let mut tries = 0;
    while rounds < 2 {
        let lacked = huge_pages_lacked();
        for chunk in [0, 1, 5] {
            guest.ram.write_obj(1u8, at(chunk, 100)).unwrap();
        }
        let footprint = Footprint::of(&guest.ram).unwrap();
        reclaimer.discard(pages(0, 0, 8 * 512));

        assert_eq!((footprint.resident, guest.live()), (Bytes::mib(6), 0));
        if footprint.huge == Bytes::mib(6) {
            rounds += 1;
            continue;
        }
        assert!(huge_pages_lacked() > lacked, "small pages, though the host had huge ones");
        tries += 1;
        if tries >= 100 {
            return skip(Means::HugePages, "the host has no free huge pages, by its own count");
        }
        // Only root may, and the kernel makes some as well when it is asked for them again.
        let _ = fs::write("/proc/sys/vm/compact_memory", "1");
    }
}

/// How often the host's kernel has had no huge page for a fault.
fn huge_pages_lacked() -> u64 {
    let text = fs::read_to_string("/proc/vmstat").unwrap();
    let count = text.lines().find_map(|line| line.strip_prefix("thp_fault_fallback "));
    count.unwrap().parse().unwrap()
}

#[test]
fn memory_that_is_touched_in_no_order_is_one_mapping_again() {
    if !may_catch_faults() {
        return;
    }
    for backing in BACKINGS {
        let guest = Guest::new(ram_of(32, backing, false), 16);

        for chunk in (0..16).step_by(2) {
            guest.ram.write_obj(1u8, at(chunk, 0)).unwrap();
        }
        assert_eq!(mappings(&guest.ram), 16, "{backing}");
        for chunk in (1..16).step_by(2) {
            guest.ram.write_obj(1u8, at(chunk, 0)).unwrap();
        }

        assert_eq!((guest.live(), mappings(&guest.ram)), (16, 1), "{backing}");
    }
}

#[test]
fn a_discarded_chunk_is_free_and_reserved_for_again_when_it_is_touched() {
    if !may_catch_faults() {
        return;
    }
    for backing in BACKINGS {
        let guest = Guest::new(ram_of(16, backing, false), 8);
        let mut reclaimer = guest.reclaimer();
        for round in 1..4 {
            for chunk in 0..8 {
                guest.ram.write_obj(round as u8, at(chunk, 3)).unwrap();
            }
            assert_eq!((guest.live(), guest.touches()), (8, 8 * round), "{backing}");

            let done = reclaimer.discard(pages(2, 500, 5 * 512 + 100));
            assert_eq!((done.failed, guest.live()), (0, 3), "{backing}");
            reclaimer.discard(pages(2, 500, 5 * 512 + 100));
            assert_eq!(guest.live(), 3);
            for (chunk, expected) in [(2, round as u8), (3, 0), (6, 0), (7, 0)] {
                assert_eq!(guest.ram.read_obj::<u8>(at(chunk, 3)).unwrap(), expected);
            }
            reclaimer.discard(pages(3, 0, 5 * 512));
        }
    }
}

#[test]
fn a_chunk_that_goes_piece_by_piece_is_free_with_its_last_page() {
    if !may_catch_faults() {
        return;
    }
    for (backing, huge_pages) in [(BACKINGS[0], false), (BACKINGS[0], true), (BACKINGS[1], false)] {
        let mut collapsed = huge_pages_collapsed();
        while !goes_piece_by_piece(backing, huge_pages) {
            let before = std::mem::replace(&mut collapsed, huge_pages_collapsed());
            assert!(huge_pages && collapsed > before, "{backing}: pages are left");
        }
    }
}

/// Whether a chunk is free once its last page has been discarded. Not if khugepaged has made it a huge page again
/// in between.
fn goes_piece_by_piece(backing: Backing, huge_pages: bool) -> bool {
    let guest = Guest::new(ram_of(8, backing, huge_pages), 4);
    let mut reclaimer = guest.reclaimer();
    guest.ram.write_obj(1u8, at(1, 0)).unwrap();

    for page in (0..512).rev().step_by(2).chain((2..512).step_by(2)) {
        let done = reclaimer.discard(pages(1, page, 1));
        assert_eq!((done.discarded, guest.live()), (PAGE, 1), "page {page}");
    }
    reclaimer.discard(pages(1, 0, 1));
    if guest.live() != 0 {
        return false;
    }

    guest.ram.write_obj(1u8, at(1, 511)).unwrap();
    assert_eq!((guest.live(), guest.touches()), (1, 2), "{backing}");
    true
}

/// How many huge pages khugepaged has made since the host started.
fn huge_pages_collapsed() -> u64 {
    let path = "/sys/kernel/mm/transparent_hugepage/khugepaged/pages_collapsed";
    fs::read_to_string(path).map_or(0, |text| text.trim().parse().unwrap())
}

#[test]
fn a_discard_that_fails_frees_nothing_and_stops_nobody() {
    if !may_catch_faults() {
        return;
    }
    for backing in BACKINGS {
        let guest = Guest::new(ram_of(8, backing, false), 4);
        guest.ram.write_obj(7u8, at(1, 0)).unwrap();
        // Locked memory is not discarded. To lock it touches all of it.
        if guest.ram.lock().is_err() {
            continue;
        }
        assert_eq!(guest.live(), 4);
        let touches = guest.touches();
        let mut reclaimer = guest.reclaimer();

        let done = reclaimer.discard(pages(0, 100, 3 * 512));

        assert_eq!((done.discarded, guest.live()), (0, 4), "{backing}");
        assert_eq!(guest.ram.read_obj::<u8>(at(1, 0)).unwrap(), 7);
        assert_eq!((mappings(&guest.ram), guest.touches()), (1, touches));
    }
}

#[test]
fn a_populated_chunk_that_is_still_armed_is_let_go() {
    if !may_catch_faults() {
        return;
    }
    let guest = Guest::new(ram(4), 2);
    let mut reclaimer = guest.reclaimer();
    guest.ram.write_obj(1u8, at(1, 0)).unwrap();
    let done = reclaimer.discard(pages(1, 0, 1));
    assert_eq!((done.discarded, done.failed), (PAGE, 0));
    // As when the host has refused to disarm it.
    guest.demand.shared.faults.arm(&one(ChunkIndex(1))).unwrap();

    guest.ram.write_obj(2u8, at(1, 0)).unwrap();

    assert_eq!((guest.live(), guest.touches()), (1, 2));
    assert_eq!(mappings(&guest.ram), 2);
}

#[test]
fn a_releaser_that_is_told_no_end_leaves_memory_as_it_was() {
    if !may_catch_faults() {
        return;
    }
    use crate::memory::DiscardHooks as _;
    let guest = Guest::new(ram(8), 4);
    guest.ram.write_slice(&[1; 6 << 20], RAM_BASE).unwrap();
    let mut releaser = guest.demand.releaser();

    releaser.before(guest.ram.range());
    assert!(matches!(guest.state(1), State::Discarding));
    drop(releaser);

    assert!(matches!(guest.state(1), State::Populated));
    assert_eq!((guest.live(), mappings(&guest.ram)), (3, 2));
}

#[test]
fn memory_that_cannot_be_reserved_for_on_demand_is_refused() {
    if !may_catch_faults() {
        return;
    }
    let start = |ram: GuestRam| {
        let listener = Arc::new(Listener::default());
        Demand::start(ram, FakeHold::new(8), Duration::ZERO, listener).err()
    };
    let in_use = ram(4);
    in_use.write_obj(1u8, at(0, 9)).unwrap();
    assert!(matches!(start(in_use), Some(Error::InUse)));
    let attributes = crate::memory::Attributes::default();
    let odd = GuestRam::new(Bytes::mib(3), attributes).unwrap();
    assert!(matches!(start(odd), Some(Error::NotWholeChunks { .. })));
    let locked = ram(2);
    if locked.lock().is_ok() {
        assert!(matches!(start(locked), Some(Error::Locked)));
    }
}

#[test]
fn slots_come_from_a_pool_in_this_process() {
    if !may_catch_faults() {
        return;
    }
    let geometry = Geometry::new(Bytes::kib(4), Bytes::kib(4)).unwrap();
    let pool = Arc::new(Pool::new(geometry, Bytes::mib(1), Box::new(Ledger)).unwrap());
    let terms = LeaseTerms { name: "vm".to_owned(), min: Bytes::ZERO, max: Bytes::MAX };
    let hold = Embedded::new(Arc::clone(&pool), pool.open_lease(terms).unwrap());
    let ram = ram(16);
    let listener = Arc::new(Listener::default());
    let demand = Demand::start(ram.clone(), Arc::new(hold), Duration::MAX, listener).unwrap();
    let mut reclaimer = Reclaimer::new(ram.clone(), Box::new(demand.releaser()));

    ram.write_slice(&[1; 10 << 20], RAM_BASE).unwrap();
    assert_eq!(pool.snapshot().chunks.reserved, 5);
    reclaimer.discard(pages(1, 0, 2 * 512));
    assert_eq!(pool.snapshot().chunks.reserved, 3);

    drop((demand, reclaimer));
    assert_eq!(pool.snapshot().leases.len(), 0);
}

#[test]
fn the_fault_thread_blocks_the_signals_that_end_a_vm() {
    if !may_catch_faults() {
        return;
    }
    let _guest = Guest::new(ram(4), 2);

    assert!(threads_block_signals("faults"));
}
