//! A VM's side of the broker: a hold on a pool that another process has.
//!
//! The broker may go at any moment. Then nothing new can be reserved, what is freed is put down here, and a
//! thread that lives only for that tries to reach the next broker and tells it what the VM holds. What that
//! one does not have is a debt: the guest goes on, and nothing new is reserved until the debt is settled.
//!
//! Whoever frees never waits for the broker: the VM's main thread does.
//!
//! A VM without MTE holds nothing, and is a client all the same where it may borrow.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use arch::units::Bytes;
use rustix::event::{EventfdFlags, epoll, eventfd};
use thiserror::Error as ThisError;

use super::protocol::refusal::Refusal;
use super::protocol::wire::{Notice, Role, Terms};
use crate::tag_storage::pool::{LeaseTerms, SlotIndex};
use crate::tag_storage::supply::SupplyName;

mod connection;
mod reconnect;
mod slot_map;

use connection::Connection;
pub use connection::report;
use slot_map::SlotMap;

/// Notices heard in one turn of the event loop: a broker sends a few a second.
const NOTICES_A_TURN: usize = 16;

/// Notices kept for a VM that does not listen. Each says more than those before it.
const KEPT_NOTICES: usize = 16;

/// Why the broker cannot be asked, or says no.
#[derive(Debug, ThisError)]
pub enum Error {
    /// Nobody listens.
    #[error(
        "cannot reach a broker at {path:?}: is `tessera broker --socket` running there, and may this \
         user connect to it?"
    )]
    Unreachable {
        /// The path asked for.
        path: PathBuf,
        /// The kernel's reason.
        #[source]
        source: io::Error,
    },
    /// It has gone, or does not answer.
    #[error("the broker at {path:?} has gone or does not answer: look at it, or start it again")]
    Lost {
        /// Its path.
        path: PathBuf,
        /// The kernel's reason, if it has one.
        #[source]
        source: Option<io::Error>,
    },
    /// It is gone, and not back yet.
    #[error(
        "the broker at {path:?} is gone, so that no tag storage can be had: start it again; the guest \
         goes on with what it has{because}"
    )]
    Detached {
        /// Its path.
        path: PathBuf,
        /// Why the last attempt to come back failed, or nothing.
        because: LastError,
    },
    /// It is back with less than this VM has.
    #[error(
        "the broker was started again and has no tag storage for {owed} that this guest uses already \
         ({supply}): free guest memory, end a VM, or give the broker a larger --capacity"
    )]
    Owed {
        /// What is missing.
        owed: Bytes,
        /// The supply.
        supply: SupplyName,
    },
    /// It is back as another.
    #[error(
        "the broker was started again with {now}, and this VM's memory is placed for {before}: start it as before"
    )]
    Changed {
        /// How it was.
        before: String,
        /// How it is.
        now: String,
    },
    /// It says no.
    #[error("the broker refuses: {0}")]
    Refused(Refusal),
    /// It speaks in tongues.
    #[error("the broker's answer is not understood: {0}; use programs of one release")]
    Answer(String),
    /// The host gives no descriptor or thread.
    #[error("cannot listen to the broker: look at the limits on open files and processes")]
    Events(#[source] io::Error),
}

/// A cause told in passing, or nothing.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LastError(Option<String>);

impl std::fmt::Display for LastError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match &self.0 {
            Some(cause) => write!(f, " (tried again: {cause})"),
            None => Ok(()),
        }
    }
}

