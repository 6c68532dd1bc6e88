//! A file of a snapshot that is read.

use std::fs::File;
use std::io::{self, ErrorKind};
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use arch::units::Bytes;
use rustix::fs::{Mode, OFlags, open};
use vm_memory::VolatileSlice;

use super::error::{Error, Fault};
use crate::sys::vectored;

/// An open file and its length. It may be replaced under its name meanwhile: the descriptor stays.
#[derive(Debug)]
pub(super) struct Source {
    path: PathBuf,
    file: File,
    length: u64,
}

impl Source {
    /// Opens a regular file.
    pub(super) fn open(path: &Path) -> Result<Self, Error> {
        // The opening of a pipe does not wait for a writer.
        let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK | OFlags::NOCTTY;
        let failed = |error: io::Error| Error::new(path, Fault::Open(error));
        let file =
            File::from(open(path, flags, Mode::empty()).map_err(|errno| failed(errno.into()))?);
        let metadata = file.metadata().map_err(failed)?;
        if !metadata.is_file() {
            return Err(Error::new(path, Fault::NotRegular));
        }
        Ok(Self { path: path.to_owned(), file, length: metadata.len() })
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    pub(super) fn length(&self) -> u64 {
        self.length
    }

    /// With its path.
    pub(super) fn error(&self, fault: Fault) -> Error {
        Error::new(&self.path, fault)
    }

    /// Checks that the file has these bytes.
    pub(super) fn reaches(&self, offset: u64, length: u64) -> Result<(), Fault> {
        match offset.checked_add(length) {
            Some(end) if end <= self.length => Ok(()),
            end => Err(Fault::CutShort {
                wanted: Bytes::new(end.unwrap_or(u64::MAX)),
                length: Bytes::new(self.length),
            }),
        }
    }

    /// Reads all of `bytes`.
    pub(super) fn read(&self, bytes: &mut [u8], offset: u64) -> Result<(), Fault> {
        self.file.read_exact_at(bytes, offset).map_err(|error| match error.kind() {
            ErrorKind::UnexpectedEof => self.shrunk(offset + bytes.len() as u64),
            _ => Fault::Read(error),
        })
    }

    /// Reads into all of these pieces of guest memory.
    pub(super) fn read_pages(
        &self,
        pieces: &mut [VolatileSlice<'_>],
        mut offset: u64,
    ) -> Result<(), Fault> {
        let end = offset + pieces.iter().map(|piece| piece.len() as u64).sum::<u64>();
        let mut pieces = past(pieces, 0);
        while !pieces.is_empty() {
            let done = vectored::preadv(self.file.as_fd(), pieces, offset).map_err(Fault::Read)?;
            if done == 0 {
                return Err(self.shrunk(end));
            }
            offset += done as u64;
            pieces = past(pieces, done);
        }
        Ok(())
    }

    /// It had these bytes when it was opened.
    fn shrunk(&self, wanted: u64) -> Fault {
        let length = self.file.metadata().map_or(0, |metadata| metadata.len());
        Fault::CutShort { wanted: Bytes::new(wanted), length: Bytes::new(length) }
    }
}

/// What is left of pieces after so many bytes of them. The first is not empty.
pub(super) fn past<'a, 'b>(
    mut pieces: &'a mut [VolatileSlice<'b>],
    mut done: usize,
) -> &'a mut [VolatileSlice<'b>] {
    while pieces.first().is_some_and(|first| first.len() <= done) {
        done -= pieces[0].len();
        pieces = &mut pieces[1..];
    }
    if let Some(first) = pieces.first_mut()
        && let Ok(left) = first.offset(done)
    {
        *first = left;
    }
    pieces
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::super::output::Output;
    use super::*;

    fn pieces<'a>(bytes: &'a mut [u8], sizes: &[usize]) -> Vec<VolatileSlice<'a>> {
        let mut rest = bytes;
        let mut pieces = Vec::new();
        for size in sizes {
            let (piece, more) = std::mem::take(&mut rest).split_at_mut(*size);
            pieces.push(VolatileSlice::from(piece));
            rest = more;
        }
        pieces
    }

    #[test]
    fn what_is_left_begins_after_any_number_of_bytes() {
        let sizes = [0, 3, 0, 0, 5, 1, 0];
        for done in 0..=9 {
            let mut bytes: Vec<u8> = (0..9).collect();
            let mut all = pieces(&mut bytes, &sizes);
            let left = past(&mut all, done);
            assert!(left.first().is_none_or(|first| !first.is_empty()), "{done}");
            let mut read = vec![0; 9 - done];
            let mut at = 0;
            for piece in left {
                at += piece.copy_to(&mut read[at..]);
            }
            assert_eq!(read, (done as u8..9).collect::<Vec<_>>());
        }
    }

    #[test]
    fn empty_pieces_are_read_and_written() {
        let file = tempfile::NamedTempFile::new().unwrap();
        for sizes in [&[][..], &[0], &[0, 0, 4, 0], &[2, 0, 2]] {
            let (mut from, mut to) = (*b"abcd", [0; 4]);
            let length: usize = sizes.iter().sum();
            file.as_file().write_pages(&mut pieces(&mut from, sizes), 3).unwrap();
            let source = Source::open(file.path()).unwrap();

            source.read_pages(&mut pieces(&mut to, sizes), 3).unwrap();

            assert_eq!(to[..length], from[..length]);
        }
    }
}
