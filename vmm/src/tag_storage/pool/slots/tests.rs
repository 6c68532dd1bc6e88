#![allow(clippy::unwrap_used)]

use std::collections::BTreeSet;

use arch::mte::geometry::Geometry;
use arch::units::Bytes;

use super::*;

impl Frames {
    /// Checks that each frame is in the queue that its place names, once, and in no other.
    pub(crate) fn examine(&self) {
        let mut queued = BTreeSet::new();
        for queue in [Queue::Warm, Queue::Recycled, Queue::Tail] {
            let ends = self.queues[queue as usize];
            let (mut next, mut last, mut len) = (frame_of(ends.front), None, 0);
            while let Some(frame) = next {
                assert!(queued.insert(frame), "{frame} is in two queues");
                assert_eq!(self.place(frame), Some(queue.place()), "{frame}");
                assert_eq!(frame_of(self.links[frame.0 as usize][PREVIOUS]), last, "{frame}");
                (next, last, len) = (self.after(frame), Some(frame), len + 1);
            }
            assert_eq!((frame_of(ends.back), ends.len), (last, len), "{queue:?}");
        }
        for frame in (0..self.len()).map(FrameIndex) {
            let place = self.place(frame).unwrap();
            let is_queued = matches!(place, Place::Warm | Place::Recycled | Place::Tail);
            assert_eq!(queued.contains(&frame), is_queued, "{frame}");
            assert!(place != Place::Fresh || frame.0 >= self.fresh, "{frame} is forgotten");
            assert!(place == Place::Fresh || frame.0 < self.unused, "{frame}");
        }
    }
}

/// Eight frames, two to a block.
fn shared() -> (Frames, BlockTable) {
    let geometry = Geometry::new(Bytes::kib(4), Bytes::kib(128)).unwrap();
    (Frames::new(8), BlockTable::new(geometry, 4, 8))
}

fn hold(frames: &mut Frames, blocks: &mut BlockTable, frame: FrameIndex) {
    let span = blocks.span(frame);
    let work = blocks.start(&span).unwrap();
    blocks.complete(&span, work).unwrap();
    frames.hold(frame, 0);
    frames.warm_neighbours(frame, blocks);
}

fn free(frames: &mut Frames, blocks: &mut BlockTable, frame: FrameIndex) {
    let span = blocks.span(frame);
    let released = blocks.release(&span).unwrap();
    blocks.settle(&span, released).unwrap();
    frames.let_go(frame);
    frames.recycle(frame, blocks);
}

fn next(frames: &mut Frames, blocks: &BlockTable) -> Option<u32> {
    let next = frames.choose(blocks).map(|candidate| candidate.frame.0);
    frames.examine();
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
fn frames_beside_reserved_ones_go_first_then_used_ones_then_fresh_ones_then_the_tail() {
    let (mut frames, mut blocks) = shared();
    for frame in [0, 1, 2, 3] {
        hold(&mut frames, &mut blocks, FrameIndex(frame));
    }
    for frame in [0, 1, 3] {
        free(&mut frames, &mut blocks, FrameIndex(frame));
    }
    frames.postpone(FrameIndex(1));

    let mut order = Vec::new();
    while let Some(frame) = next(&mut frames, &blocks) {
        hold(&mut frames, &mut blocks, FrameIndex(frame));
        order.push(frame);
    }

    // 3 shares a block with 2, then 0 was used before. Its neighbour waits at the tail all the same.
    assert_eq!(order, [3, 0, 4, 5, 6, 7, 1]);
}

#[test]
fn a_frame_beside_one_that_was_freed_is_not_warm_any_more() {
    let (mut frames, mut blocks) = shared();
    hold(&mut frames, &mut blocks, FrameIndex(0));
    hold(&mut frames, &mut blocks, FrameIndex(2));
    free(&mut frames, &mut blocks, FrameIndex(0));
    assert_eq!(next(&mut frames, &blocks), Some(3));

    free(&mut frames, &mut blocks, FrameIndex(2));
    let found = next(&mut frames, &blocks);

    assert!(matches!(found, Some(0..=3)), "{found:?}");
    assert_eq!(frames.queues[Queue::Warm as usize].len, 0);
}

#[test]
fn a_frame_is_chosen_by_its_number_unless_it_is_held_or_out_of_use() {
    let (mut frames, mut blocks) = shared();
    hold(&mut frames, &mut blocks, FrameIndex(6));
    frames.postpone(FrameIndex(2));
    blocks.lend(2, 3);
    let run = blocks.recall(1, 0).0;
    blocks.recalled(run, crate::tag_storage::pool::blocks::BlockState::Pinned).unwrap();

    let chosen: Vec<u32> =
        (0..10).filter(|frame| frames.choose_this(FrameIndex(*frame), &blocks).is_some()).collect();

    // 2 and 3 are pinned, 4 and 5 lent.
    assert_eq!(chosen, [0, 1, 4, 5, 7]);
}

#[test]
fn who_holds_what_is_found_in_order() {
    let (mut frames, mut blocks) = shared();
    for frame in [1, 4, 5] {
        hold(&mut frames, &mut blocks, FrameIndex(frame));
    }
    frames.hold(FrameIndex(5), 3);

    assert_eq!(frames.held_by(0, 0), Some((Some(FrameIndex(1)), 2)));
    assert_eq!(frames.held_by(0, 2), Some((Some(FrameIndex(4)), 5)));
    assert_eq!(frames.held_by(0, 5), Some((None, 6)));
    assert_eq!(frames.held_by(0, 6), None);
    assert_eq!(frames.held_by(3, 0), Some((Some(FrameIndex(5)), 6)));
}
