//! The tag storage of chunks that are loaded as they are touched, where that is reserved on demand.

use std::sync::Arc;

use super::Error;
use super::inbox::Inbox;
use crate::tag_storage::{ChunkIndex, LoaderReservation, TagReservation};

/// How chunks that are to be loaded get their tag storage.
pub(super) struct TagSlots {
    pub(super) reservation: LoaderReservation,
    pub(super) inbox: Arc<Inbox>,
}

impl TagSlots {
    /// For these chunks, which nothing has touched; `None` where tag storage is not reserved on demand.
    pub(super) fn new(
        tags: Option<&TagReservation>,
        chunks: impl Iterator<Item = u64>,
    ) -> Result<Option<Self>, Error> {
        let Some(tags) = tags.filter(|tags| tags.is_on_demand()) else { return Ok(None) };
        let inbox = Arc::new(Inbox::new().map_err(Error::Host)?);
        let reservation = tags.leave_to_loader(chunks.map(ChunkIndex), inbox.clone())?;
        Ok(reservation.map(|reservation| Self { reservation, inbox }))
    }

    /// Reserves for a chunk that no thread waits for, where there is plenty.
    pub(super) fn reserve_ahead(&self, chunk: u64) -> Result<(), Error> {
        let reserved = self.reservation.reserve_ahead(ChunkIndex(chunk));
        reserved.map_err(|source| Error::NoTagStorage { chunk, source })
    }

    /// Reserves for a chunk that is to be saved.
    pub(super) fn reserve_to_save(&self, chunk: u64) -> Result<(), Error> {
        let reserved = self.reservation.reserve_to_save(ChunkIndex(chunk));
        reserved.map_err(|source| Error::NoTagStorage { chunk, source })
    }
}
