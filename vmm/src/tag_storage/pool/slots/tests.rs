#![allow(clippy::unwrap_used)]

use arch::mte::geometry::Geometry;
use arch::units::Bytes;

use super::*;
use crate::tag_storage::pool::blocks::BlockState;

/// Eight slots, two to a block.
fn shared() -> (Slots, BlockTable) {
    let geometry = Geometry::new(Bytes::kib(4), Bytes::kib(128)).unwrap();
    (Slots::new(8), BlockTable::new(geometry, 4, 8))
}

fn hold(slots: &mut Slots, blocks: &mut BlockTable, slot: SlotIndex) {
    let span = blocks.span(slot);
    let work = blocks.start(&span).unwrap();
    blocks.complete(&span, work).unwrap();
    slots.hold(slot, 0);
    slots.warm_neighbours(slot, blocks);
}

fn free(slots: &mut Slots, blocks: &mut BlockTable, slot: SlotIndex) {
    let span = blocks.span(slot);
    let released = blocks.release(&span).unwrap();
    blocks.settle(&span, released).unwrap();
    slots.start_release(slot);
    slots.recycle(slot, blocks);
}

fn next(slots: &mut Slots, blocks: &BlockTable) -> Option<u32> {
    let next = slots.choose(blocks).map(|candidate| candidate.slot.0);
    slots.examine();
    next
}

#[test]
fn a_code_means_its_place() {
    let places = [Place::Fresh, Place::Warm, Place::Recycled, Place::Tail, Place::Moving];
    for place in places.into_iter().chain([Place::Held(0), Place::Held(4095)]) {
        assert_eq!(Place::of(place.code()), place);
    }
}

#[test]
fn slots_beside_reserved_ones_go_first_then_used_ones_then_fresh_ones_then_the_tail() {
    let (mut slots, mut blocks) = shared();
    for slot in [0, 1, 2, 3] {
        hold(&mut slots, &mut blocks, SlotIndex(slot));
    }
    for slot in [0, 1, 3] {
        free(&mut slots, &mut blocks, SlotIndex(slot));
    }
    slots.postpone(SlotIndex(1));

    let mut order = Vec::new();
    while let Some(slot) = next(&mut slots, &blocks) {
        hold(&mut slots, &mut blocks, SlotIndex(slot));
        order.push(slot);
    }

    // 3 shares a block with 2, then 0 was used before. Its neighbour waits at the tail all the same.
    assert_eq!(order, [3, 0, 4, 5, 6, 7, 1]);
}

#[test]
fn a_slot_beside_one_that_was_freed_is_not_warm_any_more() {
    let (mut slots, mut blocks) = shared();
    hold(&mut slots, &mut blocks, SlotIndex(0));
    hold(&mut slots, &mut blocks, SlotIndex(2));
    free(&mut slots, &mut blocks, SlotIndex(0));
    assert_eq!(next(&mut slots, &blocks), Some(3));

    free(&mut slots, &mut blocks, SlotIndex(2));
    let found = next(&mut slots, &blocks);

    assert!(matches!(found, Some(0..=3)), "{found:?}");
    assert_eq!(slots.queues[Queue::Warm as usize].len, 0);
}

#[test]
fn a_slot_is_chosen_by_its_number_unless_it_is_held_or_out_of_use() {
    let (mut slots, mut blocks) = shared();
    hold(&mut slots, &mut blocks, SlotIndex(6));
    slots.postpone(SlotIndex(2));
    blocks.lend(2, 3);
    blocks.turn((BlockState::Lent, BlockState::Pinned), 1, 0);

    let chosen: Vec<u32> =
        (0..10).filter(|slot| slots.choose_this(SlotIndex(*slot), &blocks).is_some()).collect();

    // 2 and 3 are pinned, 4 and 5 lent.
    assert_eq!(chosen, [0, 1, 4, 5, 7]);
}

#[test]
fn who_holds_what_is_found_in_order() {
    let (mut slots, mut blocks) = shared();
    for slot in [1, 4, 5] {
        hold(&mut slots, &mut blocks, SlotIndex(slot));
    }
    slots.hold(SlotIndex(5), 3);

    assert_eq!(slots.held_by(0, 0), Some((Some(SlotIndex(1)), 2)));
    assert_eq!(slots.held_by(0, 2), Some((Some(SlotIndex(4)), 5)));
    assert_eq!(slots.held_by(0, 5), Some((None, 6)));
    assert_eq!(slots.held_by(0, 6), None);
    assert_eq!(slots.held_by(3, 0), Some((Some(SlotIndex(5)), 6)));
}
