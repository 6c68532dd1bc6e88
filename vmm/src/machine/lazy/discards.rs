//! Memory that the guest gives back before it is loaded.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use arch::layout::CHUNK;
use arch::range::MemoryRange;

use super::{Shared, page_size};
use crate::memory::{DiscardHooks, Outcome, Renewal};

/// Keeps what is given back from being loaded.
pub(super) struct Discards(pub(super) Arc<Shared>);

impl DiscardHooks for Discards {
    fn before(&mut self, range: MemoryRange) {
        self.0.forget(range);
    }

    fn after(&mut self, _: MemoryRange, _: Outcome) {}

    fn renewal(&self) -> Renewal {
        Renewal::Never
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
                // It stays watched if it must; a touch of it is settled then.
                let _ = self.settle(chunk);
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
}
