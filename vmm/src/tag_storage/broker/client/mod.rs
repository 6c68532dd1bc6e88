//! A VM's side of the broker: a client of a pool that another process has.
//!
//! The broker may go at any moment. Then nothing new can be reserved, what is freed is recorded here, and a
//! thread tries to reach the next broker and has it take over what the VM holds. What that one does not have
//! is a debt: the guest runs, and nothing new is reserved until the debt is settled.
//!
//! Neither requests nor frees wait for the broker. A request is answered later, and the socket says when;
//! what is freed while the socket has no room is sent when it has.
//!
//! A VM without MTE holds nothing, and is a client all the same where it may borrow.

use std::collections::VecDeque;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use arch::units::Bytes;
use rustix::event::{EventfdFlags, epoll, eventfd};
use rustix::io::Errno;

use super::protocol::wire::{Notice, Role, Terms};
use crate::tag_storage::pool::{LeaseTerms, SlotIndex, tags_of};
use crate::tag_storage::supply::lend_policy::LendPolicy;

mod connection;
mod error;
mod reconnect;
mod request;
mod slot_map;

use connection::Connection;
pub use connection::report;
pub use error::{Error, LastError};
pub use request::Awaited;
use request::PendingRequest;
pub(crate) use slot_map::SlotMap;

/// Notices read in one turn of the event loop: a broker sends a few a second.
const NOTICES_A_TURN: usize = 16;

/// Which part of the pool a VM may reserve for before it uses it.
const SPARE_PART: u32 = 64;

/// How long others count as lacking what this VM has after it was asked: the notice that they do no more may be lost,
/// and a balloon gives for as long. A broker asks again as long as something is lacking.
const ASKED_FOR: Duration = Duration::from_secs(30);

/// Events kept for a VM that does not read them. Each says more than those before it.
const KEPT_EVENTS: usize = 16;

/// What happens at the broker, or to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BrokerEvent {
    /// Other VMs lack tag storage: give back this many chunks that the guest can do without.
    RequestReclaim {
        /// Chunks that are asked of this VM.
        chunks: u32,
    },
    /// Waiting requests may succeed now.
    Retry,
    /// Nothing more is to be given back.
    StopReclaim,
    /// The broker is gone.
    Detached,
    /// A broker is back.
    Attached {
        /// Chunks in use that it has no tag storage for.
        owed: u32,
    },
}

/// A client at one moment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Status {
    /// The broker's terms; those of the last one while there is none.
    pub terms: Terms,
    /// Whether there is a broker.
    pub attached: bool,
    /// Chunks whose tag storage the broker has reserved for this VM.
    pub chunks: u32,
    /// Chunks in use that the broker has no tag storage for, all of them while there is none.
    pub owed: u32,
    /// Times the broker was lost.
    pub losses: u64,
}

/// A client of a broker's pool. What it holds is free when it is dropped.
#[derive(Debug)]
pub struct Client(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    path: PathBuf,
    role: Role,
    wanted: LeaseTerms,
    /// Held by a thread that waits for the answer to a request. Taken before the state.
    request_lock: Mutex<()>,
    state: Mutex<State>,
    /// The client is closed or given up, or a debt is to be settled at once.
    changed: Condvar,
    /// What the VM's event loop watches: notices of the present connection, room in its socket where something
    /// waits to be sent, and the eventfd.
    events: OwnedFd,
    eventfd: OwnedFd,
}

#[derive(Debug)]
struct State {
    connection: Option<Arc<Connection>>,
    terms: Terms,
    slots: SlotMap,
    /// Freed, and not sent to the broker yet.
    freed: Vec<SlotIndex>,
    request: Option<PendingRequest>,
    /// The broker is asked to take slots over, on the present connection.
    adopting: bool,
    /// The event loop watches the socket for room.
    awaits_room: bool,
    /// When this VM was last asked for what others lack, unless that is over.
    asked_at: Option<Instant>,
    queued: VecDeque<BrokerEvent>,
    last_error: LastError,
    /// The thread that looks for a broker lives.
    reconnecting: bool,
    /// It is to settle the debt without a pause.
    settle_now: bool,
    /// Nothing is asked for any more, and what is held stays so.
    given_up: bool,
    closed: bool,
    losses: u64,
}

