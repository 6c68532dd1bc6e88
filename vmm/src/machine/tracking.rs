//! What has changed of guest memory since a snapshot, for the next one to have only that.
//!
//! Nothing is tracked before there is a snapshot to build on. That is the one that a VM was restored from, or the first
//! that is made of it: until then its guest runs at full speed, in huge pages.

use thiserror::Error;

use super::contents::changed;
use super::lazy::{self, LazyMemory};
use super::{Board, Error, Machine, SaveStateError};
use crate::hypervisor;
use crate::memory::Changes;
use crate::snapshot::SnapshotId;

/// Of a machine that tracks changes.
#[derive(Debug)]
pub(super) struct Tracking {
    /// The snapshot that they are since.
    base: Option<SnapshotId>,
    /// Whether they are recorded already.
    records: bool,
    /// What has been saved and is not confirmed. Dropped, its changes are changes again.
    unconfirmed: Option<Unconfirmed>,
}

#[derive(Debug)]
struct Unconfirmed {
    snapshot: SnapshotId,
    changes: Changes,
}

impl Tracking {
    /// Since this snapshot, or since the first that is made.
    pub(super) fn since(base: Option<SnapshotId>) -> Self {
        Self { base, records: base.is_some(), unconfirmed: None }
    }
}

/// The snapshot is not the last that was made, or is confirmed already.
#[derive(Clone, Copy, Debug, Eq, Error, PartialEq)]
#[error(
    "it is not the VM's last snapshot, or was not provisional: the next Diff builds on the one that was confirmed \
     before, and has all changes since"
)]
pub struct NotProvisional;

/// Why there is nothing that a diff could build on.
#[derive(Clone, Copy, Debug, Eq, Error, PartialEq)]
pub enum NoBase {
    /// The machine does not track changes.
    #[error(
        "it is not recorded which pages of the guest's memory change: make a Full snapshot, or run the VM with \
         --track-dirty-pages (\"track_dirty_pages\" in the API) next time"
    )]
    NotTracked,
    /// It has not been saved.
    #[error(
        "there is no snapshot yet that a Diff could build on: make a Full one first, and Diff ones after it"
    )]
    NeverSaved,
}

impl Board {
    /// Tracks what changes from now on. Guest memory is that of this snapshot.
    ///
    /// # Errors
    /// When the hypervisor cannot log what vCPUs write.
    pub fn track_since(mut self, snapshot: SnapshotId) -> Result<Self, Error> {
        // Tags are loaded: KVM_ARM_MTE_COPY_TAGS would set none while writes are logged.
        self.vm.log_writes()?;
        self.vm.ram().track_changes();
        self.base = Some(snapshot);
        Ok(self)
    }
}

impl Machine {
    /// The snapshot that a diff would build on.
    ///
    /// # Errors
    /// When there is none.
    pub fn base(&self) -> Result<SnapshotId, NoBase> {
        let tracking = self.tracking.as_ref().ok_or(NoBase::NotTracked)?;
        tracking.base.ok_or(NoBase::NeverSaved)
    }

    /// Takes what has changed since the [`base`](Self::base), of a machine that is saved; `None` if it tracks nothing. A
    /// snapshot that is not confirmed is not confirmed any more: what it has is taken again.
    ///
    /// # Errors
    /// When the hypervisor does not give its log. No change is lost.
    pub(crate) fn take_changes(&mut self) -> Result<Option<Changes>, hypervisor::Error> {
        let Some(tracking) = &mut self.tracking else { return Ok(None) };
        tracking.unconfirmed = None;
        let ram = self.vm.ram();
        // For the first snapshot.
        if !tracking.records {
            self.vm.log_writes()?;
            ram.track_changes();
            tracking.records = true;
        }
        self.vm.collect_writes()?;
        Ok(ram.take_changes())
    }

    /// Loads what a snapshot is to have, of memory that is loaded as it is touched: all of it, or what has changed.
    ///
    /// # Errors
    /// When the snapshot that it was restored from cannot be read, or there is no tag storage for a part of it. The VM
    /// continues.
    pub(crate) fn load_memory(&self, changes: Option<&Changes>) -> Result<(), SaveStateError> {
        let Some(lazy) = &self.lazy else { return Ok(()) };
        match changes {
            Some(changes) => load_changed(lazy, changes)?,
            None => lazy.finish()?,
        }
        Ok(())
    }

    /// The machine has been saved with these changes, and has not run since. Until that is [confirmed](Self::confirm),
    /// diffs build on the snapshot before.
    pub(crate) fn saved_as(&mut self, snapshot: SnapshotId, changes: Option<Changes>) {
        if let (Some(tracking), Some(changes)) = (&mut self.tracking, changes) {
            tracking.unconfirmed = Some(Unconfirmed { snapshot, changes });
        }
    }

    /// The next diff builds on the last snapshot, which is this one.
    ///
    /// # Errors
    /// When it is another. Nothing has changed then.
    pub(crate) fn confirm(&mut self, snapshot: SnapshotId) -> Result<(), NotProvisional> {
        let Some(tracking) = &mut self.tracking else { return Ok(()) };
        match tracking.unconfirmed.take_if(|last| last.snapshot == snapshot) {
            Some(last) => {
                last.changes.saved();
                tracking.base = Some(snapshot);
                Ok(())
            }
            None => Err(NotProvisional),
        }
    }
}

/// Loads the chunks with a page that has changed. One that a device has failed to write to is marked, and may be
/// untouched: not loaded, it would be a hole in the diff.
pub(super) fn load_changed(lazy: &LazyMemory, changes: &Changes) -> Result<(), lazy::Error> {
    lazy.load_all(|chunk| !changed(changes, chunk).is_empty())
}

#[cfg(test)]
mod tests;
