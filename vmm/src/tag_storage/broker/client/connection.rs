//! One connection to a broker, from the client's side.

use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::{Shutdown, shutdown};

use super::Error;
use super::request::PATIENCE;
use crate::sys::seqpacket;
use crate::tag_storage::broker::protocol::report::BrokerReport;
use crate::tag_storage::broker::protocol::wire::{
    BUFFER, MAX_SLOTS, Malformed, Notice, Open, Reply, Request, Role, Terms, VERSION,
};
use crate::tag_storage::pool::{LeaseTerms, SlotIndex};

/// How long the broker has for a greeting: it needs some microseconds, and some milliseconds when all VMs of
/// a host come back at once.
const GREETING: Duration = Duration::from_secs(5);

/// How much longer it has for each slot that it takes over: one that it does not have at once may take the
/// pool ten seconds, in which pages move (`pool::AT_MOST`).
const A_SLOT: Duration = Duration::from_secs(10);

/// The longest report: that of as many leases as there can be needs a quarter.
const MAX_REPORT: usize = 4 << 20;

/// A connection that the broker has opened.
#[derive(Debug)]
pub(crate) struct Connection {
    socket: Arc<OwnedFd>,
    /// Where notices come from. A borrower gets none, and sees the end of the connection on its socket.
    notices: Option<OwnedFd>,
    pub terms: Terms,
}

impl Connection {
    /// Connects and opens; `returning` after a connection that was lost.
    pub(crate) fn open(
        path: &Path,
        role: Role,
        returning: bool,
        terms: &LeaseTerms,
    ) -> Result<Self, Error> {
        let unreachable =
            |errno: Errno| Error::Unreachable { path: path.to_owned(), source: errno.into() };
        let socket = seqpacket::connect(path, GREETING).map_err(unreachable)?;
        let open = Open { version: VERSION, role, returning, terms: terms.clone() };
        let sent = seqpacket::send(&socket, &Request::Open(open).encode());
        let mut buffer = [0; BUFFER];
        // A broker that sends a newcomer away has closed already, and has said why.
        let received = seqpacket::receive_fd(&socket, &mut buffer);
        let (message, notices) = match (received, sent) {
            (Ok(Some(received)), _) => received,
            (Ok(None), _) => return Err(Error::Lost { path: path.to_owned(), source: None }),
            (Err(errno), _) => return Err(lost(path, errno)),
        };
        let terms = match decode(message)? {
            Reply::Opened(terms) => terms,
            other => return Err(unexpected(&other)),
        };
        if role == Role::Holder && notices.is_none() {
            return Err(Error::Answer("it gave no descriptor for notices".to_owned()));
        }
        Ok(Self { socket: Arc::new(socket), notices, terms })
    }

    /// Has the broker take over slots, as many as fit one message.
    pub(crate) fn adopt(
        &self,
        path: &Path,
        slots: &[SlotIndex],
    ) -> Result<Vec<Option<SlotIndex>>, Error> {
        let sent = seqpacket::send(&*self.socket, &Request::Adopt(slots.to_vec()).encode());
        sent.map_err(|errno| lost(path, errno))?;
        let patience = PATIENCE.saturating_add(A_SLOT.saturating_mul(slots.len() as u32));
        if !is_readable(&self.socket, patience).map_err(|errno| lost(path, errno))? {
            return Err(self.timed_out(path));
        }
        match self.receive_now(path)? {
            Some(Reply::Adopted(adopted)) if adopted.len() == slots.len() => Ok(adopted),
            Some(other) => Err(unexpected(&other)),
            None => Err(self.timed_out(path)),
        }
    }

    /// Frees slots for which there is room in the socket now, the last first, and takes them off the list.
    pub(crate) fn free_now(&self, slots: &mut Vec<SlotIndex>) {
        while !slots.is_empty() {
            let rest = slots.len().saturating_sub(MAX_SLOTS);
            // Without room they stay on the list; without a broker they are free.
            if !self.send_now(&Request::Free(slots[rest..].to_vec())) {
                return;
            }
            slots.truncate(rest);
        }
    }

    /// Sends a request if there is room for it.
    pub(crate) fn send_now(&self, request: &Request) -> bool {
        seqpacket::send_now(&*self.socket, &request.encode()).is_ok()
    }

    /// A reply, if there is one.
    pub(crate) fn receive_now(&self, path: &Path) -> Result<Option<Reply>, Error> {
        let mut buffer = [0; BUFFER];
        match seqpacket::receive_now(&*self.socket, &mut buffer) {
            Ok(Some(message)) => decode(message).map(Some),
            Ok(None) => Err(Error::Lost { path: path.to_owned(), source: None }),
            Err(Errno::AGAIN) => Ok(None),
            Err(errno) => Err(lost(path, errno)),
        }
    }

