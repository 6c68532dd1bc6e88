//! Boot images: kernel and initrd as they are loaded, held once for all VMs that boot them.

use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::time::Duration;

use arch::units::Bytes;
use thiserror::Error;

use super::answer::{Answer, Fault, HolderError, PATIENCE, ask};
use super::boot_files::{BootFiles, LENGTH, Message};
use super::client::Connection;
use crate::exit_status::ExitStatus;
use crate::memory::{BootImage, GuestRam, LoadError, Loaded, make_boot_image};
use crate::registry;

/// Why a VM has no boot image, or why there is none.
#[derive(Debug, Error)]
pub enum BootError {
    /// A file cannot be used.
    #[error(transparent)]
    Load(#[from] LoadError),
    /// A file cannot be looked at.
    #[error("cannot look at {}", path.display())]
    Status {
        /// The file.
        path: PathBuf,
        /// The system's reason.
        #[source]
        source: io::Error,
    },
    /// There is no place for its socket.
    #[error("there is no place for the sockets of boot images")]
    Place(#[source] registry::Error),
    /// A file has changed while it was read.
    #[error("kernel or initrd has changed while it was read: try again when it is all there")]
    Changed,
    /// No process holds it.
    #[error(
        "no process holds a boot image of these files as they are now, at {path:?}: start one with `tessera template \
         --kernel FILE`, and --initrd FILE if there is one; or leave out --boot-image"
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
        "the process at {path:?} gives no boot image of these files: end it, or leave out --boot-image"
    )]
    Holder {
        /// Its socket.
        path: PathBuf,
        /// Why.
        #[source]
        source: HolderError,
    },
    /// It holds something else.
    #[error("the process at {0:?} holds a boot image of other files: end it")]
    Other(PathBuf),
}

impl BootError {
    /// The status that the process ends with.
    pub fn status(&self) -> ExitStatus {
        match self {
            Self::Load(error) => error.status(),
            Self::Status { source, .. } => ExitStatus::for_input(source.kind()),
            Self::Place(_) => ExitStatus::CannotCreate,
            _ => ExitStatus::Unavailable,
        }
    }
}

/// A boot image as its holder has it.
pub(super) struct HeldBootImage {
    pub(super) socket: PathBuf,
    files: BootFiles,
}

impl HeldBootImage {
    /// That of these files, which are there.
    ///
    /// # Errors
    /// When they are not, or there is no place for its socket.
    pub(super) fn of(kernel: &Path, initrd: Option<&Path>) -> Result<Self, BootError> {
        let files = BootFiles::of(kernel, initrd)?;
        Ok(Self { socket: files.socket()?, files })
    }

    /// Loads the files. Returns the message for its clients, the file that they map, and how much that is.
    ///
    /// # Errors
    /// When they cannot be loaded, or have changed.
    pub(super) fn load(
        &self,
        kernel: &Path,
        initrd: Option<&Path>,
    ) -> Result<([u8; LENGTH], OwnedFd, Bytes), BootError> {
        self.files.settle();
        let (file, parts) = make_boot_image(kernel, initrd)?;
        if BootFiles::of(kernel, initrd)? != self.files {
            return Err(BootError::Changed);
        }
        let message = Message { files: self.files, parts };
        let size = parts.kernel.checked_add(parts.initrd.unwrap_or(Bytes::ZERO));
        Ok((message.encode(), file, size.unwrap_or(parts.size)))
    }
}

/// The boot image of a VM. Its holder sees this VM as long as it is there.
#[derive(Debug)]
pub struct SharedBootImage {
    image: BootImage,
    connection: OwnedFd,
}

impl SharedBootImage {
    /// Gets that of these files from its holder.
    ///
    /// # Errors
    /// When there is no holder, or what it gives is not exactly that.
    pub(crate) fn connect(kernel: &Path, initrd: Option<&Path>) -> Result<Self, BootError> {
        let files = BootFiles::of(kernel, initrd)?;
        Self::connect_at(&files.socket()?, &files, PATIENCE)
    }

    pub(super) fn connect_at(
        path: &Path,
        files: &BootFiles,
        patience: Duration,
    ) -> Result<Self, BootError> {
        let at = || path.to_owned();
        // One byte more, so that a longer message is one.
        let mut buffer = [0; LENGTH + 1];
        let holder = |source| BootError::Holder { path: at(), source };
        let answer = ask(path, &mut buffer, patience).map_err(|fault| match fault {
            Fault::Absent(source) => BootError::Absent { path: at(), source },
            Fault::Holder(error) => holder(error),
        })?;
        let Answer { length, fd, connection } = answer;
        let found = Message::decode(buffer.get(..length).unwrap_or_default());
        let found = found.ok_or_else(|| holder(HolderError::Malformed))?;
        if found.files != *files {
            return Err(BootError::Other(at()));
        }
        let image =
            BootImage::new(fd, found.parts).map_err(|error| holder(HolderError::File(error)))?;
        Ok(Self { image, connection })
    }

    /// Maps it into memory that was not touched. `fdt` bytes are set aside for the device tree.
    ///
    /// # Errors
    /// When it does not fit, or the host does not map it.
    pub(crate) fn load(
        self,
        ram: &GuestRam,
        kernel: &Path,
        fdt: Bytes,
    ) -> Result<(Loaded, Connection), LoadError> {
        let loaded = self.image.load(ram, kernel, fdt)?;
        Ok((loaded, Connection { _socket: self.connection }))
    }
}

#[cfg(test)]
mod tests;
