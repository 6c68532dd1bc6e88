//! The folder of a jail: what the VM makes is in it, and the host finds it there.

use std::fs;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags};

use super::{Error, User};

/// The folder of a jail, open.
#[derive(Debug)]
pub struct Folder {
    path: PathBuf,
    fd: OwnedFd,
}

impl Folder {
    /// Opens a folder that is this user's already, or is empty and the caller's own: no other is given to a user.
    ///
    /// # Errors
    /// When it is no such folder.
    pub fn open(path: &Path, user: User) -> Result<Self, Error> {
        let failed = |source| Error::Folder { path: path.to_owned(), source };
        let path = path.canonicalize().map_err(failed)?;
        // Of what is open, whatever has its path by now.
        let open = || -> io::Result<(OwnedFd, bool)> {
            let fd = open_folder(&path)?;
            let owner = rustix::fs::fstat(&fd)?.st_uid;
            let is_empty = || -> io::Result<bool> {
                let open = format!("/proc/self/fd/{}", fd.as_raw_fd());
                Ok(fs::read_dir(open)?.next().is_none())
            };
            let is_own = owner == rustix::process::geteuid().as_raw();
            let may_be_given = owner == user.uid || (is_own && is_empty()?);
            Ok((fd, may_be_given))
        };
        match open() {
            Ok((fd, true)) => Ok(Self { path, fd }),
            Ok((_, false)) => Err(Error::NotEmpty(path)),
            Err(source) => Err(Error::Folder { path, source }),
        }
    }

    /// Its path from the root, without links.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Opens it once more, in the mount namespace that this process has now: what is mounted elsewhere cannot be shown.
    ///
    /// # Errors
    /// When another folder has its path by now.
    pub(super) fn open_again(&self) -> Result<OwnedFd, Error> {
        let open = || -> io::Result<OwnedFd> {
            let fd = open_folder(&self.path)?;
            let (now, then) = (rustix::fs::fstat(&fd)?, rustix::fs::fstat(&self.fd)?);
            match (now.st_dev, now.st_ino) == (then.st_dev, then.st_ino) {
                true => Ok(fd),
                false => Err(io::Error::other("another folder has taken its place")),
            }
        };
        open().map_err(|source| Error::Folder { path: self.path.clone(), source })
    }

    /// Gives it to the jail's user, who may then make files in it.
    ///
    /// # Errors
    /// What the kernel answers.
    pub(super) fn give_to(&self, user: User) -> Result<(), Error> {
        let mode = || -> io::Result<()> {
            user.own(&self.fd)?;
            let mode = Mode::from_raw_mode(rustix::fs::fstat(&self.fd)?.st_mode);
            Ok(rustix::fs::fchmod(&self.fd, mode | Mode::RWXU)?)
        };
        mode().map_err(|source| Error::Folder { path: self.path.clone(), source })
    }
}

fn open_folder(path: &Path) -> io::Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    Ok(rustix::fs::open(path, flags, Mode::empty())?)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::os::unix::fs::MetadataExt;

    use super::*;

    const OTHER: User = User { uid: 54321, gid: 54321 };

    #[test]
    fn a_folder_with_files_of_others_is_not_given_away() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().canonicalize().unwrap();
        assert_eq!(Folder::open(folder.path(), OTHER).unwrap().path(), path);

        fs::write(folder.path().join("file"), "").unwrap();

        assert!(matches!(Folder::open(folder.path(), OTHER), Err(Error::NotEmpty(_))));
        let owner = fs::metadata(folder.path()).unwrap().uid();
        assert!(Folder::open(folder.path(), User { uid: owner, ..OTHER }).is_ok());
    }

    #[test]
    fn what_is_no_folder_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("file");
        fs::write(&file, "").unwrap();
        for path in [file, folder.path().join("none")] {
            assert!(matches!(Folder::open(&path, OTHER), Err(Error::Folder { .. })));
        }
    }
}
