#![allow(clippy::unwrap_used)]

use std::cell::RefCell;

use super::*;

const PAGE: u64 = 4096;
const HUGE_PAGE: u64 = 2 << 20;

/// Pages as a kernel shows them, a few regions at a time.
struct Pages {
    regions: Vec<PageRegion>,
    /// Huge pages that are pages of zeroes.
    zeroes: Vec<u64>,
    at_once: usize,
    asked: RefCell<Vec<Range<u64>>>,
}

impl Pages {
    fn new(regions: &[(u64, u64, u64)]) -> Self {
        let region = |&(start, end, categories)| PageRegion { start, end, categories };
        Self {
            regions: regions.iter().map(region).collect(),
            zeroes: Vec::new(),
            at_once: usize::MAX,
            asked: RefCell::default(),
        }
    }

    fn resident(&self, addresses: Range<u64>) -> Resident {
        resident(self, &addresses, Some(HUGE_PAGE), PAGE, &AtomicBool::new(false)).unwrap()
    }
}

impl ScanPages for Pages {
    fn scan(&self, range: &Range<u64>, regions: &mut [PageRegion]) -> io::Result<Walked> {
        self.asked.borrow_mut().push(range.clone());
        let mut found = 0;
        for region in &self.regions {
            let (start, end) = (region.start.max(range.start), region.end.min(range.end));
            if start >= end {
                continue;
            }
            if found == regions.len().min(self.at_once) {
                return Ok(Walked { found, end: start });
            }
            regions[found] = PageRegion { start, end, ..*region };
            found += 1;
        }
        Ok(Walked { found, end: range.end })
    }
}

impl ReadAt for Pages {
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        let address = offset / 8 * PAGE;
        let file = if self.zeroes.contains(&address) { PAGEMAP_FILE } else { 0 };
        buffer.copy_from_slice(&(PAGEMAP_PRESENT | file).to_ne_bytes());
        Ok(8)
    }
}

#[test]
fn regions_are_added_up_however_many_come_at_once() {
    let regions: Vec<_> =
        (0..2000).map(|at| (at * 3 * PAGE, (at * 3 + 2) * PAGE, PRESENT)).collect();
    for at_once in [usize::MAX, 100, 1] {
        let pages = Pages { at_once, ..Pages::new(&regions) };

        let found = pages.resident(0..6000 * PAGE);

        let resident = Bytes::new(4000 * PAGE);
        assert_eq!(found, Resident { resident, ..Resident::default() });
    }
}

#[test]
fn pages_of_files_are_told_apart() {
    let pages = Pages::new(&[
        (0, 3 * PAGE, PRESENT | FILE),
        (3 * PAGE, 7 * PAGE, PRESENT),
        (HUGE_PAGE, 2 * HUGE_PAGE, PRESENT | FILE | HUGE),
    ]);

    let found = pages.resident(0..2 * HUGE_PAGE);

    let [resident, huge, of_files] =
        [7 * PAGE + HUGE_PAGE, HUGE_PAGE, 3 * PAGE + HUGE_PAGE].map(Bytes::new);
    assert_eq!(found, Resident { resident, huge, of_files, ..Resident::default() });
}

#[test]
fn what_is_swapped_out_is_not_resident() {
    let pages = Pages::new(&[
        (0, 3 * PAGE, SWAPPED),
        (3 * PAGE, 7 * PAGE, PRESENT),
        (HUGE_PAGE, 2 * HUGE_PAGE, SWAPPED | HUGE),
    ]);

    let found = pages.resident(0..2 * HUGE_PAGE);

    let [resident, swapped] = [4 * PAGE, 3 * PAGE + HUGE_PAGE].map(Bytes::new);
    assert_eq!(found, Resident { resident, swapped, ..Resident::default() });
}

#[test]
fn one_call_walks_a_bounded_part() {
    let pages = Pages::new(&[(0, 5 * STEP / 2, PRESENT | HUGE)]);

    let found = pages.resident(0..5 * STEP / 2);

    assert_eq!(found.huge, Bytes::new(5 * STEP / 2));
    assert_eq!(*pages.asked.borrow(), [0..STEP, STEP..2 * STEP, 2 * STEP..5 * STEP / 2]);
}

#[test]
fn huge_pages_of_zeroes_are_left_out() {
    let mut pages = Pages::new(&[
        (0, 4 * HUGE_PAGE, PRESENT | HUGE),
        (8 * HUGE_PAGE, 8 * HUGE_PAGE + PAGE, PRESENT),
    ]);
    pages.zeroes = vec![HUGE_PAGE, 3 * HUGE_PAGE];

    let found = pages.resident(0..16 * HUGE_PAGE);

    assert_eq!(found.huge, Bytes::new(2 * HUGE_PAGE));
    assert_eq!(found.resident, Bytes::new(2 * HUGE_PAGE + PAGE));
}

#[test]
fn a_walk_that_gets_nowhere_is_an_error() {
    struct Stuck;
    impl ScanPages for Stuck {
        fn scan(&self, range: &Range<u64>, _: &mut [PageRegion]) -> io::Result<Walked> {
            Ok(Walked { found: 0, end: range.start })
        }
    }
    impl ReadAt for Stuck {
        fn read_at(&self, _: &mut [u8], _: u64) -> io::Result<usize> {
            Ok(0)
        }
    }

    let error = resident(&Stuck, &(0..PAGE), None, PAGE, &AtomicBool::new(false)).unwrap_err();

    assert!(matches!(error, Error::Pagemap(_)), "{error:?}");
}

#[test]
fn a_count_ends_when_it_is_to_stop() {
    let pages = Pages::new(&[]);

    let stopped = resident(&pages, &(0..PAGE), None, PAGE, &AtomicBool::new(true));

    assert!(matches!(stopped, Err(Error::Stopped)));
    assert!(pages.asked.borrow().is_empty());
}
