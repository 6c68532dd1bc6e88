//! Guest memory that is loaded from a snapshot when it is touched, a chunk at a time.
//!
//! A chunk of anonymous memory is filled aside, data and tags, and its pages are moved to the guest; one of a memfd is
//! filled by another mapping, as touches by the guest's are stopped: no vCPU sees a chunk half loaded. After
//! that the kernel provides its pages as in any other memory. Chunks of which the snapshot has nothing are not watched
//! at all. Chunks that the guest touched first the last time may be loaded before they are touched, as long as no thread
//! waits for another one.
//!
//! # References
//! Linux Documentation/admin-guide/mm/userfaultfd.rst, UFFDIO_MOVE
#![allow(unsafe_code)]

mod discards;
mod error;
mod inbox;
mod serve;
mod staging;
mod tag_slots;

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::ops::Range;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::thread::JoinHandle;

use arch::layout::CHUNK;
use arch::units::Bytes;
use rustix::event::{EventfdFlags, eventfd};

use discards::Discards;
use staging::{Staging, whole_chunk};
use tag_slots::TagSlots;

use super::contents::Destination;
use crate::error::{chain, say};
use crate::memory::{Backing, DiscardHooks, GuestRam};
use crate::snapshot::{MemoryReader, PageSet, WorkingSet};
use crate::sys::thread::{self, Role};
use crate::sys::uffd::{self, Uffd};
use crate::tag_storage::{ChunkIndex, TagReservation};

pub(super) use error::Error;

/// Enough for reading a file into memory; only what is touched of it is backed by memory.
const STACK_SIZE: usize = 256 << 10;

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
    /// Where tag storage is reserved on demand: a chunk has its slot before it has a page.
    slots: Option<TagSlots>,
    stop: OwnedFd,
    /// How many chunks are yet to be loaded.
    left: AtomicU64,
    /// How often a thread has waited for a chunk.
    faults: AtomicU64,
    /// How many chunks were loaded before they were touched.
    ahead: AtomicU64,
    on_failure: OnceLock<OnFailure>,
}

/// The file, and where a chunk of it is put together.
struct Source {
    reader: MemoryReader,
    staging: Staging,
}

/// The chunks that are yet to be loaded.
#[derive(Default)]
struct Chunks {
    /// Each with the pages that the guest has given back since, before it is read or meanwhile.
    pending: BTreeMap<u64, PageSet>,
    /// The one that is read at present. It stays pending until it is, and so no guest touches it meanwhile.
    reading: Option<u64>,
    /// Those that are loaded and that the host has not let go: a touch of a page that was given back waits.
    watched: BTreeSet<u64>,
    failure: Option<String>,
}

/// What has become of a chunk that is loaded.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Left {
    /// The kernel provides its pages.
    ToTheKernel,
    /// It has all its pages, and touches of those that go are stopped.
    Watched,
}

/// Loads guest memory as it is touched. Dropped, it ends.
pub(crate) struct LazyMemory {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

impl LazyMemory {
    /// Loads this memory, which nothing has touched, from a snapshot as it is touched, and a working set that is known
    /// before. Tag storage that is reserved on demand is reserved for a chunk before it is loaded.
    ///
    /// # Errors
    /// When the host cannot, or the snapshot is of other memory.
    pub(crate) fn start(
        ram: &GuestRam,
        reader: MemoryReader,
        working_set: WorkingSet,
        tags: Option<&TagReservation>,
    ) -> Result<Self, Error> {
        let staging = Staging::new(ram)?;
        reader.check_sink(&Destination::new(ram))?;
        let pending: BTreeMap<_, _> =
            reader.chunks().map(|chunk| (chunk, PageSet::EMPTY)).collect();
        let uffd = staging.uffd()?;
        let stop = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)
            .map_err(|errno| Error::Host(errno.into()))?;
        let slots = TagSlots::new(tags, pending.keys().copied())?;
        let shared = Arc::new(Shared {
            uffd,
            slots,
            ram: ram.clone(),
            source: Mutex::new(Some(Source { reader, staging })),
            chunks: Mutex::new(Chunks { pending, ..Chunks::default() }),
            stop,
            left: AtomicU64::new(0),
            faults: AtomicU64::new(0),
            ahead: AtomicU64::new(0),
            on_failure: OnceLock::new(),
        });
        shared.arm()?;
        let own = Arc::clone(&shared);
        let thread =
            thread::spawn(Role::Loader, "loader", STACK_SIZE, move || own.run(working_set));
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
    /// When a chunk cannot be loaded. It is left as it is: the VM continues, until its guest touches that chunk.
    pub(crate) fn finish(&self) -> Result<(), Error> {
        self.load_all(|_| true)
    }

