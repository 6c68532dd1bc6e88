//! What is kept of one VM: `vms/ID/` of the registry.

use std::fs::File;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;

use rustix::fs::{FlockOperation, Mode, OFlags, flock, open};
use vmm::registry::{Directory, Error as Registry};

use super::spawn;
use crate::failure::Failure;

/// What the VM says.
pub(crate) const LOG: &str = "log";
/// Its sockets.
const SOCKETS: [&str; 3] = ["api", "serial", "vsock"];
/// Of the names vm1, vm2 and so on, the last one: a host does not hold as many.
const MOST: u32 = 9999;

/// The folder of a VM that starts, locked against another start of the same name.
#[derive(Debug)]
pub(super) struct Folder {
    name: String,
    path: PathBuf,
    _lock: OwnedFd,
}

impl Folder {
    /// That of the VM with this id, or with the first of vm1, vm2 and so on that is free.
    pub(super) fn take(id: Option<&str>) -> Result<Self, Failure> {
        let directory = Directory::create()?;
        if let Some(id) = id {
            return match Self::try_take(&directory, id)? {
                Some(folder) => Ok(folder),
                None => {
                    let pid = directory.find(id).map_or(0, |vm| vm.record.pid);
                    Err(Registry::AlreadyRuns { id: id.to_owned(), pid }.into())
                }
            };
        }
        for number in 1..=MOST {
            if let Some(folder) = Self::try_take(&directory, &format!("vm{number}"))? {
                return Ok(folder);
            }
        }
        Err(Failure::refused("vm1 to vm9999 all run: give an --id"))
    }

    /// `None` if a VM of this name runs or starts.
    fn try_take(directory: &Directory, name: &str) -> Result<Option<Self>, Failure> {
        let path = directory.folder_of(name)?;
        let failed = |what: &str, error: &dyn std::fmt::Display| {
            Failure::refused(format!("cannot {what} {path:?}: {error}"))
        };
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let lock = open(&path, flags, Mode::empty()).map_err(|errno| failed("open", &errno))?;
        match flock(&lock, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(rustix::io::Errno::WOULDBLOCK) => return Ok(None),
            Err(errno) => return Err(failed("lock", &errno)),
        }
        // The second for a VM that has no entry, for whatever reason.
        if directory.find(name).is_some() || UnixStream::connect(path.join(SOCKETS[0])).is_ok() {
            return Ok(None);
        }
        let folder = Self { name: name.to_owned(), path, _lock: lock };
        folder.clear();
        Ok(Some(folder))
    }

    /// What the VM is called.
    pub(super) fn name(&self) -> String {
        self.name.clone()
    }

    /// A file in it.
    pub(super) fn join(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }

    /// Where the VM's messages are.
    pub(super) fn log(&self) -> PathBuf {
        self.path.join(LOG)
    }

    /// A new log.
    pub(super) fn create_log(&self) -> Result<File, Failure> {
        spawn::create_log(&self.log())
            .map_err(|error| Failure::refused(format!("cannot create {:?}: {error}", self.log())))
    }

    /// Removes what an earlier VM of the name has left.
    fn clear(&self) {
        for name in SOCKETS.into_iter().chain([LOG]) {
            // What stays is in the way of what is to be made, which says so.
            let _ = std::fs::remove_file(self.path.join(name));
        }
    }

    /// Leaves nothing of a VM that has not started.
    pub(super) fn remove(self) {
        self.clear();
        // Files that are not ours stay.
        let _ = std::fs::remove_dir(&self.path);
    }
}
