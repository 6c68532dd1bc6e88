//! The file or block device behind a disk.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{self, Seek, SeekFrom};
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use devices::virtio::block::{Disk, SECTOR};
use rustix::fs::{AtFlags, FallocateFlags, OFlags, StatxFlags, fallocate, major, minor, statx};
use rustix::io::Errno;
use thiserror::Error;

use crate::exit_status::ExitStatus;
use crate::spec::DiskSpec;
use crate::sys::small_file;

/// Where a file is asked whether it takes a hole: beyond the end of every file, so that nothing changes.
const BEYOND: u64 = 1 << 60;

/// The largest unit of a disk that is shown to a guest, in bytes: a page, beyond which Linux takes no disk.
const MOST_BLOCK: u32 = 4096;

/// Why there is no such disk.
#[derive(Debug, Error)]
pub enum Error {
    /// It cannot be opened.
    #[error("cannot open the disk {}", path.display())]
    Open {
        /// The file.
        path: PathBuf,
        /// The system's reason.
        #[source]
        source: io::Error,
    },
    /// It is neither a file nor a block device.
    #[error("{} is no disk: give a raw image or a block device", path.display())]
    Kind {
        /// What was named.
        path: PathBuf,
    },
    /// It has less than a sector.
    #[error("the disk {} has {size} bytes, less than a sector of {SECTOR}: make it larger (truncate -s)", path.display())]
    Empty {
        /// The file.
        path: PathBuf,
        /// Its size in bytes.
        size: u64,
    },
    /// Another process writes it.
    #[error(
        "the disk {} is in use by another process: end that first, or give both VMs `ro`", path.display()
    )]
    Locked {
        /// The file.
        path: PathBuf,
    },
    /// It cannot be locked.
    #[error("cannot lock the disk {} against other writers", path.display())]
    Lock {
        /// The file.
        path: PathBuf,
        /// The system's reason.
        #[source]
        source: io::Error,
    },
    /// Its file system knows no O_DIRECT.
    #[error("the disk {} cannot be used past the host's page cache: leave out `direct`", path.display())]
    NotDirect {
        /// The file.
        path: PathBuf,
    },
    /// The timer of its limits cannot be had.
    #[error("the host gives no timer for the disk {}: look at ulimit -n", path.display())]
    Timer {
        /// The file.
        path: PathBuf,
        /// The system's reason.
        #[source]
        source: io::Error,
    },
}

impl Error {
    /// Whether it may not be opened.
    pub fn is_denied(&self) -> bool {
        matches!(self, Self::Open { source, .. } if source.kind() == io::ErrorKind::PermissionDenied)
    }

    /// The status that the process ends with.
    pub fn status(&self) -> ExitStatus {
        match self {
            Self::Open { source, .. } => ExitStatus::for_input(source.kind()),
            Self::Kind { .. } | Self::Empty { .. } | Self::NotDirect { .. } => ExitStatus::Config,
            Self::Locked { .. } | Self::Lock { .. } | Self::Timer { .. } => ExitStatus::Unavailable,
        }
    }
}

/// An open disk, locked against a second writer for as long as it lives.
#[derive(Debug)]
pub(super) struct DiskFile {
    path: PathBuf,
    /// Reads and writes through the host's page cache.
    pub(super) cached: File,
    /// Reads and writes past it.
    pub(super) direct: Option<Direct>,
    pub(super) disk: Disk,
    /// It may be cut while it is used.
    pub(super) is_regular: bool,
}

/// A second description of the same disk.
#[derive(Debug)]
pub(super) struct Direct {
    pub(super) file: File,
    /// What addresses of memory are multiples of.
    pub(super) memory_align: u64,
    /// What offsets and lengths are multiples of.
    pub(super) offset_align: u64,
}

