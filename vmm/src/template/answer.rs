//! What the process at a socket answers to a client: one message, and a descriptor.

use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::time::Duration;

use rustix::io::Errno;

use super::holder::is_own;
use crate::sys::seqpacket;

/// How long a holder is waited for: it answers at once when it has read its files, which takes as long as the disk
/// needs for that.
pub(super) const PATIENCE: Duration = Duration::from_secs(60);

/// Why there is no answer.
#[derive(Debug)]
pub(super) enum Fault {
    /// No process listens.
    Absent(io::Error),
    /// The process that listens is of another user.
    Stranger,
    /// It has not answered in time.
    Silent(io::Error),
    /// It has closed the connection.
    Refused,
}

/// What has come.
#[derive(Debug)]
pub(super) struct Answer {
    /// How long the message is, which is in the buffer.
    pub(super) length: usize,
    pub(super) fd: Option<OwnedFd>,
    pub(super) connection: OwnedFd,
}

/// Connects to a holder, and waits for what it has to give.
pub(super) fn ask(path: &Path, buffer: &mut [u8], patience: Duration) -> Result<Answer, Fault> {
    let absent = |errno: Errno| Fault::Absent(errno.into());
    let connection = seqpacket::connect(path, patience).map_err(absent)?;
    if !is_own(&connection) {
        return Err(Fault::Stranger);
    }
    let received = rustix::io::retry_on_intr(|| {
        seqpacket::receive_fd(&connection, buffer)
            .map(|found| found.map(|(message, fd)| (message.len(), fd)))
    });
    match received {
        Ok(Some((length, fd))) => Ok(Answer { length, fd, connection }),
        Ok(None) => Err(Fault::Refused),
        Err(errno) => Err(Fault::Silent(errno.into())),
    }
}
