//! What the process may no longer do once its work begins ([docs/sandbox.md](../../../docs/sandbox.md)).
//!
//! Threads that begin before the main thread is confined are confined as they begin. A thread that a confined one starts
//! has what that one has, and a filter of system calls beside.

mod args;
mod filters;
mod landlock;
mod privileges;
mod seccomp;

use std::ffi::c_long;
use std::io;
use std::path::{Path, PathBuf};
use std::process;
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};

use thiserror::Error;

pub use args::{SandboxArgs, SandboxMode, SeccompMode};
use landlock::{Access, Ruleset};

use crate::error::{chain, say, say_last};
use crate::exit_status::ExitStatus;
use crate::folder::folder_of;
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
    /// A start has failed when the process was confined already.
    #[error(
        "the process was confined by a start that then failed, and cannot prepare a guest again: end it, and start \
         another"
    )]
    Confined,
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

/// What a process does with a file.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum FileUse {
    /// It reads one that is there.
    Read,
    /// It reads and writes one that is there.
    Write,
    /// It makes one.
    Make,
}

impl FileUse {
    fn access(self) -> Access {
        match self {
            Self::Read => Access::READ_FILES,
            Self::Write => Access::WRITE_FILES,
            Self::Make => Access::FILES,
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
    /// The same, in folders that were not named: without one that has gone, it does without.
    pub made_in_if_there: Vec<PathBuf>,
    /// Where it reads files, and reads and writes files, that are there.
    pub opened_in: Vec<(PathBuf, FileUse)>,
    /// What it reads.
    pub read: Vec<PathBuf>,
    /// Devices that it opens again.
    pub devices: Vec<PathBuf>,
    /// How many descriptors it has at most beside those that are open, sockets included. All that it may have now where
    /// there is none.
    pub descriptors: Option<u64>,
}

impl Files {
    /// All but what was named to have files made in.
    fn unnamed(&self) -> impl Iterator<Item = (&Path, Access)> {
        let all = [
            (&self.made_in_if_there, Access::FILES),
            (&self.removed_in, Access::REMOVE),
            (&self.read, Access::READ),
            (&self.devices, Access::DEVICE),
        ];
        let all = all
            .into_iter()
            .flat_map(|(paths, access)| paths.iter().map(move |path| (path, access)));
        let opened = self.opened_in.iter().map(|(path, file_use)| (path, file_use.access()));
        all.chain(opened).map(|(path, access)| (path.as_path(), access))
    }
}

/// What holds from a thread's start on.
#[derive(Debug, Default)]
struct Rules {
    /// Which files may be opened.
    files: Option<Ruleset>,
    opens_devices: bool,
    descriptors: Option<u64>,
}

/// How this process is confined. Of the process, as signal handlers are: threads begin in many rooms, and none of them
/// is to be forgotten.
static CONFINEMENT: OnceLock<(SandboxArgs, Files)> = OnceLock::new();
/// What has been prepared for threads that begin.
static RULES: Mutex<Rules> =
    Mutex::new(Rules { files: None, opens_devices: false, descriptors: None });

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
    // A VM that did not start may have had others.
    let opens_devices = !(files.devices.is_empty() && more.devices.is_empty());
    let new = Rules { files: ruleset(files, &more)?, opens_devices, descriptors: more.descriptors };
    *rules() = new;
    Ok(())
}

/// The rules for these files; none where the kernel has no Landlock.
fn ruleset(files: &Files, more: &Files) -> Result<Option<Ruleset>, Error> {
    let version = match landlock::version() {
        Ok(version) => version,
        Err(error) => {
            say(&format!(
                "this kernel has no Landlock ({error}): files are kept from the process by their modes alone"
            ));
            return Ok(None);
        }
    };
    if version < landlock::TRUNCATION_SINCE {
        say(&format!(
            "this kernel's Landlock (version {version}) does not keep files from being cut (truncate): Linux 6.2 does"
        ));
    }
    let mut ruleset = Ruleset::new(version).map_err(Error::Files)?;
    // What was named and is not there is a mistake.
    for path in [&files.made_in, &more.made_in].into_iter().flatten() {
        let allowed = ruleset.allow(path, Access::FILES);
        allowed.map_err(|source| Error::Folder { path: path.clone(), source })?;
    }
    for (path, access) in files.unnamed().chain(more.unnamed()) {
        match ruleset.allow(path, access) {
            // There is nothing to use then. Who needs it says so in words of its own.
            Err(error) if is_out_of_reach(&error) => {}
            allowed => allowed.map_err(Error::Files)?,
        }
    }
    Ok(Some(ruleset))
}

fn is_out_of_reach(error: &io::Error) -> bool {
    use io::ErrorKind::{NotADirectory, NotFound, PermissionDenied};
    matches!(error.kind(), NotFound | NotADirectory | PermissionDenied)
}

/// What a system call has answered: an error where that is below zero.
fn answer(answer: c_long) -> io::Result<c_long> {
    if answer < 0 { Err(io::Error::last_os_error()) } else { Ok(answer) }
}

fn rules() -> MutexGuard<'static, Rules> {
    RULES.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Confines the calling thread, for good. Nothing happens without [`begin`].
///
/// # Errors
/// When the kernel refuses.
pub fn confine(role: Role) -> Result<(), Error> {
    let Some((args, _)) = CONFINEMENT.get() else { return Ok(()) };
    if (args.seccomp, args.sandbox) == (SeccompMode::Off, SandboxMode::Off) {
        return Ok(());
    }
    // What the thread has from the one that started it need not be done again, and its filter does not allow it.
    let is_inherited = thread::is_confined();
    if args.sandbox == SandboxMode::On && !is_inherited {
        let rules = rules();
        if matches!(role, Role::Main | Role::Broker | Role::Template) {
            let descriptors = rules.descriptors.unwrap_or(u64::MAX);
            privileges::limit(role, descriptors).map_err(Error::Privileges)?;
        }
        let kept = privileges::Kept {
            opens_devices: rules.opens_devices,
            has_file_rules: rules.files.is_some(),
        };
        privileges::drop_unneeded(role, kept).map_err(Error::Privileges)?;
        if let Some(files) = &rules.files {
            files.restrict().map_err(Error::Files)?;
        }
    }
    seccomp::install(filters::of(role), args.seccomp)?;
    thread::set_confined();
    Ok(())
}

/// Whether the calling thread may still prepare a guest: once it is [confined](confine) it may not.
///
/// # Errors
/// When it may not.
pub fn check_free() -> Result<(), Error> {
    if thread::is_confined() { Err(Error::Confined) } else { Ok(()) }
}

/// Whether the rules for files are what keeps the process from using one so, whatever the modes of files say. What is made
/// is in a folder that is there. For messages: the kernel alone decides.
pub fn forbids(path: &Path, file_use: FileUse) -> bool {
    let place = if file_use == FileUse::Make { folder_of(path) } else { path };
    let rules = rules();
    rules.files.as_ref().is_some_and(|files| !files.allows(place, file_use.access()))
}

/// Whether the kernel has filters of system calls.
///
/// # Errors
/// What it answers where it has none.
pub fn can_filter() -> Result<(), Error> {
    seccomp::look(SeccompMode::On)
}

/// The version of the kernel's rules for files.
///
/// # Errors
/// What it answers where it has none.
pub fn landlock_version() -> io::Result<u32> {
    landlock::version()
}

/// Whether the process, once it is confined, may start programs.
pub fn may_start_programs() -> bool {
    let args = CONFINEMENT.get().map(|(args, _)| args);
    args.is_none_or(|args| args.seccomp != SeccompMode::On && args.sandbox == SandboxMode::Off)
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
        fatal::clean_up();
        process::exit((error.status() as u8).into());
    }
}
