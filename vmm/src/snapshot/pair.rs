//! The two files of a snapshot, together.

use std::path::Path;

use super::error::{Error, Fault, Part};
use super::id::SnapshotId;
use super::memory_file::{About, MemoryReader, MemoryView, Progress, Saved, save_memory};
use super::new_file::NewFile;
use super::state_file::{Kind, Manifest, State, StateFile};

/// A snapshot, read: its state, and its memory ready to be loaded.
#[derive(Debug)]
pub struct Pair {
    /// The state.
    pub state: State,
    /// The memory.
    pub memory: MemoryReader,
}

impl Pair {
    /// Opens a snapshot to restore it. Everything is checked but the contents of memory, which are when they are
    /// loaded.
    ///
    /// # Errors
    /// When a file is missing, damaged or from elsewhere, the two do not belong together, or it is a diff.
    pub fn open(state: &Path, memory: &Path) -> Result<Self, Error> {
        let pair = Self::open_any(state, memory)?;
        match pair.memory.about().base {
            Some(base) => Err(Error::new(memory, Fault::Diff { base })),
            None => Ok(pair),
        }
    }

    /// As [`open`](Self::open), a diff too.
    ///
    /// # Errors
    /// As for [`open`](Self::open).
    pub fn open_any(state: &Path, memory: &Path) -> Result<Self, Error> {
        let read = StateFile::read(state)?;
        let reader = MemoryReader::open(memory)?;
        let found = reader.about().id;
        if found != read.id {
            return Err(Error::new(memory, Fault::WrongPair { found, wanted: read.id }));
        }
        agree(&read.manifest, reader.about()).map_err(|fault| Error::new(memory, fault))?;
        Ok(Self { state: read, memory: reader })
    }
}

/// Checks that a manifest and a memory file describe the same memory.
fn agree(manifest: &Manifest, memory: &About) -> Result<(), Fault> {
    let (found, wanted) = (memory.size, manifest.memory_size());
    if found != wanted {
        return Err(Fault::MemorySize { found, wanted });
    }
    let (found, wanted) = (memory.page_size, manifest.page_size());
    if found != wanted {
        return Err(Fault::PageSize { found, wanted });
    }
    match (memory.tagged, manifest.mte) {
        (true, false) => return Err(Fault::Tagged),
        (false, true) => return Err(Fault::Untagged),
        _ => {}
    }
    match (manifest.kind, memory.base) {
        (Kind::Full, None) => Ok(()),
        (Kind::Diff { base }, Some(found)) if base == found => Ok(()),
        _ => {
            Err(Fault::malformed(Part::Header, "it builds on another snapshot than its state file"))
        }
    }
}

/// A snapshot that is made. Dropped before it is committed, nothing is left of it.
#[derive(Debug)]
pub struct NewPair {
    id: SnapshotId,
    state: NewFile,
    memory: NewFile,
    about: Option<About>,
}

impl NewPair {
    /// Creates both files, under temporary names in the directories of their own.
    ///
    /// # Errors
    /// When one cannot be made, or something that is no regular file has its name.
    pub fn create(state: &Path, memory: &Path) -> Result<Self, Error> {
        let id = SnapshotId::random().map_err(|error| Error::new(state, Fault::Random(error)))?;
        Self::create_as(id, state, memory)
    }

    /// As [`create`](Self::create), with an id that is known.
    pub(super) fn create_as(id: SnapshotId, state: &Path, memory: &Path) -> Result<Self, Error> {
        let (state, memory) = (NewFile::create(state)?, NewFile::create(memory)?);
        if state.has_same_name(&memory)? {
            return Err(state.error(Fault::SameFile));
        }
        Ok(Self { id, state, memory, about: None })
    }

    /// The id of the snapshot.
    pub fn id(&self) -> SnapshotId {
        self.id
    }

    /// Writes the memory, as a diff if it builds on another snapshot. It is called once.
    ///
    /// # Errors
    /// When memory cannot be read or the file not be written.
    pub fn save_memory(
        &mut self,
        view: &dyn MemoryView,
        base: Option<SnapshotId>,
        progress: Progress<'_>,
    ) -> Result<Saved, Error> {
        let about = About::of(view, self.id, base);
        let saved = save_memory(view, &about, self.memory.file(), progress)
            .map_err(|fault| self.memory.error(fault))?;
        self.about = Some(about);
        Ok(saved)
    }

    /// For memory that is written by other means.
    pub(super) fn memory_file(&mut self, about: About) -> &NewFile {
        self.about = Some(about);
        &self.memory
    }

    /// Writes the state and gives both files their names, the state file last: where it is, the snapshot is
    /// complete. It waits for the disk; the VM may run meanwhile.
    ///
    /// # Errors
    /// When the state makes no sense, or a file cannot be written. Both names are as before then.
    pub fn commit(mut self, state: &State) -> Result<(), Error> {
        let Some(about) = &self.about else {
            let reason = "memory was not saved".to_owned();
            return Err(self.memory.error(Fault::Unsavable { part: Part::Table, reason }));
        };
        if state.id != self.id {
            let fault = Fault::WrongPair { found: self.id, wanted: state.id };
            return Err(self.memory.error(fault));
        }
        agree(&state.manifest, about).map_err(|fault| self.memory.error(fault))?;
        StateFile::write_to(&self.state, state)?;
        self.memory.sync()?;
        self.memory.publish()?;
        self.state.publish()?;
        self.state.keep();
        self.memory.keep();
        Ok(())
    }
}

#[cfg(test)]
mod tests;
