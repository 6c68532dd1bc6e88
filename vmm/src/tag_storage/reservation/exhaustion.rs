//! What the thread that serves touches reports to the VM's main thread.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use rustix::event::{EventfdFlags, eventfd};

use super::backend::PoolClientError;
use super::demand::{Error, Exhaustion};
use crate::error::chain;
use crate::tag_storage::chunk::ChunkIndex;

/// What the guest waits for, for the thread that acts on it.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct ExhaustionSnapshot {
    /// A touch waits for tag storage, for this reason. `None`: none does.
    pub lacking: Option<String>,
    /// One has waited for as long as it may.
    pub expired: bool,
    /// Nothing is reserved any more, for this reason.
    pub failed: Option<String>,
}

/// The present state, with an eventfd that signals a change. States that have passed are not kept.
#[derive(Debug)]
pub struct ExhaustionStatus {
    snapshot: Mutex<ExhaustionSnapshot>,
    /// Whether the snapshot has been taken since its last change.
    taken: AtomicBool,
    eventfd: OwnedFd,
}

impl ExhaustionStatus {
    /// The state in which nothing is lacking.
    ///
    /// # Errors
    /// When the host gives no descriptor.
    pub fn new() -> io::Result<Self> {
        let eventfd = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        Ok(Self { snapshot: Mutex::default(), taken: AtomicBool::new(true), eventfd })
    }

    /// The present state. The eventfd is drained.
    pub fn take(&self) -> ExhaustionSnapshot {
        // It fails when it was taken already.
        let _ = rustix::io::read(&self.eventfd, &mut [0; 8]);
        let snapshot = self.lock();
        self.taken.store(true, Ordering::Relaxed);
        snapshot.clone()
    }

    /// The present state; the eventfd is left as it is.
    pub fn look(&self) -> ExhaustionSnapshot {
        self.lock().clone()
    }

    fn lock(&self) -> MutexGuard<'_, ExhaustionSnapshot> {
        self.snapshot.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn change(&self, change: impl FnOnce(&mut ExhaustionSnapshot)) {
        {
            let mut snapshot = self.lock();
            change(&mut snapshot);
            self.taken.store(false, Ordering::Relaxed);
        }
        // It fails after 2^64 - 2 signals that were not drained.
        let _ = rustix::io::write(&self.eventfd, &1u64.to_ne_bytes());
    }
}

impl AsFd for ExhaustionStatus {
    /// Readable after a change, until [`take`](Self::take).
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.eventfd.as_fd()
    }
}

impl Exhaustion for ExhaustionStatus {
    fn exhausted(&self, chunk: ChunkIndex, why: &PoolClientError) {
        self.change(|snapshot| {
            snapshot.lacking = Some(format!("the guest touches {chunk}: {}", chain(why)))
        });
    }

    fn relieved(&self) {
        self.change(|snapshot| (snapshot.lacking, snapshot.expired) = (None, false));
    }

    fn expired(&self, _: ChunkIndex) {
        self.change(|snapshot| snapshot.expired = true);
    }

    fn is_taken(&self) -> bool {
        self.taken.load(Ordering::Relaxed)
    }

    fn failed(&self, why: &Error) {
        self.change(|snapshot| snapshot.failed = Some(chain(why)));
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;
    use crate::tag_storage::pool::error::ReserveError;
    use crate::tag_storage::supply::SupplyName;
    use arch::units::Bytes;

    #[test]
    fn a_snapshot_is_the_present_state() {
        let notices = ExhaustionStatus::new().unwrap();
        let (wanted, max, supply) = (Bytes::kib(64), Bytes::mib(1), SupplyName::Ledger);
        let why = ReserveError::OverMax { wanted, max, supply }.into();

        notices.exhausted(ChunkIndex(7), &why);
        notices.expired(ChunkIndex(7));
        let snapshot = notices.take();
        let lacking = snapshot.lacking.unwrap();
        assert!(lacking.contains("chunk 7") && lacking.contains("--tag-max"), "{lacking}");
        assert!(snapshot.expired);

        notices.relieved();
        assert_eq!(notices.take(), ExhaustionSnapshot::default());

        notices.failed(&Error::InUse);
        assert!(notices.look().failed.is_some());
    }
}
