//! The VMs of a user: one small file each, in a directory that only that user can write. Beside them, the VMs of
//! services.
//!
//! A VM publishes an [`Entry`] at its start and holds a lock on the file for its life. Whether a VM lives is asked of
//! the lock, never of the number of a process: the kernel releases it however the process ends, and a number may
//! since be that of another process. What a file says is used for nothing else than to reach the VM.
//!
//! ```text
//! vms/           mode 0700
//!   vm1.json     a VM with an id that its user has chosen; one at a time
//!   pid.42.json  a VM without one
//!   .new.42      an entry that is being written
//!   vm1/         what `tesseractl run` keeps of vm1: sockets and log
//! templates.d/   mode 0700: the socket of each template that a process holds, by the id of its snapshot
//! ```

mod directory;
mod entry;
mod list;
mod process;
mod record;
mod service;

use std::io;
use std::path::PathBuf;

pub use directory::{Directory, templates};
pub(crate) use directory::{entries, lock_templates};
pub use entry::{Entry, Publication};
pub use list::{Listing, Skipped, Vm};
pub use process::Process;
pub use record::Record;

use crate::vm_id::RULE;

/// Why the registry cannot be used, or not as asked.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Neither variable is set.
    #[error(
        "there is no directory for the files of running VMs: set XDG_RUNTIME_DIR, as a login session does, or \
         TESSERA_RUNTIME_DIR to a directory of yours"
    )]
    NoPlace,
    /// `TESSERA_RUNTIME_DIR` is relative, so that two programs would not mean the same.
    #[error("TESSERA_RUNTIME_DIR is {0:?}: set it to an absolute path")]
    NotAbsolute(PathBuf),
    /// The directory is of another user, or others can write to it.
    #[error(
        "{0:?} is not a directory that this user owns and no other can write: remove it, or set TESSERA_RUNTIME_DIR to \
         another place"
    )]
    NotOurs(PathBuf),
    /// Another process changes the directory and does not end.
    #[error("{0:?} is locked by a process that does not end; fuser(1) names it")]
    Busy(PathBuf),
    /// A VM of this id runs.
    #[error("a VM '{id}' already runs (pid {pid}): give another --id")]
    AlreadyRuns {
        /// The id.
        id: String,
        /// The process, as its entry says.
        pid: u32,
    },
    /// An entry without an id is there already, of another PID namespace.
    #[error("{0:?} is the entry of another VM; give this one an --id")]
    Taken(PathBuf),
    /// The id is none.
    #[error("the id '{0}' is not usable: {RULE}")]
    Id(String),
    /// A path of the entry is no text, or too long.
    #[error("the VM has a path that is no UTF-8 or too long for an entry: choose another one")]
    Unwritable,
    /// The process is not that of the entry.
    #[error("the VM has ended: no process holds its entry any more")]
    Ended,
    /// The process of the entry cannot be seen from here.
    #[error("process {0} is not the VM's: does the VM run in another PID namespace, a container?")]
    OtherNamespace(u32),
    /// The kernel refuses.
    #[error("cannot {what} {path:?}")]
    System {
        /// What was tried.
        what: &'static str,
        /// With what.
        path: PathBuf,
        /// The kernel's reason.
        #[source]
        source: io::Error,
    },
}

impl Error {
    /// Whether the VM must not start. After any other error it can run; it is not listed then.
    pub fn forbids_start(&self) -> bool {
        matches!(self, Self::AlreadyRuns { .. })
    }
}

#[cfg(test)]
mod tests;
