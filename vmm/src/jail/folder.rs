//! The folder of a jail: what the VM makes is in it, and the host finds it there.
//!
//! # References
//! flock(2)

use std::fs;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::thread::sleep;
use std::time::{Duration, Instant};

use rustix::fs::{CWD, FlockOperation, Mode, flock};
use rustix::io::Errno;

use super::{Error, User, steps};

/// How long the end of another jail is waited for. Process 1 of one whose supervisor was killed ends its VM at once, and
/// removes its control group.
const PATIENCE: Duration = Duration::from_secs(2);
/// Between two attempts.
const PAUSE: Duration = Duration::from_millis(10);

/// The folder of a jail, open and locked: another jail has it only when all processes that have this one have gone or
/// dropped it. Those are the supervisor and process 1. The VM, whose folder it is, has no copy by which it could let it go.
#[derive(Debug)]
pub struct Folder {
    path: PathBuf,
    fd: OwnedFd,
}

impl Folder {
    /// Opens a folder that is this user's already, or is empty and the caller's own: no other is given to a user. It waits
    /// a moment for the end of another jail in it.
    ///
    /// # Errors
    /// When it is no such folder, or another jail has it.
    pub fn open(path: &Path, user: User) -> Result<Self, Error> {
        Self::open_within(path, user, PATIENCE)
    }

    fn open_within(path: &Path, user: User, patience: Duration) -> Result<Self, Error> {
        let failed = |source| Error::Folder { path: path.to_owned(), source };
        let path = path.canonicalize().map_err(failed)?;
        // Of what is open, whatever has its path by now.
        let open = || -> io::Result<(OwnedFd, bool)> {
            let fd = steps::open(CWD, &path)?;
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
            Ok((fd, true)) => match lock(&fd, patience) {
                Ok(()) => Ok(Self { path, fd }),
                Err(Errno::WOULDBLOCK) => Err(Error::InUse(path)),
                Err(errno) => Err(Error::Folder { path, source: errno.into() }),
            },
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
            let fd = steps::open(CWD, &self.path)?;
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

fn lock(folder: &OwnedFd, patience: Duration) -> Result<(), Errno> {
    let start = Instant::now();
    loop {
        match flock(folder, FlockOperation::NonBlockingLockExclusive) {
            Err(Errno::WOULDBLOCK) if start.elapsed() < patience => sleep(PAUSE),
            locked => return locked,
        }
    }
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
    fn a_folder_that_another_jail_has_is_waited_for_and_refused_in_the_end() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path();
        let first = Folder::open(path, OTHER).unwrap();

        let refused = Folder::open_within(path, OTHER, Duration::ZERO).unwrap_err();

        assert!(matches!(refused, Error::InUse(_)), "{refused}");
        // A copy of the process, as process 1 is, holds it as long.
        let copy = first.fd.try_clone().unwrap();
        drop(first);
        assert!(Folder::open_within(path, OTHER, Duration::ZERO).is_err());
        std::thread::scope(|scope| {
            let waiting = scope.spawn(|| Folder::open_within(path, OTHER, Duration::MAX));
            drop(copy);
            waiting.join().unwrap().unwrap();
        });
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
