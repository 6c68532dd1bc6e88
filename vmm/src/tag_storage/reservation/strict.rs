//! Strict reservation: tag storage for all of a guest's memory, from before it starts until it ends.

use std::sync::Arc;

use arch::units::Bytes;

use super::backend::{PoolClient, PoolClientError};
use crate::tag_storage::chunk::ChunkIndex;
use crate::tag_storage::pool::lease::chunks_of;

/// Tag storage for a whole guest. Discarded memory frees none of it
/// ([`NoHooks`](crate::memory::NoHooks)), so the guest can always touch all of its memory.
pub struct Strict {
    _hold: Arc<dyn PoolClient>,
    chunks: u64,
}

impl Strict {
    /// Reserves for `memory` of guest RAM; a chunk begun counts. It stays reserved for as long as the hold
    /// lives, which this value sees to.
    ///
    /// # Errors
    /// When the pool does not have that much for this VM. Nothing is reserved then.
    pub fn reserve(hold: Arc<dyn PoolClient>, memory: Bytes) -> Result<Self, PoolClientError> {
        let chunks: Vec<ChunkIndex> = (0..chunks_of(memory)).map(ChunkIndex).collect();
        hold.reserve(&chunks, chunks.len())?;
        Ok(Self { _hold: hold, chunks: chunks.len() as u64 })
    }

    /// How many chunks it has reserved for.
    pub fn chunks(&self) -> u64 {
        self.chunks
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;
    use crate::memory::{NoHooks, Reclaimer};
    use crate::tag_storage::reservation::testing::{FakeHold, ram};
    use devices::ports::{GuestRange, Reclaim as _};

    #[test]
    fn all_is_reserved_at_once_and_a_discard_frees_nothing() {
        let hold = FakeHold::new(4);
        let ram = ram(8);

        let strict = Strict::reserve(hold.clone(), ram.range().size).unwrap();

        assert_eq!((strict.chunks(), hold.live()), (4, 4));
        let mut reclaimer = Reclaimer::new(ram.clone(), Box::new(NoHooks));
        let all = GuestRange { start: ram.range().base, length: ram.range().size.get() };
        assert_eq!(reclaimer.discard(all).discarded, 8 << 20);
        assert_eq!(hold.live(), 4);
    }

    #[test]
    fn a_guest_that_does_not_fit_gets_nothing() {
        let hold = FakeHold::new(3);

        let refused = Strict::reserve(hold.clone(), Bytes::mib(8));

        assert!(refused.is_err());
        assert_eq!(hold.live(), 0);
    }

    #[test]
    fn a_chunk_begun_counts() {
        let hold = FakeHold::new(3);

        let strict = Strict::reserve(hold.clone(), Bytes::new((4 << 20) + 1)).unwrap();

        assert_eq!((strict.chunks(), hold.live()), (3, 3));
    }
}
