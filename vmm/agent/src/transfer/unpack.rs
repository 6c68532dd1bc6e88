//! An archive as a tree. The archive may be made to harm.
//!
//! Every path is walked from the root by one name at a time, without following a symbolic link (`O_NOFOLLOW`),
//! and what is in the way of a file or a link is removed before, not written through. So nothing outside the
//! root changes, whatever the archive has put there before, or another process puts there meanwhile.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{
    AtFlags, Mode, OFlags, Timespec, Timestamps, UTIME_OMIT, fchmod, futimens, linkat, mkdirat,
    openat, symlinkat, unlinkat, utimensat,
};
use rustix::io::Errno;
use tar::EntryType;

use super::Error;
use super::header::{Entry, Extension, Kind, Time};
use crate::protocol::limits::{MAX_DEPTH, MAX_PATH};
use crate::protocol::text::Text;

/// The longest name of a file (NAME_MAX).
const MAX_NAME: usize = 255;
/// What one write of a file takes.
const CHUNK: usize = 64 << 10;

/// A folder whose permissions and time are set once it is complete.
struct Folder {
    path: Vec<u8>,
    mode: u32,
    modified: Time,
}

/// Receives a tree.
pub(super) struct Unpacker<'a> {
    root: OwnedFd,
    /// For messages.
    target: &'a Path,
    /// Whether the root was made for this tree; one that was there keeps its permissions.
    is_new: bool,
    /// Folders that were made, from the outermost to the innermost.
    open: Vec<Folder>,
    /// The folder of the last entry.
    parent: Option<(Vec<u8>, OwnedFd)>,
    /// What has arrived.
    pub(super) entries: u64,
}

impl<'a> Unpacker<'a> {
    pub(super) fn new(root: OwnedFd, target: &'a Path, is_new: bool) -> Self {
        Self { root, target, is_new, open: Vec::new(), parent: None, entries: 0 }
    }

    /// Reads an archive to its end.
    pub(super) fn unpack(&mut self, stream: impl Read) -> Result<(), Error> {
        let mut archive = tar::Archive::new(stream);
        let mut extension = None;
        // Raw: this program reads long names itself, as those of a hostile archive have no limit.
        for entry in archive.entries().map_err(Error::from_stream)?.raw(true) {
            let mut entry = entry.map_err(Error::from_stream)?;
            let header = entry.header().clone();
            if header.entry_type() == EntryType::XHeader {
                let size = header.entry_size().map_err(Error::Damaged)?;
                extension = Some(Extension::read(&mut entry, size)?);
                continue;
            }
            let found = Entry::read(&header, extension.take().unwrap_or_default())?;
            self.take(&found, entry)?;
            self.entries = self.entries.saturating_add(1);
        }
        self.leave(None)
    }

    fn take(&mut self, entry: &Entry, content: impl Read) -> Result<(), Error> {
        if entry.path.is_empty() {
            return match (entry.kind, self.entries) {
                (Kind::Folder, 0) => {
                    if self.is_new {
                        self.remember(entry);
                    }
                    Ok(())
                }
                _ => Err(Error::Archive("it has an entry without a name")),
            };
        }
        check(&entry.path)?;
        self.leave(Some(&entry.path))?;
        let (folder, name) = split(&entry.path);
        let parent = self.parent(folder)?;
        let failed = |doing| Error::file(doing, self.full(&entry.path));
        match entry.kind {
            Kind::File => {
                let file = anew(&parent, name, || {
                    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW;
                    openat(&parent, name, flags | OFlags::CLOEXEC, Mode::RUSR | Mode::WUSR)
                });
                let file = file.map_err(|error| failed("write")(error.into()))?;
                fill(&File::from(file), entry, content, failed("write"))
            }
            Kind::Folder => match mkdirat(&parent, name, Mode::RWXU) {
                Ok(()) => {
                    self.remember(entry);
                    Ok(())
                }
                Err(Errno::EXIST) => {
                    let opened = open_folder(&parent, name);
                    opened.map(drop).map_err(|_| Error::IsNoFolder(self.full(&entry.path)))
                }
                Err(error) => Err(failed("make the folder")(error.into())),
            },
            Kind::Symlink => {
                let made = anew(&parent, name, || symlinkat(entry.link.as_slice(), &parent, name));
                let made = made.and_then(|()| {
                    let times = times(entry.modified);
                    utimensat(&parent, name, &times, AtFlags::SYMLINK_NOFOLLOW)
                });
                made.map_err(|error| failed("make the link")(error.into()))
            }
            Kind::Link => {
                check(&entry.link)?;
                if entry.link == entry.path {
                    return Err(Error::Archive("it has a file that is a link to itself"));
                }
                let (folder, first) = split(&entry.link);
                let from = self.walk(folder)?;
                // Without AT_SYMLINK_FOLLOW a symbolic link gets another name, and is not followed.
                let made =
                    anew(&parent, name, || linkat(&from, first, &parent, name, AtFlags::empty()));
                made.map_err(|error| failed("make the link")(error.into()))
            }
        }
    }

    fn remember(&mut self, entry: &Entry) {
        let (path, mode, modified) = (entry.path.clone(), entry.mode, entry.modified);
        self.open.push(Folder { path, mode, modified });
    }

