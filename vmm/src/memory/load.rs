//! Loads kernel and initrd into guest memory, each where the boot protocol wants it.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

use arch::image::Header;
use arch::layout::{self, Placement};
use arch::range::MemoryRange;
use arch::units::Bytes;
use thiserror::Error;
use vm_memory::{Bytes as _, GuestAddress, GuestMemoryError};

use super::error::Error as MemoryError;
use super::kernel::{self, ImageSink, Kernel};
use super::ram::GuestRam;
use crate::error::say;
use crate::exit_status::ExitStatus;

/// Why a kernel or an initrd could not be loaded.
#[derive(Debug, Error)]
pub enum Error {
    /// The file cannot be used.
    #[error(transparent)]
    File(#[from] kernel::Error),
    /// Kernel, initrd and device tree do not fit into guest memory together.
    #[error("{} cannot be placed in guest memory", path.display())]
    Place {
        /// The kernel's file.
        path: PathBuf,
        /// What does not fit.
        #[source]
        source: layout::Error,
    },
    /// The Image has more bytes than its header says.
    #[error(
        "{} has more bytes than the {said} its header says: the file is damaged or not what it claims",
        path.display()
    )]
    Longer {
        /// The kernel's file.
        path: PathBuf,
        /// The header's image_size.
        said: Bytes,
    },
    /// A file could not be copied into guest memory.
    #[error("cannot copy {} into guest memory: it was cut short while it was read, or the host has no memory left", path.display())]
    Copy {
        /// The file.
        path: PathBuf,
        /// What happened.
        #[source]
        source: GuestMemoryError,
    },
    /// A boot image has no memory, or cannot be mapped.
    #[error(transparent)]
    Memory(#[from] MemoryError),
    /// A kernel that would take more memory than there are addresses.
    #[error("{} asks for more memory than any host has: the file is damaged or not what it claims", .0.display())]
    ImageSize(PathBuf),
    /// A boot image could still change.
    #[error("the boot image cannot be sealed")]
    Seal(#[source] io::Error),
    /// A kernel that does not begin at a page of the host.
    #[error("{} does not begin at a page of the host, as its header has it: leave out --boot-image", path.display())]
    OffsetOfText {
        /// The kernel's file.
        path: PathBuf,
    },
}

impl Error {
    /// The status that the process ends with.
    pub fn status(&self) -> ExitStatus {
        match self {
            Self::File(kernel::Error::Open { source, .. } | kernel::Error::Read { source, .. }) => {
                ExitStatus::for_input(source.kind())
            }
            Self::File(kernel::Error::NotAFile(_)) => ExitStatus::NoInput,
            Self::Copy { .. } => ExitStatus::Io,
            Self::Memory(_) | Self::Seal(_) => ExitStatus::Unavailable,
            Self::File(_)
            | Self::Place { .. }
            | Self::Longer { .. }
            | Self::ImageSize(_)
            | Self::OffsetOfText { .. } => ExitStatus::BadImage,
        }
    }
}

/// What has been loaded, and where the device tree is to go.
#[derive(Clone, Copy, Debug)]
pub struct Loaded {
    /// The first instruction.
    pub entry: GuestAddress,
    /// The kernel, its BSS included.
    pub kernel: MemoryRange,
    /// The initrd.
    pub initrd: Option<MemoryRange>,
    /// The room for the device tree.
    pub fdt: MemoryRange,
    /// The size of the guest's pages. A kernel that does not say, as before 4.6, is taken to have those
    /// of 4 KiB that all could have then.
    pub guest_page: Bytes,
}

/// Loads the kernel and, if there is one, the initrd. `fdt` bytes are set aside for the device tree.
///
/// # Errors
/// When a file cannot be used, or does not fit.
pub fn load(
    ram: &GuestRam,
    kernel_path: &Path,
    initrd_path: Option<&Path>,
    fdt: Bytes,
) -> Result<Loaded, Error> {
    let kernel = Kernel::open(kernel_path)?;
    if let Some(doubt) = kernel.doubt() {
        say(&format!("{}: {doubt}", kernel_path.display()));
    }
    let guest_page = guest_page(kernel.header());
    let initrd = initrd_path.map(|path| kernel::open(path).map(|file| (file, path))).transpose()?;
    let initrd_length = initrd.as_ref().map(|((_, length), _)| *length);
    let Placement { entry, kernel: room, initrd: initrd_room, fdt } =
        layout::place(kernel.header(), kernel.length()?, initrd_length, fdt, ram.range())
            .map_err(|source| Error::Place { path: kernel_path.to_owned(), source })?;
    let mut sink = RamSink::new(ram, kernel_path, room);
    kernel.read_into(&mut sink)?;
    if let (Some(((mut file, length), path)), Some(range)) = (initrd, initrd_room) {
        copy(ram, &mut file, length, range.base, path)?;
    }
    Ok(Loaded { entry, kernel: room, initrd: initrd_room, fdt, guest_page })
}

/// Opens the file of a kernel or an initrd.
///
/// # Errors
/// When it cannot be opened, is no regular file, or is empty.
pub(crate) fn open(path: &Path) -> Result<File, Error> {
    Ok(kernel::open(path).map(|(file, _)| file)?)
}

/// The size of the guest's pages: see [`Loaded`].
pub(super) fn guest_page(header: &Header) -> Bytes {
    header.page_size().bytes().unwrap_or(Bytes::kib(4))
}

/// Copies a file into guest memory.
///
/// # Errors
/// When it is shorter than `length`, or the host has no memory.
pub(super) fn copy(
    ram: &GuestRam,
    file: &mut File,
    length: Bytes,
    to: GuestAddress,
    path: &Path,
) -> Result<(), Error> {
    let failed = |source| Error::Copy { path: path.to_owned(), source };
    let cut_short = || failed(GuestMemoryError::IOError(io::ErrorKind::UnexpectedEof.into()));
    io::Seek::rewind(file).map_err(|source| failed(GuestMemoryError::IOError(source)))?;
    let mut done = 0;
    // One read moves at most 2 GiB (read(2)), and some file systems give less than was asked for.
    while done < length.get() {
        let piece = usize::try_from(length.get() - done).unwrap_or(usize::MAX).min(1 << 30);
        match ram.read_volatile_from(GuestAddress(to.0 + done), file, piece) {
            Ok(0) => return Err(cut_short()),
            Ok(n) => done += n as u64,
            Err(GuestMemoryError::IOError(error)) if error.kind() == io::ErrorKind::Interrupted => {
            }
            Err(source) => return Err(failed(source)),
        }
    }
    Ok(())
}

/// The kernel's place in guest memory.
pub(super) struct RamSink<'a> {
    ram: &'a GuestRam,
    path: &'a Path,
    at: GuestAddress,
    room: MemoryRange,
}

