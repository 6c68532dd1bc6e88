//! Locks of open file descriptions (`F_OFD_SETLK`, fcntl_locking(2)): each ends with the last descriptor of its
//! description, however the process ends, and another process can look at it without taking it.
#![allow(unsafe_code, reason = "rustix has the locks of processes, not those of descriptions")]

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;

/// Takes the lock on the whole file; false if another description has it.
///
/// # Errors
/// As fcntl(2), for instance on a file that is not open for writing.
pub(crate) fn try_lock(file: &File) -> io::Result<bool> {
    match control(file, libc::F_OFD_SETLK) {
        Ok(_) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(false),
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => Ok(false),
        Err(error) => Err(error),
    }
}

/// Whether another description has a lock on the file. Nothing is locked for it.
///
/// # Errors
/// As fcntl(2).
pub(crate) fn is_locked(file: &File) -> io::Result<bool> {
    control(file, libc::F_OFD_GETLK).map(|found| i32::from(found.l_type) != libc::F_UNLCK)
}

fn control(file: &File, command: i32) -> io::Result<libc::flock> {
    let mut lock = libc::flock {
        l_type: libc::F_WRLCK as libc::c_short,
        l_whence: libc::SEEK_SET as libc::c_short,
        l_start: 0,
        // To the end of the file, wherever that will be.
        l_len: 0,
        // The kernel refuses any other for these commands.
        l_pid: 0,
    };
    // SAFETY: the descriptor is open while `file` is borrowed, and both commands take a pointer to a flock, which
    // lives until the call returns.
    let result = unsafe { libc::fcntl(file.as_raw_fd(), command, &raw mut lock) };
    match result {
        0 => Ok(lock),
        _ => Err(io::Error::last_os_error()),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn a_lock_is_seen_by_others_until_its_description_closes() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("file");
        let owner = File::create(&path).unwrap();
        let reader = File::open(&path).unwrap();
        let rival = File::options().write(true).open(&path).unwrap();
        assert!(!is_locked(&reader).unwrap());

        assert!(try_lock(&owner).unwrap());

        assert!(is_locked(&reader).unwrap() && is_locked(&rival).unwrap());
        assert!(!is_locked(&owner).unwrap(), "its own lock is none of another");
        assert!(!try_lock(&rival).unwrap());
        drop(owner);
        assert!(!is_locked(&reader).unwrap());
        assert!(try_lock(&rival).unwrap());
    }

    #[test]
    fn a_file_that_is_open_for_reading_is_looked_at_and_not_locked() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("file");
        File::create(&path).unwrap();
        let reader = File::open(&path).unwrap();

        assert!(try_lock(&reader).is_err());
        assert!(!is_locked(&reader).unwrap());
    }
}
