#![allow(clippy::unwrap_used)]

use std::collections::BTreeSet;

use proptest::prelude::*;

use super::*;

const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;
const RAM: GuestRange = GuestRange { start: GuestAddress(0x8000_0000), length: 16 * MIB };
const FIRST: u32 = 0x8_0000;

fn pfns(numbers: impl IntoIterator<Item = u32>) -> Vec<Pfn> {
    numbers.into_iter().map(Pfn).collect()
}

fn insert(pages: &mut Pages, numbers: impl IntoIterator<Item = u32>) -> Change {
    pages.insert(&mut pfns(numbers), Held::UntilDeflated)
}

/// A range by the page it begins with and its length in bytes.
fn range(page: u32, length: u64) -> GuestRange {
    GuestRange { start: GuestAddress(u64::from(page) * PAGE), length }
}

#[test]
fn pages_of_4_kib_are_whole_at_once() {
    let mut pages = Pages::new(RAM, 4 * KIB, None);

    let change = insert(&mut pages, [FIRST + 5, FIRST + 3, FIRST + 4, FIRST + 9]);

    assert_eq!(change.whole, [range(FIRST + 3, 12 * KIB), range(FIRST + 9, 4 * KIB)]);
    assert_eq!((change.changed, change.outside), (16 * KIB, 0));
}

#[test]
fn larger_pages_are_whole_with_their_last_part() {
    for size in [16 * KIB, 64 * KIB, 2 * MIB] {
        let parts = u32::try_from(size / PAGE).unwrap();
        let mut pages = Pages::new(RAM, size, None);

        let early = insert(&mut pages, (1..parts).map(|part| FIRST + parts + part));
        let last = insert(&mut pages, [FIRST + parts]);

        assert_eq!(early.whole, []);
        assert_eq!(last.whole, [range(FIRST + parts, size)]);
        assert_eq!(pages.bytes(), size);
    }
}

#[test]
fn a_huge_page_is_whole_with_its_last_part_and_stays_until_it_is_deflated() {
    const PARTS: u32 = 512;
    let list = || (0..PARTS).map(|part| FIRST + PARTS + part);
    for size in [4 * KIB, 16 * KIB] {
        let mut pages = Pages::new(RAM, size, Some(2 * MIB));

        let early = insert(&mut pages, list().skip(1));
        let last = insert(&mut pages, [FIRST + 1, FIRST + PARTS]);
        let again = insert(&mut pages, list().chain([FIRST]));
        pages.remove(&pfns([FIRST + PARTS]));
        let other = insert(&mut pages, [FIRST + 2]);

        assert_eq!([early.huge, again.huge, other.huge], [[], [], []]);
        assert_eq!(last.huge, [range(FIRST + PARTS, 2 * MIB)]);
    }
}

#[test]
fn a_huge_page_that_the_driver_may_use_again_at_once_is_never_whole() {
    let mut pages = Pages::new(RAM, 4 * KIB, Some(2 * MIB));

    let change = pages.insert(&mut pfns((0..1024).map(|page| FIRST + page)), Held::UntilAnswered);

    assert_eq!((change.huge, change.changed), (vec![], 4 * MIB));
}

#[test]
fn neighbours_make_one_range() {
    for size in [4 * KIB, 16 * KIB, 64 * KIB, 2 * MIB] {
        let mut pages = Pages::new(RAM, size, None);

        let change = insert(&mut pages, (0..4096).rev().map(|page| FIRST + page));

        assert_eq!(change.whole, [range(FIRST, RAM.length)]);
    }
}

#[test]
fn a_page_that_is_in_already_changes_nothing() {
    let mut pages = Pages::new(RAM, 4 * KIB, None);

    let twice = insert(&mut pages, [FIRST, FIRST]);
    let again = insert(&mut pages, [FIRST]);

    assert_eq!(twice.changed, 4 * KIB);
    assert_eq!(twice.whole, [range(FIRST, 4 * KIB)]);
    assert_eq!(again, Change::default());
}

#[test]
fn a_page_of_the_host_is_whole_again_after_a_part_was_out() {
    let mut pages = Pages::new(RAM, 16 * KIB, None);
    insert(&mut pages, FIRST..FIRST + 4);

    let out = pages.remove(&pfns([FIRST + 2]));
    let between = pages.bytes();
    let back = insert(&mut pages, [FIRST + 2]);

    assert_eq!((out.changed, between), (4 * KIB, 12 * KIB));
    assert_eq!(back.whole, [range(FIRST, 16 * KIB)]);
}

