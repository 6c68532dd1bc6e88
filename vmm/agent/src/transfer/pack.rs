//! A tree as an archive.

use std::collections::HashMap;
use std::ffi::CStr;
use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::fs::{
    AtFlags, Dir, FileType, Mode, OFlags, Stat, fstat, fstatfs, openat, readlinkat, statat,
};

use super::header::{BLOCK, Entry, Kind, pad};
use super::source::modified;
use super::stream::{Counts, Sender};
use super::{Error, Observer};
use crate::protocol::limits::{MAX_DEPTH, MAX_LINKS, MAX_PATH};
use crate::protocol::text::Text;

/// File systems of the kernel, which have no files to copy (include/uapi/linux/magic.h): proc, sysfs.
const NO_FILES: [u64; 2] = [0x9fa0, 0x6265_6572];
/// What one read of a file takes.
const CHUNK: usize = 64 << 10;

/// A folder on the way.
struct Level {
    folder: Dir,
    /// How much of the path is this folder's.
    length: usize,
    device: u64,
}

/// Sends a tree.
pub(super) struct Packer<'a> {
    root: &'a Path,
    levels: Vec<Level>,
    /// Of what is looked at, relative to the root.
    path: Vec<u8>,
    /// The first name of each file that has several.
    links: HashMap<(u64, u64), Vec<u8>>,
    counts: Counts,
    chunk: Vec<u8>,
}

impl<'a> Packer<'a> {
    pub(super) fn new(folder: OwnedFd, root: &'a Path) -> Result<Self, Error> {
        let unreadable = |error: rustix::io::Errno| Error::file("read", root)(error.into());
        let stat = fstat(&folder).map_err(unreadable)?;
        let folder = Dir::new(folder).map_err(unreadable)?;
        let level = Level { folder, length: 0, device: stat.st_dev };
        Ok(Self {
            root,
            levels: vec![level],
            path: Vec::new(),
            links: HashMap::new(),
            counts: Counts::default(),
            chunk: vec![0; CHUNK],
        })
    }

    pub(super) fn pack<W: Write, O: Observer>(
        mut self,
        sender: &mut Sender<W, O>,
    ) -> Result<Counts, Error> {
        let root = self.levels.first().map(|level| level.folder.fd().and_then(fstat));
        if let Some(Ok(stat)) = root {
            self.entry(Kind::Folder, &stat, Vec::new(), 0)
                .write(&mut *sender)
                .map_err(Error::from_stream)?;
            self.counts.entries = 1;
        }
        while let Some(level) = self.levels.last_mut() {
            let length = level.length;
            match level.folder.read() {
                None => {
                    self.levels.pop();
                }
                Some(Err(error)) => {
                    self.path.truncate(length);
                    self.levels.pop();
                    self.fail("the folder cannot be read on", error, sender)?;
                }
                Some(Ok(found)) => {
                    let name = found.file_name();
                    if name.to_bytes() != b"." && name.to_bytes() != b".." {
                        self.path.truncate(length);
                        if length > 0 {
                            self.path.push(b'/');
                        }
                        self.path.extend_from_slice(name.to_bytes());
                        self.take(name, sender)?;
                    }
                }
            }
        }
        // The end of an archive.
        sender.write_all(&[0; 2 * BLOCK]).map_err(Error::from_stream)?;
        Ok(self.counts)
    }

