//! One connection: its requests in their order, and what it has, which goes with it.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use rustix::io::Errno;
use rustix::net::sockopt::{Timeout, set_socket_timeout};

use super::borrowers::Borrowing;
use super::pressure::{ASK_MOST, Number};
use super::state::ServerState;
use crate::error::chain;
use crate::sys::peer::PeerProcess;
use crate::sys::seqpacket;
use crate::tag_storage::broker::protocol::refusal::{Reason, Refusal};
use crate::tag_storage::broker::protocol::report::Holder;
use crate::tag_storage::broker::protocol::wire::{
    BUFFER, MAX_PART, MAX_SLOTS, Open, Reply, Request, Role, VERSION,
};
use crate::tag_storage::pool::{LeaseId, Order, ReserveError, SlotIndex};

/// How long a connection may stay silent before it is a lease's: a client sends its first message at once,
/// and one that does not takes the place of another.
pub(crate) const GREETING: Duration = Duration::from_secs(10);

/// How long an answer waits for its reader. A client has one request under way, whose answer finds room
/// at once unless it is very long; it comes back and says what it holds if it was merely stopped.
pub(crate) const PATIENCE: Duration = Duration::from_secs(10);

/// Reports that are read at once: one has a megabyte when there are as many leases as there can be.
const MOST_READERS: usize = 32;

/// Why a connection ends.
#[derive(Debug)]
enum End {
    /// The client is gone, or does not take its answers.
    Gone,
    /// The request is refused, and the connection ends.
    Refused(Refusal),
}

impl From<Errno> for End {
    fn from(_: Errno) -> Self {
        Self::Gone
    }
}

/// What a connection is.
enum SessionState {
    /// It has said nothing yet, or only looks.
    New,
    /// It has a lease.
    Holder(Lease),
    /// It may live in tag storage.
    Borrower(#[expect(dead_code, reason = "its end is what it is for")] Borrowing),
}

/// A lease and its entry among those that get notices; both go when this does, whatever the reason.
struct Lease {
    state: Arc<ServerState>,
    number: Number,
    id: LeaseId,
}

impl Drop for Lease {
    fn drop(&mut self) {
        // It fails where the lease was closed before: see `ServerState::close_gone`.
        let _ = self.state.pool.close_lease(self.id);
        self.state.notices.remove(&self.state.pool, self.number);
    }
}

/// One connection of a broker.
pub(crate) struct Session {
    state: Arc<ServerState>,
    number: Number,
    socket: Arc<OwnedFd>,
    /// The process that connected, until it is a borrower.
    peer: Option<PeerProcess>,
    session: SessionState,
}

impl Session {
    /// The session of the process that connected.
    pub(crate) fn new(
        state: Arc<ServerState>,
        number: Number,
        socket: Arc<OwnedFd>,
        peer: Option<PeerProcess>,
    ) -> Self {
        Self { state, number, socket, peer, session: SessionState::New }
    }

    /// Serves until the client is gone or refused.
    pub(crate) fn run(&mut self) {
        let Err(End::Refused(refusal)) = self.serve() else { return };
        if refusal.reason == Reason::Protocol {
            self.state.violations.add(1);
        }
        // It may not be listening any more.
        let _ = seqpacket::send_now(&self.socket, &Reply::Refused(refusal).encode());
    }

    fn serve(&mut self) -> Result<(), End> {
        set_socket_timeout(&self.socket, Timeout::Recv, Some(GREETING))?;
        set_socket_timeout(&self.socket, Timeout::Send, Some(PATIENCE))?;
        let mut buffer = [0; BUFFER];
        loop {
            let message = seqpacket::receive(&self.socket, &mut buffer)?.ok_or(End::Gone)?;
            let request = Request::decode(message).map_err(|error| protocol(&error.to_string()))?;
            self.answer(request)?;
        }
    }

    fn answer(&mut self, request: Request) -> Result<(), End> {
        match (request, &self.session) {
            (Request::Open(open), SessionState::New) => self.open(open),
            (Request::Open(_), _) => Err(protocol("the connection is open already")),
            (Request::Report { version }, _) => self.report(version),
            (Request::Reserve { chunks, least }, SessionState::Holder(lease)) => {
                reserve(lease, &self.socket, (least, chunks))
            }
            (Request::Adopt(slots), SessionState::Holder(lease)) => {
                adopt(lease, &self.socket, &slots)
            }
            (Request::Free(slots), SessionState::Holder(lease)) => {
                free(lease, &slots);
                Ok(())
            }
            (Request::Reserve { .. } | Request::Adopt(_) | Request::Free(_), _) => {
                Err(protocol("the connection has no lease"))
            }
        }
    }

    fn open(&mut self, open: Open) -> Result<(), End> {
        if open.version != VERSION {
            return Err(End::Refused(Refusal::version(open.version)));
        }
        let opened = Reply::Opened(self.state.terms).encode();
        match open.role {
            Role::Borrower => {
                // It is taken by the first opening, and there is only one.
                let peer = self.peer.take().unwrap_or(PeerProcess { pid: 0, pidfd: None });
                let borrowing =
                    self.state.borrowers.add(peer).map_err(|error| {
                        End::Refused(Refusal::new(Reason::Other, chain(&error)))
                    })?;
                self.session = SessionState::Borrower(borrowing);
                seqpacket::send(&self.socket, &opened)?;
            }
            Role::Holder => {
                let is_new = !open.returning && !open.terms.min.is_zero();
                if is_new && self.state.is_recovering(Instant::now()) {
                    // Its minimum would be set aside before those come back whose memory may be there.
                    return Err(End::Refused(Refusal::recovering()));
                }
                self.state.close_gone();
                // Its descriptor is not needed.
                let pid = self.peer.take().map_or(0, |peer| peer.pid);
                let refused = |error: ReserveError| End::Refused(Refusal::from(&error));
                let id = self.state.pool.open_lease(open.terms).map_err(refused)?;
                let (number, state) = (self.number, self.state.clone());
                let lease = Lease { state, number, id };
                let (ours, theirs) = seqpacket::pair().map_err(|errno| {
                    let text = format!("it has no descriptor left for another VM: {errno}");
                    End::Refused(Refusal::new(Reason::Full, text))
                })?;
                self.state.notices.add(number, Holder { lease: id, pid }, ours);
                self.session = SessionState::Holder(lease);
                seqpacket::send_fd(&self.socket, &opened, theirs.as_fd())?;
            }
        }
        // From now on it may be silent for as long as it likes.
        set_socket_timeout(&self.socket, Timeout::Recv, None)?;
        Ok(())
    }

