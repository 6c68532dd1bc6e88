//! Counts on a thread of its own, so that the main thread need not wait for a large guest's pages.

use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::{Error, Footprint, Probe};
use crate::memory::GuestRam;
use crate::sys::thread::{self, Role};

/// How long a caller waits. It is the main thread: the guest waits for the devices that it serves, and a vCPU
/// without tag storage for it to act. Some hundred GiB are counted in less.
const PATIENCE: Duration = Duration::from_secs(1);

/// How long a count that took longer than a caller waits is kept for its next call: Prometheus, for one, asks
/// every 15 s to 60 s.
const KEEP: Duration = Duration::from_secs(60);

/// The thread's stack: what it reads is elsewhere.
const STACK_SIZE: usize = 128 << 10;

/// Measures footprints.
///
/// A call waits for one count at most. Calls in a row wait for no more than half of the time: a footprint
/// is returned again for as long as it took to count.
pub struct Meter {
    shared: Arc<Shared>,
    patience: Duration,
    keep: Duration,
}

/// Counts once, or stops.
type Count = dyn Fn(&AtomicBool) -> Result<Footprint, Error> + Send + Sync;

struct Shared {
    count: Box<Count>,
    state: Mutex<State>,
    changed: Condvar,
    stop: AtomicBool,
}

#[derive(Default)]
struct State {
    thread: Option<JoinHandle<()>>,
    /// A count has been asked for, and has not ended.
    asked: bool,
    /// The latest count, until it has been returned or is old.
    ended: Option<Result<Counted, Error>>,
    /// The latest that has been.
    latest: Option<Counted>,
}

#[derive(Clone)]
struct Counted {
    footprint: Arc<Footprint>,
    at: Instant,
    took: Duration,
}

impl Meter {
    /// A meter of this memory. All that it reads is opened here; its thread starts with the first call.
    pub fn new(ram: &GuestRam) -> Self {
        let probe = Probe::new(ram);
        Self::of(move |stop| probe.measure(stop), PATIENCE)
    }

    fn of(
        count: impl Fn(&AtomicBool) -> Result<Footprint, Error> + Send + Sync + 'static,
        patience: Duration,
    ) -> Self {
        let shared = Shared {
            count: Box::new(count),
            state: Mutex::default(),
            changed: Condvar::new(),
            stop: AtomicBool::new(false),
        };
        Self { shared: Arc::new(shared), patience, keep: KEEP }
    }

    /// How much of the host guest memory takes.
    ///
    /// # Errors
    /// When the kernel does not tell, or [`Error::Counting`].
    pub fn footprint(&self) -> Result<Arc<Footprint>, Error> {
        let mut state = self.shared.lock();
        if let Some(latest) = state.latest.as_ref().filter(|latest| latest.is_fresh()) {
            return Ok(Arc::clone(&latest.footprint));
        }
        // It is of a time that says nothing of now.
        state.ended.take_if(|ended| ended.as_ref().is_ok_and(|it| it.at.elapsed() >= self.keep));
        if state.ended.is_none() {
            let waited_for = state.asked && state.is_alive();
            if waited_for {
                return Err(Error::Counting);
            }
            self.shared.ask(&mut state).map_err(Error::Thread)?;
            let unfinished = |state: &mut State| state.ended.is_none() && state.is_alive();
            let waited = self.shared.changed.wait_timeout_while(state, self.patience, unfinished);
            state = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
        match state.ended.take() {
            Some(Ok(counted)) => {
                let footprint = Arc::clone(&counted.footprint);
                state.latest = Some(counted);
                Ok(footprint)
            }
            Some(Err(error)) => Err(error),
            None => Err(Error::Counting),
        }
    }
}

impl Drop for Meter {
    fn drop(&mut self) {
        let thread = {
            let mut state = self.shared.lock();
            self.shared.stop.store(true, Ordering::Relaxed);
            self.shared.changed.notify_all();
            state.thread.take()
        };
        // It has panicked or not: it has ended.
        thread.map(JoinHandle::join);
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Has the thread count once, and starts it where there is none.
    fn ask(self: &Arc<Self>, state: &mut State) -> io::Result<()> {
        if !state.is_alive() {
            let shared = Arc::clone(self);
            state.thread =
                Some(thread::spawn(Role::Footprint, "footprint", STACK_SIZE, move || {
                    shared.run()
                })?);
        }
        state.asked = true;
        self.changed.notify_all();
        Ok(())
    }

    fn run(&self) {
        let mut state = self.lock();
        loop {
            let idle = |state: &mut State| !state.asked && !self.stop.load(Ordering::Relaxed);
            state = self.changed.wait_while(state, idle).unwrap_or_else(PoisonError::into_inner);
            if self.stop.load(Ordering::Relaxed) {
                return;
            }
            drop(state);
            let start = Instant::now();
            let ended = (self.count)(&self.stop).map(|footprint| Counted {
                footprint: Arc::new(footprint),
                at: Instant::now(),
                took: start.elapsed(),
            });
            state = self.lock();
            (state.asked, state.ended) = (false, Some(ended));
            self.changed.notify_all();
        }
    }
}

impl State {
    /// Whether there is a thread, which has not panicked.
    fn is_alive(&self) -> bool {
        self.thread.as_ref().is_some_and(|thread| !thread.is_finished())
    }
}

impl Counted {
    fn is_fresh(&self) -> bool {
        self.at.elapsed() < self.took
    }
}

#[cfg(test)]
mod tests;
