//! The thread that serves touches of memory that is not there.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;

use super::{Error, Exhaustion, Shared};
use crate::sys::uffd::Fault;
use crate::tag_storage::chunk::ChunkIndex;
use crate::tag_storage::reservation::PoolClientError;
use crate::tag_storage::reservation::chunk_table::Touched;

/// How often a pool that had nothing is asked again by itself: others' tag storage may come free without
/// anyone to say so, and ten questions a second are no load.
const RETRY: Duration = Duration::from_millis(100);

/// How long the main thread may take to hear that one has waited for too long: more than the ten seconds in
/// which it pauses vCPUs. After that it waits for tag storage itself, and the VM could only be killed.
const HEARD_WITHIN: Duration = Duration::from_secs(15);

/// A chunk without a slot, and since when it is wanted.
struct PendingFault {
    chunk: ChunkIndex,
    since: Instant,
}

/// Serves touches, and lets everybody go when it ends, for whatever reason.
pub(crate) struct Faults {
    shared: Arc<Shared>,
    deadline: Duration,
    told: Arc<dyn Exhaustion>,
    /// First come, first served. No longer than there are threads that can wait.
    wishes: VecDeque<PendingFault>,
    /// Read at once; empty in between.
    found: Vec<Fault>,
    exhausted: bool,
    /// Since when one has waited for too long.
    expired: Option<Instant>,
}

impl Faults {
    pub(crate) fn new(shared: Arc<Shared>, deadline: Duration, told: Arc<dyn Exhaustion>) -> Self {
        let wishes = VecDeque::new();
        let found = Vec::new();
        Self { shared, deadline, told, wishes, found, exhausted: false, expired: None }
    }

    /// Serves until all is closed.
    pub(crate) fn run(&mut self) -> Result<(), Error> {
        while !self.shared.is_closed() {
            self.wait()?;
            // Before anything is tried, so that no ring is lost.
            self.shared.hear();
            let mut found = std::mem::take(&mut self.found);
            self.shared.faults.read(&mut found)?;
            for fault in found.drain(..) {
                self.touched(fault)?;
            }
            self.found = found;
            self.serve()?;
            self.look_at_the_clock()?;
        }
        Ok(())
    }

    /// Waits for touches, the bell, or the next thing to do for those that wait.
    fn wait(&self) -> Result<(), Error> {
        let mut fds = [
            PollFd::new(&self.shared.faults, PollFlags::IN),
            PollFd::new(&self.shared.bell, PollFlags::IN),
        ];
        let timeout = self.wishes.front().map(|oldest| {
            let left = self.deadline(oldest).filter(|_| self.expired.is_none());
            let left = left.map(|at| at.saturating_duration_since(Instant::now()));
            let pause = left.map_or(RETRY, |left| left.min(RETRY));
            Timespec { tv_sec: pause.as_secs() as i64, tv_nsec: pause.subsec_nanos().into() }
        });
        match poll(&mut fds, timeout.as_ref()) {
            Ok(_) | Err(Errno::INTR) => Ok(()),
            Err(errno) => Err(Error::Wait(errno.into())),
        }
    }

    fn touched(&mut self, fault: Fault) -> Result<(), Error> {
        let Some(chunk) = self.shared.faults.chunk_of(&fault) else { return Ok(()) };
        self.shared.counters.touches.add(1);
        let touched = self.shared.table().touch(chunk);
        let waits = (touched == Touched::Absent).then_some(chunk);
        self.shared.threads.set(fault.thread, waits);
        match touched {
            Touched::Absent => {
                if self.wishes.iter().all(|wish| wish.chunk != chunk) {
                    self.wishes.push_back(PendingFault { chunk, since: Instant::now() });
                    self.count_wishes();
                }
                Ok(())
            }
            // It was let go while this touch was on its way here, or could not be disarmed at first.
            Touched::Populated => self.shared.let_go(chunk, false),
            Touched::Busy | Touched::Outside => Ok(()),
        }
    }

    /// Gives slots to those that wait, for as long as there are slots.
    fn serve(&mut self) -> Result<(), Error> {
        while let Some(chunk) = self.wishes.front().map(|wish| wish.chunk) {
            if self.shared.is_closed() {
                return Ok(());
            }
            match self.shared.hold.reserve(1) {
                Ok(slots) => {
                    for slot in slots {
                        self.shared.provide(chunk, slot)?;
                    }
                    self.wishes.pop_front();
                    self.shared.threads.remove(chunk);
                    self.count_wishes();
                }
                Err(why) => {
                    self.lacks(chunk, why);
                    return Ok(());
                }
            }
        }
        if self.exhausted {
            (self.exhausted, self.expired) = (false, None);
            self.told.relieved();
        }
        Ok(())
    }

    fn lacks(&mut self, chunk: ChunkIndex, why: PoolClientError) {
        if self.exhausted {
            return;
        }
        match self.shared.refuse(why) {
            // The thread that loads the guest goes on, and comes upon the refusal.
            Ok(()) => self.shared.close(),
            Err(why) => {
                self.exhausted = true;
                self.shared.counters.exhausted.add(1);
                self.told.exhausted(chunk, &why);
            }
        }
    }

    fn look_at_the_clock(&mut self) -> Result<(), Error> {
        let Some(oldest) = self.wishes.front().filter(|_| self.exhausted) else { return Ok(()) };
        match self.expired {
            None if self.deadline(oldest).is_some_and(|deadline| deadline <= Instant::now()) => {
                self.shared.counters.expired.add(1);
            }
            Some(at) if at.elapsed() >= HEARD_WITHIN => {
                if !self.told.is_heard() {
                    return Err(Error::Unheard);
                }
            }
            _ => return Ok(()),
        }
        // Again and again: the main thread may come to wait for tag storage itself at any time.
        self.expired = Some(Instant::now());
        self.told.expired(oldest.chunk);
        Ok(())
    }

    /// When a wish has waited for too long. A time beyond all clocks is none.
    fn deadline(&self, wish: &PendingFault) -> Option<Instant> {
        wish.since.checked_add(self.deadline)
    }

    /// Says how many wait before the pool is asked for them: who frees afterwards rings the bell.
    fn count_wishes(&self) {
        self.shared.waiting.store(self.wishes.len() as u64, Ordering::SeqCst);
    }
}

impl Drop for Faults {
    fn drop(&mut self) {
        self.shared.close();
    }
}
