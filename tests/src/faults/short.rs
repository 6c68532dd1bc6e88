//! Reads and writes that do half of what they are asked for, as the kernel may for a signal, a full disk or a pipe.
//!
//! The listener does that half itself, with a descriptor of the same open file, and gives the call its count.
//!
//! # References
//! read(2), write(2), readv(2); pidfd_getfd(2); process_vm_readv(2)
#![allow(unsafe_code)]

use std::fs;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};

use libc::{c_int, c_long, iovec, off_t, pid_t, socklen_t};

use super::{Notice, copy_of};

/// The most buffers of a call that are looked at: IOV_MAX.
const MOST_BUFFERS: usize = 1024;

/// How a call moves bytes.
struct Transfer {
    is_write: bool,
    /// Its second argument is a list of buffers and its third their number.
    is_vector: bool,
    /// Its fourth argument is a place in the file.
    has_offset: bool,
}

impl Transfer {
    fn of(number: c_long) -> Option<Self> {
        let (is_write, is_vector, has_offset) = match number {
            libc::SYS_read => (false, false, false),
            libc::SYS_write => (true, false, false),
            libc::SYS_pread64 => (false, false, true),
            libc::SYS_pwrite64 => (true, false, true),
            libc::SYS_readv => (false, true, false),
            libc::SYS_writev => (true, true, false),
            libc::SYS_preadv => (false, true, true),
            libc::SYS_pwritev => (true, true, true),
            _ => return None,
        };
        Some(Self { is_write, is_vector, has_offset })
    }
}

/// Whether a call can be short.
pub(super) fn is_transfer(number: c_long) -> bool {
    Transfer::of(number).is_some()
}

/// Does half of a call for a process. What it answers; `None` where such a call is not short, or would wait.
pub(super) fn halve(process: u32, notice: &Notice) -> Option<i64> {
    let transfer = Transfer::of(notice.number.into())?;
    // Not one of its children.
    fs::metadata(format!("/proc/{process}/task/{}", notice.thread)).ok()?;
    let file = copy_of(process, notice.arguments[0] as c_int).ok()?;
    if !has_bytes(&file) || !is_ready(&file, transfer.is_write) {
        return None;
    }
    let buffers = first_half(buffers(process, notice, transfer.is_vector).ok()?)?;
    let offset = transfer.has_offset.then_some(notice.arguments[3] as off_t);
    let done = if transfer.is_write {
        from_process(process, &buffers).and_then(|bytes| write(&file, &bytes, offset))
    } else {
        read(&file, &buffers, offset).and_then(|bytes| to_process(process, &buffers, &bytes))
    };
    done.ok().map(|count| count as i64)
}

/// Whether a file is a stream of bytes: where there are messages, half of one is none.
fn has_bytes(file: &OwnedFd) -> bool {
    let (mut kind, mut length) = (0 as c_int, size_of::<c_int>() as socklen_t);
    // SAFETY: `stat` may have any contents, and the kernel writes one; it writes one number, of this length at most.
    let (mode, socket) = unsafe {
        let mut stat: libc::stat = std::mem::zeroed();
        if libc::fstat(file.as_raw_fd(), &raw mut stat) != 0 {
            return false;
        }
        let value = (&raw mut kind).cast();
        let fd = file.as_raw_fd();
        let socket =
            libc::getsockopt(fd, libc::SOL_SOCKET, libc::SO_TYPE, value, &raw mut length) == 0;
        (stat.st_mode & libc::S_IFMT, socket)
    };
    matches!(mode, libc::S_IFREG | libc::S_IFIFO) || (socket && kind == libc::SOCK_STREAM)
}

fn is_ready(file: &OwnedFd, is_write: bool) -> bool {
    let events = if is_write { libc::POLLOUT } else { libc::POLLIN };
    let mut poll = libc::pollfd { fd: file.as_raw_fd(), events, revents: 0 };
    // SAFETY: the kernel writes the one entry.
    unsafe { libc::poll(&raw mut poll, 1, 0) == 1 && poll.revents & events != 0 }
}

