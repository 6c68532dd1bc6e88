//! What one VM holds of a pool of tag storage, wherever the pool is.

use std::sync::Arc;

use arch::units::Bytes;
use thiserror::Error;

use crate::tag_storage::broker::{self, Client};
use crate::tag_storage::pool::Pool;
use crate::tag_storage::pool::counters::Counters;
use crate::tag_storage::pool::error::ReserveError;
use crate::tag_storage::pool::lease::{LeaseId, tags_of};
use crate::tag_storage::pool::slots::SlotIndex;
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
}

impl PoolClientError {
    /// Whether tag storage itself is lacking, so that freeing some may help.
    pub fn is_lack(&self) -> bool {
        matches!(self, Self::Pool(error) if error.is_lack())
    }
}

/// One VM's hold on a pool. What is still reserved when the last reference to it goes is freed then.
pub trait PoolClient: Send + Sync {
    /// Reserves tag storage for so many chunks: a slot each.
    ///
    /// # Errors
    /// When not all of them can be had; then none is reserved. Asking again is no error: others may have
    /// freed meanwhile.
    fn reserve(&self, chunks: u64) -> Result<Vec<SlotIndex>, PoolClientError>;

    /// Frees the tag storage of one slot that this hold has reserved.
    fn free(&self, slot: SlotIndex);

    /// What there is to say about it now. It must return soon: the thread that asks serves all devices.
    fn report(&self) -> PoolClientReport;
}

/// A hold at one moment.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct PoolClientReport {
    /// What is behind the tag storage.
    pub supply: SupplyName,
    /// The pool's tag storage, everybody's.
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
}

impl Embedded {
    /// Takes over an open lease of this pool, and closes it in the end.
    pub fn new(pool: Arc<Pool>, lease: LeaseId) -> Self {
        Self { pool, lease }
    }
}

impl PoolClient for Embedded {
    fn reserve(&self, chunks: u64) -> Result<Vec<SlotIndex>, PoolClientError> {
        // No pool has so many: it says what it has.
        let chunks = u32::try_from(chunks).unwrap_or(u32::MAX);
        Ok(self.pool.reserve_many(self.lease, chunks)?)
    }

    fn free(&self, slot: SlotIndex) {
        // A slot that is not this lease's is left alone by the pool, which is all that can be done.
        let _ = self.pool.free(self.lease, slot);
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

impl PoolClient for Client {
    fn reserve(&self, chunks: u64) -> Result<Vec<SlotIndex>, PoolClientError> {
        // Inherent methods come first: these are the client's own.
        Self::reserve(self, chunks).map_err(|error| {
            let said = match &error {
                broker::Error::Refused(refusal) => {
                    refusal.as_reserve_error(self.status().terms.supply)
                }
                _ => None,
            };
            said.map_or(PoolClientError::Broker(error), PoolClientError::Pool)
        })
    }

    fn free(&self, slot: SlotIndex) {
        Self::free(self, slot);
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

#[cfg(test)]
mod tests;
