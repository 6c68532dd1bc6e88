//! Which slot a chunk gets next.
//!
//! A slot stands for the physical address of a chunk, which no program sees: its place in the tagged
//! memory decides which blocks hold its tags. Slots that share a block with a reserved one go first, for
//! they open no block or fewer; then those that were used before, the last one freed first; then fresh ones
//! in order. A slot that failed, or one whose blocks are lent while others are free, waits at the tail, as
//! in the kernel series: a page whose tag storage cannot be reserved goes to the tail of the free list.

mod at_once;

use super::blocks::{BlockTable, Outlook, SWEEP, Span};
pub(crate) use super::units::SlotIndex;

/// Slots that one search looks at before it takes what it has. Each costs some 100 instructions and no
/// system call, so that a search ends within 100 microseconds.
const LOOKS: u32 = 1024;

/// Where a slot is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Place {
    /// Never used.
    Fresh,
    /// Free; it shared a block with a reserved slot when it came here.
    Warm,
    /// Free, used before.
    Recycled,
    /// Free; it failed, or it would cost an eviction.
    Tail,
    /// Being reserved or freed.
    Moving,
    /// Reserved for the lease at this index.
    Held(u32),
}

impl Place {
    const fn code(self) -> u32 {
        match self {
            // All bits zero, so that a new table costs no memory until its slots are used.
            Self::Fresh => 0,
            Self::Warm => 1,
            Self::Recycled => 2,
            Self::Tail => 3,
            Self::Moving => 4,
            Self::Held(index) => 5 + index,
        }
    }

    const fn of(code: u32) -> Self {
        match code {
            0 => Self::Fresh,
            1 => Self::Warm,
            2 => Self::Recycled,
            3 => Self::Tail,
            4 => Self::Moving,
            held => Self::Held(held - 5),
        }
    }
}

/// A queue of free slots.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Queue {
    Warm,
    Recycled,
    Tail,
}

impl Queue {
    const fn place(self) -> Place {
        match self {
            Self::Warm => Place::Warm,
            Self::Recycled => Place::Recycled,
            Self::Tail => Place::Tail,
        }
    }
}

/// Which end of a queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum End {
    Front,
    Back,
}

/// The ends of a queue. The links between are in [`Slots`].
#[derive(Clone, Copy, Debug, Default)]
struct Ends {
    /// One more than the first slot's number, 0 where there is none; so are all links.
    front: u32,
    back: u32,
    len: u32,
}

/// All slots of a pool.
#[derive(Debug)]
pub(crate) struct Slots {
    places: Vec<u32>,
    /// The next and the previous slot of the queue.
    links: Vec<[u32; 2]>,
    queues: [Ends; 3],
    /// Below it no slot is fresh.
    fresh: u32,
    /// From here on no slot was ever held or in a queue.
    unused: u32,
}

const NEXT: usize = 0;
const PREVIOUS: usize = 1;

/// The slot to try.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Candidate {
    pub slot: SlotIndex,
    pub span: Span,
    pub outlook: Outlook,
}

impl Slots {
    /// `count` fresh slots. The caller bounds them: see `Pool::new`.
    pub(crate) fn new(count: u32) -> Self {
        Self {
            places: vec![0; count as usize],
            links: vec![[0; 2]; count as usize],
            queues: [Ends::default(); 3],
            fresh: 0,
            unused: 0,
        }
    }

    /// How many slots there are.
    pub(crate) fn len(&self) -> u32 {
        self.places.len() as u32
    }

    /// Where a slot is; `None` where there is no such slot.
    pub(crate) fn place(&self, slot: SlotIndex) -> Option<Place> {
        self.places.get(slot.0 as usize).copied().map(Place::of)
    }

    /// The next slot to try, in the order that the top of this file gives. It stays where it is; slots
    /// that cannot be had now go to the tail on the way. `None` may mean that the supply is being called
    /// for the blocks of those that could be had.
    pub(crate) fn choose(&mut self, blocks: &BlockTable) -> Option<Candidate> {
        let mut looks = LOOKS;
        for queue in [Queue::Warm, Queue::Recycled] {
            if let Some(found) = self.search(queue, blocks, &mut looks) {
                return Some(found);
            }
        }
        if let Some(found) = self.search_fresh(blocks, &mut looks) {
            return Some(found);
        }
        self.search_tail(blocks)
    }

