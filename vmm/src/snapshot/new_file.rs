//! A file that appears under its name when it is complete, or never.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{
    AtFlags, CWD, FileType, Mode, OFlags, RenameFlags, fstat, linkat, openat, renameat,
    renameat_with, stat, statat, unlinkat,
};
use rustix::io::Errno;

use super::error::{Error, Fault};
use super::id::SnapshotId;
use crate::folder::folder_of;

/// All of a guest's secrets are in it.
const PRIVATE: Mode = Mode::RUSR.union(Mode::WUSR);

/// Makes a file that has no name, or none.
type Unnamed = fn(&OwnedFd) -> Option<File>;

/// Under which names a file is.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Place {
    /// Under none: it goes when this process does, however that ends.
    Unnamed,
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
    /// Creates it. Nothing is under its final name, or a regular file.
    pub(super) fn create(path: &Path) -> Result<Self, Error> {
        Self::new(path, unnamed)
    }

    /// As [`create`](Self::create), with a file that has no name if there is one.
    fn new(path: &Path, unnamed: Unnamed) -> Result<Self, Error> {
        let failed = |fault| Error::new(path, fault);
        let io = |errno: Errno| failed(Fault::create(errno));
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
        let (file, place) = match unnamed(&directory) {
            Some(file) => (file, Place::Unnamed),
            None => {
                let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
                let file = openat(&directory, temporary.as_str(), flags, PRIVATE).map_err(io)?;
                (File::from(file), Place::Temporary)
            }
        };
        let (path, name) = (path.to_owned(), name.to_owned());
        Ok(Self { path, directory, name, temporary, file, place })
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
        let status =
            |file: &Self| fstat(&file.directory).map_err(|errno| file.error(Fault::create(errno)));
        let (own, others) = (status(self)?, status(other)?);
        let same_directory = (own.st_dev, own.st_ino) == (others.st_dev, others.st_ino);
        Ok(same_directory && self.name == other.name)
    }

    /// Waits until its contents are on the disk.
    pub(super) fn sync(&self) -> Result<(), Error> {
        self.file.sync_all().map_err(|error| self.error(Fault::write(error)))
    }

    /// Moves it to its final name. A file that was there is kept aside, as far as the file system can do so.
    pub(super) fn publish(&mut self) -> Result<(), Error> {
        self.place().map_err(|errno| self.error(Fault::create(errno)))?;
        self.sync_directory()
    }

    fn place(&mut self) -> Result<(), Errno> {
        if self.place == Place::Unnamed {
            match self.link(&self.name) {
                Err(Errno::EXIST) => {
                    self.link(self.temporary.as_ref())?;
                    self.place = Place::Temporary;
                }
                linked => {
                    linked?;
                    self.place = Place::Final;
                    return Ok(());
                }
            }
        }
        self.place = self.rename()?;
        Ok(())
    }

    /// Gives a file without a name its first one.
    fn link(&self, name: &OsStr) -> Result<(), Errno> {
        let (from, follow) = (descriptor_path(&self.file), AtFlags::SYMLINK_FOLLOW);
        linkat(CWD, from, &self.directory, name, follow)
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
            Err(errno) => Err(self.error(Fault::write(errno))),
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
            Place::Unnamed | Place::Kept => Ok(()),
        };
    }
}

/// The directory in which a file is to be.
fn directory(path: &Path) -> Result<OwnedFd, Errno> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    rustix::fs::open(folder_of(path), flags, Mode::empty())
}

/// A file that has no name, where the file system has such files and they can be given a name later.
fn unnamed(directory: &OwnedFd) -> Option<File> {
    let flags = OFlags::TMPFILE | OFlags::RDWR | OFlags::CLOEXEC;
    let file = File::from(openat(directory, ".", flags, PRIVATE).ok()?);
    // A process may have no /proc.
    stat(descriptor_path(&file)).ok().map(|_| file)
}

