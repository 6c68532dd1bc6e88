//! The blocks of tag storage: what each one serves as, and how many pages refer to it.
//!
//! ```text
//!          start             complete           release            settle
//!   Free --------> Reserving --------> Reserved -------> Releasing -------> Free
//!    |  \                                 ^
//!    |   lend                             | complete
//!    |    \           start               |
//! Disabled Lent ----------------> Evicting ----> Lent, Free, or Pinned, which is Lent again later
//! ```
//!
//! Reserving, Releasing and Evicting are blocks for which the supply is being called; everybody else
//! leaves them alone until it returns. A supply that needs no time goes from Free to Reserved and back at once.
//!
//! # References
//! Apple's XNU has a machine of the same shape (`osfmk/arm64/vm/mteinfo_tag_storage.c`).

mod lending;
mod span;

use std::fmt;

use arch::layout::CHUNK;
use arch::mte::geometry::{BlockIndex, Geometry};
use arch::units::Bytes;
use serde::{Deserialize, Serialize};
use thiserror::Error;

use super::units::SlotIndex;
pub(crate) use span::{Mask, Span, runs};

/// The state is the three highest bits of an entry, the references are the others. All bits zero is a free
/// block: a new table costs no memory until its blocks are used.
const STATE_SHIFT: u32 = 29;
const REFERENCES: u32 = (1 << STATE_SHIFT) - 1;

/// Blocks that one call looks at with the pool locked, where every block may have to be looked at: some
/// 100 microseconds.
pub(crate) const SWEEP: usize = 1 << 16;

/// What a block serves as.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum BlockState {
    /// Nothing.
    Free,
    /// The supply is being asked for it.
    Reserving,
    /// Tag storage of as many pages as refer to it.
    Reserved,
    /// It is being given back to the supply.
    Releasing,
    /// Ordinary memory: movable, untagged data may be in it.
    Lent,
    /// It is being emptied of that data.
    Evicting,
    /// Ordinary memory that would not move.
    Pinned,
    /// Out of use: no whole chunk has its tags in it.
    Disabled,
}

impl BlockState {
    /// All of them, in the order of their values.
    pub const ALL: [Self; 8] = [
        Self::Free,
        Self::Reserving,
        Self::Reserved,
        Self::Releasing,
        Self::Lent,
        Self::Evicting,
        Self::Pinned,
        Self::Disabled,
    ];

    const fn bits(self) -> u32 {
        (self as u32) << STATE_SHIFT
    }

    const fn of(entry: u32) -> Self {
        // Three bits: always one of the eight.
        Self::ALL[(entry >> STATE_SHIFT) as usize]
    }

    const fn in_set(self, set: u32) -> bool {
        set & 1 << self as u32 != 0
    }
}

impl fmt::Display for BlockState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Free => "free",
            Self::Reserving => "reserving",
            Self::Reserved => "reserved",
            Self::Releasing => "releasing",
            Self::Lent => "lent",
            Self::Evicting => "evicting",
            Self::Pinned => "pinned",
            Self::Disabled => "disabled",
        })
    }
}

/// What the table does not allow. Neither a guest nor a client can bring it about.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
pub enum Error {
    /// The block is in a state from which this is no way.
    #[error("{block} of tag storage is {is} and cannot become {to}: please report this")]
    Impossible {
        /// The block.
        block: BlockIndex,
        /// Its state.
        is: BlockState,
        /// The state it should have got.
        to: BlockState,
    },
    /// More pages refer to the block than it has tags for, or fewer than none.
    #[error(
        "{block} of tag storage would have an impossible number of references: please report this"
    )]
    References {
        /// The block.
        block: BlockIndex,
    },
}

/// What stands in the way of a slot's reservation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Outlook {
    /// Nothing: all its blocks are free.
    Free,
    /// Nothing: some of its blocks are reserved already, the others free.
    Shared,
    /// Some blocks are lent.
    Lent,
    /// The supply is being called for some.
    Moving,
    /// Some are pinned or disabled.
    Out,
}

