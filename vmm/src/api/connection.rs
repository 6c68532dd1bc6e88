//! One client: bytes in, requests to the controller, answers out, all without waiting.

use std::io::{self, Read};
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::net::UnixStream;

use event_manager::EventSet;
use rustix::net::SendFlags;

use super::Lifecycle;
use super::http::{self, CONTINUE, Parser, Step};
use super::routes::{self, Answer};
use crate::events::EventLog;
use crate::sys::accept::is_short_of_memory;

/// Bytes taken from a socket at once; a stack buffer. Any of our requests fits.
pub(crate) const READ_CHUNK: usize = 8 << 10;

/// Answers a client may leave unread. Above it nothing more is read from that client until it
/// reads, so a connection holds at most this, one further answer, and what the parser holds.
pub(crate) const MAX_UNSENT: usize = 64 << 10;

/// Requests served before the other subscribers of the event loop get their turn: a client that
/// sends thousands at once must not delay the guest's devices.
const MAX_REQUESTS_PER_TURN: usize = 16;

/// Bytes thrown away after the last answer so that the client gets to read it: on close, unread
/// input turns into a connection reset. Enough for the rest of any request a sane client sends.
const MAX_DISCARDED: usize = 1 << 20;

/// Whether a connection stays open after a turn.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Disposition {
    /// It waits for these events.
    Keep(EventSet),
    /// It is over; close it.
    Drop,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    /// Requests are read and answered.
    Serving,
    /// The answer is the log of events, as it grows. What the client sends is thrown away.
    Following {
        /// The sequence number of the event that is sent next, at least.
        next: u64,
        /// The client takes chunks.
        chunked: bool,
    },
    /// The last answer is on its way; nothing more is read.
    Finishing,
    /// Everything is said; what still comes is thrown away until the client closes.
    Discarding,
}

/// One client's connection.
#[derive(Debug)]
pub(crate) struct Connection {
    stream: UnixStream,
    parser: Parser,
    /// Answers not yet taken by the kernel.
    unsent: Vec<u8>,
    phase: Phase,
    /// The client will send no more.
    ended: bool,
    /// The parser may hold a whole request: it is served before more is read.
    unserved: bool,
    discarded: usize,
}

impl Connection {
    /// A new client on a non-blocking stream.
    pub(crate) fn new(stream: UnixStream) -> Self {
        Self {
            stream,
            parser: Parser::default(),
            unsent: Vec::new(),
            phase: Phase::Serving,
            ended: false,
            unserved: false,
            discarded: 0,
        }
    }

    /// Reads and serves what the client asks, without waiting. The answers stay here until they are
    /// [sent](Self::send).
    ///
    /// # Errors
    /// The client is gone (EPIPE, ECONNRESET): there is no reader for an answer.
    pub(crate) fn serve(&mut self, vm: &mut dyn Lifecycle) -> io::Result<()> {
        self.flush()?;
        if self.phase == Phase::Serving {
            if self.wants_input() {
                self.receive()?;
            }
            self.answer(vm);
        }
        Ok(())
    }

    /// Sends answers and events, as far as the client takes them without waiting.
    pub(crate) fn send(&mut self, log: &EventLog) -> Disposition {
        self.try_send(log).unwrap_or(Disposition::Drop)
    }

    fn try_send(&mut self, log: &EventLog) -> io::Result<Disposition> {
        // Within this turn: the answer to Stop must be out before the event loop leaves.
        self.flush()?;
        if let Phase::Following { .. } = self.phase {
            self.discard()?;
            if self.ended {
                return Ok(Disposition::Drop);
            }
            // An event that comes later has a turn of its own.
            self.follow(log)?;
        }
        if self.phase == Phase::Finishing && self.unsent.is_empty() {
            self.stream.shutdown(std::net::Shutdown::Write)?;
            self.phase = Phase::Discarding;
        }
        if self.phase == Phase::Discarding {
            self.discard()?;
            if self.ended || self.discarded > MAX_DISCARDED {
                return Ok(Disposition::Drop);
            }
        }
        Ok(Disposition::Keep(self.interest()))
    }

    /// Bytes of memory this client costs.
    #[cfg(test)]
    pub(crate) fn held(&self) -> usize {
        self.unsent.capacity() + self.parser.held()
    }

    fn interest(&self) -> EventSet {
        match self.phase {
            Phase::Serving => {
                let mut interest = EventSet::empty();
                if self.wants_input() {
                    interest |= EventSet::IN;
                }
                // With requests left over, "writable" calls us back as soon as the others had
                // their turn.
                if !self.unsent.is_empty() || self.unserved {
                    interest |= EventSet::OUT;
                }
                interest
            }
            Phase::Following { .. } if self.unsent.is_empty() => EventSet::IN,
            Phase::Following { .. } => EventSet::IN | EventSet::OUT,
            Phase::Finishing => EventSet::OUT,
            Phase::Discarding => EventSet::IN,
        }
    }

