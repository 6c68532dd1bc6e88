//! What one VM holds of a pool of tag storage, wherever the pool is.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use arch::units::Bytes;
use thiserror::Error;

use crate::tag_storage::broker::client::{Awaited, SlotMap};
use crate::tag_storage::broker::{self, Client};
use crate::tag_storage::chunk::ChunkIndex;
use crate::tag_storage::pool::counters::Counters;
use crate::tag_storage::pool::error::ReserveError;
use crate::tag_storage::pool::lease::{LeaseId, tags_of};
use crate::tag_storage::pool::{Pool, SlotIndex};
use crate::tag_storage::supply::SupplyName;

/// Why a VM's tag storage cannot be reserved.
#[derive(Debug, Error)]
pub enum PoolClientError {
    /// The pool refuses, wherever it is.
    #[error(transparent)]
    Pool(#[from] ReserveError),
    /// The pool is a broker's, which cannot be asked or refuses for a reason of its own.
    #[error(transparent)]
    Broker(#[from] broker::Error),
    /// There is no answer yet.
    #[error(
        "the broker has not answered yet: it is stopped, or busy with moving pages out of tag storage; the request \
         stays"
    )]
    Unanswered,
}

/// What a pool says to a request: how many of its chunks have tag storage now, the first of them.
pub type Answer = Result<usize, PoolClientError>;

/// One VM's client of a pool, which assigns a slot to each of its chunks. What is still reserved when the last
/// reference to it goes is freed then.
///
/// One request is under way at a time. Freeing waits for nothing.
pub trait PoolClient: Send + Sync {
    /// Reserves tag storage for all of these chunks, none of which has any, or for the first `least` of them, at least
    /// one. It waits for the pool's answer.
    ///
    /// # Errors
    /// When not even that can be had; then none is reserved. Asking again is no error: others may have freed
    /// meanwhile.
    fn reserve(&self, chunks: &[ChunkIndex], least: usize) -> Answer;

    /// As [`reserve`](Self::reserve), without waiting. Where there is no answer, it comes
    /// [later](Self::answer).
    fn request(&self, chunks: &[ChunkIndex], least: usize) -> Option<Answer> {
        Some(self.reserve(chunks, least))
    }

    /// The answer to the request under way, once it is there.
    fn answer(&self) -> Option<Answer> {
        None
    }

    /// What to wait for before the next look for an [`answer`](Self::answer).
    fn awaited(&self) -> Option<Awaited> {
        None
    }

    /// Frees the tag storage of those of these chunks that have some.
    fn free(&self, chunks: &[ChunkIndex]);

    /// For how many chunks more tag storage can be reserved before they are touched: only where the pool has plenty, and
    /// no other memory is in it. A request for so many may be refused all the same.
    fn headroom(&self) -> u64 {
        0
    }

    /// What there is to say about it now. It must return soon: the thread that asks serves all devices.
    fn report(&self) -> PoolClientReport;
}

/// A hold at one moment.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct PoolClientReport {
    /// What is behind the tag storage.
    pub supply: SupplyName,
    /// The pool's tag storage, that of all VMs.
    pub capacity: Bytes,
    /// What this hold has reserved.
    pub reserved: Bytes,
    /// What the pool has counted. `None` where it counts for others, too, and does not tell.
    pub counters: Option<Counters>,
}

/// A hold on a pool in this process.
pub struct Embedded {
    pool: Arc<Pool>,
    lease: LeaseId,
    slots: Mutex<SlotMap>,
}

impl Embedded {
    /// Takes over an open lease of this pool, and closes it in the end.
    pub fn new(pool: Arc<Pool>, lease: LeaseId) -> Self {
        Self { pool, lease, slots: Mutex::default() }
    }
}

impl Embedded {
    fn slots(&self) -> MutexGuard<'_, SlotMap> {
        self.slots.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn assign(&self, chunk: ChunkIndex, slot: SlotIndex) {
        let spare = self.slots().insert(chunk, slot);
        spare.into_iter().for_each(|slot| self.release(slot));
    }

    fn release(&self, slot: SlotIndex) {
        // A slot that is not this lease's is left alone by the pool, which is all that can be done.
        let _ = self.pool.free(self.lease, slot);
    }
}

impl PoolClient for Embedded {
    fn reserve(&self, chunks: &[ChunkIndex], least: usize) -> Answer {
        if let [chunk] = chunks {
            let slot = self.pool.reserve(self.lease)?;
            self.assign(*chunk, slot);
            return Ok(1);
        }
        // No pool has so many: it says what it has.
        let [least, all] =
            [least, chunks.len()].map(|count| u32::try_from(count).unwrap_or(u32::MAX));
        let deadline = self.pool.deadline(all);
        let slots = self.pool.reserve_at_least(self.lease, (least, all), deadline)?;
        let count = slots.len();
        chunks.iter().zip(slots).for_each(|(chunk, slot)| self.assign(*chunk, slot));
        Ok(count)
    }

    fn free(&self, chunks: &[ChunkIndex]) {
        for chunk in chunks {
            let slot = self.slots().remove(*chunk);
            slot.into_iter().for_each(|slot| self.release(slot));
        }
    }

    fn headroom(&self) -> u64 {
        self.pool.headroom(self.lease).into()
    }

    fn report(&self) -> PoolClientReport {
        let pool = self.pool.snapshot();
        let own = pool.leases.iter().find(|lease| lease.id == self.lease);
        PoolClientReport {
            supply: self.pool.supply(),
            capacity: Bytes::new(pool.capacity_bytes),
            reserved: Bytes::new(own.map_or(0, |lease| lease.reserved_bytes)),
            counters: Some(pool.counters),
        }
    }
}

impl Drop for Embedded {
    fn drop(&mut self) {
        // It fails when the lease is closed already, as is wanted.
        let _ = self.pool.close_lease(self.lease);
    }
}

/// The broker's client, whose inherent methods of these names do the work.
impl PoolClient for Client {
    fn reserve(&self, chunks: &[ChunkIndex], least: usize) -> Answer {
        Self::reserve_at_least(self, chunks, least).map_err(|error| said(self, error))
    }

    fn request(&self, chunks: &[ChunkIndex], least: usize) -> Option<Answer> {
        Self::request(self, chunks, least).err().map(|error| Err(said(self, error)))
    }

    fn answer(&self) -> Option<Answer> {
        let answer = Self::answer(self)?;
        Some(answer.map_err(|error| said(self, error)))
    }

    fn awaited(&self) -> Option<Awaited> {
        Self::awaited(self)
    }

    fn free(&self, chunks: &[ChunkIndex]) {
        Self::free(self, chunks);
    }

    fn headroom(&self) -> u64 {
        Self::headroom(self).into()
    }

    fn report(&self) -> PoolClientReport {
        let status = self.status();
        PoolClientReport {
            supply: status.terms.supply,
            capacity: status.terms.capacity,
            reserved: tags_of(status.chunks),
            counters: None,
        }
    }
}

/// What the pool has said, where it is the pool that refuses.
fn said(client: &Client, error: broker::Error) -> PoolClientError {
    let refusal = match &error {
        broker::Error::Refused(refusal) => refusal.as_reserve_error(client.status().terms.supply),
        _ => None,
    };
    refusal.map_or(PoolClientError::Broker(error), PoolClientError::Pool)
}

#[cfg(test)]
mod tests;