    /// This very slot, if it is free and nothing of it is out of use or on its way.
    pub(crate) fn choose_this(&self, slot: SlotIndex, blocks: &BlockTable) -> Option<Candidate> {
        match self.place(slot)? {
            Place::Moving | Place::Held(_) => return None,
            Place::Fresh | Place::Warm | Place::Recycled | Place::Tail => {}
        }
        let candidate = candidate(slot, blocks);
        let is_to_be_had = !matches!(candidate.outlook, Outlook::Moving | Outlook::Out);
        is_to_be_had.then_some(candidate)
    }

    fn search(&mut self, queue: Queue, blocks: &BlockTable, looks: &mut u32) -> Option<Candidate> {
        let mut next = slot_of(self.queues[queue as usize].front);
        while let Some(slot) = next.filter(|_| *looks > 0) {
            next = self.after(slot);
            let candidate = candidate(slot, blocks);
            match candidate.outlook {
                // What it shared a block with is gone. The recycled ones are searched next.
                Outlook::Free if queue == Queue::Warm => {
                    self.put(slot, Queue::Recycled, End::Front);
                    continue;
                }
                Outlook::Free | Outlook::Shared => return Some(candidate),
                Outlook::Lent | Outlook::Out => self.put(slot, Queue::Tail, End::Back),
                Outlook::Moving => {}
            }
            *looks -= 1;
        }
        None
    }

    fn search_fresh(&mut self, blocks: &BlockTable, looks: &mut u32) -> Option<Candidate> {
        while *looks > 0 {
            let slot = self.next_fresh()?;
            let candidate = candidate(slot, blocks);
            match candidate.outlook {
                Outlook::Free | Outlook::Shared => return Some(candidate),
                Outlook::Lent | Outlook::Out => self.put(slot, Queue::Tail, End::Back),
                Outlook::Moving => self.put(slot, Queue::Recycled, End::Back),
            }
            *looks -= 1;
        }
        None
    }

    fn search_tail(&mut self, blocks: &BlockTable) -> Option<Candidate> {
        let tail = self.queues[Queue::Tail as usize];
        let mut next = slot_of(tail.front);
        for _ in 0..tail.len.min(LOOKS) {
            let slot = next?;
            next = self.after(slot);
            let candidate = candidate(slot, blocks);
            match candidate.outlook {
                Outlook::Free | Outlook::Shared | Outlook::Lent => return Some(candidate),
                // Behind the others, so that the next search looks at others.
                Outlook::Out => self.put(slot, Queue::Tail, End::Back),
                Outlook::Moving => {}
            }
        }
        None
    }

    /// The lowest fresh slot.
    fn next_fresh(&mut self) -> Option<SlotIndex> {
        // A slot that was warm before its turn is passed once in the life of the pool.
        while self.place(SlotIndex(self.fresh))? != Place::Fresh {
            self.fresh += 1;
        }
        Some(SlotIndex(self.fresh))
    }

    /// The slots beside this one that are free and not at the tail and that share a block with it, which
    /// is reserved: they go first from now on.
    pub(crate) fn warm_neighbours(&mut self, slot: SlotIndex, blocks: &BlockTable) {
        if blocks.is_separate() {
            return;
        }
        let below = slot.0.checked_sub(1).map(SlotIndex);
        let above = slot.0.checked_add(1).map(SlotIndex);
        for (low, high) in [(below, Some(slot)), (Some(slot), above)] {
            let (Some(low), Some(high)) = (low, high) else { continue };
            let beside = if low == slot { high } else { low };
            let is_cold = matches!(self.place(beside), Some(Place::Fresh | Place::Recycled));
            if is_cold && blocks.span(low).blocks().end > blocks.span(high).blocks().start {
                self.put(beside, Queue::Warm, End::Back);
            }
        }
    }

    /// A slot that is Moving is free.
    #[inline]
    pub(crate) fn recycle(&mut self, slot: SlotIndex, blocks: &BlockTable) {
        let shared = !blocks.is_separate() && blocks.outlook(&blocks.span(slot)) != Outlook::Free;
        let queue = if shared { Queue::Warm } else { Queue::Recycled };
        self.push(slot, queue, End::Front);
    }

