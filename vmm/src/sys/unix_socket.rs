//! A listening Unix socket and its file: created so that only its owner can connect, replaced when its
//! process is gone, removed with its process.

use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use rustix::fs::Mode;
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};

use super::accept::Remedy;
use super::fatal::OnFault;
use crate::exit_status::ExitStatus;

/// Connections that wait to be accepted. The event loop accepts them at once; more than this many
/// within one turn of the loop is a fault of the clients, who then wait.
const BACKLOG: i32 = 16;

/// What kind of socket, and who may connect to it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Kind {
    /// How its bytes travel.
    pub socket_type: SocketType,
    /// The file's mode: who may write may connect. The umask takes from it.
    pub mode: Mode,
    /// Connections that wait to be accepted.
    pub backlog: i32,
    /// Its file stays where a fault ends the process: a successor is to find it.
    pub stays_after_fault: bool,
}

impl Kind {
    /// A stream for the socket's owner only.
    pub(crate) const PRIVATE_STREAM: Self = Self {
        socket_type: SocketType::STREAM,
        mode: Mode::RUSR.union(Mode::WUSR),
        backlog: BACKLOG,
        stays_after_fault: false,
    };
}

/// The most files of a folder that are looked at for sockets without a listener: a call or two each, and the next look
/// finds more.
const MOST_STALE: usize = 1024;

/// The longest path the kernel takes: `sun_path` has 108 bytes, one for the final zero (unix(7)).
const MAX_PATH: usize = 107;

/// Why a socket cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A live process listens there.
    #[error("another process listens on {0:?}; give each VM a path of its own")]
    InUse(PathBuf),
    /// The path names something that this program did not make.
    #[error(
        "{0:?} exists and is no socket of the kind that belongs there; remove it or choose another path"
    )]
    Occupied(PathBuf),
    /// The path does not fit an address.
    #[error(
        "the socket path {path:?} has {length} bytes, more than the {MAX_PATH} of a Unix \
         socket address; choose a shorter one"
    )]
    TooLong {
        /// The path asked for.
        path: PathBuf,
        /// Its length in bytes.
        length: usize,
    },
    /// The kernel refused.
    #[error("cannot create the socket {path:?}; does its directory exist and can it be written?")]
    Create {
        /// The path asked for.
        path: PathBuf,
        /// The kernel's reason.
        #[source]
        source: io::Error,
    },
    /// Something is there and what it is cannot be found out, or it cannot be removed.
    #[error("cannot replace what is at {path:?}; remove it or choose another path")]
    Replace {
        /// The path asked for.
        path: PathBuf,
        /// The kernel's reason.
        #[source]
        source: io::Error,
    },
}

impl Error {
    /// The status that the process ends with.
    pub fn status(&self) -> ExitStatus {
        match self {
            Self::Create { source, .. } | Self::Replace { source, .. } => {
                ExitStatus::for_output(source.kind())
            }
            Self::InUse(_) | Self::Occupied(_) | Self::TooLong { .. } => ExitStatus::CannotCreate,
        }
    }
}

/// A listening socket and its file, which is removed on drop.
#[derive(Debug)]
pub(crate) struct Socket {
    listener: UnixListener,
    /// A descriptor to give up when the process has none left: see [`Socket::turn_away`].
    spare: Option<OwnedFd>,
    /// `None` when the path's identity could not be read: then nothing is removed.
    file: Option<File>,
    has_replaced: bool,
    /// Removes the file where a fault ends the process, unless it is to stay.
    _on_fault: Option<OnFault>,
    /// The error that the next accepts fail with; zero for none.
    #[cfg(test)]
    accept_error: std::sync::Arc<std::sync::atomic::AtomicI32>,
}

impl Socket {
    /// Listens for streams at `path`, in the place of a socket that a dead process left.
    ///
    /// # Errors
    /// When the path is too long or taken, or the kernel refuses.
    pub(crate) fn bind(path: &Path) -> Result<Self, Error> {
        Self::bind_as(path, Kind::PRIVATE_STREAM)
    }

    /// Listens at `path` with a socket of another kind. What its listener accepts is of that kind, too,
    /// whatever the types of the standard library call it.
    ///
    /// # Errors
    /// As [`bind`](Self::bind).
    pub(crate) fn bind_as(path: &Path, kind: Kind) -> Result<Self, Error> {
        let length = path.as_os_str().len();
        if length > MAX_PATH {
            let path = path.to_owned();
            return Err(Error::TooLong { path, length });
        }
        let failed = |source| Error::Create { path: path.to_owned(), source };
        // An empty name would ask the kernel for an abstract socket with a random one (unix(7)).
        if length == 0 {
            return Err(failed(io::ErrorKind::InvalidInput.into()));
        }
        let mut has_replaced = false;
        let socket = match listen(path, kind) {
            Err(Errno::ADDRINUSE) => {
                remove_stale(path, kind.socket_type)?;
                has_replaced = true;
                listen(path, kind)
            }
            other => other,
        };
        let socket = match socket {
            // Another process took the freed name first.
            Err(Errno::ADDRINUSE) => return Err(Error::InUse(path.to_owned())),
            other => other.map_err(|errno| failed(errno.into()))?,
        };
        let listener = UnixListener::from(socket);
        let spare = listener.try_clone().ok().map(OwnedFd::from);
        let file = File::at(path);
        let goes = file.as_ref().filter(|_| !kind.stays_after_fault);
        let on_fault = goes.and_then(|it| OnFault::remove(&it.path, it.device, it.inode));
        Ok(Self {
            listener,
            spare,
            file,
            has_replaced,
            _on_fault: on_fault,
            #[cfg(test)]
            accept_error: std::sync::Arc::default(),
        })
    }

