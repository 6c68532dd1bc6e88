//! System calls that end the process in which they are made: in a copy of this one.
#![allow(unsafe_code)]

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::AsRawFd;

use rustix::pipe::{PipeFlags, pipe_with};

/// Prepares a copy of this process, and makes a system call there. The copy ends then with 0, if it has not ended before.
/// What it ended with, `None` for a signal, and what it has said on standard error.
///
/// The copy has the calling thread alone: `prepare` is not to wait for others of this process.
///
/// # Errors
/// When the host gives no process.
pub fn call_in_a_copy(
    prepare: impl FnOnce(),
    number: u32,
    arguments: [u64; 6],
) -> io::Result<(Option<i32>, String)> {
    let (reader, writer) = pipe_with(PipeFlags::CLOEXEC)?;
    // SAFETY: the child continues with this thread's stack and memory, which are copies. Locks that other threads hold stay
    // locked in it: those of the allocator are not among them (musl's fork takes them).
    let child = unsafe { libc::fork() };
    if child < 0 {
        return Err(io::Error::last_os_error());
    }
    if child == 0 {
        // SAFETY: both descriptors are open. Whatever the call does, it does to a process that ends without running
        // anything else.
        unsafe {
            libc::dup2(writer.as_raw_fd(), libc::STDERR_FILENO);
            prepare();
            let [a, b, c, d, e, f] = arguments;
            libc::syscall(number.into(), a, b, c, d, e, f);
            libc::_exit(0);
        }
    }
    drop(writer);
    let mut said = Vec::new();
    File::from(reader).read_to_end(&mut said)?;
    let mut status = 0;
    // SAFETY: the child is this process's, and the kernel writes the status.
    if unsafe { libc::waitpid(child, &mut status, 0) } != child {
        return Err(io::Error::last_os_error());
    }
    let code = libc::WIFEXITED(status).then(|| libc::WEXITSTATUS(status));
    Ok((code, String::from_utf8_lossy(&said).into_owned()))
}
