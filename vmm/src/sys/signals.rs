//! The signals that end a VM, as events of the main loop.
#![allow(unsafe_code)]

use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use rustix::event::{PollFd, PollFlags, Timespec, poll};

use crate::exit_status::ExitStatus;

const ENDING: [(libc::c_int, ExitStatus); 4] = [
    (libc::SIGHUP, ExitStatus::Hangup),
    (libc::SIGINT, ExitStatus::Interrupted),
    (libc::SIGQUIT, ExitStatus::Quit),
    (libc::SIGTERM, ExitStatus::Terminated),
];

/// Takes SIGHUP, SIGINT, SIGQUIT and SIGTERM from a descriptor instead of dying by them.
#[derive(Debug)]
pub(crate) struct Signals(OwnedFd);

impl Signals {
    /// Blocks the signals in this thread, which is to be the main thread, and opens the descriptor they
    /// come from. All other threads start with them blocked ([`crate::sys::thread`]). Until this is called
    /// they end the process, as is right while there is nothing to clean up.
    ///
    /// # Errors
    /// When the host gives no descriptor.
    ///
    /// A signal that the process was started to ignore, as nohup and shells do for background jobs, stays
    /// ignored. SIGXFSZ, which a file size limit sends, is ignored from here on: the write fails instead.
    pub(crate) fn block() -> io::Result<Self> {
        let mut set = MaybeUninit::<libc::sigset_t>::uninit();
        // SAFETY: `sigemptyset` initialises the set; the signal numbers are valid.
        let set = unsafe {
            libc::sigemptyset(set.as_mut_ptr());
            for (signal, _) in ENDING {
                if !is_ignored(signal) {
                    libc::sigaddset(set.as_mut_ptr(), signal);
                }
            }
            set.assume_init()
        };
        // SAFETY: ignoring a signal runs no code of this program.
        unsafe { libc::signal(libc::SIGXFSZ, libc::SIG_IGN) };
        // SAFETY: the set is initialised and outlives both calls; -1 asks for a new descriptor.
        let fd = unsafe {
            match libc::pthread_sigmask(libc::SIG_BLOCK, &set, std::ptr::null_mut()) {
                0 => {}
                error => return Err(io::Error::from_raw_os_error(error)),
            }
            libc::signalfd(-1, &set, libc::SFD_CLOEXEC | libc::SFD_NONBLOCK)
        };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the descriptor was just made and has no other owner.
        Ok(Self(unsafe { OwnedFd::from_raw_fd(fd) }))
    }

    /// Whether a signal has come and was not taken.
    pub(crate) fn wait(&self) -> bool {
        let mut signals = [PollFd::new(&self.0, PollFlags::IN)];
        // Without an answer it is asked again.
        poll(&mut signals, Some(&Timespec::default())).is_ok_and(|ready| ready > 0)
    }

    /// Which signal has come, as the status that the process ends with.
    pub(crate) fn take(&self) -> Option<ExitStatus> {
        const SIZE: usize = size_of::<libc::signalfd_siginfo>();
        let mut buffer = [0u8; SIZE];
        match rustix::io::read(&self.0, &mut buffer) {
            Ok(n) if n == SIZE => {}
            _ => return None,
        }
        // `ssi_signo` is the first member.
        let signal = i32::from_ne_bytes([buffer[0], buffer[1], buffer[2], buffer[3]]);
        ENDING.iter().find(|(known, _)| *known == signal).map(|(_, status)| *status)
    }
}

fn is_ignored(signal: libc::c_int) -> bool {
    let mut now = MaybeUninit::<libc::sigaction>::uninit();
    // SAFETY: with no new action the call only writes the present one, into memory of its size.
    let known = unsafe { libc::sigaction(signal, std::ptr::null(), now.as_mut_ptr()) } == 0;
    // SAFETY: the call succeeded, so it has written the action.
    known && unsafe { now.assume_init() }.sa_sigaction == libc::SIG_IGN
}

impl AsFd for Signals {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl AsRawFd for Signals {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }
}
