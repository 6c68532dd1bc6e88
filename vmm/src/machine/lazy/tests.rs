#![allow(clippy::unwrap_used)]

use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;
use std::thread;

use arch::range::MemoryRange;
use tempfile::TempDir;
use vm_memory::{Bytes as _, GuestAddress};

use super::serve::Order;
use super::*;
use crate::machine::PausedMemory;
use crate::machine::tracking::load_changed;
use crate::memory::{Attributes, NoHooks, Outcome};
use crate::snapshot::testing::{FakeMemory, Filling, Page, state};
use crate::snapshot::{self, Fault, MemoryView, NewPair};
use crate::sys::numa::{self, MemPolicy, NodeSet, Rule};
use crate::testing::{Means, skip};

const CHUNKS: usize = 4;
/// How often the same is tried, each time with other places.
const ROUNDS: u64 = 12;

/// What a page has, which is not zero.
fn byte(page: usize) -> u8 {
    (page % 255) as u8 + 1
}

fn pages_per_chunk() -> usize {
    whole_chunk().len()
}

/// A memory file in which each page has contents of its own.
fn file() -> (TempDir, PathBuf) {
    file_with(|_, _| true)
}

/// One that has these pages of its chunks and no others.
fn file_with(has: impl Fn(usize, usize) -> bool) -> (TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let page = |chunk: usize, at: usize| match has(chunk, at) {
        true => Page::Present(Filling::One(byte(chunk * pages_per_chunk() + at)), Filling::Zero),
        false => Page::Absent,
    };
    let chunk = |chunk: usize| (0..pages_per_chunk()).map(|at| page(chunk, at)).collect();
    let chunks: Vec<Vec<Page>> = (0..CHUNKS).map(chunk).collect();
    let memory = FakeMemory::with(&chunks, Bytes::new(page_size()), false);
    let path = folder.path().join("memory");
    let mut pair = NewPair::create(&folder.path().join("state"), &path).unwrap();
    pair.save_memory(&memory, None, &mut |_| {}).unwrap();
    let id = pair.id();
    pair.commit(&state(id, &memory)).unwrap();
    (folder, path)
}

/// Memory that is loaded from this file as it is touched; `None` where the host cannot.
fn start(path: &Path) -> Option<(GuestRam, LazyMemory)> {
    start_on(path, Backing::Anonymous, |_| WorkingSet::Known(Vec::new()))
}

/// As [`start`], one after the other of each kind of memory.
fn each(path: &Path) -> impl Iterator<Item = (GuestRam, LazyMemory)> {
    [Backing::Anonymous, Backing::Memfd]
        .into_iter()
        .filter_map(move |backing| start_on(path, backing, |_| WorkingSet::Known(Vec::new())))
}

/// Memory of this kind that is loaded from this file, with the working set of the file or without.
fn start_on(
    path: &Path,
    backing: Backing,
    working_set: impl FnOnce(&MemoryReader) -> WorkingSet,
) -> Option<(GuestRam, LazyMemory)> {
    let size = Bytes::new(CHUNK.get() * CHUNKS as u64);
    let ram = GuestRam::new(size, Attributes { backing, ..Attributes::default() }).unwrap();
    let reader = MemoryReader::open(path).unwrap();
    let working_set = working_set(&reader);
    match LazyMemory::start(&ram, reader, working_set, None) {
        Ok(lazy) => Some((ram, lazy)),
        Err(error @ (Error::Denied(_) | Error::Kernel(_))) => {
            skip(Means::Userfaultfd, chain(&error));
            None
        }
        Err(error) => panic!("{error:?}"),
    }
}

fn address(ram: &GuestRam, page: usize) -> GuestAddress {
    GuestAddress(ram.range().base.0 + page as u64 * page_size())
}

/// An order of all numbers below `count`, which is a power of two, by a number.
fn order(count: usize, seed: u64) -> impl Iterator<Item = usize> {
    let step = (seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32) as usize | 1;
    let first = (seed.wrapping_mul(0xbf58_476d_1ce4_e5b9) >> 32) as usize;
    (0..count).map(move |at| at.wrapping_mul(step).wrapping_add(first) % count)
}

