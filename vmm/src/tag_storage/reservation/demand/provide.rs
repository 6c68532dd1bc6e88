//! Chunks that have their slots get memory, or may be touched without an event.

use super::discard::{runs, span};
use super::{Error, Shared};
use crate::tag_storage::chunk::{ChunkIndex, one};

impl Shared {
    /// Gives those of absent chunks that are touched their memory; the others get it when they are. All have their slots,
    /// and come in the order of their numbers.
    pub(super) fn provide(
        &self,
        chunks: &[ChunkIndex],
        touched: &[ChunkIndex],
    ) -> Result<(), Error> {
        let (begun, left): (Vec<ChunkIndex>, Vec<ChunkIndex>) = {
            let mut table = self.table();
            chunks.iter().partition(|chunk| table.begin_populate(**chunk))
        };
        if !left.is_empty() {
            self.pool.free(&left);
        }
        self.counters.populated.add(begun.len() as u64);
        for run in runs(&begun) {
            self.open(run, touched)?;
        }
        Ok(())
    }

    /// Disarms chunks in a row that are Populating.
    fn open(&self, run: &[ChunkIndex], touched: &[ChunkIndex]) -> Result<(), Error> {
        let (touched, ahead): (Vec<ChunkIndex>, Vec<ChunkIndex>) =
            run.iter().partition(|chunk| touched.contains(chunk));
        let alone = run.len() == 1 && ahead.is_empty();
        // Where it fails, the fault thread resolves the faults of those that are armed.
        let is_open = !alone && self.faults.disarm(&span(run)).is_ok();
        {
            let mut table = self.table();
            ahead.iter().for_each(|chunk| table.end_ahead(*chunk));
        }
        if !is_open {
            for run in runs(&ahead) {
                // Faults that were read before find nothing to do for them: these come again. Waking cannot fail for
                // chunks that there are.
                let _ = self.faults.wake(&span(run));
            }
        }
        self.counters.ahead.add(ahead.len() as u64);
        for chunk in touched {
            match is_open {
                true => {
                    // Without it the pages come as they are touched.
                    let _ = self.faults.populate(chunk);
                    self.table().end_populate(chunk);
                }
                false => self.resolve(chunk, true)?,
            }
        }
        self.settled.notify_all();
        Ok(())
    }

    /// Resolves the faults of a chunk that is Populating, with its memory if it is `fresh`.
    pub(super) fn resolve(&self, chunk: ChunkIndex, fresh: bool) -> Result<(), Error> {
        let done = match self.faults.disarm(&one(chunk)) {
            Ok(()) => {
                // Without it the pages come as they are touched.
                let _ = if fresh { self.faults.populate(chunk) } else { Ok(()) };
                Ok(())
            }
            Err(_) => {
                self.counters.filled.add(1);
                self.faults.fill(chunk)
            }
        };
        self.table().end_populate(chunk);
        self.settled.notify_all();
        done.map_err(|source| Error::Provide { chunk, source })
    }
}
