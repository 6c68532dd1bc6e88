//! The socket of a template, and the VMs that have come for it.
//!
//! A client gets the message and the descriptor as soon as it has connected. What it sends, or that it takes nothing,
//! changes nothing for the others: the holder waits for none of them.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::Mode;
use rustix::io::Errno;
use rustix::net::SocketType;

use crate::sys::accept::Remedy;
use crate::sys::unix_socket::{self, Kind, Socket};
use crate::sys::{open_files, peer, seqpacket};

/// The most clients at once: more VMs than a host runs, and few enough to look at each after every event.
pub(super) const MOST_CLIENTS: usize = 1024;

/// Descriptors that the holder needs beside those of its clients.
const FDS_OF_HOLDER: u64 = 32;

/// Connections that wait to be accepted: one that finds no place waits for it.
const BACKLOG: i32 = 64;

/// The pause after the kernel had no memory for a connection.
const PAUSE: Timespec = Timespec { tv_sec: 0, tv_nsec: 100_000_000 };

/// Why a holder stops.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum End {
    /// It was asked to.
    Asked,
    /// The last client has gone a while ago, or none has come.
    Unused,
}

/// A template's socket.
pub(super) struct Holder {
    socket: Socket,
    places: usize,
    clients: Vec<OwnedFd>,
}

impl Holder {
    /// Listens at `path` for processes of this user, in the place of a holder that has gone. Those that connect wait for
    /// the template.
    ///
    /// # Errors
    /// When a process listens there, or the kernel refuses.
    pub(super) fn bind(path: &Path) -> Result<Self, unix_socket::Error> {
        Self::with_places(path, places())
    }

    pub(super) fn with_places(path: &Path, places: usize) -> Result<Self, unix_socket::Error> {
        let kind = Kind {
            socket_type: SocketType::SEQPACKET,
            mode: Mode::RUSR | Mode::WUSR,
            backlog: BACKLOG,
            stays_after_fault: false,
        };
        Ok(Self { socket: Socket::bind_as(path, kind)?, places, clients: Vec::new() })
    }

    /// Hands the template out until `stop` has something to read, or nothing has used it for as long as `linger`.
    ///
    /// # Errors
    /// When the host gives no events.
    pub(super) fn serve_until(
        &mut self,
        stop: impl AsFd,
        message: &[u8],
        template: &OwnedFd,
        linger: Duration,
    ) -> io::Result<End> {
        let mut unused_since = Instant::now();
        loop {
            let left = linger.saturating_sub(unused_since.elapsed());
            let timeout = self.clients.is_empty().then(|| timespec(left));
            let (stopped, waits) = self.wait(&stop, timeout.as_ref())?;
            if stopped {
                return Ok(End::Asked);
            }
            if waits {
                self.accept(&stop, message, template);
            }
            if !self.clients.is_empty() {
                unused_since = Instant::now();
            } else if unused_since.elapsed() >= linger {
                return Ok(End::Unused);
            }
        }
    }

    /// Waits for something to do, and drops the clients that have gone. Returns whether it is to stop, and whether a
    /// client waits.
    fn wait(&mut self, stop: &impl AsFd, timeout: Option<&Timespec>) -> io::Result<(bool, bool)> {
        let mut fds = Vec::with_capacity(self.clients.len() + 2);
        fds.push(PollFd::new(stop, PollFlags::IN));
        fds.push(PollFd::new(self.socket.listener(), PollFlags::IN));
        fds.extend(self.clients.iter().map(|client| PollFd::new(client, PollFlags::IN)));
        match poll(&mut fds, timeout) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(errno) => return Err(errno.into()),
        }
        // One that sends something is no client of this protocol.
        let mut events =
            fds.iter().map(|fd| !fd.revents().is_empty()).collect::<Vec<_>>().into_iter();
        let (stopped, waits) = (events.next(), events.next());
        self.clients.retain(|_| !events.next().unwrap_or(false));
        Ok((stopped.unwrap_or(false), waits.unwrap_or(false)))
    }

    fn accept(&mut self, stop: &impl AsFd, message: &[u8], template: &OwnedFd) {
        match self.socket.accept() {
            Ok(stream) => {
                let client = OwnedFd::from(stream);
                if self.clients.len() < self.places && is_own(&client) {
                    // A new connection has room for one message: one that does not take it is let go.
                    if seqpacket::send_fd_now(&client, message, template.as_fd()).is_ok() {
                        self.clients.push(client);
                    }
                }
            }
            Err(error) => match Remedy::for_accept(&error) {
                Remedy::TurnAway if self.socket.turn_away() => {}
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

#[cfg(test)]
impl AsFd for Holder {
    fn as_fd(&self) -> std::os::fd::BorrowedFd<'_> {
        self.socket.listener().as_fd()
    }
}

/// Whether the process at the other end is this user's, or root's.
pub(super) fn is_own(socket: impl AsFd) -> bool {
    let own = rustix::process::geteuid().as_raw();
    peer::user(socket).is_ok_and(|user| user == own || user == 0)
}

/// How many clients this process has descriptors for.
fn places() -> usize {
    let have = open_files::raise_limit(FDS_OF_HOLDER + MOST_CLIENTS as u64);
    let places = usize::try_from(have.saturating_sub(FDS_OF_HOLDER)).unwrap_or(MOST_CLIENTS);
    places.clamp(1, MOST_CLIENTS)
}

fn timespec(time: Duration) -> Timespec {
    Timespec {
        tv_sec: i64::try_from(time.as_secs()).unwrap_or(i64::MAX),
        tv_nsec: time.subsec_nanos().into(),
    }
}
