//! Boot images: kernel and initrd as they are loaded, held once for all VMs that boot them.

use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::time::Duration;

use arch::units::Bytes;
use thiserror::Error;

use super::answer::{Answer, Fault, PATIENCE, ask};
use super::boot_files::{BootFiles, LENGTH, Message};
use super::client::Connection;
use crate::exit_status::ExitStatus;
use crate::memory::{BootImage, GuestRam, LoadError, Loaded, TemplateError, make_boot_image};
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
    /// The process that listens there is of another user.
    #[error(
        "the process that listens at {0:?} is of another user: end it, or leave out --boot-image"
    )]
    Stranger(PathBuf),
    /// It has not answered.
    #[error(
        "the process that holds the boot image at {path:?} has not answered within {} s: end it, or leave out \
         --boot-image",
        PATIENCE.as_secs()
    )]
    Silent {
        /// Its socket.
        path: PathBuf,
        /// The system's reason.
        #[source]
        source: io::Error,
    },
    /// It has closed the connection.
    #[error(
        "the process at {0:?} has not given its boot image: it has ended, as it could not read the files, or has as \
         many VMs as it can; try again, or leave out --boot-image"
    )]
    Refused(PathBuf),
    /// It has said something else.
    #[error(
        "the process at {0:?} does not answer as the holder of a boot image: it may be of another version; end it"
    )]
    Malformed(PathBuf),
    /// It holds something else.
    #[error("the process at {0:?} holds a boot image of other files: end it")]
    Other(PathBuf),
    /// What it has sent could change.
    #[error(
        "what the process at {path:?} has sent is no boot image: end it, or leave out --boot-image"
    )]
    File {
        /// Its socket.
        path: PathBuf,
        /// Why.
        #[source]
        source: TemplateError,
    },
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
        let answer = ask(path, &mut buffer, patience).map_err(|fault| match fault {
            Fault::Absent(source) => BootError::Absent { path: at(), source },
            Fault::Stranger => BootError::Stranger(at()),
            Fault::Silent(source) => BootError::Silent { path: at(), source },
            Fault::Refused => BootError::Refused(at()),
        })?;
        let Answer { length, fd, connection } = answer;
        let found = Message::decode(buffer.get(..length).unwrap_or_default());
        let (Some(found), Some(fd)) = (found, fd) else { return Err(BootError::Malformed(at())) };
        if found.files != *files {
            return Err(BootError::Other(at()));
        }
        let image = BootImage::new(fd, found.parts)
            .map_err(|source| BootError::File { path: at(), source })?;
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
