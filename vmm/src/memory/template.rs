//! The file of a template: guest memory with its tags, sealed, which VMs map privately.
//!
//! # References
//! memfd_create(2); fcntl(2), "File Sealing"

use std::io;
use std::ops::Range;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use arch::units::Bytes;
use rustix::fs::{OFlags, SealFlags};
use rustix::io::Errno;
use thiserror::Error;

/// What keeps the file as it is: nothing writes to it and its length stays, so that no touch of it is ever a SIGBUS.
pub(super) const SEALS: SealFlags =
    SealFlags::WRITE.union(SealFlags::GROW).union(SealFlags::SHRINK).union(SealFlags::SEAL);

/// `TMPFS_MAGIC` of include/uapi/linux/magic.h: what the files of memfd_create(2) are of, unless they have huge pages
/// of a pool, which cannot be replaced page by page.
const TMPFS: u64 = 0x0102_1994;

/// Why a descriptor is not that of a template.
#[derive(Debug, Error)]
pub enum TemplateError {
    /// It is no file in memory.
    #[error("it is no file in memory (memfd)")]
    Kind,
    /// One could write to it.
    #[error("its descriptor is open for writing")]
    Writable,
    /// One could still change it.
    #[error("it is not sealed: its contents or its length could change")]
    Unsealed,
    /// It is of other memory.
    #[error("it has {found}, and is to have {wanted}")]
    Length {
        /// What it has.
        found: Bytes,
        /// What it must have.
        wanted: Bytes,
    },
    /// It has not what it is said to have.
    #[error("it does not have the parts that it is said to have")]
    Parts,
    /// The host does not say what it is.
    #[error("the host does not say what it is")]
    Host(#[source] io::Error),
}

/// A part of a template, and where it is in guest memory.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct TemplatePart {
    /// By offsets in guest memory: whole pages.
    pub(crate) at: Range<u64>,
    /// Where it begins in the file, at a page.
    pub(crate) offset: u64,
}

/// Guest memory, or what is loaded into it, in a file that cannot change.
#[derive(Debug)]
pub struct TemplateFile(OwnedFd);

impl TemplateFile {
    /// The template in a file that another process has sent.
    ///
    /// # Errors
    /// When it is not one of this size, or this process or another could change it.
    pub fn new(file: OwnedFd, size: Bytes) -> Result<Self, TemplateError> {
        let host = |errno: Errno| TemplateError::Host(errno.into());
        let flags = rustix::fs::fcntl_getfl(&file).map_err(host)?;
        if flags.intersection(OFlags::ACCMODE | OFlags::PATH) != OFlags::RDONLY {
            return Err(TemplateError::Writable);
        }
        let system = rustix::fs::fstatfs(&file).map_err(host)?;
        if system.f_type as u64 != TMPFS {
            return Err(TemplateError::Kind);
        }
        let seals = rustix::fs::fcntl_get_seals(&file).map_err(|_| TemplateError::Kind)?;
        if !seals.contains(SEALS) {
            return Err(TemplateError::Unsealed);
        }
        let status = rustix::fs::fstat(&file).map_err(host)?;
        match Bytes::new(u64::try_from(status.st_size).unwrap_or(0)) {
            found if found == size => Ok(Self(file)),
            found => Err(TemplateError::Length { found, wanted: size }),
        }
    }
}

impl AsFd for TemplateFile {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use rustix::fs::{MemfdFlags, fcntl_add_seals, ftruncate, memfd_create};

    use super::*;
    use crate::memory::backing::read_only;

    const SIZE: Bytes = Bytes::mib(4);

    fn memfd(seals: SealFlags) -> OwnedFd {
        let file = memfd_create("test", MemfdFlags::ALLOW_SEALING).unwrap();
        ftruncate(&file, SIZE.get()).unwrap();
        fcntl_add_seals(&file, seals).unwrap();
        file
    }

    fn sealed() -> OwnedFd {
        read_only(&memfd(SEALS)).unwrap()
    }

    #[test]
    fn a_sealed_file_that_is_only_read_is_a_template() {
        assert!(TemplateFile::new(sealed(), SIZE).is_ok());
    }

    #[test]
    fn what_could_change_is_no_template() {
        let refused = |file, size| TemplateFile::new(file, size).unwrap_err();

        assert!(matches!(refused(memfd(SEALS), SIZE), TemplateError::Writable));
        for missing in [SealFlags::WRITE, SealFlags::GROW, SealFlags::SHRINK, SealFlags::SEAL] {
            let file = read_only(&memfd(SEALS.difference(missing))).unwrap();
            assert!(matches!(refused(file, SIZE), TemplateError::Unsealed), "{missing:?}");
        }
    }

    #[test]
    fn memory_of_another_size_is_no_template() {
        for size in [Bytes::mib(2), Bytes::mib(6)] {
            let refused = TemplateFile::new(sealed(), size).unwrap_err();
            assert!(
                matches!(refused, TemplateError::Length { found: SIZE, wanted } if wanted == size)
            );
        }
    }

    #[test]
    fn another_file_is_no_template() {
        let pipe = rustix::pipe::pipe().unwrap().0;
        for file in [std::fs::File::open("/proc/self/exe").unwrap().into(), pipe] {
            assert!(matches!(TemplateFile::new(file, SIZE).unwrap_err(), TemplateError::Kind));
        }
        let folder = tempfile::tempdir_in("/dev/shm").unwrap();
        let path = folder.path().join("file");
        std::fs::write(&path, vec![0; SIZE.get() as usize]).unwrap();
        let plain = std::fs::File::open(&path).unwrap().into();
        assert!(matches!(TemplateFile::new(plain, SIZE).unwrap_err(), TemplateError::Unsealed));
    }
}
