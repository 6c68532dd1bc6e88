//! Memory that the guest gives back before it is loaded.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use arch::layout::CHUNK;
use arch::range::MemoryRange;

use super::{Shared, page_size};
use crate::memory::{DiscardHooks, Outcome, Renewal};

/// Keeps what is given back from being loaded.
pub(super) struct Discards {
    pub(super) shared: Arc<Shared>,
    /// What is done beside that, for what was loaded.
    pub(super) then: Box<dyn DiscardHooks>,
}

impl DiscardHooks for Discards {
    fn before(&mut self, range: MemoryRange) {
        // First: what is loaded after this has no page of the range.
        self.shared.forget(range);
        self.then.before(range);
    }

    fn after(&mut self, range: MemoryRange, outcome: Outcome) {
        self.then.after(range, outcome);
    }

    fn renewal(&self) -> Renewal {
        // Nothing but what reserves tag storage on demand knows which chunks may be mapped anew.
        match self.shared.slots {
            Some(_) => self.then.renewal(),
            None => Renewal::Never,
        }
    }
}

impl Shared {
    /// The guest gives memory back that may not be loaded.
    fn forget(&self, range: MemoryRange) {
        let base = self.ram.range().base.0;
        let page = page_size();
        let (start, end) = (range.base.0.saturating_sub(base), range.end().0.saturating_sub(base));
        let mut chunks = self.lock();
        for chunk in start / CHUNK.get()..end.div_ceil(CHUNK.get()) {
            let Some(dropped) = chunks.pending.get_mut(&chunk) else { continue };
            let at = chunk * CHUNK.get();
            let (first, last) = (start.max(at) - at, end.min(at + CHUNK.get()) - at);
            dropped.insert_range((first / page) as usize..(last / page) as usize);
            if dropped.len() as u64 == CHUNK.get() / page && chunks.reading != Some(chunk) {
                chunks.pending.remove(&chunk);
                self.count(&chunks);
                self.leave_empty(chunk);
            }
        }
        drop(chunks);
        // Else the next load closes the file.
        if let Ok(mut source) = self.source.try_lock()
            && self.left.load(Ordering::Relaxed) == 0
        {
            *source = None;
        }
    }

    /// Nothing is to be loaded of a chunk any more.
    fn leave_empty(&self, chunk: u64) {
        if self.slots.is_none() {
            // It stays watched if it must; a touch of it is settled then.
            let _ = self.settle(chunk);
        }
        // Else it stays watched until it has a slot.
    }
}
