//! Where the entries are.

use std::ffi::OsString;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::fs::{CWD, FlockOperation, Mode, OFlags, fchmod, flock, fstat, mkdirat, openat};
use rustix::io::{Errno, retry_on_intr};
use rustix::process::{Uid, geteuid};

use super::Error;
use super::service::Service;

/// The directory of the entries, in that of all runtime files.
pub(super) const NAME: &str = "vms";
/// The directory of the sockets of templates, beside it. No service has a name with a dot.
const TEMPLATES: &str = "templates.d";

/// How long a change of the directory is waited for: each takes a few system calls, so that a longer one means a
/// process that was stopped within it.
const PATIENCE: Duration = Duration::from_secs(2);
/// Between two attempts.
const PAUSE: Duration = Duration::from_millis(1);

/// The directory of a user's entries, open.
#[derive(Debug)]
pub struct Directory {
    pub(super) path: PathBuf,
    pub(super) fd: OwnedFd,
    /// The service whose it is, if it is not this user's.
    pub(super) service: Option<Service>,
}

impl Directory {
    /// That of this user, made if there is none.
    ///
    /// # Errors
    /// When there is no place for it, it is not this user's alone, or it cannot be made.
    pub fn create() -> Result<Self, Error> {
        Self::create_in(&place()?)
    }

    /// That of this user; `None` if no VM was ever started.
    ///
    /// # Errors
    /// When there is no place for it, or it is not this user's alone.
    pub fn open() -> Result<Option<Self>, Error> {
        Self::open_in(&place()?)
    }

    /// As [`create`](Self::create), at another place.
    ///
    /// # Errors
    /// As [`create`](Self::create).
    pub fn create_in(place: &Path) -> Result<Self, Error> {
        let (above, fd, path) = make_in(place, NAME)?;
        let failed = |errno| system("set the mode of", &path, errno);
        fchmod(&fd, Mode::RWXU | readers(&above).map_err(failed)?).map_err(failed)?;
        Ok(Self { path, fd, service: None })
    }

    /// As [`open`](Self::open), at another place.
    ///
    /// # Errors
    /// As [`open`](Self::open).
    pub fn open_in(place: &Path) -> Result<Option<Self>, Error> {
        let Some(above) = open_own(CWD, place, place)? else { return Ok(None) };
        let path = place.join(NAME);
        let fd = open_own(&above, Path::new(NAME), &path)?;
        Ok(fd.map(|fd| Self { path, fd, service: None }))
    }

    /// Its path.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The directory of what is kept of one VM besides its entry; made if there is none.
    ///
    /// # Errors
    /// When the name is no VM's, or the directory cannot be made or is not this user's alone.
    pub fn folder_of(&self, name: &str) -> Result<PathBuf, Error> {
        if !super::record::is_name(name) {
            return Err(Error::Id(name.to_owned()));
        }
        let path = self.path.join(name);
        match mkdirat(&self.fd, name, Mode::RWXU) {
            Ok(()) | Err(Errno::EXIST) => {}
            Err(errno) => return Err(system("make the directory", &path, errno)),
        }
        open_own(&self.fd, Path::new(name), &path)?.ok_or_else(|| gone(&path))?;
        Ok(path)
    }

    pub(super) fn fd(&self) -> &OwnedFd {
        &self.fd
    }

    /// Locks the directory against other changes, waiting for those that are under way.
    pub(super) fn lock(&self) -> Result<Lock, Error> {
        let start = Instant::now();
        loop {
            if let Some(lock) = self.try_lock()? {
                return Ok(lock);
            }
            if start.elapsed() >= PATIENCE {
                return Err(Error::Busy(self.path.clone()));
            }
            std::thread::sleep(PAUSE);
        }
    }

    /// Locks the directory against other changes, if there are none now.
    pub(super) fn try_lock(&self) -> Result<Option<Lock>, Error> {
        // The lock is that of a description, and threads are to exclude each other.
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let failed = |errno| system("lock", &self.path, errno);
        let fd = openat(&self.fd, ".", flags, Mode::empty()).map_err(failed)?;
        match flock(&fd, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => Ok(Some(Lock { _fd: fd })),
            Err(Errno::WOULDBLOCK) => Ok(None),
            Err(errno) => Err(failed(errno)),
        }
    }

    /// The user whose directory it is.
    fn owner(&self) -> Uid {
        self.service.as_ref().map_or_else(geteuid, |service| service.user)
    }

    /// The mode of a file in it: as the directory is read, so are they.
    pub(super) fn mode_of_files(&self) -> Result<Mode, Errno> {
        Ok(Mode::RUSR | Mode::WUSR | (readers(&self.fd)? & Mode::RGRP))
    }

    /// Opens a file of it; what is no plain file of its user is an error.
    pub(super) fn file(&self, name: &str) -> io::Result<File> {
        // A FIFO would hold the open.
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let opened = retry_on_intr(|| openat(&self.fd, name, flags, Mode::empty()));
        let file = File::from(opened?);
        let metadata = file.metadata()?;
        match metadata.is_file() && metadata.uid() == self.owner().as_raw() {
            true => Ok(file),
            false => Err(io::Error::other("it is no plain file of its registry's user")),
        }
    }

    /// Whether the file of this name is the open one.
    pub(super) fn has(&self, name: &str, file: &File) -> bool {
        let at = rustix::fs::statat(&self.fd, name, rustix::fs::AtFlags::SYMLINK_NOFOLLOW);
        match (at, fstat(file)) {
            (Ok(at), Ok(open)) => (at.st_dev, at.st_ino) == (open.st_dev, open.st_ino),
            _ => false,
        }
    }

