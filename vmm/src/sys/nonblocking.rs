//! Writes that never wait for a reader, to descriptors that other processes may share.
//!
//! O_NONBLOCK is a flag of the open file description. Standard output and standard error share theirs with
//! the shell and with other programs, which would not expect that their writes fail.
//!
//! Nothing here allocates or takes a lock: a signal handler may write in this way, too.

use std::ffi::CStr;
use std::io::{self, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{FileType, Mode, OFlags};
use rustix::io::Errno;
use rustix::net::SendFlags;

/// A pipe of which POLLOUT is true takes so much at once (pipe(7), PIPE_BUF).
pub(crate) const PIPE_BUF: usize = 4096;
/// A terminal promises no more (n_tty_poll in drivers/tty/n_tty.c).
const TERMINAL: usize = 1;
/// Bytes for the path of a descriptor in /proc, whose number has at most ten digits.
const PATH: usize = 32;

/// A descriptor that is written to without waiting.
#[derive(Debug)]
pub(crate) struct NonBlocking {
    fd: OwnedFd,
    how: How,
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum How {
    /// The description is this process's own and does not block, or no reader is waited for.
    Write,
    /// A socket, for which each message has MSG_DONTWAIT.
    Send,
    /// A pipe or terminal that cannot be opened anew. Others may write between the question and the write:
    /// this is the best that there is.
    Ask {
        /// How much it takes without blocking, if it takes anything.
        most: usize,
    },
}

impl NonBlocking {
    /// A descriptor whose open file description does not block.
    pub(crate) fn own(fd: OwnedFd) -> Self {
        Self { fd, how: How::Write }
    }

    /// A descriptor whose open file description may be shared: its flags stay as they are. Pipes and
    /// terminals are opened anew, which gives a description of its own.
    pub(crate) fn shared(fd: OwnedFd) -> Self {
        let mode = rustix::fs::fstat(&fd).map_or(0, |stat| stat.st_mode);
        let most = match FileType::from_raw_mode(mode) {
            FileType::Socket => return Self { fd, how: How::Send },
            FileType::Fifo => PIPE_BUF,
            FileType::CharacterDevice if rustix::termios::isatty(&fd) => TERMINAL,
            _ => return Self { fd, how: How::Write },
        };
        match open_anew(fd.as_fd()) {
            Ok(own) => Self::own(own),
            // Another user's terminal, no /proc, a pipe without a reader.
            Err(_) => Self { fd, how: How::Ask { most } },
        }
    }

    /// The same through another descriptor.
    ///
    /// # Errors
    /// When there is none left.
    pub(crate) fn try_clone(&self) -> io::Result<Self> {
        Ok(Self { fd: self.fd.try_clone()?, how: self.how })
    }

    /// Writes some of these bytes.
    ///
    /// # Errors
    /// `WouldBlock` when none of them are taken now, and what the system answers.
    pub(crate) fn write(&self, bytes: &[u8]) -> io::Result<usize> {
        loop {
            let written = match self.how {
                How::Write => rustix::io::write(&self.fd, bytes),
                How::Send => {
                    let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
                    rustix::net::send(&self.fd, bytes, flags)
                }
                How::Ask { most } => self.ask(&bytes[..bytes.len().min(most)]),
            };
            match written {
                Err(Errno::INTR) => {}
                other => return Ok(other?),
            }
        }
    }

    fn ask(&self, bytes: &[u8]) -> Result<usize, Errno> {
        if self.poll(&Timespec::default())? {
            rustix::io::write(&self.fd, bytes)
        } else {
            Err(Errno::AGAIN)
        }
    }

    /// Waits at most so long until something can be written, or fails.
    ///
    /// # Errors
    /// What the system answers.
    pub(crate) fn wait(&self, timeout: &Timespec) -> io::Result<bool> {
        Ok(self.poll(timeout)?)
    }

    fn poll(&self, timeout: &Timespec) -> Result<bool, Errno> {
        match poll(&mut [PollFd::new(&self.fd, PollFlags::OUT)], Some(timeout)) {
            Ok(ready) => Ok(ready > 0),
            Err(Errno::INTR) => Ok(false),
            Err(errno) => Err(errno),
        }
    }
}

/// Another open file description of the same file, for writing without waiting.
fn open_anew(fd: BorrowedFd<'_>) -> Result<OwnedFd, Errno> {
    let mut path = [0; PATH];
    // The zero at its end stays.
    write!(&mut path[..PATH - 1], "/proc/self/fd/{}", fd.as_raw_fd()).map_err(|_| Errno::INVAL)?;
    let path = CStr::from_bytes_until_nul(&path).map_err(|_| Errno::INVAL)?;
    let flags = OFlags::WRONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    rustix::fs::open(path, flags, Mode::empty())
}

#[cfg(test)]
mod tests;
