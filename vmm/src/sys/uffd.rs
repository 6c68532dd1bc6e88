//! Page faults of this process, caught before the kernel resolves them (userfaultfd, missing mode).
//!
//! # References
//! Linux Documentation/admin-guide/mm/userfaultfd.rst, include/uapi/linux/userfaultfd.h,
//! mm/userfaultfd.c and fs/userfaultfd.c
#![allow(unsafe_code)]

mod parts;

use std::fs::OpenOptions;
use std::io;
use std::ops::Range;
use std::os::fd::{AsFd, BorrowedFd, FromRawFd, OwnedFd};

use rustix::ffi::c_void;
use rustix::io::Errno;
use rustix::ioctl::{Ioctl, IoctlOutput, Opcode, Setter, Updater, ioctl, opcode};
use rustix::mm::{Advice, UserfaultfdFlags, madvise, userfaultfd};
use rustix::process::Pid;
use thiserror::Error;

use parts::{by_parts, part, where_armed};

/// The descriptors' maker, since Linux 6.1: a process that may open it may catch faults.
const DEVICE: &str = "/dev/userfaultfd";

/// `USERFAULTFD_IOC`, which is `UFFDIO` too, and the numbers of its calls.
const GROUP: u8 = 0xaa;
const NEW: Opcode = opcode::none(GROUP, 0x00);
const REGISTER: Opcode = opcode::read_write::<RegisterCall>(GROUP, 0x00);
const UNREGISTER: Opcode = opcode::read::<Addresses>(GROUP, 0x01);
const WAKE: Opcode = opcode::read::<Addresses>(GROUP, 0x02);
const COPY: Opcode = opcode::read_write::<CopyCall>(GROUP, 0x03);
const CONTINUE: Opcode = opcode::read_write::<ContinueCall>(GROUP, 0x07);
const POISON: Opcode = opcode::read_write::<PoisonCall>(GROUP, 0x08);
const MOVE: Opcode = opcode::read_write::<MoveCall>(GROUP, 0x05);
const API: Opcode = opcode::read_write::<ApiCall>(GROUP, 0x3f);

/// `UFFD_API`, `UFFD_FEATURE_THREAD_ID` (since Linux 4.14), `UFFDIO_REGISTER_MODE_MISSING`,
/// `UFFD_EVENT_PAGEFAULT`.
const VERSION: u64 = 0xaa;
const THREAD_ID: u64 = 1 << 8;
/// `UFFD_FEATURE_MINOR_SHMEM`, since Linux 5.14, and `UFFDIO_REGISTER_MODE_MINOR`.
const MINOR_FAULTS: u64 = 1 << 10;
const MINOR: u64 = 1 << 2;
/// `UFFD_FEATURE_POISON`, since Linux 6.6; `UFFD_FEATURE_MOVE` and `UFFDIO_MOVE_MODE_ALLOW_SRC_HOLES`, since 6.8.
const POISONS: u64 = 1 << 14;
const MOVES: u64 = 1 << 16;
const WITH_HOLES: u64 = 1 << 1;
const MISSING: u64 = 1;
const PAGE_FAULT: u8 = 0x12;

