//! Frees tag storage as guest memory goes back to the host.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use arch::range::MemoryRange;

use super::Shared;
use crate::memory::{DiscardHooks, Outcome, Renewal};
use crate::tag_storage::chunk::{ChunkIndex, Covered, each, one};
use crate::tag_storage::reservation::chunk_table::Discard;

/// Frees the slots of the chunks that are discarded.
///
/// A chunk that a discard covers is armed before, so that no touch escapes. One that it covers in part is
/// examined afterwards: when its last page has gone it is armed, examined again, and freed. A chunk that is freed is mapped
/// anew when it is touched.
pub struct DiscardHandler {
    shared: Arc<Shared>,
    /// Chunks that are Discarding in the hands of this value.
    begun: Vec<ChunkIndex>,
    /// Chunks that go whole and are looked at when the host has answered: those that were not loaded may have been by
    /// then, and those with a template's pages are mapped anew.
    examined: Vec<ChunkIndex>,
}

impl DiscardHandler {
    pub(super) fn new(shared: Arc<Shared>) -> Self {
        Self { shared, begun: Vec::new(), examined: Vec::new() }
    }

    /// The memory of what was begun is not gone.
    fn keep_all(&mut self) {
        for run in runs(&std::mem::take(&mut self.begun)) {
            self.shared.keep(run);
        }
    }
}

impl DiscardHooks for DiscardHandler {
    fn before(&mut self, range: MemoryRange) {
        self.keep_all();
        let covered = Covered::by(range, self.shared.ram);
        let mut begun = Vec::new();
        self.examined.clear();
        for chunk in each(&covered.whole) {
            if self.shared.faults.has_template_in(chunk) {
                // To be mapped anew is not to be armed any more.
                self.examined.push(chunk);
                continue;
            }
            match self.shared.begin_discard(chunk) {
                Discard::Begun => begun.push(chunk),
                Discard::Loader => self.examined.push(chunk),
                Discard::Nothing | Discard::Populating => {}
            }
        }
        for run in runs(&begun) {
            // A chunk that cannot be armed keeps its slot.
            match self.shared.arm(&span(run)) {
                true => self.begun.extend_from_slice(run),
                false => self.shared.keep(run),
            }
        }
        for chunk in covered.partly.into_iter().flatten() {
            self.shared.begin_part(chunk);
        }
    }

    fn after(&mut self, range: MemoryRange, outcome: Outcome) {
        if outcome == Outcome::Failed {
            return self.keep_all();
        }
        for run in runs(&std::mem::take(&mut self.begun)) {
            self.shared.free(run);
        }
        let partly = Covered::by(range, self.shared.ram).partly.into_iter().flatten();
        for chunk in self.examined.drain(..).chain(partly) {
            self.shared.free_if_absent(chunk);
        }
    }

    fn renewal(&self) -> Renewal {
        Renewal::ByHooks
    }
}

impl Drop for DiscardHandler {
    fn drop(&mut self) {
        self.keep_all();
    }
}

impl Shared {
    /// Frees armed chunks whose memory is gone. Threads that have touched one meanwhile try again.
    fn free(&self, run: &[ChunkIndex]) {
        self.faults.forgo_huge_pages(&span(run));
        self.pool.free(run);
        self.counters.freed.add(run.len() as u64);
        if self.end_discard(run, true) {
            // Waking cannot fail for chunks that there are.
            let _ = self.faults.wake(&span(run));
        }
        if self.waiting.load(Ordering::SeqCst) > 0 {
            self.signal();
        }
    }

    /// Leaves chunks as they were before.
    fn keep(&self, run: &[ChunkIndex]) {
        // The fault of a chunk that cannot be disarmed is resolved by the fault thread.
        let _ = self.faults.disarm(&span(run));
        if self.end_discard(run, false) {
            let _ = self.faults.wake(&span(run));
        }
    }

    fn end_discard(&self, run: &[ChunkIndex], gone: bool) -> bool {
        let mut table = self.table();
        run.iter().filter(|chunk| table.end_discard(**chunk, gone)).count() > 0
    }

    /// Frees a chunk with a slot that turns out to have no page. Returns whether it has.
    pub(super) fn free_if_absent(&self, chunk: ChunkIndex) -> bool {
        if !self.is_absent(chunk) || self.begin_discard(chunk) != Discard::Begun {
            return false;
        }
        let is_absent = self.arm(&one(chunk)) && self.is_absent(chunk);
        match is_absent {
            true => self.free(&[chunk]),
            false => self.keep(&[chunk]),
        }
        is_absent
    }
}

/// Chunks that follow one another, together.
pub(super) fn runs(begun: &[ChunkIndex]) -> impl Iterator<Item = &[ChunkIndex]> {
    begun.chunk_by(|one, next| one.0.checked_add(1) == Some(next.0))
}

/// From the first chunk of a run to its last.
pub(super) fn span(run: &[ChunkIndex]) -> Range<ChunkIndex> {
    match (run.first(), run.last()) {
        (Some(first), Some(last)) => *first..one(*last).end,
        _ => ChunkIndex(0)..ChunkIndex(0),
    }
}
