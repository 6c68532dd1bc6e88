//! The state of a balloon, saved and restored.

use std::sync::atomic::Ordering;

use serde::{Deserialize, Serialize};

use super::config::Space;
use super::pages::Saved;
use super::{Balloon, QUEUE_SIZES, Role, Statistics};
use crate::state::{RestoreError, Stateful, check};
use crate::virtio::Head;

/// The state of a balloon.
///
/// The pages in it are discarded in the memory that is saved with it, but for a few that waited for the rest of their
/// huge pages, and stay.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct State {
    pub(super) space: Space,
    pub(super) reporting: bool,
    pub(super) pages: Saved,
    pub(super) statistics: Option<Statistics>,
    pub(super) held: Option<Head>,
    pub(super) requested: bool,
}

impl Stateful for Balloon {
    type State = State;

    fn save(&self) -> State {
        State {
            space: self.space,
            reporting: self.reporting,
            pages: self.pages.save(),
            statistics: self.statistics,
            held: self.held,
            requested: self.requested,
        }
    }

    fn restore(&mut self, state: State) -> Result<(), RestoreError> {
        let State { space, reporting, pages, statistics, held, requested } = state;
        if !self.is_target(space.num_pages) {
            let problem = "is more than guest memory";
            return Err(RestoreError::configuration("the target of the balloon", problem));
        }
        let used = statistics.is_some() || held.is_some();
        check(
            !used || self.queue_of(Role::Statistics).is_some(),
            "the balloon",
            "has statistics of a driver that sends none",
        )?;
        // A queue can be smaller still: Ring::complete looks.
        let fits = |head: &Head| head.0 < QUEUE_SIZES[0];
        check(
            held.as_ref().is_none_or(fits),
            "the buffer for statistics",
            "is no descriptor of the queue",
        )?;
        check(
            pages.is_empty() || self.driver_features().is_some(),
            "the balloon",
            "has pages of a driver that is not ready",
        )?;
        self.pages.restore(&pages)?;
        self.counters.inflated.store(self.pages.bytes(), Ordering::Relaxed);
        self.space = space;
        self.reporting = reporting;
        self.statistics = statistics;
        // Those are of before the save, and so is this.
        self.actual_then = space.actual;
        self.held = held;
        self.requested = requested;
        Ok(())
    }
}
