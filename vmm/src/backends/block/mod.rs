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
use std::sync::{Arc, Mutex, PoisonError};

use devices::virtio::block::{Block, Counters};
use serde_json::{Value, json};

use self::file::DiskFile;
use super::queues::Shared;
use super::rate_limiter::SharedLimiter;
use crate::spec::{DiskSpec, RateLimiterChange};
pub use events::BlockEvents;
pub use file::Error;

/// The file in use. Clones are one place, in which another may be put.
#[derive(Clone, Debug)]
pub struct DiskSlot(Arc<Mutex<Arc<DiskFile>>>);

impl DiskSlot {
    fn file(&self) -> Arc<DiskFile> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn replace(&self, file: DiskFile) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Arc::new(file);
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
        let slot = DiskSlot(Arc::new(Mutex::new(Arc::new(DiskFile::open(spec)?))));
        let limiter = SharedLimiter::new(spec.rate_limiter)
            .map_err(|source| Error::Timer { path: spec.path.clone(), source })?;
        Ok(Self { spec: spec.clone(), slot, limiter })
    }

    /// The device of this disk.
    pub fn device(&self) -> Block {
        Block::new(self.slot.file().disk, &self.spec.id, Box::new(self.limiter.clone()))
    }

    /// What controls the disk.
    pub fn control(self, device: Shared<Block>, counters: Arc<Counters>) -> Control {
        let Self { spec, slot, limiter } = self;
        Control { spec, slot, limiter, device, counters }
    }
}

/// Controls a disk of a machine.
pub struct Control {
    spec: DiskSpec,
    slot: DiskSlot,
    limiter: SharedLimiter,
    device: Shared<Block>,
    counters: Arc<Counters>,
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

    /// Takes the size of the file anew, or that of another file, which replaces it. The guest is told of the
    /// change. What is under way is done to the file as it was.
    ///
    /// # Errors
    /// When the file cannot be had, or is no disk. Nothing is changed then.
    pub fn refresh(&mut self, path: &Path) -> Result<(), Error> {
        let current = self.slot.file();
        let sectors = if current.is_at(path) {
            current.sectors()?
        } else {
            let spec = DiskSpec { path: path.to_owned(), ..self.spec.clone() };
            let file = DiskFile::open(&spec)?;
            let sectors = file.disk.sectors;
            self.slot.replace(file);
            self.spec = spec;
            sectors
        };
        let mut transport = self.device.lock().unwrap_or_else(PoisonError::into_inner);
        transport.device_mut().resize(sectors);
        transport.config_changed();
        Ok(())
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

    /// What serves the disk.
    pub(super) fn parts(&self) -> (DiskSlot, SharedLimiter) {
        (self.slot.clone(), self.limiter.clone())
    }
}

#[cfg(test)]
mod tests;