/// `struct uffd_msg`: its size, and where a page fault's address and thread stand in it.
const MESSAGE: usize = 32;
const ADDRESS: usize = 16;
const THREAD: usize = 24;
/// How many events are taken at once: one for each thread that may wait is more than enough, and more
/// are taken the next time.
const EVENTS: usize = 32;

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
    /// The kernel cannot move pages.
    #[error(
        "the host's kernel cannot move pages into guest memory, as Linux 6.8 and newer can: restore without --lazy"
    )]
    NoMove(#[source] io::Error),
    /// The kernel cannot catch touches of pages that a file has.
    #[error(
        "the host's kernel cannot catch touches of memory that is a file, as Linux 6.6 and newer can: restore without \
         --lazy"
    )]
    NoMinorFaults(#[source] io::Error),
    /// An event cannot be read.
    #[error("cannot read page faults from the host; please report this")]
    Read(#[source] io::Error),
}

/// `struct uffdio_api`.
#[repr(C)]
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

impl From<&Range<u64>> for Addresses {
    fn from(range: &Range<u64>) -> Self {
        Self { start: range.start, length: range.end.saturating_sub(range.start) }
    }
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

/// `struct uffdio_continue`.
#[repr(C)]
struct ContinueCall {
    addresses: Addresses,
    mode: u64,
    /// How much was mapped, or why nothing was, as a negative error number.
    mapped: i64,
}

/// `struct uffdio_poison`.
#[repr(C)]
struct PoisonCall {
    addresses: Addresses,
    mode: u64,
    /// How much was poisoned, or why nothing was, as a negative error number.
    updated: i64,
}

/// `struct uffdio_move`.
#[repr(C)]
struct MoveCall {
    to: u64,
    from: u64,
    length: u64,
    mode: u64,
    /// How much was moved, or why nothing was, as a negative error number.
    moved: i64,
}

/// `USERFAULTFD_IOC_NEW`: the answer is a descriptor.
struct New(UserfaultfdFlags);

// SAFETY: the call takes its flags in place of a pointer, reads and writes no memory, and what it
// returns when it does not fail is a new descriptor that nothing else owns.
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

/// Why there is no descriptor with what was asked for.
enum Failed {
    Open(Error),
    Features(io::Error),
}

/// A page fault that waits to be resolved.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct Fault {
    /// The address that was touched, rounded down to its page.
    pub address: u64,
    /// The thread that waits. A fault in a system call or in KVM_RUN is that of the calling thread.
    pub thread: Option<Pid>,
}

/// Catches page faults of this process, for ranges of its addresses.
///
/// A thread that touches a missing page of an armed range waits, in the kernel or outside, until the range
/// is disarmed, filled, or woken. When this is dropped all are.
///
/// No call but [`move_in`](Self::move_in) changes the contents of memory, so that the others are safe: what they
/// provide reads zero, as it would have without them. The kernel checks the addresses.
#[derive(Debug)]
pub(crate) struct Uffd(OwnedFd);

impl Uffd {
    /// Catches faults; no range is armed yet.
    ///
    /// # Errors
    /// When the host's kernel cannot, or does not let this user.
    pub(crate) fn new() -> Result<Self, Error> {
        Self::with(THREAD_ID).map_err(|error| match error {
            Failed::Open(error) => error,
            Failed::Features(source) => Error::Version(source),
        })
    }

    /// As [`new`](Self::new), and pages can be [moved](Self::move_in) into the ranges, or [poisoned](Self::poison).
    ///
    /// # Errors
    /// As for [`new`](Self::new), and when the kernel is older than Linux 6.8.
    pub(crate) fn with_moves() -> Result<Self, Error> {
        Self::with(THREAD_ID | POISONS | MOVES).map_err(|error| match error {
            Failed::Open(error) => error,
            Failed::Features(source) => Error::NoMove(source),
        })
    }

    /// As [`new`](Self::new), and ranges of memory that is a file can be [armed](Self::arm_file), or
    /// [poisoned](Self::poison).
    ///
    /// # Errors
    /// As for [`new`](Self::new), and when the kernel is older than Linux 6.6.
    pub(crate) fn with_minor_faults() -> Result<Self, Error> {
        Self::with(THREAD_ID | POISONS | MINOR_FAULTS).map_err(|error| match error {
            Failed::Open(error) => error,
            Failed::Features(source) => Error::NoMinorFaults(source),
        })
    }

    fn with(features: u64) -> Result<Self, Failed> {
        let descriptor = open().map_err(Failed::Open)?;
        let mut call = ApiCall { version: VERSION, features, ioctls: 0 };
        // SAFETY: the structure is the one that the call takes, and it writes nothing else.
        unsafe { ioctl(&descriptor, Updater::<API, _>::new(&mut call)) }
            .map_err(|errno| Failed::Features(errno.into()))?;
        Ok(Self(descriptor))
    }

    /// From now on touches of missing pages of these addresses are caught. Those on their way have their
    /// page when this returns.
    ///
    /// # Errors
    /// What the host answers: ENOMEM when the process would have too many mappings (vm.max_map_count).
    /// A part of the range may be armed even so.
    pub(crate) fn arm(&self, range: &Range<u64>) -> io::Result<()> {
        self.register(range, MISSING)
    }

    /// As [`arm`](Self::arm), for a shared mapping of a memfd: also touches of pages that the file has are caught, until
    /// these addresses have them.
    ///
    /// With missing pages alone a page would be seen as soon as it is in the file, half written; with the other alone a
    /// page that is not in the file would read zero.
    ///
    /// # Errors
    /// As for [`arm`](Self::arm).
    pub(crate) fn arm_file(&self, range: &Range<u64>) -> io::Result<()> {
        self.register(range, MISSING | MINOR)
    }

    fn register(&self, range: &Range<u64>, mode: u64) -> io::Result<()> {
        let mut call = RegisterCall { addresses: range.into(), mode, ioctls: 0 };
        // SAFETY: the structure is the one that the call takes. It changes who provides missing pages, and
        // no contents.
        Ok(unsafe { ioctl(&self.0, Updater::<REGISTER, _>::new(&mut call)) }?)
    }

    /// The kernel resolves faults of these addresses again, and wakes the threads that wait for them.
    ///
    /// # Errors
    /// As for [`arm`](Self::arm); then a part of the range may be armed as before.
    pub(crate) fn disarm(&self, range: &Range<u64>) -> io::Result<()> {
        // SAFETY: as for registering.
        let done = unsafe { ioctl(&self.0, Setter::<UNREGISTER, _>::new(Addresses::from(range))) };
        // The kernel wakes before it clears the registration (fs/userfaultfd.c, userfaultfd_unregister), so
        // that a thread that faults in between would wait for good: also in a part that is disarmed before an error.
        self.wake(range)?;
        Ok(done?)
    }

    /// Threads that wait for these addresses try again.
    ///
    /// # Errors
    /// What the host answers; there is no known reason.
    pub(crate) fn wake(&self, range: &Range<u64>) -> io::Result<()> {
        // SAFETY: the structure is the one that the call takes; waking changes no memory.
        Ok(unsafe { ioctl(&self.0, Setter::<WAKE, _>::new(Addresses::from(range))) }?)
    }

    /// Populates a range that is not armed: with huge pages where the host gives them, else all small ones.
    ///
    /// # Errors
    /// When the host has no memory, or is older than Linux 5.14. The pages then come as they are touched.
    pub(crate) fn populate(&self, range: &Range<u64>) -> io::Result<()> {
        let Addresses { start, length } = range.into();
        let start = std::ptr::with_exposed_provenance_mut(start as usize);
        // SAFETY: populating changes no contents.
        Ok(unsafe { madvise(start, length as usize, Advice::LinuxPopulateWrite) }?)
    }

    /// Gives what is armed of a range pages of zeroes wherever it has none, `page` bytes each, and wakes those who wait
    /// for the range. It stays armed, so this works where the process has as many mappings as it can have. What is not
    /// armed gets its pages as they are touched.
    ///
    /// None of it may be a private mapping of a file: zeroes would take the place of what the file has (mm/userfaultfd.c,
    /// `mfill_atomic_pte`).
    ///
    /// # Errors
    /// When the host has no memory. Those who wait are woken even so.
    pub(crate) fn fill(&self, range: &Range<u64>, page: u64) -> io::Result<()> {
        let Addresses { start, length } = range.into();
        let size = usize::try_from(length).map_err(|_| io::ErrorKind::InvalidInput)?;
        let zeroes = vec![0u8; size];
        let filled = where_armed(range, page, |left| {
            let Addresses { start: to, length } = left.into();
            let from = zeroes.as_ptr() as u64 + (to - start);
            let mut call = CopyCall { to, from, length, mode: 0, copied: 0 };
            // SAFETY: the structure is the one that the call takes. It reads `zeroes` inside its bounds,
            // and writes pages only where there are none: they read zero before and after.
            let answer = unsafe { ioctl(&self.0, Updater::<COPY, _>::new(&mut call)) };
            part(answer, length, call.copied)
        });
        self.wake(range)?;
        filled
    }

    /// Gives an [armed file](Self::arm_file)'s range the pages of the file, `page` bytes each, which has all of them, and
    /// wakes those who wait for the range. It stays armed. What is not armed gets its pages as they are touched.
    ///
    /// # Errors
    /// What the host answers: EFAULT when the file lacks a page. Those who wait are woken even so.
    pub(crate) fn map_pages(&self, range: &Range<u64>, page: u64) -> io::Result<()> {
        let mapped = where_armed(range, page, |left| {
            let addresses = Addresses::from(left);
            let length = addresses.length;
            let mut call = ContinueCall { addresses, mode: 0, mapped: 0 };
            // SAFETY: the structure is the one that the call takes. It maps what the file has, and changes no contents.
            let answer = unsafe { ioctl(&self.0, Updater::<CONTINUE, _>::new(&mut call)) };
            part(answer, length, call.mapped)
        });
        self.wake(range)?;
        mapped
    }

    /// Moves the pages of `from`, data and tags, to an armed range without pages, and wakes those who wait for it. Where
    /// `from` has no page, the range has none either. A huge page moves as one.
    ///
    /// # Errors
    /// What the host answers: EEXIST when the range has pages.
    ///
    /// # Safety
    /// `from` is private anonymous memory that the caller owns, as long as the range, and does not mind to find empty;
    /// and the range may get contents, as memory that a guest has.
    pub(crate) unsafe fn move_in(&self, range: &Range<u64>, from: u64) -> io::Result<()> {
        by_parts(range, |left| {
            let Addresses { start: to, length } = left.into();
            let from = from + (to - range.start);
            let mut call = MoveCall { to, from, length, mode: WITH_HOLES, moved: 0 };
            // SAFETY: the structure is the one that the call takes; the caller has it that both ranges may change.
            let answer = unsafe { ioctl(&self.0, Updater::<MOVE, _>::new(&mut call)) };
            part(answer, length, call.moved)
        })
    }

    /// Has every touch of what is armed of a range fail where it has no page, of `page` bytes each, as one of broken memory
    /// does: SIGBUS in this process, and EFAULT or EHWPOISON from KVM_RUN. Those who wait for the range are woken.
    ///
    /// # Errors
    /// What the host answers. Those who wait are woken even so.
    pub(crate) fn poison(&self, range: &Range<u64>, page: u64) -> io::Result<()> {
        let poisoned = where_armed(range, page, |left| {
            let addresses = Addresses::from(left);
            let length = addresses.length;
            let mut call = PoisonCall { addresses, mode: 0, updated: 0 };
            // SAFETY: the structure is the one that the call takes. It marks pages that are not there, and changes no
            // contents.
            let answer = unsafe { ioctl(&self.0, Updater::<POISON, _>::new(&mut call)) };
            part(answer, length, call.updated)
        });
        self.wake(range)?;
        poisoned
    }

    /// Appends the faults that wait to be read, a number of them at most, in the order in which they came.
    ///
    /// # Errors
    /// What the host answers; there is no known reason.
    pub(crate) fn read(&self, faults: &mut Vec<Fault>) -> Result<(), Error> {
        let mut bytes = [0; EVENTS * MESSAGE];
        let read = match rustix::io::retry_on_intr(|| rustix::io::read(&self.0, &mut bytes)) {
            Ok(read) => read,
            Err(Errno::AGAIN) => 0,
            Err(errno) => return Err(Error::Read(errno.into())),
        };
        let (messages, _) = bytes[..read].as_chunks::<MESSAGE>();
        faults.extend(messages.iter().filter_map(fault));
        Ok(())
    }
}

/// The fault that a message is about. No other event was asked for.
fn fault(message: &[u8; MESSAGE]) -> Option<Fault> {
    let address = u64::from_ne_bytes(*message.get(ADDRESS..)?.first_chunk()?);
    let thread = i32::from_ne_bytes(*message.get(THREAD..)?.first_chunk()?);
    (message[0] == PAGE_FAULT).then_some(Fault { address, thread: Pid::from_raw(thread) })
}

impl AsFd for Uffd {
    /// Readable when there are faults to read.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
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
    // SAFETY: the descriptor watches nothing yet, and this module gives no means to misuse it.
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