fn give_back(ram: &GuestRam, hooks: &mut dyn DiscardHooks, first: usize, pages: usize) {
    let range = MemoryRange::new(address(ram, first), Bytes::new(pages as u64 * page_size()));
    hooks.before(range);
    match ram.discard(range) {
        // It is filled at this moment, and dropped when that is done.
        Err(error) if error.raw_os_error() == Some(libc::EBUSY) => {
            assert_eq!(ram.backing(), Backing::Memfd);
        }
        done => {
            done.unwrap();
        }
    }
    hooks.after(range, Outcome::Gone);
}

#[test]
fn memory_is_that_of_the_file_and_no_longer_watched() {
    let (_folder, path) = file();
    for (ram, lazy) in each(&path) {
        assert_eq!(lazy.pending(), ram.range().size);

        for page in order(CHUNKS * pages_per_chunk(), 7) {
            assert_eq!(ram.read_obj::<u8>(address(&ram, page)).unwrap(), byte(page), "page {page}");
        }

        // A thread is woken before it is written down that its chunk is loaded.
        lazy.finish().unwrap();
        assert_eq!(lazy.pending(), Bytes::ZERO);
    }
}

/// What is given back stays given back, whoever touches it and loads it at the same time; everything else is that of the
/// file.
#[test]
fn what_is_given_back_while_it_is_loaded_reads_zero_and_nothing_else_is_lost() {
    let (_folder, path) = file();
    let pages = CHUNKS * pages_per_chunk();
    for (round, (ram, lazy)) in
        (0..ROUNDS).flat_map(|round| each(&path).map(move |one| (round, one)))
    {
        let flags = || (0..pages).map(|_| AtomicBool::new(false)).collect::<Vec<_>>();
        let (going, gone) = (flags(), flags());
        let mut hooks = lazy.discard_hooks(Box::new(NoHooks));
        thread::scope(|scope| {
            for toucher in 0..3 {
                let (ram, going, gone) = (&ram, &going, &gone);
                scope.spawn(move || {
                    for page in order(pages, 3 * round + toucher) {
                        let was_gone = gone[page].load(Ordering::Acquire);
                        let found: u8 = ram.read_obj(address(ram, page)).unwrap();
                        let may_be_gone = going[page].load(Ordering::Acquire);
                        let right = if was_gone { 0 } else { byte(page) };
                        assert!(
                            found == right || may_be_gone && found == 0,
                            "page {page}: {found}"
                        );
                    }
                });
            }
            // Single pages, pieces, and a whole chunk.
            for (number, first) in order(pages, round + 100).take(60).enumerate() {
                let (first, length) = match number % 20 {
                    19 => (first / pages_per_chunk() * pages_per_chunk(), pages_per_chunk()),
                    number => (first, 1 + number),
                };
                let length = length.min(pages - first);
                going[first..first + length]
                    .iter()
                    .for_each(|flag| flag.store(true, Ordering::Release));
                give_back(&ram, &mut *hooks, first, length);
                gone[first..first + length]
                    .iter()
                    .for_each(|flag| flag.store(true, Ordering::Release));
                if round % 3 == 2 && number == 30 {
                    lazy.finish().unwrap();
                }
            }
        });
        for (page, gone) in gone.iter().enumerate() {
            let right = if gone.load(Ordering::Acquire) { 0 } else { byte(page) };
            let found: u8 = ram.read_obj(address(&ram, page)).unwrap();
            assert_eq!(found, right, "page {page} of round {round}");
        }
        lazy.finish().unwrap();
        assert_eq!(lazy.pending(), Bytes::ZERO);
    }
}

/// Whoever waits for a page is woken when the loader ends, with what the memory has then.
#[test]
fn a_loader_that_ends_keeps_no_thread_waiting() {
    let (_folder, path) = file();
    for (round, (ram, lazy)) in
        (0..ROUNDS).flat_map(|round| each(&path).map(move |one| (round, one)))
    {
        thread::scope(|scope| {
            for toucher in 0..3 {
                let ram = &ram;
                scope.spawn(move || {
                    for page in order(CHUNKS * pages_per_chunk(), 3 * round + toucher) {
                        let found: u8 = ram.read_obj(address(ram, page)).unwrap();
                        assert!(found == byte(page) || found == 0, "page {page}: {found}");
                    }
                });
            }
            drop(lazy);
        });
    }
}

