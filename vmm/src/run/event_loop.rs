//! The main thread's event loop.

use std::cell::RefCell;
use std::rc::Rc;

use event_manager::{EventManager, MutEventSubscriber, SubscriberOps};

use super::error::Error;
use super::exit_reason::ExitReason;
use super::shutdown::ShutdownRequest;

/// How many events one wait returns at most; the next wait returns the others. A VM has some twenty descriptors to
/// wait for, and the crate's default keeps two pages for the answer.
const MOST_EVENTS: usize = 32;

type Subscriber<'a> = Box<dyn MutEventSubscriber + 'a>;

/// The main thread's event loop.
pub(super) struct Loop<'a> {
    manager: EventManager<Subscriber<'a>>,
    pending: Subscribers<'a>,
}

/// Takes subscribers while the loop runs, as one of its own subscribers has them.
#[derive(Clone, Default)]
pub(super) struct Subscribers<'a>(Rc<RefCell<Vec<Subscriber<'a>>>>);

impl<'a> Subscribers<'a> {
    /// Has a subscriber added after the present turn of the loop.
    pub(super) fn add(&self, subscriber: Subscriber<'a>) {
        self.0.borrow_mut().push(subscriber);
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
            let pending = self.pending.0.take();
            pending.into_iter().for_each(|subscriber| self.add(subscriber));
            if let Some(reason) = shutdown.take() {
                return Ok(reason);
            }
            self.manager.run().map_err(Error::Loop)?;
        }
    }
}