    /// A slot failed.
    pub(crate) fn postpone(&mut self, slot: SlotIndex) {
        self.put(slot, Queue::Tail, End::Back);
    }

    /// Takes a free slot out of its queue: it is Moving.
    pub(crate) fn take(&mut self, slot: SlotIndex) {
        self.remove(slot);
        self.set(slot, Place::Moving);
    }

    /// A slot is held by the lease at this index.
    #[inline]
    pub(crate) fn hold(&mut self, slot: SlotIndex, index: u32) {
        self.remove(slot);
        self.set(slot, Place::Held(index));
        self.unused = self.unused.max(slot.0 + 1);
    }

    /// A slot that was held is Moving.
    #[inline]
    pub(crate) fn start_release(&mut self, slot: SlotIndex) {
        self.set(slot, Place::Moving);
    }

    /// The first slot from `from` on, among [`SWEEP`], that the lease at this index holds, and where to go
    /// on; `None` at the end.
    pub(crate) fn held_by(&self, index: u32, from: u32) -> Option<(Option<SlotIndex>, u32)> {
        let end = from.saturating_add(SWEEP as u32).min(self.unused);
        let sweep =
            self.places.get(from as usize..end as usize).filter(|sweep| !sweep.is_empty())?;
        let held = Place::Held(index).code();
        let Some(at) = sweep.iter().position(|place| *place == held) else {
            return Some((None, end));
        };
        let slot = from + at as u32;
        Some((Some(SlotIndex(slot)), slot + 1))
    }

    fn put(&mut self, slot: SlotIndex, queue: Queue, end: End) {
        self.remove(slot);
        self.push(slot, queue, end);
    }

    /// Adds a slot that is in no queue to one.
    #[inline]
    fn push(&mut self, slot: SlotIndex, queue: Queue, end: End) {
        let ends = &mut self.queues[queue as usize];
        let own = slot.0 + 1;
        let (links, neighbour, back) = match end {
            End::Front => ([ends.front, 0], &mut ends.front, &mut ends.back),
            End::Back => ([0, ends.back], &mut ends.back, &mut ends.front),
        };
        let beside = std::mem::replace(neighbour, own);
        if beside == 0 {
            *back = own;
        }
        ends.len += 1;
        self.unused = self.unused.max(own);
        let towards = if end == End::Front { PREVIOUS } else { NEXT };
        if let Some(beside) = self.links.get_mut((beside as usize).wrapping_sub(1)) {
            beside[towards] = own;
        }
        if let Some(entry) = self.links.get_mut(slot.0 as usize) {
            *entry = links;
        }
        self.set(slot, queue.place());
    }

    /// Takes a slot out of its queue, if it is in one.
    #[inline]
    fn remove(&mut self, slot: SlotIndex) {
        let queue = match self.place(slot) {
            Some(Place::Warm) => Queue::Warm,
            Some(Place::Recycled) => Queue::Recycled,
            Some(Place::Tail) => Queue::Tail,
            _ => return,
        };
        let Some([next, previous]) = self.links.get(slot.0 as usize).copied() else { return };
        let ends = &mut self.queues[queue as usize];
        ends.len -= 1;
        match self.links.get_mut((previous as usize).wrapping_sub(1)) {
            Some(before) => before[NEXT] = next,
            None => ends.front = next,
        }
        match self.links.get_mut((next as usize).wrapping_sub(1)) {
            Some(after) => after[PREVIOUS] = previous,
            None => ends.back = previous,
        }
    }

    fn after(&self, slot: SlotIndex) -> Option<SlotIndex> {
        slot_of(self.links.get(slot.0 as usize)?[NEXT])
    }

    #[inline]
    fn set(&mut self, slot: SlotIndex, place: Place) {
        if let Some(entry) = self.places.get_mut(slot.0 as usize) {
            *entry = place.code();
        }
    }
}

fn slot_of(link: u32) -> Option<SlotIndex> {
    link.checked_sub(1).map(SlotIndex)
}

fn candidate(slot: SlotIndex, blocks: &BlockTable) -> Candidate {
    let span = blocks.span(slot);
    Candidate { slot, span, outlook: blocks.outlook(&span) }
}

#[cfg(any(test, fuzzing))]
mod examine;
#[cfg(test)]
mod tests;
