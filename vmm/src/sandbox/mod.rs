//! What the process may no longer do once its work begins ([docs/sandbox.md](../../../docs/sandbox.md)).
//!
//! Threads that begin before the main thread is confined are confined as they begin; threads that begin later have what
//! the main thread has, and a filter of system calls beside.

mod args;
mod filters;
mod landlock;
mod privileges;
mod seccomp;

use std::ffi::c_long;
use std::io;
use std::path::PathBuf;
use std::process;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};

use thiserror::Error;

pub use args::{SandboxArgs, SandboxMode, SeccompMode};
use landlock::{Access, Ruleset};

use crate::error::{chain, say, say_last};
use crate::exit_status::ExitStatus;
use crate::sys::fatal;
use crate::sys::thread;
pub use crate::sys::thread::{ROLES, Role};

/// Why the process cannot be confined.
#[derive(Debug, Error)]
pub enum Error {
    /// The kernel has no filters.
    #[error(
        "this kernel cannot filter system calls (CONFIG_SECCOMP_FILTER): --seccomp off runs without filters"
    )]
    NoSeccomp(#[source] io::Error),
    /// The kernel does not take a filter.
    #[error("the kernel does not take the filter of system calls of a thread")]
    Filter(#[source] io::Error),
    /// The kernel does not let the process do without privileges.
    #[error("the process cannot give up its privileges: --sandbox off keeps them")]
    Privileges(#[source] io::Error),
    /// A folder that was named cannot be had.
    #[error("cannot allow the VM the folder {}: name one that is there (--allow DIR)", path.display())]
    Folder {
        /// The folder.
        path: PathBuf,
        /// The system's reason.
        #[source]
        source: io::Error,
    },
    /// The kernel does not take rules for files.
    #[error(
        "the kernel does not take the rules for files (Landlock): --sandbox off runs without them"
    )]
    Files(#[source] io::Error),
}

impl Error {
    /// The status that the process ends with.
    pub fn status(&self) -> ExitStatus {
        match self {
            Self::Folder { source, .. } => ExitStatus::for_input(source.kind()),
            _ => ExitStatus::Unavailable,
        }
    }
}

/// What a process may do with files when it is confined, beside those that are open.
#[derive(Clone, Debug, Default)]
pub struct Files {
    /// Where it removes sockets of its own.
    pub removed_in: Vec<PathBuf>,
    /// Where it makes, reads, writes and removes files.
    pub made_in: Vec<PathBuf>,
    /// What it reads.
    pub read: Vec<PathBuf>,
    /// Devices that it opens again.
    pub devices: Vec<PathBuf>,
}

/// How this process is confined. Of the process, as signal handlers are: threads begin in many rooms, and none of them
/// is to be forgotten.
static CONFINEMENT: OnceLock<(SandboxArgs, Files)> = OnceLock::new();
/// Which files may be opened.
static FILES: Mutex<Option<Ruleset>> = Mutex::new(None);
/// Whether the main thread is confined, and with it what it starts.
static IS_CONFINED: AtomicBool = AtomicBool::new(false);

/// Has threads that begin from here on be confined. To be called before the first of them, by a process that calls
/// [`confine`] when all is prepared. `files` are those that it uses whatever it does.
///
/// # Errors
/// When this kernel cannot.
pub fn begin(args: &SandboxArgs, files: Files) -> Result<(), Error> {
    let mut args = *args;
    if !filters::ARE_KNOWN {
        args.seccomp = SeccompMode::Off;
    }
    if args.seccomp != SeccompMode::Off {
        seccomp::look(args.seccomp)?;
    }
    privileges::prepare(args.sandbox == SandboxMode::On).map_err(Error::Privileges)?;
    // Opened now: no thread may open files for a message later.
    fatal::open_output();
    // Another setting is of a test in the same process.
    let _ = CONFINEMENT.set((args, files));
    thread::at_start(confine_thread);
    Ok(())
}

/// Which files threads that begin from here on may open besides, before the first of them.
///
/// # Errors
/// When a folder is not there, or the kernel does not take a rule.
pub fn restrict_files(more: Files) -> Result<(), Error> {
    let Some((args, files)) = CONFINEMENT.get() else { return Ok(()) };
    if args.sandbox == SandboxMode::Off {
        return Ok(());
    }
    let version = match landlock::version() {
        Ok(version) => version,
        Err(error) => {
            say(&format!(
                "this kernel has no Landlock ({error}): files are kept from the VM by their modes alone"
            ));
            return Ok(());
        }
    };
    let ruleset = Ruleset::new(version).map_err(Error::Files)?;
    let all = [
        ([&files.made_in, &more.made_in], Access::FILES),
        ([&files.removed_in, &more.removed_in], Access::REMOVE),
        ([&files.read, &more.read], Access::READ),
        ([&files.devices, &more.devices], Access::DEVICE),
    ];
    let wanted = all.iter().flat_map(|(paths, access)| {
        paths.iter().flat_map(|paths| paths.iter()).map(|path| (path, *access))
    });
    for (path, access) in wanted {
        match ruleset.allow(path, access) {
            Err(error) if error.kind() == io::ErrorKind::NotFound && access == Access::READ => {}
            allowed => allowed.map_err(|source| Error::Folder { path: path.clone(), source })?,
        }
    }
    // A VM that did not start may have had others.
    *rules() = Some(ruleset);
    Ok(())
}

/// What a system call has answered: an error where that is below zero.
fn answer(answer: c_long) -> io::Result<c_long> {
    if answer < 0 { Err(io::Error::last_os_error()) } else { Ok(answer) }
}

fn rules() -> MutexGuard<'static, Option<Ruleset>> {
    FILES.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Confines the calling thread, for good. Nothing happens without [`begin`].
///
/// # Errors
/// When the kernel refuses.
pub fn confine(role: Role) -> Result<(), Error> {
    let Some((args, _)) = CONFINEMENT.get() else { return Ok(()) };
    let is_first = !IS_CONFINED.load(Ordering::Acquire);
    if args.sandbox == SandboxMode::On && is_first {
        privileges::drop_all(role).map_err(Error::Privileges)?;
        if let Some(files) = &*rules() {
            files.restrict().map_err(Error::Files)?;
        }
    }
    seccomp::install(filters::of(role), args.seccomp)?;
    if matches!(role, Role::Main | Role::Broker | Role::Template) {
        IS_CONFINED.store(true, Ordering::Release);
    }
    Ok(())
}

/// Whether there are rules for files.
pub fn has_file_rules() -> bool {
    rules().is_some()
}

/// Whether a call that no filter allows ends the process: a panic then says less.
pub fn is_filtered() -> bool {
    CONFINEMENT.get().is_some_and(|(args, _)| args.seccomp == SeccompMode::On)
}

/// The filter of this name in resources/seccomp/aarch64.filters, as instructions of classic BPF.
pub fn program(name: &str) -> Option<&'static [u64]> {
    filters::named(name)
}

fn confine_thread(role: Role) {
    if let Err(error) = confine(role) {
        say_last(&chain(&error));
        process::exit((error.status() as u8).into());
    }
}
