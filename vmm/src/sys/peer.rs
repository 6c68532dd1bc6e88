//! The process at the other end of a Unix socket.
//!
//! rustix has SO_PEERCRED, too, but its type for a process id has no room for the 0 that the kernel gives for
//! a process of another PID namespace.
#![allow(unsafe_code)]

use std::io;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};

use rustix::process::{Pid, PidfdFlags, pidfd_open};

/// A descriptor of the process that connected: Linux 6.5, `include/uapi/asm-generic/socket.h`, where all
/// architectures of this program have it from. The C libraries do not all know it.
const SO_PEERPIDFD: libc::c_int = 77;

/// A process that connected.
#[derive(Debug)]
pub(crate) struct PeerProcess {
    /// Its number, 0 if this process cannot name it. Good for showing; by the time it is used the number may be
    /// another process's.
    pub pid: u32,
    /// The process itself, unless it has ended.
    pub pidfd: Option<OwnedFd>,
}

/// The process that connected, or that listens: 0 if this process cannot name it. Good for showing.
///
/// # Errors
/// When this is no Unix socket.
pub(crate) fn pid(socket: impl AsFd) -> io::Result<u32> {
    credentials(socket).map(|peer| u32::try_from(peer.pid).unwrap_or(0))
}

/// The user of the process that connected, or that listens.
///
/// # Errors
/// When this is no Unix socket.
pub(crate) fn user(socket: impl AsFd) -> io::Result<u32> {
    credentials(socket).map(|peer| peer.uid)
}

/// The process that connected. To be asked for as soon as the connection is accepted: before Linux 6.5 the
/// kernel gives only the number, which another process may get once this one has ended.
///
/// # Errors
/// When this is no Unix socket.
pub(crate) fn process(socket: impl AsFd) -> io::Result<PeerProcess> {
    let peer = credentials(&socket)?;
    let pidfd = match option::<libc::c_int>(&socket, SO_PEERPIDFD) {
        // SAFETY: the kernel has made this descriptor for the caller, and nothing else has it.
        Ok(fd) => Some(unsafe { OwnedFd::from_raw_fd(fd) }),
        Err(error) if error.raw_os_error() == Some(libc::ENOPROTOOPT) => by_number(&peer),
        // It has ended.
        Err(_) => None,
    };
    Ok(PeerProcess { pid: u32::try_from(peer.pid).unwrap_or(0), pidfd })
}

/// The process that has the number of the one that connected, if it runs as the same user.
fn by_number(peer: &libc::ucred) -> Option<OwnedFd> {
    let pidfd = pidfd_open(Pid::from_raw(peer.pid)?, PidfdFlags::empty()).ok()?;
    let status = std::fs::read_to_string(format!("/proc/{}/status", peer.pid)).ok()?;
    (effective_uid(&status) == Some(peer.uid) && is_alive(&pidfd)).then_some(pidfd)
}

/// Whether the process of this descriptor runs, so that its number means no other.
pub(crate) fn is_alive(pidfd: impl AsFd) -> bool {
    use rustix::event::{PollFd, PollFlags, Timespec, poll};

    // Readable once it has ended.
    let mut watched = [PollFd::new(&pidfd, PollFlags::IN)];
    let now = Timespec { tv_sec: 0, tv_nsec: 0 };
    matches!(poll(&mut watched, Some(&now)), Ok(0))
}

/// The effective user in a process's status: SO_PEERCRED has the same (net/core/sock.c, cred_to_ucred).
fn effective_uid(status: &str) -> Option<u32> {
    let line = status.lines().find_map(|line| line.strip_prefix("Uid:"))?;
    line.split_ascii_whitespace().nth(1)?.parse().ok()
}

fn credentials(socket: impl AsFd) -> io::Result<libc::ucred> {
    option(socket, libc::SO_PEERCRED)
}

/// Plain data that the kernel fills in.
trait Plain: Copy {
    const ZERO: Self;
}

impl Plain for libc::ucred {
    const ZERO: Self = Self { pid: 0, uid: 0, gid: 0 };
}

impl Plain for libc::c_int {
    const ZERO: Self = 0;
}

fn option<T: Plain>(socket: impl AsFd, name: libc::c_int) -> io::Result<T> {
    let mut value = T::ZERO;
    let mut size = size_of::<T>() as libc::socklen_t;
    // SAFETY: the kernel writes at most `size` bytes, the size of `value`, whose type holds integers alone.
    let result = unsafe {
        libc::getsockopt(
            socket.as_fd().as_raw_fd(),
            libc::SOL_SOCKET,
            name,
            (&raw mut value).cast(),
            &raw mut size,
        )
    };
    match result {
        0 => Ok(value),
        _ => Err(io::Error::last_os_error()),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;
    use std::os::unix::net::UnixStream;
    use std::process::{Command, Stdio};

    #[test]
    fn a_pair_names_its_process() {
        let (one, _other) = UnixStream::pair().unwrap();

        assert_eq!(pid(&one).unwrap(), std::process::id());
        assert_eq!(user(&one).unwrap(), rustix::process::geteuid().as_raw());
        assert!(pid(std::fs::File::open("/dev/null").unwrap()).is_err());
    }

    #[test]
    fn the_process_of_a_pair_is_this_one() {
        let (one, _other) = UnixStream::pair().unwrap();

        let process = process(&one).unwrap();

        assert_eq!(process.pid, std::process::id());
        assert!(is_alive(process.pidfd.unwrap()));
    }

    #[test]
    fn a_process_is_found_by_its_number_if_it_is_the_same_users() {
        let mut peer = credentials(UnixStream::pair().unwrap().0).unwrap();
        assert!(by_number(&peer).is_some());

        peer.uid = peer.uid.wrapping_add(1);
        assert!(by_number(&peer).is_none());
        peer.pid = 0;
        assert!(by_number(&peer).is_none());
    }

    #[test]
    fn a_process_that_has_ended_is_none_whatever_has_its_number() {
        let mut child = Command::new("cat").stdin(Stdio::piped()).spawn().unwrap();
        let own = credentials(UnixStream::pair().unwrap().0).unwrap();
        let peer = libc::ucred { pid: child.id() as i32, ..own };
        let pidfd = by_number(&peer).unwrap();
        assert!(is_alive(&pidfd));

        child.kill().unwrap();
        child.wait().unwrap();

        assert!(!is_alive(&pidfd));
        assert!(by_number(&peer).is_none());
    }

    #[test]
    fn the_effective_user_is_the_second() {
        assert_eq!(effective_uid("Name:\tx\nUid:\t1\t2\t3\t4\n"), Some(2));
        assert_eq!(effective_uid("Name:\tUid:\n"), None);
        assert_eq!(effective_uid("Uid:\t1\n"), None);
    }
}