fn read(ram: &GuestRam, page: usize) -> u8 {
    ram.read_obj(address(ram, page)).unwrap()
}

fn recorded(path: &Path) -> Vec<u64> {
    match WorkingSet::read(&MemoryReader::open(path).unwrap()).unwrap() {
        WorkingSet::Known(chunks) => chunks,
        WorkingSet::Recording(_) => unreachable!(),
    }
}

#[test]
fn the_order_of_first_touches_is_recorded_and_read_ahead_the_next_time() {
    let (_folder, path) = file();
    for backing in [Backing::Anonymous, Backing::Memfd] {
        let record = |reader: &MemoryReader| WorkingSet::record(reader).unwrap();
        let Some((ram, lazy)) = start_on(&path, backing, record) else { continue };
        let first = |chunk: usize| chunk * pages_per_chunk();
        for page in [first(2) + 5, first(0), first(2), first(3)] {
            assert_eq!(read(&ram, page), byte(page));
        }
        assert_eq!((lazy.faults(), lazy.loaded_ahead()), (3, 0));
        // That is the first touch of none.
        lazy.finish().unwrap();
        drop(lazy);
        assert_eq!(recorded(&path), [2, 0, 3]);

        let (ram, lazy) =
            start_on(&path, backing, |reader| WorkingSet::read(reader).unwrap()).unwrap();
        while lazy.loaded_ahead() < 3 {
            thread::yield_now();
        }
        for page in 0..CHUNKS * pages_per_chunk() {
            assert_eq!(read(&ram, page), byte(page));
        }
        // Of the chunk that is in no record.
        assert_eq!((lazy.faults(), lazy.loaded_ahead()), (1, 3));
    }
}

/// Chunks of a working set are loaded in its order, and each that is touched before its turn.
#[test]
fn what_is_touched_is_loaded_before_what_is_read_ahead() {
    let (_folder, path) = file();
    for (ram, lazy) in each(&path) {
        let mut order = Order { ahead: vec![3, 1, 9, 2], ..Order::default() };
        let pending = || lazy.shared.lock().pending.keys().copied().collect::<Vec<_>>();

        lazy.shared.load_next(&mut order);
        assert_eq!((pending(), &*order.ahead), (vec![0, 1, 3], &[3, 1, 9][..]));
        // The file has nothing of it.
        lazy.shared.load_next(&mut order);
        // It is loaded for a thread before its turn.
        let page = pages_per_chunk();
        assert_eq!(read(&ram, page), byte(page));
        lazy.shared.load_next(&mut order);
        lazy.shared.load_next(&mut order);

        assert_eq!((pending(), lazy.loaded_ahead(), lazy.faults()), (vec![0], 2, 1));
    }
}

/// Nothing is lost by a working set of what cannot be read, but that the rest of it is read as it is touched.
#[test]
fn what_cannot_be_read_ahead_is_left_until_it_is_touched() {
    for backing in [Backing::Anonymous, Backing::Memfd] {
        let (_folder, path) = file();
        let none = |_: &MemoryReader| WorkingSet::Known(Vec::new());
        let Some((ram, lazy)) = start_on(&path, backing, none) else { continue };
        let file = std::fs::File::options().write(true).open(&path).unwrap();
        file.set_len(CHUNK.get()).unwrap();
        let mut order = Order { ahead: vec![0, 3], ..Order::default() };

        lazy.shared.load_next(&mut order);

        assert!(order.ahead.is_empty() && lazy.loaded_ahead() == 0);
        assert_eq!(lazy.pending(), ram.range().size);
        // Nor by a save.
        lazy.finish().unwrap_err();
        assert_eq!(lazy.pending(), ram.range().size);
        assert!(lazy.shared.lock().failure.is_none());
        // A touch is for a page that there must be.
        lazy.shared.load(0).unwrap_err();
        assert!(lazy.shared.lock().failure.is_some());
        lazy.finish().unwrap_err();
    }
}

