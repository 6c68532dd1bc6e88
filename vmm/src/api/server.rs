//! The server: one subscriber of the VMM's event loop.

use std::os::fd::{AsRawFd, RawFd};
use std::path::Path;

use event_manager::{EventOps, EventSet, Events, MutEventSubscriber};

use super::Lifecycle;
use super::connection::{Connection, Disposition};
use crate::events::EventLog;
use crate::sys::accept::{AcceptPause, Remedy};
use crate::sys::unix_socket::{Error, Socket};

/// Clients served at once, as many as Firecracker serves. With the bounds of one connection this
/// keeps the whole server under 2 MiB whatever its clients do.
pub(crate) const MAX_CONNECTIONS: usize = 10;

/// The control socket of one VM.
///
/// Register it with the event loop (`EventManager::add_subscriber`); the loop then drives it. The
/// socket exists from [`Server::bind`] on, so a refused path is known before the VM is built, and
/// clients that connect early wait in the backlog.
///
/// When all places are taken the client that was silent longest loses its connection to the
/// newcomer: forgotten connections must not lock out the one that wants to stop the VM.
#[derive(Debug)]
pub struct Server<C> {
    socket: Socket,
    pause: AcceptPause,
    connections: Vec<Entry>,
    /// Counts events; stands for the time in [`Entry::last_used`].
    clock: u64,
    registered: Result<(), event_manager::Error>,
    log: EventLog,
    /// The last event of the log when those who follow it were last fed.
    fed: u64,
    lifecycle: C,
}

#[derive(Debug)]
struct Entry {
    connection: Connection,
    interest: EventSet,
    last_used: u64,
}

impl<C: Lifecycle> Server<C> {
    /// Listens at `path` (mode 0600, close-on-exec) for clients of the VM, who may follow the log. A socket left by
    /// a dead process is replaced; on drop the file is removed if it is still this one.
    ///
    /// # Errors
    /// The path is too long, taken by a live process or by something that is not a socket, or the
    /// kernel refuses.
    pub fn bind(path: &Path, lifecycle: C, log: EventLog) -> Result<Self, Error> {
        let socket = Socket::bind(path)?;
        let pause =
            AcceptPause::new().map_err(|source| Error::Create { path: path.to_owned(), source })?;
        let connections = Vec::new();
        let registered = Ok(());
        Ok(Self { socket, pause, connections, clock: 0, registered, log, fed: 0, lifecycle })
    }

    /// Has the socket's file stay when the server goes.
    pub fn leave_socket(&mut self) {
        self.socket.leave_file();
    }

    /// Whether the event loop took the socket when the server was registered, which
    /// `add_subscriber` itself cannot tell.
    ///
    /// # Errors
    /// The event loop's error; no client will be served.
    pub fn registered(&self) -> Result<(), &event_manager::Error> {
        self.registered.as_ref().copied()
    }

    /// The one given to [`Server::bind`].
    pub fn lifecycle_mut(&mut self) -> &mut C {
        &mut self.lifecycle
    }

    /// Gives those who follow the log what is left of it, and ends their answers. Nothing is waited for: a follower
    /// without room for it misses it.
    pub fn end_events(&mut self) {
        for entry in &mut self.connections {
            entry.connection.end_events(&self.log);
        }
    }

    fn event(&self) -> Events {
        Events::new(self.socket.listener(), EventSet::IN)
    }

    /// One client; if more wait, the listener announces itself again.
    fn accept(&mut self, ops: &mut EventOps<'_>) {
        match self.socket.accept() {
            Ok(stream) => {
                if stream.set_nonblocking(true).is_err() {
                    return;
                }
                if self.connections.len() >= MAX_CONNECTIONS {
                    self.evict(ops);
                }
                let connection = Connection::new(stream);
                let interest = EventSet::IN;
                if ops.add(Events::new(&connection, interest)).is_ok() {
                    let last_used = self.clock;
                    self.connections.push(Entry { connection, interest, last_used });
                }
            }
            Err(error) => match Remedy::for_accept(&error) {
                Remedy::TurnAway => self.refuse(ops),
                Remedy::Pause => self.pause.start(self.event(), ops),
                Remedy::None => {}
            },
        }
    }