    /// Loads what is left of these chunks.
    ///
    /// # Errors
    /// As for [`finish`](Self::finish); and when there is no tag storage for one, after which the VM continues.
    pub(crate) fn load_all(&self, wanted: impl Fn(u64) -> bool) -> Result<(), Error> {
        let pending: Vec<_> = self.shared.lock().pending.keys().copied().collect();
        for chunk in pending.into_iter().filter(|chunk| wanted(*chunk)) {
            if let Some(slots) = &self.shared.slots {
                slots.reserve_to_save(chunk)?;
            }
            self.shared.load_unless(chunk, || self.shared.is_pending(chunk))?;
        }
        match &self.shared.lock().failure {
            // What the guest touched and could not be loaded is not pending any more.
            Some(failure) => Err(Error::Failed(failure.clone())),
            None => Ok(()),
        }
    }

    /// Whether a chunk is being read, for which a thread may wait.
    pub(crate) fn is_reading(&self) -> bool {
        self.shared.lock().reading.is_some()
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

    /// What keeps memory that the guest gives back from being loaded afterwards, and then does what `then` does.
    pub(crate) fn discard_hooks(&self, then: Box<dyn DiscardHooks>) -> Box<dyn DiscardHooks> {
        Box::new(Discards { shared: Arc::clone(&self.shared), then })
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
                        self.watch(&range).map_err(uffd::Error::Register)?;
                    }
                }
            }
        }
        next.map_or(Ok(()), |range| self.watch(&range)).map_err(uffd::Error::Register)
    }

    fn watch(&self, range: &Range<u64>) -> io::Result<()> {
        match self.ram.backing() {
            Backing::Memfd => self.uffd.arm_file(range),
            _ => self.uffd.arm(range),
        }
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
        if self.uffd.poison(&range, page_size()).is_err() {
            // The VM ends; it must not wait for this chunk until then.
            let _ = self.uffd.disarm(&range);
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
        if !self.may_load(chunk) {
            return Ok(());
        }
        // It may have no page in the end where some of it was given back before.
        let is_empty = self.lock().pending.get(&chunk).is_none_or(|dropped| !dropped.is_empty());
        let loaded = source.as_mut().map_or(Ok(()), |source| self.read(source, chunk));
        let settled = loaded.and_then(|()| self.settle(chunk));
        match &settled {
            Ok(left) => self.loaded(chunk, *left, is_empty),
            Err(error) if !is_left() => self.give_up(chunk, error),
            Err(_) => {}
        }
        if self.left.load(Ordering::Relaxed) == 0 {
            // Nothing is read any more: the file is closed, and the memory aside goes back.
            *source = None;
        }
        settled.map(|_| ())
    }

    /// Reads a chunk, unless it is loaded.
    fn read(&self, source: &mut Source, chunk: u64) -> Result<(), Error> {
        let Source { reader, staging } = source;
        {
            let mut chunks = self.lock();
            if !chunks.pending.contains_key(&chunk) {
                return Ok(());
            }
            chunks.reading = Some(chunk);
        }
        if let Err(error) = staging.turn_to(chunk, &self.addresses(chunk)) {
            // Nothing was read, and a window may still show another chunk, which is the guest's: nothing is dropped.
            let is_wanted = self.end_read(&mut self.lock(), chunk) != whole_chunk();
            return if is_wanted { Err(Error::Host(error)) } else { Ok(()) };
        }
        let read = staging.load(reader, chunk);
        self.place(staging, chunk, read)
    }

    /// Ends the reading of a chunk, and returns its pages that have been given back. One of which all have been need not
    /// be readable, and is pending no more.
    fn end_read(&self, chunks: &mut Chunks, chunk: u64) -> PageSet {
        chunks.reading = None;
        let all = whole_chunk();
        let dropped = chunks.pending.get(&chunk).copied().unwrap_or(all);
        if dropped == all {
            chunks.pending.remove(&chunk);
            self.count(chunks);
        }
        dropped
    }

    /// Gives the guest a chunk that was read, for which the staging was made ready.
    fn place(
        &self,
        staging: &mut Staging,
        chunk: u64,
        read: Result<(), Error>,
    ) -> Result<(), Error> {
        let mut chunks = self.lock();
        // What is not used must not be part of the next one, nor of the guest's memory.
        let all = whole_chunk();
        let dropped = self.end_read(&mut chunks, chunk);
        if dropped == all {
            return staging.drop_pages(&all).map_err(Error::Host);
        }
        if let Err(error) = read {
            staging.drop_pages(&all).map_err(Error::Host)?;
            return Err(error);
        }
        staging.drop_pages(&dropped).map_err(Error::Host)?;
        // A move wakes those who wait, who may ask how much is left.
        chunks.pending.remove(&chunk);
        self.count(&chunks);
        let Some(from) = staging.to_move() else { return Ok(()) };
        // SAFETY: the memory aside is this one's own, and anonymous; guest memory may have any contents, and none is in
        // this chunk yet, as all touches of it are stopped.
        match unsafe { self.uffd.move_in(&self.addresses(chunk), from) } {
            Ok(()) => {
                staging.moved();
                Ok(())
            }
            Err(source) => {
                // Where this fails, it is tried again before the next chunk.
                let _ = staging.drop_pages(&all);
                Err(Error::Move { chunk, source })
            }
        }
    }

    /// Whether a chunk may be loaded now, and touches of it are stopped here still.
    fn may_load(&self, chunk: u64) -> bool {
        let Some(slots) = &self.slots else { return true };
        slots.reservation.may_load(ChunkIndex(chunk)) || self.lock().watched.contains(&chunk)
    }

    /// A chunk is loaded, and has been left to the kernel or not. `is_empty`: it may have no page.
    fn loaded(&self, chunk: u64, left: Left, is_empty: bool) {
        let Some(slots) = &self.slots else { return };
        match left {
            Left::ToTheKernel => self.lock().watched.remove(&chunk),
            Left::Watched => self.lock().watched.insert(chunk),
        };
        slots.reservation.loaded(ChunkIndex(chunk), is_empty);
    }

    /// Leaves a chunk to the kernel.
    fn settle(&self, chunk: u64) -> Result<Left, Error> {
        let range = self.addresses(chunk);
        if self.uffd.disarm(&range).is_ok() {
            return Ok(Left::ToTheKernel);
        }
        // With as many mappings as a process can have, one more cannot be made: then it stays watched.
        match self.provide(chunk, &range) {
            Ok(()) => Ok(Left::Watched),
            Err(source) => Err(uffd::Error::Register(source).into()),
        }
    }

    /// Gives a chunk that stays watched all its pages.
    fn provide(&self, chunk: u64, range: &Range<u64>) -> io::Result<()> {
        if self.ram.backing() != Backing::Memfd {
            return self.uffd.fill(range, page_size());
        }
        self.ram.allocate(chunk * CHUNK.get(), CHUNK.get())?;
        self.uffd.map_pages(range, page_size())
    }

    /// Leaves to the kernel what is stopped without contents to come.
    fn release_empty(&self, chunks: &Chunks) {
        let Some(slots) = &self.slots else { return };
        for chunk in 0..self.ram.range().size.get() / CHUNK.get() {
            let is_stopped = slots.reservation.is_unloaded(ChunkIndex(chunk));
            if is_stopped && !chunks.pending.contains_key(&chunk) {
                let _ = self.uffd.disarm(&self.addresses(chunk));
            }
        }
    }

    /// Leaves all memory to the kernel.
    fn release(&self) {
        for chunk in self.lock().pending.keys() {
            // Whatever is left watched is woken when the descriptor is closed.
            let _ = self.uffd.disarm(&self.addresses(*chunk));
        }
    }
}

fn page_size() -> u64 {
    rustix::param::page_size() as u64
}

#[cfg(test)]
mod tests;
