//! One connection: its state, its credit, and what the guest is to get of it.

use std::time::Duration;

use super::packet::{Header, Operation, Shutdown};
use super::peers::{PeerId, Readiness};

/// Most bytes that are kept of what the guest sent and the peer has not taken. It is what the guest is given
/// for credit (5.10.6.3), so a guest that sends more breaks the rules. A packet of Linux fits.
pub(super) const BUFFER: u32 = 64 << 10;

/// The guest gets its new credit when so much of it is free again: a packet for every few of its own.
const CREDIT_STEP: u32 = BUFFER / 4;

/// How far a connection has come.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum State {
    /// A peer wants it; the guest is to get REQUEST.
    Requesting,
    /// The guest has REQUEST.
    Requested,
    /// Both sides have accepted it.
    Open,
    /// The peer is gone and the guest knows; it answers with RST when it is through.
    Closing,
    /// The guest is to get RST.
    Ended,
}

/// A connection between a port of the guest and a stream of the host.
#[derive(Debug)]
pub(super) struct Connection {
    pub(super) state: State,
    /// The stream, until it is closed.
    pub(super) peer: Option<PeerId>,
    /// When it is given up unless its state changes.
    pub(super) deadline: Option<Duration>,
    /// It is in the queue of those that have something for the guest.
    pub(super) queued: bool,
    /// What the guest does no more.
    pub(super) guest: Shutdown,
    /// What the peer does no more, and what of that the guest knows.
    pub(super) host: Shutdown,
    announced_shutdown: Shutdown,
    /// Data or its end may be read of the stream.
    pub(super) readable: bool,
    /// The peer writes nothing more.
    ended: bool,
    /// The peer neither reads nor writes any more.
    pub(super) gone: bool,
    /// What the peer did not take yet.
    pub(super) unsent: Unsent,
    /// Packets that the guest is to get.
    response: bool,
    credit: bool,
    /// The guest was asked for credit, and has not given any since.
    asked: bool,
    /// Bytes of data for the guest so far, modulo 2^32 as all of these.
    sent: u32,
    /// How much of that its application has taken, and how much it can hold, by its last packet.
    guest_forwarded: u32,
    guest_buffer: u32,
    /// Bytes of data from the guest so far, how much of that the peer has taken, and what the guest knows of it.
    received: u32,
    forwarded: u32,
    announced: u32,
}

/// A packet without data for the guest, and its flags.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) struct Control {
    pub(super) operation: Operation,
    pub(super) flags: u32,
}

impl Control {
    fn plain(operation: Operation) -> Self {
        Self { operation, flags: 0 }
    }
}

impl Connection {
    fn new(state: State, peer: PeerId) -> Self {
        Self {
            state,
            peer: Some(peer),
            deadline: None,
            queued: false,
            guest: Shutdown::default(),
            host: Shutdown::default(),
            announced_shutdown: Shutdown::default(),
            // What came before is not announced again.
            readable: true,
            ended: false,
            gone: false,
            unsent: Unsent::default(),
            response: false,
            credit: false,
            asked: false,
            sent: 0,
            guest_forwarded: 0,
            guest_buffer: 0,
            received: 0,
            forwarded: 0,
            announced: 0,
        }
    }

    /// One that a peer wants.
    pub(super) fn from_host(peer: PeerId, deadline: Duration) -> Self {
        Self { deadline: Some(deadline), ..Self::new(State::Requesting, peer) }
    }

    /// One that the guest wants, and its peer has accepted.
    pub(super) fn from_guest(peer: PeerId) -> Self {
        Self { response: true, ..Self::new(State::Open, peer) }
    }

    /// The guest has accepted it.
    pub(super) fn open(&mut self) {
        (self.state, self.deadline) = (State::Open, None);
    }

    /// It is over; the guest is to get RST.
    pub(super) fn end(&mut self) {
        (self.state, self.deadline) = (State::Ended, None);
    }

    /// What has happened to the stream.
    pub(super) fn note(&mut self, news: Readiness) {
        self.readable |= news.readable || news.ended || news.gone;
        self.ended |= news.ended || news.gone;
        self.gone |= news.gone;
    }

    /// So much was read of the stream, where `room` bytes were wanted.
    pub(super) fn read(&mut self, length: u32, room: u32) {
        self.sent = self.sent.wrapping_add(length);
        // Nothing is left then, and what comes next is announced; but the end of the stream has been already.
        if length < room && !self.ended {
            self.readable = false;
        }
    }

    /// The credit that a packet of the guest grants.
    pub(super) fn take_credit(&mut self, header: &Header) {
        self.guest_buffer = header.buffer;
        self.guest_forwarded = header.forwarded;
        self.asked &= self.guest_room() == 0;
    }

