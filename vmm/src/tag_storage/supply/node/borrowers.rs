//! The processes that memory of the node is lent to.

use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rustix::process::Pid;
use thiserror::Error;

use super::borrower::BorrowerProcess;
use super::process::{Process, Real};

/// BorrowerProcesses that there can be at once: more than VMs fit a host. Each has two descriptors.
pub const MAX_BORROWERS: usize = 4096;

/// Why a process cannot be lent memory: it could not be taken back.
#[derive(Debug, Error)]
pub enum BorrowerError {
    /// There is no such process.
    #[error("there is no process {0}: it has ended, or is in another PID namespace")]
    Missing(u32),
    /// This user may not move its memory.
    #[error(
        "memory of process {pid} may not be moved by this user: run the broker as the same user, or give it \
         CAP_SYS_PTRACE"
    )]
    Denied {
        /// The process.
        pid: u32,
        /// The system's reason.
        #[source]
        source: io::Error,
    },
    /// The host cannot look at it.
    #[error("cannot look at the memory of process {pid}")]
    Host {
        /// The process.
        pid: u32,
        /// The system's reason.
        #[source]
        source: io::Error,
    },
    /// There are as many as there can be.
    #[error("{MAX_BORROWERS} processes have lent memory, as many as there can be: end a VM first")]
    TooMany,
}

/// The processes whose memory may be moved off the node. Clones are the same list.
///
/// A process is known by a descriptor: once it has ended, whoever gets its number is left alone.
#[derive(Clone, Default)]
pub struct BorrowerProcesses(Arc<Mutex<Vec<BorrowerProcess>>>);

impl BorrowerProcesses {
    pub(crate) fn lock(&self) -> MutexGuard<'_, Vec<BorrowerProcess>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds a process, once however often it is added. The caller knows that it runs, for instance because a
    /// connection from it is open *after* this call: until then its number may have become another's.
    ///
    /// # Errors
    /// When there is no such process, its memory may not be moved, or there are too many.
    pub fn add(&self, pid: u32) -> Result<(), BorrowerError> {
        let number = i32::try_from(pid).ok().and_then(Pid::from_raw);
        let process = Real::new(number.ok_or(BorrowerError::Missing(pid))?);
        self.admit(process.map_err(|source| match source.raw_os_error() {
            Some(libc::ESRCH | libc::ENOENT) => BorrowerError::Missing(pid),
            Some(libc::EPERM | libc::EACCES) => BorrowerError::Denied { pid, source },
            _ => BorrowerError::Host { pid, source },
        })?)
    }

    pub(crate) fn admit(&self, process: impl Process + 'static) -> Result<(), BorrowerError> {
        let mut all = self.lock();
        all.retain(|borrower| {
            borrower.process.is_alive() && borrower.process.pid() != process.pid()
        });
        if all.len() >= MAX_BORROWERS {
            return Err(BorrowerError::TooMany);
        }
        all.push(BorrowerProcess::new(Box::new(process)));
        Ok(())
    }

    /// Removes a process. Its memory is not moved any more.
    pub fn remove(&self, pid: u32) {
        self.lock().retain(|borrower| borrower.process.pid() != pid);
    }

    /// How many there are; some may have ended.
    pub fn len(&self) -> usize {
        self.lock().len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::process::{Command, Stdio};

    use super::*;
    use crate::testing::{Means, skip};

    #[test]
    fn a_process_that_is_not_there_is_refused() {
        let borrowers = BorrowerProcesses::default();

        for pid in [0, i32::MAX as u32, u32::MAX] {
            assert!(matches!(borrowers.add(pid), Err(BorrowerError::Missing(p)) if p == pid));
        }
        assert!(borrowers.is_empty());
    }

    #[test]
    fn a_process_is_there_once_and_goes_when_it_is_removed_or_has_ended() {
        let borrowers = BorrowerProcesses::default();
        let mut child = Command::new("cat").stdin(Stdio::piped()).spawn().unwrap();
        let add = || match borrowers.add(child.id()) {
            // Containers may forbid it.
            Err(BorrowerError::Denied { .. } | BorrowerError::Host { .. }) => false,
            done => done.map(|()| true).unwrap(),
        };
        if !add() {
            child.kill().unwrap();
            child.wait().unwrap();
            return skip(Means::PageMoves, "the kernel does not move pages of another process");
        }
        assert!(add());
        assert_eq!(borrowers.len(), 1);
        borrowers.remove(child.id());
        assert!(borrowers.is_empty());
        assert!(add());
        child.kill().unwrap();
        child.wait().unwrap();

        assert!(!borrowers.lock()[0].process.is_alive());
        assert!(matches!(borrowers.add(child.id()), Err(BorrowerError::Missing(_))));
    }
}
