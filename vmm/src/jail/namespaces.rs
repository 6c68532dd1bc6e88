//! The namespaces of a jail.
//!
//! There is no user namespace among them: the jail's user is a user of the host without capabilities, whom the modes of
//! files hold, and root of a user namespace would have kernel interfaces in reach that such a user has not.
//!
//! # References
//! namespaces(7), setns(2), network_namespaces(7)

use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};

use rustix::mount::{MountPropagationFlags, mount_change};
use rustix::thread::{LinkNameSpaceType, UnshareFlags, move_into_link_name_space};

use super::{Error, process};

/// A network namespace that a VM is to be in.
#[derive(Debug)]
pub(super) struct Network {
    path: PathBuf,
    file: File,
}

impl Network {
    /// That of a file, such as those that `ip netns` makes in /run/netns.
    ///
    /// # Errors
    /// When it cannot be opened.
    pub(super) fn open(path: &Path) -> Result<Self, Error> {
        let path = path.to_owned();
        match File::open(&path) {
            Ok(file) => Ok(Self { path, file }),
            Err(source) => Err(Error::NetworkNamespace { path, source }),
        }
    }

    /// Enters it.
    ///
    /// # Errors
    /// When it is no network namespace.
    pub(super) fn enter(&self) -> Result<(), Error> {
        let entered =
            move_into_link_name_space(self.file.as_fd(), Some(LinkNameSpaceType::Network));
        entered.map_err(|errno| Error::NetworkNamespace {
            path: self.path.clone(),
            source: errno.into(),
        })
    }
}

/// Has the processes that this one forks be in a new PID namespace, of which the first is process 1.
///
/// # Errors
/// When the kernel refuses.
pub(super) fn new_pids() -> Result<(), Error> {
    process::unshare(UnshareFlags::NEWPID).map_err(Error::Namespaces)
}

/// Leaves the host's mounts, IPC, names and network. What is mounted from here on is mounted for this process alone.
///
/// # Errors
/// When the kernel refuses.
pub(super) fn enter(network: Option<&Network>) -> Result<(), Error> {
    let flags = UnshareFlags::NEWNS | UnshareFlags::NEWIPC | UnshareFlags::NEWUTS;
    match network {
        Some(network) => {
            network.enter()?;
            process::unshare(flags)
        }
        None => process::unshare(flags | UnshareFlags::NEWNET),
    }
    .map_err(Error::Namespaces)?;
    keep_mounts(MountPropagationFlags::PRIVATE).map_err(Error::Namespaces)
}

/// Leaves the host's mounts alone.
///
/// # Errors
/// When the kernel refuses.
pub(super) fn new_mounts() -> Result<(), Error> {
    process::unshare(UnshareFlags::NEWNS).map_err(Error::Namespaces)?;
    // What the client mounts in the root later comes here, and nothing goes the other way.
    keep_mounts(MountPropagationFlags::DOWNSTREAM).map_err(Error::Namespaces)
}

/// What is mounted in this namespace is not to be in others, as mounts of systemd's are.
fn keep_mounts(how: MountPropagationFlags) -> io::Result<()> {
    Ok(mount_change("/", how | MountPropagationFlags::REC)?)
}
