//! Touches of guest memory that is not there, caught before the kernel provides it (userfaultfd, missing
//! mode).
//!
//! # References
//! Linux Documentation/admin-guide/mm/userfaultfd.rst, include/uapi/linux/userfaultfd.h,
//! mm/userfaultfd.c and fs/userfaultfd.c
#![allow(unsafe_code)]

use std::fs::OpenOptions;
use std::io;
use std::ops::Range;
use std::os::fd::{AsFd, BorrowedFd, FromRawFd, OwnedFd};

use arch::layout::CHUNK;
use rustix::ffi::c_void;
use rustix::io::Errno;
use rustix::ioctl::{Ioctl, IoctlOutput, Opcode, Setter, Updater, ioctl, opcode};
use rustix::mm::{Advice, UserfaultfdFlags, madvise, userfaultfd};
use thiserror::Error;

use crate::memory::GuestRam;
use crate::tag_storage::reservation::chunk_table::ChunkIndex;

/// The descriptors' maker, since Linux 6.1: whoever may open it may catch faults.
const DEVICE: &str = "/dev/userfaultfd";

/// `USERFAULTFD_IOC`, which is `UFFDIO` too, and the numbers of its calls.
const GROUP: u8 = 0xaa;
const NEW: Opcode = opcode::none(GROUP, 0x00);
const REGISTER: Opcode = opcode::read_write::<RegisterCall>(GROUP, 0x00);
const UNREGISTER: Opcode = opcode::read::<Addresses>(GROUP, 0x01);
const WAKE: Opcode = opcode::read::<Addresses>(GROUP, 0x02);
const COPY: Opcode = opcode::read_write::<CopyCall>(GROUP, 0x03);
const API: Opcode = opcode::read_write::<ApiCall>(GROUP, 0x3f);

/// `UFFD_API`, `UFFDIO_REGISTER_MODE_MISSING`, `UFFD_EVENT_PAGEFAULT`.
const VERSION: u64 = 0xaa;
const MISSING: u64 = 1;
const PAGE_FAULT: u8 = 0x12;

/// `struct uffd_msg`: its size, and where a page fault's address stands in it.
const MESSAGE: usize = 32;
const ADDRESS: usize = 16;
/// How many events are taken at once: one for each thread that may wait is more than enough, and more
/// are taken the next time.
const EVENTS: usize = 32;
/// How often a copy may stand still while the process's mappings change. Nothing here changes them so.
const TRIES: u32 = 100;

