//! Messages to the thread that loads chunks, of their tag storage.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Mutex, MutexGuard, PoisonError};

use rustix::event::{EventfdFlags, eventfd};

use crate::tag_storage::{ChunkIndex, ChunkLoader};

/// Chunks that may be loaded, as they have their tag storage.
pub(super) struct Inbox {
    event: OwnedFd,
    told: Mutex<Told>,
}

/// What was told since the last look.
#[derive(Debug, Default, Eq, PartialEq)]
pub(super) struct Told {
    /// Chunks that have theirs.
    pub(super) granted: Vec<u64>,
    /// No chunk needs any more.
    pub(super) all: bool,
}

impl Inbox {
    pub(super) fn new() -> io::Result<Self> {
        let event = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        Ok(Self { event, told: Mutex::default() })
    }

    fn lock(&self) -> MutexGuard<'_, Told> {
        self.told.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn tell(&self, change: impl FnOnce(&mut Told)) {
        change(&mut self.lock());
        // It fails only when 2^64 - 2 of them have not been taken.
        let _ = rustix::io::write(&self.event, &1u64.to_ne_bytes());
    }

    /// Takes what was told.
    pub(super) fn take(&self) -> Told {
        // Before the look, so that nothing is left without an event. It fails when there was none.
        let _ = rustix::io::read(&self.event, &mut [0; 8]);
        std::mem::take(&mut *self.lock())
    }
}

impl ChunkLoader for Inbox {
    fn grant(&self, chunk: ChunkIndex) {
        self.tell(|told| told.granted.push(chunk.0));
    }

    fn release(&self) {
        self.tell(|told| told.all = true);
    }
}

impl AsFd for Inbox {
    /// Readable when there is something to take.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.event.as_fd()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use rustix::event::{PollFd, PollFlags, Timespec, poll};

    use super::*;

    #[test]
    fn what_was_told_is_taken_once() {
        let inbox = Inbox::new().unwrap();
        let is_ready = || {
            let mut fds = [PollFd::new(&inbox, PollFlags::IN)];
            poll(&mut fds, Some(&Timespec { tv_sec: 0, tv_nsec: 0 })).unwrap() > 0
        };
        assert!(!is_ready());
        inbox.grant(ChunkIndex(3));
        inbox.grant(ChunkIndex(1));
        inbox.release();
        assert!(is_ready());
        assert_eq!(inbox.take(), Told { granted: vec![3, 1], all: true });
        assert!(!is_ready());
        assert_eq!(inbox.take(), Told::default());
    }
}
