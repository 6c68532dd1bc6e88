//! Memory that is loaded as it is touched, of a VM whose tag storage is reserved on demand.

use arch::layout::RAM_BASE;
use rustix::thread::gettid;

use super::*;
use crate::config::OnExhausted;
use crate::memory::{Reclaimer, Residency};
use crate::spec::{ReservationMode, TagStorageSpec};
use crate::tag_storage::TAGS_OF_CHUNK;
use ::devices::ports::{GuestRange, Reclaim as _};

/// A guest with such memory.
struct Guest {
    ram: GuestRam,
    lazy: LazyMemory,
    tags: TagReservation,
}

impl Guest {
    /// One that may have the tag storage of so many chunks; `None` where the host cannot.
    fn new(path: &Path, backing: Backing, most: u64, known: &[u64]) -> Option<Self> {
        let size = Bytes::new(CHUNK.get() * CHUNKS as u64);
        let attributes = Attributes { backing, huge_pages: true, ..Attributes::default() };
        let ram = GuestRam::new(size, attributes).unwrap();
        let tags = match TagReservation::new(&spec(most), "vm", &ram) {
            Ok(tags) => tags,
            Err(error) => {
                skip(Means::Userfaultfd, chain(&error));
                return None;
            }
        };
        let reader = MemoryReader::open(path).unwrap();
        let known = WorkingSet::Known(known.to_vec());
        let lazy = match LazyMemory::start(&ram, reader, known, Some(&tags)) {
            Ok(lazy) => lazy,
            Err(error @ (Error::Denied(_) | Error::Kernel(_))) => {
                skip(Means::Userfaultfd, chain(&error));
                return None;
            }
            Err(error) => panic!("{error:?}"),
        };
        tags.finish_loading().unwrap();
        Some(Self { ram, lazy, tags })
    }

    fn reclaimer(&self) -> Reclaimer {
        let hooks = self.lazy.discard_hooks(self.tags.discard_hooks());
        Reclaimer::new(self.ram.clone(), hooks)
    }

    /// How many chunks have tag storage.
    fn reserved(&self) -> u64 {
        self.tags.status().reserved.get() / TAGS_OF_CHUNK.get()
    }

    /// How many chunks are yet to be loaded.
    fn pending(&self) -> u64 {
        self.lazy.pending().get() / CHUNK.get()
    }

    fn read(&self, page: usize) -> u8 {
        read(&self.ram, page)
    }

    /// How many chunks have pages.
    fn with_pages(&self) -> u64 {
        let residency = Residency::new(self.ram.clone()).unwrap();
        let has = |chunk: &u64| {
            let base = GuestAddress(RAM_BASE.0 + chunk * CHUNK.get());
            residency.is_absent(MemoryRange::new(base, CHUNK)).unwrap() != Some(true)
        };
        (0..CHUNKS as u64).filter(has).count() as u64
    }
}

fn spec(most: u64) -> TagStorageSpec {
    let when = ReservationMode::Demand { on_exhausted: OnExhausted::Wait, deadline_s: 60 };
    let max = Bytes::new(most * TAGS_OF_CHUNK.get());
    TagStorageSpec { when, broker: None, min: Bytes::ZERO, max }
}

fn first(chunk: usize) -> usize {
    chunk * pages_per_chunk()
}

fn pages(first: usize, count: usize) -> GuestRange {
    let start = GuestAddress(RAM_BASE.0 + first as u64 * page_size());
    GuestRange { start, length: count as u64 * page_size() }
}

fn until(what: &str, mut done: impl FnMut() -> bool) {
    let start = std::time::Instant::now();
    while !done() {
        assert!(start.elapsed().as_secs() < 60, "{what} does not come");
        thread::yield_now();
    }
}

const BACKINGS: [Backing; 2] = [Backing::Anonymous, Backing::Memfd];

#[test]
fn a_chunk_has_tag_storage_when_it_is_touched_and_then_its_contents() {
    let (_folder, path) = file();
    for backing in BACKINGS {
        let Some(guest) = Guest::new(&path, backing, 4, &[]) else { continue };
        assert_eq!((guest.reserved(), guest.pending()), (0, 4));

        for (number, chunk) in [2, 0, 3, 1].into_iter().enumerate() {
            for page in order(pages_per_chunk(), 5) {
                assert_eq!(guest.read(first(chunk) + page), byte(first(chunk) + page));
            }
            assert_eq!(guest.reserved(), number as u64 + 1, "{backing}");
        }

        until("the end", || guest.pending() == 0);
        assert_eq!((guest.lazy.faults(), guest.tags.waiting()), (4, 0));
        // What goes back has its tag storage freed, and is zero with tag storage when it is touched.
        let done = guest.reclaimer().discard(pages(first(1), 2 * pages_per_chunk()));
        assert_eq!((done.failed, guest.reserved()), (0, 2));
        assert_eq!([guest.read(first(1)), guest.read(first(2) + 7)], [0, 0]);
        assert_eq!((guest.reserved(), guest.read(first(3))), (4, byte(first(3))));
    }
}

