#![allow(clippy::unwrap_used)]

use proptest::prelude::*;

use super::*;

/// Blocks of so many KiB and `slots` slots.
fn table(block: u64, slots: u32) -> BlockTable {
    let geometry = Geometry::new(Bytes::kib(4), Bytes::kib(block)).unwrap();
    let blocks = (u64::from(slots) * 512).div_ceil(geometry.covered_pages());
    BlockTable::new(geometry, blocks as usize, slots)
}

fn totals(table: &BlockTable) -> Vec<u64> {
    BlockState::ALL.iter().map(|state| table.total(*state)).collect()
}

fn counted(table: &BlockTable) -> Vec<u64> {
    let is = |state, block| table.get(BlockIndex(block)).unwrap().0 == state;
    let blocks = table.len() as u64;
    BlockState::ALL
        .iter()
        .map(|state| (0..blocks).filter(|block| is(*state, *block)).count() as u64)
        .collect()
}

#[test]
fn runs_of_bits_are_found() {
    let found = |mask| runs(mask).map(|run| (run.start, run.end)).collect::<Vec<_>>();

    assert_eq!(found(0), []);
    assert_eq!(found(0b1101), [(0, 1), (2, 4)]);
    assert_eq!(found(1 << 31), [(31, 32)]);
    assert_eq!(found(Mask::MAX), [(0, 32)]);
    assert_eq!(found(0xffff), [(0, 16)]);
}

#[test]
fn a_reserved_block_counts_each_slot_that_shares_it() {
    let mut table = table(128, 4);
    let [first, second] = [0, 1].map(|slot| table.span(SlotIndex(slot)));
    let work = table.start(&first).unwrap();
    table.complete(&first, work).unwrap();
    assert_eq!(table.get(BlockIndex(0)), Some((BlockState::Reserved, 512)));

    assert_eq!(table.start(&second), Ok(Work::default()));

    assert_eq!(table.get(BlockIndex(0)), Some((BlockState::Reserved, 1024)));
    assert_eq!(table.start(&second), Err(Error::References { block: BlockIndex(0) }));
    assert_eq!(table.release(&first), Ok(0));
    assert_eq!(table.release(&second), Ok(1));
    assert_eq!(table.get(BlockIndex(0)), Some((BlockState::Releasing, 0)));
}

#[test]
fn the_short_way_ends_where_the_long_one_does() {
    for block in [4, 8, 16, 64] {
        let (mut long, mut short) = (table(block, 6), table(block, 6));
        let span = long.separate_span(SlotIndex(2)).unwrap();
        assert_eq!(span, long.span(SlotIndex(2)));
        assert!(short.is_free(&span));

        let work = long.start(&span).unwrap();
        long.complete(&span, work).unwrap();
        short.reserve_free(&span);
        assert_eq!((&short.entries, totals(&short)), (&long.entries, totals(&long)), "{block}");
        assert!(!short.is_free(&span));

        let released = long.release(&span).unwrap();
        long.settle(&span, released).unwrap();
        short.free_reserved(&span);
        assert_eq!((&short.entries, totals(&short)), (&long.entries, totals(&long)), "{block}");
        assert!(short.is_free(&span));
        assert_eq!(table(96, 6).separate_span(SlotIndex(2)), None);
    }
}

#[test]
fn a_slot_is_free_if_every_block_of_it_is() {
    for (one, other) in (0..16).flat_map(|one| (0..one).map(move |other| (one, other))) {
        let mut table = table(4, 3);
        let span = table.separate_span(SlotIndex(1)).unwrap();
        assert!(table.is_free(&span));

        for lent in [one, other] {
            assert_eq!(table.lend(1, span.first() + lent + 1).0, 1);
            assert!(!table.is_free(&span), "{one}, {other}");
        }
        assert!(table.is_free(&table.separate_span(SlotIndex(0)).unwrap()), "{one}, {other}");
    }
}

/// A step that may make no sense: of what slot, and with which mask.
#[derive(Clone, Copy, Debug)]
enum Step {
    Start(u32),
    Complete(u32, Mask, Mask),
    Undo(u32, Mask, Mask),
    Release(u32),
    Settle(u32, Mask),
    Lend(u64, usize),
    Pin(u64, usize),
    Unpin(usize),
}

fn step() -> impl Strategy<Value = Step> {
    // One more than there are.
    let slot = 0u32..8;
    let mask = prop_oneof![Just(0), Just(1), Just(3), Just(0xffff), 0u32..1 << 16];
    prop_oneof![
        4 => slot.clone().prop_map(Step::Start),
        4 => (slot.clone(), mask.clone(), mask.clone())
            .prop_map(|(slot, take, evict)| Step::Complete(slot, take, evict)),
        2 => (slot.clone(), mask.clone(), mask.clone())
            .prop_map(|(slot, take, pinned)| Step::Undo(slot, take, pinned)),
        4 => slot.clone().prop_map(Step::Release),
        4 => (slot, mask).prop_map(|(slot, mask)| Step::Settle(slot, mask)),
        1 => (0u64..9, 0usize..200).prop_map(|(limit, below)| Step::Lend(limit, below)),
        1 => (1u64..9, 0usize..200).prop_map(|(limit, from)| Step::Pin(limit, from)),
        1 => (0usize..200).prop_map(Step::Unpin),
    ]
}

fn apply(table: &mut BlockTable, step: Step) -> Result<(), Error> {
    let spans: Vec<Span> = (0..8).map(|slot| table.span(SlotIndex(slot))).collect();
    let span = |slot: u32| spans[slot as usize];
    // Masks only name blocks that a span has.
    let part = |slot, mask: Mask| mask & ((1 << span(slot).len()) - 1);
    let work = |slot, take, evict| Work {
        take: part(slot, take),
        evict: part(slot, evict) & !part(slot, take),
    };
    match step {
        Step::Start(slot) => table.start(&span(slot)).map(drop),
        Step::Complete(slot, take, evict) => table.complete(&span(slot), work(slot, take, evict)),
        Step::Undo(slot, take, pinned) => {
            table.abort(&span(slot), work(slot, take, !take), pinned).map(drop)
        }
        Step::Release(slot) => table.release(&span(slot)).map(drop),
        Step::Settle(slot, mask) => table.settle(&span(slot), part(slot, mask)),
        Step::Lend(limit, below) => {
            table.lend(limit, below);
            Ok(())
        }
        Step::Pin(limit, from) => {
            table.turn((BlockState::Lent, BlockState::Pinned), limit, from);
            Ok(())
        }
        Step::Unpin(from) => {
            table.unpin(from);
            Ok(())
        }
    }
}

proptest! {
    #[test]
    fn steps_in_any_order_keep_the_sums_and_the_bounds(
        block in prop::sample::select(vec![4u64, 8, 20, 64, 96, 128]),
        steps in prop::collection::vec(step(), 0..60),
    ) {
        let mut table = table(block, 7);
        for step in steps {
            let before = table.entries.clone();

            let result = apply(&mut table, step);

            if result.is_err() && matches!(step, Step::Start(_) | Step::Release(_)) {
                prop_assert_eq!(&table.entries, &before, "{:?}", step);
            }
            prop_assert_eq!(totals(&table), counted(&table), "{:?}", step);
            prop_assert_eq!(totals(&table).iter().sum::<u64>(), table.len() as u64);
            for block in 0..table.len() as u64 {
                let (is, references) = table.get(BlockIndex(block)).unwrap();
                prop_assert!(u64::from(references) <= table.geometry.covered_pages());
                prop_assert_eq!(is == BlockState::Reserved, references > 0, "{:?}", step);
            }
        }
    }
}
