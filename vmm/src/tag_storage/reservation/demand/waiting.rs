//! Which threads wait for a chunk.

use std::sync::{Mutex, MutexGuard, PoisonError};

use rustix::process::Pid;

use crate::tag_storage::chunk::ChunkIndex;

/// The threads of this process that wait for a chunk, each for one. There are a few at most: vCPUs, and
/// threads that serve devices.
#[derive(Debug, Default)]
pub(super) struct WaitingThreads(Mutex<Vec<(Pid, ChunkIndex)>>);

impl WaitingThreads {
    /// Whether this one does.
    pub(super) fn contains(&self, thread: Pid) -> bool {
        self.lock().iter().any(|(waiting, _)| *waiting == thread)
    }

    /// A thread has a fault, and so waits for no earlier one. It waits for this chunk, or only for a moment.
    pub(super) fn set(&self, thread: Option<Pid>, chunk: Option<ChunkIndex>) {
        let Some(thread) = thread else { return };
        let mut all = self.lock();
        let known = all.iter().position(|(waiting, _)| *waiting == thread);
        known.map(|at| all.swap_remove(at));
        all.extend(chunk.map(|chunk| (thread, chunk)));
    }

    /// No thread waits for this chunk any more.
    pub(super) fn remove(&self, chunk: ChunkIndex) {
        self.lock().retain(|(_, awaited)| *awaited != chunk);
    }

    /// No thread waits any more.
    pub(super) fn clear(&self) {
        self.lock().clear();
    }

    fn lock(&self) -> MutexGuard<'_, Vec<(Pid, ChunkIndex)>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn a_thread_waits_for_the_chunk_that_it_touched_last() {
        let threads = WaitingThreads::default();
        let [one, other] = [1, 2].map(|number| Pid::from_raw(number).unwrap());

        threads.set(Some(one), Some(ChunkIndex(0)));
        threads.set(Some(other), Some(ChunkIndex(0)));
        threads.set(None, Some(ChunkIndex(0)));
        threads.set(Some(one), Some(ChunkIndex(3)));

        threads.remove(ChunkIndex(0));
        assert!(threads.contains(one) && !threads.contains(other));
        threads.set(Some(one), None);
        assert!(!threads.contains(one));
        threads.set(Some(one), Some(ChunkIndex(1)));
        threads.clear();
        assert!(!threads.contains(one));
    }
}
