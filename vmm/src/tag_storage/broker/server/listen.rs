//! The broker's socket, and a thread for each of its connections.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread::Scope;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::Mode;
use rustix::io::Errno;
use rustix::net::{Shutdown, SocketType, shutdown};
use thiserror::Error;

use super::grace::{Grace, GraceTimes, RestartMark};
use super::pressure::Number;
use super::session::Session;
use super::state::{ServerResources, ServerState};
use crate::sys::accept::Remedy;
use crate::sys::open_files;
use crate::sys::thread::{self, Role};
use crate::sys::unix_socket::{self, Kind, Socket};
use crate::sys::{peer, seqpacket};
use crate::tag_storage::broker::protocol::refusal::{Reason, Refusal};
use crate::tag_storage::broker::protocol::report::BrokerReport;
use crate::tag_storage::broker::protocol::wire::Reply;
use crate::tag_storage::pool::MAX_LEASES;

/// Connections at once: a lease each, and some for people who look.
pub const MAX_CONNECTIONS: usize = MAX_LEASES as usize + 64;

/// Connections that wait to be accepted: the VMs of a host come back within the same moment when a broker
/// is started again. Who finds no place tries again.
const BACKLOG: i32 = 256;

/// Descriptors of one connection: itself, the process that connected, and its notices or a borrower's folder in
/// /proc.
const FDS_OF_CONNECTION: u64 = 3;

/// Descriptors that the broker needs beside, with those of a supply.
const FDS_OF_BROKER: u64 = 64;

/// How often an idle broker looks what other memory does to its supply: who reserves and meets it unawares
/// looks then, and who asks for figures does, too.
const FOLLOWING: Timespec = Timespec { tv_sec: 1, tv_nsec: 0 };

/// The pause after the kernel had no memory for a connection.
const PAUSE: Timespec = Timespec { tv_sec: 0, tv_nsec: 100_000_000 };

/// A connection's thread does not recurse, but for a report; only what is touched of it is ever backed.
const STACK_SIZE: usize = 256 << 10;

