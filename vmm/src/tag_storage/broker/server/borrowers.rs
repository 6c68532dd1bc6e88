//! The processes that may live in tag storage.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::sys::peer::PeerProcess;
use crate::tag_storage::supply::node;

/// Each process is here for as long as one of its connections to the broker lasts. Clones are the same list.
#[derive(Clone, Default)]
pub struct BorrowerConnections {
    connections: Arc<Mutex<BTreeMap<u32, u32>>>,
    /// Where the supply knows them, if it lends.
    lent: Option<node::BorrowerProcesses>,
}

impl BorrowerConnections {
    /// Those of a supply that lends.
    pub fn of(lent: node::BorrowerProcesses) -> Self {
        Self { connections: Arc::default(), lent: Some(lent) }
    }

    /// Adds the process that connected until the answer is dropped. The supply knows it by its descriptor: its
    /// number may be another's by now.
    ///
    /// # Errors
    /// When what is lent to it could not be taken back.
    pub(crate) fn add(&self, peer: PeerProcess) -> Result<Borrowing, node::BorrowerError> {
        let PeerProcess { pid, pidfd } = peer;
        // Counted first, so that another connection of the process that ends now leaves it to the supply.
        *self.lock().entry(pid).or_default() += 1;
        let borrowing = Borrowing { borrowers: self.clone(), pid };
        if let Some(lent) = &self.lent {
            // Not with the list locked: it takes some system calls.
            lent.add_process(pid, pidfd.ok_or(node::BorrowerError::Missing(pid))?)?;
        }
        Ok(borrowing)
    }

    /// The processes.
    pub fn pids(&self) -> Vec<u32> {
        self.lock().keys().copied().collect()
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<u32, u32>> {
        self.connections.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A process among the [`BorrowerConnections`].
pub struct Borrowing {
    borrowers: BorrowerConnections,
    pid: u32,
}

impl Drop for Borrowing {
    fn drop(&mut self) {
        let mut connections = self.borrowers.lock();
        let Some(open) = connections.get_mut(&self.pid) else { return };
        *open -= 1;
        if *open == 0 {
            connections.remove(&self.pid);
            if let Some(lent) = &self.borrowers.lent {
                lent.remove(self.pid);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;
    use crate::testing::{Means, skip};

    #[test]
    fn a_process_is_there_for_as_long_as_one_of_its_connections() {
        let borrowers = BorrowerConnections::default();
        let peer = |pid| PeerProcess { pid, pidfd: None };
        let (first, second) = (borrowers.add(peer(7)).unwrap(), borrowers.add(peer(7)).unwrap());
        let _other = borrowers.add(peer(8)).unwrap();

        drop(first);
        assert_eq!(borrowers.pids(), [7, 8]);
        drop(second);
        assert_eq!(borrowers.pids(), [8]);
    }

    /// A VM that reconnects opens its new connection while its old one ends.
    #[test]
    fn a_process_stays_lent_to_while_another_of_its_connections_ends() {
        let lent = node::BorrowerProcesses::default();
        let borrowers = BorrowerConnections::of(lent.clone());
        let pid = std::process::id();
        let add = || {
            let number = rustix::process::getpid();
            let pidfd =
                rustix::process::pidfd_open(number, rustix::process::PidfdFlags::empty()).unwrap();
            borrowers.add(PeerProcess { pid, pidfd: Some(pidfd) })
        };
        if add().is_err() {
            return skip(Means::PageMoves, "the kernel does not move pages of another process");
        }
        let reconnect = || {
            for _ in 0..500 {
                let _borrowing = add().unwrap();
                assert_eq!(lent.len(), 1);
            }
        };

        std::thread::scope(|scope| {
            (0..3).for_each(|_| drop(scope.spawn(reconnect)));
        });

        assert!(lent.is_empty() && borrowers.pids().is_empty());
    }

    #[test]
    fn a_process_whose_memory_could_not_be_taken_back_is_none() {
        let borrowers = BorrowerConnections::of(node::BorrowerProcesses::default());

        assert!(borrowers.add(PeerProcess { pid: u32::MAX, pidfd: None }).is_err());
        assert!(borrowers.pids().is_empty());
    }
}
