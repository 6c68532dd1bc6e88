//! The main thread's event loop.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::time::{Duration, Instant};

use event_manager::{EventManager, MutEventSubscriber, SubscriberOps};

use super::error::Error;
use super::exit_reason::ExitReason;
use super::shutdown::ShutdownRequest;
use crate::sys::startup_pages;

/// How many events one wait returns at most; the next wait returns the others. A VM has some twenty descriptors to
/// wait for, and the crate's default keeps two pages for the answer.
const MOST_EVENTS: usize = 32;

type Subscriber<'a> = Box<dyn MutEventSubscriber + 'a>;

/// The main thread's event loop.
pub(super) struct Loop<'a> {
    manager: EventManager<Subscriber<'a>>,
    pending: Subscribers<'a>,
}

/// How long after its start a guest has done what a kernel does once: what the VMM needed for that is not needed again.
const STARTING: Duration = Duration::from_secs(1);

/// What is left for the loop while it runs, as one of its own subscribers has it.
#[derive(Clone, Default)]
pub(super) struct Subscribers<'a>(Rc<Left<'a>>);

#[derive(Default)]
struct Left<'a> {
    subscribers: RefCell<Vec<Subscriber<'a>>>,
    /// When the pages of the start-up are given back.
    release_at: Cell<Option<Instant>>,
}

impl<'a> Subscribers<'a> {
    /// Has a subscriber added after the present turn of the loop.
    pub(super) fn add(&self, subscriber: Subscriber<'a>) {
        self.0.subscribers.borrow_mut().push(subscriber);
    }

    /// A guest has started.
    pub(super) fn started(&self) {
        self.0.release_at.set(Instant::now().checked_add(STARTING));
    }

    /// Gives back what the start-up needed, if it is time for that, or says how long that is from now, in milliseconds.
    fn release_in_time(&self) -> Option<i32> {
        let left = self.0.release_at.get()?.saturating_duration_since(Instant::now());
        if left.is_zero() {
            self.0.release_at.set(None);
            startup_pages::release_program();
            startup_pages::release_stack();
            return None;
        }
        // One more, as a part of one counts.
        i32::try_from(left.as_millis()).map(|left| left.saturating_add(1)).ok()
    }
}

impl<'a> Loop<'a> {
    pub(super) fn new() -> Result<Self, Error> {
        let manager = EventManager::new_with_capacity(MOST_EVENTS).map_err(Error::Loop)?;
        Ok(Self { manager, pending: Subscribers::default() })
    }

    pub(super) fn add(&mut self, subscriber: Subscriber<'a>) {
        self.manager.add_subscriber(subscriber);
    }

    /// Where subscribers are left that come while the loop runs.
    pub(super) fn subscribers(&self) -> Subscribers<'a> {
        self.pending.clone()
    }

    pub(super) fn run_until(&mut self, shutdown: &ShutdownRequest) -> Result<ExitReason, Error> {
        loop {
            let pending = self.pending.0.subscribers.take();
            pending.into_iter().for_each(|subscriber| self.add(subscriber));
            if let Some(reason) = shutdown.take() {
                return Ok(reason);
            }
            let turn = match self.pending.release_in_time() {
                Some(milliseconds) => self.manager.run_with_timeout(milliseconds),
                None => self.manager.run(),
            };
            turn.map_err(Error::Loop)?;
        }
    }
}