impl<'a> RamSink<'a> {
    /// A place of this size.
    pub(super) fn new(ram: &'a GuestRam, path: &'a Path, room: MemoryRange) -> Self {
        Self { ram, path, at: room.base, room }
    }

    /// How much of it has been taken.
    pub(super) fn taken(&self) -> Bytes {
        Bytes::new(self.at.0 - self.room.base.0)
    }

    fn take_room(&mut self, length: u64) -> Result<GuestAddress, Error> {
        let to = self.at;
        let used = to.0 - self.room.base.0;
        if length > self.room.size.get() - used {
            return Err(Error::Longer { path: self.path.to_owned(), said: self.room.size });
        }
        self.at = GuestAddress(to.0 + length);
        Ok(to)
    }
}

impl ImageSink for RamSink<'_> {
    type Error = Error;

    fn bytes(&mut self, piece: &[u8]) -> Result<(), Error> {
        let to = self.take_room(piece.len() as u64)?;
        self.ram
            .write_slice(piece, to)
            .map_err(|source| Error::Copy { path: self.path.to_owned(), source })
    }

    fn file(&mut self, file: &mut File, length: Bytes, path: &Path) -> Result<(), Error> {
        let to = self.take_room(length.get())?;
        copy(self.ram, file, length, to, path)
    }
}

#[cfg(test)]
pub(super) mod tests;
