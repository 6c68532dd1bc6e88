//! The way back to a broker that is started again.

use std::ops::ControlFlow;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, MutexGuard, PoisonError};
use std::time::Duration;

use super::connection::Connection;
use super::slot_map::Debt;
use super::{BrokerEvent, Error, LastError, Shared, State};
use crate::sys::thread;
use crate::tag_storage::broker::protocol::wire::{MAX_ADOPT, Role, Terms};
use crate::tag_storage::pool::{SlotIndex, tags_of};

/// The first pause before the broker is tried again, and the longest: a broker that is restarted listens
/// soon, and one that is gone for good costs little.
const FIRST_PAUSE: Duration = Duration::from_millis(50);
const LONGEST_PAUSE: Duration = Duration::from_secs(2);

/// The thread does not recurse.
const STACK_SIZE: usize = 128 << 10;

impl Shared {
    /// Starts a thread that looks for a broker, unless there is one already.
    pub(super) fn look_for_another(self: &Arc<Self>, state: &mut State) {
        if state.closed || state.given_up || state.reconnecting {
            return;
        }
        let shared = Arc::clone(self);
        match thread::spawn(thread::Role::BrokerClient, "broker", STACK_SIZE, move || {
            supervise(&shared, reconnect)
        }) {
            Ok(_) => state.reconnecting = true,
            Err(error) => state.last_error = LastError(Some(error.to_string())),
        }
    }

    /// Has the broker take over what is owed.
    ///
    /// # Errors
    /// When the broker does not have all of it, or is gone, as it is when a connection that was `present` is
    /// so no longer.
    fn settle(&self, connection: &Arc<Connection>, present: bool) -> Result<(), Error> {
        let debts = {
            let mut state = self.state();
            let debts = state.slots.debts();
            state.adopting = !debts.is_empty();
            debts
        };
        let settled = debts.chunks(MAX_ADOPT).try_for_each(|part| {
            match self.settle_part(connection, present, part) {
                Ok(true) => ControlFlow::Continue(()),
                Ok(false) => ControlFlow::Break(Ok(())),
                Err(error) => ControlFlow::Break(Err(error)),
            }
        });
        let mut state = self.state();
        state.adopting = false;
        if let ControlFlow::Break(Err(error)) = settled {
            return Err(error);
        }
        match state.slots.owed() {
            0 => Ok(()),
            owed => Err(Error::Owed { owed: tags_of(owed), supply: connection.terms.supply }),
        }
    }

    /// Has the broker take over a part of what is owed. `false`: it does not have all of it.
    fn settle_part(
        &self,
        connection: &Arc<Connection>,
        present: bool,
        part: &[Debt],
    ) -> Result<bool, Error> {
        let slots: Vec<SlotIndex> = part.iter().map(|(_, slot)| *slot).collect();
        let adopted = connection.adopt(&self.path, &slots)?;
        let mut state = self.state();
        if present && !state.is_present(connection) {
            return Err(Error::Lost { path: self.path.clone(), source: None });
        }
        for ((chunk, _), slot) in part.iter().zip(&adopted) {
            let Some(slot) = slot else { continue };
            // Freed while the broker was being asked.
            if let Some(slot) = state.slots.settle(*chunk, *slot) {
                state.freed.push(slot);
            }
        }
        connection.free_now(&mut state.freed);
        Ok(!adopted.contains(&None))
    }

    /// Memory has its place from the start: it cannot follow a broker that has other tag storage, or lends
    /// it in another way.
    fn is_as_before(&self, now: &Terms) -> Result<(), Error> {
        let before = self.state().terms;
        let lends = |terms: &Terms| (self.role == Role::Borrower).then_some(terms.lend);
        if (before.supply, lends(&before)) == (now.supply, lends(now)) {
            return Ok(());
        }
        let show = |terms: &Terms| match lends(terms) {
            Some(lend) => format!("--supply {} --lend {lend}", terms.supply),
            None => format!("--supply {}", terms.supply),
        };
        Err(Error::Changed { before: show(&before), now: show(now) })
    }

    /// Tries once to reconnect, with everything.
    fn try_to_reconnect(self: &Arc<Self>) -> Result<(), Error> {
        let present = self.state().connection.clone();
        if let Some(connection) = present {
            return self.settle_rest(&connection);
        }
        let connection = Connection::open(&self.path, self.role, true, &self.wanted)?;
        let connection = Arc::new(connection);
        self.is_as_before(&connection.terms)?;
        let settled = self.settle(&connection, false);
        let attached = match &settled {
            Ok(()) | Err(Error::Owed { .. }) => self.attach(connection),
            Err(_) => Ok(()),
        };
        let mut state = self.state();
        if state.connection.is_none() {
            // What this broker had taken over is lost with the connection.
            state.lose();
            attached.map_err(|errno| Error::Events(errno.into()))?;
            return settled;
        }
        let owed = state.slots.owed();
        self.queue(&mut state, BrokerEvent::Attached { owed });
        settled
    }

    /// Tries to have the rest of a debt taken over.
    fn settle_rest(self: &Arc<Self>, connection: &Arc<Connection>) -> Result<(), Error> {
        let settled = self.settle(connection, true);
        match &settled {
            Ok(()) => self.queue(&mut self.state(), BrokerEvent::Attached { owed: 0 }),
            Err(Error::Owed { .. }) => {}
            Err(_) => self.detach(connection),
        }
        settled
    }

    /// Waits, unless the client is closed or given up, or a debt is to be settled at once.
    fn pause(&self, state: MutexGuard<'_, State>, pause: Duration) {
        let idle = |state: &mut State| !state.is_over() && !state.settle_now;
        let waited = self.changed.wait_timeout_while(state, pause, idle);
        waited.unwrap_or_else(PoisonError::into_inner).0.settle_now = false;
    }
}

impl State {
    fn is_over(&self) -> bool {
        self.closed || self.given_up
    }
}

/// Reconnects to the broker, however long it takes, unless the client is closed or given up.
fn reconnect(shared: &Arc<Shared>) {
    let mut pause = FIRST_PAUSE;
    loop {
        let over = shared.state().is_over();
        let result = if over { Ok(()) } else { shared.try_to_reconnect() };
        let mut state = shared.state();
        // A connection that was lost again meanwhile is looked for here as well.
        if state.is_over() || (result.is_ok() && state.connection.is_some()) {
            state.reconnecting = false;
            let connection = if state.closed { state.connection.take() } else { None };
            connection.iter().for_each(|connection| connection.close());
            return;
        }
        if let Err(error) = result {
            state.last_error = LastError(Some(crate::error::chain(&error)));
        }
        shared.pause(state, pause);
        pause = (pause * 2).min(LONGEST_PAUSE);
    }
}

/// Runs `body`, and runs it again after it has panicked: a VM without a way to its broker would be so for
/// good, as a borrower asks it for nothing.
fn supervise(shared: &Arc<Shared>, body: impl Fn(&Arc<Shared>)) {
    while catch_unwind(AssertUnwindSafe(|| body(shared))).is_err() {
        let mut state = shared.state();
        state.adopting = false;
        state.last_error =
            LastError(Some("the VMM's own code panicked; please report this".to_owned()));
        if state.connection.is_none() {
            state.lose();
        }
        shared.pause(state, LONGEST_PAUSE);
    }
}

#[cfg(test)]
mod tests;
