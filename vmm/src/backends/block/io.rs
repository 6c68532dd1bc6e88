//! What is done to a disk, between its file and guest memory.

use std::fs::File;
use std::io;

use devices::virtio::block::{Extent, Operation};
use devices::virtio::{Slice, Stream};
use rustix::fs::{FallocateFlags, fallocate, fstat};
use rustix::io::{Errno, pwrite};
use thiserror::Error;

use super::file::DiskFile;
use crate::memory::{GuestRam, Regions};
use crate::sys::vectored::{preadv, pwritev};

/// Zeros that are written at a time where a file system cannot zero by itself.
const ZEROS: usize = 64 << 10;

/// Why an operation failed. The guest sees an I/O error.
#[derive(Debug, Error)]
pub(super) enum Error {
    /// A buffer is not in guest memory.
    #[error("a buffer of the guest is not in its memory")]
    Buffer,
    /// The file ends before the disk does.
    #[error("its file has been cut: it ends before the disk that the guest knows")]
    Shrunk,
    /// The host's answer.
    #[error(transparent)]
    Host(#[from] io::Error),
}

impl From<Errno> for Error {
    fn from(errno: Errno) -> Self {
        Self::Host(errno.into())
    }
}

impl DiskFile {
    /// Does one operation, and waits for it.
    pub(super) fn perform(&self, operation: &Operation, memory: &GuestRam) -> Result<(), Error> {
        match operation {
            Operation::Read { offset, into } => self.read(*offset, into, memory),
            Operation::Write { offset, from, durable } => {
                self.write(*offset, from, memory)?;
                if *durable { self.flush() } else { Ok(()) }
            }
            Operation::Flush => self.flush(),
            Operation::Discard(parts) => parts.iter().try_for_each(|part| self.punch(part)),
            Operation::WriteZeroes(parts) => parts.iter().try_for_each(|part| self.zero(part)),
        }
    }

    fn read(&self, offset: u64, into: &Stream, memory: &GuestRam) -> Result<(), Error> {
        let slices = into.slices(&**memory).map_err(|_| Error::Buffer)?;
        let file = self.file_for(offset, &slices);
        all(slices, offset, |slices, at| preadv(file, slices, at))
    }

    fn write(&self, offset: u64, from: &Stream, memory: &GuestRam) -> Result<(), Error> {
        let slices = from.slices(&**memory).map_err(|_| Error::Buffer)?;
        // A file that has been cut would grow again, with a hole where the guest has data.
        if self.is_regular {
            let size = u64::try_from(fstat(&self.cached)?.st_size).unwrap_or(0);
            if size < offset + from.len() {
                return Err(Error::Shrunk);
            }
        }
        let file = self.file_for(offset, &slices);
        all(slices, offset, |slices, at| pwritev(file, slices, at))
    }

    /// Past the page cache if the file, and every piece, is fit for that. The kernel keeps both ways coherent
    /// (open(2), NOTES).
    fn file_for(&self, offset: u64, slices: &[Slice<'_, Regions>]) -> &File {
        let Some(direct) = &self.direct else { return &self.cached };
        let fits = offset.is_multiple_of(direct.offset_align)
            && slices.iter().all(|slice| {
                (slice.ptr_guard().as_ptr() as u64).is_multiple_of(direct.memory_align)
                    && (slice.len() as u64).is_multiple_of(direct.offset_align)
            });
        if fits { &direct.file } else { &self.cached }
    }

    /// Everything that was written is on the disk, and can be found there after a loss of power.
    fn flush(&self) -> Result<(), Error> {
        Ok(rustix::fs::fdatasync(&self.cached)?)
    }

    fn punch(&self, part: &Extent) -> Result<(), Error> {
        self.allocate(FallocateFlags::PUNCH_HOLE, part)
    }

    fn zero(&self, part: &Extent) -> Result<(), Error> {
        if part.unmap {
            return self.punch(part);
        }
        match self.allocate(FallocateFlags::ZERO_RANGE, part) {
            Err(Error::Host(error)) if error.raw_os_error() == Some(libc::EOPNOTSUPP) => {
                self.write_zeros(part)
            }
            done => done,
        }
    }

    fn allocate(&self, what: FallocateFlags, part: &Extent) -> Result<(), Error> {
        if part.length == 0 {
            return Ok(());
        }
        let how = what | FallocateFlags::KEEP_SIZE;
        loop {
            match fallocate(&self.cached, how, part.offset, part.length) {
                Err(Errno::INTR) => {}
                done => return Ok(done?),
            }
        }
    }

    pub(super) fn write_zeros(&self, part: &Extent) -> Result<(), Error> {
        let zeros = vec![0; ZEROS.min(part.length as usize)];
        let (mut at, end) = (part.offset, part.offset + part.length);
        while at < end {
            let piece = zeros.len().min((end - at) as usize);
            match pwrite(&self.cached, &zeros[..piece], at) {
                Ok(0) => return Err(Error::Shrunk),
                Ok(n) => at += n as u64,
                Err(Errno::INTR) => {}
                Err(errno) => return Err(errno.into()),
            }
        }
        Ok(())
    }
}

/// Calls until all pieces are done, from this offset on.
fn all(
    slices: Vec<Slice<'_, Regions>>,
    mut offset: u64,
    call: impl Fn(&[Slice<'_, Regions>], u64) -> io::Result<usize>,
) -> Result<(), Error> {
    let mut slices = slices;
    let mut rest = &mut slices[..];
    while !rest.is_empty() {
        let mut done = call(rest, offset)?;
        if done == 0 {
            return Err(Error::Shrunk);
        }
        offset += done as u64;
        let whole = rest
            .iter()
            .take_while(|slice| match done.checked_sub(slice.len()) {
                Some(left) => {
                    done = left;
                    true
                }
                None => false,
            })
            .count();
        rest = &mut rest[whole..];
        if let (Some(first), true) = (rest.first_mut(), done > 0) {
            // It is longer than what was done of it.
            *first = first.offset(done).map_err(|_| Error::Buffer)?;
        }
    }
    Ok(())
}
