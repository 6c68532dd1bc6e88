//! Guest memory that is loaded from a snapshot when it is touched, a chunk at a time.
//!
//! A chunk is filled aside, data and tags, and its pages are moved to the guest: no vCPU sees a chunk half loaded. After
//! that the kernel provides its pages as in any other memory. Chunks of which the snapshot has nothing are not watched
//! at all.
//!
//! # References
//! Linux Documentation/admin-guide/mm/userfaultfd.rst, UFFDIO_MOVE
#![allow(unsafe_code)]

use std::collections::BTreeMap;
use std::io;
use std::ops::Range;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::thread::JoinHandle;

use arch::layout::CHUNK;
use arch::range::MemoryRange;
use arch::units::Bytes;
use rustix::event::{EventfdFlags, PollFd, PollFlags, eventfd, poll};
use rustix::io::Errno;
use thiserror::Error;

use super::contents::Contents;
use crate::memory::{self, Aside, Backing, DiscardHooks, GuestRam, Outcome};
use crate::snapshot::{self, MemoryReader, PageSet};
use crate::sys::thread;
use crate::sys::uffd::{self, Uffd};

/// Enough for reading a file into memory; only what is touched of it is backed by memory.
const STACK_SIZE: usize = 256 << 10;

/// Why memory cannot be loaded when it is touched.
#[derive(Debug, Error)]
pub enum Error {
    /// Only anonymous memory has pages that move.
    #[error(
        "only anonymous memory can be restored lazily, and that of the snapshot is not: leave out --lazy"
    )]
    Backing,
    /// The host cannot stop touches of it.
    #[error("guest memory cannot be loaded as it is touched")]
    Uffd(#[from] uffd::Error),
    /// There is no memory aside from the guest's.
    #[error(transparent)]
    Aside(#[from] memory::Error),
    /// The system gives no event, no thread, or does not show pages.
    #[error(
        "the host gives no descriptor or thread for loading guest memory: look at ulimit -n and ulimit -u"
    )]
    Host(#[source] io::Error),
    /// The snapshot cannot be read.
    #[error(transparent)]
    Snapshot(#[from] snapshot::Error),
    /// The pages of a chunk cannot be moved.
    #[error("chunk {chunk} of the snapshot cannot be moved into guest memory")]
    Move {
        /// Which chunk.
        chunk: u64,
        /// The system's reason.
        #[source]
        source: io::Error,
    },
}

/// What is done when a chunk cannot be loaded.
type OnFailure = Box<dyn Fn(String) + Send + Sync>;

struct Shared {
    uffd: Uffd,
    ram: GuestRam,
    reader: MemoryReader,
    chunks: Mutex<Chunks>,
    stop: OwnedFd,
    on_failure: OnceLock<OnFailure>,
}

/// The chunks that are yet to be loaded. One lock for all: a discard never meets a chunk that is being loaded.
struct Chunks {
    /// Each with the pages that the guest has given back since.
    pending: BTreeMap<u64, PageSet>,
    aside: Contents,
    failure: Option<String>,
}

/// Loads guest memory as it is touched. Dropped, it ends.
pub(crate) struct LazyMemory {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

impl LazyMemory {
    /// Loads this memory, which nothing has touched, from a snapshot as it is touched.
    ///
    /// # Errors
    /// When the host cannot, or the snapshot is of other memory.
    pub(crate) fn start(ram: &GuestRam, reader: MemoryReader) -> Result<Self, Error> {
        if ram.backing() != Backing::Anonymous {
            return Err(Error::Backing);
        }
        reader.check_sink(&Contents::new(ram).map_err(Error::Host)?)?;
        let aside = Aside::like(ram)?;
        let aside = Contents::new(aside.ram()).map_err(Error::Host)?;
        let pending: BTreeMap<_, _> =
            reader.chunks().map(|chunk| (chunk, PageSet::EMPTY)).collect();
        let uffd = Uffd::with_moves()?;
        let stop = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)
            .map_err(|errno| Error::Host(errno.into()))?;
        let chunks = Mutex::new(Chunks { pending, aside, failure: None });
        let on_failure = OnceLock::new();
        let shared = Shared { uffd, ram: ram.clone(), reader, chunks, stop, on_failure };
        let shared = Arc::new(shared);
        shared.arm()?;
        let own = Arc::clone(&shared);
        let thread = thread::spawn("loader", STACK_SIZE, move || own.run());
        Ok(Self { shared, thread: Some(thread.map_err(Error::Host)?) })
    }

    /// What is done when a chunk cannot be loaded, which ends the VM. It may be done at once.
    pub(crate) fn on_failure(&self, act: impl Fn(String) + Send + Sync + 'static) {
        let chunks = self.shared.lock();
        let act = self.shared.on_failure.get_or_init(|| Box::new(act));
        if let Some(failure) = chunks.failure.clone() {
            act(failure);
        }
    }

    /// Loads all that is left.
    ///
    /// # Errors
    /// When a chunk cannot be loaded.
    pub(crate) fn finish(&self) -> Result<(), Error> {
        let mut chunks = self.shared.lock();
        while let Some(chunk) = chunks.pending.keys().next().copied() {
            self.shared.load(&mut chunks, chunk)?;
        }
        Ok(())
    }

    /// How much of guest memory is yet to be loaded, in whole chunks.
    pub(crate) fn pending(&self) -> Bytes {
        Bytes::new(self.shared.lock().pending.len() as u64 * CHUNK.get())
    }

    /// What keeps memory that the guest gives back from being loaded afterwards.
    pub(crate) fn discard_hooks(&self) -> Box<dyn DiscardHooks> {
        Box::new(Discards(Arc::clone(&self.shared)))
    }

    /// Ends it: touches of what is not loaded read zero from now on. The vCPUs have their order to end.
    pub(crate) fn stop(&mut self) {
        // It cannot be full: it is written once.
        let _ = rustix::io::write(&self.shared.stop, &1u64.to_ne_bytes());
        if let Some(thread) = self.thread.take() {
            // A panic has been reported by the panic hook.
            let _ = thread.join();
        }
        self.shared.release();
    }
}

impl Drop for LazyMemory {
    fn drop(&mut self) {
        self.stop();
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Chunks> {
        self.chunks.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The addresses of a chunk.
    fn addresses(&self, chunk: u64) -> Range<u64> {
        let start = self.ram.host_address() + chunk * CHUNK.get();
        start..start + CHUNK.get()
    }

    /// Watches the chunks that have contents, neighbours together.
    fn arm(&self) -> Result<(), uffd::Error> {
        let chunks = self.lock();
        let mut next: Option<Range<u64>> = None;
        for chunk in chunks.pending.keys().map(|chunk| self.addresses(*chunk)) {
            match &mut next {
                Some(range) if range.end == chunk.start => range.end = chunk.end,
                _ => {
                    if let Some(range) = next.replace(chunk) {
                        self.uffd.arm(&range).map_err(uffd::Error::Register)?;
                    }
                }
            }
        }
        next.map_or(Ok(()), |range| self.uffd.arm(&range)).map_err(uffd::Error::Register)
    }

    /// Loads what is touched until it is stopped.
    fn run(&self) {
        if let Err(error) = self.serve() {
            let failure = crate::error::chain(&error);
            let mut chunks = self.lock();
            chunks.failure = Some(failure.clone());
            if let Some(act) = self.on_failure.get() {
                act(failure);
            }
        }
    }

    fn serve(&self) -> Result<(), Error> {
        let mut faults = Vec::new();
        loop {
            let mut ready = [
                PollFd::new(&self.stop, PollFlags::IN),
                PollFd::from_borrowed_fd(self.uffd.as_fd(), PollFlags::IN),
            ];
            match poll(&mut ready, None) {
                Err(Errno::INTR) => continue,
                Err(errno) => return Err(Error::Host(errno.into())),
                Ok(_) if !ready[0].revents().is_empty() => return Ok(()),
                Ok(_) => {}
            }
            self.uffd.read(&mut faults)?;
            for fault in faults.drain(..) {
                let offset = fault.address.saturating_sub(self.ram.host_address());
                self.load(&mut self.lock(), offset / CHUNK.get())?;
            }
        }
    }

    /// Loads a chunk, unless it is loaded, and wakes those who wait for it.
    fn load(&self, chunks: &mut Chunks, chunk: u64) -> Result<(), Error> {
        let range = self.addresses(chunk);
        if let Some(dropped) = chunks.pending.get(&chunk) {
            self.reader.load_chunk(chunk, &chunks.aside, 0)?;
            chunks.aside.discard(dropped).map_err(Error::Host)?;
            // SAFETY: the memory aside is this one's own, and anonymous; guest memory may have any contents, and none
            // is in this chunk yet, as all touches of it are stopped.
            unsafe { self.uffd.move_in(&range, chunks.aside.host_address()) }
                .map_err(|source| Error::Move { chunk, source })?;
            chunks.pending.remove(&chunk);
        }
        self.settle(&range)
    }

    /// Leaves a chunk to the kernel.
    fn settle(&self, range: &Range<u64>) -> Result<(), Error> {
        let page = rustix::param::page_size() as u64;
        // With as many mappings as a process can have, one more cannot be made: then it stays watched.
        self.uffd
            .disarm(range)
            .or_else(|_| self.uffd.fill(range, page))
            .map_err(|source| Error::Uffd(uffd::Error::Register(source)))
    }

    /// Leaves all memory to the kernel.
    fn release(&self) {
        for chunk in self.lock().pending.keys() {
            // Whatever is left watched is woken when the descriptor is closed.
            let _ = self.uffd.disarm(&self.addresses(*chunk));
        }
    }

    /// The guest gives memory back that may not be loaded.
    fn forget(&self, range: MemoryRange) {
        let base = self.ram.range().base.0;
        let page = rustix::param::page_size() as u64;
        let (start, end) = (range.base.0.saturating_sub(base), range.end().0.saturating_sub(base));
        let mut chunks = self.lock();
        for chunk in start / CHUNK.get()..end.div_ceil(CHUNK.get()) {
            let Some(dropped) = chunks.pending.get_mut(&chunk) else { continue };
            let at = chunk * CHUNK.get();
            let (first, last) = (start.max(at) - at, end.min(at + CHUNK.get()) - at);
            dropped.insert_range((first / page) as usize..(last / page) as usize);
            if dropped.len() as u64 == CHUNK.get() / page {
                chunks.pending.remove(&chunk);
                // It stays watched if it must; a touch of it is settled then.
                let _ = self.settle(&self.addresses(chunk));
            }
        }
    }
}

/// Keeps what is given back from being loaded.
struct Discards(Arc<Shared>);

impl DiscardHooks for Discards {
    fn before(&mut self, range: MemoryRange) {
        self.0.forget(range);
    }

    fn after(&mut self, _: MemoryRange, _: Outcome) {}
}
