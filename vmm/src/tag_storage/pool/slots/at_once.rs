//! The usual ways of a frame where no two share a block: from the front of its queue, and back.

use super::{FrameIndex, Frames, NEXT, PREVIOUS, Place, Queue, frame_of};

impl Frames {
    /// The frame that [`choose`](Self::choose) takes if its blocks are free.
    #[inline(always)]
    pub(crate) fn next_at_once(&mut self) -> Option<FrameIndex> {
        frame_of(self.queues[Queue::Recycled as usize].front).or_else(|| self.next_fresh())
    }

    /// That frame is held by the lease in this slot.
    #[inline(always)]
    pub(crate) fn hold_at_once(&mut self, frame: FrameIndex, slot: u32) {
        let ends = &mut self.queues[Queue::Recycled as usize];
        // It is the first of its queue, or fresh and in none.
        if ends.front == frame.0 + 1 {
            let next = self.links.get(frame.0 as usize).map_or(0, |links| links[NEXT]);
            ends.front = next;
            ends.len -= 1;
            match self.links.get_mut((next as usize).wrapping_sub(1)) {
                Some(after) => after[PREVIOUS] = 0,
                None => ends.back = 0,
            }
        } else {
            self.unused = self.unused.max(frame.0 + 1);
        }
        if let Some(place) = self.places.get_mut(frame.0 as usize) {
            *place = Place::Held(slot).code();
        }
    }

    /// Whether the lease in this slot holds a frame.
    #[inline(always)]
    pub(crate) fn is_held_by(&self, frame: FrameIndex, slot: u32) -> bool {
        self.places.get(frame.0 as usize) == Some(&Place::Held(slot).code())
    }

    /// A frame that was held is free.
    #[inline(always)]
    pub(crate) fn recycle_at_once(&mut self, frame: FrameIndex) {
        let ends = &mut self.queues[Queue::Recycled as usize];
        let (own, next) = (frame.0 + 1, ends.front);
        ends.front = own;
        ends.len += 1;
        match self.links.get_mut((next as usize).wrapping_sub(1)) {
            Some(after) => after[PREVIOUS] = own,
            None => ends.back = own,
        }
        if let Some(links) = self.links.get_mut(frame.0 as usize) {
            *links = [next, 0];
        }
        if let Some(place) = self.places.get_mut(frame.0 as usize) {
            *place = Place::Recycled.code();
        }
    }
}
