//! What the tests of this room share.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, MutexGuard};

use arch::units::Bytes;

use super::backend::{Answer, PoolClient, PoolClientReport};
use crate::memory::{Attributes, Backing, GuestRam};
use crate::tag_storage::chunk::ChunkIndex;
use crate::tag_storage::pool::error::ReserveError;
use crate::tag_storage::supply::SupplyName;
use crate::testing::{Means, skip};

/// A pool that only counts, and notices what is freed without having been reserved.
pub(crate) struct FakeHold(Mutex<Books>);

struct Books {
    capacity: u64,
    live: BTreeSet<ChunkIndex>,
    /// The size of each request.
    requests: Vec<usize>,
    wrong: u64,
    headroom: u64,
    granted: u64,
}

impl FakeHold {
    pub(crate) fn new(capacity: u64) -> Arc<Self> {
        let (live, requests) = (BTreeSet::new(), Vec::new());
        let books = Books { capacity, live, requests, wrong: 0, headroom: 0, granted: 0 };
        Arc::new(Self(Mutex::new(books)))
    }

    fn books(&self) -> MutexGuard<'_, Books> {
        self.0.lock().unwrap()
    }

    pub(crate) fn live(&self) -> u64 {
        self.books().live.len() as u64
    }

    /// Whether there is tag storage for a chunk, and how many requests have been granted so far.
    pub(crate) fn look(&self, chunk: ChunkIndex) -> (bool, u64) {
        let books = self.books();
        (books.live.contains(&chunk), books.granted)
    }

    /// How many chunks each request was for.
    pub(crate) fn requests(&self) -> Vec<usize> {
        self.books().requests.clone()
    }

    /// Chunks that were freed without tag storage, or reserved for twice.
    pub(crate) fn wrong(&self) -> u64 {
        self.books().wrong
    }

    /// So many chunks may be reserved for before they are touched.
    pub(crate) fn allow_ahead(&self, chunks: u64) {
        self.books().headroom = chunks;
    }

    pub(crate) fn grow(&self, chunks: u64) {
        self.books().capacity += chunks;
    }
}

impl PoolClient for FakeHold {
    fn reserve(&self, chunks: &[ChunkIndex], least: usize) -> Answer {
        let mut books = self.books();
        books.requests.push(chunks.len());
        let free = books.capacity - books.live.len() as u64;
        let count = if chunks.len() as u64 > free { least } else { chunks.len() };
        if count as u64 > free {
            let (wanted, free) = (Bytes::kib(64 * count as u64), Bytes::kib(64 * free));
            let (set_aside, supply) = (Bytes::ZERO, SupplyName::Ledger);
            return Err(ReserveError::Exhausted { wanted, free, set_aside, supply }.into());
        }
        books.granted += 1;
        for chunk in &chunks[..count] {
            let new = books.live.insert(*chunk);
            books.wrong += u64::from(!new);
        }
        Ok(count)
    }

    fn free(&self, chunks: &[ChunkIndex]) {
        let mut books = self.books();
        for chunk in chunks {
            let known = books.live.remove(chunk);
            books.wrong += u64::from(!known);
        }
    }

    fn headroom(&self) -> u64 {
        self.books().headroom
    }

    fn report(&self) -> PoolClientReport {
        let (live, capacity) = (self.live(), self.books().capacity);
        let tags = |chunks: u64| Bytes::kib(64 * chunks);
        let supply = SupplyName::Ledger;
        PoolClientReport { supply, capacity: tags(capacity), reserved: tags(live), counters: None }
    }
}

/// Anonymous guest memory of so many MiB, in small pages.
pub(crate) fn ram(mib: u64) -> GuestRam {
    ram_of(mib, Backing::Anonymous, false)
}

pub(crate) fn ram_of(mib: u64, backing: Backing, huge_pages: bool) -> GuestRam {
    let attributes = Attributes { tags: false, huge_pages, backing };
    GuestRam::new(Bytes::mib(mib), attributes).unwrap()
}

/// Whether this process may catch page faults. Where it may not, the test is skipped, once it has seen that the
/// message says what to do.
pub(crate) fn may_catch_faults() -> bool {
    let Err(error) = crate::sys::uffd::Uffd::new() else { return true };
    assert!(error.to_string().contains("reserve strictly"), "{error}");
    skip(Means::Userfaultfd, error);
    false
}

/// Whether the threads of this process with this name block the signals that end a VM. Waits until there is
/// one.
pub(crate) fn threads_block_signals(name: &str) -> bool {
    let field = |status: &str, key: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(key)).unwrap_or_default();
        line.trim().to_owned()
    };
    loop {
        let tasks = std::fs::read_dir("/proc/self/task").unwrap().map(Result::unwrap);
        // One that ends meanwhile has no status any more.
        let statuses =
            tasks.filter_map(|task| std::fs::read_to_string(task.path().join("status")).ok());
        let masks: Vec<u64> = statuses
            .filter(|status| field(status, "Name:") == name)
            .map(|status| u64::from_str_radix(&field(&status, "SigBlk:"), 16).unwrap())
            .collect();
        let ending = [libc::SIGHUP, libc::SIGINT, libc::SIGQUIT, libc::SIGTERM];
        let ending = ending.iter().fold(0, |bits, signal| bits | 1 << (signal - 1));
        if !masks.is_empty() {
            return masks.iter().all(|mask| mask & ending == ending);
        }
        std::thread::yield_now();
    }
}