/// The buffers of a call, in the process.
fn buffers(process: u32, notice: &Notice, is_vector: bool) -> io::Result<Vec<iovec>> {
    let [_, start, length, ..] = notice.arguments;
    let buffer = |start: u64, length| iovec { iov_base: start as *mut _, iov_len: length };
    if !is_vector {
        return Ok(vec![buffer(start, length as usize)]);
    }
    let count = (length as usize).min(MOST_BUFFERS);
    let list = from_process(process, &[buffer(start, count * size_of::<iovec>())])?;
    let words: Vec<u64> =
        list.as_chunks::<8>().0.iter().map(|word| u64::from_ne_bytes(*word)).collect();
    Ok(words
        .as_chunks::<2>()
        .0
        .iter()
        .map(|[start, length]| buffer(*start, *length as usize))
        .collect())
}

/// The first half of some buffers, if they have two bytes.
fn first_half(mut buffers: Vec<iovec>) -> Option<Vec<iovec>> {
    let mut left = buffers.iter().map(|buffer| buffer.iov_len).sum::<usize>() / 2;
    if left == 0 {
        return None;
    }
    for buffer in &mut buffers {
        buffer.iov_len = buffer.iov_len.min(left);
        left -= buffer.iov_len;
    }
    Some(buffers)
}

/// What is in buffers of a process.
fn from_process(process: u32, remote: &[iovec]) -> io::Result<Vec<u8>> {
    let mut bytes = vec![0u8; remote.iter().map(|buffer| buffer.iov_len).sum()];
    let local = iovec { iov_base: bytes.as_mut_ptr().cast(), iov_len: bytes.len() };
    let count = remote.len() as libc::c_ulong;
    // SAFETY: the kernel writes `bytes`, of which it has the length, and nothing else here.
    let done = unsafe {
        libc::process_vm_readv(process as pid_t, &raw const local, 1, remote.as_ptr(), count, 0)
    };
    if counted(done)? == bytes.len() { Ok(bytes) } else { Err(io::ErrorKind::UnexpectedEof.into()) }
}

/// Gives buffers of a process these bytes. How many there are.
fn to_process(process: u32, remote: &[iovec], bytes: &[u8]) -> io::Result<usize> {
    if bytes.is_empty() {
        return Ok(0);
    }
    let local = iovec { iov_base: bytes.as_ptr().cast_mut().cast(), iov_len: bytes.len() };
    let count = remote.len() as libc::c_ulong;
    // SAFETY: the kernel reads `bytes`; the process asked for its buffers to be written.
    let done = unsafe {
        libc::process_vm_writev(process as pid_t, &raw const local, 1, remote.as_ptr(), count, 0)
    };
    counted(done)
}

fn write(file: &OwnedFd, bytes: &[u8], offset: Option<off_t>) -> io::Result<usize> {
    let (fd, start, length) = (file.as_raw_fd(), bytes.as_ptr().cast(), bytes.len());
    // SAFETY: the kernel reads `bytes`, of which it has the length.
    counted(unsafe {
        match offset {
            Some(offset) => libc::pwrite(fd, start, length, offset),
            None => libc::write(fd, start, length),
        }
    })
}

/// Reads as much as these buffers take.
fn read(file: &OwnedFd, buffers: &[iovec], offset: Option<off_t>) -> io::Result<Vec<u8>> {
    let mut bytes = vec![0u8; buffers.iter().map(|buffer| buffer.iov_len).sum()];
    let (fd, start, length) = (file.as_raw_fd(), bytes.as_mut_ptr().cast(), bytes.len());
    // SAFETY: the kernel writes `bytes`, of which it has the length.
    let done = counted(unsafe {
        match offset {
            Some(offset) => libc::pread(fd, start, length, offset),
            None => libc::read(fd, start, length),
        }
    })?;
    bytes.truncate(done);
    Ok(bytes)
}

fn counted(done: isize) -> io::Result<usize> {
    usize::try_from(done).map_err(|_| io::Error::last_os_error())
}
