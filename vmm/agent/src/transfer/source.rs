//! What is sent: a file or a tree.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use rustix::fs::{FileType, Mode, OFlags, Stat, fstat, open};

use super::header::Time;
use super::pack::Packer;
use super::stream::{Counts, Sender};
use super::{Error, Observer};
use crate::protocol::message::{Source, SourceKind, Summary};
use crate::protocol::text::Text;

/// What one read of a file takes.
const CHUNK: usize = 64 << 10;

/// What a copy of this path is called in a folder. `dir/.`, `..` and `/` have no name of their own: what is in
/// them goes into the destination.
pub fn name_of(path: &Path) -> &[u8] {
    let is_dot = path.as_os_str().as_bytes().ends_with(b"/.");
    path.file_name().filter(|_| !is_dot).unwrap_or_default().as_bytes()
}

/// A source that is open.
#[derive(Debug)]
pub struct Opened {
    path: PathBuf,
    file: OwnedFd,
    source: Source,
}

impl Opened {
    /// Opens a file or a folder. A symbolic link is followed: the user has named it.
    ///
    /// # Errors
    /// When it is not there, or neither.
    pub fn new(path: &Path) -> Result<Self, Error> {
        // A pipe without a writer would hold this call for ever.
        let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
        let opened = open(path, flags, Mode::empty());
        let file = opened.map_err(|error| Error::file("read", path)(error.into()))?;
        let stat = fstat(&file).map_err(|error| Error::file("read", path)(error.into()))?;
        let kind = match FileType::from_raw_mode(stat.st_mode) {
            FileType::Directory => SourceKind::Tree,
            FileType::RegularFile => SourceKind::File {
                mode: Some(stat.st_mode & 0o777),
                modified: Some(modified(&stat)),
                size: u64::try_from(stat.st_size).ok(),
            },
            _ => return Err(Error::Special(path.to_owned())),
        };
        let source = Source { name: Text::new(name_of(path)), kind };
        Ok(Self { path: path.to_owned(), file, source })
    }

    /// A stream of unknown length, for instance standard input.
    pub fn stream(file: OwnedFd) -> Self {
        let kind = SourceKind::File { mode: None, modified: None, size: None };
        let source = Source { name: Text::default(), kind };
        Self { path: PathBuf::from("standard input"), file, source }
    }

    /// What it is, for the other side.
    pub fn source(&self) -> &Source {
        &self.source
    }

    /// Sends it.
    ///
    /// # Errors
    /// When it cannot be read, or the connection fails.
    pub fn send<W: Write, O: Observer>(self, mut sender: Sender<W, O>) -> Result<Summary, Error> {
        let counts = match self.source.kind {
            SourceKind::Tree => Packer::new(self.file, &self.path)?.pack(&mut sender)?,
            SourceKind::File { .. } => {
                let file = File::from(self.file);
                copy(&file, &self.path, &mut sender)?;
                Counts { entries: 1, ..Counts::default() }
            }
        };
        sender.finish(counts)
    }
}

fn copy(mut file: &File, path: &Path, mut out: impl Write) -> Result<(), Error> {
    let mut chunk = vec![0; CHUNK];
    loop {
        match file.read(&mut chunk) {
            Ok(0) => return Ok(()),
            Ok(count) => {
                let bytes = chunk.get(..count).unwrap_or_default();
                out.write_all(bytes).map_err(Error::from_stream)?;
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => wait(file),
            Err(error) => return Err(Error::file("read", path)(error)),
        }
    }
}

/// Waits for input: standard input may be in a mode that another process has given it.
fn wait(file: impl AsFd) {
    use rustix::event::{PollFd, PollFlags, poll};
    // If it fails the read that follows says why.
    let _ = poll(&mut [PollFd::new(&file, PollFlags::IN)], None);
}

/// When a file was modified.
pub(super) fn modified(stat: &Stat) -> Time {
    (stat.st_mtime, u32::try_from(stat.st_mtime_nsec).unwrap_or(0))
}