/// What is to be done for a slot whose reservation was started: blocks of its span.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Work {
    /// Free before: take them.
    pub take: Mask,
    /// Lent before: evict and take them.
    pub evict: Mask,
}

/// Every block's state and references.
#[derive(Debug)]
pub(crate) struct BlockTable {
    geometry: Geometry,
    entries: Vec<u32>,
    totals: [u64; BlockState::ALL.len()],
    slot_pages: u64,
    /// Blocks of a slot, where every block has tags of one slot alone; 0 where slots share blocks.
    separate: u32,
}

impl BlockTable {
    /// A table of `blocks` free blocks, of which those beyond the tags of `slots` slots are disabled.
    ///
    /// The caller bounds both: see `Pool::new`.
    pub(crate) fn new(geometry: Geometry, blocks: usize, slots: u32) -> Self {
        let slot_pages = CHUNK.get() / geometry.page().get();
        let separate = match slot_pages.is_multiple_of(geometry.covered_pages()) {
            // 16 at most.
            true => (slot_pages / geometry.covered_pages()) as u32,
            false => 0,
        };
        let mut table = Self {
            geometry,
            entries: vec![0; blocks],
            totals: [0; BlockState::ALL.len()],
            slot_pages,
            separate,
        };
        table.totals[BlockState::Free as usize] = blocks as u64;
        let used = slots.checked_sub(1).map_or(0, |last| table.span(SlotIndex(last)).end());
        for index in used..blocks {
            table.change(index, BlockState::Disabled.bits());
        }
        table
    }

    /// How many blocks there are.
    pub(crate) fn len(&self) -> usize {
        self.entries.len()
    }

    /// The size of a block.
    pub(crate) fn block(&self) -> Bytes {
        self.geometry.block()
    }

    /// How many blocks are in this state.
    pub(crate) fn total(&self, state: BlockState) -> u64 {
        self.totals[state as usize]
    }

    /// State and references of a block, if there is one.
    #[cfg(any(test, fuzzing))]
    pub(crate) fn get(&self, block: BlockIndex) -> Option<(BlockState, u32)> {
        let entry = *self.entries.get(usize::try_from(block.0).ok()?)?;
        Some((BlockState::of(entry), entry & REFERENCES))
    }

    /// Whether every block has tags of one slot alone.
    pub(crate) fn is_separate(&self) -> bool {
        self.separate > 0
    }

    /// The blocks with the tags of a slot.
    pub(crate) fn span(&self, slot: SlotIndex) -> Span {
        let separate = self.separate_span(slot);
        separate.unwrap_or_else(|| Span::new(&self.geometry, self.slot_pages, slot))
    }

    #[inline(always)]
    fn of(&self, span: &Span) -> &[u32] {
        // Empty for a slot that is not of this table: everything then fails a check.
        self.entries.get(span.range()).unwrap_or_default()
    }

    /// What stands in the way of reserving these blocks.
    pub(crate) fn outlook(&self, span: &Span) -> Outlook {
        const OUT: u32 = 1 << BlockState::Pinned as u32 | 1 << BlockState::Disabled as u32;
        const MOVING: u32 = 1 << BlockState::Reserving as u32
            | 1 << BlockState::Releasing as u32
            | 1 << BlockState::Evicting as u32;
        let entries = self.of(span);
        if entries.iter().fold(0, |all, entry| all | entry) == 0 {
            return if entries.is_empty() { Outlook::Out } else { Outlook::Free };
        }
        let set = entries.iter().fold(0, |set, entry| set | 1 << (entry >> STATE_SHIFT));
        match set {
            set if set & OUT != 0 => Outlook::Out,
            set if set & MOVING != 0 => Outlook::Moving,
            set if BlockState::Lent.in_set(set) => Outlook::Lent,
            _ => Outlook::Shared,
        }
    }

