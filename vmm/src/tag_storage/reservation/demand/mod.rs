//! Demand reservation: tag storage for a chunk when the guest first touches it, and none any more when
//! all of the chunk has gone back to the host.
//!
//! What always holds: **a chunk with a page has a slot**. For that,
//!
//! - a chunk without a slot is armed: the host stops a thread that touches it, and the thread `faults`
//!   reserves a slot before it resolves the fault;
//! - a chunk is armed again before its memory is discarded, and its slot freed after: a guest that
//!   touches it in between is stopped, and comes upon a chunk without a slot, or with its own.
//!
//! What a snapshot has of a chunk may be loaded when it is touched. Such a chunk is armed by what loads it (`loader`), which
//! has a slot reserved for it first.
//!
//! A chunk with a slot need not be armed: while a guest walks through its memory the chunks that it comes to next are
//! reserved for with the one that it touches.
//!
//! This costs one event a chunk at most, and the chunk may be one huge page: pages provided one by one through
//! userfaultfd would cost ten times as much, and be small.

use std::io;
use std::ops::Range;
use std::os::fd::OwnedFd;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use arch::layout::CHUNK;
use arch::range::MemoryRange;
use arch::units::Bytes;
use rustix::event::{EventfdFlags, eventfd};
use rustix::process::Pid;
use rustix::thread::gettid;
use thiserror::Error;

use super::backend::{PoolClient, PoolClientError};
use super::chunk_table::{ChunkTable, Discard, State};
use crate::memory::{Backing, GuestRam, Residency};
use crate::metrics::Counter;
use crate::sys::thread::{self, Role};
use crate::sys::uffd;
use crate::tag_storage::chunk::{ChunkIndex, one};

mod ahead;
mod chunk_faults;
mod discard;
mod faults;
mod loader;
mod provide;
mod waiting;
mod window;

use ahead::AheadLimits;
use chunk_faults::ChunkFaults;
pub use discard::DiscardHandler;
use faults::{Faults, Limits};
use loader::LoaderRequests;
pub use loader::{ChunkLoader, LoaderReservation, Unreserved};
use waiting::WaitingThreads;

/// The fault thread does not recurse; only what is touched of it is ever backed by memory.
const STACK_SIZE: usize = 256 << 10;

/// Why memory cannot be reserved for on demand, or no longer.
#[derive(Debug, Error)]
pub enum Error {
    /// The host does not tell of touches.
    #[error("cannot reserve tag storage on demand")]
    Uffd(#[from] uffd::Error),
    /// The host does not tell which pages there are.
    #[error(
        "cannot see which guest memory is in use: reserve strictly, or mount /proc and use a kernel \
         with CONFIG_PROC_PAGE_MONITOR"
    )]
    Residency(#[source] io::Error),
    /// Memory cannot be made ready.
    #[error("a page of guest memory stays that is to come with its first touch: try again")]
    Prepare(#[source] io::Error),
    /// A page is more than a chunk.
    #[error(
        "tag storage is reserved on demand in pieces of {CHUNK}, and this guest's memory has pages of \
         {page}: use smaller ones (--memory-backing), or reserve strictly"
    )]
    HugePages {
        /// The size of a page.
        page: Bytes,
    },
    /// The memory has no whole number of chunks.
    #[error("{size} of guest memory is not a multiple of {CHUNK} (--memory)")]
    NotWholeChunks {
        /// Its size.
        size: Bytes,
    },
    /// The memory is locked, so all of it is populated.
    #[error(
        "locked memory is all in use from the start, so that nothing is left to reserve on demand: \
         reserve strictly, or leave out --lock-memory"
    )]
    Locked,
    /// The memory was touched before it was watched.
    #[error("guest memory was in use before its tag storage was reserved; please report this")]
    InUse,
    /// The thread or its event descriptor cannot be made.
    #[error(
        "cannot start the thread that reserves tag storage: look at the limits on processes and files"
    )]
    Thread(#[source] io::Error),
    /// A chunk has its tag storage, and still no memory.
    #[error("the host gives no memory to {chunk} of the guest: free some memory on the host")]
    Provide {
        /// The chunk.
        chunk: ChunkIndex,
        /// What the host says.
        #[source]
        source: io::Error,
    },
    /// The thread that acts on exhaustion does not: it waits for tag storage itself.
    #[error(
        "the VMM's main thread waits itself, probably for tag storage, as the guest has a device's queue or buffer \
         there, and cannot be reached: free guest memory or end a VM before that, or give --tag-min"
    )]
    Unheard,
    /// The thread cannot wait for events.
    #[error("cannot wait for page faults; please report this")]
    Wait(#[source] io::Error),
    /// The thread has panicked.
    #[error("the VMM's own code panicked while it reserved tag storage; please report this")]
    Panicked,
}

