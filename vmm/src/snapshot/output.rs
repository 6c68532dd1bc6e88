//! A file of a snapshot that is written.

use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;

use vm_memory::VolatileSlice;

use super::source::past;
use crate::sys::vectored;

/// Something that is written at any place.
pub trait Output {
    /// Writes all of `bytes`.
    ///
    /// # Errors
    /// The system's.
    fn write(&self, bytes: &[u8], offset: u64) -> io::Result<()>;

    /// Writes all of these pieces of guest memory, one after the other.
    ///
    /// # Errors
    /// The system's.
    fn write_pages(&self, pieces: &mut [VolatileSlice<'_>], offset: u64) -> io::Result<()>;
}

impl Output for File {
    fn write(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        self.write_all_at(bytes, offset)
    }

    fn write_pages(&self, pieces: &mut [VolatileSlice<'_>], mut offset: u64) -> io::Result<()> {
        let mut pieces = past(pieces, 0);
        while !pieces.is_empty() {
            let done = vectored::pwritev(self.as_fd(), pieces, offset)?;
            if done == 0 {
                return Err(io::ErrorKind::WriteZero.into());
            }
            offset += done as u64;
            pieces = past(pieces, done);
        }
        Ok(())
    }
}
