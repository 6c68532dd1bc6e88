//! What must hold of the slots between two requests, for tests and for fuzzing.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeSet;

use super::*;

impl Slots {
    /// Checks that each slot is in the queue that its place names, once, and in no other.
    pub(crate) fn examine(&self) {
        let mut queued = BTreeSet::new();
        for queue in [Queue::Warm, Queue::Recycled, Queue::Tail] {
            let ends = self.queues[queue as usize];
            let (mut next, mut last, mut len) = (slot_of(ends.front), None, 0);
            while let Some(slot) = next {
                assert!(queued.insert(slot), "{slot} is in two queues");
                assert_eq!(self.place(slot), Some(queue.place()), "{slot}");
                assert_eq!(slot_of(self.links[slot.0 as usize][PREVIOUS]), last, "{slot}");
                (next, last, len) = (self.after(slot), Some(slot), len + 1);
            }
            assert_eq!((slot_of(ends.back), ends.len), (last, len), "{queue:?}");
        }
        for slot in (0..self.len()).map(SlotIndex) {
            let place = self.place(slot).unwrap();
            let is_queued = matches!(place, Place::Warm | Place::Recycled | Place::Tail);
            assert_eq!(queued.contains(&slot), is_queued, "{slot}");
            assert!(place != Place::Fresh || slot.0 >= self.fresh, "{slot} is forgotten");
            assert!(place == Place::Fresh || slot.0 < self.unused, "{slot}");
        }
    }
}
