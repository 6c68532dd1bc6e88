//! Processes that are copies of this one, and what rustix marks as unsafe for programs with threads.
//!
//! # References
//! fork(2), unshare(2)
#![allow(unsafe_code)]

use std::fs;
use std::io;
use std::os::fd::RawFd;

use rustix::process::{Pid, WaitOptions, WaitStatus, waitpid};
use rustix::thread::UnshareFlags;

/// Which of two processes this is.
#[derive(Debug)]
pub(super) enum Forked {
    /// The one that has forked, and the number of the other.
    Parent(Pid),
    /// The copy.
    Child,
}

/// Says that this process has one thread. A copy has one in any case, and this room starts none.
#[derive(Clone, Copy, Debug)]
pub(super) struct OneThread(());

impl OneThread {
    /// Looks whether it is so.
    ///
    /// # Errors
    /// When it is not.
    pub(super) fn new() -> io::Result<Self> {
        match fs::read_dir("/proc/self/task")?.count() {
            1 => Ok(Self(())),
            _ => Err(io::Error::other("the process has threads already")),
        }
    }
}

/// Makes a copy of this process.
///
/// # Errors
/// When the kernel refuses.
pub(super) fn fork(_: OneThread) -> io::Result<Forked> {
    // SAFETY: there is one thread, so that the copy has all of the process: no lock is held by a thread that it lacks.
    let answer = unsafe { libc::fork() };
    if answer < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(Pid::from_raw(answer).map_or(Forked::Child, Forked::Parent))
}

/// Leaves namespaces for new ones.
///
/// # Errors
/// What the kernel answers.
pub(super) fn unshare(namespaces: UnshareFlags) -> io::Result<()> {
    // SAFETY: it is unsafe for CLONE_FILES alone, which no caller asks for.
    Ok(unsafe { rustix::thread::unshare_unsafe(namespaces - UnshareFlags::FILES) }?)
}

/// The descriptors that are open now, but for standard input, output and error. To be asked before the process has opened
/// any itself: those are then what it was started with.
///
/// # Errors
/// When the kernel does not list them.
pub(super) fn inherited() -> io::Result<Vec<RawFd>> {
    let names = fs::read_dir("/proc/self/fd")?;
    let numbers = names.filter_map(|name| name.ok()?.file_name().to_str()?.parse::<RawFd>().ok());
    let numbers: Vec<_> = numbers.filter(|number| *number > libc::STDERR_FILENO).collect();
    // The one by which they were listed has gone.
    // SAFETY: F_GETFD looks at a number and at nothing else.
    let is_open = |number: &RawFd| unsafe { libc::fcntl(*number, libc::F_GETFD) } >= 0;
    Ok(numbers.into_iter().filter(is_open).collect())
}

/// Closes descriptors that this process was started with and that nothing in it owns.
pub(super) fn close(numbers: impl IntoIterator<Item = RawFd>) {
    for number in numbers {
        // SAFETY: by the contract of this function, nothing uses the number after it.
        unsafe { libc::close(number) };
    }
}

/// Waits for the end of a process, and gives what a shell would give as its status.
pub(super) fn wait_for(pid: Pid) -> u8 {
    loop {
        match waitpid(Some(pid), WaitOptions::empty()) {
            Ok(Some((_, status))) => {
                if let Some(status) = shells(status) {
                    return status;
                }
            }
            Ok(None) | Err(rustix::io::Errno::INTR) => {}
            // It is no child of this process.
            Err(_) => return crate::exit_status::ExitStatus::VmmFault as u8,
        }
    }
}

/// 128 and the number of a signal that has ended a process.
fn shells(status: WaitStatus) -> Option<u8> {
    let signal = || status.terminating_signal().map(|signal| signal + 128);
    status.exit_status().or_else(signal).and_then(|status| u8::try_from(status).ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_with_threads_is_not_copied() {
        let look = || OneThread::new().map_err(|error| error.to_string());
        let looked = std::thread::scope(|scope| scope.spawn(look).join());

        let refused = looked.ok().and_then(Result::err);

        assert_eq!(refused.as_deref(), Some("the process has threads already"));
    }

    #[test]
    fn a_descriptor_that_is_open_is_listed() {
        use std::os::fd::AsRawFd;

        let file = fs::File::open("/proc/self/status").map(|file| (file.as_raw_fd(), file));
        let (number, file) = file.expect("a file");
        assert!(inherited().is_ok_and(|all| all.contains(&number)));
        assert!(inherited().is_ok_and(|all| all.iter().all(|number| *number > 2)));
        drop(file);
    }
}