    /// Sends one entry of the innermost folder, of which `self.path` is the path.
    fn take<W: Write, O: Observer>(
        &mut self,
        name: &CStr,
        sender: &mut Sender<W, O>,
    ) -> Result<(), Error> {
        if self.path.len() > MAX_PATH {
            return Err(Error::TooDeep(Text::new(self.path.clone())));
        }
        let Some(folder) = self.levels.last().and_then(|level| level.folder.fd().ok()) else {
            return Ok(());
        };
        let stat = match statat(folder, name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) => stat,
            Err(error) => return self.fail("cannot be looked at", error, sender),
        };
        match FileType::from_raw_mode(stat.st_mode) {
            FileType::Directory => self.take_folder(name, &stat, sender),
            FileType::RegularFile => self.take_file(name, &stat, sender),
            FileType::Symlink => match readlinkat(folder, name, Vec::new()) {
                Ok(target) => self.send(Kind::Symlink, &stat, target.into_bytes(), 0, sender),
                Err(error) => self.fail("cannot be read", error, sender),
            },
            _ => {
                self.counts.skipped = self.counts.skipped.saturating_add(1);
                self.tell("was left out, as it is no file, folder or link", sender)
            }
        }
    }

    fn take_folder<W: Write, O: Observer>(
        &mut self,
        name: &CStr,
        stat: &Stat,
        sender: &mut Sender<W, O>,
    ) -> Result<(), Error> {
        if self.levels.len() >= MAX_DEPTH {
            return Err(Error::TooDeep(Text::new(self.path.clone())));
        }
        let opened = self.open(name, OFlags::DIRECTORY).and_then(|folder| {
            let has_files = match self.levels.last() {
                Some(level) if level.device != stat.st_dev => {
                    let magic = u64::try_from(fstatfs(&folder)?.f_type).unwrap_or(0);
                    !NO_FILES.contains(&magic)
                }
                _ => true,
            };
            Ok((Dir::new(folder)?, has_files))
        });
        let (folder, has_files) = match opened {
            Ok(opened) => opened,
            Err(error) => return self.fail("cannot be read", error, sender),
        };
        self.send(Kind::Folder, stat, Vec::new(), 0, sender)?;
        if !has_files {
            return self.tell("was left empty, as it is the kernel's", sender);
        }
        self.levels.push(Level { folder, length: self.path.len(), device: stat.st_dev });
        Ok(())
    }

    fn take_file<W: Write, O: Observer>(
        &mut self,
        name: &CStr,
        stat: &Stat,
        sender: &mut Sender<W, O>,
    ) -> Result<(), Error> {
        let id = (stat.st_dev, stat.st_ino);
        if let Some(first) = self.links.get(&id).filter(|_| stat.st_nlink > 1) {
            return self.send(Kind::Link, stat, first.clone(), 0, sender);
        }
        // It may be something else by now.
        let opened = self.open(name, OFlags::NONBLOCK | OFlags::NOCTTY);
        let opened = opened.and_then(|file| fstat(&file).map(|stat| (file, stat)));
        let (file, stat) = match opened {
            Ok((file, stat)) if FileType::from_raw_mode(stat.st_mode).is_file() => (file, stat),
            Ok(_) => return self.fail("cannot be read", rustix::io::Errno::STALE, sender),
            Err(error) => return self.fail("cannot be read", error, sender),
        };
        if stat.st_nlink > 1 && self.links.len() < MAX_LINKS {
            self.links.insert(id, self.path.clone());
        }
        let size = u64::try_from(stat.st_size).unwrap_or(0);
        self.send(Kind::File, &stat, Vec::new(), size, sender)?;
        let missing = self.send_content(File::from(file), size, &mut *sender)?;
        pad(&mut *sender, size).map_err(Error::from_stream)?;
        if missing > 0 {
            self.counts.failed = self.counts.failed.saturating_add(1);
            return self.tell(
                "became shorter, or could not be read to its end: the copy has zeros",
                sender,
            );
        }
        Ok(())
    }

    /// Sends exactly `size` bytes, as the header says; returns how many of them are missing in the file.
    fn send_content(
        &mut self,
        mut file: File,
        size: u64,
        mut out: impl Write,
    ) -> Result<u64, Error> {
        let mut left = size;
        while left > 0 {
            let most = usize::try_from(left).unwrap_or(CHUNK).min(CHUNK);
            let buffer = self.chunk.get_mut(..most).unwrap_or_default();
            let count = match file.read(buffer) {
                Ok(0) => break,
                Ok(count) => count,
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => continue,
                Err(_) => break,
            };
            out.write_all(buffer.get(..count).unwrap_or_default()).map_err(Error::from_stream)?;
            left = left.saturating_sub(count as u64);
        }
        let missing = left;
        self.chunk.fill(0);
        while left > 0 {
            let count = usize::try_from(left).unwrap_or(CHUNK).min(CHUNK);
            out.write_all(self.chunk.get(..count).unwrap_or_default())
                .map_err(Error::from_stream)?;
            left = left.saturating_sub(count as u64);
        }
        Ok(missing)
    }

    fn open(&self, name: &CStr, flags: OFlags) -> rustix::io::Result<OwnedFd> {
        let folder = self.innermost()?;
        openat(
            folder,
            name,
            flags | OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC,
            Mode::empty(),
        )
    }

    fn innermost(&self) -> rustix::io::Result<BorrowedFd<'_>> {
        match self.levels.last() {
            Some(level) => level.folder.fd(),
            None => Err(rustix::io::Errno::BADF),
        }
    }

    fn entry(&self, kind: Kind, stat: &Stat, link: Vec<u8>, size: u64) -> Entry {
        let (mode, modified) = (stat.st_mode & 0o777, modified(stat));
        Entry { path: self.path.clone(), kind, link, mode, modified, size }
    }

    fn send<W: Write, O: Observer>(
        &mut self,
        kind: Kind,
        stat: &Stat,
        link: Vec<u8>,
        size: u64,
        sender: &mut Sender<W, O>,
    ) -> Result<(), Error> {
        self.counts.entries = self.counts.entries.saturating_add(1);
        self.entry(kind, stat, link, size).write(sender).map_err(Error::from_stream)
    }

    /// An entry that cannot be sent, while the others can.
    fn fail<W: Write, O: Observer>(
        &mut self,
        what: &str,
        error: rustix::io::Errno,
        sender: &mut Sender<W, O>,
    ) -> Result<(), Error> {
        self.counts.failed = self.counts.failed.saturating_add(1);
        self.tell(&format!("{what}: {}", std::io::Error::from(error)), sender)
    }

    fn tell<W: Write, O: Observer>(
        &self,
        what: &str,
        sender: &mut Sender<W, O>,
    ) -> Result<(), Error> {
        let path = Text::new(self.path.clone()).to_string();
        sender.notice(format!("{} {what}", self.root.join(path).display()))
    }
}