    /// Without a free descriptor the waiting client cannot even be turned away, and the listener
    /// would announce it for ever. So one is freed: the longest silent client's, or the spare.
    fn refuse(&mut self, ops: &mut EventOps<'_>) {
        if !self.evict(ops) && !self.socket.turn_away() {
            self.pause.start(self.event(), ops);
        }
    }

    /// Closes the connection that was silent longest, if there is any.
    fn evict(&mut self, ops: &mut EventOps<'_>) -> bool {
        let oldest = (0..self.connections.len()).min_by_key(|at| self.connections[*at].last_used);
        if let Some(at) = oldest {
            self.close(at, ops);
        }
        oldest.is_some()
    }

    /// New events for those who follow them.
    fn feed(&mut self, ops: &mut EventOps<'_>) {
        self.log.take();
        self.fed = self.log.last();
        // From the end: one that is closed is replaced by the last.
        for at in (0..self.connections.len()).rev() {
            if self.connections[at].connection.follows() {
                self.connections[at].last_used = self.clock;
                self.send(at, ops);
            }
        }
    }

    /// Serves a client. What a request makes happen is told to those who follow before the request is answered:
    /// its client may end the process the moment it has the answer.
    fn serve(&mut self, fd: RawFd, ops: &mut EventOps<'_>) {
        let Some(at) = self.position(fd) else { return };
        let entry = &mut self.connections[at];
        entry.last_used = self.clock;
        if entry.connection.serve(&mut self.lifecycle).is_err() {
            self.close(at, ops);
            return;
        }
        if self.log.last() != self.fed {
            self.feed(ops);
        }
        if let Some(at) = self.position(fd) {
            self.send(at, ops);
        }
    }

    fn send(&mut self, at: usize, ops: &mut EventOps<'_>) {
        let entry = &mut self.connections[at];
        let keep = match entry.connection.send(&self.log) {
            Disposition::Drop => false,
            Disposition::Keep(interest) if interest == entry.interest => true,
            Disposition::Keep(interest) => {
                entry.interest = interest;
                ops.modify(Events::new(&entry.connection, interest)).is_ok()
            }
        };
        if !keep {
            self.close(at, ops);
        }
    }

    fn position(&self, fd: RawFd) -> Option<usize> {
        self.connections.iter().position(|entry| entry.connection.as_raw_fd() == fd)
    }

    fn close(&mut self, at: usize, ops: &mut EventOps<'_>) {
        let entry = self.connections.swap_remove(at);
        // Before the descriptor is closed and its number used again. It cannot fail for a
        // descriptor that was added.
        let _ = ops.remove(Events::empty(&entry.connection));
    }
}

impl<C: Lifecycle> MutEventSubscriber for Server<C> {
    fn process(&mut self, events: Events, ops: &mut EventOps<'_>) {
        self.clock += 1;
        if events.fd() == self.socket.listener().as_raw_fd() {
            self.accept(ops);
        } else if events.fd() == self.pause.as_raw_fd() {
            self.pause.end(self.event(), ops);
        } else if Some(events.fd()) == self.log.fd() {
            self.feed(ops);
        } else {
            self.serve(events.fd(), ops);
        }
    }

    fn init(&mut self, ops: &mut EventOps<'_>) {
        let pause = Events::new(&self.pause, EventSet::IN);
        self.registered = ops.add(self.event()).and_then(|()| ops.add(pause));
        if let (Ok(()), Some(log)) = (&self.registered, self.log.fd()) {
            self.registered = ops.add(Events::new_raw(log, EventSet::IN));
        }
    }
}

#[cfg(test)]
mod tests;
