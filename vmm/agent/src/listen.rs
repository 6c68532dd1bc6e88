//! Where clients connect.

use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixListener;
use std::path::PathBuf;

use rustix::fs::Mode;
use rustix::process::umask;

use crate::args::Address;
use crate::connection::Connection;
use crate::sys::vsock;

/// Why the agent cannot listen.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    /// No vsock.
    #[error(
        "cannot listen at vsock port {port}: does the VM have a vsock device, and is the guest's module vmw_vsock_virtio_transport loaded?"
    )]
    Vsock {
        port: u32,
        #[source]
        source: io::Error,
    },
    /// The path.
    #[error(
        "cannot listen at {path}: choose another path, or remove what is left of an earlier agent"
    )]
    Unix {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
}

/// A listening socket.
#[derive(Debug)]
pub(crate) enum Listener {
    Vsock { socket: OwnedFd, any_peer: bool },
    Unix(UnixListener),
}

impl Listener {
    /// Listens. Only the user of this process can connect to a Unix socket, and only the host over vsock
    /// unless `any_peer`: a user of the guest, or a guest of the guest, would get what the agent may.
    ///
    /// # Errors
    /// See [`Error`].
    pub(crate) fn bind(address: &Address, any_peer: bool) -> Result<Self, Error> {
        match address {
            Address::Vsock(port) => match vsock::bind(*port) {
                Ok(socket) => Ok(Self::Vsock { socket, any_peer }),
                Err(source) => Err(Error::Vsock { port: *port, source }),
            },
            Address::Unix(path) => {
                let before = umask(Mode::RWXG | Mode::RWXO);
                let listener = UnixListener::bind(path);
                umask(before);
                listener
                    .map(Self::Unix)
                    .map_err(|source| Error::Unix { path: path.clone(), source })
            }
        }
    }

    /// The next connection that is to be served; `None` for one that is not.
    ///
    /// # Errors
    /// The kernel's.
    pub(crate) fn accept(&self) -> io::Result<Option<Connection>> {
        match self {
            Self::Unix(listener) => {
                let (stream, _) = listener.accept()?;
                Ok(Some(Connection::new(stream.into())))
            }
            Self::Vsock { socket, any_peer } => {
                let (stream, peer) = vsock::accept(socket)?;
                Ok(is_served(peer, *any_peer).then(|| Connection::new(stream)))
            }
        }
    }
}

fn is_served(peer: u32, any_peer: bool) -> bool {
    any_peer || peer == vsock::HOST
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn over_vsock_only_the_host_is_served() {
        // The hypervisor, the guest itself through vsock's loopback, the host, the guest, a guest of the guest.
        assert_eq!(
            [0, 1, 2, 3, 4].map(|peer| is_served(peer, false)),
            [false, false, true, false, false]
        );
        assert!(is_served(1, true));
    }
}
