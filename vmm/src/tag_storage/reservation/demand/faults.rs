//! The thread that resolves faults on chunks without memory.

use std::collections::{BTreeSet, VecDeque};
use std::ops::Range;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::process::Pid;

use super::ahead::{Ahead, AheadLimits};
use super::loader::Wish;
use super::window::Window;
use super::{Error, Exhaustion, Shared};
use crate::sys::uffd::Fault;
use crate::tag_storage::chunk::{ChunkIndex, each, one};
use crate::tag_storage::reservation::PoolClientError;
use crate::tag_storage::reservation::backend::Answer;
use crate::tag_storage::reservation::chunk_table::{State, Touched};

mod wishes;

/// How often a pool that had nothing is asked again without a notice: tag storage may come free without one,
/// and ten requests a second are no load.
const RETRY: Duration = Duration::from_millis(100);

/// Chunks of one request. More threads wait at once only where a VM has more vCPUs, and then in turns.
const MOST_AT_ONCE: usize = 64;

/// How long things may take.
#[derive(Clone, Copy, Debug)]
pub(super) struct Limits {
    /// How long a fault may wait for tag storage: `--on-exhausted`.
    pub deadline: Duration,
    /// How long the pool may take for an answer before faults count as waiting. A broker needs
    /// microseconds, and some milliseconds for each page that it moves. A shorter deadline expires then.
    pub answer: Duration,
    /// How long the listener may leave an expired deadline unread while it waits for a chunk itself. More
    /// than the ten seconds in which it pauses vCPUs.
    pub listen: Duration,
    /// Chunks that are reserved for before they are touched.
    pub ahead: AheadLimits,
}

impl Limits {
    pub(super) fn new(deadline: Duration, ahead: AheadLimits) -> Self {
        let (answer, listen) = (Duration::from_millis(500), Duration::from_secs(15));
        Self { deadline, answer, listen, ahead }
    }
}

/// A chunk that is touched and has no slot.
struct PendingFault {
    chunk: ChunkIndex,
    since: Instant,
    /// What to reserve for with it.
    run: Range<ChunkIndex>,
}

/// Why faults wait.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Lack {
    /// The pool refuses.
    Refused,
    /// The broker cannot be asked.
    Broker,
    /// The pool has not answered yet.
    Unanswered,
}

/// What is ready.
struct Ready {
    signal: bool,
    faults: bool,
}

/// Resolves faults. When it ends, for whatever reason, no thread waits any more.
pub(super) struct Faults {
    shared: Arc<Shared>,
    limits: Limits,
    listener: Arc<dyn Exhaustion>,
    /// The thread that the listener acts in.
    listening: Pid,
    /// First come, first served. No longer than there are threads that can wait.
    pending: VecDeque<PendingFault>,
    /// Read at once; empty in between.
    found: Vec<Fault>,
    /// How many of the first are being asked for, and since when.
    asked: usize,
    /// All that is being asked for: what is touched, and then what is to be ahead.
    asked_for: Vec<ChunkIndex>,
    asked_at: Instant,
    /// What was ahead had to be freed since then.
    yielded: bool,
    /// How many to ask for at once.
    batch: usize,
    /// Chunks that are to have slots and are not touched, and the one of them that is being asked for. Each is that of a
    /// thread that waits for the answer.
    wishes: VecDeque<Wish>,
    wish: Option<Wish>,
    lack: Option<Lack>,
    /// When an expired deadline was last reported.
    expired: Option<Instant>,
    window: Window,
    ahead: Ahead,
}

impl Faults {
    pub(super) fn new(
        shared: Arc<Shared>,
        limits: Limits,
        listener: Arc<dyn Exhaustion>,
        listening: Pid,
    ) -> Self {
        Self {
            shared,
            limits,
            listener,
            listening,
            pending: VecDeque::new(),
            found: Vec::new(),
            asked: 0,
            asked_for: Vec::new(),
            asked_at: Instant::now(),
            yielded: false,
            batch: MOST_AT_ONCE,
            wishes: VecDeque::new(),
            wish: None,
            lack: None,
            expired: None,
            window: Window::default(),
            ahead: Ahead::new(limits.ahead),
        }
    }