    /// The blocks with the tags of a slot, where every block has tags of one slot alone.
    #[inline(always)]
    pub(crate) fn separate_span(&self, slot: SlotIndex) -> Option<Span> {
        if self.separate == 0 {
            return None;
        }
        let covered = self.geometry.covered_pages() as u32;
        Some(Span::separate(self.separate, covered, slot))
    }

    /// Whether all blocks of a separate span are free.
    #[inline(always)]
    pub(crate) fn is_free(&self, span: &Span) -> bool {
        // A slot that is not of this table has none.
        let Some(entries) = self.entries.get(span.range()) else { return false };
        // Four at a time: a slot mostly has 16.
        let (fours, rest) = entries.as_chunks::<4>();
        let all = fours.iter().fold(0, |all, [a, b, c, d]| all | a | b | c | d);
        rest.iter().fold(all, |all, one| all | one) == 0
    }

    /// Reserves the blocks of a [separate span](Self::separate_span) that are all free, and taken: the whole
    /// way at once.
    #[inline(always)]
    pub(crate) fn reserve_free(&mut self, span: &Span) {
        self.fill(span, BlockState::Reserved.bits() | span.references(0));
        self.count(BlockState::Free, BlockState::Reserved, span.len() as u64);
    }

    /// Frees the blocks of a separate span that are all reserved: the whole way at once.
    #[inline(always)]
    pub(crate) fn free_reserved(&mut self, span: &Span) {
        self.fill(span, BlockState::Free.bits());
        self.count(BlockState::Reserved, BlockState::Free, span.len() as u64);
    }

    #[inline(always)]
    fn fill(&mut self, span: &Span, entry: u32) {
        let Some(entries) = self.entries.get_mut(span.range()) else { return };
        let (fours, rest) = entries.as_chunks_mut::<4>();
        for [a, b, c, d] in fours {
            (*a, *b, *c, *d) = (entry, entry, entry, entry);
        }
        for one in rest {
            *one = entry;
        }
    }

    /// Starts to reserve: refers to what is reserved, marks the rest, and says what the supply has to do.
    ///
    /// # Errors
    /// When a block is neither reserved, free nor lent. Nothing has changed then.
    pub(crate) fn start(&mut self, span: &Span) -> Result<Work, Error> {
        use BlockState::{Evicting, Free, Lent, Reserved, Reserving};
        let mut work = Work::default();
        for at in 0..span.len() {
            let entry = self.entry(span, at, Reserving)?;
            match BlockState::of(entry) {
                Free => work.take |= 1 << at,
                Lent => work.evict |= 1 << at,
                Reserved => self.refer(span, at, entry).map(drop)?,
                is => return Err(Error::Impossible { block: span.block(at), is, to: Reserving }),
            }
        }
        for at in 0..span.len() {
            let index = span.first() + at;
            match 1 << at {
                bit if work.take & bit != 0 => self.change(index, Reserving.bits()),
                bit if work.evict & bit != 0 => self.change(index, Evicting.bits()),
                _ => self.change(index, self.entries[index] + span.references(at)),
            }
        }
        Ok(work)
    }

    /// Ends a reservation for which the supply has done its work.
    ///
    /// # Errors
    /// When a block is not as [`start`](Self::start) left it.
    pub(crate) fn complete(&mut self, span: &Span, work: Work) -> Result<(), Error> {
        use BlockState::{Evicting, Reserved, Reserving};
        for at in 0..span.len() {
            let from = match 1 << at {
                bit if work.take & bit != 0 => Reserving,
                bit if work.evict & bit != 0 => Evicting,
                _ => continue,
            };
            self.expect(span, at, from, Reserved)?;
            self.change(span.first() + at, Reserved.bits() | span.references(at));
        }
        Ok(())
    }