    /// Removes a name. One that is not there is no error.
    pub(super) fn remove(&self, name: &str) -> Result<(), Error> {
        match rustix::fs::unlinkat(&self.fd, name, rustix::fs::AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => Ok(()),
            Err(errno) => Err(system("remove", &self.path.join(name), errno)),
        }
    }
}

/// The right to change the directory; dropped, others have it.
#[derive(Debug)]
pub(crate) struct Lock {
    _fd: OwnedFd,
}

/// The directory of the sockets of this user's templates; made if there is none.
///
/// # Errors
/// When there is no place for it, it is not this user's alone, or it cannot be made.
pub fn templates() -> Result<PathBuf, Error> {
    templates_in(&place()?)
}

/// Locks that directory: between bind(2) and listen(2), the socket of a process that lives is as one of a process that
/// has gone.
///
/// # Errors
/// As [`templates`], and when another process holds the lock for long.
pub(crate) fn lock_templates() -> Result<Lock, Error> {
    let (_, fd, path) = make_in(&place()?, TEMPLATES)?;
    Directory { path, fd, service: None }.lock()
}

pub(super) fn templates_in(place: &Path) -> Result<PathBuf, Error> {
    make_in(place, TEMPLATES).map(|(_, _, path)| path)
}

/// A directory of this user among runtime files, made if there is none: what it is in, itself, and its path.
fn make_in(place: &Path, name: &str) -> Result<(OwnedFd, OwnedFd, PathBuf), Error> {
    let failed = |path: &Path, errno: Errno| system("make the directory", path, errno);
    match rustix::fs::mkdir(place, Mode::RWXU) {
        Ok(()) | Err(Errno::EXIST) => {}
        Err(errno) => return Err(failed(place, errno)),
    }
    let above = open_own(CWD, place, place)?.ok_or_else(|| gone(place))?;
    let path = place.join(name);
    match mkdirat(&above, name, Mode::RWXU) {
        Ok(()) | Err(Errno::EXIST) => {}
        Err(errno) => return Err(failed(&path, errno)),
    }
    let fd = open_own(&above, Path::new(name), &path)?.ok_or_else(|| gone(&path))?;
    Ok((above, fd, path))
}

/// Where runtime files of this user are.
fn place() -> Result<PathBuf, Error> {
    place_for(|name| std::env::var_os(name), geteuid().is_root())
}

/// Where the entries of this user are, if there is a place for them; there may be none yet.
pub(crate) fn entries() -> Option<PathBuf> {
    place().ok().map(|place| place.join(NAME))
}

/// As [`place`], with this environment. Root's is the same in a session and in a service: the session's directory
/// goes with the session, and a service has none.
pub(super) fn place_for(
    variable: impl Fn(&str) -> Option<OsString>,
    is_root: bool,
) -> Result<PathBuf, Error> {
    let set = |name| variable(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    if let Some(path) = set("TESSERA_RUNTIME_DIR") {
        return match path.is_absolute() {
            true => Ok(path),
            false => Err(Error::NotAbsolute(path)),
        };
    }
    if is_root {
        return Ok(PathBuf::from("/run/tessera"));
    }
    // A relative one is to be ignored (XDG Base Directory Specification, "Environment variables").
    let session = set("XDG_RUNTIME_DIR").filter(|path| path.is_absolute());
    session.map(|path| path.join("tessera")).ok_or(Error::NoPlace)
}

/// Whose a directory is to be.
#[derive(Clone, Copy, Debug)]
pub(super) enum Owner {
    Is(Uid),
    Any,
}

/// Opens a directory of this user that no other can write; `None` if there is none.
fn open_own(above: impl AsFd, name: &Path, path: &Path) -> Result<Option<OwnedFd>, Error> {
    Ok(open(above, name, path, Owner::Is(geteuid()))?.map(|(fd, _)| fd))
}

/// The group that may read what is in a directory: that of a directory which is for a group, and not for everyone.
fn readers(directory: impl AsFd) -> Result<Mode, Errno> {
    let mode = Mode::from_raw_mode(fstat(directory)?.st_mode);
    let group = Mode::RGRP | Mode::XGRP;
    Ok(match mode.contains(group) && !mode.intersects(Mode::RWXO) {
        true => group,
        false => Mode::empty(),
    })
}

/// Opens a directory that only its owner can write, and whose it is; `None` if there is none.
pub(super) fn open(
    above: impl AsFd,
    name: &Path,
    path: &Path,
    owner: Owner,
) -> Result<Option<(OwnedFd, Uid)>, Error> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let fd = match openat(above, name, flags, Mode::empty()) {
        Ok(fd) => fd,
        Err(Errno::NOENT) => return Ok(None),
        // A symbolic link, or no directory.
        Err(Errno::LOOP | Errno::NOTDIR) => return Err(Error::NotOurs(path.to_owned())),
        Err(errno) => return Err(system("open", path, errno)),
    };
    let status = fstat(&fd).map_err(|errno| system("look at", path, errno))?;
    let others_write = Mode::from_raw_mode(status.st_mode).intersects(Mode::WGRP | Mode::WOTH);
    let user = Uid::from_raw(status.st_uid);
    let is_owner = match owner {
        Owner::Is(owner) => user == owner,
        Owner::Any => true,
    };
    match is_owner && !others_write {
        true => Ok(Some((fd, user))),
        false => Err(Error::NotOurs(path.to_owned())),
    }
}

pub(super) fn system(what: &'static str, path: &Path, errno: Errno) -> Error {
    Error::System { what, path: path.to_owned(), source: errno.into() }
}

fn gone(path: &Path) -> Error {
    system("open", path, Errno::NOENT)
}
