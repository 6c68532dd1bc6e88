//! VMs that wait for tag storage, VMs that are asked to give some back, and the notices to both.
//!
//! The pool knows which leases wait and in which order they come (`pool/share.rs`). A VM that waits is sent
//! `Retry` when there is something for it. Until then VMs that can give are asked to give back what is lacking in
//! all, each in proportion to what it can give: every [`ASK_EVERY`], as long as something is lacking. That is what
//! a VM holds above its minimum; of one that waits itself, what it holds above its entitlement. One that has given
//! nothing since it was last asked is left out until all others were asked as well: it may have no balloon. All are
//! sent `StopReclaim` when no VM waits any more, and one of them when it has nothing more to give.
//!
//! Nothing here waits for a client: a notice that finds no room is lost, and a VM that waits asks again by itself.

use std::collections::{BTreeMap, BTreeSet};
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::metrics::Counter;
use crate::sys::seqpacket;
use crate::tag_storage::broker::protocol::report::Holder;
use crate::tag_storage::broker::protocol::wire::Notice;
use crate::tag_storage::pool::pressure::CanGive;
use crate::tag_storage::pool::{LeaseId, Pool, share};

/// How often holders are asked to give back. A balloon needs about as long to do something. It bounds as well
/// what requests that fail cost, which a guest can cause without end: a round looks at all leases.
pub(crate) const ASK_EVERY: Duration = Duration::from_millis(250);

/// The most that holders are asked for at once. A VM that wants more in one request reserves all of its memory
/// before it starts: it is refused and does not wait, and others would give in vain.
pub(crate) const ASK_MOST: u32 = 64;

/// The most VMs that are sent `Retry` at once; those behind them ask again by themselves.
const WAKE_MOST: usize = 64;

/// A connection, for as long as the broker runs.
pub(crate) type Number = u64;

/// What is known of one holder.
struct ClientEntry {
    holder: Holder,
    notices: OwnedFd,
    /// It was sent `Retry`, and has not asked since.
    notified: bool,
    /// It was asked to give back, and not sent `StopReclaim` since: what it held then.
    asked: Option<u32>,
    /// It had given nothing when the last round looked.
    unresponsive: bool,
}

#[derive(Default)]
struct Clients {
    entries: BTreeMap<Number, ClientEntry>,
    /// When holders were last asked.
    last_round: Option<Instant>,
}

/// All holders of a broker.
#[derive(Default)]
pub(crate) struct PressureNotifier {
    clients: Mutex<Clients>,
    /// Whether a holder is being asked: the usual path takes no lock.
    asking: AtomicBool,
    pub give_backs: Counter,
    pub reliefs: Counter,
    pub lost: Counter,
}

impl PressureNotifier {
    /// Adds a holder; `notices` is the broker's end.
    pub(crate) fn add(&self, number: Number, holder: Holder, notices: OwnedFd) {
        let entry =
            ClientEntry { holder, notices, notified: false, asked: None, unresponsive: false };
        self.lock().entries.insert(number, entry);
    }

    /// A holder is gone, and what it had is free.
    pub(crate) fn remove(&self, pool: &Pool, number: Number) {
        self.lock().entries.remove(&number);
        self.freed(pool);
        self.served(pool);
    }

    /// All holders.
    pub(crate) fn holders(&self) -> Vec<Holder> {
        self.lock().entries.values().map(|entry| entry.holder).collect()
    }

    /// The lease of a connection.
    pub(crate) fn lease_of(&self, number: Number) -> Option<LeaseId> {
        self.lock().entries.get(&number).map(|entry| entry.holder.lease)
    }

    /// A request for so many chunks failed for lack: the lease waits, and others are asked to give.
    pub(crate) fn lacking(&self, pool: &Pool, number: Number, chunks: u32, now: Instant) {
        let mut clients = self.lock();
        self.start_wait(pool, &mut clients, number, chunks, now);
        let is_soon = |last: &Instant| now.saturating_duration_since(*last) < ASK_EVERY;
        if !clients.last_round.as_ref().is_some_and(is_soon) {
            clients.last_round = Some(now);
            self.ask(pool, &mut clients);
        }
    }

