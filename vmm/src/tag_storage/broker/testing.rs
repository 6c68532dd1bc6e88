//! A broker that does what a test says, step by step.
#![allow(clippy::unwrap_used)]

use std::os::fd::{AsFd, OwnedFd};

use arch::units::Bytes;
use rustix::event::{PollFd, PollFlags, poll};
use rustix::fs::Mode;
use rustix::net::SocketType;
use tempfile::TempDir;

use super::Client;
use super::protocol::limits::BUFFER;
use super::protocol::wire::{Reply, Request, Terms};
use crate::sys::seqpacket;
use crate::sys::unix_socket::{Kind, Socket};
use crate::tag_storage::pool::{LeaseTerms, SlotIndex};
use crate::tag_storage::supply::SupplyName;
use crate::tag_storage::supply::lend_policy::LendPolicy;

/// It listens.
pub(crate) struct Scripted {
    directory: TempDir,
    socket: Socket,
}

impl Scripted {
    pub(crate) fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let mode = Mode::RUSR | Mode::WUSR;
        let kind =
            Kind { socket_type: SocketType::SEQPACKET, mode, backlog: 16, stays_after_fault: true };
        let socket = Socket::bind_as(&directory.path().join("broker"), kind).unwrap();
        Self { directory, socket }
    }

    /// A client, and this broker's side of its connection.
    pub(crate) fn client(&self) -> (Client, Side) {
        let path = self.directory.path().join("broker");
        let terms = LeaseTerms { name: "vm".to_owned(), min: Bytes::ZERO, max: Bytes::MAX };
        std::thread::scope(|scope| {
            let client = scope.spawn(move || Client::connect(&path, terms).unwrap());
            let side = self.accept();
            (client.join().unwrap(), side)
        })
    }

    /// The next connection, opened.
    pub(crate) fn accept(&self) -> Side {
        poll(&mut [PollFd::new(self.socket.listener(), PollFlags::IN)], None).unwrap();
        let (stream, _) = self.socket.listener().accept().unwrap();
        let (notices, theirs) = seqpacket::pair().unwrap();
        let side = Side { socket: stream.into(), _notices: notices };
        assert!(matches!(side.receive(), Some(Request::Open(_))));
        let supply = SupplyName::Ledger;
        let terms = Terms { supply, lend: LendPolicy::Never, capacity: Bytes::gib(1) };
        let opened = Reply::Opened(terms).encode();
        seqpacket::send_fd(&side.socket, &opened, theirs.as_fd()).unwrap();
        side
    }
}

/// A broker's side of a connection.
pub(crate) struct Side {
    socket: OwnedFd,
    _notices: OwnedFd,
}

impl Side {
    /// The next request; none when the client has closed.
    pub(crate) fn receive(&self) -> Option<Request> {
        let mut buffer = [0; BUFFER];
        let message = seqpacket::receive(&self.socket, &mut buffer).unwrap()?;
        Some(Request::decode(message).unwrap())
    }

    pub(crate) fn send(&self, reply: &Reply) {
        seqpacket::send(&self.socket, &reply.encode()).unwrap();
    }

    /// Answers the next request, which is to reserve, with slots from this one on. Returns how many.
    pub(crate) fn serve(&self, first: u32) -> u32 {
        let Some(Request::Reserve { chunks: count, .. }) = self.receive() else {
            panic!("no request")
        };
        let mut slots = (first..first + count).map(SlotIndex);
        let mut left = count;
        while left > 0 {
            let slots: Vec<SlotIndex> = slots.by_ref().take(1000).collect();
            left -= slots.len() as u32;
            self.send(&Reply::Reserved { left, slots });
        }
        count
    }
}
