//! `tessera template`: from its command line to its end.

use std::io;
use std::path::PathBuf;
use std::time::Duration;

use arch::units::Bytes;
use thiserror::Error;

use super::client::{self, socket_of};
use super::extents::extents;
use super::fill::{self, fill};
use super::holder::{End, Holder};
use super::identity::Identity;
use crate::error::say;
use crate::exit_status::ExitStatus;
use crate::memory::{MOST_EXTENTS, tag_checks};
use crate::snapshot::{self, MEMORY, Pair, STATE};
use crate::sys::signals::Signals;
use crate::sys::{supervisor, unix_socket};

/// What `tessera template` is given.
#[derive(Clone, Debug, clap::Args)]
pub struct TemplateArgs {
    /// The folder of the snapshot
    #[arg(value_name = "DIR")]
    pub folder: PathBuf,
    /// How many seconds to stay when the last clone has gone, and at the start until the first comes
    #[arg(long, value_name = "S", default_value = "60")]
    pub linger: u32,
}

/// Why there is no template.
#[derive(Debug, Error)]
pub enum TemplateError {
    /// The snapshot cannot be used.
    #[error(transparent)]
    Snapshot(#[from] snapshot::Error),
    /// It has pages of another host.
    #[error("the snapshot is of a host with pages of {saved}, and this one has pages of {here}")]
    PageSize {
        /// When it was saved.
        saved: Bytes,
        /// The host's.
        here: Bytes,
    },
    /// There is no place for its socket.
    #[error(transparent)]
    Place(#[from] client::Error),
    /// No client can be served.
    #[error("no VM can come for the template")]
    Socket(#[from] unix_socket::Error),
    /// It cannot be filled.
    #[error(transparent)]
    Fill(#[from] fill::Error),
    /// The host gives no signals or events.
    #[error("the holder of the template cannot wait for its clients")]
    Events(#[source] io::Error),
}

impl TemplateError {
    /// The status that the process ends with.
    pub fn status(&self) -> ExitStatus {
        match self {
            Self::Snapshot(error) | Self::Fill(fill::Error::Snapshot(error)) => error.status(),
            Self::PageSize { .. } | Self::Fill(_) => ExitStatus::Unavailable,
            Self::Place(_) => ExitStatus::CannotCreate,
            Self::Socket(error) => error.status(),
            Self::Events(_) => ExitStatus::VmmFault,
        }
    }
}

/// Holds the template of a snapshot until a signal ends it, or nothing has used it for a while.
///
/// # Errors
/// When the snapshot cannot be read, or there is no memory or no socket for it.
pub fn run(args: &TemplateArgs) -> Result<ExitStatus, TemplateError> {
    tag_checks::disable();
    let signals = Signals::block().map_err(TemplateError::Events)?;
    let pair = Pair::open(&args.folder.join(STATE), &args.folder.join(MEMORY))?;
    let memory = pair.memory;
    let (saved, here) = (memory.about().page_size, Bytes::new(rustix::param::page_size() as u64));
    if saved != here {
        return Err(TemplateError::PageSize { saved, here });
    }
    let path = socket_of(memory.about().id)?;
    // First: a second holder ends here, and a clone waits.
    let mut holder = Holder::bind(&path)?;
    let extents = extents(memory.chunks(), MOST_EXTENTS);
    let ended = || Ok(signals.take().unwrap_or(ExitStatus::Terminated));
    let Some(template) = fill(&memory, &extents, &|| signals.wait())? else { return ended() };
    let identity = Identity::of(&memory);
    // Its files may be replaced or go.
    drop(memory);
    let size = Bytes::new(extents.iter().map(|extent| extent.end - extent.start).sum());
    say(&format!(
        "holds a template of {:?} at {path:?}: {size} of {} of guest memory",
        args.folder, identity.size
    ));
    // It is of use without its service manager.
    let _ = supervisor::notify_ready();
    let linger = Duration::from_secs(args.linger.into());
    let end = holder.serve_until(&signals, &identity, &template, linger);
    match end.map_err(TemplateError::Events)? {
        End::Unused => Ok(ExitStatus::Success),
        End::Asked => ended(),
    }
}
