//! What the thread that serves touches has to tell the VM's main thread.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use rustix::event::{EventfdFlags, eventfd};

use super::backend::PoolClientError;
use super::demand::{Error, Exhaustion};
use crate::error::chain;
use crate::tag_storage::chunk::ChunkIndex;

/// What has changed, for the thread that acts on it.
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
    news: Mutex<ExhaustionSnapshot>,
    /// Whether the news have been taken as they are.
    heard: AtomicBool,
    bell: OwnedFd,
}

impl ExhaustionStatus {
    /// No news.
    ///
    /// # Errors
    /// When the host gives no descriptor.
    pub fn new() -> io::Result<Self> {
        let bell = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        Ok(Self { news: Mutex::default(), heard: AtomicBool::new(true), bell })
    }

    /// How things stand, once for each ring of the bell.
    pub fn take(&self) -> ExhaustionSnapshot {
        // It fails when it was taken already.
        let _ = rustix::io::read(&self.bell, &mut [0; 8]);
        let news = self.lock();
        self.heard.store(true, Ordering::Relaxed);
        news.clone()
    }

    /// How things stand.
    pub fn look(&self) -> ExhaustionSnapshot {
        self.lock().clone()
    }

    fn lock(&self) -> MutexGuard<'_, ExhaustionSnapshot> {
        self.news.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn change(&self, change: impl FnOnce(&mut ExhaustionSnapshot)) {
        {
            let mut news = self.lock();
            change(&mut news);
            self.heard.store(false, Ordering::Relaxed);
        }
        // It fails when it has rung 2^64 - 2 times and not been heard.
        let _ = rustix::io::write(&self.bell, &1u64.to_ne_bytes());
    }
}

impl AsFd for ExhaustionStatus {
    /// Readable when there are news.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.bell.as_fd()
    }
}

impl Exhaustion for ExhaustionStatus {
    fn exhausted(&self, chunk: ChunkIndex, why: &PoolClientError) {
        self.change(|news| {
            news.lacking = Some(format!("the guest touches {chunk}: {}", chain(why)))
        });
    }

    fn relieved(&self) {
        self.change(|news| (news.lacking, news.expired) = (None, false));
    }

    fn expired(&self, _: ChunkIndex) {
        self.change(|news| news.expired = true);
    }

    fn is_heard(&self) -> bool {
        self.heard.load(Ordering::Relaxed)
    }

    fn failed(&self, why: &Error) {
        self.change(|news| news.failed = Some(chain(why)));
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
    fn news_are_how_things_stand_now() {
        let notices = ExhaustionStatus::new().unwrap();
        let (wanted, max, supply) = (Bytes::kib(64), Bytes::mib(1), SupplyName::Ledger);
        let why = ReserveError::OverMax { wanted, max, supply }.into();

        notices.exhausted(ChunkIndex(7), &why);
        notices.expired(ChunkIndex(7));
        let news = notices.take();
        let lacking = news.lacking.unwrap();
        assert!(lacking.contains("chunk 7") && lacking.contains("--tag-max"), "{lacking}");
        assert!(news.expired);

        notices.relieved();
        assert_eq!(notices.take(), ExhaustionSnapshot::default());

        notices.failed(&Error::InUse);
        assert!(notices.look().failed.is_some());
    }
}