/// What a VM hears of its broker.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BrokerEvent {
    /// Other VMs lack tag storage: give back this many chunks that the guest can do without.
    GiveBack {
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

/// A hold on a broker's pool. What it holds is free when it is dropped.
#[derive(Debug)]
pub struct Client(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    path: PathBuf,
    role: Role,
    wanted: LeaseTerms,
    /// Held for a question and its answer. Taken before the books.
    turn: Mutex<()>,
    books: Mutex<Books>,
    /// The client is closed.
    ended: Condvar,
    /// What the VM's event loop watches: notices of the present line, and the bell.
    events: OwnedFd,
    bell: OwnedFd,
}

#[derive(Debug)]
struct Books {
    line: Option<Arc<Connection>>,
    terms: Terms,
    holdings: SlotMap,
    /// Freed, and not told to the broker yet.
    freed: Vec<SlotIndex>,
    heard: VecDeque<BrokerEvent>,
    because: LastError,
    returning: bool,
    /// Nothing is asked for any more, and what is held stays so.
    given_up: bool,
    closed: bool,
    losses: u64,
}

impl Books {
    /// Whether this line is the one in use.
    fn is_present(&self, line: &Arc<Connection>) -> bool {
        self.line.as_ref().is_some_and(|present| Arc::ptr_eq(present, line))
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

    /// Tells the broker that listens at `path` that this process may live in tag storage that nobody needs, for
    /// as long as the client lives. It has no lease: there is nothing to reserve.
    ///
    /// # Errors
    /// When there is no broker, or it could not take back what it lends to this process.
    pub fn borrow(path: &Path, name: &str) -> Result<Self, Error> {
        let wanted = LeaseTerms { name: name.to_owned(), min: Bytes::ZERO, max: Bytes::ZERO };
        Self::open(path, Role::Borrower, wanted)
    }

    fn open(path: &Path, role: Role, wanted: LeaseTerms) -> Result<Self, Error> {
        let events = |errno: rustix::io::Errno| Error::Events(errno.into());
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC).map_err(events)?;
        let bell = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK).map_err(events)?;
        watch(&epoll, &bell).map_err(events)?;
        let line = Connection::open(path, role, &wanted)?;
        let books = Books {
            terms: line.terms,
            line: None,
            holdings: SlotMap::default(),
            freed: Vec::new(),
            heard: VecDeque::new(),
            because: LastError::default(),
            returning: false,
            given_up: false,
            closed: false,
            losses: 0,
        };
        let shared = Shared {
            path: path.to_owned(),
            role,
            wanted,
            turn: Mutex::new(()),
            books: Mutex::new(books),
            ended: Condvar::new(),
            events: epoll,
            bell,
        };
        shared.attach(Arc::new(line)).map_err(events)?;
        Ok(Self(Arc::new(shared)))
    }

    /// The client at this moment.
    pub fn status(&self) -> Status {
        let books = self.0.books();
        Status {
            terms: books.terms,
            attached: books.line.is_some(),
            chunks: books.holdings.held(),
            owed: books.holdings.owed(),
            losses: books.losses,
        }
    }

    /// Hears what there is to hear, for whoever watches this client's descriptor, without waiting. What is
    /// left announces itself again.
    pub fn hear(&self, mut told: impl FnMut(BrokerEvent)) {
        // Before anything is looked at, so that no ring is lost.
        let _ = rustix::io::read(&self.0.bell, &mut [0; 8]);
        let line = {
            let mut books = self.0.books();
            let line = books.line.clone();
            line.iter().for_each(|line| line.free_now(&mut books.freed));
            line
        };
        for _ in 0..NOTICES_A_TURN {
            let Some(line) = &line else { break };
            match line.notice() {
                Ok(Some(Notice::GiveBack { chunks })) => told(BrokerEvent::GiveBack { chunks }),
                Ok(Some(Notice::Retry)) => told(BrokerEvent::Retry),
                Ok(Some(Notice::StopReclaim)) => told(BrokerEvent::StopReclaim),
                Ok(None) => break,
                Err(()) => {
                    self.0.detach(line);
                    break;
                }
            }
        }
        let own = std::mem::take(&mut self.0.books().heard);
        own.into_iter().for_each(told);
    }

    /// Nobody waits for the broker any more, and nothing can be reserved. The lease lasts until the client
    /// is closed: memory may still be in use.
    pub fn give_up(&self) {
        let line = {
            let mut books = self.0.books();
            books.given_up = true;
            books.line.clone()
        };
        line.iter().for_each(|line| line.stop_waiting());
        self.0.ended.notify_all();
    }

    /// Ends the lease, whoever waits for an answer. Nothing can be reserved any more.
    pub fn close(&self) {
        let line = {
            let mut books = self.0.books();
            books.closed = true;
            books.line.take()
        };
        if let Some(line) = line {
            line.close();
        }
        self.0.ended.notify_all();
    }

    /// Reserves tag storage for so many chunks: a slot each.
    ///
    /// # Errors
    /// When the broker refuses or cannot be asked; then none is reserved.
    pub fn reserve(&self, chunks: u64) -> Result<Vec<SlotIndex>, Error> {
        let shared = &self.0;
        // No pool has so many: the broker says what it has.
        let chunks = u32::try_from(chunks).unwrap_or(u32::MAX);
        // Without a broker nobody waits for the one who looks for it.
        shared.line().inspect_err(|_| shared.look_for_another(&mut shared.books()))?;
        let _turn = lock(&shared.turn);
        let line = shared.line()?;
        let (freed, owed) = {
            let mut books = shared.books();
            (std::mem::take(&mut books.freed), books.holdings.owed())
        };
        let ask = || {
            line.free(&shared.path, &freed)?;
            if owed > 0 {
                shared.settle(&line, true)?;
            }
            match chunks {
                0 => Ok(Vec::new()),
                _ => line.reserve(&shared.path, chunks),
            }
        };
        match ask() {
            Ok(slots) => {
                let mut books = shared.books();
                // A broker that is gone meanwhile takes along what it has given.
                if !books.is_present(&line) {
                    let path = shared.path.clone();
                    return Err(Error::Lost { path, source: None });
                }
                Ok(slots.into_iter().map(|slot| books.holdings.add(slot)).collect())
            }
            Err(error @ (Error::Refused(_) | Error::Owed { .. })) => Err(error),
            // Whatever else went wrong, the broker and this VM no longer agree on what it holds.
            Err(error) => {
                shared.detach(&line);
                Err(error)
            }
        }
    }

    /// Frees a slot that was reserved here. Never waits for the broker.
    pub fn free(&self, slot: SlotIndex) {
        let mut books = self.0.books();
        let Some(slot) = books.holdings.remove(slot) else { return };
        // While the VM comes back there is no line yet, and the broker has the slot already.
        books.freed.push(slot);
        if let Some(line) = books.line.clone() {
            line.free_now(&mut books.freed);
        }
    }
}

