//! The processes that memory of the node is lent to.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rustix::process::{Pid, PidfdFlags, pidfd_open};
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
/// A process is known by a descriptor: once it has ended, another one that gets its number is left alone. The list
/// is locked for moments only: a borrower is out of it while its memory is searched or moved.
#[derive(Clone, Default)]
pub struct BorrowerProcesses(Arc<Mutex<List>>);

#[derive(Default)]
struct List {
    entries: BTreeMap<Key, Entry>,
    next: Key,
    /// Where the next eviction begins.
    first: Key,
}

/// A borrower's key in the list, never used again.
pub(crate) type Key = u64;

struct Entry {
    pid: u32,
    /// `None` while its memory is searched or moved.
    borrower: Option<BorrowerProcess>,
    /// Pages that would not move, when that began.
    stuck: u64,
    /// They are to be forgotten when it comes back.
    forget_stuck: bool,
}

impl BorrowerProcesses {
    /// Adds the process of this number. The caller knows that it runs.
    ///
    /// # Errors
    /// As [`add_process`](Self::add_process).
    pub fn add(&self, pid: u32) -> Result<(), BorrowerError> {
        let number = i32::try_from(pid).ok().and_then(Pid::from_raw);
        let number = number.ok_or(BorrowerError::Missing(pid))?;
        let pidfd = pidfd_open(number, PidfdFlags::empty());
        self.add_process(pid, pidfd.map_err(|errno| refused(pid, errno.into()))?)
    }

    /// Adds a process, once however often it is added: the one that the descriptor refers to, whatever has its
    /// number now.
    ///
    /// # Errors
    /// When it has ended, its memory may not be moved, or there are too many.
    pub fn add_process(&self, pid: u32, pidfd: OwnedFd) -> Result<(), BorrowerError> {
        let number = i32::try_from(pid).ok().and_then(Pid::from_raw);
        let process = Real::new(number.ok_or(BorrowerError::Missing(pid))?, pidfd);
        self.admit(process.map_err(|source| refused(pid, source))?)
    }

    pub(crate) fn admit(&self, process: impl Process + 'static) -> Result<(), BorrowerError> {
        let mut list = self.lock();
        list.entries.retain(|_, entry| {
            entry.borrower.as_ref().is_none_or(|borrower| borrower.process.is_alive())
        });
        let pid = process.pid();
        if list.entries.values().any(|entry| entry.pid == pid) {
            return Ok(());
        }
        if list.entries.len() >= MAX_BORROWERS {
            return Err(BorrowerError::TooMany);
        }
        let key = list.next;
        list.next += 1;
        let borrower = Some(BorrowerProcess::new(Box::new(process)));
        list.entries.insert(key, Entry { pid, borrower, stuck: 0, forget_stuck: false });
        Ok(())
    }

    /// Removes a process. Its memory is not moved any more.
    pub fn remove(&self, pid: u32) {
        self.lock().entries.retain(|_, entry| entry.pid != pid);
    }

    /// How many there are; some may have ended.
    pub fn len(&self) -> usize {
        self.lock().entries.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Pages of all of them that would not move when last tried.
    pub(crate) fn stuck(&self) -> u64 {
        let list = self.lock();
        let stuck =
            |entry: &Entry| entry.borrower.as_ref().map_or(entry.stuck, BorrowerProcess::stuck);
        list.entries.values().map(stuck).sum()
    }

    /// Forgets which pages would not move: they are tried again.
    pub(crate) fn forget_stuck(&self) {
        for entry in self.lock().entries.values_mut() {
            match &mut entry.borrower {
                Some(borrower) => borrower.forget_stuck(),
                None => entry.forget_stuck = true,
            }
        }
    }

    /// Does something with one after the other, each out of the list while that lasts, until it says that this is enough.
    /// One that it does not keep is removed. The caller makes sure that only one such call runs at a time.
    pub(crate) fn each(&self, mut act: impl FnMut(&mut BorrowerProcess) -> Act) {
        let keys: Vec<Key> = {
            let list = self.lock();
            let from_first = list.entries.range(list.first..);
            from_first.chain(list.entries.range(..list.first)).map(|(key, _)| *key).collect()
        };
        for key in keys {
            let Some(mut borrower) = self.take_out(key) else { continue };
            let act = act(&mut borrower);
            self.put_back(key, borrower, act.keep);
            if act.begin_behind {
                self.lock().first = key + 1;
            }
            if act.enough {
                return;
            }
        }
    }

    fn take_out(&self, key: Key) -> Option<BorrowerProcess> {
        let mut list = self.lock();
        let entry = list.entries.get_mut(&key)?;
        entry.stuck = entry.borrower.as_ref()?.stuck();
        entry.borrower.take()
    }

    fn put_back(&self, key: Key, mut borrower: BorrowerProcess, keep: bool) {
        let mut list = self.lock();
        if !keep {
            list.entries.remove(&key);
        }
        // It may have been removed in between.
        let Some(entry) = list.entries.get_mut(&key) else { return };
        if std::mem::take(&mut entry.forget_stuck) {
            borrower.forget_stuck();
        }
        entry.borrower = Some(borrower);
    }

    fn lock(&self) -> MutexGuard<'_, List> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What becomes of a borrower and of the rest of the list.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Act {
    /// It stays in the list.
    pub keep: bool,
    /// The others are left alone.
    pub enough: bool,
    /// The next round begins behind it.
    pub begin_behind: bool,
}

fn refused(pid: u32, source: io::Error) -> BorrowerError {
    match source.raw_os_error() {
        Some(libc::ESRCH | libc::ENOENT) => BorrowerError::Missing(pid),
        Some(libc::EPERM | libc::EACCES) => BorrowerError::Denied { pid, source },
        _ => BorrowerError::Host { pid, source },
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

        assert!(matches!(borrowers.add(child.id()), Err(BorrowerError::Missing(_))));
    }

    #[test]
    fn the_number_of_another_process_does_not_stand_for_it() {
        let borrowers = BorrowerProcesses::default();
        let mut ended = Command::new("true").spawn().unwrap();
        let number = Pid::from_raw(ended.id() as i32).unwrap();
        let pidfd = pidfd_open(number, PidfdFlags::empty()).unwrap();
        ended.wait().unwrap();

        // As if this process had got the number of the one that has ended.
        let own = std::process::id();
        let added = borrowers.add_process(own, pidfd);

        assert!(matches!(added, Err(BorrowerError::Missing(pid)) if pid == own));
        assert!(borrowers.is_empty());
    }
}
