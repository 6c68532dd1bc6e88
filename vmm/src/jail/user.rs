//! The user of a jail.
//!
//! # References
//! credentials(7), capabilities(7), PR_SET_DUMPABLE(2const)

use std::io;
use std::os::fd::AsFd;

use rustix::io::Errno;
use rustix::process::{DumpableBehavior, Gid, Uid, set_dumpable_behavior};
use rustix::thread::{
    CapabilitySet, CapabilitySets, clear_ambient_capability_set,
    remove_capability_from_bounding_set, set_capabilities, set_no_new_privs, set_thread_groups,
    set_thread_res_gid, set_thread_res_uid,
};

/// A user and its group, as numbers of the host.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct User {
    /// The user.
    pub uid: u32,
    /// Its only group.
    pub gid: u32,
}

impl User {
    fn ids(self) -> (Uid, Gid) {
        (Uid::from_raw(self.uid), Gid::from_raw(self.gid))
    }

    /// Gives it a file that is open.
    ///
    /// # Errors
    /// What the kernel answers.
    pub(super) fn own(self, file: impl AsFd) -> io::Result<()> {
        let (uid, gid) = self.ids();
        Ok(rustix::fs::fchown(file, Some(uid), Some(gid))?)
    }

    /// Gives it what has a name in a folder.
    ///
    /// # Errors
    /// What the kernel answers.
    pub(super) fn own_at(self, folder: impl AsFd, name: &std::path::Path) -> io::Result<()> {
        let (uid, gid) = self.ids();
        let flags = rustix::fs::AtFlags::SYMLINK_NOFOLLOW;
        Ok(rustix::fs::chownat(folder, name, Some(uid), Some(gid), flags)?)
    }

    /// Becomes this user, for good: without capabilities, and without a way to them. To be called by a process with one
    /// thread, as these are calls for a thread.
    ///
    /// # Errors
    /// What the kernel answers.
    pub(super) fn become_it(self) -> io::Result<()> {
        let (uid, gid) = self.ids();
        forget_capabilities()?;
        set_thread_groups(&[])?;
        set_thread_res_gid(gid, gid, gid)?;
        set_thread_res_uid(uid, uid, uid)?;
        keep(CapabilitySet::empty())?;
        // The files of a process that has changed its user are root's in /proc, and the VM has to read its own.
        Ok(set_dumpable_behavior(DumpableBehavior::Dumpable)?)
    }
}

/// Drops all capabilities of this thread but these.
///
/// # Errors
/// What the kernel answers.
pub(super) fn keep(kept: CapabilitySet) -> io::Result<()> {
    let sets =
        CapabilitySets { effective: kept, permitted: kept, inheritable: CapabilitySet::empty() };
    Ok(set_capabilities(None, sets)?)
}

/// Has no program that this process executes be given a capability, or another way to rights that it has not. Those that it
/// has now go with its user.
///
/// # Errors
/// What the kernel answers.
pub(super) fn forget_capabilities() -> io::Result<()> {
    set_no_new_privs(true)?;
    drop_bounds()
}

/// No program that is executed later has a capability.
fn drop_bounds() -> io::Result<()> {
    clear_ambient_capability_set()?;
    for (_, capability) in CapabilitySet::all().iter_names() {
        match remove_capability_from_bounding_set(capability) {
            // A kernel that does not know it has none to drop.
            Ok(()) | Err(Errno::INVAL) => {}
            Err(errno) => return Err(errno.into()),
        }
    }
    Ok(())
}
