//! The host's side of a disk: a raw image or a block device, served by a thread of its own.
//!
//! ```text
//! doorbell -> Transport::serve (collects) -> Block::take -> DiskFile::perform -> Block::complete -> interrupt
//!             `---- transport locked ----'                  `-- no lock held -'  `-- locked --'
//! ```

mod events;
mod file;
mod io;

use std::path::Path;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use devices::ports::Doorbells;
use devices::virtio::block::{Block, Counters, InFlight};
use serde_json::{Value, json};

use self::file::DiskFile;
use super::queues::{QueueDoorbells, QueueEvents};
use super::rate_limiter::SharedLimiter;
use crate::spec::{DiskSpec, RateLimiterChange};
pub use events::BlockEvents;
pub use file::Error;

/// The file in use. Clones are one place, in which another may be put.
#[derive(Clone, Debug)]
pub struct DiskSlot(Arc<Mutex<InUse>>);

#[derive(Debug)]
struct InUse {
    file: Arc<DiskFile>,
    /// A size in sectors that the device does not have yet.
    resized: Option<u64>,
}

impl DiskSlot {
    fn new(file: DiskFile) -> Self {
        Self(Arc::new(Mutex::new(InUse { file: Arc::new(file), resized: None })))
    }

    fn file(&self) -> Arc<DiskFile> {
        Arc::clone(&self.lock().file)
    }

    fn replace(&self, file: DiskFile) {
        let mut slot = self.lock();
        slot.resized = Some(file.disk.sectors);
        slot.file = Arc::new(file);
    }

    fn resize(&self, sectors: u64) {
        self.lock().resized = Some(sectors);
    }

    /// The size that the device is to have, once.
    fn take_size(&self) -> Option<u64> {
        self.lock().resized.take()
    }

    fn lock(&self) -> MutexGuard<'_, InUse> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A disk that has been opened, before it is in a machine.
pub struct Opened {
    spec: DiskSpec,
    slot: DiskSlot,
    limiter: SharedLimiter,
}

impl Opened {
    /// Opens and locks the file of a disk.
    ///
    /// # Errors
    /// When it cannot be had, or is no disk.
    pub fn new(spec: &DiskSpec) -> Result<Self, Error> {
        let slot = DiskSlot::new(DiskFile::open(spec)?);
        let limiter = SharedLimiter::new(spec.rate_limiter)
            .map_err(|source| Error::Timer { path: spec.path.clone(), source })?;
        Ok(Self { spec: spec.clone(), slot, limiter })
    }

    /// The device of this disk.
    pub fn device(&self) -> Block {
        Block::new(self.slot.file().disk, &self.spec.id, Box::new(self.limiter.clone()))
    }

    /// What controls the disk whose queue this is.
    pub fn control(self, queues: &mut QueueEvents<Block>) -> Control {
        let Self { spec, slot, limiter } = self;
        let (counters, in_flight) = queues.with(|transport| {
            let device = transport.device();
            (device.counters(), device.in_flight())
        });
        Control { spec, slot, limiter, doorbells: queues.doorbells(), counters, in_flight }
    }
}

/// Controls a disk of a machine, without its lock: a turn of the device may wait for tag storage, and a reset for a
/// slow disk.
pub struct Control {
    spec: DiskSpec,
    slot: DiskSlot,
    limiter: SharedLimiter,
    doorbells: QueueDoorbells,
    counters: Arc<Counters>,
    in_flight: InFlight,
}

impl Control {
    /// Its name.
    pub fn id(&self) -> &str {
        &self.spec.id
    }

    /// What the disk is made of, as it is now.
    pub fn spec(&self) -> &DiskSpec {
        &self.spec
    }

    /// Takes the size of the file anew, or that of another file, which replaces it. The disk's thread notifies the
    /// guest of the change, if the VM is not paused. What is under way is done to the file as it was.
    ///
    /// # Errors
    /// When the file cannot be had, or is no disk. Nothing is changed then.
    pub fn refresh(&mut self, path: &Path) -> Result<(), Error> {
        let current = self.slot.file();
        if current.is_at(path) {
            self.slot.resize(current.sectors()?);
        } else {
            let spec = DiskSpec { path: path.to_owned(), ..self.spec.clone() };
            self.slot.replace(DiskFile::open(&spec)?);
            self.spec = spec;
        }
        self.doorbells.signal(0);
        Ok(())
    }

    /// The guest does not run again: nothing waits for what the disk has under way.
    pub fn abandon(&self) {
        self.in_flight.abandon();
    }

    /// Changes its limits.
    pub fn limit(&mut self, change: RateLimiterChange) {
        self.spec.rate_limiter.update(change);
        self.limiter.update(change);
    }

    /// Reads its counters.
    pub fn metrics(counters: &Counters, limiter: &SharedLimiter) -> Value {
        let read = |counter: &std::sync::atomic::AtomicU64| counter.load(Ordering::Relaxed);
        json!({
            "reads_total": read(&counters.reads),
            "read_bytes": read(&counters.read_bytes),
            "writes_total": read(&counters.writes),
            "written_bytes": read(&counters.written_bytes),
            "flushes_total": read(&counters.flushes),
            "discards_total": read(&counters.discards),
            "discarded_bytes": read(&counters.discarded_bytes),
            "failures_total": read(&counters.failures),
            "refusals_total": read(&counters.refusals),
            "throttled_total": limiter.throttled(),
        })
    }

    /// What reads its counters.
    pub fn reader(&self) -> Box<dyn Fn() -> Value> {
        let (counters, limiter) = (Arc::clone(&self.counters), self.limiter.clone());
        Box::new(move || Self::metrics(&counters, &limiter))
    }
}

#[cfg(test)]
mod tests;
