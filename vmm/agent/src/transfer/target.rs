//! Where a copy goes, by the rules of cp(1): into a destination that is a folder, else under its name.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::hash::{BuildHasher, Hasher, RandomState};
use std::io::{ErrorKind, Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use rustix::fs::{
    AtFlags, FileType, Mode, OFlags, fsync, mkdirat, open, openat, renameat, statat, unlinkat,
};
use rustix::io::Errno;

use super::header::Time;
use super::stream::Receiver;
use super::unpack::{Unpacker, is_plain, open_folder, set};
use super::{Error, Observer};
use crate::protocol::message::{Source, SourceKind, Summary};

/// What one write of a file takes.
const CHUNK: usize = 64 << 10;
/// Permissions of a file whose sender has none for it.
const MODE: u32 = 0o644;

/// A place for a copy.
#[derive(Debug)]
pub struct Target {
    /// For messages.
    path: PathBuf,
    place: Place,
}

#[derive(Debug)]
enum Place {
    File { folder: OwnedFd, name: Vec<u8>, mode: u32, modified: Option<Time> },
    Tree { root: OwnedFd, is_new: bool },
}

impl Target {
    /// The place for `source` that `destination` names. The folder of a tree is made.
    ///
    /// # Errors
    /// When it makes no sense, or may not be written.
    pub fn new(destination: &Path, source: &Source) -> Result<Self, Error> {
        let wants_folder = destination.as_os_str().as_bytes().ends_with(b"/");
        let (folder, name) = match fs::metadata(destination) {
            Ok(found) if found.is_dir() => match (source.name.as_bytes(), source.kind) {
                (b"", SourceKind::Tree) => {
                    let place = Place::Tree { root: folder(destination)?, is_new: false };
                    return Ok(Self { path: destination.to_owned(), place });
                }
                (name, _) => (destination, name),
            },
            Ok(_) if wants_folder || matches!(source.kind, SourceKind::Tree) => {
                return Err(Error::IsNoFolder(destination.to_owned()));
            }
            Err(error) if error.kind() == ErrorKind::NotADirectory => {
                return Err(Error::IsNoFolder(destination.to_owned()));
            }
            Err(error) if error.kind() != ErrorKind::NotFound => {
                return Err(Error::file("write to", destination)(error));
            }
            Err(_) if wants_folder && !matches!(source.kind, SourceKind::Tree) => {
                return Err(Error::NoFolder(destination.to_owned()));
            }
            Ok(_) | Err(_) => {
                let parent = destination.parent().filter(|parent| !parent.as_os_str().is_empty());
                let name = destination.file_name().unwrap_or_default();
                (parent.unwrap_or(Path::new(".")), name.as_bytes())
            }
        };
        if !is_plain(name) {
            return Err(Error::NoName(destination.to_owned()));
        }
        if !folder.is_dir() {
            return Err(Error::NoFolder(folder.to_owned()));
        }
        let path = folder.join(OsStr::from_bytes(name));
        let folder = self::folder(folder)?;
        let place = match source.kind {
            SourceKind::File { mode, modified, .. } => {
                check(&folder, name, &path)?;
                Place::File { folder, name: name.to_vec(), mode: mode.unwrap_or(MODE), modified }
            }
            SourceKind::Tree => tree(&folder, name, &path)?,
        };
        Ok(Self { path, place })
    }

    /// Receives the copy.
    ///
    /// # Errors
    /// When it cannot be written, is damaged, or not what was sent. Of a file nothing is left then, of a tree
    /// what has arrived.
    pub fn receive<R: Read, O: Observer>(
        self,
        mut stream: Receiver<R, O>,
    ) -> Result<Summary, Error> {
        match self.place {
            Place::File { folder, name, mode, modified } => {
                let file = Temporary::new(&folder, &self.path)?;
                copy(&mut stream, &file.file, &self.path)?;
                let summary = stream.finish(None)?;
                let finish = || -> rustix::io::Result<()> {
                    set(&file.file, mode, modified)?;
                    fsync(&file.file)
                };
                finish().map_err(|error| Error::file("write", &self.path)(error.into()))?;
                file.persist(&name, &self.path)?;
                Ok(summary)
            }
            Place::Tree { root, is_new } => {
                let mut unpacker = Unpacker::new(root, &self.path, is_new);
                let unpacked = unpacker.unpack(&mut stream);
                let entries = unpacker.entries;
                unpacked.and_then(|()| stream.finish(Some(entries))).map_err(|source| {
                    Error::Partial { target: self.path.clone(), entries, source: Box::new(source) }
                })
            }
        }
    }
}

/// Writes a stream to a file, to the stream's end.
///
/// # Errors
/// The stream's, or the file's.
fn copy(mut stream: impl Read, mut file: impl Write, path: &Path) -> Result<(), Error> {
    let mut chunk = vec![0; CHUNK];
    loop {
        match stream.read(&mut chunk).map_err(Error::from_stream)? {
            0 => return Ok(()),
            count => file
                .write_all(chunk.get(..count).unwrap_or_default())
                .map_err(Error::file("write", path))?,
        }
    }
}

fn folder(path: &Path) -> Result<OwnedFd, Error> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    open(path, flags, Mode::empty()).map_err(|error| Error::file("open", path)(error.into()))
}

