//! Who is at the other end of a stream of frames: what listens on a socket, or a passt of this VM's own.

use std::fmt;
use std::io;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::event::{Timespec, poll};
use rustix::fd::{AsFd, AsRawFd};
use rustix::net::SocketType;

use super::OpenError;
use crate::error::say;
use crate::sandbox;
use crate::spec::PortForward;
use crate::sys::unix_socket;

/// The program that connects a stream of frames to the sockets of the host (<https://passt.top>).
const PASST: &str = "passt";

/// How long a passt is waited for that this process may not end: longer than one takes whose stream is closed, and too
/// short to be taken for a VM that hangs.
const PATIENCE: Duration = Duration::from_secs(2);

/// Whom to connect to, again if need be.
#[derive(Debug)]
pub(super) enum Peer {
    /// What listens on a Unix socket.
    Socket(PathBuf),
    /// A process of this VM's own.
    User(Passt),
}

impl Peer {
    /// A connection that does not block.
    pub(super) fn connect(&mut self) -> Result<UnixStream, OpenError> {
        match self {
            Self::Socket(path) => {
                let reached = unix_socket::connect(path, SocketType::STREAM);
                reached
                    .map_err(|errno| OpenError::Socket { path: path.clone(), source: errno.into() })
            }
            Self::User(passt) => passt.start(),
        }
    }
}

impl fmt::Display for Peer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Socket(path) => write!(f, "the network's peer at {}", path.display()),
            Self::User(_) => f.write_str(PASST),
        }
    }
}

/// A process that gives the guest the network of the user, without privileges. It ends when this is dropped, and
/// by itself when this process has ended, as its socket is then closed.
#[derive(Debug)]
pub(super) struct Passt {
    forward: Vec<PortForward>,
    child: Option<Child>,
    has_run: bool,
}

impl Passt {
    pub(super) fn new(forward: Vec<PortForward>) -> Self {
        Self { forward, child: None, has_run: false }
    }

    fn start(&mut self) -> Result<UnixStream, OpenError> {
        self.stop();
        if self.has_run && !sandbox::may_start_programs() {
            return Err(OpenError::NoProcess);
        }
        self.has_run = true;
        let failed = |source| OpenError::Passt { source };
        let (own, other) = UnixStream::pair().map_err(failed)?;
        own.set_nonblocking(true).map_err(failed)?;
        // The only descriptor that the process gets: a copy is not closed by exec.
        let passed = rustix::io::dup(other.as_fd()).map_err(|errno| failed(errno.into()))?;
        let mut command = Command::new(PASST);
        command.args(["--foreground", "--quiet", "--fd", &passed.as_raw_fd().to_string()]);
        // Otherwise the gateway's address leads the guest to what listens on the host's loopback alone.
        command.arg("--no-map-gw");
        for PortForward { host, guest } in &self.forward {
            command.args(["--tcp-ports", &format!("{host}:{guest}")]);
        }
        let child = command.stdin(Stdio::null()).stdout(Stdio::null()).spawn();
        self.child = Some(child.map_err(|source| match source.kind() {
            io::ErrorKind::NotFound => OpenError::NoPasst,
            _ => OpenError::Passt { source },
        })?);
        Ok(own)
    }

    /// Its stream is closed.
    fn stop(&mut self) {
        let Some(mut child) = self.child.take() else { return };
        match child.kill() {
            // It has ended already, or ends now.
            Ok(()) => drop(child.wait()),
            // passt of root runs as another user, whom a process without capabilities may not end. It ends by itself.
            Err(_) if ends_within(&mut child, PATIENCE) => {}
            Err(error) => say(&format!("{PASST} (pid {}) does not end: {error}", child.id())),
        }
    }
}

/// Waits for the end of a process, with the calls that each filter has.
fn ends_within(child: &mut Child, limit: Duration) -> bool {
    const PAUSE: Timespec = Timespec { tv_sec: 0, tv_nsec: 5_000_000 };
    let deadline = Instant::now() + limit;
    loop {
        if !matches!(child.try_wait(), Ok(None)) {
            return true;
        }
        if Instant::now() >= deadline {
            return false;
        }
        // Of nothing, until the time is over.
        let _ = poll(&mut [], Some(&PAUSE));
    }
}

impl Drop for Passt {
    fn drop(&mut self) {
        self.stop();
    }
}