impl State {
    fn new(terms: Terms) -> Self {
        Self {
            connection: None,
            terms,
            slots: SlotMap::default(),
            freed: Vec::new(),
            request: None,
            adopting: false,
            awaits_room: false,
            asked_at: None,
            queued: VecDeque::new(),
            last_error: LastError::default(),
            reconnecting: false,
            settle_now: false,
            given_up: false,
            closed: false,
            losses: 0,
        }
    }

    /// Whether this connection is the one in use.
    fn is_present(&self, connection: &Arc<Connection>) -> bool {
        self.connection.as_ref().is_some_and(|present| Arc::ptr_eq(present, connection))
    }

    /// Whether others lack what this VM could give back.
    fn is_asked(&self, now: Instant) -> bool {
        self.asked_at.is_some_and(|at| now.saturating_duration_since(at) < ASKED_FOR)
    }

    /// All that the broker has reserved for this VM is lost with the connection.
    fn lose(&mut self) {
        self.freed.clear();
        self.request = None;
        self.asked_at = None;
        self.slots.lose();
    }
}

impl Client {
    /// Opens a lease at the broker that listens at `path`.
    ///
    /// # Errors
    /// When there is none, or it refuses the terms.
    pub fn connect(path: &Path, wanted: LeaseTerms) -> Result<Self, Error> {
        Self::open(path, Role::Holder, wanted)
    }

    /// Registers this process with the broker that listens at `path` as one that may live in unused tag
    /// storage, for as long as the client lives. It has no lease: there is nothing to reserve.
    ///
    /// # Errors
    /// When there is no broker, or it could not take back what it lends to this process.
    pub fn borrow(path: &Path, name: &str) -> Result<Self, Error> {
        let wanted = LeaseTerms { name: name.to_owned(), min: Bytes::ZERO, max: Bytes::ZERO };
        Self::open(path, Role::Borrower, wanted)
    }

    fn open(path: &Path, role: Role, wanted: LeaseTerms) -> Result<Self, Error> {
        let refused = |errno: Errno| Error::Events(errno.into());
        let events = epoll::create(epoll::CreateFlags::CLOEXEC).map_err(refused)?;
        let eventfd =
            eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK).map_err(refused)?;
        watch(&events, &eventfd, epoll::EventFlags::IN).map_err(refused)?;
        let connection = Connection::open(path, role, false, &wanted)?;
        let shared = Shared {
            path: path.to_owned(),
            role,
            wanted,
            request_lock: Mutex::new(()),
            state: Mutex::new(State::new(connection.terms)),
            changed: Condvar::new(),
            events,
            eventfd,
        };
        shared.attach(Arc::new(connection)).map_err(refused)?;
        Ok(Self(Arc::new(shared)))
    }

    /// The client at this moment.
    pub fn status(&self) -> Status {
        let state = self.0.state();
        Status {
            terms: state.terms,
            attached: state.connection.is_some(),
            chunks: state.slots.held(),
            owed: state.slots.owed(),
            losses: state.losses,
        }
    }

    /// For how many chunks it may reserve before they are used: a small part of the pool, as only the broker knows how
    /// much is left. None where others' memory may be in it, or others lack what this VM has.
    pub(crate) fn headroom(&self) -> u32 {
        let state = self.0.state();
        let lends = state.terms.lend != LendPolicy::Never;
        let is_asked = state.is_asked(Instant::now());
        if state.connection.is_none() || is_asked || lends || state.slots.owed() > 0 {
            return 0;
        }
        let part = chunks_in(state.terms.capacity) / SPARE_PART;
        let max = chunks_in(self.0.wanted.max);
        part.min(max.saturating_sub(state.slots.held()))
    }

    /// Handles what there is for the thread that watches this client's descriptor, without waiting. What is
    /// left makes it readable again.
    pub fn handle_events(&self, mut handle: impl FnMut(BrokerEvent)) {
        // First, so that no signal is lost. It fails when there was none.
        let _ = rustix::io::read(&self.0.eventfd, &mut [0; 8]);
        let connection = {
            let mut state = self.0.state();
            self.0.flush(&mut state);
            state.connection.clone()
        };
        for _ in 0..NOTICES_A_TURN {
            let Some(connection) = &connection else { break };
            match connection.notice() {
                Ok(Some(Notice::RequestReclaim { chunks })) => {
                    self.0.state().asked_at = Some(Instant::now());
                    handle(BrokerEvent::RequestReclaim { chunks })
                }
                Ok(Some(Notice::Retry)) => handle(BrokerEvent::Retry),
                Ok(Some(Notice::StopReclaim)) => {
                    self.0.state().asked_at = None;
                    handle(BrokerEvent::StopReclaim)
                }
                Ok(None) => break,
                Err(()) => {
                    self.0.detach(connection);
                    break;
                }
            }
        }
        let own = std::mem::take(&mut self.0.state().queued);
        own.into_iter().for_each(handle);
    }

    /// No thread waits for the broker any more, and nothing can be reserved. The lease lasts until the client
    /// is closed: memory may still be in use.
    pub fn give_up(&self) {
        let connection = {
            let mut state = self.0.state();
            state.given_up = true;
            state.connection.clone()
        };
        connection.iter().for_each(|connection| connection.stop_waiting());
        self.0.changed.notify_all();
    }

    /// Ends the lease; threads that wait for an answer wait no longer. Nothing can be reserved any more.
    pub fn close(&self) {
        let connection = {
            let mut state = self.0.state();
            state.closed = true;
            state.connection.take()
        };
        if let Some(connection) = connection {
            connection.close();
        }
        self.0.changed.notify_all();
    }
}