/// A file takes the place of a file or of a symbolic link, and of nothing else.
fn check(folder: &OwnedFd, name: &[u8], path: &Path) -> Result<(), Error> {
    match statat(folder, name, AtFlags::SYMLINK_NOFOLLOW) {
        Ok(found) => match FileType::from_raw_mode(found.st_mode) {
            FileType::RegularFile | FileType::Symlink => Ok(()),
            FileType::Directory => Err(Error::IsFolder(path.to_owned())),
            _ => Err(Error::Special(path.to_owned())),
        },
        Err(Errno::NOENT) => Ok(()),
        Err(error) => Err(Error::file("write to", path)(error.into())),
    }
}

fn tree(folder: &OwnedFd, name: &[u8], path: &Path) -> Result<Place, Error> {
    let is_new = match mkdirat(folder, name, Mode::RWXU) {
        Ok(()) => true,
        Err(Errno::EXIST) => false,
        Err(error) => return Err(Error::file("make the folder", path)(error.into())),
    };
    let root = open_folder(folder, name).map_err(|_| Error::IsNoFolder(path.to_owned()))?;
    Ok(Place::Tree { root, is_new })
}

/// A file under a name that is removed unless it is complete.
struct Temporary<'a> {
    folder: &'a OwnedFd,
    name: String,
    file: File,
    is_kept: bool,
}

impl<'a> Temporary<'a> {
    fn new(folder: &'a OwnedFd, path: &Path) -> Result<Self, Error> {
        loop {
            let name = format!(".tessera-{:016x}", RandomState::new().build_hasher().finish());
            let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
            match openat(folder, &name, flags, Mode::RUSR | Mode::WUSR) {
                Ok(file) => return Ok(Self { folder, name, file: file.into(), is_kept: false }),
                Err(Errno::EXIST) => {}
                Err(error) => return Err(Error::file("write", path)(error.into())),
            }
        }
    }

    /// Gives it its name, in place of what had it.
    fn persist(mut self, name: &[u8], path: &Path) -> Result<(), Error> {
        renameat(self.folder, &self.name, self.folder, name)
            .map_err(|error| Error::file("write", path)(error.into()))?;
        self.is_kept = true;
        // The name is to be there after a crash, too; a folder that may not be read is not synchronised.
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        if let Ok(folder) = openat(self.folder, ".", flags, Mode::empty()) {
            fsync(folder).map_err(|error| Error::file("write", path)(error.into()))?;
        }
        Ok(())
    }
}

impl Drop for Temporary<'_> {
    fn drop(&mut self) {
        if !self.is_kept {
            let _ = unlinkat(self.folder, &self.name, AtFlags::empty());
        }
    }
}

/// Writes a stream to `out`, for instance standard output: a tree as its archive.
///
/// # Errors
/// The stream's, or the output's.
pub fn receive_into<R: Read, O: Observer>(
    mut stream: Receiver<R, O>,
    out: impl Write,
) -> Result<Summary, Error> {
    copy(&mut stream, out, Path::new("standard output"))?;
    stream.finish(None)
}
