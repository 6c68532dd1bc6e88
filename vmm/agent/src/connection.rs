//! A connection to a client.

use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use agent::protocol::frame::{self, Kind};
use rustix::net::sockopt::{Timeout, set_socket_timeout};
use rustix::net::{SendFlags, Shutdown, send, shutdown};
use serde::Serialize;

/// How long a client may take to read the last answer and close.
const LINGER: Duration = Duration::from_secs(10);

/// A stream socket.
#[derive(Debug)]
pub(crate) struct Connection(OwnedFd);

impl Connection {
    /// A connection that was accepted.
    pub(crate) fn new(socket: OwnedFd) -> Self {
        Self(socket)
    }

    /// How long one read may take; `None` for ever.
    ///
    /// # Errors
    /// The kernel's.
    pub(crate) fn set_read_timeout(&self, timeout: Option<Duration>) -> io::Result<()> {
        Ok(set_socket_timeout(&self.0, Timeout::Recv, timeout)?)
    }

    /// Reads and writes do not wait.
    ///
    /// # Errors
    /// The kernel's.
    pub(crate) fn set_nonblocking(&self, nonblocking: bool) -> io::Result<()> {
        Ok(rustix::io::ioctl_fionbio(&self.0, nonblocking)?)
    }

    /// Writes a frame of JSON.
    ///
    /// # Errors
    /// The connection's.
    pub(crate) fn answer<T: Serialize>(&mut self, kind: Kind, value: &T) -> io::Result<()> {
        self.write_all(&frame::json(kind, value)?)
    }

    /// Ends what is sent, and waits for the client to close: a socket that is closed while there is
    /// something to read may take the last answer back from the client.
    pub(crate) fn finish(mut self) {
        let deadline = Instant::now() + LINGER;
        let mut rest = [0; 4096];
        if self.set_nonblocking(false).is_err() || shutdown(&self.0, Shutdown::Write).is_err() {
            return;
        }
        while let Some(left) = deadline.checked_duration_since(Instant::now()) {
            let waits = self.set_read_timeout(Some(left.max(Duration::from_millis(1))));
            if waits.is_err() || !matches!(self.read(&mut rest), Ok(1..)) {
                return;
            }
        }
    }
}

impl AsFd for Connection {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl Read for Connection {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        Ok(rustix::io::read(&self.0, buffer)?)
    }
}

impl Write for Connection {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        Ok(send(&self.0, bytes, SendFlags::NOSIGNAL)?)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
