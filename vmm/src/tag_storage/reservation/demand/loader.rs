//! Chunks whose contents are loaded from a snapshot when they are touched.
//!
//! What loads them stops their touches itself, as it has to put a chunk together before one of them continues. It asks here
//! for the slot of a chunk before it has any page of it:
//!
//! - for one that is touched, which may wait for tag storage as any touch does;
//! - for one that is not, as it is to be there before the guest needs it or is to be saved. That never waits, and is asked
//!   for only when no touch waits.

use std::collections::BTreeSet;
use std::sync::mpsc::{self, RecvTimeoutError, SyncSender};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use rustix::process::Pid;

use super::{Demand, Error, Shared};
use crate::sys::uffd;
use crate::tag_storage::chunk::{ChunkIndex, each};
use crate::tag_storage::reservation::PoolClientError;
use crate::tag_storage::reservation::chunk_table::State;
use crate::tag_storage::reservation::demand::discard::{runs, span};

/// How long a chunk that nothing waits for may wait for an answer of the pool: what loads it does nothing else meanwhile.
const AHEAD_PATIENCE: Duration = Duration::from_secs(1);

/// How long a save may wait for one: as for a disk.
const SAVE_PATIENCE: Duration = Duration::from_secs(10);

/// Loads chunks. The fault thread and those that end a VM call these: they must return at once.
pub trait ChunkLoader: Send + Sync {
    /// A chunk that is touched has its slot, and is to be loaded if it is not. This may be said more than once.
    fn grant(&self, chunk: ChunkIndex);

    /// Nothing is reserved any more, as the VM ends: touches continue without tag storage.
    fn release(&self);
}

/// Why a chunk that is not touched has no slot.
#[derive(Debug, Error)]
pub enum Unreserved {
    /// It is not asked for.
    #[error("tag storage is short, or others may need it")]
    Short,
    /// The pool has none.
    #[error("there is no tag storage for it")]
    Refused(#[source] PoolClientError),
    /// There is no answer.
    #[error("tag storage has been asked for, and there is no answer: look at the broker")]
    Unanswered,
}

/// For what a chunk is to have its slot before it is touched.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Purpose {
    /// It may be touched soon: only where the pool has plenty.
    Ahead,
    /// It is to be saved.
    Save,
}

/// A chunk that is to have its slot before it is touched.
pub(super) struct Wish {
    pub(super) chunk: ChunkIndex,
    pub(super) purpose: Purpose,
    /// Dropped, nothing is reserved any more.
    pub(super) reply: SyncSender<Result<(), Unreserved>>,
}

/// What the fault thread is asked for.
#[derive(Default)]
pub(super) struct Requests {
    /// Chunks that are touched, each with the thread that waits.
    pub(super) touches: Vec<(ChunkIndex, Option<Pid>)>,
    pub(super) wishes: Vec<Wish>,
    /// Chunks that are loaded, and may have no page.
    pub(super) thinned: BTreeSet<ChunkIndex>,
}

/// The loader of a memory, and what it asks for.
#[derive(Default)]
pub(super) struct LoaderRequests {
    loader: OnceLock<Arc<dyn ChunkLoader>>,
    requests: Mutex<Requests>,
}

impl LoaderRequests {
    pub(super) fn lock(&self) -> MutexGuard<'_, Requests> {
        self.requests.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes all that has been asked for.
    pub(super) fn take(&self) -> Requests {
        std::mem::take(&mut *self.lock())
    }

    /// A chunk that is touched has its slot.
    pub(super) fn grant(&self, chunk: ChunkIndex) {
        if let Some(loader) = self.loader.get() {
            loader.grant(chunk);
        }
    }

    /// All is closed: whatever is asked for can be had.
    pub(super) fn release(&self) {
        // Those who wait for an answer have it with this.
        drop(self.take());
        if let Some(loader) = self.loader.get() {
            loader.release();
        }
    }
}

impl Demand {
    /// Leaves chunks, in order, which nothing has touched, to what loads them. No touch of them is caught from now on: the
    /// caller does that, before anything touches them.
    ///
    /// # Errors
    /// When the process would have too many mappings. The memory must not be used then.
    pub fn leave_to_loader(
        &self,
        chunks: impl Iterator<Item = ChunkIndex>,
        loader: Arc<dyn ChunkLoader>,
    ) -> Result<LoaderReservation, Error> {
        LoaderReservation::new(Arc::clone(&self.shared), chunks, loader)
    }
}