/// Why a broker cannot serve.
#[derive(Debug, Error)]
pub enum Error {
    /// Another process listens there.
    #[error(
        "process {pid} serves {path:?} already: if that is a broker, let the VMs use it, or end it; \
         otherwise choose another --socket"
    )]
    Taken {
        /// The path asked for.
        path: PathBuf,
        /// The process, as the kernel says.
        pid: u32,
    },
    /// There can be no socket.
    #[error("the broker has no socket")]
    Socket(#[source] unix_socket::Error),
    /// The host gives no events.
    #[error("the broker cannot wait for its clients")]
    Events(#[source] io::Error),
}

/// A connection's place among the others, given up on drop.
struct Connected {
    state: Arc<ServerState>,
    number: Number,
}

impl Drop for Connected {
    fn drop(&mut self) {
        self.state.connections().remove(&self.number);
    }
}

/// A broker that listens.
pub struct Server {
    socket: Socket,
    state: Arc<ServerState>,
    mark: RestartMark,
    next: Number,
}

impl Server {
    /// Listens at `path` for the owner and the group of the socket's file, in the place of a broker that is
    /// gone. The file goes when this is dropped.
    ///
    /// # Errors
    /// When the path is taken or too long, or the kernel refuses.
    pub fn bind(path: &Path, resources: ServerResources) -> Result<Self, Error> {
        Self::with(path, resources, places(), GraceTimes::USUAL)
    }

    /// As [`bind`](Self::bind), for so many connections at once, and with a grace period of this length where
    /// another broker was here before.
    pub(crate) fn with(
        path: &Path,
        resources: ServerResources,
        places: usize,
        times: GraceTimes,
    ) -> Result<Self, Error> {
        let mode = Mode::RUSR | Mode::WUSR | Mode::RGRP | Mode::WGRP;
        let kind = Kind {
            socket_type: SocketType::SEQPACKET,
            mode,
            backlog: BACKLOG,
            // A trace for the next broker: VMs may hold leases.
            stays_after_fault: true,
        };
        let socket = Socket::bind_as(path, kind).map_err(|error| match (error, owner(path)) {
            (unix_socket::Error::InUse(path), Some(pid)) => Error::Taken { path, pid },
            (error, _) => Error::Socket(error),
        })?;
        let mark = RestartMark::beside(path);
        // In this order: the mark goes in any case.
        let is_restart = mark.take() || socket.has_replaced();
        let grace = is_restart.then(|| Grace::new(times, Instant::now()));
        let state = Arc::new(ServerState::new(resources, places, grace));
        Ok(Self { socket, state, mark, next: 0 })
    }

    /// As [`bind`](Self::bind), for so many connections at once and without a grace period.
    #[cfg(test)]
    pub(crate) fn with_places(
        path: &Path,
        resources: ServerResources,
        places: usize,
    ) -> Result<Self, Error> {
        Self::with(path, resources, places, GraceTimes::NONE)
    }

    /// The broker at this moment.
    pub fn report(&self) -> BrokerReport {
        self.state.report()
    }

    /// Serves until `stop` has something to read. Then all connections end, and with them all leases.
    ///
    /// # Errors
    /// When the host gives no events.
    pub fn serve_until(&mut self, stop: impl AsFd) -> Result<(), Error> {
        std::thread::scope(|scope| {
            let result = self.accept_until(&stop, scope);
            if !self.state.notices.holders().is_empty() {
                self.mark.leave();
            }
            // What comes now finds no lease to be had.
            for socket in self.state.connections().values() {
                // It fails where the client is gone already.
                let _ = shutdown(socket, Shutdown::Both);
            }
            result
        })
    }

    fn accept_until<'scope>(
        &mut self,
        stop: &impl AsFd,
        scope: &'scope Scope<'scope, '_>,
    ) -> Result<(), Error> {
        loop {
            let listener = self.socket.listener();
            let mut fds = [PollFd::new(stop, PollFlags::IN), PollFd::new(listener, PollFlags::IN)];
            match poll(&mut fds, Some(&FOLLOWING)) {
                Ok(0) => self.state.pool.follow_at_once(),
                // Both pass.
                Ok(_) | Err(Errno::INTR | Errno::NOMEM) => {}
                Err(errno) => return Err(Error::Events(errno.into())),
            }
            if !fds[0].revents().is_empty() {
                return Ok(());
            }
            self.state.tick(Instant::now());
            match self.socket.accept() {
                Ok(stream) => self.welcome(OwnedFd::from(stream), scope),
                Err(error) => match Remedy::for_accept(&error) {
                    Remedy::TurnAway if self.socket.turn_away() => self.state.turned_away.add(1),
                    Remedy::TurnAway | Remedy::Pause => {
                        let mut stopped = [PollFd::new(stop, PollFlags::IN)];
                        // Whether it is to stop is looked at next.
                        let _ = poll(&mut stopped, Some(&PAUSE));
                    }
                    Remedy::None => {}
                },
            }
        }
    }

    fn welcome<'scope>(&mut self, socket: OwnedFd, scope: &'scope Scope<'scope, '_>) {
        let (state, number) = (self.state.clone(), self.next);
        self.next += 1;
        let socket = Arc::new(socket);
        if state.connections().len() >= state.places {
            return self.turn_away(&socket, "raise its limit of open files");
        }
        state.connections().insert(number, socket.clone());
        let connected = Connected { state, number };
        // Now, as its number may be another process's later.
        let peer = peer::process(&socket).ok();
        let own = socket.clone();
        let spawned =
            thread::spawn_scoped(scope, Role::BrokerSession, "client", STACK_SIZE, move || {
                let state = connected.state.clone();
                // A panic here, of which none is known, ends this connection alone.
                let _ =
                    catch_unwind(AssertUnwindSafe(|| Session::new(state, number, own, peer).run()));
            });
        if spawned.is_err() {
            self.turn_away(&socket, "raise its limit of processes");
        }
    }

    fn turn_away(&self, socket: &OwnedFd, remedy: &str) {
        self.state.turned_away.add(1);
        let open = self.state.connections().len();
        let text =
            format!("it cannot serve more than its {open} connections: end a VM, or {remedy}");
        let refusal = Reply::Refused(Refusal::new(Reason::Full, text));
        // The client may not read it.
        let _ = seqpacket::send_now(socket, &refusal.encode());
    }
}

/// As many places as there are descriptors for, after asking for as many as are allowed.
fn places() -> usize {
    let wanted = FDS_OF_BROKER + FDS_OF_CONNECTION * MAX_CONNECTIONS as u64;
    let have = open_files::raise_limit(wanted);
    let places = have.saturating_sub(FDS_OF_BROKER) / FDS_OF_CONNECTION;
    usize::try_from(places).unwrap_or(MAX_CONNECTIONS).clamp(1, MAX_CONNECTIONS)
}

/// The process that listens at a path.
fn owner(path: &Path) -> Option<u32> {
    let socket = seqpacket::connect(path, Duration::from_millis(100)).ok()?;
    peer::pid(&socket).ok()
}