/// Is called when tag storage runs out and when there is some again.
///
/// The fault thread calls these, and resolves no fault meanwhile: they must return at once, touch no guest
/// memory, and wait for no thread that might. The main thread might: a guest can put a device's queues into
/// memory that waits for tag storage.
pub trait Exhaustion: Send + Sync {
    /// A touch of this chunk waits, the first that does.
    fn exhausted(&self, chunk: ChunkIndex, why: &PoolClientError);

    /// No touch waits any more.
    fn relieved(&self);

    /// The touch of this chunk has waited for as long as one may. Reported now and then until relieved.
    fn expired(&self, chunk: ChunkIndex);

    /// Whether what was reported last has been read by the thread that acts on it.
    fn is_taken(&self) -> bool;

    /// Nothing more is reserved, and the guest is no longer stopped: the VM is to end.
    fn failed(&self, why: &Error);
}

/// What demand reservation counts. Readable at any time, by any thread.
#[derive(Debug, Default)]
pub struct FaultCounters {
    /// Touches that the host reported. Several may be of one chunk.
    pub touches: Counter,
    /// Times that a chunk got its slot.
    pub populated: Counter,
    /// Of those, times that it got it before it was touched.
    pub ahead: Counter,
    /// Times that such a chunk had not been touched when it was looked at, and lost its slot.
    pub taken_back: Counter,
    /// Requests to the pool.
    pub requests: Counter,
    /// Times that a chunk's slot was freed.
    pub freed: Counter,
    /// Times that touches began to wait, as no tag storage was to be had.
    pub exhausted: Counter,
    /// Times that one had waited for as long as it may.
    pub expired: Counter,
    /// Chunks that were filled with small pages, as the process has too many mappings
    /// (vm.max_map_count).
    pub filled: Counter,
}

/// Reserves tag storage for guest memory as it is touched.
pub struct Demand {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

impl Demand {
    /// Watches this memory from now on. Nothing may have touched it before: not even the kernel is loaded.
    /// That is done next, and concluded with [`finish_loading`](Self::finish_loading). A touch may wait for as long as
    /// `deadline` until it is reported; [`Duration::MAX`] for ever.
    ///
    /// # Errors
    /// When the host's kernel cannot or may not tell of touches, or not of such memory.
    pub fn start(
        ram: GuestRam,
        pool: Arc<dyn PoolClient>,
        deadline: Duration,
        listener: Arc<dyn Exhaustion>,
    ) -> Result<Self, Error> {
        let limits = Limits::new(deadline, AheadLimits::of(&ram));
        Self::with_limits(ram, pool, limits, listener)
    }

    fn with_limits(
        ram: GuestRam,
        pool: Arc<dyn PoolClient>,
        limits: Limits,
        listener: Arc<dyn Exhaustion>,
    ) -> Result<Self, Error> {
        let shared = Arc::new(Shared::new(ram, pool)?);
        shared.faults.arm(&shared.all()).map_err(uffd::Error::Register)?;
        let (own, failed) = (Arc::clone(&shared), Arc::clone(&listener));
        let mut faults = Faults::new(own, limits, listener, gettid());
        let body = move || {
            let error = match catch_unwind(AssertUnwindSafe(|| faults.run())) {
                Ok(Ok(())) => return,
                Ok(Err(error)) => error,
                Err(_) => Error::Panicked,
            };
            failed.failed(&error);
        };
        let thread =
            thread::spawn(Role::Faults, "faults", STACK_SIZE, body).map_err(Error::Thread)?;
        Ok(Self { shared, thread: Some(thread) })
    }

    /// The VMM has written what the guest starts with. Until then a touch for which there is no tag
    /// storage does not wait and is not reported: the VM is to be refused.
    ///
    /// # Errors
    /// Why there was none for all of it, once. Nothing is stopped or reserved any more then.
    pub fn finish_loading(&self) -> Result<(), PoolClientError> {
        match std::mem::replace(&mut *self.shared.loading(), Loading::Done) {
            Loading::Refused(why) => Err(why),
            Loading::Now | Loading::Done => Ok(()),
        }
    }

