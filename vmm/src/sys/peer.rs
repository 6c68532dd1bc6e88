//! The process at the other end of a socket.
//!
//! rustix has this call, too, but its type for a process id has no room for the 0 that the kernel gives for
//! a process of another PID namespace.
#![allow(unsafe_code)]

use std::io;
use std::os::fd::{AsFd, AsRawFd};

/// The process that connected, or that listens: 0 if this process cannot name it. Good for showing; by the
/// time it is used the number may be another process's.
///
/// # Errors
/// When this is no Unix socket.
pub(crate) fn pid(socket: impl AsFd) -> io::Result<u32> {
    let mut peer = libc::ucred { pid: 0, uid: 0, gid: 0 };
    let mut size = size_of::<libc::ucred>() as libc::socklen_t;
    // SAFETY: the kernel writes at most `size` bytes, the size of `peer`, and any bytes make a `ucred`.
    let result = unsafe {
        libc::getsockopt(
            socket.as_fd().as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_PEERCRED,
            (&raw mut peer).cast(),
            &raw mut size,
        )
    };
    match result {
        0 => Ok(u32::try_from(peer.pid).unwrap_or(0)),
        _ => Err(io::Error::last_os_error()),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;
    use std::os::unix::net::UnixStream;

    #[test]
    fn a_pair_names_its_process() {
        let (one, _other) = UnixStream::pair().unwrap();

        assert_eq!(pid(&one).unwrap(), std::process::id());
        assert!(pid(std::fs::File::open("/dev/null").unwrap()).is_err());
    }
}