/// A chunk that the window does not come to show is left as it is, and so is the one that the window still shows, which
/// is the guest's.
#[test]
fn a_window_that_cannot_be_turned_costs_the_guest_nothing() {
    let (_folder, path) = file();
    let none = |_: &MemoryReader| WorkingSet::Known(Vec::new());
    let Some((ram, lazy)) = start_on(&path, Backing::Memfd, none) else { return };
    let shared = &lazy.shared;
    // Its place is behind what a file can have: EOVERFLOW (file_mmap_ok in mm/mmap.c).
    let beyond = (1 << 63) / CHUNK.get();
    let has_all = |chunk: usize| {
        let first = chunk * pages_per_chunk();
        (first..first + pages_per_chunk()).all(|page| read(&ram, page) == byte(page))
    };
    shared.load(1).unwrap();
    shared.lock().pending.insert(beyond, PageSet::EMPTY);

    shared.load_next(&mut Order { ahead: vec![beyond], ..Order::default() });

    assert!(has_all(1) && shared.is_pending(beyond));
    assert_eq!((lazy.loaded_ahead(), lazy.is_reading()), (0, false));
    assert!(shared.lock().failure.is_none());
    // All of it is given back meanwhile.
    shared.lock().pending.insert(beyond, whole_chunk());
    shared.read(shared.source.lock().unwrap().as_mut().unwrap(), beyond).unwrap();
    assert!(!shared.is_pending(beyond) && !lazy.is_reading());
    lazy.finish().unwrap();
    assert!((0..CHUNKS).all(has_all));
}

/// A chunk that is all given back while it is read is loaded no more, and it does not matter whether it can be read. Until
/// the read has ended, nothing is in its place that the read could damage.
#[test]
fn what_is_all_given_back_while_it_is_read_reads_zero() {
    let (_folder, path) = file();
    for readable in [true, false] {
        for (ram, lazy) in each(&path) {
            let shared = &lazy.shared;
            let mut source = shared.source.lock().unwrap();
            let Source { reader, staging } = source.as_mut().unwrap();
            shared.lock().reading = Some(0);
            staging.turn_to(0, &shared.addresses(0)).unwrap();
            give_back(&ram, &mut *lazy.discard_hooks(Box::new(NoHooks)), 0, pages_per_chunk());
            staging.load(reader, 0).unwrap();
            assert!(shared.is_pending(0));
            let unread = snapshot::Error { file: path.clone(), fault: Fault::NotRegular };
            let outcome = if readable { Ok(()) } else { Err(unread.into()) };

            shared.place(staging, 0, outcome).unwrap();

            assert!(!shared.is_pending(0));
            drop(source);
            assert_eq!([read(&ram, 0), read(&ram, pages_per_chunk() - 1)], [0, 0]);
            lazy.finish().unwrap();
        }
    }
}

#[test]
fn what_of_a_chunk_could_not_be_dropped_is_in_no_other() {
    let (_folder, path) = file_with(|chunk, at| chunk == 0 || at == 0);
    let Some((ram, lazy)) = start(&path) else { return };
    let shared = &lazy.shared;
    {
        let mut source = shared.source.lock().unwrap();
        let Source { reader, staging } = source.as_mut().unwrap();
        staging.turn_to(0, &shared.addresses(0)).unwrap();
        // And it stays there.
        staging.load(reader, 0).unwrap();
    }

    shared.load(1).unwrap();

    let second = pages_per_chunk();
    assert_eq!([read(&ram, second), read(&ram, second + 1)], [byte(second), 0]);
    lazy.finish().unwrap();
    assert_eq!(read(&ram, 1), byte(1));
}

/// Where a process has as many mappings as it can have, a chunk that is loaded stays watched, and has all its pages.
#[test]
fn a_chunk_that_stays_watched_has_all_its_pages() {
    let (_folder, path) = file();
    for (ram, lazy) in each(&path) {
        let shared = &lazy.shared;
        give_back(&ram, &mut *lazy.discard_hooks(Box::new(NoHooks)), 3, 2);
        shared.read(shared.source.lock().unwrap().as_mut().unwrap(), 0).unwrap();

        shared.provide(0, &shared.addresses(0)).unwrap();

        for page in 0..pages_per_chunk() {
            let right = if (3..5).contains(&page) { 0 } else { byte(page) };
            assert_eq!(read(&ram, page), right, "page {page}");
        }
        assert_eq!(lazy.faults(), 0);
        // One that is given back then comes as zeros, though its touch is caught again.
        give_back(&ram, &mut *lazy.discard_hooks(Box::new(NoHooks)), 7, 1);
        assert_eq!([read(&ram, 7), read(&ram, 8)], [0, byte(8)]);
    }
}