/// The name by which a file without one is linked (open(2), "O_TMPFILE").
fn descriptor_path(file: &File) -> String {
    format!("/proc/self/fd/{}", file.as_raw_fd())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::fs;
    use std::io::Write;
    use std::os::unix::fs::{MetadataExt, symlink};

    use super::*;

    /// Each way to make one.
    const WAYS: [Unnamed; 2] = [unnamed, |_| None];

    fn names(folder: &Path) -> Vec<String> {
        let entries = folder.read_dir().unwrap();
        let mut names: Vec<_> =
            entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    fn write(way: Unnamed, path: &Path) -> NewFile {
        let mut new = NewFile::new(path, way).unwrap();
        new.file.write_all(b"new").unwrap();
        new.sync().unwrap();
        new.publish().unwrap();
        new
    }

    #[test]
    fn only_a_temporary_name_is_seen() {
        let folder = tempfile::tempdir().unwrap();
        for way in WAYS {
            let new = NewFile::new(&folder.path().join("file"), way).unwrap();
            let expected = match new.place {
                Place::Temporary => vec![new.temporary.clone()],
                _ => Vec::new(),
            };
            assert_eq!(names(folder.path()), expected);
        }
    }

    #[test]
    fn a_file_that_is_kept_takes_the_place_of_another() {
        for way in WAYS {
            for before in [false, true] {
                let folder = tempfile::tempdir().unwrap();
                let path = folder.path().join("file");
                if before {
                    fs::write(&path, "old").unwrap();
                }

                write(way, &path).keep();

                assert_eq!(fs::read_to_string(&path).unwrap(), "new");
                assert_eq!(path.metadata().unwrap().mode() & 0o777, 0o600);
                assert_eq!(names(folder.path()), ["file"]);
            }
        }
    }

    #[test]
    fn a_file_that_is_not_kept_leaves_what_was_there() {
        for way in WAYS {
            for published in [false, true] {
                let folder = tempfile::tempdir().unwrap();
                let path = folder.path().join("file");
                if published {
                    drop(write(way, &path))
                } else {
                    drop(NewFile::new(&path, way))
                }
                assert!(names(folder.path()).is_empty());
                fs::write(&path, "old").unwrap();
                let inode = path.metadata().unwrap().ino();

                if published {
                    drop(write(way, &path))
                } else {
                    drop(NewFile::new(&path, way))
                }

                assert_eq!(fs::read_to_string(&path).unwrap(), "old");
                assert_eq!(path.metadata().unwrap().ino(), inode);
                assert_eq!(names(folder.path()), ["file"]);
            }
        }
    }

    #[test]
    fn what_is_no_file_is_not_replaced() {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        fs::create_dir(path("folder")).unwrap();
        symlink("elsewhere", path("link")).unwrap();
        for name in ["folder", "link"] {
            let error = NewFile::create(&path(name)).unwrap_err();
            assert!(matches!(error.fault, Fault::NotRegular), "{name}: {error:?}");
        }
        for (name, wanted) in [("none/file", true), ("..", false)] {
            let error = NewFile::create(&path(name)).unwrap_err();
            assert_eq!(matches!(error.fault, Fault::Create(_)), wanted, "{name}: {error:?}");
            assert_eq!(matches!(error.fault, Fault::NoName), !wanted, "{name}: {error:?}");
        }
    }

    #[test]
    fn the_longest_name_is_possible() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("n".repeat(255));
        for way in WAYS {
            write(way, &path).keep();
        }
        assert_eq!(fs::read_to_string(&path).unwrap(), "new");
    }

    #[test]
    fn a_directory_that_is_moved_takes_its_file_along() {
        for way in WAYS {
            let folder = tempfile::tempdir().unwrap();
            let (before, after) = (folder.path().join("before"), folder.path().join("after"));
            fs::create_dir(&before).unwrap();
            let mut new = NewFile::new(&before.join("file"), way).unwrap();
            fs::rename(&before, &after).unwrap();

            new.publish().unwrap();
            new.keep();

            assert_eq!(names(&after), ["file"]);
        }
    }
}
