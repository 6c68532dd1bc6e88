//! The VM's side: a template that another process holds, checked and mapped.

use std::io;
use std::ops::Range;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::time::Duration;

use thiserror::Error;

use super::answer::{Answer, Fault, HolderError, PATIENCE, ask};
use super::extents::extents;
use super::identity::{Identity, LENGTH};
use crate::memory::{self, GuestRam, MOST_EXTENTS, TemplateFile, TemplatePart};
use crate::registry;
use crate::snapshot::{MemoryReader, SnapshotId};

/// Why a VM has no template.
#[derive(Debug, Error)]
pub enum Error {
    /// There is no place for its socket.
    #[error("there is no place for the sockets of templates")]
    Place(#[source] registry::Error),
    /// No process holds it.
    #[error(
        "no process holds a template of this snapshot at {path:?}: start one with `tessera template DIR`, or have \
         `tesseractl clone DIR` do so; or leave out --shared (\"shared\" in the API)"
    )]
    Absent {
        /// Where it would be.
        path: PathBuf,
        /// The system's reason.
        #[source]
        source: io::Error,
    },
    /// The process that listens there gives none.
    #[error(
        "the process at {path:?} gives no template of this snapshot: end it, or leave out --shared (\"shared\" in the \
         API)"
    )]
    Holder {
        /// Its socket.
        path: PathBuf,
        /// Why.
        #[source]
        source: HolderError,
    },
    /// It holds something else.
    #[error(
        "the process at {path:?} holds a template of other memory (snapshot {found}): the files of snapshot {wanted} \
         were replaced since it started, perhaps; end it"
    )]
    Other {
        /// Its socket.
        path: PathBuf,
        /// Of which snapshot its template is.
        found: SnapshotId,
        /// The snapshot that is restored.
        wanted: SnapshotId,
    },
}

/// The template of a snapshot, to be mapped. Its holder sees this VM as long as it is there.
#[derive(Debug)]
pub struct Template {
    file: TemplateFile,
    extents: Vec<Range<u64>>,
    connection: OwnedFd,
}

/// The connection of a VM to the holder, which tells that it lives.
#[derive(Debug)]
pub struct Connection {
    pub(super) _socket: OwnedFd,
}

impl Template {
    /// Maps it into memory that was not touched.
    ///
    /// # Errors
    /// When the host does not map it.
    pub(crate) fn map(self, ram: &GuestRam) -> Result<Connection, memory::Error> {
        let part = |at: Range<u64>| TemplatePart { offset: at.start, at };
        let parts: Vec<_> = self.extents.into_iter().map(part).collect();
        ram.share(&self.file, &parts)?;
        Ok(Connection { _socket: self.connection })
    }
}

/// Where the holder of a snapshot's template listens.
///
/// # Errors
/// When there is no place for such sockets.
pub(super) fn socket_of(id: SnapshotId) -> Result<PathBuf, Error> {
    registry::templates().map(|folder| folder.join(id.to_string())).map_err(Error::Place)
}

/// Waits until a process that holds the template of a memory file, or is about to, gives it: so long, and a minute at
/// most. It holds the template at least as long as the connection is there.
///
/// # Errors
/// As for a VM that would have it: [`Error::Absent`] if there is no such process.
pub fn wait_for(reader: &MemoryReader, patience: Duration) -> Result<Connection, Error> {
    let socket = socket_of(reader.about().id)?;
    let template = connect_at(&socket, reader, patience.min(PATIENCE))?;
    Ok(Connection { _socket: template.connection })
}

/// Where the messages of a holder are that was started in the background.
///
/// # Errors
/// When there is no place for them.
pub fn log_of(id: SnapshotId) -> Result<PathBuf, Error> {
    socket_of(id).map(|path| path.with_extension("log"))
}

/// Gets the template of a memory file from its holder.
///
/// # Errors
/// When there is no holder, or what it gives is not exactly that.
pub(crate) fn connect(reader: &MemoryReader) -> Result<Template, Error> {
    connect_at(&socket_of(reader.about().id)?, reader, PATIENCE)
}

pub(super) fn connect_at(
    path: &Path,
    reader: &MemoryReader,
    patience: Duration,
) -> Result<Template, Error> {
    let at = || path.to_owned();
    // One byte more, so that a longer message is one.
    let mut buffer = [0; LENGTH + 1];
    let holder = |source| Error::Holder { path: at(), source };
    let answer = ask(path, &mut buffer, patience).map_err(|fault| match fault {
        Fault::Absent(source) => Error::Absent { path: at(), source },
        Fault::Holder(error) => holder(error),
    })?;
    let Answer { length, fd, connection } = answer;
    let found = Identity::decode(buffer.get(..length).unwrap_or_default());
    let found = found.ok_or_else(|| holder(HolderError::Malformed))?;
    let wanted = Identity::of(reader);
    if found != wanted {
        return Err(Error::Other { path: at(), found: found.id, wanted: wanted.id });
    }
    let file =
        TemplateFile::new(fd, wanted.size).map_err(|error| holder(HolderError::File(error)))?;
    Ok(Template { file, extents: extents(reader.chunks(), MOST_EXTENTS), connection })
}
