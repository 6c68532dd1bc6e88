//! The way back to a broker that is started again.

use std::sync::Arc;
use std::time::Duration;

use super::connection::Connection;
use super::{Books, BrokerEvent, Error, LastError, Shared, lock};
use crate::sys::thread;
use crate::tag_storage::broker::protocol::wire::{MAX_ADOPT, Role, Terms};
use crate::tag_storage::pool::{SlotIndex, tags_of};

/// The first pause before the broker is tried again, and the longest: a broker that is restarted is back
/// soon, and one that is gone for good costs nothing to speak of.
const FIRST_PAUSE: Duration = Duration::from_millis(50);
const LONGEST_PAUSE: Duration = Duration::from_secs(2);

/// The thread does not recurse.
const STACK_SIZE: usize = 128 << 10;

impl Shared {
    /// Starts a thread that looks for a broker, unless there is one already.
    pub(crate) fn look_for_another(self: &Arc<Self>, books: &mut Books) {
        if books.closed || books.given_up || books.returning {
            return;
        }
        let shared = Arc::clone(self);
        match thread::spawn("broker", STACK_SIZE, move || come_back(&shared)) {
            Ok(_) => books.returning = true,
            Err(error) => books.because = LastError(Some(error.to_string())),
        }
    }

    /// Has the broker take over what is owed.
    ///
    /// # Errors
    /// When the broker does not have all of it, or is gone, as it is when the line is not `present` any more.
    pub(crate) fn settle(&self, line: &Arc<Connection>, present: bool) -> Result<(), Error> {
        let debts = self.books().holdings.debts();
        for part in debts.chunks(MAX_ADOPT) {
            let slots: Vec<SlotIndex> = part.iter().map(|(_, slot)| *slot).collect();
            let adopted = line.adopt(&self.path, &slots)?;
            let mut books = self.books();
            if present && !books.is_present(line) {
                return Err(Error::Lost { path: self.path.clone(), source: None });
            }
            for ((at, _), slot) in part.iter().zip(&adopted) {
                let Some(slot) = slot else { continue };
                // Freed while the broker was being asked.
                if let Some(slot) = books.holdings.settle(*at, *slot) {
                    books.freed.push(slot);
                }
            }
            line.free_now(&mut books.freed);
            if adopted.contains(&None) {
                break;
            }
        }
        match self.books().holdings.owed() {
            0 => Ok(()),
            owed => Err(Error::Owed { owed: tags_of(owed), supply: line.terms.supply }),
        }
    }

    /// Memory has its place from the start: it cannot follow a broker that has other tag storage, or lends
    /// it in another way.
    fn is_as_before(&self, now: &Terms) -> Result<(), Error> {
        let before = self.books().terms;
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

    /// Tries once to come back with everything.
    fn try_to_come_back(self: &Arc<Self>) -> Result<(), Error> {
        let present = self.books().line.clone();
        if let Some(line) = present {
            return self.settle_rest(&line);
        }
        let line = Arc::new(Connection::open(&self.path, self.role, &self.wanted)?);
        self.is_as_before(&line.terms)?;
        let _turn = lock(&self.turn);
        let settled = self.settle(&line, false);
        let attached = match &settled {
            Ok(()) | Err(Error::Owed { .. }) => self.attach(line),
            Err(_) => Ok(()),
        };
        let mut books = self.books();
        if books.line.is_none() {
            // What this broker had taken over is lost with the line.
            books.holdings.lose();
            books.freed.clear();
            attached.map_err(|errno| Error::Events(errno.into()))?;
            return settled;
        }
        let owed = books.holdings.owed();
        self.say(&mut books, BrokerEvent::Attached { owed });
        settled
    }

    /// Tries to have the rest of a debt taken over.
    fn settle_rest(self: &Arc<Self>, line: &Arc<Connection>) -> Result<(), Error> {
        let _turn = lock(&self.turn);
        let settled = self.settle(line, true);
        match &settled {
            Ok(()) => self.say(&mut self.books(), BrokerEvent::Attached { owed: 0 }),
            Err(Error::Owed { .. }) => {}
            Err(_) => self.detach(line),
        }
        settled
    }
}

/// Comes back to the broker, however long it takes, unless the client is closed or given up.
fn come_back(shared: &Arc<Shared>) {
    let mut pause = FIRST_PAUSE;
    let is_over = |books: &Books| books.closed || books.given_up;
    loop {
        let over = is_over(&shared.books());
        let result = if over { Ok(()) } else { shared.try_to_come_back() };
        let mut books = shared.books();
        // A line that was lost again meanwhile is looked for here as well.
        if is_over(&books) || (result.is_ok() && books.line.is_some()) {
            books.returning = false;
            let line = if books.closed { books.line.take() } else { None };
            line.iter().for_each(|line| line.close());
            return;
        }
        if let Err(error) = result {
            books.because = LastError(Some(crate::error::chain(&error)));
        }
        let waited = shared.ended.wait_timeout_while(books, pause, |books| !is_over(books));
        drop(waited);
        pause = (pause * 2).min(LONGEST_PAUSE);
    }
}
