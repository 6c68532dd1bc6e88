//! Huge pages that went in pieces, looked at again: most of one has gone for good, or all of it is in use again.
//!
//! Of a huge page of which a part was given back, the host gets nothing until its kernel splits the page, which it does
//! when it is short of memory. And a huge page that was split stays in small pages when the guest uses all of it again.
//! A turn, now and then, makes the host split those of which at least half has gone, and makes one huge page of the
//! small ones where hardly any is missing.
//!
//! A page is left alone while the number of its small pages changes between two turns: the guest is at work there. What a
//! turn does is bounded, as the main thread serves the devices. Once nothing changes any more, turns are rare, and the
//! rarer the longer it takes to look at all pages; once no page is split, there are none.
//!
//! # References
//! Linux mm/khugepaged.c (`madvise_collapse`), mm/madvise.c (`madvise_cold_or_pageout_pte_range`); madvise(2)

use std::cell::LazyCell;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use arch::range::MemoryRange;
use arch::units::Bytes;
use rustix::time::{ClockId, clock_gettime};

use super::mapping::PagesInMemory;
use super::ram::GuestRam;
use super::reclaim::{Counters, Renewal};
use super::split::{SplitPage, SplitPages};
use crate::sys::timer::Timer;
use crate::sys::{meminfo, small_file};

/// The time from the first piece of a huge page to the first turn, and between turns while things change.
const SOON: Duration = Duration::from_secs(2);

/// The time between turns where nothing changes: what the guest does is seen so much later at most.
const LATE: Duration = Duration::from_secs(6);

/// The time between two rounds of turns is so many times what looking at all pages took: a guest of a TiB may have half a
/// million.
const REST: u32 = 50;

/// The longest time between rounds, whatever the clock says that they took.
const LATEST: Duration = Duration::from_secs(300);

/// The time to the next turn where one has not done all there is.
const AT_ONCE: Duration = Duration::from_millis(50);

/// Huge pages that are looked at in a turn, at most: each takes the kernel some microseconds.
const LOOKS: usize = 256;

/// How long a turn may take before it ends with the huge page that it is at: making or splitting one takes the kernel
/// about half a millisecond.
const TURN: Duration = Duration::from_millis(2);

/// The looks between two tries to make a huge page double with each failure, up to this power of two.
const LONGEST_REST: u8 = 8;

/// Of how many parts of a huge page one may be missing when it is made of small pages: what is missing is taken from
/// the host again.
const MISSING: u16 = 16;

/// Nothing is mended where less than this part of the host's memory is available.
const SPARE: u64 = 16;

/// Huge pages that went in pieces, shared by who gives memory back and who mends.
#[derive(Clone, Debug)]
pub(super) struct Split {
    size: Bytes,
    pages: Arc<Mutex<SplitPages>>,
    timer: Arc<Timer>,
}

impl Split {
    /// Shares these. `None` when the host gives no timer.
    pub(super) fn new(pages: SplitPages) -> Option<Self> {
        let size = pages.size();
        let timer = Arc::new(Timer::new().ok()?);
        Some(Self { size, pages: Arc::new(Mutex::new(pages)), timer })
    }

    /// The size of a huge page.
    pub(super) fn size(&self) -> Bytes {
        self.size
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, SplitPages> {
        self.pages.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Has the first turn come, if none is to come.
    pub(super) fn wake(&self) {
        // Without turns, small pages serve.
        let _ = self.timer.once(SOON);
    }
}

/// What is to become of a huge page.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Plan {
    Leave,
    /// One is made of its small pages.
    Mend,
    /// The host splits it.
    GiveUp,
}

/// Plans, by how many of the small pages of a huge one are in memory, now and at the last look.
fn plan(looked: &PagesInMemory, page: SplitPage) -> Plan {
    let PagesInMemory { present, of, .. } = *looked;
    match page.present == Some(present) {
        true if present >= of - of / MISSING => Plan::Mend,
        true if present > 0 && present <= of / 2 && !page.is_given_up => Plan::GiveUp,
        _ => Plan::Leave,
    }
}

/// Mends huge pages, on the main thread.
#[derive(Debug)]
pub struct Mender {
    ram: GuestRam,
    split: Split,
    counters: Arc<Counters>,
    /// Where the next turn begins.
    next: usize,
    /// Something has changed since the last turn that began with the first.
    has_changed: bool,
    /// How long looks have taken since then.
    looked: Duration,
    /// How long this turn has split and made huge pages.
    worked: Duration,
    wait: Duration,
    /// A chunk without pages is a new mapping before it is touched again.
    comes_anew: bool,
    can_mend: bool,
    has_room: fn() -> bool,
}

impl Mender {
    pub(super) fn new(
        ram: GuestRam,
        split: Split,
        counters: Arc<Counters>,
        renewal: Renewal,
    ) -> Self {
        let can_mend = ram.can_collapse();
        Self {
            ram,
            split,
            counters,
            next: 0,
            has_changed: false,
            looked: Duration::ZERO,
            worked: Duration::ZERO,
            wait: SOON,
            comes_anew: renewal == Renewal::ByHooks,
            can_mend,
            has_room: host_has_room,
        }
    }