impl AsFd for Client {
    /// Readable when there is something to [`hear`](Client::hear). The same descriptor for as long as the
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
    fn books(&self) -> MutexGuard<'_, Books> {
        lock(&self.books)
    }

    fn line(&self) -> Result<Arc<Connection>, Error> {
        let books = self.books();
        let line = books.line.clone().filter(|_| !books.given_up);
        line.ok_or_else(|| Error::Detached {
            path: self.path.clone(),
            because: books.because.clone(),
        })
    }

    /// The line is of no use any more. Somebody starts to look for another.
    fn detach(self: &Arc<Self>, line: &Arc<Connection>) {
        let mut books = self.books();
        // Nobody waits for its answers, so that none comes: that is not its end.
        if books.given_up && books.is_present(line) {
            return;
        }
        line.close();
        if !books.is_present(line) {
            return;
        }
        // Otherwise it would announce its end for as long as somebody has the line.
        let _ = epoll::delete(&self.events, line.notices());
        books.line = None;
        books.losses += 1;
        books.because = LastError::default();
        books.freed.clear();
        books.holdings.lose();
        self.say(&mut books, BrokerEvent::Detached);
        self.look_for_another(&mut books);
    }

    /// Takes a line into use.
    fn attach(&self, line: Arc<Connection>) -> Result<(), rustix::io::Errno> {
        watch(&self.events, line.notices())?;
        let mut books = self.books();
        books.terms = line.terms;
        line.free_now(&mut books.freed);
        books.line = Some(line);
        Ok(())
    }

    fn say(&self, books: &mut Books, what: BrokerEvent) {
        if books.heard.len() == KEPT_NOTICES {
            books.heard.pop_front();
        }
        books.heard.push_back(what);
        // It is rung already if this fails.
        let _ = rustix::io::write(&self.bell, &1u64.to_ne_bytes());
    }
}

fn watch(epoll: &OwnedFd, fd: &OwnedFd) -> Result<(), rustix::io::Errno> {
    let data = epoll::EventData::new_u64(fd.as_raw_fd() as u64);
    epoll::add(epoll, fd, data, epoll::EventFlags::IN)
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