#[test]
fn a_touch_waits_for_tag_storage_and_then_finds_its_contents() {
    let (_folder, path) = file();
    for backing in BACKINGS {
        let Some(guest) = Guest::new(&path, backing, 2, &[]) else { continue };
        let mut reclaimer = guest.reclaimer();
        assert_eq!([guest.read(0), guest.read(first(1))], [byte(0), byte(first(1))]);

        thread::scope(|scope| {
            let (sender, thread) = std::sync::mpsc::channel();
            let touch = scope.spawn({
                let guest = &guest;
                move || {
                    sender.send(gettid()).unwrap();
                    [first(2), first(2) + 1].map(|page| guest.read(page))
                }
            });
            let thread = thread.recv().unwrap();
            until("a touch that waits", || guest.tags.is_waiting(thread));
            until("its report", || guest.tags.status().exhaustion.lacking.is_some());
            assert_eq!((guest.tags.waiting(), guest.reserved(), guest.pending()), (1, 2, 2));
            assert!(!guest.lazy.is_reading() && !touch.is_finished());
            // Nor is there any for a save, which leaves all as it is.
            let refused = guest.lazy.finish().unwrap_err();
            assert!(matches!(refused, Error::NoTagStorage { .. }), "{refused:?}");
            reclaimer.discard(pages(0, pages_per_chunk()));
            assert_eq!(touch.join().unwrap(), [byte(first(2)), byte(first(2) + 1)]);
        });

        until("the end", || guest.pending() == 1 && guest.tags.waiting() == 0);
        assert_eq!(guest.reserved(), 2, "{backing}");
    }
}

#[test]
fn what_is_given_back_before_it_is_loaded_needs_no_tag_storage() {
    let (_folder, path) = file();
    for backing in BACKINGS {
        let Some(guest) = Guest::new(&path, backing, 3, &[]) else { continue };
        let mut reclaimer = guest.reclaimer();
        reclaimer.discard(pages(first(1), pages_per_chunk()));
        // One in pieces, and one of which a piece is left.
        for page in order(pages_per_chunk(), 3) {
            reclaimer.discard(pages(first(2) + page, 1));
        }
        reclaimer.discard(pages(first(3), pages_per_chunk() - 1));
        assert_eq!((guest.reserved(), guest.pending()), (0, 2), "{backing}");

        let last = first(3) + pages_per_chunk() - 1;
        assert_eq!([guest.read(first(3)), guest.read(last)], [0, byte(last)]);
        assert_eq!([guest.read(first(1)), guest.read(first(1) + 9)], [0, 0]);
        assert_eq!(guest.reserved(), 2);
        // What is left, and nothing else, is loaded for a save.
        guest.lazy.finish().unwrap();
        assert_eq!((guest.reserved(), guest.pending()), (3, 0), "{backing}");
    }
}

/// The pieces go while a file has pages of the chunk, which the guest does not see.
#[test]
fn what_goes_in_pieces_while_it_is_read_keeps_no_tag_storage() {
    let (_folder, path) = file();
    for backing in BACKINGS {
        let Some(guest) = Guest::new(&path, backing, 4, &[]) else { continue };
        let shared = &guest.lazy.shared;
        shared.slots.as_ref().unwrap().reserve_to_save(0).unwrap();
        let mut source = shared.source.lock().unwrap();
        let Source { reader, staging } = source.as_mut().unwrap();
        shared.lock().reading = Some(0);
        staging.turn_to(0, &shared.addresses(0)).unwrap();
        let mut reclaimer = guest.reclaimer();
        for part in 0..2 {
            staging.load(reader, 0).unwrap();
            let half = pages_per_chunk() / 2;
            reclaimer.discard(pages(part * half, half));
        }
        assert!(shared.is_pending(0) && guest.reserved() == 1);

        shared.place(staging, 0, Ok(())).unwrap();
        let left = shared.settle(0).unwrap();
        shared.loaded(0, left, false);

        drop(source);
        until("no tag storage", || guest.reserved() == 0);
        assert_eq!((guest.with_pages(), guest.pending(), guest.read(9)), (0, 3, 0), "{backing}");
    }
}