impl DiskFile {
    /// Opens and locks a disk.
    pub(super) fn open(spec: &DiskSpec) -> Result<Self, Error> {
        let path = &spec.path;
        let open = |source| Error::Open { path: path.clone(), source };
        // A FIFO without a writer, or a terminal, must not hold the VMM up.
        let cached = OpenOptions::new()
            .read(true)
            .write(!spec.read_only)
            .custom_flags(OFlags::NONBLOCK.bits() as i32)
            .open(path)
            .map_err(open)?;
        let kind = cached.metadata().map_err(open)?;
        let is_regular = kind.is_file();
        if !is_regular && !kind.file_type().is_block_device() {
            return Err(Error::Kind { path: path.clone() });
        }
        lock(&cached, spec)?;
        let direct = spec.direct.then(|| Direct::open(spec)).transpose()?;
        if let Some(direct) = &direct {
            let other = direct.file.metadata().map_err(open)?;
            // It was locked and looked at by the first description.
            if (kind.dev(), kind.ino()) != (other.dev(), other.ino()) {
                return Err(open(io::Error::other("another file has taken its place")));
            }
        }
        let sectors = sectors(&cached, path)?;
        let discards = match is_regular {
            true => takes_holes(&cached),
            false => device_takes_holes(kind.rdev()),
        };
        let unit = direct.as_ref().map_or(SECTOR, |direct| direct.offset_align);
        let block_size = u32::try_from(unit).unwrap_or(MOST_BLOCK).clamp(SECTOR as u32, MOST_BLOCK);
        let disk = Disk { sectors, read_only: spec.read_only, discards, block_size };
        Ok(Self { path: path.clone(), cached, direct, disk, is_regular })
    }

    /// Whether this path names the same file.
    pub(super) fn is_at(&self, path: &Path) -> bool {
        let (Ok(own), Ok(other)) = (self.cached.metadata(), path.metadata()) else { return false };
        (own.dev(), own.ino()) == (other.dev(), other.ino())
    }

    /// Its whole sectors now.
    pub(super) fn sectors(&self) -> Result<u64, Error> {
        sectors(&self.cached, &self.path)
    }
}

impl Direct {
    fn open(spec: &DiskSpec) -> Result<Self, Error> {
        let path = &spec.path;
        let opened = OpenOptions::new()
            .read(true)
            .write(!spec.read_only)
            .custom_flags((OFlags::DIRECT | OFlags::NONBLOCK).bits() as i32)
            .open(path);
        let file = match opened {
            Ok(file) => file,
            // open(2): the file system does not support the flag.
            Err(error) if error.kind() == io::ErrorKind::InvalidInput => {
                return Err(Error::NotDirect { path: path.clone() });
            }
            Err(source) => return Err(Error::Open { path: path.clone(), source }),
        };
        let found = statx(&file, c"", AtFlags::EMPTY_PATH, StatxFlags::DIOALIGN).ok();
        let known = found.filter(|found| found.stx_mask & StatxFlags::DIOALIGN.bits() != 0);
        // Linux before 6.1, and file systems that do not say it: a page is enough for all of them.
        let (memory_align, offset_align) = known.map_or((4096, 4096), |found| {
            (u64::from(found.stx_dio_mem_align), u64::from(found.stx_dio_offset_align))
        });
        if memory_align == 0 || offset_align == 0 {
            return Err(Error::NotDirect { path: path.clone() });
        }
        Ok(Self { file, memory_align, offset_align })
    }
}

/// One writer, or any number of readers. The lock goes with the description (flock(2)).
fn lock(file: &File, spec: &DiskSpec) -> Result<(), Error> {
    let locked = if spec.read_only { file.try_lock_shared() } else { file.try_lock() };
    locked.map_err(|error| match error {
        TryLockError::WouldBlock => Error::Locked { path: spec.path.clone() },
        TryLockError::Error(source) => Error::Lock { path: spec.path.clone(), source },
    })
}

/// The whole sectors of a disk. Of a block device, metadata has no length.
fn sectors(mut file: &File, path: &Path) -> Result<u64, Error> {
    let size = file
        .seek(SeekFrom::End(0))
        .map_err(|source| Error::Open { path: path.to_owned(), source })?;
    match size / SECTOR {
        0 => Err(Error::Empty { path: path.to_owned(), size }),
        sectors => Ok(sectors),
    }
}

/// Whether the file system can make holes in this very file. Asked beyond its end, where there is nothing.
fn takes_holes(file: &File) -> bool {
    let hole = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
    // EFBIG: the question is beyond what the file system takes, which it looks at only if it knows holes.
    matches!(fallocate(file, hole, BEYOND, SECTOR), Ok(()) | Err(Errno::FBIG))
}

/// Whether a block device zeroes without writing (Documentation/ABI/stable/sysfs-block).
fn device_takes_holes(device: u64) -> bool {
    let node = format!("/sys/dev/block/{}:{}", major(device), minor(device));
    // Of a partition, the queue is that of its disk.
    ["queue", "../queue"].iter().any(|queue| {
        let limit = format!("{node}/{queue}/write_zeroes_max_bytes");
        let limit = small_file::text(Path::new(&limit));
        limit.is_some_and(|limit| limit.trim().parse::<u64>().is_ok_and(|limit| limit > 0))
    })
}
