//! Hosts that are up: finds one that is like the one wanted and free, or has one started.

use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{self, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, SystemTime};

use rustix::fs::{FlockOperation, flock};
use sha2::{Digest, Sha256};

use crate::debian::hex;
use crate::frames::{Reply, Request};
use crate::interrupt::Interrupted;
use crate::keeper::socket;
use crate::places;
use crate::progress::tell;
use crate::session::Lab;
use crate::size::Mib;

/// Memory that this machine is to have left for a host that is started, and for what the others still take: a
/// host takes a GiB or two. Where there is less, hosts that are idle end.
const SPARE: Mib = Mib::new(6 << 10);
/// How often a host may go in the moment between finding and using it.
const TRIES: usize = 3;
/// How often an interrupt is looked for while a program runs.
const LOOK_EVERY: Duration = Duration::from_millis(200);

/// Why no host can be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    /// The folder of the hosts.
    #[error(transparent)]
    Places(#[from] places::Error),
    /// A host's folder, or its files.
    #[error("cannot use the folder {path}: check the space left and the permissions")]
    Folder {
        /// The folder.
        path: PathBuf,
        /// The system's reason.
        #[source]
        source: io::Error,
    },
    /// The lab cannot start itself.
    #[error("cannot start the lab that keeps the host")]
    Start(#[source] io::Error),
    /// What keeps the host has gone.
    #[error("the lab that keeps the host ended unexpectedly{log}")]
    Gone {
        /// What it said last.
        log: String,
    },
    /// Ctrl-C.
    #[error(transparent)]
    Interrupted(#[from] Interrupted),
}

/// A host for the use of this process alone, until the value goes.
struct Taken {
    folder: PathBuf,
    stream: UnixStream,
    /// Locked.
    busy: File,
    started: bool,
}

/// A short name for hosts that are made by these words from such files.
pub(crate) fn key(words: &[OsString], files: &str) -> String {
    let mut identity = Sha256::new();
    for word in words {
        identity.update(word.as_encoded_bytes());
        identity.update([0]);
    }
    identity.update(files);
    let name = hex(&identity.finalize());
    name.get(..8).unwrap_or(&name).to_owned()
}

/// Runs a request on a host with this key, and copies its output. `keeper` is the command that keeps such a
/// host; it still lacks the last argument, which is the host's folder.
///
/// # Errors
/// When there is no host, and on Ctrl-C.
pub(crate) fn run(
    lab: &Lab,
    key: &str,
    request: &Request,
    mut keeper: impl FnMut() -> Result<Command, io::Error>,
    output: &mut dyn Write,
) -> Result<u8, Error> {
    let mut tries = 0;
    loop {
        let taken = take(lab, key, &mut keeper)?;
        tries += 1;
        match follow(lab, &taken, request, output) {
            Ok(status) => return Ok(status),
            Err(Ended::Interrupted(interrupted)) => return Err(interrupted.into()),
            Err(Ended::Unused) if !taken.started && tries < TRIES => {}
            Err(Ended::Unused | Ended::Used) => {
                let log = fs::read_to_string(taken.folder.join("log")).unwrap_or_default();
                let log = if log.is_empty() { log } else { format!(":\n{log}") };
                return Err(Error::Gone { log });
            }
        }
    }
}

/// How a connection ended before the program did.
enum Ended {
    Interrupted(Interrupted),
    /// The program has not started.
    Unused,
    /// It has.
    Used,
}

fn follow(lab: &Lab, host: &Taken, request: &Request, output: &mut dyn Write) -> Result<u8, Ended> {
    let mut ended = Ended::Unused;
    if request.write(&host.stream).is_err() {
        return Err(ended);
    }
    loop {
        wait(lab, &host.stream)?;
        match Reply::read(&host.stream) {
            Ok(Reply::Started(before)) => {
                ended = Ended::Used;
                let name = host.folder.file_name().unwrap_or_default().to_string_lossy();
                lab.progress.say(&format!("on the shared host {name}, after {before} others"));
            }
            // Without a reader it is lost.
            Ok(Reply::Output(bytes)) => {
                drop(output.write_all(&bytes).and_then(|()| output.flush()))
            }
            Ok(Reply::Note(line)) => tell(&line),
            Ok(Reply::End(status)) => return Ok(status),
            Err(_) => return Err(ended),
        }
    }
}

/// Waits until there is something to read.
fn wait(lab: &Lab, stream: &UnixStream) -> Result<(), Ended> {
    use rustix::event::{PollFd, PollFlags, Timespec, poll};
    let timeout = Timespec { tv_sec: 0, tv_nsec: LOOK_EVERY.subsec_nanos().into() };
    loop {
        lab.interrupt.check().map_err(Ended::Interrupted)?;
        match poll(&mut [PollFd::new(stream, PollFlags::IN)], Some(&timeout)) {
            Ok(0) | Err(rustix::io::Errno::INTR) => {}
            // What is wrong with it, reading tells.
            Ok(_) | Err(_) => return Ok(()),
        }
    }
}

fn take(
    lab: &Lab,
    key: &str,
    keeper: &mut impl FnMut() -> Result<Command, io::Error>,
) -> Result<Taken, Error> {
    let root = lab.places.hosts();
    let _lock = places::lock(&root, &lab.interrupt, lab.progress)?;
    let mut idle = Vec::new();
    let entries = fs::read_dir(&root).map_err(failed(&root))?;
    for folder in entries.flatten().map(|entry| entry.path()).filter(|path| path.is_dir()) {
        match look(&folder) {
            Found::Busy => {}
            Found::Idle(host) if is_like(&folder, key) => {
                let _ = host.busy.set_modified(SystemTime::now());
                return Ok(host);
            }
            Found::Idle(host) => idle.push(host),
            // It may be at removing this itself.
            Found::Dead => drop(fs::remove_dir_all(&folder)),
        }
    }
    // The one that has been idle for longest first.
    idle.sort_by_key(|host| {
        fs::metadata(host.folder.join("busy")).and_then(|data| data.modified()).ok()
    });
    // Idle hosts cost memory and hardly anything else. Two for each that is started make room in the long run.
    let surplus = if available().is_none_or(|memory| memory < SPARE) { 2 } else { 0 };
    for host in idle.into_iter().take(surplus) {
        // One that is gone already is what is wanted.
        let _ = Request::End.write(&host.stream);
    }
    start(&root, key, keeper().map_err(Error::Start)?)
}

/// What this machine has available (proc_meminfo(5)).
fn available() -> Option<Mib> {
    let text = fs::read_to_string("/proc/meminfo").ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    let kib: u64 = line.trim().strip_suffix(" kB")?.parse().ok()?;
    Some(Mib::new(u32::try_from(kib >> 10).unwrap_or(u32::MAX)))
}

enum Found {
    Busy,
    Idle(Taken),
    Dead,
}

/// Whether a host can be used: it is locked by who uses it, and has a socket that takes connections.
fn look(folder: &Path) -> Found {
    let Ok(busy) = File::options().append(true).open(folder.join("busy")) else {
        return Found::Dead;
    };
    if flock(&busy, FlockOperation::NonBlockingLockExclusive).is_err() {
        return Found::Busy;
    }
    let Ok(stream) = File::open(folder).and_then(|folder| UnixStream::connect(socket(&folder)))
    else {
        return Found::Dead;
    };
    Found::Idle(Taken { folder: folder.to_owned(), stream, busy, started: false })
}

fn is_like(folder: &Path, key: &str) -> bool {
    let name = folder.file_name().unwrap_or_default().to_string_lossy();
    name.strip_prefix(key).is_some_and(|rest| rest.starts_with('-'))
}

/// Makes the folder of a host and starts what keeps it. The socket is there at once: who connects waits until
/// the host is up.
fn start(root: &Path, key: &str, mut keeper: Command) -> Result<Taken, Error> {
    let folder = tempfile::Builder::new().prefix(&format!("{key}-")).tempdir_in(root);
    let folder = folder.map_err(failed(root))?;
    let path = folder.path();
    let open = File::open(path).map_err(failed(path))?;
    let busy = File::create(path.join("busy")).map_err(failed(path))?;
    flock(&busy, FlockOperation::LockExclusive).map_err(|error| failed(path)(error.into()))?;
    let log = File::create(path.join("log")).map_err(failed(path))?;
    let errors = log.try_clone().map_err(failed(path))?;
    let listener = UnixListener::bind(socket(&open)).map_err(failed(path))?;
    let stream = UnixStream::connect(socket(&open)).map_err(failed(path))?;
    keeper.arg(path).stdin(OwnedFd::from(listener)).stdout(log).stderr(Stdio::from(errors));
    keeper.spawn().map_err(Error::Start)?;
    Ok(Taken { folder: folder.keep(), stream, busy, started: true })
}

fn failed(path: &Path) -> impl Fn(io::Error) -> Error + use<> {
    let path = path.to_owned();
    move |source| Error::Folder { path: path.clone(), source }
}
