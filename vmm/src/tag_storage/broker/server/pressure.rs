//! Who lacks tag storage and who could give some, and what both are told.
//!
//! A holder whose request failed for lack is *starved* until one succeeds. Every other holder that has
//! something is then asked to give back, and is told when nobody is starved any more; the starved are
//! told when something was freed. Nothing here waits for a client: a notice that finds no room is lost,
//! and whoever is starved asks again by itself.

use std::collections::BTreeMap;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::metrics::Counter;
use crate::sys::seqpacket;
use crate::tag_storage::broker::protocol::report::Holder;
use crate::tag_storage::broker::protocol::wire::Notice;

/// How often one holder is asked to give back. A balloon needs about as long to do something, and a guest
/// that exhausts the pool again and again keeps nobody busy.
pub(crate) const ASK_EVERY: Duration = Duration::from_millis(250);

/// The most that holders are asked for at once. Who wants more in one request is a VM that reserves all of
/// its memory before it starts: it is refused and waits for nobody, and others would give in vain.
pub(crate) const ASK_MOST: u32 = 64;

/// After this time without a request nobody is starved any more: a fault thread asks ten times a second.
const FORGET_AFTER: Duration = Duration::from_secs(2);

/// A connection, for as long as the broker runs.
pub(crate) type Number = u64;

/// What is known of one holder.
struct ClientEntry {
    holder: Holder,
    notices: OwnedFd,
    /// Whether it has any slot.
    has: bool,
    /// Since its last request, which failed.
    starved: Option<Instant>,
    /// It was told to ask again, and has not.
    notified: bool,
    /// Since it was asked to give, and not told that it may stop.
    asked: Option<Instant>,
    asked_last: Option<Instant>,
}

/// All holders of a broker.
#[derive(Default)]
pub(crate) struct PressureNotifier {
    seats: Mutex<BTreeMap<Number, ClientEntry>>,
    /// How many are starved: the usual path takes no lock.
    starved: AtomicUsize,
    pub give_backs: Counter,
    pub reliefs: Counter,
    pub lost: Counter,
}

impl PressureNotifier {
    /// Adds a holder; `notices` is the broker's end.
    pub(crate) fn add(&self, number: Number, holder: Holder, notices: OwnedFd) {
        let seat = ClientEntry {
            holder,
            notices,
            has: false,
            starved: None,
            notified: false,
            asked: None,
            asked_last: None,
        };
        self.lock().insert(number, seat);
    }

    /// A holder is gone, and what it had is free.
    pub(crate) fn remove(&self, number: Number) {
        let mut seats = self.lock();
        seats.remove(&number);
        self.count(&mut seats, Instant::now());
        self.feed(&mut seats);
    }

    /// All holders.
    pub(crate) fn holders(&self) -> Vec<Holder> {
        self.lock().values().map(|seat| seat.holder).collect()
    }

    /// A request for so many chunks failed for lack.
    pub(crate) fn lacking(&self, number: Number, chunks: u32) {
        let chunks = chunks.min(ASK_MOST);
        let now = Instant::now();
        let mut seats = self.lock();
        if let Some(seat) = seats.get_mut(&number) {
            (seat.starved, seat.notified) = (Some(now), false);
        }
        self.count(&mut seats, now);
        let others = seats.iter_mut().filter(|(other, seat)| **other != number && seat.has);
        for (_, seat) in others {
            let recently = |last: &Instant| now.duration_since(*last) < ASK_EVERY;
            if seat.asked_last.as_ref().is_some_and(recently) {
                continue;
            }
            (seat.asked, seat.asked_last) = (Some(now), Some(now));
            if self.tell(seat, Notice::GiveBack { chunks }) {
                self.give_backs.add(1);
            }
        }
    }

    /// A request succeeded.
    pub(crate) fn served(&self, number: Number, first: bool) {
        if !first && self.starved.load(Ordering::Relaxed) == 0 {
            return;
        }
        let mut seats = self.lock();
        if let Some(seat) = seats.get_mut(&number) {
            (seat.has, seat.starved) = (true, None);
        }
        self.count(&mut seats, Instant::now());
    }

    /// Something was freed.
    pub(crate) fn freed(&self) {
        if self.starved.load(Ordering::Relaxed) > 0 {
            self.feed(&mut self.lock());
        }
    }

    /// Tells the starved to ask again.
    fn feed(&self, seats: &mut BTreeMap<Number, ClientEntry>) {
        for seat in seats.values_mut().filter(|seat| seat.starved.is_some() && !seat.notified) {
            seat.notified = true;
            self.send_retry(seat);
        }
    }

    /// Counts the starved. When there are none any more, those that were asked to give may stop.
    fn count(&self, seats: &mut BTreeMap<Number, ClientEntry>, now: Instant) {
        let mut starved = 0;
        for seat in seats.values_mut() {
            seat.starved = seat.starved.filter(|since| now.duration_since(*since) < FORGET_AFTER);
            starved += usize::from(seat.starved.is_some());
        }
        self.starved.store(starved, Ordering::Relaxed);
        if starved == 0 {
            for seat in seats.values_mut() {
                if seat.asked.take().is_some() {
                    self.tell(seat, Notice::StopReclaim);
                }
            }
        }
    }

    fn send_retry(&self, seat: &ClientEntry) {
        if self.tell(seat, Notice::Retry) {
            self.reliefs.add(1);
        }
    }

    fn tell(&self, seat: &ClientEntry, notice: Notice) -> bool {
        let told = seqpacket::send_now(&seat.notices, &notice.encode()).is_ok();
        if !told {
            self.lost.add(1);
        }
        told
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<Number, ClientEntry>> {
        self.seats.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