#[test]
fn without_a_promise_only_one_list_makes_a_page_whole() {
    let mut pages = Pages::new(RAM, 16 * KIB, None);

    let halves = [[FIRST, FIRST + 1], [FIRST + 2, FIRST + 3]]
        .map(|half| pages.insert(&mut pfns(half), Held::UntilAnswered).whole);
    let at_once = pages.insert(&mut pfns(FIRST + 4..FIRST + 8), Held::UntilAnswered);
    pages.insert(&mut pfns([FIRST + 8]), Held::UntilAnswered);
    let repeated =
        pages.insert(&mut pfns([9, 9, 10, 11].map(|page| FIRST + page)), Held::UntilAnswered);

    assert_eq!(halves, [[], []]);
    assert_eq!(at_once.whole, [range(FIRST + 4, 16 * KIB)]);
    assert_eq!(repeated.whole, []);
    assert_eq!(pages.bytes(), 48 * KIB);
}

#[test]
fn numbers_outside_guest_memory_are_counted_and_ignored() {
    let mut pages = Pages::new(RAM, 4 * KIB, None);
    let outside = [0, FIRST - 1, FIRST + 4096, u32::MAX];

    let inserted = insert(&mut pages, outside);
    let allocated = pages.map.capacity();
    let removed = pages.remove(&pfns(outside));

    assert_eq!(inserted, Change { outside: 16 * KIB, ..Change::default() });
    assert_eq!(removed, inserted);
    assert_eq!(allocated, 0, "the map waits for a page");
}

#[test]
fn memory_that_has_only_a_part_of_a_page_of_the_host_never_has_it_whole() {
    let ram = GuestRange { start: GuestAddress(0x8000_1000), length: 4 * MIB };
    for size in [16 * KIB, 64 * KIB, 2 * MIB] {
        let mut pages = Pages::new(ram, size, None);

        let change = insert(&mut pages, FIRST - 10..FIRST + 2000);

        let parts = u32::try_from(size / PAGE).unwrap();
        assert_eq!(change.whole, [range(FIRST + parts, 4 * MIB - size)]);
        assert_eq!(pages.bytes(), 4 * MIB);
    }
}

#[test]
fn odd_memory_has_no_pages_or_those_it_has() {
    let cases = [
        (0, 0, 0),
        (0x8000_0001, 0x1ffe, 0),
        (0x8000_0001, 0x1fff, 1),
        (u64::MAX - 0x1000, u64::MAX, 0),
        (1 << 44, 1 << 30, 0),
        ((1 << 44) - 0x2000, 1 << 30, 2),
    ];
    for (start, length, expected) in cases {
        for size in [0, 1, 4 * KIB, 64 * KIB, 1 << 30, 1 << 63, u64::MAX] {
            let ram = GuestRange { start: GuestAddress(start), length };
            let mut pages = Pages::new(ram, size, None);

            insert(&mut pages, (0..4).chain(FIRST..FIRST + 4).chain(u32::MAX - 4..=u32::MAX));

            assert_eq!(
                pages.bytes(),
                expected * PAGE,
                "{length:#x} bytes at {start:#x}, {size:#x}"
            );
        }
    }
}

#[test]
fn clearing_empties_and_gives_the_map_back() {
    let mut pages = Pages::new(RAM, 16 * KIB, None);
    insert(&mut pages, FIRST..FIRST + 4);

    pages.clear();

    assert_eq!((pages.bytes(), pages.map.capacity()), (0, 0));
    assert_eq!(insert(&mut pages, FIRST..FIRST + 4).whole, [range(FIRST, 16 * KIB)]);
}

/// The same, slowly: a set of page numbers.
#[derive(Default)]
struct Model(BTreeSet<u32>);

impl Model {
    /// The first page of each page of the host that is in with all of its parts.
    fn whole(&self, parts: u32) -> BTreeSet<u32> {
        let touched: BTreeSet<u32> = self.0.iter().map(|page| page / parts * parts).collect();
        let is_whole = |first: &u32| (*first..first + parts).all(|part| self.0.contains(&part));
        touched.into_iter().filter(is_whole).collect()
    }
}

