//! Guest memory goes back to the host: discarded, checked, and only then no longer paid for.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicI32, Ordering};

use arch::range::MemoryRange;
use arch::units::Bytes;
use devices::ports::{Discarded, GuestRange, Reclaim};
use vm_memory::GuestAddress;

use super::mend::{Mender, Split};
use super::ram::GuestRam;
use super::split::SplitPages;
use crate::metrics::Counter;

/// How often one discard is tried while the host says "not now" (EINTR, EAGAIN). A signal or two is
/// usual; a host that never has time must not keep the thread that serves all devices.
const TRIES: u32 = 8;

/// What became of a range that was to be discarded.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Outcome {
    /// All of its pages have gone back to the host.
    Gone,
    /// Some of its pages may be left, or all.
    Failed,
}

/// What a host reserves for guest memory beside the memory itself, such as storage for its tags.
///
/// Every discard is announced with [`before`](Self::before) and concluded with [`after`](Self::after),
/// for the same range. A guest may touch that range all the while, and have pages in it again before
/// `after` is called: an implementation that frees there must see to it in `before` that no such touch escapes.
pub trait DiscardHooks: Send {
    /// The memory of a range is about to go back to the host.
    fn before(&mut self, range: MemoryRange);

    /// The host has answered. What is reserved for memory that is gone is freed here: the guest is
    /// notified only afterwards. A discard that failed frees nothing.
    fn after(&mut self, range: MemoryRange, outcome: Outcome);

    /// How huge pages that went in pieces come back.
    fn renewal(&self) -> Renewal;
}

/// How memory that went in pieces, and of which all has gone, can be huge pages again: as a new mapping. Where touches are
/// watched (userfaultfd), that would end with it.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Renewal {
    /// It is mapped anew when it has gone.
    AtOnce,
    /// The hooks map it anew, before it is touched.
    ByHooks,
    /// Not at all: nor is what has gone in part looked at.
    Never,
}

/// Nothing is reserved; or what is reserved stays so for as long as the VM lives, whatever goes back.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct NoHooks;

impl DiscardHooks for NoHooks {
    fn before(&mut self, _: MemoryRange) {}

    fn after(&mut self, _: MemoryRange, _: Outcome) {}

    fn renewal(&self) -> Renewal {
        Renewal::AtOnce
    }
}

/// What the host answered. The caller counts how much was taken. Readable at any time, by any
/// thread.
#[derive(Debug, Default)]
pub struct Counters {
    /// Calls for which the host had no time at first.
    pub retries: Counter,
    /// Chunks that went in pieces, and can be huge pages again.
    pub renewed: Counter,
    /// Chunks whose huge page the host was made to split, as at least half of it had gone.
    pub split: Counter,
    /// Chunks that were made huge pages again, as at most a sixteenth of them was missing.
    pub mended: Counter,
    last_error: AtomicI32,
}

impl Counters {
    /// Why the host refused the latest of the ranges that it refused, if it did any.
    pub fn last_error(&self) -> Option<io::Error> {
        match self.last_error.load(Ordering::Relaxed) {
            0 => None,
            number => Some(io::Error::from_raw_os_error(number)),
        }
    }
}

/// Memory whose pages can go.
trait Pages: Send {
    /// The ranges that it consists of, apart from one another, each of whole pages.
    fn ranges(&self) -> Vec<MemoryRange>;

    /// The size of a page, a power of two.
    fn page_size(&self) -> Bytes;

    /// Gives whole pages of one range back. After that they read zero, tags included. Returns how much has gone.
    fn discard(&self, range: MemoryRange) -> io::Result<Bytes>;

    /// The size of the huge pages that it may be made of, where they can go in pieces.
    fn huge_page_size(&self) -> Option<Bytes>;

    /// Has a huge page possible again at each touch of a range of whole ones, which reads zero. Returns how much of it.
    fn renew(&self, range: MemoryRange) -> io::Result<Bytes>;
}

impl Pages for GuestRam {
    fn ranges(&self) -> Vec<MemoryRange> {
        vec![self.range()]
    }

    fn page_size(&self) -> Bytes {
        self.backing().page_size()
    }

    fn discard(&self, range: MemoryRange) -> io::Result<Bytes> {
        GuestRam::discard(self, range)
    }

    fn huge_page_size(&self) -> Option<Bytes> {
        GuestRam::huge_page_size(self)
    }

    fn renew(&self, range: MemoryRange) -> io::Result<Bytes> {
        GuestRam::renew(self, range)
    }
}

/// Gives a guest's memory back to the host, and what is reserved for it.
pub(crate) struct Reclaimer {
    memory: Box<dyn Pages>,
    ranges: Vec<MemoryRange>,
    hooks: Box<dyn DiscardHooks>,
    counters: Arc<Counters>,
    /// Where huge pages can go in pieces, and come again whole: those that have.
    split: Option<Split>,
}

impl Reclaimer {
    /// A reclaimer of this memory.
    pub(crate) fn new(ram: GuestRam, hooks: Box<dyn DiscardHooks>) -> Self {
        Self::over(Box::new(ram), hooks)
    }