    fn wants_input(&self) -> bool {
        !self.unserved && !self.ended && self.unsent.len() < MAX_UNSENT
    }

    /// One read: what is left announces itself again.
    fn receive(&mut self) -> io::Result<()> {
        let mut chunk = [0; READ_CHUNK];
        match self.stream.read(&mut chunk) {
            Ok(0) => self.ended = true,
            Ok(count) => self.parser.feed(&chunk[..count]),
            Err(error) => return later(error),
        }
        self.unserved = true;
        Ok(())
    }

    /// Whether the client follows the log of events.
    pub(crate) fn follows(&self) -> bool {
        matches!(self.phase, Phase::Following { .. })
    }

    /// Ends the answer of a client that follows the log, with what is left of it.
    pub(crate) fn end_events(&mut self, log: &EventLog) {
        let Phase::Following { chunked, .. } = self.phase else { return };
        // The client may be gone, and then misses nothing.
        let _ = self.follow(log);
        http::push_piece(chunked, "", &mut self.unsent);
        let _ = self.flush();
        self.phase = Phase::Finishing;
    }

    /// Sends what there is of the log, as far as the client takes it.
    fn follow(&mut self, log: &EventLog) -> io::Result<()> {
        while let Phase::Following { next, chunked } = self.phase
            && self.unsent.len() < MAX_UNSENT
            && let Some(line) = log.from(next)
        {
            http::push_piece(chunked, &line.text, &mut self.unsent);
            self.phase = Phase::Following { next: line.seq + 1, chunked };
            if self.unsent.len() >= MAX_UNSENT {
                self.flush()?;
            }
        }
        self.flush()
    }

    fn answer(&mut self, vm: &mut dyn Lifecycle) {
        for _ in 0..MAX_REQUESTS_PER_TURN {
            if !self.unserved || self.unsent.len() >= MAX_UNSENT {
                return;
            }
            match self.parser.step() {
                Step::More => {
                    self.unserved = false;
                    if self.ended {
                        self.phase = Phase::Finishing;
                    }
                }
                Step::Continue => self.unsent.extend_from_slice(CONTINUE),
                Step::Request(request) => {
                    let keep_alive = request.keep_alive && routes::knows_method(&request.method);
                    match routes::answer(vm.controller(), &request) {
                        Answer::Response(response) => {
                            response.encode(keep_alive, &mut self.unsent);
                            self.finish_unless(keep_alive);
                        }
                        Answer::Events => self.begin_events(request.takes_chunks),
                    }
                }
                Step::Refused(refusal) => {
                    refusal.response().encode(false, &mut self.unsent);
                    self.finish_unless(false);
                }
            }
        }
    }

    fn begin_events(&mut self, chunked: bool) {
        self.unsent.extend_from_slice(http::stream_head(chunked).as_bytes());
        self.phase = Phase::Following { next: 0, chunked };
        self.parser = Parser::default();
        self.unserved = false;
    }

    fn finish_unless(&mut self, keep_alive: bool) {
        if !keep_alive {
            self.phase = Phase::Finishing;
            self.parser = Parser::default();
            self.unserved = false;
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        let mut sent = 0;
        let result = loop {
            if sent == self.unsent.len() {
                break Ok(());
            }
            let flags = SendFlags::NOSIGNAL | SendFlags::DONTWAIT;
            match rustix::net::send(&self.stream, &self.unsent[sent..], flags) {
                Ok(count) => sent += count,
                Err(errno) => break later(errno.into()),
            }
        };
        self.unsent.drain(..sent);
        if self.unsent.is_empty() {
            // An idle connection keeps no memory of its last large answer.
            self.unsent = Vec::new();
        }
        result
    }

    /// One read, thrown away.
    fn discard(&mut self) -> io::Result<()> {
        let mut chunk = [0; READ_CHUNK];
        match self.stream.read(&mut chunk) {
            Ok(0) => self.ended = true,
            Ok(count) => self.discarded += count,
            Err(error) => return later(error),
        }
        Ok(())
    }
}

impl AsRawFd for Connection {
    fn as_raw_fd(&self) -> RawFd {
        self.stream.as_raw_fd()
    }
}

/// An error that says "not now" is none. So is a kernel that is short of memory: a client without an answer does not know
/// what has been done.
fn later(error: io::Error) -> io::Result<()> {
    match error.kind() {
        io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted => Ok(()),
        _ if is_short_of_memory(&error) => Ok(()),
        _ => Err(error),
    }
}