    /// Accepts the next client. What may be done about an error: [`Remedy`](super::accept::Remedy).
    ///
    /// # Errors
    /// As accept(2).
    pub(crate) fn accept(&self) -> io::Result<UnixStream> {
        #[cfg(test)]
        match self.accept_error.load(std::sync::atomic::Ordering::SeqCst) {
            0 => {}
            errno => return Err(io::Error::from_raw_os_error(errno)),
        }
        self.listener.accept().map(|(stream, _)| stream)
    }

    /// What [`accept`](Self::accept) is to fail with, as the kernel's want of memory cannot be arranged.
    #[cfg(test)]
    pub(crate) fn accept_error(&self) -> std::sync::Arc<std::sync::atomic::AtomicI32> {
        std::sync::Arc::clone(&self.accept_error)
    }

    /// Turns the waiting client away after `accept` has failed for want of a descriptor: otherwise the
    /// listener would announce it for ever. The spare descriptor makes room for the moment it takes. Whether the client
    /// has gone: without a spare there may be no room.
    pub(crate) fn turn_away(&mut self) -> bool {
        self.spare = None;
        // Accepted and closed at once.
        let accepted = self.listener.accept();
        self.spare = self.listener.try_clone().ok().map(OwnedFd::from);
        accepted.map_or_else(|error| Remedy::for_accept(&error) == Remedy::None, |_| true)
    }

    /// Whether it took the place of a socket that a dead process left.
    pub(crate) fn has_replaced(&self) -> bool {
        self.has_replaced
    }

    /// Has the file stay when the socket goes.
    pub(crate) fn leave_file(&mut self) {
        self.file = None;
        self._on_fault = None;
    }

    /// The listener: non-blocking, close-on-exec.
    pub(crate) fn listener(&self) -> &UnixListener {
        &self.listener
    }
}

impl Drop for Socket {
    fn drop(&mut self) {
        let Some(file) = &self.file else { return };
        // Only our own: a successor may have replaced the file.
        if File::at(&file.path).as_ref() == Some(file) {
            // Nothing is left to tell if it fails.
            let _ = std::fs::remove_file(&file.path);
        }
    }
}

/// A file and which one it is.
#[derive(Debug, PartialEq, Eq)]
struct File {
    /// Absolute, so that a change of directory does not lead to another file.
    path: PathBuf,
    device: u64,
    inode: u64,
}

impl File {
    fn at(path: &Path) -> Option<Self> {
        let path = std::path::absolute(path).ok()?;
        let metadata = std::fs::symlink_metadata(&path).ok()?;
        Some(Self { path, device: metadata.dev(), inode: metadata.ino() })
    }
}

/// A new socket: non-blocking, close-on-exec.
fn socket(socket_type: SocketType) -> Result<OwnedFd, Errno> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    rustix::net::socket_with(AddressFamily::UNIX, socket_type, flags, None)
}

/// A non-blocking, close-on-exec socket that listens at `path`.
fn listen(path: &Path, kind: Kind) -> Result<OwnedFd, Errno> {
    let address = SocketAddrUnix::new(path)?;
    let socket = socket(kind.socket_type)?;
    // bind() gives the file the socket's own mode less the umask (net/unix/af_unix.c,
    // unix_bind_bsd), so there is no moment at which others could connect, and the umask, which
    // all threads share, stays as it is.
    rustix::fs::fchmod(&socket, kind.mode)?;
    rustix::net::bind(&socket, &address)?;
    if let Err(errno) = rustix::net::listen(&socket, kind.backlog) {
        // The file of a socket that does not listen is of no use to anybody.
        let _ = std::fs::remove_file(path);
        return Err(errno);
    }
    Ok(socket)
}

/// Removes a socket without a listener; anything else is an error.
fn remove_stale(path: &Path, socket_type: SocketType) -> Result<(), Error> {
    let failed = |source| Error::Replace { path: path.to_owned(), source };
    let found = match std::fs::symlink_metadata(path) {
        Ok(metadata) if metadata.file_type().is_socket() => File::at(path),
        Ok(_) => return Err(Error::Occupied(path.to_owned())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(failed(error)),
    };
    match connect(path, socket_type) {
        Err(Errno::CONNREFUSED) => {}
        // A full backlog is a live, if busy, listener.
        Ok(_) | Err(Errno::AGAIN) => return Err(Error::InUse(path.to_owned())),
        Err(Errno::NOENT) => return Ok(()),
        Err(Errno::PROTOTYPE) => return Err(Error::Occupied(path.to_owned())),
        Err(errno) => return Err(failed(errno.into())),
    }
    // Two VMs may find the same stale socket; the later must not remove what the earlier made.
    if File::at(path) != found {
        return Err(Error::InUse(path.to_owned()));
    }
    std::fs::remove_file(path).map_err(failed)
}

/// Removes the sockets in a folder that have no listener, of this type by rights. What else is there stays, and so does
/// what cannot be looked at. No process may be about to listen there meanwhile.
pub(crate) fn remove_stale_in(folder: &Path, socket_type: SocketType) {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    for entry in entries.take(MOST_STALE) {
        if entry.file_type().is_ok_and(|kind| kind.is_socket()) {
            let _ = remove_stale(&entry.path(), socket_type);
        }
    }
}

/// Connects without waiting for a place in the backlog. The stream does not block.
///
/// # Errors
/// As connect(2); EAGAIN when the backlog is full.
pub(crate) fn connect(path: &Path, socket_type: SocketType) -> Result<UnixStream, Errno> {
    let socket = socket(socket_type)?;
    rustix::net::connect(&socket, &SocketAddrUnix::new(path)?)?;
    Ok(UnixStream::from(socket))
}

#[cfg(test)]
mod tests;
