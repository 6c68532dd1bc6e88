//! A file that appears under its name when it is complete, or never.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use rustix::fs::{
    AtFlags, FileType, Mode, OFlags, RenameFlags, fstat, openat, renameat, renameat_with, statat,
    unlinkat,
};
use rustix::io::Errno;

use super::error::{Error, Fault};
use super::id::SnapshotId;

/// Under which names a file is.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Place {
    /// Its temporary one.
    Temporary,
    /// Its final one.
    Final,
    /// Its final one, and the file that was there has the temporary one.
    Exchanged,
    /// Its final one, for good.
    Kept,
}

/// A new file. Until it is kept it goes with this, and a file that was under its name is there as before.
#[derive(Debug)]
pub(super) struct NewFile {
    path: PathBuf,
    /// Where it is: another directory under this name meanwhile makes no difference.
    directory: OwnedFd,
    name: OsString,
    temporary: String,
    file: File,
    place: Place,
}

impl NewFile {
    /// Creates it under a temporary name. Nothing is under its final name, or a regular file.
    pub(super) fn create(path: &Path) -> Result<Self, Error> {
        let failed = |fault| Error::new(path, fault);
        let io = |errno: Errno| failed(Fault::Create(errno.into()));
        let name = path.file_name().ok_or_else(|| failed(Fault::NoName))?;
        let directory = directory(path).map_err(io)?;
        match statat(&directory, name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(found) if FileType::from_raw_mode(found.st_mode) == FileType::RegularFile => {}
            Ok(_) => return Err(failed(Fault::NotRegular)),
            Err(Errno::NOENT) => {}
            Err(errno) => return Err(io(errno)),
        }
        // Short, so that any name that fits leaves room for it.
        let random = SnapshotId::random().map_err(|error| failed(Fault::Random(error)))?;
        let temporary = format!(".tessera-{random}");
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
        // All of a guest's secrets are in it.
        let mode = Mode::RUSR | Mode::WUSR;
        let file = openat(&directory, temporary.as_str(), flags, mode).map_err(io)?;
        Ok(Self {
            path: path.to_owned(),
            directory,
            name: name.to_owned(),
            temporary,
            file: File::from(file),
            place: Place::Temporary,
        })
    }

    pub(super) fn file(&self) -> &File {
        &self.file
    }

    /// With its path.
    pub(super) fn error(&self, fault: Fault) -> Error {
        Error::new(&self.path, fault)
    }

    /// Whether both are to be the same file in the end.
    pub(super) fn has_same_name(&self, other: &Self) -> Result<bool, Error> {
        let stat = |file: &Self| {
            fstat(&file.directory).map_err(|errno| file.error(Fault::Create(errno.into())))
        };
        let (own, others) = (stat(self)?, stat(other)?);
        let same_directory = (own.st_dev, own.st_ino) == (others.st_dev, others.st_ino);
        Ok(same_directory && self.name == other.name)
    }

    /// Waits until its contents are on the disk.
    pub(super) fn sync(&self) -> Result<(), Error> {
        self.file.sync_all().map_err(|error| self.error(Fault::write(error)))
    }

    /// Moves it to its final name. A file that was there is kept aside, as far as the file system can do so.
    pub(super) fn publish(&mut self) -> Result<(), Error> {
        self.place = self.rename().map_err(|errno| self.error(Fault::Create(errno.into())))?;
        self.sync_directory()
    }

    /// Keeps it under its final name, and removes the file that was there.
    pub(super) fn keep(mut self) {
        if self.place == Place::Exchanged {
            // It is complete under another name at worst.
            let _ = self.remove(self.temporary.as_ref());
        }
        self.place = Place::Kept;
    }

    fn rename(&self) -> Result<Place, Errno> {
        match self.rename_with(RenameFlags::NOREPLACE) {
            Ok(()) => return Ok(Place::Final),
            Err(Errno::EXIST) => match self.rename_with(RenameFlags::EXCHANGE) {
                Ok(()) => return Ok(Place::Exchanged),
                Err(Errno::INVAL | Errno::NOSYS) => {}
                Err(errno) => return Err(errno),
            },
            Err(Errno::INVAL | Errno::NOSYS) => {}
            Err(errno) => return Err(errno),
        }
        // A file system without flags for it (renameat2(2), "EINVAL").
        renameat(&self.directory, self.temporary.as_str(), &self.directory, &self.name)?;
        Ok(Place::Final)
    }

    fn rename_with(&self, flags: RenameFlags) -> Result<(), Errno> {
        let (directory, from) = (&self.directory, self.temporary.as_str());
        renameat_with(directory, from, directory, &self.name, flags)
    }

    /// Waits until its name is on the disk.
    fn sync_directory(&self) -> Result<(), Error> {
        match rustix::fs::fsync(&self.directory) {
            // Not every file system has a directory that can be synchronised.
            Ok(()) | Err(Errno::INVAL) => Ok(()),
            Err(errno) => Err(self.error(Fault::write(errno.into()))),
        }
    }

    fn remove(&self, name: &OsStr) -> Result<(), Errno> {
        unlinkat(&self.directory, name, AtFlags::empty())
    }
}

impl Drop for NewFile {
    fn drop(&mut self) {
        // Nothing more can be done if it fails.
        let _ = match self.place {
            Place::Temporary => self.remove(self.temporary.as_ref()),
            Place::Final => self.remove(&self.name),
            Place::Exchanged => self
                .rename_with(RenameFlags::EXCHANGE)
                .and_then(|()| self.remove(self.temporary.as_ref())),
            Place::Kept => Ok(()),
        };
    }
}

/// The directory in which a file is to be.
fn directory(path: &Path) -> Result<OwnedFd, Errno> {
    let parent = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    rustix::fs::open(parent, flags, Mode::empty())
}
