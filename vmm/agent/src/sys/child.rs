//! What becomes of this process as it starts, and of its children between fork and exec.
#![allow(unsafe_code)]

use std::ffi::CString;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::process::CommandExt;
use std::process::Command;

use rustix::fs::{Mode, OFlags, open};
use rustix::process::{Gid, Resource, Rlimit, Uid, chdir, ioctl_tiocsctty, setrlimit, setsid};
use rustix::thread::{set_thread_gid, set_thread_groups, set_thread_uid};

/// `CLOSE_RANGE_CLOEXEC` of close_range(2).
const CLOSE_ON_EXEC: libc::c_uint = 1 << 2;

/// The signals of Linux (`_NSIG`).
const SIGNALS: libc::c_int = 64;
/// The bytes of a set of them.
const MASK: usize = 8;

/// Undoes what this process has from its parent and a command must not have: signals that are ignored or
/// blocked, descriptors beyond the three of each process.
///
/// To be called before there is a second thread. The standard library has SIGPIPE ignored, and makes it the
/// default for children.
pub(crate) fn forget_parent() {
    for signal in (1..=SIGNALS).filter(|signal| *signal != libc::SIGPIPE) {
        stop_ignoring(signal);
    }
    // A limit of the size of files fails the write of one client, and does not end the agent.
    // SAFETY: no handler; the action of a child is set back before it becomes a command.
    unsafe { libc::signal(libc::SIGXFSZ, libc::SIG_IGN) };
    // SAFETY: a set of signals is plain integers; sigemptyset makes it a valid one.
    unsafe {
        let mut none: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&raw mut none);
        libc::sigprocmask(libc::SIG_SETMASK, &raw const none, std::ptr::null_mut());
    }
    // Linux 5.11; an older kernel refuses, and the descriptors of a supervisor stay as it left them.
    // SAFETY: no memory is passed; descriptors stay open and are only marked.
    unsafe { libc::syscall(libc::SYS_close_range, 3, libc::c_uint::MAX, CLOSE_ON_EXEC) };
}

/// The agent may be kept from the kernel's choice when memory is short; a command is not.
fn reset_oom_score() {
    // Without /proc there is nothing that the agent has been given there.
    if let Ok(file) =
        open(c"/proc/self/oom_score_adj", OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty())
    {
        let _ = rustix::io::write(file, b"0");
    }
}

/// Makes a signal that is ignored one with its default action. By the system call: a C library refuses those
/// that it has for itself.
fn stop_ignoring(signal: libc::c_int) {
    // struct sigaction of the kernel: handler, flags, restorer, mask (include/linux/signal_types.h). Zeros
    // are the default action.
    let mut action = [0_usize; 4];
    // SAFETY: the kernel writes one struct sigaction, which is no longer than the array, or refuses.
    let known = unsafe {
        libc::syscall(
            libc::SYS_rt_sigaction,
            signal,
            std::ptr::null::<usize>(),
            &raw mut action,
            MASK,
        )
    };
    if known == 0 && action[0] == libc::SIG_IGN {
        action = [0; 4];
        // SAFETY: the kernel reads one struct sigaction from the array; the default action needs no handler.
        unsafe {
            libc::syscall(
                libc::SYS_rt_sigaction,
                signal,
                &raw const action,
                std::ptr::null_mut::<usize>(),
                MASK,
            )
        };
    }
}

/// As whom a command runs.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct Identity {
    pub(crate) user: Uid,
    pub(crate) group: Gid,
    pub(crate) groups: Vec<Gid>,
}

/// What a child does before it becomes the command.
#[derive(Debug)]
pub(crate) struct Preparation {
    /// Its standard input is its controlling terminal.
    pub(crate) terminal: bool,
    /// Another user than the agent's.
    pub(crate) identity: Option<Identity>,
    /// Where it runs.
    pub(crate) directory: CString,
    /// How many descriptors it may have.
    pub(crate) descriptors: Rlimit,
    /// Takes the number of the step that failed.
    pub(crate) failed: OwnedFd,
}

/// A step of [`Preparation`].
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Step {
    Session = 1,
    User = 2,
    Directory = 3,
}

impl Step {
    /// The step that a child has written.
    pub(crate) fn new(number: u8) -> Option<Self> {
        [Self::Session, Self::User, Self::Directory].into_iter().find(|step| *step as u8 == number)
    }
}

impl Preparation {
    /// Has each child that `command` starts prepared so: a session of its own, then user and directory.
    pub(crate) fn install(self, command: &mut Command) {
        // SAFETY: between fork and exec the closure makes system calls and nothing else: it allocates
        // nothing, takes no lock, and what it uses was made before.
        unsafe { command.pre_exec(move || self.apply()) };
    }

    fn apply(&self) -> io::Result<()> {
        // SAFETY: the call is one of those that are safe in a signal handler (signal-safety(7)), and so here.
        unsafe { libc::signal(libc::SIGXFSZ, libc::SIG_DFL) };
        reset_oom_score();
        self.step(Step::Session, || {
            setsid()?;
            if self.terminal {
                ioctl_tiocsctty(rustix::stdio::stdin())?;
            }
            setrlimit(Resource::Nofile, self.descriptors)
        })?;
        self.step(Step::User, || match &self.identity {
            None => Ok(()),
            Some(identity) => {
                // A child has one thread: what is the thread's is the process's.
                set_thread_groups(&identity.groups)?;
                set_thread_gid(identity.group)?;
                set_thread_uid(identity.user)
            }
        })?;
        // As the user: a folder that it may not enter is refused.
        self.step(Step::Directory, || chdir(self.directory.as_c_str()))
    }

    fn step(&self, step: Step, act: impl FnOnce() -> rustix::io::Result<()>) -> io::Result<()> {
        act().map_err(|error| {
            // Without it the message is less exact.
            let _ = rustix::io::write(&self.failed, &[step as u8]);
            error.into()
        })
    }
}