    /// How much the guest can take. Nothing, too, when what it says cannot be.
    pub(super) fn guest_room(&self) -> u32 {
        let under_way = self.sent.wrapping_sub(self.guest_forwarded);
        self.guest_buffer.saturating_sub(under_way)
    }

    /// Takes so much data from the guest, if it has the credit for it.
    pub(super) fn receive(&mut self, length: u32) -> bool {
        let held = self.received.wrapping_sub(self.forwarded);
        let fits = held.checked_add(length).is_some_and(|held| held <= BUFFER);
        if fits {
            self.received = self.received.wrapping_add(length);
        }
        fits
    }

    /// The peer has taken so much.
    pub(super) fn forward(&mut self, length: u32) {
        self.forwarded = self.forwarded.wrapping_add(length);
        self.credit |= self.forwarded.wrapping_sub(self.announced) >= CREDIT_STEP;
    }

    /// The peer takes nothing more, so what it has not taken is lost.
    pub(super) fn deafen(&mut self) {
        self.unsent = Unsent::default();
        self.forward(self.received.wrapping_sub(self.forwarded));
        self.host.add(Shutdown::RECEIVE);
    }

    /// The guest asks for its credit.
    pub(super) fn owe_credit(&mut self) {
        self.credit = true;
    }

    /// Whether the peer is gone, and what it sent before is not wanted.
    pub(super) fn is_abandoned(&self) -> bool {
        self.gone && self.guest.contains(Shutdown::RECEIVE)
    }

    /// Whether data can be read for the guest.
    pub(super) fn has_data(&self) -> bool {
        self.can_read() && self.guest_room() > 0
    }

    fn can_read(&self) -> bool {
        self.state == State::Open
            && self.readable
            && self.peer.is_some()
            && !self.guest.contains(Shutdown::RECEIVE)
            && !self.host.contains(Shutdown::SEND)
    }

    /// Whether the guest is to get something of it.
    pub(super) fn is_due(&self) -> bool {
        match self.state {
            State::Requesting | State::Ended => true,
            State::Requested => false,
            State::Closing => self.credit,
            State::Open => {
                self.response
                    || self.credit
                    || self.host != self.announced_shutdown
                    || (self.can_read() && (self.guest_room() > 0 || !self.asked))
            }
        }
    }

    /// The next packet without data that the guest is to get, which is sent now.
    pub(super) fn next_control(&mut self) -> Option<Control> {
        match self.state {
            State::Requested => return None,
            State::Ended => return Some(Control::plain(Operation::Reset)),
            State::Requesting => {
                self.state = State::Requested;
                return Some(Control::plain(Operation::Request));
            }
            State::Open | State::Closing => {}
        }
        if std::mem::take(&mut self.response) {
            return Some(Control::plain(Operation::Response));
        }
        if std::mem::take(&mut self.credit) {
            return Some(Control::plain(Operation::CreditUpdate));
        }
        // What can still be read comes first, so that the guest mostly learns of both halves at once.
        if self.host != self.announced_shutdown && !self.has_data() {
            self.announced_shutdown = self.host;
            if self.announced_shutdown == Shutdown::BOTH {
                self.state = State::Closing;
            }
            return Some(Control {
                operation: Operation::Shutdown,
                flags: self.announced_shutdown.flags(),
            });
        }
        if self.can_read() && self.guest_room() == 0 && !self.asked {
            self.asked = true;
            return Some(Control::plain(Operation::CreditRequest));
        }
        None
    }

    /// The credit fields of a packet for the guest, which knows of it then.
    pub(super) fn announce(&mut self) -> (u32, u32) {
        self.announced = self.forwarded;
        self.credit = false;
        (BUFFER, self.forwarded)
    }
}

/// Bytes that wait for the peer; without memory while there are none.
#[derive(Debug, Default)]
pub(super) struct Unsent {
    bytes: Vec<u8>,
    /// How many of them are sent.
    start: usize,
}

impl Unsent {
    pub(super) fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    pub(super) fn bytes(&self) -> &[u8] {
        &self.bytes[self.start..]
    }

    /// Room for so many more, to be filled.
    pub(super) fn grow(&mut self, by: usize) -> &mut [u8] {
        // Bounded by BUFFER: what is sent makes room before it is filled.
        self.bytes.drain(..self.start);
        self.start = 0;
        let end = self.bytes.len();
        self.bytes.resize(end + by, 0);
        &mut self.bytes[end..]
    }

    /// So many of them are sent.
    pub(super) fn consume(&mut self, length: usize) {
        self.start = self.bytes.len().min(self.start + length);
        if self.start == self.bytes.len() {
            *self = Self::default();
        }
    }
}
