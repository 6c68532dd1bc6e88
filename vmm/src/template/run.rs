//! `tessera template`: from its command line to its end.

use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::time::Duration;

use arch::units::Bytes;
use rustix::net::SocketType;
use thiserror::Error;

use super::boot::{BootError, HeldBootImage};
use super::client::{self, socket_of};
use super::extents::extents;
use super::fill::{self, fill};
use super::holder::{End, Holder};
use super::identity::Identity;
use crate::error::say;
use crate::exit_status::ExitStatus;
use crate::memory::{MOST_EXTENTS, tag_checks};
use crate::registry;
use crate::sandbox::{self, Files, SandboxArgs};
use crate::snapshot::{self, MEMORY, Pair, STATE};
use crate::sys::signals::Signals;
use crate::sys::thread::Role;
use crate::sys::{supervisor, unix_socket};

/// Hold the memory of a snapshot, or a kernel, once for all VMs that share it
#[derive(Clone, Debug, clap::Args)]
pub struct TemplateArgs {
    /// The folder of the snapshot
    #[arg(value_name = "DIR", required_unless_present = "kernel", conflicts_with = "kernel")]
    pub folder: Option<PathBuf>,
    /// Hold this kernel instead, as VMs load it, for `run --kernel FILE --boot-image`
    #[arg(long, value_name = "FILE")]
    pub kernel: Option<PathBuf>,
    /// With --kernel, the initial RAM disk that those VMs have
    #[arg(long, value_name = "FILE", requires = "kernel")]
    pub initrd: Option<PathBuf>,
    /// How many seconds to stay when the last VM has gone, and at the start until the first comes
    #[arg(long, value_name = "S", default_value = "60")]
    pub linger: u32,
    /// How the process is confined.
    #[command(flatten)]
    pub sandbox: SandboxArgs,
}

/// Why there is no template.
#[derive(Debug, Error)]
pub enum TemplateError {
    /// There is nothing to hold.
    #[error("there is nothing to hold: name the folder of a snapshot, or a kernel (--kernel FILE)")]
    Nothing,
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
    /// Kernel and initrd cannot be used.
    #[error(transparent)]
    Boot(#[from] BootError),
    /// The process cannot be confined.
    #[error(transparent)]
    Sandbox(#[from] sandbox::Error),
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
            Self::Nothing => ExitStatus::Usage,
            Self::Place(_) => ExitStatus::CannotCreate,
            Self::Socket(error) => error.status(),
            Self::Boot(error) => error.status(),
            Self::Sandbox(error) => error.status(),
            Self::Events(_) => ExitStatus::VmmFault,
        }
    }
}

/// What is held.
struct Held {
    holder: Holder,
    message: Vec<u8>,
    template: OwnedFd,
    /// What there is to say of it.
    line: String,
}

/// Holds the template of a snapshot, or a boot image, until a signal ends it, or nothing has used it for a while.
///
/// # Errors
/// When the files cannot be read, or there is no memory or no socket for it.
pub fn run(args: &TemplateArgs) -> Result<ExitStatus, TemplateError> {
    tag_checks::disable();
    let signals = Signals::block().map_err(TemplateError::Events)?;
    sandbox::begin(&args.sandbox, Files::default())?;
    let held = match (&args.kernel, &args.folder) {
        (Some(kernel), _) => Some(of_boot_files(kernel, args.initrd.as_deref())?),
        (None, Some(folder)) => of_snapshot(folder, &signals)?,
        (None, None) => return Err(TemplateError::Nothing),
    };
    let ended = || signals.take().unwrap_or(ExitStatus::Terminated);
    let Some(Held { mut holder, message, template, line }) = held else { return Ok(ended()) };
    say(&line);
    // It is of use without its service manager.
    let _ = supervisor::notify_ready();
    let linger = Duration::from_secs(args.linger.into());
    // Its socket goes with it.
    let removed_in = vec![registry::templates().map_err(client::Error::Place)?];
    sandbox::restrict_files(Files { removed_in, ..Files::default() })?;
    sandbox::confine(Role::Template)?;
    let end = holder.serve_until(&signals, &message, &template, linger);
    Ok(match end.map_err(TemplateError::Events)? {
        End::Unused => ExitStatus::Success,
        End::Asked => ended(),
    })
}

/// The template of a snapshot; `None` if a signal has ended the reading.
fn of_snapshot(folder: &Path, signals: &Signals) -> Result<Option<Held>, TemplateError> {
    // Its files may be replaced or go when it is loaded.
    let pair = Pair::open(&folder.join(STATE), &folder.join(MEMORY))?;
    let memory = pair.memory;
    let (saved, here) = (memory.about().page_size, Bytes::new(rustix::param::page_size() as u64));
    if saved != here {
        return Err(TemplateError::PageSize { saved, here });
    }
    let path = socket_of(memory.about().id)?;
    // First: a second holder ends here, and a clone waits.
    let holder = listen(&path)?;
    let extents = extents(memory.chunks(), MOST_EXTENTS);
    let Some(template) = fill(&memory, &extents, &|| signals.wait())? else { return Ok(None) };
    let identity = Identity::of(&memory);
    let size = Bytes::new(extents.iter().map(|extent| extent.end - extent.start).sum());
    let line = format!(
        "holds a template of {folder:?} at {path:?}: {size} of {} of guest memory",
        identity.size
    );
    Ok(Some(Held { holder, message: identity.encode().to_vec(), template, line }))
}

/// Listens for clients, and removes the sockets of holders that were killed: each has a name of its own, which no other
/// may ever take again.
fn listen(path: &Path) -> Result<Holder, TemplateError> {
    let _lock = registry::lock_templates().map_err(client::Error::Place)?;
    let holder = Holder::bind(path)?;
    if let Some(folder) = path.parent() {
        unix_socket::remove_stale_in(folder, SocketType::SEQPACKET);
    }
    Ok(holder)
}

fn of_boot_files(kernel: &Path, initrd: Option<&Path>) -> Result<Held, TemplateError> {
    let image = HeldBootImage::of(kernel, initrd)?;
    // First, as above.
    let holder = listen(&image.socket)?;
    let (message, template, size) = image.load(kernel, initrd)?;
    let line = format!("holds a boot image of {kernel:?} at {:?}: {size}", image.socket);
    Ok(Held { holder, message: message.to_vec(), template, line })
}
