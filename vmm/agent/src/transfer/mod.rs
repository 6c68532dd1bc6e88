//! Files and trees on their way through a connection.
//!
//! A file is sent as its bytes, a tree as an archive (POSIX pax, as tar(1) reads it). [`stream`] splits either
//! into frames and checks it by its SHA-256; [`Opened`] is what is sent, [`Target`] where it goes. The
//! receiver trusts the sender with nothing: no path of an archive leads out of the target, and no symbolic
//! link is followed below it.

mod header;
mod pack;
mod source;
pub mod stream;
mod target;
mod unpack;

use std::io;
use std::path::PathBuf;

pub use source::{Opened, name_of};
pub use target::{Target, receive_into};

use crate::protocol;
use crate::protocol::message::Refusal;
use crate::protocol::text::Text;

/// Why something was not copied.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file or folder.
    #[error("cannot {doing} {path:?}")]
    File {
        /// What was tried.
        doing: &'static str,
        /// The file.
        path: PathBuf,
        /// The system's reason.
        #[source]
        source: io::Error,
    },
    /// A device, a socket, a pipe.
    #[error("{0:?} is neither a file nor a folder: only these are copied")]
    Special(PathBuf),
    /// The destination's folder.
    #[error("there is no folder {0:?} to copy into: make it first")]
    NoFolder(PathBuf),
    /// Something of another kind is in the way.
    #[error("{0:?} exists and is a folder: name a file, or a folder in which it is none")]
    IsFolder(PathBuf),
    /// Something of another kind is in the way.
    #[error("{0:?} exists and is no folder: remove it, or name another destination")]
    IsNoFolder(PathBuf),
    /// Neither source nor destination has a name for the copy.
    #[error("the copy needs a name: name a file as the destination, not the folder {0:?}")]
    NoName(PathBuf),
    /// An archive that would write elsewhere.
    #[error(
        "the archive was refused: its path {0:?} leads out of the destination, or through a link"
    )]
    Outside(Text),
    /// Not an archive of this program's.
    #[error("the archive was refused: {0}")]
    Archive(&'static str),
    /// The archive's format.
    #[error("the archive is damaged")]
    Damaged(#[source] io::Error),
    /// A tree that is too deep, or has paths that are too long.
    #[error("{0:?} lies deeper, or has a longer path, than is copied (256 folders, 4096 bytes)")]
    TooDeep(Text),
    /// The check at the end.
    #[error("what arrived is not what was sent: copy it again")]
    Mismatch,
    /// The user has stopped it.
    #[error("the copy was stopped")]
    Stopped,
    /// Not all of a tree has arrived.
    #[error(
        "the copy is not complete: {entries} entries are in {target:?}, the last may be cut short"
    )]
    Partial {
        /// Where they are.
        target: PathBuf,
        /// How many.
        entries: u64,
        /// Why.
        #[source]
        source: Box<Error>,
    },
    /// The other side has failed.
    #[error("the other side failed: {}", .0.message)]
    Remote(Refusal),
    /// The connection.
    #[error(transparent)]
    Protocol(#[from] protocol::Error),
}

impl Error {
    fn file(doing: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        move |error| match Self::inside(error) {
            Ok(own) => own,
            Err(source) => Self::File { doing, path, source },
        }
    }

    /// An error of a stream that went through a `Read` or a `Write`.
    fn from_stream(error: io::Error) -> Self {
        Self::inside(error).unwrap_or_else(Self::Damaged)
    }

    fn inside(error: io::Error) -> Result<Self, io::Error> {
        if error.get_ref().is_some_and(|inner| inner.is::<Self>()) {
            let own = error.into_inner().and_then(|inner| inner.downcast().ok());
            return Ok(own.map_or(Self::Mismatch, |own| *own));
        }
        Err(error)
    }
}

impl From<Error> for io::Error {
    fn from(error: Error) -> Self {
        Self::other(error)
    }
}

/// What a user is shown while something is copied.
pub trait Observer {
    /// So many more bytes have been sent or received.
    fn moved(&mut self, _bytes: u64) {}

    /// Something about one file.
    fn notice(&mut self, _message: &str) {}

    /// Called before each frame is sent.
    ///
    /// # Errors
    /// Why no more shall be sent.
    fn check(&mut self) -> Result<(), Error> {
        Ok(())
    }
}

/// Shows nothing.
impl Observer for () {}

#[cfg(test)]
mod tests;
