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
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::thread::JoinHandle;

use arch::layout::CHUNK;
use arch::range::MemoryRange;
use arch::units::Bytes;
use rustix::event::{EventfdFlags, PollFd, PollFlags, eventfd, poll};
use rustix::io::Errno;
use thiserror::Error;

use super::contents::Contents;
use crate::error::{chain, say};
use crate::memory::{self, Backing, DiscardHooks, GuestRam, Outcome};
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
    /// The host's kernel cannot stop touches of it.
    #[error(
        "this host's kernel cannot load guest memory as it is touched (userfaultfd with UFFDIO_MOVE, Linux 6.8): leave \
         out --lazy"
    )]
    Kernel(#[source] io::Error),
    /// This user may not stop touches in the kernel, as those of KVM are.
    #[error(
        "this user may not catch KVM's page faults: give it access to /dev/userfaultfd, or set the sysctl \
         vm.unprivileged_userfaultfd=1, or leave out --lazy"
    )]
    Denied(#[source] io::Error),
    /// There would be too many mappings.
    #[error(
        "memory with this many gaps takes too many mappings: raise vm.max_map_count, or leave out --lazy"
    )]
    Mappings(#[source] io::Error),
    /// There is no memory aside from the guest's.
    #[error(transparent)]
    Aside(#[from] memory::Error),
    /// The system gives no descriptor or thread, or does not show pages.
    #[error(
        "the host gives no descriptor or thread for loading guest memory, or does not show its pages: look at ulimit \
         -n, ulimit -u and /proc/self/pagemap"
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

impl From<uffd::Error> for Error {
    fn from(error: uffd::Error) -> Self {
        match error {
            uffd::Error::Denied(source) => Self::Denied(source),
            uffd::Error::Descriptor(source) => Self::Host(source),
            uffd::Error::Register(source) if source.raw_os_error() == Some(libc::ENOMEM) => {
                Self::Mappings(source)
            }
            uffd::Error::Missing(source)
            | uffd::Error::Version(source)
            | uffd::Error::NoMove(source)
            | uffd::Error::Register(source)
            | uffd::Error::Read(source) => Self::Kernel(source),
        }
    }
}

/// What is done when a chunk cannot be loaded.
type OnFailure = Box<dyn Fn(String) + Send + Sync>;

struct Shared {
    uffd: Uffd,
    ram: GuestRam,
    reader: MemoryReader,
    chunks: Mutex<Chunks>,
    stop: OwnedFd,
    /// How many chunks are yet to be loaded: read without the lock, which is held while the file is read.
    left: AtomicU64,
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
        let aside = Contents::new(&ram.chunk_aside()?).map_err(Error::Host)?;
        let pending: BTreeMap<_, _> =
            reader.chunks().map(|chunk| (chunk, PageSet::EMPTY)).collect();
        let uffd = Uffd::with_moves()?;
        let stop = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)
            .map_err(|errno| Error::Host(errno.into()))?;
        let chunks = Mutex::new(Chunks { pending, aside, failure: None });
        let (left, on_failure) = (AtomicU64::new(0), OnceLock::new());
        let shared = Shared { uffd, ram: ram.clone(), reader, chunks, stop, left, on_failure };
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
    /// When a chunk cannot be loaded. The VM ends then.
    pub(crate) fn finish(&self) -> Result<(), Error> {
        let mut chunks = self.shared.lock();
        while let Some(chunk) = chunks.pending.keys().next().copied() {
            if let Err(error) = self.shared.load(&mut chunks, chunk) {
                self.shared.give_up(&mut chunks, chunk, &error);
                return Err(error);
            }
        }
        Ok(())
    }

    /// How much of guest memory is yet to be loaded, in whole chunks.
    pub(crate) fn pending(&self) -> Bytes {
        Bytes::new(self.shared.left.load(Ordering::Relaxed) * CHUNK.get())
    }

    /// What keeps memory that the guest gives back from being loaded afterwards.
    pub(crate) fn discard_hooks(&self) -> Box<dyn DiscardHooks> {
        Box::new(Discards(Arc::clone(&self.shared)))
    }
}

impl Drop for LazyMemory {
    /// Touches of what is not loaded read zero from now on. No vCPU and no device is left to touch it.
    fn drop(&mut self) {
        // It cannot be full: it is written once.
        let _ = rustix::io::write(&self.shared.stop, &1u64.to_ne_bytes());
        if let Some(thread) = self.thread.take() {
            // A panic has been reported by the panic hook.
            let _ = thread.join();
        }
        self.shared.release();
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Chunks> {
        self.chunks.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn count(&self, chunks: &Chunks) {
        self.left.store(chunks.pending.len() as u64, Ordering::Relaxed);
    }

    /// The addresses of a chunk.
    fn addresses(&self, chunk: u64) -> Range<u64> {
        let start = self.ram.host_address() + chunk * CHUNK.get();
        start..start + CHUNK.get()
    }

    /// Watches the chunks that have contents, neighbours together.
    fn arm(&self) -> Result<(), uffd::Error> {
        let chunks = self.lock();
        self.count(&chunks);
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
        let failure = match catch_unwind(AssertUnwindSafe(|| self.serve())) {
            Ok(Ok(())) => return,
            Ok(Err(error)) => chain(&error),
            Err(_) => "the thread that loads it panicked; please report this".to_owned(),
        };
        let mut chunks = self.lock();
        self.report(&mut chunks, failure);
        for (chunk, _) in std::mem::take(&mut chunks.pending) {
            self.poison(chunk);
        }
        self.count(&chunks);
    }

    /// Ends the VM for a chunk that cannot be loaded. Whoever touches it must neither wait for good nor see other
    /// contents.
    fn give_up(&self, chunks: &mut Chunks, chunk: u64, error: &Error) {
        self.report(chunks, chain(error));
        chunks.pending.remove(&chunk);
        self.count(chunks);
        // Half of a chunk may be in it.
        let all = PageSet::of(0..(CHUNK.get() / page_size()) as usize);
        let _ = chunks.aside.discard(&all);
        self.poison(chunk);
    }

    fn report(&self, chunks: &mut Chunks, failure: String) {
        if chunks.failure.is_none() {
            // Now: a thread that touches the chunk ends the process before anything else is said.
            say(&format!("guest memory cannot be loaded from the snapshot: {failure}"));
        }
        if let Some(act) = self.on_failure.get() {
            act(failure.clone());
        }
        chunks.failure.get_or_insert(failure);
    }

    fn poison(&self, chunk: u64) {
        let range = self.addresses(chunk);
        if self.uffd.poison(&range).is_err() {
            // The VM ends; it must not wait for this chunk until then.
            let _ = self.uffd.disarm(&range);
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
                let (chunk, mut chunks) = (offset / CHUNK.get(), self.lock());
                if let Err(error) = self.load(&mut chunks, chunk) {
                    self.give_up(&mut chunks, chunk, &error);
                }
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
            self.count(chunks);
        }
        self.settle(&range)
    }

    /// Leaves a chunk to the kernel.
    fn settle(&self, range: &Range<u64>) -> Result<(), Error> {
        // With as many mappings as a process can have, one more cannot be made: then it stays watched.
        self.uffd
            .disarm(range)
            .or_else(|_| self.uffd.fill(range, page_size()))
            .map_err(|source| uffd::Error::Register(source).into())
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
        let page = page_size();
        let (start, end) = (range.base.0.saturating_sub(base), range.end().0.saturating_sub(base));
        let mut chunks = self.lock();
        for chunk in start / CHUNK.get()..end.div_ceil(CHUNK.get()) {
            let Some(dropped) = chunks.pending.get_mut(&chunk) else { continue };
            let at = chunk * CHUNK.get();
            let (first, last) = (start.max(at) - at, end.min(at + CHUNK.get()) - at);
            dropped.insert_range((first / page) as usize..(last / page) as usize);
            if dropped.len() as u64 == CHUNK.get() / page {
                chunks.pending.remove(&chunk);
                self.count(&chunks);
                // It stays watched if it must; a touch of it is settled then.
                let _ = self.settle(&self.addresses(chunk));
            }
        }
    }
}

fn page_size() -> u64 {
    rustix::param::page_size() as u64
}

/// Keeps what is given back from being loaded.
struct Discards(Arc<Shared>);

impl DiscardHooks for Discards {
    fn before(&mut self, range: MemoryRange) {
        self.0.forget(range);
    }

    fn after(&mut self, _: MemoryRange, _: Outcome) {}
}

#[cfg(test)]
mod tests;