    /// What it is when no reply has come in time.
    pub(crate) fn timed_out(&self, path: &Path) -> Error {
        lost(path, Errno::AGAIN)
    }

    /// The socket of requests and replies.
    pub(crate) fn socket(&self) -> &Arc<OwnedFd> {
        &self.socket
    }

    /// What is readable when there is a notice, or the broker is gone.
    pub(crate) fn notices(&self) -> &OwnedFd {
        self.notices.as_ref().unwrap_or(&self.socket)
    }

    /// A notice, if there is one; an error when the broker is gone.
    pub(crate) fn notice(&self) -> Result<Option<Notice>, ()> {
        let mut buffer = [0; BUFFER];
        match seqpacket::receive_now(self.notices(), &mut buffer) {
            Ok(Some(message)) => Notice::decode(message).map(Some).map_err(drop),
            Err(Errno::AGAIN) => Ok(None),
            Ok(None) | Err(_) => Err(()),
        }
    }

    /// Ends the connection, also for a thread that waits for a reply on it.
    pub(crate) fn close(&self) {
        // It fails where the broker was faster.
        let _ = shutdown(&self.socket, Shutdown::Both);
    }

    /// No thread waits for a reply any more. The connection, and with it the lease, lasts.
    pub(crate) fn stop_waiting(&self) {
        // It fails where the broker was faster.
        let _ = shutdown(&self.socket, Shutdown::Read);
    }
}

/// The report of the broker at `path`.
///
/// # Errors
/// When there is none, or it does not answer.
pub fn report(path: &Path) -> Result<BrokerReport, Error> {
    let unreachable =
        |errno: Errno| Error::Unreachable { path: path.to_owned(), source: errno.into() };
    let socket = seqpacket::connect(path, GREETING).map_err(unreachable)?;
    // If that fails, there is an event to handle all the same.
    let _ = seqpacket::send(&socket, &Request::Report { version: VERSION }.encode());
    let (mut buffer, mut text) = ([0; BUFFER], Vec::new());
    loop {
        let message =
            seqpacket::receive(&socket, &mut buffer).map_err(|errno| lost(path, errno))?;
        let gone = || Error::Lost { path: path.to_owned(), source: None };
        match decode(message.ok_or_else(gone)?)? {
            Reply::Part { last, bytes } => {
                text.extend(bytes);
                if last {
                    break;
                }
                if text.len() > MAX_REPORT {
                    return Err(Error::Answer("its report does not end".to_owned()));
                }
            }
            other => return Err(unexpected(&other)),
        }
    }
    serde_json::from_slice(&text).map_err(|error| Error::Answer(error.to_string()))
}

fn decode(message: &[u8]) -> Result<Reply, Error> {
    match Reply::decode(message) {
        Ok(Reply::Refused(refusal)) => Err(Error::Refused(refusal)),
        Ok(reply) => Ok(reply),
        Err(error) => Err(Error::from(error)),
    }
}

impl From<Malformed> for Error {
    fn from(error: Malformed) -> Self {
        Self::Answer(error.to_string())
    }
}

pub(super) fn unexpected(reply: &Reply) -> Error {
    let kind = match reply {
        Reply::Opened(_) => "an opening",
        Reply::Reserved { .. } => "a reservation",
        Reply::Adopted(_) => "an adoption",
        Reply::Part { .. } => "a report",
        Reply::Refused(_) => "a refusal",
    };
    Error::Answer(format!("{kind} was not what was asked for"))
}

fn lost(path: &Path, errno: Errno) -> Error {
    let source = match errno {
        Errno::AGAIN => io::Error::from(io::ErrorKind::TimedOut),
        other => other.into(),
    };
    Error::Lost { path: path.to_owned(), source: Some(source) }
}

/// Waits for something to receive, or the end.
fn is_readable(socket: &OwnedFd, patience: Duration) -> Result<bool, Errno> {
    let start = Instant::now();
    loop {
        let left = patience.saturating_sub(start.elapsed());
        let left = Timespec { tv_sec: left.as_secs() as i64, tv_nsec: left.subsec_nanos().into() };
        match poll(&mut [PollFd::new(socket, PollFlags::IN)], Some(&left)) {
            Err(Errno::INTR) => {}
            ready => return Ok(ready? > 0),
        }
    }
}
