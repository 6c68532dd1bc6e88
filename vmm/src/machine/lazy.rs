//! Guest memory that is loaded from a snapshot when it is touched, a chunk at a time.
//!
//! A chunk is filled aside, data and tags, and its pages are moved to the guest: no vCPU sees a chunk half loaded. After
//! that the kernel provides its pages as in any other memory. Chunks of which the snapshot has nothing are not watched
//! at all. Chunks that the guest touched first the last time may be loaded before they are touched, as long as no thread
//! waits for another one.
//!
//! # References
//! Linux Documentation/admin-guide/mm/userfaultfd.rst, UFFDIO_MOVE
#![allow(unsafe_code)]

mod error;

use std::collections::BTreeMap;
use std::ops::Range;
use std::os::fd::{AsFd, OwnedFd};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::thread::JoinHandle;

use arch::layout::CHUNK;
use arch::range::MemoryRange;
use arch::units::Bytes;
use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};
use rustix::io::Errno;

use super::contents::Destination;
use crate::error::{chain, say};
use crate::memory::{Backing, DiscardHooks, GuestRam, Outcome};
use crate::snapshot::memory_file::pages_per_chunk;
use crate::snapshot::{self, MemoryReader, PageSet, Recorder, WorkingSet};
use crate::sys::numa::Rule;
use crate::sys::thread;
use crate::sys::uffd::{self, Uffd};

pub(super) use error::Error;

/// Enough for reading a file into memory; only what is touched of it is backed by memory.
const STACK_SIZE: usize = 256 << 10;

/// No time at all.
const AT_ONCE: Timespec = Timespec { tv_sec: 0, tv_nsec: 0 };

/// What is done when a chunk cannot be loaded.
type OnFailure = Box<dyn Fn(String) + Send + Sync>;

struct Shared {
    uffd: Uffd,
    ram: GuestRam,
    /// What chunks are read with, one at a time, until all are. Its lock is held while the file is read, and taken
    /// before that of `chunks`.
    source: Mutex<Option<Source>>,
    /// Never locked while the file is read: a disk that is slow must not hold up what gives memory back.
    chunks: Mutex<Chunks>,
    stop: OwnedFd,
    /// How many chunks are yet to be loaded.
    left: AtomicU64,
    /// Whether the file is read at present.
    reading: AtomicBool,
    /// How often a thread has waited for a chunk.
    faults: AtomicU64,
    /// How many chunks were loaded before they were touched.
    ahead: AtomicU64,
    on_failure: OnceLock<OnFailure>,
}

/// The file, and where a chunk of it is put together.
struct Source {
    reader: MemoryReader,
    aside: Destination,
    /// Where the pages aside are taken from.
    rule: Option<Rule>,
}

/// In which order chunks are loaded.
struct Order {
    /// Those that are loaded while no thread waits, the next one last.
    ahead: Vec<u64>,
    /// Those that were loaded for a thread, if that is recorded.
    touched: Option<Vec<u64>>,
}

/// The chunks that are yet to be loaded.
struct Chunks {
    /// Each with the pages that the guest has given back since, before it is read or meanwhile.
    pending: BTreeMap<u64, PageSet>,
    failure: Option<String>,
}

/// Loads guest memory as it is touched. Dropped, it ends.
pub(crate) struct LazyMemory {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

impl LazyMemory {
    /// Loads this memory, which nothing has touched, from a snapshot as it is touched, and a working set that is known
    /// before.
    ///
    /// # Errors
    /// When the host cannot, or the snapshot is of other memory.
    pub(crate) fn start(
        ram: &GuestRam,
        reader: MemoryReader,
        working_set: WorkingSet,
    ) -> Result<Self, Error> {
        if ram.backing() != Backing::Anonymous {
            return Err(Error::Backing);
        }
        reader.check_sink(&Destination::new(ram))?;
        let aside = Destination::new(&ram.chunk_aside()?);
        let pending: BTreeMap<_, _> =
            reader.chunks().map(|chunk| (chunk, PageSet::EMPTY)).collect();
        let uffd = Uffd::with_moves()?;
        let stop = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)
            .map_err(|errno| Error::Host(errno.into()))?;
        let shared = Arc::new(Shared {
            uffd,
            ram: ram.clone(),
            source: Mutex::new(Some(Source { reader, aside, rule: None })),
            chunks: Mutex::new(Chunks { pending, failure: None }),
            stop,
            left: AtomicU64::new(0),
            reading: AtomicBool::new(false),
            faults: AtomicU64::new(0),
            ahead: AtomicU64::new(0),
            on_failure: OnceLock::new(),
        });
        shared.arm()?;
        let own = Arc::clone(&shared);
        let thread = thread::spawn("loader", STACK_SIZE, move || own.run(working_set));
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
        self.load_all(|_| true)
    }