    fn over(memory: Box<dyn Pages>, hooks: Box<dyn DiscardHooks>) -> Self {
        let ranges = memory.ranges();
        let huge = memory.huge_page_size().filter(|_| hooks.renewal() != Renewal::Never);
        let split = huge
            .zip(ranges.first())
            .and_then(|(huge, range)| Split::new(SplitPages::new(*range, huge)));
        Self { memory, ranges, hooks, counters: Arc::default(), split }
    }

    /// What mends this memory's huge pages, which this reclaimer gives back, where it has any.
    pub(crate) fn mender(&self, ram: GuestRam) -> Option<Mender> {
        let split = self.split.clone()?;
        Some(Mender::new(ram, split, self.counters(), self.hooks.renewal()))
    }

    /// The size of huge pages that can go in pieces.
    fn huge(&self) -> Option<Bytes> {
        self.split.as_ref().map(Split::size)
    }

    /// Its counters.
    pub(crate) fn counters(&self) -> Arc<Counters> {
        Arc::clone(&self.counters)
    }

    /// Discards, and looks at the answer.
    fn discard_checked(&self, range: MemoryRange) -> io::Result<Bytes> {
        let not_now = |error: &io::Error| {
            matches!(error.kind(), io::ErrorKind::Interrupted | io::ErrorKind::WouldBlock)
        };
        for _ in 1..TRIES {
            match self.memory.discard(range) {
                Err(error) if not_now(&error) => self.counters.retries.add(1),
                done => return done,
            }
        }
        self.memory.discard(range)
    }

    /// Remembers huge pages of which a part has gone, with which the host keeps a table for the small ones; and has
    /// those possible again that have gone whole.
    fn settle(&self, gone: MemoryRange, memory: MemoryRange) {
        let Some(split) = &self.split else { return };
        let whole = whole_pages(guest_range(gone), memory, split.size());
        if let Some(whole) = whole {
            self.renew_split(whole);
        }
        for edge in [gone.base, GuestAddress(gone.end().0 - 1)] {
            if whole.is_none_or(|whole| !whole.contains(edge)) && split.lock().insert(edge) {
                split.wake();
            }
        }
    }

    /// Renews those of some huge pages that had gone in pieces.
    fn renew_split(&self, pages: MemoryRange) {
        let Some(split) = &self.split else { return };
        if self.hooks.renewal() == Renewal::ByHooks {
            return self.counters.renewed.add(split.lock().forget(pages));
        }
        let taken = split.lock().take(pages);
        for page in taken {
            // An error leaves small pages.
            let renewed = self.memory.renew(page).unwrap_or_default();
            self.counters.renewed.add(renewed.get() / page.size.get());
        }
    }
}

fn guest_range(range: MemoryRange) -> GuestRange {
    GuestRange { start: range.base, length: range.size.get() }
}

impl Reclaim for Reclaimer {
    fn page_size(&self) -> u64 {
        self.memory.page_size().get()
    }

    fn discard(&mut self, range: GuestRange) -> Discarded {
        let mut sum = Discarded::default();
        let page = self.memory.page_size();
        for index in 0..self.ranges.len() {
            let Some(memory) = self.ranges.get(index).copied() else { continue };
            let Some(pages) = whole_pages(range, memory, page) else { continue };
            let bytes = pages.size.get();
            self.hooks.before(pages);
            match self.discard_checked(pages) {
                Ok(gone) if gone == pages.size => {
                    self.settle(pages, memory);
                    self.hooks.after(pages, Outcome::Gone);
                    sum.discarded += bytes;
                }
                // It reads zero, and some of it takes as much memory as before.
                Ok(gone) => {
                    self.hooks.after(pages, Outcome::Failed);
                    self.counters.last_error.store(libc::ENOMEM, Ordering::Relaxed);
                    sum.discarded += gone.get();
                    sum.failed += bytes.saturating_sub(gone.get());
                }
                // Some of the pages may be gone. What is reserved for them stays so until all are.
                Err(error) => {
                    self.hooks.after(pages, Outcome::Failed);
                    let number = error.raw_os_error().unwrap_or(libc::EIO);
                    self.counters.last_error.store(number, Ordering::Relaxed);
                    sum.failed += bytes;
                }
            }
        }
        sum
    }

    fn huge_page_size(&self) -> Option<u64> {
        self.huge().map(Bytes::get)
    }

    fn renew(&mut self, range: GuestRange) {
        let Some(huge) = self.huge() else { return };
        for memory in &self.ranges {
            if let Some(pages) = whole_pages(range, *memory, huge) {
                self.renew_split(pages);
            }
        }
    }
}

/// The whole pages of `memory` that lie in `range`, if there are any. Pages are counted from where the
/// memory begins, which is page-aligned in the guest and in the host. A range that passes the end of the
/// address space ends there.
fn whole_pages(range: GuestRange, memory: MemoryRange, page: Bytes) -> Option<MemoryRange> {
    let base = memory.base.0;
    let end = range.start.0.saturating_add(range.length).min(memory.end().0);
    let start = range.start.0.max(base);
    let first = Bytes::new(start - base).align_up(page)?;
    let last = Bytes::new(end.checked_sub(base)?).align_down(page);
    let size = last.checked_sub(first).filter(|size| !size.is_zero())?;
    Some(MemoryRange::new(GuestAddress(base + first.get()), size))
}

#[cfg(test)]
mod tests;