/// Why faults cannot be caught.
#[derive(Debug, Error)]
pub enum Error {
    /// The kernel has no userfaultfd.
    #[error(
        "the host's kernel cannot tell when guest memory is touched: reserve strictly, or use a \
         kernel with CONFIG_USERFAULTFD"
    )]
    Missing(#[source] io::Error),
    /// This user may not catch faults in the kernel, as those of KVM are.
    #[error(
        "this user may not catch KVM's page faults: give it access to {DEVICE} (Linux 6.1 or \
         newer), or set the sysctl vm.unprivileged_userfaultfd=1, or reserve strictly"
    )]
    Denied(#[source] io::Error),
    /// No descriptor.
    #[error("cannot make a descriptor for page faults: raise the limit on open files (ulimit -n)")]
    Descriptor(#[source] io::Error),
    /// The kernel's interface is another.
    #[error("the host's userfaultfd speaks another version: reserve strictly")]
    Version(#[source] io::Error),
    /// The memory cannot be watched.
    #[error(
        "the host cannot tell when this guest memory is touched: use --memory-backing anonymous, or \
         reserve strictly"
    )]
    Register(#[source] io::Error),
    /// An event cannot be read.
    #[error("cannot read page faults from the host; please report this")]
    Read(#[source] io::Error),
}

/// `struct uffdio_api`.
#[repr(C)]
#[derive(Default)]
struct ApiCall {
    version: u64,
    features: u64,
    ioctls: u64,
}

/// `struct uffdio_range`.
#[repr(C)]
struct Addresses {
    start: u64,
    length: u64,
}

/// `struct uffdio_register`.
#[repr(C)]
struct RegisterCall {
    addresses: Addresses,
    mode: u64,
    ioctls: u64,
}

/// `struct uffdio_copy`.
#[repr(C)]
struct CopyCall {
    to: u64,
    from: u64,
    length: u64,
    mode: u64,
    /// How much was copied, or why nothing was, as a negative error number.
    copied: i64,
}

/// `USERFAULTFD_IOC_NEW`: the answer is a descriptor.
struct New(UserfaultfdFlags);

// SAFETY: the call takes its flags in place of a pointer, reads and writes no memory, and what it
// returns when it does not fail is a new descriptor that belongs to nobody else.
unsafe impl Ioctl for New {
    type Output = OwnedFd;

    const IS_MUTATING: bool = false;

    fn opcode(&self) -> Opcode {
        NEW
    }

    fn as_ptr(&mut self) -> *mut c_void {
        std::ptr::without_provenance_mut(self.0.bits() as usize)
    }

    unsafe fn output_from_ptr(out: IoctlOutput, _: *mut c_void) -> rustix::io::Result<OwnedFd> {
        // SAFETY: the caller has it that this is what the call returned.
        Ok(unsafe { OwnedFd::from_raw_fd(out) })
    }
}

/// Catches touches of guest memory, chunk by chunk.
///
/// Whoever touches a missing page of a chunk that is armed waits, in the kernel or outside, until the
/// chunk is disarmed, filled, or woken. When this is dropped all are.
#[derive(Debug)]
pub(crate) struct Uffd {
    descriptor: OwnedFd,
    ram: GuestRam,
}

impl Uffd {
    /// Catches touches of this memory; none of its chunks is armed yet.
    ///
    /// # Errors
    /// When the host's kernel cannot, or does not let this user.
    pub(crate) fn new(ram: GuestRam) -> Result<Self, Error> {
        let descriptor = open()?;
        let mut call = ApiCall { version: VERSION, ..ApiCall::default() };
        // SAFETY: the structure is the one that the call takes, and it writes nothing else.
        unsafe { ioctl(&descriptor, Updater::<API, _>::new(&mut call)) }
            .map_err(|errno| Error::Version(errno.into()))?;
        Ok(Self { descriptor, ram })
    }

    /// From now on touches of missing pages of these chunks are caught. Those on their way have their
    /// page when this returns.
    ///
    /// # Errors
    /// What the host answers: ENOMEM when the process would have too many mappings (vm.max_map_count).
    /// Some of the chunks may be armed even so.
    pub(crate) fn arm(&self, chunks: &Range<ChunkIndex>) -> io::Result<()> {
        let mut call =
            RegisterCall { addresses: self.addresses(chunks)?, mode: MISSING, ioctls: 0 };
        // SAFETY: the structure is the one that the call takes. It changes who provides missing pages of
        // memory that this value keeps, and no contents.
        Ok(unsafe { ioctl(&self.descriptor, Updater::<REGISTER, _>::new(&mut call)) }?)
    }

    /// Touches of these chunks are the kernel's again, and whoever waits for one of them goes on.
    ///
    /// # Errors
    /// As for [`arm`](Self::arm); then some of the chunks may be armed as before.
    pub(crate) fn disarm(&self, chunks: &Range<ChunkIndex>) -> io::Result<()> {
        let call = self.addresses(chunks)?;
        // SAFETY: as for registering.
        unsafe { ioctl(&self.descriptor, Setter::<UNREGISTER, _>::new(call)) }?;
        // The kernel wakes those that wait before it looks away, so that one who came in between would
        // wait for good.
        self.wake(chunks)
    }

    /// Whoever waits for these chunks tries again.
    ///
    /// # Errors
    /// What the host answers; there is no known reason.
    pub(crate) fn wake(&self, chunks: &Range<ChunkIndex>) -> io::Result<()> {
        let call = self.addresses(chunks)?;
        // SAFETY: the structure is the one that the call takes; waking changes no memory.
        Ok(unsafe { ioctl(&self.descriptor, Setter::<WAKE, _>::new(call)) }?)
    }

    /// Populates a chunk that is not armed: one huge page where the host gives it, else all small ones.
    ///
    /// # Errors
    /// When the host has no memory, or is older than Linux 5.14. The chunk's pages then come as they are
    /// touched.
    pub(crate) fn populate(&self, chunk: ChunkIndex) -> io::Result<()> {
        self.advise(chunk, Advice::LinuxPopulateWrite)
    }

    /// Makes what is mapped to one structure in the kernel before it is armed in pieces, as only pieces
    /// of one can merge again: those of anonymous memory that get their pages while apart get structures
    /// (`anon_vma`) of their own, and a guest that touches its chunks in no order would run into the
    /// limit on mappings. The first chunk, which must have no page, has none afterwards.
    pub(crate) fn prepare(&self) {
        let first = ChunkIndex(0);
        // Without it the guest runs as well; at the limit its chunks are filled instead.
        if self.advise(first, Advice::LinuxPopulateWrite).is_ok() {
            let _ = self.advise(first, Advice::LinuxDontNeed);
        }
    }

    /// Gives an armed chunk small pages of zeroes wherever it has none. It stays armed, so this works
    /// where the process has as many mappings as it can have.
    ///
    /// # Errors
    /// When the host has no memory.
    pub(crate) fn fill(&self, chunk: ChunkIndex) -> io::Result<()> {
        let Addresses { start, length } = self.addresses(&one(chunk))?;
        let zeroes = vec![0u8; CHUNK.get() as usize];
        let page = self.ram.backing().page_size().get();
        let (mut done, mut tries) = (0, 0);
        while done < length {
            let mut call = CopyCall {
                to: start + done,
                from: zeroes.as_ptr() as u64 + done,
                length: length - done,
                mode: 0,
                copied: 0,
            };
            // SAFETY: the structure is the one that the call takes. It reads `zeroes` inside its bounds,
            // and writes pages of memory that this value keeps only where there are none: they read zero
            // before and after.
            let copied = unsafe { ioctl(&self.descriptor, Updater::<COPY, _>::new(&mut call)) };
            match copied {
                Ok(()) => done = length,
                // A part was copied, up to a page that is there.
                Err(Errno::AGAIN) if call.copied > 0 => done += call.copied as u64,
                Err(Errno::AGAIN) if tries < TRIES => tries += 1,
                Err(Errno::EXIST) => done += page,
                // It is not armed: its pages come as they are touched.
                Err(Errno::NOENT) => break,
                Err(errno) => return Err(errno.into()),
            }
        }
        self.wake(&one(chunk))
    }

    /// Takes the touches that wait to be read, a number of them at most, in the order in which they came.
    ///
    /// # Errors
    /// What the host answers; there is no known reason.
    pub(crate) fn touches(&self) -> Result<Vec<ChunkIndex>, Error> {
        let mut bytes = [0; EVENTS * MESSAGE];
        let read =
            match rustix::io::retry_on_intr(|| rustix::io::read(&self.descriptor, &mut bytes)) {
                Ok(read) => read,
                Err(Errno::AGAIN) => 0,
                Err(errno) => return Err(Error::Read(errno.into())),
            };
        let (messages, _) = bytes[..read].as_chunks::<MESSAGE>();
        Ok(messages.iter().filter_map(|message| self.touched(message)).collect())
    }

    fn touched(&self, message: &[u8; MESSAGE]) -> Option<ChunkIndex> {
        let (_, rest) = message.split_at(ADDRESS);
        let address = u64::from_ne_bytes(*rest.first_chunk()?);
        let offset = address.checked_sub(self.ram.host_address())?;
        let inside = offset < self.ram.range().size.get();
        // Only what is registered is told of, and no other event was asked for.
        (message[0] == PAGE_FAULT && inside).then_some(ChunkIndex(offset / CHUNK.get()))
    }

    fn advise(&self, chunk: ChunkIndex, advice: Advice) -> io::Result<()> {
        let Addresses { start, length } = self.addresses(&one(chunk))?;
        let start = std::ptr::with_exposed_provenance_mut(start as usize);
        // SAFETY: the chunk is memory that this value keeps. Populating changes no contents; discarding
        // does, which those who use memory shared with a guest expect.
        Ok(unsafe { madvise(start, length as usize, advice) }?)
    }

    /// The addresses of chunks in this process, all of them inside of guest memory.
    fn addresses(&self, chunks: &Range<ChunkIndex>) -> io::Result<Addresses> {
        let at = |chunk: ChunkIndex| chunk.0.checked_mul(CHUNK.get());
        let (Some(start), Some(end)) = (at(chunks.start), at(chunks.end)) else {
            return Err(io::ErrorKind::InvalidInput.into());
        };
        if start >= end || end > self.ram.range().size.get() {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        Ok(Addresses { start: self.ram.host_address() + start, length: end - start })
    }
}

impl AsFd for Uffd {
    /// Readable when there are touches to take.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.descriptor.as_fd()
    }
}

/// The range of one chunk.
pub(crate) fn one(chunk: ChunkIndex) -> Range<ChunkIndex> {
    chunk..ChunkIndex(chunk.0.saturating_add(1))
}

/// A descriptor that catches faults in the kernel too: KVM and reads from files touch memory there.
fn open() -> Result<OwnedFd, Error> {
    let flags = UserfaultfdFlags::CLOEXEC | UserfaultfdFlags::NONBLOCK;
    if let Ok(device) = OpenOptions::new().read(true).write(true).open(DEVICE) {
        // SAFETY: the device's call takes these flags; what is made watches nothing yet.
        if let Ok(descriptor) = unsafe { ioctl(&device, New(flags)) } {
            return Ok(descriptor);
        }
    }
    // SAFETY: the descriptor watches nothing yet, and this module gives nobody the means to misuse it.
    unsafe { userfaultfd(flags) }.map_err(refusal)
}

fn refusal(errno: Errno) -> Error {
    match errno {
        Errno::NOSYS => Error::Missing(errno.into()),
        Errno::PERM | Errno::ACCESS => Error::Denied(errno.into()),
        _ => Error::Descriptor(errno.into()),
    }
}

#[cfg(test)]
mod tests;
