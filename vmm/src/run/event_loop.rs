//! The main thread's event loop.

use event_manager::{EventManager, MutEventSubscriber, SubscriberOps};

use super::error::Error;
use super::exit_reason::ExitReason;
use super::shutdown::ShutdownRequest;

/// How many events one wait returns at most; the next wait returns the others. A VM has some twenty descriptors to
/// wait for, and the crate's default keeps two pages for the answer.
const MOST_EVENTS: usize = 32;

/// The main thread's event loop.
pub(super) struct Loop(EventManager<Box<dyn MutEventSubscriber>>);

impl Loop {
    pub(super) fn new() -> Result<Self, Error> {
        EventManager::new_with_capacity(MOST_EVENTS).map(Self).map_err(Error::Loop)
    }

    pub(super) fn add(&mut self, subscriber: Box<dyn MutEventSubscriber>) {
        self.0.add_subscriber(subscriber);
    }

    pub(super) fn run_until(&mut self, shutdown: &ShutdownRequest) -> Result<ExitReason, Error> {
        loop {
            if let Some(reason) = shutdown.take() {
                return Ok(reason);
            }
            self.0.run().map_err(Error::Loop)?;
        }
    }
}