    /// What frees tag storage as memory is discarded: for the memory's
    /// [`Reclaimer`](crate::memory::Reclaimer).
    pub fn releaser(&self) -> DiscardHandler {
        DiscardHandler::new(Arc::clone(&self.shared))
    }

    /// There may be tag storage again: touches that wait are tried at once.
    pub fn retry(&self) {
        self.shared.signal();
    }

    /// Others may lack tag storage: that of chunks which are not touched is freed.
    pub fn yield_ahead(&self) {
        self.shared.yield_ahead();
    }

    /// How many chunks have a slot.
    pub fn reserved(&self) -> u64 {
        self.shared.table().held()
    }

    /// How many of them have not been touched.
    pub fn ahead(&self) -> u64 {
        self.shared.count_ahead()
    }

    /// How many chunks there are.
    pub fn chunks(&self) -> u64 {
        self.shared.table().len()
    }

    /// How many chunks wait for one.
    pub fn waiting(&self) -> u64 {
        self.shared.waiting.load(Ordering::Relaxed)
    }

    /// Whether this thread waits for a chunk that has no slot: the kernel has reported its fault, and it has
    /// not been resolved.
    pub fn is_waiting(&self, thread: Pid) -> bool {
        self.shared.threads.contains(thread)
    }

    /// Its counters.
    pub fn counters(&self) -> Arc<FaultCounters> {
        Arc::clone(&self.shared.counters)
    }

    /// Ends it: no touch is stopped any more, and threads that wait continue without tag storage. To be
    /// called when the vCPUs have their order to end and before their threads are waited for, as one that
    /// waits for a chunk does not leave the guest.
    pub fn stop(&mut self) {
        self.shared.close();
        if let Some(thread) = self.thread.take() {
            // A panic has been reported.
            let _ = thread.join();
        }
    }
}

impl Drop for Demand {
    fn drop(&mut self) {
        self.stop();
    }
}

/// What the fault thread and the releasers share.
///
/// The table's lock is held for changes of state only, never for a call to the host or the pool.
struct Shared {
    ram: MemoryRange,
    faults: ChunkFaults,
    residency: Residency,
    pool: Arc<dyn PoolClient>,
    table: Mutex<ChunkTable>,
    /// A chunk is no longer Populating, or all is closed.
    settled: Condvar,
    /// Wakes the fault thread.
    eventfd: OwnedFd,
    /// How many chunks the fault thread has no slots for.
    waiting: AtomicU64,
    /// The threads that touch one of these.
    threads: WaitingThreads,
    closed: AtomicBool,
    /// Held while chunks are mapped anew, and when all is closed: after that they may have pages.
    mapping: Mutex<()>,
    /// The fault thread is to free what is ahead.
    yields: AtomicBool,
    /// What loads chunks, if something does.
    loader: LoaderRequests,
    loading: Mutex<Loading>,
    counters: Arc<FaultCounters>,
}

/// Whether what the guest starts with is still being written.
enum Loading {
    Now,
    /// There was no tag storage for it.
    Refused(PoolClientError),
    Done,
}

impl Shared {
    fn new(ram: GuestRam, pool: Arc<dyn PoolClient>) -> Result<Self, Error> {
        let range = ram.range();
        let page = ram.backing().page_size();
        if !range.size.is_multiple_of(CHUNK) {
            return Err(Error::NotWholeChunks { size: range.size });
        }
        if page > CHUNK {
            return Err(Error::HugePages { page });
        }
        if ram.is_locked() {
            return Err(Error::Locked);
        }
        let residency = Residency::new(ram.clone()).map_err(Error::Residency)?;
        // The first chunk stands for all: it is where the kernel is loaded.
        let first = MemoryRange::new(range.base, CHUNK);
        if residency.is_absent(first).map_err(Error::Residency)? == Some(false) {
            return Err(Error::InUse);
        }
        let anonymous = ram.backing() == Backing::Anonymous;
        let faults = ChunkFaults::new(ram)?;
        if anonymous {
            faults.prepare().map_err(Error::Prepare)?;
        }
        Ok(Self {
            ram: range,
            faults,
            residency,
            pool,
            table: Mutex::new(ChunkTable::new(range.size.get() / CHUNK.get())),
            settled: Condvar::new(),
            eventfd: signal().map_err(Error::Thread)?,
            waiting: AtomicU64::new(0),
            threads: WaitingThreads::default(),
            closed: AtomicBool::new(false),
            mapping: Mutex::new(()),
            yields: AtomicBool::new(false),
            loader: LoaderRequests::default(),
            loading: Mutex::new(Loading::Now),
            counters: Arc::default(),
        })
    }