    /// Undoes a reservation that the supply could not do; `pinned` are lent blocks that would not move. The
    /// blocks returned are marked as Releasing: others have released them by now, so that they must
    /// be given to the supply.
    ///
    /// # Errors
    /// When a block is not as [`start`](Self::start) left it.
    pub(crate) fn abort(&mut self, span: &Span, work: Work, pinned: Mask) -> Result<Mask, Error> {
        use BlockState::{Evicting, Free, Lent, Pinned, Reserving};
        let mut releasing = 0;
        for at in 0..span.len() {
            let bit = 1 << at;
            let (from, to) = match bit {
                bit if work.take & bit != 0 => (Reserving, Free),
                bit if work.evict & bit != 0 && pinned & bit != 0 => (Evicting, Pinned),
                bit if work.evict & bit != 0 => (Evicting, Lent),
                _ => {
                    releasing |= self.unreference(span, at)?;
                    continue;
                }
            };
            self.expect(span, at, from, to)?;
            self.change(span.first() + at, to.bits());
        }
        Ok(releasing)
    }

    /// Takes a slot's references away. The blocks returned have no other and are marked as Releasing.
    ///
    /// # Errors
    /// When a block is not reserved, or has fewer references. Nothing has changed then.
    pub(crate) fn release(&mut self, span: &Span) -> Result<Mask, Error> {
        for at in 0..span.len() {
            let entry = self.expect(span, at, BlockState::Reserved, BlockState::Releasing)?;
            if entry & REFERENCES < span.references(at) {
                return Err(Error::References { block: span.block(at) });
            }
        }
        (0..span.len()).try_fold(0, |mask, at| Ok(mask | self.unreference(span, at)?))
    }

    /// The supply has these Releasing blocks again.
    ///
    /// # Errors
    /// When one of them is not Releasing.
    pub(crate) fn settle(&mut self, span: &Span, released: Mask) -> Result<(), Error> {
        for at in (0..span.len()).filter(|at| released & 1 << at != 0) {
            self.expect(span, at, BlockState::Releasing, BlockState::Free)?;
            self.change(span.first() + at, BlockState::Free.bits());
        }
        Ok(())
    }

    fn entry(&self, span: &Span, at: usize, to: BlockState) -> Result<u32, Error> {
        let outside = Error::Impossible { block: span.block(at), is: BlockState::Disabled, to };
        self.entries.get(span.first() + at).copied().ok_or(outside)
    }

    fn expect(
        &self,
        span: &Span,
        at: usize,
        from: BlockState,
        to: BlockState,
    ) -> Result<u32, Error> {
        let entry = self.entry(span, at, to)?;
        match BlockState::of(entry) {
            is if is == from => Ok(entry),
            is => Err(Error::Impossible { block: span.block(at), is, to }),
        }
    }

    fn refer(&self, span: &Span, at: usize, entry: u32) -> Result<u32, Error> {
        let references = u64::from((entry & REFERENCES) + span.references(at));
        match references <= self.geometry.covered_pages() {
            true => Ok(references as u32),
            false => Err(Error::References { block: span.block(at) }),
        }
    }

    /// Takes away the references to one reserved block. Returns its bit if there are no others.
    fn unreference(&mut self, span: &Span, at: usize) -> Result<Mask, Error> {
        let entry = self.expect(span, at, BlockState::Reserved, BlockState::Releasing)?;
        let references = (entry & REFERENCES)
            .checked_sub(span.references(at))
            .ok_or(Error::References { block: span.block(at) })?;
        let index = span.first() + at;
        if references == 0 {
            self.change(index, BlockState::Releasing.bits());
            return Ok(1 << at);
        }
        self.change(index, BlockState::Reserved.bits() | references);
        Ok(0)
    }

    fn change(&mut self, index: usize, to: u32) {
        let from = std::mem::replace(&mut self.entries[index], to);
        self.count(BlockState::of(from), BlockState::of(to), 1);
    }

    #[inline(always)]
    fn count(&mut self, from: BlockState, to: BlockState, blocks: u64) {
        self.totals[from as usize] -= blocks;
        self.totals[to as usize] += blocks;
    }
}

#[cfg(test)]
mod tests;
