//! The slot of each chunk of one VM.
//!
//! A slot's number may change when a broker is started again, and only this map notices. A chunk whose slot
//! the new broker does not have is a debt.

use crate::tag_storage::chunk::ChunkIndex;
use crate::tag_storage::pool::SlotIndex;

/// What a chunk has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Entry {
    Nothing,
    /// A slot of the pool.
    Held(SlotIndex),
    /// None: the broker has none left. The one that it was.
    Owed(SlotIndex),
}

/// A chunk without its slot, and the slot that it had.
pub(super) type Debt = (ChunkIndex, SlotIndex);

/// The slots of all chunks: 8 bytes for each chunk up to the last one that had any.
#[derive(Debug, Default)]
pub(crate) struct SlotMap {
    entries: Vec<Entry>,
    held: u32,
    owed: u32,
}

impl SlotMap {
    /// Slots that the pool has reserved for this VM.
    pub(crate) fn held(&self) -> u32 {
        self.held
    }

    /// Slots that the VM uses and the broker does not know.
    pub(crate) fn owed(&self) -> u32 {
        self.owed
    }

    /// Gives a chunk its slot. Returns a slot that is not needed: this one, where the chunk has one.
    pub(crate) fn insert(&mut self, chunk: ChunkIndex, slot: SlotIndex) -> Option<SlotIndex> {
        let Ok(at) = usize::try_from(chunk.0) else { return Some(slot) };
        if at >= self.entries.len() {
            self.entries.resize(at.saturating_add(1), Entry::Nothing);
        }
        match self.entries.get_mut(at) {
            Some(entry @ Entry::Nothing) => *entry = Entry::Held(slot),
            _ => return Some(slot),
        }
        self.held += 1;
        None
    }

    /// Removes what a chunk has. Returns the pool's slot if it has one.
    pub(crate) fn remove(&mut self, chunk: ChunkIndex) -> Option<SlotIndex> {
        let entry = self.entry(chunk)?;
        match std::mem::replace(entry, Entry::Nothing) {
            Entry::Nothing => None,
            Entry::Held(slot) => {
                self.held -= 1;
                Some(slot)
            }
            Entry::Owed(_) => {
                self.owed -= 1;
                None
            }
        }
    }

    /// The broker is gone, and with it all slots.
    pub(super) fn lose(&mut self) {
        for entry in &mut self.entries {
            if let Entry::Held(slot) = *entry {
                *entry = Entry::Owed(slot);
            }
        }
        self.owed += std::mem::take(&mut self.held);
    }

    /// All debts.
    pub(super) fn debts(&self) -> Vec<Debt> {
        let entries = self.entries.iter().enumerate();
        let debt = |(at, entry): (usize, &Entry)| match *entry {
            Entry::Owed(slot) => Some((ChunkIndex(at as u64), slot)),
            Entry::Nothing | Entry::Held(_) => None,
        };
        entries.filter_map(debt).collect()
    }

    /// The broker has given a slot for a debt. Returns it if the debt is gone meanwhile.
    pub(super) fn settle(&mut self, chunk: ChunkIndex, slot: SlotIndex) -> Option<SlotIndex> {
        match self.entry(chunk) {
            Some(entry @ Entry::Owed(_)) => {
                *entry = Entry::Held(slot);
                self.owed -= 1;
                self.held += 1;
                None
            }
            _ => Some(slot),
        }
    }

    fn entry(&mut self, chunk: ChunkIndex) -> Option<&mut Entry> {
        self.entries.get_mut(usize::try_from(chunk.0).ok()?)
    }
}

#[cfg(test)]
mod tests;