    /// Loads what is left of these chunks.
    ///
    /// # Errors
    /// As for [`finish`](Self::finish).
    pub(crate) fn load_all(&self, wanted: impl Fn(u64) -> bool) -> Result<(), Error> {
        let pending: Vec<_> = self.shared.lock().pending.keys().copied().collect();
        for chunk in pending.into_iter().filter(|chunk| wanted(*chunk)) {
            self.shared.load(chunk)?;
        }
        match &self.shared.lock().failure {
            // What could not be loaded is not pending any more.
            Some(failure) => Err(Error::Failed(failure.clone())),
            None => Ok(()),
        }
    }

    /// Whether a chunk is being read, for which a thread may wait.
    pub(crate) fn is_reading(&self) -> bool {
        self.shared.reading.load(Ordering::Relaxed)
    }

    /// How much of guest memory is yet to be loaded, in whole chunks.
    pub(crate) fn pending(&self) -> Bytes {
        Bytes::new(self.shared.left.load(Ordering::Relaxed) * CHUNK.get())
    }

    /// How often a thread has waited for a chunk.
    pub(crate) fn faults(&self) -> u64 {
        self.shared.faults.load(Ordering::Relaxed)
    }

    /// How many chunks of the working set were loaded before they were touched.
    pub(crate) fn loaded_ahead(&self) -> u64 {
        self.shared.ahead.load(Ordering::Relaxed)
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

    /// Loads what is touched until it is stopped, and writes a record of that if there is to be one.
    fn run(&self, working_set: WorkingSet) {
        let (mut order, recorder) = match working_set {
            WorkingSet::Known(mut ahead) => {
                ahead.reverse();
                (Order { ahead, touched: None }, None)
            }
            WorkingSet::Recording(recorder) => {
                (Order { ahead: Vec::new(), touched: Some(Vec::new()) }, Some(recorder))
            }
        };
        let failure = match catch_unwind(AssertUnwindSafe(|| self.serve(&mut order))) {
            Ok(Ok(())) => return write(recorder, &order),
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

    /// Ends the VM for a chunk that cannot be loaded. A thread that touches it must neither wait for good nor see other
    /// contents.
    fn give_up(&self, chunk: u64, error: &Error) {
        let mut chunks = self.lock();
        self.report(&mut chunks, chain(error));
        chunks.pending.remove(&chunk);
        self.count(&chunks);
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

    fn serve(&self, order: &mut Order) -> Result<(), Error> {
        let mut faults = Vec::new();
        loop {
            let patience = if order.ahead.is_empty() { None } else { Some(&AT_ONCE) };
            let mut ready = [
                PollFd::new(&self.stop, PollFlags::IN),
                PollFd::from_borrowed_fd(self.uffd.as_fd(), PollFlags::IN),
            ];
            match poll(&mut ready, patience) {
                Err(Errno::INTR) => continue,
                Err(errno) => return Err(Error::Host(errno.into())),
                Ok(_) if !ready[0].revents().is_empty() => return Ok(()),
                // No thread waits.
                Ok(0) => self.load_next(order),
                Ok(_) => {}
            }
            self.uffd.read(&mut faults)?;
            for fault in faults.drain(..) {
                let offset = fault.address.saturating_sub(self.ram.host_address());
                let chunk = offset / CHUNK.get();
                self.faults.fetch_add(1, Ordering::Relaxed);
                if let Some(touched) = &mut order.touched
                    && self.is_pending(chunk)
                {
                    touched.push(chunk);
                }
                // An error has been reported; the VM ends.
                let _ = self.load(chunk);
            }
        }
    }

    /// Loads the next chunk of the working set. One that cannot be read is left as it is, and so are those after it: the
    /// guest may never touch them.
    fn load_next(&self, order: &mut Order) {
        let Some(chunk) = order.ahead.pop().filter(|chunk| self.is_pending(*chunk)) else { return };
        match self.load_unless(chunk, || self.is_pending(chunk)) {
            Ok(()) => {
                self.ahead.fetch_add(1, Ordering::Relaxed);
            }
            Err(error) => {
                say(&format!(
                    "memory of the snapshot is not read before it is touched any more: {}",
                    chain(&error)
                ));
                order.ahead.clear();
            }
        }
    }

    fn is_pending(&self, chunk: u64) -> bool {
        self.lock().pending.contains_key(&chunk)
    }

    /// Loads a chunk, unless it is loaded, and wakes those who wait for it. One that cannot be loaded ends the VM.
    fn load(&self, chunk: u64) -> Result<(), Error> {
        self.load_unless(chunk, || false)
    }

    /// As [`load`](Self::load), but the VM does not end where an error can be left.
    fn load_unless(&self, chunk: u64, is_left: impl FnOnce() -> bool) -> Result<(), Error> {
        let mut source = self.source.lock().unwrap_or_else(PoisonError::into_inner);
        let loaded = match source.as_mut().filter(|_| self.is_pending(chunk)) {
            Some(source) => self.read(source, chunk),
            None => Ok(()),
        };
        let settled = loaded.and_then(|()| self.settle(&self.addresses(chunk)));
        if let Err(error) = &settled
            && !is_left()
        {
            self.give_up(chunk, error);
        }
        if self.left.load(Ordering::Relaxed) == 0 {
            // Nothing is read any more: the file is closed, and the memory aside goes back.
            *source = None;
        }
        settled
    }

    /// Reads a chunk that is pending.
    fn read(&self, source: &mut Source, chunk: u64) -> Result<(), Error> {
        let Source { reader, aside, rule } = source;
        let (from, to) = (self.addresses(chunk), aside.host_address());
        // The pages become those of the guest, which a lender of tag storage has a rule for (mbind(2)).
        let wanted = Rule::at(from.start).map_err(Error::Host)?;
        if let Some(new) = wanted.filter(|_| wanted != *rule) {
            new.set(to..to + CHUNK.get()).map_err(Error::Host)?;
            *rule = wanted;
        }
        self.reading.store(true, Ordering::Relaxed);
        let read = reader.load_chunk(chunk, aside, 0);
        self.reading.store(false, Ordering::Relaxed);
        self.place(source, chunk, read)
    }

    /// Moves a chunk that was read to the guest.
    fn place(
        &self,
        source: &mut Source,
        chunk: u64,
        read: Result<(), snapshot::Error>,
    ) -> Result<(), Error> {
        let aside = &source.aside;
        let all = PageSet::of(0..pages_per_chunk(Bytes::new(page_size())));
        // What is not used must not be part of the next one.
        let empty = || aside.discard(&all).map_err(Error::Host);
        let mut chunks = self.lock();
        let Some(dropped) = chunks.pending.get(&chunk) else {
            // All of it was given back while it was read, and it does not matter whether it could be read.
            return empty();
        };
        if let Err(error) = read {
            empty()?;
            return Err(error.into());
        }
        aside.discard(dropped).map_err(Error::Host)?;
        // The move wakes those who wait, who may ask how much is left.
        chunks.pending.remove(&chunk);
        self.count(&chunks);
        // SAFETY: the memory aside is this one's own, and anonymous; guest memory may have any contents, and none is in
        // this chunk yet, as all touches of it are stopped.
        let moved = unsafe { self.uffd.move_in(&self.addresses(chunk), aside.host_address()) };
        moved.map_err(|source| {
            let _ = empty();
            Error::Move { chunk, source }
        })
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
        drop(chunks);
        // Else the next load closes the file.
        if let Ok(mut source) = self.source.try_lock()
            && self.left.load(Ordering::Relaxed) == 0
        {
            *source = None;
        }
    }
}

/// Writes a record. It is for another time: this VM has its end whatever becomes of it.
fn write(recorder: Option<Recorder>, order: &Order) {
    let touched = order.touched.as_deref().unwrap_or_default();
    if let Some(Err(error)) = recorder.map(|recorder| recorder.write(touched)) {
        say(&format!("the working set is not recorded: {}", chain(&error)));
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

    fn may_renew(&self) -> bool {
        false
    }
}

#[cfg(test)]
mod tests;
