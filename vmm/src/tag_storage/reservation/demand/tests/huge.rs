//! Chunks that are huge pages: no huge page is taken for a touch that is only caught, and each touch finds one.

use super::*;

/// Guest memory in huge pages; `None` where the host has none of 2 MiB.
fn guest(chunks: u64) -> Option<Guest> {
    if !may_catch_faults() {
        return None;
    }
    let ram = ram_of(2 * chunks, Backing::Anonymous, true);
    if ram.huge_page_size().is_none() {
        skip(Means::HugePages, "huge pages are off, or have another size");
        return None;
    }
    Some(Guest::new(ram, chunks))
}

/// What the kernel says of the mapping that a chunk is in (proc_pid_smaps(5), VmFlags).
fn flags(guest: &Guest, chunk: u64) -> Vec<String> {
    let address = guest.ram.host_address() + chunk * CHUNK.get();
    let smaps = fs::read_to_string("/proc/self/smaps").unwrap();
    let mut is_inside = false;
    for line in smaps.lines() {
        let range = line.split(' ').next().unwrap().split_once('-');
        let number = |text| u64::from_str_radix(text, 16).ok();
        if let Some((Some(start), Some(end))) =
            range.map(|(start, end)| (number(start), number(end)))
        {
            is_inside = (start..end).contains(&address);
        }
        if let Some(flags) = line.strip_prefix("VmFlags:")
            && is_inside
        {
            return flags.split_whitespace().map(str::to_owned).collect();
        }
    }
    panic!("{chunk} is in no mapping");
}

/// Whether touches of a chunk are caught, and whether the host may give it a huge page.
pub(super) fn is_caught_and_huge(guest: &Guest, chunk: u64) -> (bool, bool) {
    let flags = flags(guest, chunk);
    let has = |flag: &str| flags.iter().any(|has| has == flag);
    assert!(has("hg") != has("nh"), "{flags:?}");
    assert!(has("dd") && has("dc"), "in no dump and no child: {flags:?}");
    (has("um"), has("hg"))
}

/// Waits until the fault thread is done with a chunk.
fn touch(guest: &Guest, chunk: u64, page: u64) {
    guest.ram.write_obj(chunk as u8 + 1, at(chunk, page)).unwrap();
    let start = Instant::now();
    while guest.state(chunk) == State::Populating {
        assert!(start.elapsed() < Duration::from_secs(60));
        thread::yield_now();
    }
}

#[test]
fn a_chunk_may_be_a_huge_page_while_no_touch_of_it_is_caught() {
    let Some(guest) = guest(8) else { return };
    let mut reclaimer = guest.reclaimer();
    assert!((0..8).all(|chunk| is_caught_and_huge(&guest, chunk) == (true, false)));

    touch(&guest, 3, 7);
    assert_eq!(is_caught_and_huge(&guest, 3), (false, true));
    assert_eq!(is_caught_and_huge(&guest, 2), (true, false));
    reclaimer.discard(pages(3, 0, 511));
    assert_eq!(is_caught_and_huge(&guest, 3), (false, true), "a page is left");
    reclaimer.discard(pages(3, 0, 512));
    assert_eq!(is_caught_and_huge(&guest, 3), (true, false));

    assert_eq!((guest.live(), mappings(&guest.ram)), (0, 1));
}

#[test]
fn a_chunk_that_went_in_pieces_is_a_huge_page_when_it_is_touched_again() {
    let Some(guest) = guest(8) else { return };
    let mut reclaimer = guest.reclaimer();
    for tries in 0.. {
        if tries >= 100 {
            return skip(Means::HugePages, "the host has no free huge pages, by its own count");
        }
        let lacked = huge_pages_lacked();
        touch(&guest, 3, 0);
        for page in 0..512 {
            reclaimer.discard(pages(3, page, 1));
        }
        // Unless khugepaged has made it whole in between.
        reclaimer.discard(pages(3, 0, 512));
        assert_eq!(guest.live(), 0);

        touch(&guest, 3, 100);

        let footprint = Footprint::of(&guest.ram).unwrap();
        assert_eq!((footprint.resident, guest.live()), (CHUNK, 1));
        assert_eq!(guest.ram.read_obj::<u8>(at(3, 100)).unwrap(), 4);
        assert_eq!(guest.ram.read_obj::<u8>(at(3, 0)).unwrap(), 0);
        if footprint.huge == CHUNK {
            break;
        }
        assert!(huge_pages_lacked() > lacked, "small pages, though the host had huge ones");
        let _ = fs::write("/proc/sys/vm/compact_memory", "1");
    }
}

#[test]
fn huge_memory_that_is_touched_in_no_order_is_one_mapping_again() {
    let Some(guest) = guest(24) else { return };
    let mut reclaimer = guest.reclaimer();
    let order = |chunk: u64| chunk * 7 % 24;

    for _ in 0..3 {
        for chunk in (0..24).map(order) {
            touch(&guest, chunk, 0);
        }
        assert_eq!(mappings(&guest.ram), 1);
        assert!((0..24).all(|chunk| is_caught_and_huge(&guest, chunk) == (false, true)));
        for chunk in 0..24 {
            assert_eq!(guest.ram.read_obj::<u8>(at(chunk, 0)).unwrap(), chunk as u8 + 1);
        }
        for chunk in (0..24).step_by(2) {
            reclaimer.discard(pages(chunk, 0, 512));
        }
        assert_eq!((guest.live(), mappings(&guest.ram)), (12, 24));
        for chunk in (1..24).step_by(2) {
            reclaimer.discard(pages(chunk, 0, 512));
        }
        assert_eq!((guest.live(), mappings(&guest.ram)), (0, 1));
    }
}

#[test]
fn what_was_written_stays_when_all_is_closed_while_chunks_are_touched() {
    for _ in 0..20 {
        let Some(mut guest) = guest(16) else { return };
        let written = AtomicU64::new(0);
        thread::scope(|scope| {
            scope.spawn(|| {
                for chunk in 0..16 {
                    guest.ram.write_obj(chunk as u8 + 1, at(chunk, 3)).unwrap();
                    written.fetch_add(1, Ordering::SeqCst);
                }
            });
            while written.load(Ordering::SeqCst) < 5 {
                thread::yield_now();
            }
            guest.demand.shared.close();
        });
        guest.demand.stop();

        for chunk in 0..16 {
            assert_eq!(guest.ram.read_obj::<u8>(at(chunk, 3)).unwrap(), chunk as u8 + 1);
        }
    }
}
