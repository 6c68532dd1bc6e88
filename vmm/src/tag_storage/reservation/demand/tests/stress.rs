//! Many threads touch and discard the same memory at once, as a hostile guest does.

use super::*;

const CHUNKS: u64 = 8;
const TOUCHERS: u64 = 4;
const DISCARDERS: u64 = 2;

/// Numbers without order, the same in each run (xorshift64, Marsaglia 2003).
struct Numbers(u64);

impl Numbers {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % bound
    }
}

fn touch(guest: &Guest, seed: u64, rounds: u64) {
    let mut numbers = Numbers(seed);
    for _ in 0..rounds {
        let place = at(numbers.below(CHUNKS), numbers.below(512));
        match numbers.below(3) {
            0 => drop(guest.ram.read_obj::<u8>(place).unwrap()),
            _ => guest.ram.write_obj(numbers.0 as u8, place).unwrap(),
        }
    }
}

/// Discards something of the first [`CHUNKS`] chunks.
fn discard(reclaimer: &mut Reclaimer, numbers: &mut Numbers) {
    let first = numbers.below(CHUNKS);
    let (from, count) = match numbers.below(3) {
        0 => (numbers.below(512), numbers.below(512)),
        1 => (numbers.below(512), numbers.below(CHUNKS * 512)),
        _ => (0, 512),
    };
    let left = (CHUNKS - first) * 512 - from;
    let done = reclaimer.discard(pages(first, from, count.min(left)));
    // EBUSY: a file has a page there again, as it was touched since. The discard counts as failed.
    let why = reclaimer.counters().last_error().and_then(|error| error.raw_os_error());
    assert!(done.failed == 0 || why == Some(libc::EBUSY), "{why:?}");
}

/// At rest: each chunk with a page has a slot, and there are no others' slots.
fn check(guest: &Guest) {
    guest.live();
    for chunk in 0..CHUNKS {
        let absent = guest.demand.shared.is_absent(ChunkIndex(chunk));
        match guest.state(chunk) {
            State::Absent => assert!(absent, "chunk {chunk} has pages and no slot"),
            State::Populated => {}
            other => panic!("chunk {chunk} is {other:?} at rest"),
        }
    }
}

fn stress(backing: Backing, huge_pages: bool, capacity: u64, rounds: u64) {
    let guest = Guest::new(ram_of(2 * CHUNKS + 2, backing, huge_pages), capacity);
    let touched = AtomicBool::new(false);

    thread::scope(|scope| {
        for seed in 1..=DISCARDERS {
            let (mut reclaimer, touched) = (guest.reclaimer(), &touched);
            scope.spawn(move || {
                let mut numbers = Numbers(seed << 32);
                // Where tag storage is short no toucher could continue if these stopped earlier.
                while !touched.load(Ordering::SeqCst) {
                    discard(&mut reclaimer, &mut numbers);
                }
            });
        }
        thread::scope(|scope| {
            for seed in 1..=TOUCHERS {
                let guest = &guest;
                scope.spawn(move || touch(guest, seed, rounds));
            }
        });
        // A touch is served after all that came before it, also after those that were let go otherwise.
        guest.ram.write_obj(1u8, at(CHUNKS, 0)).unwrap();
        touched.store(true, Ordering::SeqCst);
    });

    // The last touch may go on a moment before its chunk is written down as populated.
    let deadline = Instant::now() + Duration::from_secs(30);
    while !matches!(guest.state(CHUNKS), State::Populated) {
        assert!(Instant::now() < deadline, "no rest");
        thread::yield_now();
    }
    check(&guest);
    assert!(!guest.listener.all().contains(&Told::Failed));

    let mut reclaimer = guest.reclaimer();
    reclaimer.discard(pages(0, 0, (CHUNKS + 1) * 512));
    check(&guest);
    assert_eq!(guest.live(), 0, "{backing}");
    // One that is touched just as it is mapped anew may stay apart.
    let most = if huge_pages { CHUNKS as usize + 1 } else { 1 };
    assert!(mappings(&guest.ram) <= most, "{backing}: {}", mappings(&guest.ram));
}

#[test]
fn slots_are_those_of_populated_chunks_after_any_touches_and_discards() {
    if !may_catch_faults() {
        return;
    }
    stress(Backing::Anonymous, false, CHUNKS + 1, 2000);
    stress(Backing::Anonymous, true, CHUNKS + 1, 2000);
    stress(Backing::Memfd, false, CHUNKS + 1, 2000);
}

#[test]
fn so_are_they_where_tag_storage_is_short() {
    if !may_catch_faults() {
        return;
    }
    for backing in BACKINGS {
        stress(backing, false, 3, 500);
    }
}