#[test]
fn what_is_given_back_does_not_wait_for_a_read() {
    let (_folder, path) = file();
    for (ram, lazy) in each(&path) {
        let (whole, one) = (pages_per_chunk(), 2 * pages_per_chunk() + 1);
        // As long as a disk takes.
        let reading = lazy.shared.source.lock().unwrap();
        let mut hooks = lazy.discard_hooks(Box::new(NoHooks));

        give_back(&ram, &mut *hooks, whole, pages_per_chunk());
        give_back(&ram, &mut *hooks, one, 1);

        drop(reading);
        lazy.finish().unwrap();
        assert_eq!([read(&ram, whole), read(&ram, one)], [0, 0]);
        assert_eq!([read(&ram, 0), read(&ram, one + 1)], [byte(0), byte(one + 1)]);
    }
}

#[test]
fn a_file_of_which_all_is_loaded_is_closed() {
    let (_folder, path) = file();
    for (_ram, lazy) in each(&path) {
        let is_open = || {
            let mut open = std::fs::read_dir("/proc/self/fd").unwrap().flatten();
            open.any(|entry| std::fs::read_link(entry.path()).is_ok_and(|file| file == path))
        };
        assert!(is_open());

        lazy.finish().unwrap();

        assert!(!is_open());
    }
}

#[test]
fn pages_are_taken_from_where_those_of_the_guest_are() {
    let (_folder, path) = file();
    let Some((ram, lazy)) = start(&path) else { return };
    let chunk = |chunk: u64| lazy.shared.addresses(chunk);
    let rule = MemPolicy::Prefer(NodeSet::new([0]));
    match numa::set_rule(chunk(1), &rule, false) {
        // A kernel without NUMA nodes has no rules.
        Err(error) if error.raw_os_error() == Some(libc::ENOSYS) => return,
        set => set.unwrap(),
    }
    let aside = || {
        let source = lazy.shared.source.lock().unwrap();
        Rule::at(source.as_ref().unwrap().staging.to_move().unwrap()).unwrap()
    };
    let of_guest = |at: u64| Rule::at(chunk(at).start).unwrap();
    assert_ne!(of_guest(1), of_guest(2));

    for at in [1, 2] {
        let page = at as usize * pages_per_chunk();
        assert_eq!(read(&ram, page), byte(page));
        assert_eq!(aside(), of_guest(at));
    }
}

/// A page that is marked as changed and was never touched has in a diff what it has in the file.
#[test]
fn what_may_have_changed_is_loaded_for_a_diff() {
    let (_folder, path) = file();
    for (ram, lazy) in each(&path) {
        ram.track_changes();
        ram.add_changes(pages_per_chunk() + 3, &[1]);
        give_back(
            &ram,
            &mut *lazy.discard_hooks(Box::new(NoHooks)),
            2 * pages_per_chunk(),
            pages_per_chunk(),
        );
        let changes = ram.take_changes().unwrap();

        load_changed(&lazy, &changes).unwrap();

        // A chunk that was given back is not loaded, nor are those without changes.
        assert_eq!(lazy.pending(), Bytes::new(2 * CHUNK.get()));
        let diff = PausedMemory::new(&ram).unwrap().since(Some(&changes));
        assert!(diff.present(1).unwrap().contains(3));
        assert!(diff.present(2).unwrap().is_empty());
        let changed =
            |chunk| PageSet::of(0..pages_per_chunk()).difference(&diff.unchanged(chunk).unwrap());
        let whole = PageSet::of(0..pages_per_chunk());
        assert_eq!(
            [0, 1, 2, 3].map(changed),
            [PageSet::EMPTY, PageSet::of(3..4), whole, PageSet::EMPTY]
        );
    }
}

mod demand;