#[test]
fn no_pages_take_more_than_a_bit_for_each_page_of_memory() {
    const GIB: u64 = 1 << 30;
    let ram = GuestRange { length: 4 * GIB, ..RAM };
    let most = ram.length / PAGE / 8 + 16;
    for step in [1, 2, 3, 64, 1000] {
        let mut pages = Pages::new(ram, 4 * KIB, None);
        insert(&mut pages, (FIRST..FIRST + (ram.length / PAGE) as u32).step_by(step));

        let saved = pages.save();

        let length = postcard::to_allocvec(&saved).unwrap().len() as u64;
        assert!(length <= most, "every {step}: {length} of {most}");
        let mut other = Pages::new(ram, 4 * KIB, None);
        other.restore(&saved).unwrap();
        assert_eq!((other.bytes(), other.save()), (pages.bytes(), saved));
    }
}

fn starts(ranges: &[GuestRange], parts: u32) -> BTreeSet<u32> {
    ranges
        .iter()
        .flat_map(|range| {
            let first = u32::try_from(range.start.0 / PAGE).unwrap();
            (first..first + u32::try_from(range.length / PAGE).unwrap()).step_by(parts as usize)
        })
        .collect()
}

#[derive(Clone, Debug)]
enum Step {
    Insert(Vec<u32>, bool),
    Remove(Vec<u32>),
    Clear,
}

/// Lists of runs, so that pages of the host become whole, around a memory of `count` pages.
fn steps(count: u32) -> impl Strategy<Value = Vec<Step>> {
    let run = (0..count + 40, 1_u32..40).prop_map(|(first, length)| {
        (first..first + length).map(|page| FIRST - 20 + page).collect::<Vec<_>>()
    });
    let list = prop::collection::vec(run, 0..6).prop_map(|runs| runs.concat()).prop_shuffle();
    prop::collection::vec(
        prop_oneof![
            8 => (list.clone(), any::<bool>()).prop_map(|(list, waits)| Step::Insert(list, waits)),
            4 => list.prop_map(Step::Remove),
            1 => Just(Step::Clear),
        ],
        0..12,
    )
}

fn agrees(steps: Vec<Step>, ram: Range<u32>, parts: u32) -> Result<(), TestCaseError> {
    let memory = range(ram.start, u64::from(ram.end - ram.start) * PAGE);
    let mut pages = Pages::new(memory, u64::from(parts) * PAGE, None);
    let mut model = Model::default();
    for step in steps {
        match step {
            Step::Insert(list, waits) => {
                let (before, size) = (model.whole(parts), model.0.len());
                let inside: BTreeSet<u32> =
                    list.iter().copied().filter(|page| ram.contains(page)).collect();
                model.0.extend(&inside);
                let list_alone = Model(inside).whole(parts);
                let held = if waits { Held::UntilDeflated } else { Held::UntilAnswered };

                let change = pages.insert(&mut pfns(list.iter().copied()), held);

                let expected: BTreeSet<u32> = model
                    .whole(parts)
                    .difference(&before)
                    .copied()
                    .filter(|first| waits || list_alone.contains(first))
                    .collect();
                let outside = list.iter().filter(|page| !ram.contains(page)).count();
                prop_assert_eq!(starts(&change.whole, parts), expected);
                prop_assert!(
                    change.whole.windows(2).all(|pair| ranges::end(pair[0]) < pair[1].start.0)
                );
                prop_assert_eq!(change.changed, (model.0.len() - size) as u64 * PAGE);
                prop_assert_eq!(change.outside, outside as u64 * PAGE);
            }
            Step::Remove(list) => {
                let size = model.0.len();
                list.iter().for_each(|page| {
                    model.0.remove(page);
                });

                let change = pages.remove(&pfns(list));

                prop_assert_eq!(change.changed, (size - model.0.len()) as u64 * PAGE);
                prop_assert_eq!(change.whole, []);
            }
            Step::Clear => {
                model.0.clear();
                pages.clear();
            }
        }
        prop_assert_eq!(pages.bytes(), model.0.len() as u64 * PAGE);
    }
    Ok(())
}

proptest! {
    #[test]
    fn pages_are_a_set(
        steps in steps(160), start in 0_u32..40, length in 0_u32..160, order in 0_u32..8,
    ) {
        agrees(steps, FIRST + start..FIRST + start + length, 1 << order)?;
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]

    #[test]
    fn pages_are_a_set_with_huge_pages(
        steps in steps(1200), start in 0_u32..600, length in 512_u32..2000,
        fill in prop::collection::vec(0_u32..3, 1..3),
    ) {
        let filled = fill.iter().map(|huge| {
            Step::Insert((FIRST + huge * 512..FIRST + (huge + 1) * 512).collect(), true)
        });
        agrees(filled.chain(steps).collect(), FIRST + start..FIRST + start + length, 512)?;
    }
}
