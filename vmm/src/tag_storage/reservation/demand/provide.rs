//! Chunks that have their slots get memory, or may be touched without an event.

use std::io;
use std::ops::Range;

use super::discard::{runs, span};
use super::{Demand, Error, Shared};
use crate::tag_storage::chunk::{ChunkIndex, each, one};
use crate::tag_storage::reservation::PoolClientError;
use crate::tag_storage::reservation::chunk_table::State;

impl Demand {
    /// Reserves at once for chunks, in order, that get contents without a touch. No touch of them is caught from now on.
    ///
    /// # Errors
    /// When there is no tag storage for all of them; none has any then.
    pub fn reserve_now(&self, chunks: &[ChunkIndex]) -> Result<(), PoolClientError> {
        self.shared.reserve_now(chunks)
    }
}

impl Shared {
    /// Gives those of absent chunks that are touched their memory; the others get it when they are. Those that are not
    /// loaded are left to what loads them. All have their slots, and come in the order of their numbers.
    pub(super) fn provide(
        &self,
        chunks: &[ChunkIndex],
        touched: &[ChunkIndex],
    ) -> Result<(), Error> {
        let (mut begun, mut loading, mut left) = (Vec::new(), Vec::new(), Vec::new());
        {
            let mut table = self.table();
            for chunk in chunks {
                let begins_to_load = table.begin_load(*chunk);
                self.counters.populated.add(u64::from(begins_to_load));
                // One that is Loading already has had its slot before.
                if begins_to_load || table.state(*chunk) == Some(State::Loading) {
                    loading.push(*chunk);
                } else if table.begin_populate(*chunk) {
                    begun.push(*chunk);
                } else {
                    left.push(*chunk);
                }
            }
        }
        loading.iter().for_each(|chunk| self.loader.grant(*chunk));
        if !left.is_empty() {
            self.pool.free(&left);
        }
        self.counters.populated.add(begun.len() as u64);
        for run in runs(&begun) {
            self.open(run, touched)?;
        }
        Ok(())
    }

    /// See [`Demand::reserve_now`].
    fn reserve_now(&self, chunks: &[ChunkIndex]) -> Result<(), PoolClientError> {
        if chunks.is_empty() {
            return Ok(());
        }
        self.pool.reserve(chunks, chunks.len())?;
        for run in runs(chunks) {
            self.faults.accept_huge_pages(&span(run));
            // Faults of those that stay armed are resolved as of any populated chunk.
            let _ = self.faults.disarm(&span(run));
        }
        let mut table = self.table();
        for chunk in chunks {
            if table.begin_populate(*chunk) {
                table.end_populate(*chunk);
            }
        }
        self.counters.populated.add(chunks.len() as u64);
        Ok(())
    }

    /// A chunk that is not loaded has its slot. `false`: it is no such chunk.
    pub(super) fn begin_load(&self, chunk: ChunkIndex) -> bool {
        let has_begun = self.table().begin_load(chunk);
        self.counters.populated.add(u64::from(has_begun));
        has_begun
    }

    /// Disarms chunks in a row that are Populating. Those who wait for them are woken when there is memory, and do not take
    /// some of their own.
    fn open(&self, run: &[ChunkIndex], touched: &[ChunkIndex]) -> Result<(), Error> {
        let (touched, ahead): (Vec<ChunkIndex>, Vec<ChunkIndex>) =
            run.iter().partition(|chunk| touched.contains(chunk));
        // Where it fails, some of them may have pages. The fault thread resolves the faults of those that are armed.
        let is_open = self.disarm_absent(&span(run)).is_ok();
        {
            let mut table = self.table();
            ahead.iter().for_each(|chunk| table.end_ahead(*chunk));
        }
        self.counters.ahead.add(ahead.len() as u64);
        for chunk in touched {
            let done = match is_open {
                true => {
                    // Without it the pages come as they are touched.
                    let _ = self.faults.populate(chunk);
                    Ok(())
                }
                false => self.fill(chunk),
            };
            self.table().end_populate(chunk);
            done?;
        }
        // Also for those ahead: faults that were read before find nothing to do for them, and come again. Waking cannot
        // fail for chunks that there are.
        let _ = self.faults.wake(&span(run));
        self.settled.notify_all();
        Ok(())
    }

    /// Disarms chunks that are Populating and have no page.
    fn disarm_absent(&self, chunks: &Range<ChunkIndex>) -> io::Result<()> {
        let _mapping = self.lock_mapping();
        if self.is_closed() {
            return self.faults.disarm(chunks);
        }
        debug_assert!(each(chunks).all(|chunk| self.is_absent(chunk)), "{chunks:?}");
        let is_apart = {
            let table = self.table();
            let before = chunks.start.0.checked_sub(1).and_then(|at| table.state(ChunkIndex(at)));
            let beside = [before, table.state(chunks.end)];
            !beside.iter().flatten().any(|state| matches!(state, State::Populated | State::Ahead))
        };
        self.faults.disarm_absent(chunks, is_apart)
    }

    /// Resolves the faults of a chunk that is Populating, and had its memory before or is Ahead.
    pub(super) fn resolve(&self, chunk: ChunkIndex) -> Result<(), Error> {
        let chunks = one(chunk);
        // Before those who wait for it are woken.
        self.faults.accept_huge_pages(&chunks);
        let done = self.faults.disarm(&chunks).or_else(|_| self.fill(chunk));
        self.table().end_populate(chunk);
        self.settled.notify_all();
        done
    }

    /// Gives a chunk that cannot be disarmed small pages.
    fn fill(&self, chunk: ChunkIndex) -> Result<(), Error> {
        self.counters.filled.add(1);
        self.faults.fill(chunk).map_err(|source| Error::Provide { chunk, source })
    }
}