    /// A request for so many chunks has to wait, and others need not give for it.
    pub(crate) fn deferred(&self, pool: &Pool, number: Number, chunks: u32, now: Instant) {
        self.start_wait(pool, &mut self.lock(), number, chunks, now);
    }

    /// A request succeeded.
    pub(crate) fn served(&self, pool: &Pool) {
        if self.asking.load(Ordering::Relaxed) && !pool.has_waiters() {
            self.stop_all(&mut self.lock());
        }
    }

    /// Something was freed.
    pub(crate) fn freed(&self, pool: &Pool) {
        if pool.has_waiters() {
            self.wake(pool, &mut self.lock());
        }
    }

    /// Time has passed: leases that do not ask any more do not wait any more. To be called from time to time.
    pub(crate) fn tick(&self, pool: &Pool, now: Instant) {
        pool.expire_waiters(now);
        self.freed(pool);
        self.served(pool);
    }

    fn start_wait(
        &self,
        pool: &Pool,
        clients: &mut Clients,
        number: Number,
        chunks: u32,
        now: Instant,
    ) {
        let Some(entry) = clients.entries.get_mut(&number) else { return };
        entry.notified = false;
        pool.wait_for(entry.holder.lease, chunks.min(ASK_MOST), now);
        if entry.asked.is_some() && !pool.can_give(entry.holder.lease) {
            self.stop(entry);
        }
    }

    /// Sends `Retry` to those for which there is enough.
    fn wake(&self, pool: &Pool, clients: &mut Clients) {
        let next: BTreeSet<LeaseId> = pool.next_waiters(WAKE_MOST).into_iter().collect();
        if next.is_empty() {
            return;
        }
        for entry in clients.entries.values_mut() {
            if !entry.notified && next.contains(&entry.holder.lease) {
                entry.notified = true;
                if self.send(entry, Notice::Retry) {
                    self.reliefs.add(1);
                }
            }
        }
    }

    /// Asks those that can give for what is lacking.
    fn ask(&self, pool: &Pool, clients: &mut Clients) {
        let pressure = pool.pressure();
        let leases: BTreeMap<LeaseId, CanGive> =
            pressure.can_give.into_iter().map(|can| (can.lease, can)).collect();
        let mut can_give = Vec::new();
        for entry in clients.entries.values_mut() {
            match leases.get(&entry.holder.lease) {
                Some(can) => {
                    entry.unresponsive = entry.asked.is_some_and(|before| can.held >= before);
                    can_give.push((entry, *can));
                }
                None => self.stop(entry),
            }
        }
        if can_give.iter().any(|(entry, _)| !entry.unresponsive) {
            can_give.retain(|(entry, _)| !entry.unresponsive);
        }
        let figures: Vec<u32> = can_give.iter().map(|(_, can)| can.chunks).collect();
        let asks = share::asks(pressure.lacking.min(ASK_MOST), &figures);
        for ((entry, can), chunks) in can_give.into_iter().zip(asks).filter(|(_, ask)| *ask > 0) {
            entry.asked = Some(can.held);
            self.asking.store(true, Ordering::Relaxed);
            if self.send(entry, Notice::RequestReclaim { chunks }) {
                self.give_backs.add(1);
            }
        }
    }

    fn stop_all(&self, clients: &mut Clients) {
        self.asking.store(false, Ordering::Relaxed);
        clients.last_round = None;
        clients.entries.values_mut().for_each(|entry| self.stop(entry));
    }

    /// One that was asked to give back need give no more.
    fn stop(&self, entry: &mut ClientEntry) {
        entry.unresponsive = false;
        if entry.asked.take().is_some() {
            self.send(entry, Notice::StopReclaim);
        }
    }

    fn send(&self, entry: &ClientEntry, notice: Notice) -> bool {
        let sent = seqpacket::send_now(&entry.notices, &notice.encode()).is_ok();
        if !sent {
            self.lost.add(1);
        }
        sent
    }

    fn lock(&self) -> MutexGuard<'_, Clients> {
        self.clients.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests;
