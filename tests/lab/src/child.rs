//! Children that do not outlive the lab, not even when it is killed outright.
#![allow(unsafe_code)]

use std::io;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command};

use rustix::process::{Signal, getppid, set_parent_process_death_signal};

/// Which process group a child belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Group {
    /// The lab's: it may read the terminal, and Ctrl-C reaches it too.
    Shared,
    /// One of its own: Ctrl-C reaches the lab alone, which then ends the child.
    Own,
}

/// Starts `command`; the kernel kills the child when the calling thread ends, however it ends.
///
/// Call it from the main thread: the tie is to the thread, not to the process (prctl(2),
/// `PR_SET_PDEATHSIG`).
///
/// # Errors
/// As [`Command::spawn`].
pub(crate) fn spawn_tied(command: &mut Command, group: Group) -> io::Result<Child> {
    if group == Group::Own {
        command.process_group(0);
    }
    let parent = rustix::process::getpid();
    let tie = move || {
        set_parent_process_death_signal(Some(Signal::KILL))?;
        // The lab may have died before the line above.
        if getppid() != Some(parent) {
            return Err(io::Error::from(io::ErrorKind::NotFound));
        }
        Ok(())
    };
    // SAFETY: the closure runs between fork and exec and makes two plain system calls; it neither
    // allocates nor takes a lock, which another thread might hold at the time of the fork.
    unsafe { command.pre_exec(tie) };
    command.spawn()
}