/// Reserves tag storage for chunks before they are loaded.
pub struct LoaderReservation {
    shared: Arc<Shared>,
}

impl LoaderReservation {
    pub(super) fn new(
        shared: Arc<Shared>,
        chunks: impl Iterator<Item = ChunkIndex>,
        loader: Arc<dyn ChunkLoader>,
    ) -> Result<Self, Error> {
        let chunks: Vec<ChunkIndex> = chunks.collect();
        for run in runs(&chunks) {
            shared.faults.leave(&span(run)).map_err(uffd::Error::Register)?;
            let mut table = shared.table();
            each(&span(run)).for_each(|chunk| table.leave_to_loader(chunk));
        }
        // There is one loader of a memory.
        let _ = shared.loader.loader.set(loader);
        Ok(Self { shared })
    }

    /// A thread waits for a chunk. Returns whether it may be loaded at once; else that is
    /// [said](ChunkLoader::grant) when it has its slot.
    pub fn touched(&self, chunk: ChunkIndex, thread: Option<Pid>) -> bool {
        {
            let mut requests = self.shared.loader.lock();
            if self.shared.is_closed() || self.state(chunk) != Some(State::Unloaded) {
                return true;
            }
            requests.touches.push((chunk, thread));
        }
        self.shared.signal();
        false
    }

    /// Reserves for a chunk that may be touched soon, where the pool has plenty.
    ///
    /// # Errors
    /// When it has not, or a touch waits. The chunk is as before.
    pub fn reserve_ahead(&self, chunk: ChunkIndex) -> Result<(), Unreserved> {
        self.wish(chunk, Purpose::Ahead, AHEAD_PATIENCE)
    }

    /// Reserves for a chunk that is to be saved.
    ///
    /// # Errors
    /// When there is no tag storage, or a touch waits for some. The chunk is as before.
    pub fn reserve_to_save(&self, chunk: ChunkIndex) -> Result<(), Unreserved> {
        self.wish(chunk, Purpose::Save, SAVE_PATIENCE)
    }

    fn wish(
        &self,
        chunk: ChunkIndex,
        purpose: Purpose,
        patience: Duration,
    ) -> Result<(), Unreserved> {
        // Room for the answer: the fault thread does not wait for the one who asks.
        let (reply, answer) = mpsc::sync_channel(1);
        {
            let mut requests = self.shared.loader.lock();
            if self.shared.is_closed() || self.state(chunk) != Some(State::Unloaded) {
                return Ok(());
            }
            requests.wishes.push(Wish { chunk, purpose, reply });
        }
        self.shared.signal();
        match answer.recv_timeout(patience) {
            Ok(reserved) => reserved,
            // A slot that comes later stays the chunk's.
            Err(RecvTimeoutError::Timeout) => Err(Unreserved::Unanswered),
            // Nothing is reserved any more.
            Err(RecvTimeoutError::Disconnected) => Ok(()),
        }
    }

    /// Whether touches of a chunk are the loader's to stop still.
    pub fn is_unloaded(&self, chunk: ChunkIndex) -> bool {
        matches!(self.state(chunk), Some(State::Unloaded | State::Loading))
    }

    /// Whether a chunk may be loaded now. What has been loaded before may be in other hands since.
    pub fn may_load(&self, chunk: ChunkIndex) -> bool {
        match self.state(chunk) {
            Some(State::Loading) => true,
            Some(State::Unloaded) => self.shared.is_closed(),
            _ => false,
        }
    }

    /// A chunk is loaded, and its touches are not stopped by the loader any more. Where the guest gave it back before,
    /// `is_empty`, or meanwhile, it may have no page and needs no slot.
    pub fn loaded(&self, chunk: ChunkIndex, is_empty: bool) {
        let is_thinned = self.shared.table().end_load(chunk);
        if is_thinned || is_empty {
            self.shared.loader.lock().thinned.insert(chunk);
            self.shared.signal();
        }
    }

    fn state(&self, chunk: ChunkIndex) -> Option<State> {
        self.shared.table().state(chunk)
    }
}