    /// What goes off when a turn is due.
    pub(crate) fn timer(&self) -> &Timer {
        &self.split.timer
    }

    /// Postpones a turn, while the guest is paused.
    pub(crate) fn postpone(&self) {
        self.again(self.wait);
    }

    /// Does what there is to do, and has the next turn come.
    pub(crate) fn turn(&mut self) {
        let begun = time_of_thread();
        let is_over = self.continue_round();
        let took = time_of_thread().saturating_sub(begun);
        self.looked += took.saturating_sub(std::mem::take(&mut self.worked));
        match is_over {
            true => self.end_round(),
            false => self.again(AT_ONCE),
        }
    }

    /// Looks at some. Whether none is left.
    fn continue_round(&mut self) -> bool {
        let start = Instant::now();
        let has_room = LazyCell::new(self.has_room);
        let mut looks = 0;
        while looks < LOOKS && start.elapsed() < TURN {
            let found = self.split.lock().next(self.next);
            let Some((number, range, page)) = found else { return true };
            self.next = number + 1;
            looks += 1;
            self.look(number, range, page, &has_room);
        }
        false
    }

    /// Looks at one, and does what there is to do.
    fn look(
        &mut self,
        number: usize,
        range: MemoryRange,
        mut page: SplitPage,
        has_room: &LazyCell<bool, fn() -> bool>,
    ) {
        // One that cannot be looked at, or is a template's in part, stays as it is.
        let Ok(Some(looked)) = self.ram.pages_in_memory(range) else { return };
        self.has_changed |= page.present != Some(looked.present);
        if self.comes_anew && looked.present == 0 {
            self.split.lock().remove(number);
            return self.counters.renewed.add(1);
        }
        let plan = plan(&looked, page);
        page.present = Some(looked.present);
        match plan {
            Plan::Leave => {}
            Plan::GiveUp => {
                page.is_given_up = true;
                let begun = time_of_thread();
                if self.ram.give_up_huge_page(range).is_ok() {
                    self.counters.split.add(1);
                }
                self.worked += time_of_thread().saturating_sub(begun);
            }
            Plan::Mend if page.rest > 0 => page.rest -= 1,
            Plan::Mend if self.can_mend && **has_room => {
                let begun = time_of_thread();
                self.mend(number, range, page);
                self.worked += time_of_thread().saturating_sub(begun);
                return;
            }
            Plan::Mend => {}
        }
        self.split.lock().note(number, page);
    }

    /// Makes one of its small pages. It is taken out before, so that what goes of it meanwhile is noted.
    fn mend(&self, number: usize, range: MemoryRange, mut page: SplitPage) {
        self.split.lock().remove(number);
        match self.ram.collapse(range) {
            Ok(()) => self.counters.mended.add(1),
            // A small page is in use, or the host has no huge page: it may be so for long.
            Err(_) => {
                page.rest = 1 << page.failures;
                page.failures = LONGEST_REST.min(page.failures + 1);
                self.split.lock().put_back(number, page);
            }
        }
    }

    fn end_round(&mut self) {
        self.next = 0;
        self.wait = match std::mem::take(&mut self.has_changed) {
            true => SOON,
            false => LATE.min(self.wait * 2),
        };
        let wait = self.wait.max(rest_after(std::mem::take(&mut self.looked)));
        if !self.split.lock().is_empty() {
            self.again(wait);
        }
    }

    fn again(&self, after: Duration) {
        // Without turns, small pages serve.
        let _ = self.split.timer.once(after);
    }
}

/// The least time between a round of turns whose looks took so long and the next.
fn rest_after(looked: Duration) -> Duration {
    looked.saturating_mul(REST).min(LATEST)
}

/// How long this thread has run. What others do meanwhile is not in it.
fn time_of_thread() -> Duration {
    let now = clock_gettime(ClockId::ThreadCPUTime);
    now.try_into().unwrap_or(Duration::ZERO)
}

/// Whether the host has memory to spare: for a huge page it may have to move others, and reclaim some.
fn host_has_room() -> bool {
    let Some(text) = small_file::text(Path::new("/proc/meminfo")) else { return false };
    match (meminfo::field(&text, "MemAvailable"), meminfo::field(&text, "MemTotal")) {
        (Some(available), Some(total)) => available.get() > total.get() / SPARE,
        _ => false,
    }
}

#[cfg(test)]
mod tests;