impl AsFd for Client {
    /// Readable when there is something for [`handle_events`](Client::handle_events). The same descriptor for as long as the
    /// client lives.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.events.as_fd()
    }
}

impl AsRawFd for Client {
    fn as_raw_fd(&self) -> RawFd {
        self.0.events.as_raw_fd()
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        self.close();
    }
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        lock(&self.state)
    }

    /// The connection is of no use any more. The thread that looks for another starts.
    fn detach(self: &Arc<Self>, connection: &Arc<Connection>) {
        let mut state = self.state();
        if !state.is_present(connection) {
            return connection.close();
        }
        // Otherwise it would announce its end for as long as the connection is referred to.
        let _ = epoll::delete(&self.events, connection.notices());
        // No answer is read any more, so that none comes: that is not its end.
        if state.given_up {
            return;
        }
        connection.close();
        self.await_room(&mut state, connection, false);
        state.connection = None;
        state.losses += 1;
        state.last_error = LastError::default();
        state.lose();
        self.queue(&mut state, BrokerEvent::Detached);
        self.look_for_another(&mut state);
    }

    /// Takes a connection into use.
    fn attach(&self, connection: Arc<Connection>) -> Result<(), Errno> {
        watch(&self.events, connection.notices(), epoll::EventFlags::IN)?;
        let mut state = self.state();
        state.terms = connection.terms;
        state.connection = Some(connection);
        self.flush(&mut state);
        Ok(())
    }

    fn queue(&self, state: &mut State, event: BrokerEvent) {
        if state.queued.len() == KEPT_EVENTS {
            state.queued.pop_front();
        }
        state.queued.push_back(event);
        // It fails when it is signalled already.
        let _ = rustix::io::write(&self.eventfd, &1u64.to_ne_bytes());
    }

    /// Has the event loop watch the socket for room, or no longer.
    fn await_room(&self, state: &mut State, connection: &Connection, room: bool) {
        if state.awaits_room == room {
            return;
        }
        let done = match room {
            true => watch(&self.events, connection.socket(), epoll::EventFlags::OUT),
            false => epoll::delete(&self.events, connection.socket()),
        };
        // Without memory for it, what is left is sent with the next request or free.
        state.awaits_room = room && done.is_ok();
    }
}

fn watch(epoll: &OwnedFd, fd: &OwnedFd, events: epoll::EventFlags) -> Result<(), Errno> {
    let data = epoll::EventData::new_u64(fd.as_raw_fd() as u64);
    epoll::add(epoll, fd, data, events)
}

/// How many chunks' tags this has room for.
fn chunks_in(tag_storage: Bytes) -> u32 {
    u32::try_from(tag_storage.get() / tags_of(1u32).get()).unwrap_or(u32::MAX)
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tag_storage::supply::SupplyName;

    #[test]
    fn a_client_is_asked_no_longer_than_a_balloon_gives() {
        let (supply, lend) = (SupplyName::Ledger, LendPolicy::Never);
        let mut state = State::new(Terms { supply, lend, capacity: Bytes::gib(1) });
        let now = Instant::now();
        assert!(!state.is_asked(now));

        state.asked_at = Some(now);

        assert!(state.is_asked(now) && state.is_asked(now + Duration::from_secs(29)));
        assert!(!state.is_asked(now + Duration::from_secs(30)));
    }
}
