//! The service manager that started this process, if it wants to know when the process is ready: sd_notify(3).

use std::ffi::OsStr;
use std::io;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};

/// Where the service manager listens. A name that begins with `@` is abstract.
const SOCKET: &str = "NOTIFY_SOCKET";

/// Reports that the start is complete. Nothing happens where no service manager asked for it.
///
/// # Errors
/// When it cannot be reached.
pub(crate) fn notify_ready() -> io::Result<()> {
    match std::env::var_os(SOCKET) {
        Some(socket) => send(&socket, b"READY=1"),
        None => Ok(()),
    }
}

fn send(socket: &OsStr, message: &[u8]) -> io::Result<()> {
    let address = match socket.as_bytes().strip_prefix(b"@") {
        Some(name) => SocketAddr::from_abstract_name(name)?,
        None => SocketAddr::from_pathname(socket)?,
    };
    let sender = UnixDatagram::unbound()?;
    // The start of a VM must not wait for a service manager that does not read.
    sender.set_nonblocking(true)?;
    sender.send_to_addr(message, &address).map(drop)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    fn received(receiver: &UnixDatagram) -> Vec<u8> {
        let mut buffer = [0; 64];
        let length = receiver.recv(&mut buffer).unwrap();
        buffer[..length].to_vec()
    }

    #[test]
    fn a_path_and_an_abstract_name_are_reached() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("notify");
        let receiver = UnixDatagram::bind(&path).unwrap();
        send(path.as_os_str(), b"READY=1").unwrap();
        assert_eq!(received(&receiver), b"READY=1");

        let name = path.as_os_str().as_bytes();
        let abstract_name = SocketAddr::from_abstract_name(name).unwrap();
        let receiver = UnixDatagram::bind_addr(&abstract_name).unwrap();
        let socket = [b"@", name].concat();
        send(OsStr::from_bytes(&socket), b"READY=1").unwrap();
        assert_eq!(received(&receiver), b"READY=1");
    }

    #[test]
    fn a_service_manager_that_is_gone_is_an_error() {
        let folder = tempfile::tempdir().unwrap();
        assert!(send(folder.path().join("none").as_os_str(), b"READY=1").is_err());
        assert!(send(OsStr::new(""), b"READY=1").is_err());
    }
}