    fn report(&self, version: u32) -> Result<(), End> {
        if version != VERSION {
            return Err(End::Refused(Refusal::version(version)));
        }
        // Each has the whole text for as long as it is read.
        let Some(_reading) = Reading::of(&self.state) else {
            let text = format!("{MOST_READERS} others read its report: ask again later");
            return Err(End::Refused(Refusal::new(Reason::Full, text)));
        };
        let text = serde_json::to_vec(&self.state.report()).unwrap_or_default();
        let mut parts = text.chunks(MAX_PART).peekable();
        while let Some(part) = parts.next() {
            let last = parts.peek().is_none();
            reply(&self.socket, &Reply::Part { last, bytes: part.to_vec() })?;
        }
        Ok(())
    }
}

/// Sends an answer. A client that does not listen any more may still be using what it has: the next receive
/// finds out whether it is gone.
fn reply(socket: &OwnedFd, reply: &Reply) -> Result<(), End> {
    match seqpacket::send(socket, &reply.encode()) {
        Err(Errno::PIPE) => Ok(()),
        sent => Ok(sent?),
    }
}

/// A place among those who read a report.
struct Reading<'a>(&'a ServerState);

impl<'a> Reading<'a> {
    fn of(state: &'a ServerState) -> Option<Self> {
        let this = Self(state);
        (state.readers.fetch_add(1, Ordering::Relaxed) < MOST_READERS).then_some(this)
    }
}

impl Drop for Reading<'_> {
    fn drop(&mut self) {
        self.0.readers.fetch_sub(1, Ordering::Relaxed);
    }
}

fn protocol(what: &str) -> End {
    End::Refused(Refusal::new(Reason::Protocol, what))
}

fn reserve(lease: &Lease, socket: &OwnedFd, (least, chunks): (u32, u32)) -> Result<(), End> {
    if least == 0 || least > chunks {
        return Err(protocol("no chunks to reserve for, or less than the least"));
    }
    let (state, pool) = (&lease.state, &lease.state.pool);
    if state.is_recovering(Instant::now()) {
        if least <= ASK_MOST {
            state.notices.deferred(pool, lease.number, least, Instant::now());
        }
        return reply(socket, &Reply::Refused(Refusal::recovering()));
    }
    pool.expire_waiters_now();
    // One for both attempts: the client waits for an answer.
    let deadline = pool.deadline(chunks);
    let mut result = pool.reserve_at_least(lease.id, (least, chunks), deadline);
    if result.as_ref().is_err_and(ReserveError::is_lack) && lease.state.retry_pinned() {
        // What is in the way may not be pinned any more.
        result = pool.reserve_at_least(lease.id, (least, chunks), deadline);
    }
    let slots = match result {
        Ok(slots) => slots,
        Err(error) => {
            if error.is_lack() && least <= ASK_MOST {
                lease.state.notices.lacking(pool, lease.number, least, Instant::now());
            }
            reply(socket, &Reply::Refused(Refusal::from(&error)))?;
            return Ok(());
        }
    };
    lease.state.notices.served(pool);
    let mut left = slots.len();
    for part in slots.chunks(MAX_SLOTS) {
        left -= part.len();
        reply(socket, &Reply::Reserved { left: left as u32, slots: part.to_vec() })?;
    }
    Ok(())
}

fn adopt(lease: &Lease, socket: &OwnedFd, slots: &[SlotIndex]) -> Result<(), End> {
    let pool = &lease.state.pool;
    lease.state.has_adopted(Instant::now());
    // Nothing proves what a client says that it had. While VMs come back, no other request is served;
    // after that it waits with the others.
    let order = match lease.state.is_recovering(Instant::now()) {
        true => Order::First,
        false => Order::Fair,
    };
    pool.expire_waiters_now();
    let adopted = pool.adopt(lease.id, slots, order);
    let adopted = adopted.map_err(|error| End::Refused(Refusal::from(&error)))?;
    let count = adopted.slots.iter().flatten().count() as u64;
    lease.state.adopted.add(count);
    lease.state.notices.served(pool);
    if adopted.shortfall.as_ref().is_some_and(ReserveError::is_lack) {
        let lacking = slots.len() as u32 - count as u32;
        lease.state.notices.lacking(pool, lease.number, lacking, Instant::now());
    }
    reply(socket, &Reply::Adopted(adopted.slots))?;
    Ok(())
}

fn free(lease: &Lease, slots: &[SlotIndex]) {
    let freed = slots.iter().filter(|slot| lease.state.pool.free(lease.id, **slot).is_ok());
    let freed = freed.count();
    lease.state.foreign_frees.add((slots.len() - freed) as u64);
    if freed > 0 {
        lease.state.notices.freed(&lease.state.pool);
    }
}