#[test]
fn what_is_known_to_be_touched_soon_is_loaded_where_there_is_plenty_and_no_further() {
    let (_folder, path) = file();
    for backing in BACKINGS {
        // Eight are left to touches.
        let Some(guest) = Guest::new(&path, backing, 10, &[3, 1, 0, 2]) else { continue };
        until("two chunks", || guest.lazy.loaded_ahead() == 2);
        assert_eq!([guest.read(first(3)), guest.read(first(1))], [byte(first(3)), byte(first(1))]);
        assert_eq!((guest.reserved(), guest.pending(), guest.lazy.faults()), (2, 2, 0));
        // The others are touched as if nothing were known of them.
        for (faults, chunk) in [(1, 2), (2, 0)] {
            assert_eq!(guest.read(first(chunk)), byte(first(chunk)));
            assert_eq!((guest.reserved(), guest.lazy.faults()), (2 + faults, faults), "{backing}");
        }
        // A touch may continue before it is written down that it waits no more.
        until("no touch that waits", || guest.tags.waiting() == 0);
        assert_eq!(guest.lazy.loaded_ahead(), 2);
    }
}

#[test]
fn at_the_end_what_waits_has_its_contents_and_no_zeros() {
    let (_folder, path) = file();
    for backing in BACKINGS {
        let Some(mut guest) = Guest::new(&path, backing, 1, &[]) else { continue };
        assert_eq!(guest.read(0), byte(0));
        let ram = guest.ram.clone();
        let touch = thread::spawn(move || read(&ram, first(2) + 4));
        until("a touch that waits", || guest.tags.waiting() == 1);

        guest.tags.stop();

        assert_eq!(touch.join().unwrap(), byte(first(2) + 4), "{backing}");
        assert_eq!(guest.read(first(1)), byte(first(1)), "{backing}");
    }
}

/// Chunks with pages have tag storage, and no others, whoever touches them, gives them back and loads them at once.
#[test]
fn tag_storage_is_that_of_chunks_with_pages_after_any_touches_and_discards() {
    let (_folder, path) = file();
    let total = CHUNKS * pages_per_chunk();
    for (round, most) in (0..4).flat_map(|round| [(round, 12), (round, 2)]) {
        let backing = BACKINGS[round as usize % 2];
        let Some(guest) = Guest::new(&path, backing, most, &[1, 2]) else { return };
        let is_over = AtomicBool::new(false);
        thread::scope(|scope| {
            scope.spawn(|| {
                let mut reclaimer = guest.reclaimer();
                // Where tag storage is short no touch could continue if this stopped earlier.
                for (number, at) in (0..).flat_map(|seed| order(total, seed)).enumerate() {
                    if is_over.load(Ordering::SeqCst) {
                        break;
                    }
                    let (at, count) = match number % 3 {
                        0 => (at, 1 + at % 40),
                        _ => (at / pages_per_chunk() * pages_per_chunk(), pages_per_chunk()),
                    };
                    reclaimer.discard(pages(at, count.min(total - at)));
                    assert!(guest.reserved() <= most);
                }
            });
            thread::scope(|scope| {
                for toucher in 0..3 {
                    let guest = &guest;
                    scope.spawn(move || {
                        for page in order(total, 3 * round + toucher).take(100) {
                            let found = guest.read(page);
                            assert!(found == byte(page) || found == 0, "page {page}: {found}");
                        }
                    });
                }
            });
            is_over.store(true, Ordering::SeqCst);
        });
        assert!(guest.with_pages() <= guest.reserved(), "{backing} round {round}");
        // A touch that was let go otherwise may still be served.
        let mut reclaimer = guest.reclaimer();
        until("no tag storage", || {
            reclaimer.discard(pages(0, total));
            thread::sleep(std::time::Duration::from_millis(1));
            (guest.reserved(), guest.tags.waiting()) == (0, 0)
        });
        assert_eq!((guest.with_pages(), guest.pending()), (0, 0));
        assert_eq!([guest.read(3), guest.read(total - 1)], [0, 0], "{backing} round {round}");
        // Others may be ahead.
        assert!((2..=4).contains(&guest.reserved()), "{backing} round {round}");
    }
}
