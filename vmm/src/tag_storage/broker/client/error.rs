//! Why a broker gives no tag storage.

use std::io;
use std::path::PathBuf;

use arch::units::Bytes;
use thiserror::Error as ThisError;

use crate::tag_storage::broker::protocol::refusal::Refusal;
use crate::tag_storage::supply::SupplyName;

/// Why the broker cannot be asked, or refuses.
#[derive(Debug, ThisError)]
pub enum Error {
    /// No process listens there.
    #[error(
        "cannot reach a broker at {path:?}: is `tessera broker --socket` running there, and may this \
         user connect to it?"
    )]
    Unreachable {
        /// The path asked for.
        path: PathBuf,
        /// The kernel's reason.
        #[source]
        source: io::Error,
    },
    /// It has gone, or does not answer.
    #[error("the broker at {path:?} has gone or does not answer: look at it, or start it again")]
    Lost {
        /// Its path.
        path: PathBuf,
        /// The kernel's reason, if it has one.
        #[source]
        source: Option<io::Error>,
    },
    /// It is gone, and no other has been found.
    #[error(
        "the broker at {path:?} is gone, so that no tag storage can be had: start it again; the guest \
         runs on with what it has{last_error}"
    )]
    Detached {
        /// Its path.
        path: PathBuf,
        /// Why the last attempt to reconnect failed.
        last_error: LastError,
    },
    /// It was started again with less than this VM has.
    #[error(
        "the broker was started again and has no tag storage for {owed} that this guest uses already \
         ({supply}): free guest memory, end a VM, or give the broker a larger --capacity"
    )]
    Owed {
        /// What is missing.
        owed: Bytes,
        /// The supply.
        supply: SupplyName,
    },
    /// It was started again as another.
    #[error(
        "the broker was started again with {now}, and this VM's memory is placed for {before}: start it as before"
    )]
    Changed {
        /// How it was.
        before: String,
        /// How it is.
        now: String,
    },
    /// It takes over what this VM holds.
    #[error(
        "the broker was started again, and is taking over the tag storage that this guest uses already: nothing \
         new is reserved until it has"
    )]
    Adopting,
    /// A request is under way: there is one at a time.
    #[error("the broker is being asked for tag storage already; please report this")]
    Busy,
    /// It refuses the request.
    #[error("the broker refuses: {0}")]
    Refused(Refusal),
    /// The reply could not be decoded, or is not one to the request.
    #[error("the broker's answer is not understood: {0}; use programs of one release")]
    Answer(String),
    /// The host gives no descriptor or thread.
    #[error("cannot listen to the broker: look at the limits on open files and processes")]
    Events(#[source] io::Error),
}

/// Why the last attempt to reconnect failed, if it did.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LastError(pub(super) Option<String>);

impl std::fmt::Display for LastError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match &self.0 {
            Some(cause) => write!(f, " (tried again: {cause})"),
            None => Ok(()),
        }
    }
}
