//! The usual ways of a slot where no two share a block: from the front of its queue, and back.

use super::{NEXT, PREVIOUS, Place, Queue, SlotIndex, Slots, slot_of};

impl Slots {
    /// The slot that [`choose`](Self::choose) takes if its blocks are free.
    #[inline(always)]
    pub(crate) fn next_at_once(&mut self) -> Option<SlotIndex> {
        slot_of(self.queues[Queue::Recycled as usize].front).or_else(|| self.next_fresh())
    }

    /// That slot is held by the lease at this index.
    #[inline(always)]
    pub(crate) fn hold_at_once(&mut self, slot: SlotIndex, index: u32) {
        let ends = &mut self.queues[Queue::Recycled as usize];
        // It is the first of its queue, or fresh and in none.
        if ends.front == slot.0 + 1 {
            let next = self.links.get(slot.0 as usize).map_or(0, |links| links[NEXT]);
            ends.front = next;
            ends.len -= 1;
            match self.links.get_mut((next as usize).wrapping_sub(1)) {
                Some(after) => after[PREVIOUS] = 0,
                None => ends.back = 0,
            }
        } else {
            self.unused = self.unused.max(slot.0 + 1);
        }
        if let Some(place) = self.places.get_mut(slot.0 as usize) {
            *place = Place::Held(index).code();
        }
    }

    /// Whether the lease at this index holds a slot.
    #[inline(always)]
    pub(crate) fn is_held_by(&self, slot: SlotIndex, index: u32) -> bool {
        self.places.get(slot.0 as usize) == Some(&Place::Held(index).code())
    }

    /// A slot that was held is free.
    #[inline(always)]
    pub(crate) fn recycle_at_once(&mut self, slot: SlotIndex) {
        let ends = &mut self.queues[Queue::Recycled as usize];
        let (own, next) = (slot.0 + 1, ends.front);
        ends.front = own;
        ends.len += 1;
        match self.links.get_mut((next as usize).wrapping_sub(1)) {
            Some(after) => after[PREVIOUS] = own,
            None => ends.back = own,
        }
        if let Some(links) = self.links.get_mut(slot.0 as usize) {
            *links = [next, 0];
        }
        if let Some(place) = self.places.get_mut(slot.0 as usize) {
            *place = Place::Recycled.code();
        }
    }
}