    fn table(&self) -> MutexGuard<'_, ChunkTable> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn lock_mapping(&self) -> MutexGuard<'_, ()> {
        self.mapping.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn loading(&self) -> MutexGuard<'_, Loading> {
        self.loading.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn is_loading(&self) -> bool {
        matches!(*self.loading(), Loading::Now)
    }

    /// Writes down why what the guest starts with has no tag storage, if it is still being written.
    fn refuse(&self, why: PoolClientError) -> Result<(), PoolClientError> {
        let mut loading = self.loading();
        match *loading {
            Loading::Now => *loading = Loading::Refused(why),
            Loading::Refused(_) => {}
            Loading::Done => return Err(why),
        }
        Ok(())
    }

    fn all(&self) -> Range<ChunkIndex> {
        ChunkIndex(0)..ChunkIndex(self.ram.size.get() / CHUNK.get())
    }

    fn is_closed(&self) -> bool {
        self.closed.load(Ordering::SeqCst)
    }

    /// Wakes the fault thread.
    fn signal(&self) {
        // It fails only when 2^64 - 2 signals have not been drained.
        let _ = rustix::io::write(&self.eventfd, &1u64.to_ne_bytes());
    }

    /// Takes all signals so far.
    fn drain(&self) {
        // It fails when there were none.
        let _ = rustix::io::read(&self.eventfd, &mut [0; 8]);
    }

    /// Stops no touch any more. A thread that arms a chunk checks afterwards whether this has happened meanwhile.
    fn close(&self) {
        {
            let _mapping = self.lock_mapping();
            self.closed.store(true, Ordering::SeqCst);
        }
        self.signal();
        // Ranges that are armed as a whole are disarmed as a whole: there is no new mapping to fail for. What is not
        // loaded must not be seen.
        let loaded = self.table().loaded();
        for chunks in loaded {
            let _ = self.faults.disarm(&chunks);
        }
        self.loader.release();
        self.threads.clear();
        // Under the lock, so that no thread that has just checked goes to sleep.
        let _table = self.table();
        self.settled.notify_all();
    }

    /// Arms chunks, unless all is closed. `false`: they are not armed, or those that are stop no thread for
    /// long, as the fault thread resolves faults of populated chunks.
    fn arm(&self, chunks: &Range<ChunkIndex>) -> bool {
        let armed = self.faults.arm(chunks).is_ok();
        if armed && !self.is_closed() {
            return true;
        }
        let _ = self.faults.disarm(chunks);
        false
    }

    /// Begins to discard a chunk, when it is not being populated any more. It is not waited for that it is loaded: a disk
    /// may be slow.
    fn begin_discard(&self, chunk: ChunkIndex) -> Discard {
        let mut table = self.table();
        while !self.is_closed() {
            match table.begin_discard(chunk) {
                // The thread at it waits for the host's memory at most, and not for this one.
                Discard::Populating => {
                    table = self.settled.wait(table).unwrap_or_else(PoisonError::into_inner);
                }
                begun => return begun,
            }
        }
        Discard::Nothing
    }

    /// A part of a chunk is to be discarded. Returns when it is not being populated: pages discarded meanwhile would be
    /// provided again.
    fn begin_part(&self, chunk: ChunkIndex) {
        let mut table = self.table();
        table.thin(chunk);
        while !self.is_closed() && table.state(chunk) == Some(State::Populating) {
            table = self.settled.wait(table).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Whether a chunk certainly has no page.
    fn is_absent(&self, chunk: ChunkIndex) -> bool {
        self.residency
            .is_absent(self.faults.range_of(&one(chunk)))
            .is_ok_and(|absent| absent == Some(true))
    }
}

fn signal() -> io::Result<OwnedFd> {
    Ok(eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?)
}

#[cfg(test)]
mod tests;
