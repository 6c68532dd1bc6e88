//! What the process at a socket answers to a client: one message, and a descriptor.

use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::time::Duration;

use rustix::io::Errno;
use thiserror::Error;

use super::holder::is_own;
use crate::memory::TemplateError;
use crate::sys::seqpacket;

/// How long a holder is waited for: it answers at once when it has read its files, which takes as long as the disk
/// needs for that.
pub(super) const PATIENCE: Duration = Duration::from_secs(60);

/// Why the process that listens at a holder's socket gives nothing that can be mapped.
#[derive(Debug, Error)]
pub enum HolderError {
    /// It is another user's.
    #[error("it is of another user")]
    Stranger,
    /// It has not answered in time.
    #[error("it has not answered in time")]
    Silent(#[source] io::Error),
    /// It has closed the connection.
    #[error(
        "it has ended, as it could not read its files, or has as many VMs as it can: try again"
    )]
    Refused,
    /// It has said something else.
    #[error("it does not answer as such a holder, and may be of another version")]
    Malformed,
    /// What it has sent could change.
    #[error("what it has sent cannot be used")]
    File(#[source] TemplateError),
}

/// Why there is no answer.
#[derive(Debug)]
pub(super) enum Fault {
    /// No process listens.
    Absent(io::Error),
    /// The one that does is no such holder.
    Holder(HolderError),
}

impl From<HolderError> for Fault {
    fn from(error: HolderError) -> Self {
        Self::Holder(error)
    }
}

/// What has come.
#[derive(Debug)]
pub(super) struct Answer {
    /// How long the message is, which is in the buffer.
    pub(super) length: usize,
    pub(super) fd: OwnedFd,
    pub(super) connection: OwnedFd,
}

/// Connects to a holder, and waits for what it has to give.
pub(super) fn ask(path: &Path, buffer: &mut [u8], patience: Duration) -> Result<Answer, Fault> {
    let absent = |errno: Errno| Fault::Absent(errno.into());
    let connection = seqpacket::connect(path, patience).map_err(absent)?;
    if !is_own(&connection) {
        return Err(HolderError::Stranger.into());
    }
    let received = rustix::io::retry_on_intr(|| {
        seqpacket::receive_fd(&connection, buffer)
            .map(|found| found.map(|(message, fd)| (message.len(), fd)))
    });
    match received {
        Ok(Some((length, Some(fd)))) => Ok(Answer { length, fd, connection }),
        Ok(Some((_, None))) => Err(HolderError::Malformed.into()),
        Ok(None) => Err(HolderError::Refused.into()),
        Err(errno) => Err(HolderError::Silent(errno.into()).into()),
    }
}