    /// Completes the folders that do not contain `path`; all of them without one.
    fn leave(&mut self, path: Option<&[u8]>) -> Result<(), Error> {
        while let Some(folder) =
            self.open.pop_if(|folder| !path.is_some_and(|path| contains(&folder.path, path)))
        {
            let opened = self.walk(&folder.path)?;
            let done = || -> rustix::io::Result<()> {
                // A descriptor of a path alone takes neither call.
                let opened = openat(
                    &opened,
                    ".",
                    OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC,
                    Mode::empty(),
                )?;
                futimens(&opened, &times(folder.modified))?;
                fchmod(&opened, Mode::from_raw_mode(folder.mode & 0o777))
            };
            done().map_err(|error| {
                Error::file("set the permissions and the time of", self.full(&folder.path))(
                    error.into(),
                )
            })?;
        }
        Ok(())
    }

    /// The folder of an entry.
    fn parent(&mut self, path: &[u8]) -> Result<OwnedFd, Error> {
        let copy = |folder: &OwnedFd| {
            folder.as_fd().try_clone_to_owned().map_err(Error::file("open", self.target))
        };
        if let Some((known, folder)) = &self.parent
            && known == path
        {
            return copy(folder);
        }
        let folder = self.walk(path)?;
        let result = copy(&folder);
        self.parent = Some((path.to_vec(), folder));
        result
    }

    /// Opens a folder below the root, by one name at a time.
    fn walk(&self, path: &[u8]) -> Result<OwnedFd, Error> {
        let root = self.root.as_fd().try_clone_to_owned();
        let mut folder = root.map_err(Error::file("open", self.target))?;
        for name in path.split(|byte| *byte == b'/').filter(|name| !name.is_empty()) {
            folder = open_folder(&folder, name).map_err(|error| match error {
                Errno::LOOP | Errno::NOTDIR => Error::Outside(Text::new(path)),
                error => Error::file("open", self.full(path))(error.into()),
            })?;
        }
        Ok(folder)
    }

    fn full(&self, path: &[u8]) -> PathBuf {
        self.target.join(Text::new(path).to_string())
    }
}

/// Opens a folder that is no symbolic link.
pub(super) fn open_folder(parent: impl AsFd, name: &[u8]) -> rustix::io::Result<OwnedFd> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    openat(parent, name, flags, Mode::empty())
}

/// Makes something; what was there, unless it is a folder, goes.
fn anew<T>(
    parent: impl AsFd,
    name: &[u8],
    mut make: impl FnMut() -> rustix::io::Result<T>,
) -> rustix::io::Result<T> {
    match make() {
        Err(Errno::EXIST) => {
            unlinkat(parent, name, AtFlags::empty())?;
            make()
        }
        other => other,
    }
}

fn fill(
    mut file: &File,
    entry: &Entry,
    mut content: impl Read,
    failed: impl FnOnce(std::io::Error) -> Error,
) -> Result<(), Error> {
    let mut chunk = vec![0; CHUNK.min(usize::try_from(entry.size).unwrap_or(CHUNK))];
    let mut left = entry.size;
    while left > 0 {
        let count = content.read(&mut chunk).map_err(Error::from_stream)?;
        if count == 0 {
            return Err(Error::Archive("it ends in the middle of a file"));
        }
        if let Err(error) = file.write_all(chunk.get(..count).unwrap_or_default()) {
            return Err(failed(error));
        }
        left = left.saturating_sub(count as u64);
    }
    set(file, entry.mode, Some(entry.modified)).map_err(|error| failed(error.into()))
}

/// Sets permissions and time. Bits that give a program another user's rights do not travel.
pub(super) fn set(file: impl AsFd, mode: u32, modified: Option<Time>) -> rustix::io::Result<()> {
    fchmod(&file, Mode::from_raw_mode(mode & 0o777))?;
    modified.map_or(Ok(()), |modified| futimens(&file, &times(modified)))
}

fn times((seconds, nanoseconds): Time) -> Timestamps {
    Timestamps {
        last_access: Timespec { tv_sec: 0, tv_nsec: UTIME_OMIT },
        last_modification: Timespec {
            tv_sec: seconds,
            tv_nsec: nanoseconds.min(999_999_999).into(),
        },
    }
}

/// A relative path of plain names.
fn check(path: &[u8]) -> Result<(), Error> {
    if path.len() > MAX_PATH || path.split(|byte| *byte == b'/').count() > MAX_DEPTH {
        return Err(Error::TooDeep(Text::new(path)));
    }
    match path.split(|byte| *byte == b'/').all(is_plain) {
        true => Ok(()),
        false => Err(Error::Outside(Text::new(path))),
    }
}

/// Whether it can be the name of a file in a folder.
pub(super) fn is_plain(name: &[u8]) -> bool {
    !matches!(name, b"" | b"." | b"..")
        && name.len() <= MAX_NAME
        && !name.iter().any(|byte| matches!(byte, 0 | b'/'))
}

fn split(path: &[u8]) -> (&[u8], &[u8]) {
    match path.iter().rposition(|byte| *byte == b'/') {
        None => (&[], path),
        Some(at) => (path.get(..at).unwrap_or_default(), path.get(at + 1..).unwrap_or_default()),
    }
}

/// Whether the path lies below the folder.
fn contains(folder: &[u8], path: &[u8]) -> bool {
    folder.is_empty() || path.strip_prefix(folder).is_some_and(|rest| rest.first() == Some(&b'/'))
}
