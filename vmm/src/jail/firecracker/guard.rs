//! That one program at a time has a root.
//!
//! Nothing that a program can write says whether it runs: its root is what the kernel knows of it, and a process without
//! capabilities cannot take another. Between the look at all roots and its own having this one a jailer holds a lock, so
//! that of two that start at once the second one is refused. The lock is beside the root, in a folder and a file of root's,
//! as others could hold it for ever.
//!
//! # References
//! flock(2), proc_pid_root(5), proc_pid_task(5)

use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use rustix::fs::{CWD, FlockOperation, Mode, OFlags, flock};
use rustix::io::Errno;

/// The lock, beside the root.
const LOCK: &str = "jailer.lock";

/// Held until it is dropped, or the process executes a program.
#[derive(Debug)]
pub(super) struct Lock {
    _file: OwnedFd,
}

impl Lock {
    /// The lock of the root in this folder, which is there; `None` if another jailer has it.
    ///
    /// # Errors
    /// What the system answers.
    pub(super) fn take(folder: &Path) -> io::Result<Option<Self>> {
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let file = rustix::fs::openat(CWD, folder.join(LOCK), flags, Mode::RUSR | Mode::WUSR)?;
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => Ok(Some(Self { _file: file })),
            Err(Errno::WOULDBLOCK) => Ok(None),
            Err(errno) => Err(errno.into()),
        }
    }
}

/// A process that has this root, by any of its threads: the first one may have ended before the others.
///
/// # Errors
/// When the kernel does not list processes, or the root cannot be looked at.
pub(super) fn running_in(root: &Path) -> io::Result<Option<u32>> {
    let place = |path: &Path| fs::metadata(path).map(|found| (found.dev(), found.ino()));
    let root = match place(root) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        found => found?,
    };
    for process in fs::read_dir("/proc")? {
        let process = process?;
        let name = process.file_name();
        let Some(number) = name.to_str().and_then(|name| name.parse().ok()) else { continue };
        // One that has ended meanwhile has none.
        let Ok(threads) = fs::read_dir(process.path().join("task")) else { continue };
        let has_root = |thread: &fs::DirEntry| {
            place(&thread.path().join("root")).is_ok_and(|found| found == root)
        };
        if threads.flatten().any(|thread| has_root(&thread)) {
            return Ok(Some(number));
        }
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::os::unix::fs::{PermissionsExt, symlink};

    use super::*;

    #[test]
    fn a_process_is_found_by_its_root() {
        let folder = tempfile::tempdir().unwrap();

        assert!(running_in(Path::new("/")).unwrap().is_some());
        assert_eq!(running_in(folder.path()).unwrap(), None);
        assert_eq!(running_in(&folder.path().join("none")).unwrap(), None);
    }

    #[test]
    fn one_jailer_at_a_time_makes_a_root() {
        let folder = tempfile::tempdir().unwrap();
        let first = Lock::take(folder.path()).unwrap();
        assert!(first.is_some());
        let mode = fs::metadata(folder.path().join(LOCK)).unwrap().permissions().mode();
        assert_eq!(mode & 0o077, 0);

        assert!(Lock::take(folder.path()).unwrap().is_none());

        drop(first);
        assert!(Lock::take(folder.path()).unwrap().is_some());
    }

    #[test]
    fn a_link_in_the_place_of_the_lock_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        symlink(folder.path().join("victim"), folder.path().join(LOCK)).unwrap();

        Lock::take(folder.path()).unwrap_err();

        assert!(!folder.path().join("victim").exists());
    }
}
