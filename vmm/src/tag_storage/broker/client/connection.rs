//! One connection to a broker, from the client's side.

use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::time::Duration;

use rustix::io::Errno;
use rustix::net::sockopt::{Timeout, set_socket_timeout};
use rustix::net::{Shutdown, shutdown};

use super::Error;
use crate::sys::seqpacket;
use crate::tag_storage::broker::protocol::report::BrokerReport;
use crate::tag_storage::broker::protocol::wire::{
    BUFFER, MAX_SLOTS, Malformed, Notice, Open, Reply, Request, Role, Terms, VERSION,
};
use crate::tag_storage::pool::{LeaseTerms, SlotIndex};

/// How long the broker has for a greeting: it needs some microseconds, and some milliseconds when all VMs of
/// a host come back at once.
const GREETING: Duration = Duration::from_secs(5);

/// How long the broker has for an answer. A reservation may have to move some hundred pages out of the way;
/// a broker that takes longer is stopped or stuck, and is treated as gone.
const PATIENCE: Duration = Duration::from_secs(30);

/// How much longer for each chunk of a large request, as a VM makes before it starts: each may have to move
/// pages.
const A_CHUNK: Duration = Duration::from_millis(20);

/// Chunks of a request that is not large.
const FEW: u32 = 1024;

/// The longest report: that of as many leases as there can be needs a quarter.
const MAX_REPORT: usize = 4 << 20;

/// A connection that the broker has opened.
#[derive(Debug)]
pub(crate) struct Connection {
    socket: OwnedFd,
    /// Where notices come from. A borrower gets none, and sees the end of the line on its socket.
    notices: Option<OwnedFd>,
    pub terms: Terms,
}

impl Connection {
    /// Connects and opens.
    pub(crate) fn open(path: &Path, role: Role, terms: &LeaseTerms) -> Result<Self, Error> {
        let unreachable =
            |errno: Errno| Error::Unreachable { path: path.to_owned(), source: errno.into() };
        let socket = seqpacket::connect(path, GREETING).map_err(unreachable)?;
        let open = Open { version: VERSION, role, terms: terms.clone() };
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
        set_socket_timeout(&socket, Timeout::Recv, Some(PATIENCE)).map_err(|e| lost(path, e))?;
        Ok(Self { socket, notices, terms })
    }

    /// Reserves for all of these chunks, or for none.
    pub(crate) fn reserve(&self, path: &Path, chunks: u32) -> Result<Vec<SlotIndex>, Error> {
        if chunks > FEW {
            let patience = PATIENCE + A_CHUNK * chunks;
            set_socket_timeout(&self.socket, Timeout::Recv, Some(patience))
                .map_err(|errno| lost(path, errno))?;
        }
        self.say(path, &Request::Reserve(chunks))?;
        let mut slots = Vec::new();
        loop {
            match self.hear(path)? {
                Reply::Reserved { left, slots: more } => {
                    slots.extend(more);
                    // Neither more nor less than was asked for.
                    let promised = slots.len() as u64 + u64::from(left);
                    if promised != u64::from(chunks) {
                        let text = format!("it gave {promised} slots, not {chunks}");
                        return Err(Error::Answer(text));
                    }
                    if left == 0 {
                        return Ok(slots);
                    }
                }
                other => return Err(unexpected(&other)),
            }
        }
    }

    /// Has the broker take over slots, as many as fit one message.
    pub(crate) fn adopt(
        &self,
        path: &Path,
        slots: &[SlotIndex],
    ) -> Result<Vec<Option<SlotIndex>>, Error> {
        self.say(path, &Request::Adopt(slots.to_vec()))?;
        match self.hear(path)? {
            Reply::Adopted(adopted) if adopted.len() == slots.len() => Ok(adopted),
            other => Err(unexpected(&other)),
        }
    }

    /// Frees slots for which there is room in the socket now, the last first, and takes them off the list.
    pub(crate) fn free_now(&self, slots: &mut Vec<SlotIndex>) {
        while !slots.is_empty() {
            let rest = slots.len().saturating_sub(MAX_SLOTS);
            let message = Request::Free(slots[rest..].to_vec()).encode();
            // Without room they wait for the next occasion; without a broker they are free.
            if seqpacket::send_now(&self.socket, &message).is_err() {
                return;
            }
            slots.truncate(rest);
        }
    }

    /// Frees slots, waiting for room.
    pub(crate) fn free(&self, path: &Path, slots: &[SlotIndex]) -> Result<(), Error> {
        slots.chunks(MAX_SLOTS).try_for_each(|part| self.say(path, &Request::Free(part.to_vec())))
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

    /// Ends the connection, whoever waits for an answer on it.
    pub(crate) fn close(&self) {
        // It fails where the broker was faster.
        let _ = shutdown(&self.socket, Shutdown::Both);
    }

    /// Whoever waits for an answer does so no longer. The connection, and with it the lease, lasts.
    pub(crate) fn stop_waiting(&self) {
        // It fails where the broker was faster.
        let _ = shutdown(&self.socket, Shutdown::Read);
    }

    fn say(&self, path: &Path, request: &Request) -> Result<(), Error> {
        seqpacket::send(&self.socket, &request.encode()).map_err(|errno| lost(path, errno))
    }

    fn hear(&self, path: &Path) -> Result<Reply, Error> {
        let mut buffer = [0; BUFFER];
        let message = seqpacket::receive(&self.socket, &mut buffer);
        let message = message.map_err(|errno| lost(path, errno))?;
        decode(message.ok_or_else(|| Error::Lost { path: path.to_owned(), source: None })?)
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
    // If that fails, there is something to hear all the same.
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

fn unexpected(reply: &Reply) -> Error {
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