    /// Resolves faults until all is closed.
    pub(super) fn run(&mut self) -> Result<(), Error> {
        while !self.shared.is_closed() {
            let ready = self.wait()?;
            if ready.signal {
                // Before anything is tried, so that no signal is lost.
                self.shared.drain();
                self.take_requests();
            }
            if ready.faults {
                self.read()?;
            }
            self.reserve()?;
            self.check_deadline()?;
            if self.shared.yields.swap(false, Ordering::SeqCst) {
                self.yield_ahead();
            }
            self.ahead.look(&self.shared);
        }
        Ok(())
    }

    /// Waits for faults, a signal, an answer of the pool, or the next thing to do for pending faults.
    fn wait(&self) -> Result<Ready, Error> {
        let timeout = self.pending.front().map(|oldest| {
            let left = self.deadline_of(oldest).filter(|_| self.expired.is_none());
            let left = left.map(|at| at.saturating_duration_since(Instant::now()));
            // An expired deadline is acted on with the answer or when that is overdue.
            let left = left.filter(|left| !left.is_zero());
            left.map_or(RETRY, |left| left.min(RETRY))
        });
        let wished = self.wish.as_ref().map(|_| RETRY);
        let timeout = timeout.into_iter().chain(self.ahead.until_look()).chain(wished).min();
        let timeout = timeout.map(|pause| Timespec {
            tv_sec: pause.as_secs() as i64,
            tv_nsec: pause.subsec_nanos().into(),
        });
        let is_asking = self.asked > 0 || self.wish.is_some();
        let awaited = if is_asking { self.shared.pool.awaited() } else { None };
        let signal = PollFd::new(&self.shared.eventfd, PollFlags::IN);
        let faults = PollFd::new(&self.shared.faults, PollFlags::IN);
        let mut fds = [signal, faults, PollFd::new(&self.shared.eventfd, PollFlags::IN)];
        let mut count = 2;
        if let Some(awaited) = &awaited {
            fds[2] = PollFd::from_borrowed_fd(awaited.socket.as_fd(), awaited.events);
            count = 3;
        }
        match poll(&mut fds[..count], timeout.as_ref()) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(errno) => return Err(Error::Wait(errno.into())),
        }
        let ready = |at: usize| !fds[at].revents().is_empty();
        Ok(Ready { signal: ready(0), faults: ready(1) })
    }

    fn read(&mut self) -> Result<(), Error> {
        let mut found = std::mem::take(&mut self.found);
        self.shared.faults.read(&mut found)?;
        let result = found.drain(..).try_for_each(|fault| self.faulted(fault));
        self.found = found;
        result
    }

    fn faulted(&mut self, fault: Fault) -> Result<(), Error> {
        let Some(chunk) = self.shared.faults.chunk_of(&fault) else { return Ok(()) };
        self.shared.counters.touches.add(1);
        let touched = self.shared.table().touch(chunk);
        let waits = (touched == Touched::Absent).then_some(chunk);
        self.shared.threads.set(fault.thread, waits);
        match touched {
            Touched::Absent => {
                if !self.is_pending(chunk) {
                    self.pend(chunk);
                }
                Ok(())
            }
            // It was resolved while this fault was on its way here, or could not be disarmed at first.
            Touched::Populated => self.shared.resolve(chunk),
            Touched::Busy | Touched::Outside => Ok(()),
        }
    }

    /// A chunk needs a slot, unless it is one that is being asked for already.
    fn pend(&mut self, chunk: ChunkIndex) {
        if let Some(given) = self.window.given(chunk) {
            self.shared.settle_walk(&given);
        }
        let room = self.ahead.room(&self.shared);
        let run = {
            let table = self.shared.table();
            self.window.touch(chunk, room.saturating_add(1), |chunk| table.state(chunk))
        };
        self.pend_with(chunk, run);
    }

    fn pend_with(&mut self, chunk: ChunkIndex, run: Range<ChunkIndex>) {
        self.pending.push_back(PendingFault { chunk, since: Instant::now(), run });
        self.count_pending();
    }

    /// Reserves for pending faults, for as long as there is tag storage, and then for what is not touched.
    fn reserve(&mut self) -> Result<(), Error> {
        // One request is under way at a time.
        if !self.take_answer_to_wish() {
            self.check_answer();
            return Ok(());
        }
        self.reserve_for_touches()?;
        self.serve_wishes();
        Ok(())
    }

    fn reserve_for_touches(&mut self) -> Result<(), Error> {
        while !self.pending.is_empty() && !self.shared.is_closed() {
            let answer = match self.asked {
                0 => self.ask(),
                _ => self.shared.pool.answer(),
            };
            match answer {
                None => {
                    self.check_answer();
                    return Ok(());
                }
                Some(Ok(count)) => self.reserved(count)?,
                Some(Err(why)) => {
                    self.asked = 0;
                    self.batch = 1;
                    let several = self.asked_for.len() > 1;
                    let is_short = matches!(why, PoolClientError::Pool(_));
                    // The pool may have less than that, or as much as is ahead.
                    if is_short && (self.yield_ahead() > 0 || several) {
                        continue;
                    }
                    self.lacks(why);
                    return Ok(());
                }
            }
        }
        if self.pending.is_empty() && self.lack.is_some() {
            (self.lack, self.expired) = (None, None);
            self.listener.relieved();
        }
        Ok(())
    }

    /// Asks for several chunks at once; for one after a refusal, and for more and more again after that.
    fn ask(&mut self) -> Option<Answer> {
        let mut chunks = std::mem::take(&mut self.asked_for);
        chunks.clear();
        let asked = self.pending.iter().take(self.batch);
        self.asked = asked.len();
        // They are Absent, but for what a discard is at: it changes them to that alone.
        chunks.extend(asked.clone().map(|pending| pending.chunk));
        let ahead: BTreeSet<ChunkIndex> = {
            let table = self.shared.table();
            let fits = |chunk: &ChunkIndex| {
                table.state(*chunk) == Some(State::Absent) && !chunks.contains(chunk)
            };
            asked.flat_map(|pending| each(&pending.run).filter(fits)).collect()
        };
        chunks.extend(ahead);
        self.asked_for = chunks;
        self.asked_at = Instant::now();
        self.yielded = false;
        self.shared.counters.requests.add(1);
        self.shared.pool.request(&self.asked_for, self.asked)
    }

    /// The first of the chunks that were asked for have slots, those that are touched at least.
    fn reserved(&mut self, count: usize) -> Result<(), Error> {
        self.batch = self.batch.saturating_mul(2).min(MOST_AT_ONCE);
        let mut had = std::mem::take(&mut self.asked_for);
        let is_short = count < had.len();
        had.truncate(count);
        had.sort_unstable();
        let touched: Vec<ChunkIndex> = self
            .pending
            .drain(..std::mem::take(&mut self.asked))
            .map(|fault| fault.chunk)
            .collect();
        touched.iter().for_each(|chunk| self.shared.threads.remove(*chunk));
        if std::mem::take(&mut self.yielded) {
            self.free_untouched(&mut had, &touched);
        }
        if had.len() > touched.len() {
            self.ahead.opened();
        }
        self.shared.provide(&had, &touched)?;
        // One that was touched while it was being asked for ahead has its slot now, and its waiters are woken.
        self.end_waits(|chunk| had.binary_search(&chunk).is_ok());
        if is_short {
            self.yield_ahead();
        }
        Ok(())
    }

    /// Asks no more for those of the touched chunks that have their slots. Returns whether one of them waited.
    fn end_waits(&mut self, has_slot: impl Fn(ChunkIndex) -> bool) -> bool {
        let before = self.pending.len();
        self.pending.retain(|fault| {
            let waits = !has_slot(fault.chunk);
            if !waits {
                self.shared.threads.remove(fault.chunk);
            }
            waits
        });
        self.count_pending();
        self.pending.len() < before
    }

    fn is_pending(&self, chunk: ChunkIndex) -> bool {
        self.pending.iter().any(|fault| fault.chunk == chunk)
    }

    /// Frees what was given for chunks that are not touched, before any has a page.
    fn free_untouched(&self, had: &mut Vec<ChunkIndex>, touched: &[ChunkIndex]) {
        let (kept, spare): (Vec<ChunkIndex>, Vec<ChunkIndex>) = std::mem::take(had)
            .into_iter()
            .partition(|chunk| touched.contains(chunk) || self.is_pending(*chunk));
        if !spare.is_empty() {
            self.shared.pool.free(&spare);
        }
        *had = kept;
    }

    /// The pool is short: nothing more is reserved for before it is touched, and what was is freed.
    fn yield_ahead(&mut self) -> u64 {
        self.window.clear();
        self.yielded = self.asked > 0;
        for fault in &mut self.pending {
            fault.run = one(fault.chunk);
        }
        self.ahead.yield_all(&self.shared)
    }

    fn lacks(&mut self, why: PoolClientError) {
        let Some(oldest) = self.pending.front() else { return };
        let lack = match &why {
            PoolClientError::Pool(_) => Lack::Refused,
            PoolClientError::Broker(_) => Lack::Broker,
            PoolClientError::Unanswered => Lack::Unanswered,
        };
        let before = self.lack;
        // What an answer that is late will be was not known before either.
        if before == Some(lack) || (before.is_some() && lack == Lack::Unanswered) {
            return;
        }
        match self.shared.refuse(why) {
            // The thread that loads the guest continues, and comes upon the refusal.
            Ok(()) => self.shared.close(),
            Err(why) => {
                self.lack = Some(lack);
                if before.is_none() {
                    self.shared.counters.exhausted.add(1);
                }
                self.listener.exhausted(oldest.chunk, &why);
            }
        }
    }

    /// A pool that is silent is one that has nothing, but for a VM that is being loaded: it waits.
    fn check_answer(&mut self) {
        if self.asked_at.elapsed() >= self.limits.answer && !self.shared.is_loading() {
            self.lacks(PoolClientError::Unanswered);
        }
    }

    fn check_deadline(&mut self) -> Result<(), Error> {
        let Some(oldest) = self.pending.front().filter(|_| self.lack.is_some()) else {
            return Ok(());
        };
        match self.expired {
            None if self.deadline_of(oldest).is_some_and(|deadline| deadline <= Instant::now()) => {
                self.shared.counters.expired.add(1);
            }
            Some(at) if at.elapsed() >= self.limits.listen => {
                // Busy or stopped it reads that later; waiting for a chunk itself it may never.
                if !self.listener.is_taken() && self.shared.threads.contains(self.listening) {
                    return Err(Error::Unheard);
                }
            }
            _ => return Ok(()),
        }
        // Again and again: the listener may come to wait for tag storage itself at any time.
        self.expired = Some(Instant::now());
        self.listener.expired(oldest.chunk);
        Ok(())
    }

    /// When a fault has waited for too long. A time beyond all clocks is none.
    fn deadline_of(&self, pending: &PendingFault) -> Option<Instant> {
        pending.since.checked_add(self.limits.deadline)
    }

    /// Publishes how many wait before the pool is asked for them: a thread that frees afterwards signals.
    fn count_pending(&self) {
        self.shared.waiting.store(self.pending.len() as u64, Ordering::SeqCst);
    }
}

impl Drop for Faults {
    fn drop(&mut self) {
        self.shared.close();
    }
}
