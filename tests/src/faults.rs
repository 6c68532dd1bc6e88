//! Has system calls of a process fail, one at a time.
//!
//! The process runs under a filter that asks a listener what becomes of each call that can fail (seccomp(2),
//! "Seccomp user-space notification"). The listener counts them, lets them through, and has one of them fail with a
//! number, as if the kernel had said so. The process is as it is built: nothing in it knows of this.
//!
//! # References
//! seccomp_unotify(2); include/uapi/linux/seccomp.h
#![allow(unsafe_code)]

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;

use libc::{
    EACCES, EAGAIN, EBUSY, ECONNABORTED, ECONNREFUSED, ECONNRESET, EEXIST, EFAULT, EINTR, EINVAL,
    EIO, EMFILE, ENFILE, ENOENT, ENOMEM, ENOSPC, ENOSYS, EOPNOTSUPP, EPERM, EPIPE, EROFS,
    ETIMEDOUT,
};

/// `SECCOMP_IOCTL_NOTIF_RECV` and `SECCOMP_IOCTL_NOTIF_SEND`.
const RECEIVE: u32 = 0xc050_2100;
const SEND: u32 = 0xc018_2101;
/// `SECCOMP_FILTER_FLAG_NEW_LISTENER`.
const NEW_LISTENER: libc::c_ulong = 1 << 3;
/// `SECCOMP_RET_USER_NOTIF` and `SECCOMP_RET_ALLOW`.
const ASK: u32 = 0x7fc0_0000;
const ALLOW: u32 = 0x7fff_0000;
/// `SECCOMP_USER_NOTIF_FLAG_CONTINUE`.
const CONTINUE: u32 = 1;
/// Where the process has the listener, for this one to take: above what it opens itself.
const LISTENER: RawFd = 900;

const IOCTL: u32 = 29;
const MMAP: u32 = 222;
const KVM_RUN: u32 = 0xae80;
/// Of epoll_ctl(2) only an addition (`EPOLL_CTL_ADD`) takes memory, and fails without a defect of the caller's.
const EPOLL_CTL: u32 = 21;
const ADD: u64 = 1;
const READ: u32 = 63;
const WRITE: u32 = 64;
/// What is read from and written to an eventfd or a timerfd, which do not fail: eventfd(2).
const COUNTER: u64 = 8;
/// Memory of the allocator and of threads, which is not asked about: without it no Rust program goes on. Guest memory
/// is larger.
const SMALL: u64 = 16 << 20;

/// A system call of arm64 and what it may answer when it fails.
struct Call {
    number: u32,
    name: &'static str,
    errnos: &'static [i32],
}

const fn call(number: u32, name: &'static str, errnos: &'static [i32]) -> Call {
    Call { number, name, errnos }
}

/// What can fail (include/uapi/asm-generic/unistd.h; the numbers from their manual pages). Left out are calls of which
/// the C library and Rust's know no failure (futex, exit, rt_sigprocmask, gettid), and those that only ever fail for a
/// defect of the caller (close, munmap, getpid).
const CALLS: &[Call] = &[
    call(19, "eventfd2", &[EMFILE, ENOMEM]),
    call(20, "epoll_create1", &[EMFILE, ENOMEM]),
    call(EPOLL_CTL, "epoll_ctl", &[ENOMEM, ENOSPC]),
    call(22, "epoll_pwait", &[EINTR]),
    call(25, "fcntl", &[EINVAL, EMFILE, EAGAIN]),
    call(IOCTL, "ioctl", &[EINTR, ENOMEM, EINVAL, EIO, EFAULT, EBUSY]),
    call(32, "flock", &[EAGAIN, EINTR]),
    call(35, "unlinkat", &[EACCES, ENOENT]),
    call(37, "linkat", &[EEXIST, EACCES, EROFS]),
    call(46, "ftruncate", &[ENOSPC, EIO, EINTR]),
    call(47, "fallocate", &[ENOSPC, EOPNOTSUPP, EINTR]),
    call(52, "fchmod", &[EPERM, EROFS]),
    call(56, "openat", &[EACCES, ENOENT, EMFILE, EINTR, ENOMEM]),
    call(59, "pipe2", &[EMFILE, ENFILE]),
    call(61, "getdents64", &[EIO, ENOENT]),
    call(62, "lseek", &[EINVAL]),
    call(READ, "read", &[EINTR, EIO, EAGAIN]),
    call(WRITE, "write", &[EINTR, EIO, EPIPE, ENOSPC, EAGAIN]),
    call(65, "readv", &[EINTR, EIO]),
    call(66, "writev", &[EINTR, EIO, ENOSPC]),
    call(67, "pread64", &[EINTR, EIO]),
    call(68, "pwrite64", &[EINTR, EIO, ENOSPC]),
    call(69, "preadv", &[EINTR, EIO]),
    call(70, "pwritev", &[EINTR, EIO, ENOSPC]),
    call(73, "ppoll", &[EINTR, ENOMEM]),
    call(79, "newfstatat", &[ENOENT, EACCES]),
    call(80, "fstat", &[EIO, ENOMEM]),
    call(82, "fsync", &[EIO, ENOSPC]),
    call(83, "fdatasync", &[EIO, ENOSPC]),
    call(85, "timerfd_create", &[EMFILE, ENOMEM]),
    call(86, "timerfd_settime", &[EINVAL]),
    call(101, "nanosleep", &[EINTR]),
    call(115, "clock_nanosleep", &[EINTR]),
    call(129, "kill", &[EPERM]),
    call(167, "prctl", &[EINVAL, EPERM]),
    call(198, "socket", &[EMFILE, EACCES, ENOMEM]),
    call(199, "socketpair", &[EMFILE]),
    call(200, "bind", &[EACCES, ENOENT, EROFS]),
    call(201, "listen", &[EINVAL]),
    call(203, "connect", &[ECONNREFUSED, EAGAIN, EINTR, EACCES]),
    call(206, "sendto", &[EPIPE, EINTR, ECONNRESET]),
    call(207, "recvfrom", &[ECONNRESET, EINTR, EAGAIN]),
    call(208, "setsockopt", &[EINVAL, ENOMEM]),
    call(209, "getsockopt", &[EINVAL]),
    call(211, "sendmsg", &[EPIPE, EINTR, EAGAIN]),
    call(212, "recvmsg", &[ECONNRESET, EINTR, EAGAIN]),
    call(216, "mremap", &[ENOMEM]),
    call(220, "clone", &[EAGAIN, ENOMEM]),
    call(MMAP, "mmap", &[ENOMEM, EAGAIN]),
    call(228, "mlock", &[ENOMEM, EPERM]),
    call(233, "madvise", &[EINVAL, ENOMEM, EAGAIN]),
    call(235, "mbind", &[EPERM, ENOMEM]),
    call(242, "accept4", &[EMFILE, ECONNABORTED, EINTR, EPERM]),
    call(260, "wait4", &[EINTR]),
    call(261, "prlimit64", &[EPERM]),
    call(276, "renameat2", &[EACCES, EROFS, ENOSPC, EINVAL]),
    call(277, "seccomp", &[EINVAL, ENOMEM]),
    call(278, "getrandom", &[EINTR, EAGAIN]),
    call(279, "memfd_create", &[EMFILE, ENOMEM]),
    call(282, "userfaultfd", &[EPERM, ENOSYS, EMFILE]),
    call(291, "statx", &[ENOENT, EACCES]),
    call(434, "pidfd_open", &[EMFILE, ETIMEDOUT]),
];

/// `struct seccomp_notif`.
#[repr(C)]
#[derive(Default)]
struct Notice {
    id: u64,
    thread: u32,
    flags: u32,
    number: i32,
    arch: u32,
    place: u64,
    arguments: [u64; 6],
}

/// `struct seccomp_notif_resp`.
#[repr(C)]
struct Answer {
    id: u64,
    value: i64,
    error: i32,
    flags: u32,
}

/// One call that is to fail: the next but so many, with one of the numbers that it may give.
#[derive(Clone, Copy, Debug)]
pub struct Fault {
    /// Calls that are let through before it.
    pub after: usize,
    /// Which of the call's numbers, counted around.
    pub kind: usize,
}

/// A call that was made to fail.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Injected {
    /// The name of the call, and the request of an ioctl(2).
    pub call: String,
    /// The number that it gave.
    pub errno: i32,
}

#[derive(Default)]
struct State {
    /// Calls since the last [`Injector::arm`].
    seen: usize,
    fault: Option<Fault>,
    injected: Option<Injected>,
}

/// What decides on the calls of a process and its children.
pub struct Injector {
    state: Arc<Mutex<State>>,
    thread: Option<JoinHandle<()>>,
}

impl Injector {
    /// Starts a command whose calls are decided on, the first of them already.
    ///
    /// # Errors
    /// When this host has no such filters, or the command cannot be started.
    pub fn spawn(command: &mut Command, fault: Option<Fault>) -> io::Result<(Child, Self)> {
        let program = filter();
        // SAFETY: between fork and exec it makes system calls alone; the program was allocated before.
        unsafe { command.pre_exec(move || install(&program)) };
        let child = command.spawn()?;
        let listener = listener_of(child.id())?;
        let state = Arc::new(Mutex::new(State { fault, ..State::default() }));
        let decides = Arc::clone(&state);
        let thread = std::thread::spawn(move || decide(&listener, &decides));
        Ok((child, Self { state, thread: Some(thread) }))
    }

    /// Begins to count anew, and has a call fail.
    pub fn arm(&self, fault: Option<Fault>) {
        *self.state.lock().unwrap_or_else(PoisonError::into_inner) =
            State { fault, ..State::default() };
    }

    /// The calls since it was armed.
    pub fn seen(&self) -> usize {
        self.state.lock().unwrap_or_else(PoisonError::into_inner).seen
    }

    /// What has failed since it was armed.
    pub fn injected(&self) -> Option<Injected> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner).injected.clone()
    }

    /// Waits until no process is left that it decides for.
    pub fn join(mut self) {
        if let Some(thread) = self.thread.take() {
            thread.join().expect("the injector's thread");
        }
    }
}

/// Asks about the calls of the table.
fn filter() -> Vec<libc::sock_filter> {
    const LOAD: u16 = 0x20;
    const EQUAL: u16 = 0x15;
    const RETURN: u16 = 0x06;
    let line = |code, jt, jf, k| libc::sock_filter { code, jt, jf, k };
    // The number; and the low word of an ioctl's second argument, behind number, architecture and place.
    let mut lines = vec![
        line(LOAD, 0, 0, 0),
        line(EQUAL, 0, 3, IOCTL),
        line(LOAD, 0, 0, 16 + 8),
        line(EQUAL, 0, 1, KVM_RUN),
        line(RETURN, 0, 0, ALLOW),
        line(LOAD, 0, 0, 0),
    ];
    for call in CALLS {
        lines.push(line(EQUAL, 0, 1, call.number));
        lines.push(line(RETURN, 0, 0, ASK));
    }
    lines.push(line(RETURN, 0, 0, ALLOW));
    lines
}

/// Gives this process the filter, and the listener its place.
fn install(lines: &[libc::sock_filter]) -> io::Result<()> {
    let program = libc::sock_fprog { len: lines.len() as u16, filter: lines.as_ptr().cast_mut() };
    // SAFETY: the program lives as long as the calls, and they have no other effect on memory.
    unsafe {
        if libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0 {
            return Err(io::Error::last_os_error());
        }
        let set = libc::SECCOMP_SET_MODE_FILTER as libc::c_ulong;
        let listener = libc::syscall(libc::SYS_seccomp, set, NEW_LISTENER, &program);
        if listener < 0 || libc::dup2(listener as RawFd, LISTENER) < 0 {
            return Err(io::Error::last_os_error());
        }
    }
    Ok(())
}

/// The listener that a process has in its place.
fn listener_of(process: u32) -> io::Result<OwnedFd> {
    // SAFETY: the kernel gives a descriptor that nobody else has.
    unsafe {
        let pidfd = libc::syscall(libc::SYS_pidfd_open, process, 0);
        if pidfd < 0 {
            return Err(io::Error::last_os_error());
        }
        let pidfd = OwnedFd::from_raw_fd(pidfd as RawFd);
        let listener = libc::syscall(libc::SYS_pidfd_getfd, pidfd.as_raw_fd(), LISTENER, 0);
        match listener {
            -1 => Err(io::Error::last_os_error()),
            listener => Ok(OwnedFd::from_raw_fd(listener as RawFd)),
        }
    }
}

/// Answers until no process is left.
fn decide(listener: &OwnedFd, state: &Mutex<State>) {
    loop {
        let mut poll = libc::pollfd { fd: listener.as_raw_fd(), events: libc::POLLIN, revents: 0 };
        // SAFETY: the kernel writes the one entry.
        let ready = unsafe { libc::poll(&mut poll, 1, -1) };
        if ready < 0 && io::Error::last_os_error().kind() == io::ErrorKind::Interrupted {
            continue;
        }
        if poll.revents & libc::POLLIN == 0 {
            return;
        }
        let mut notice = Notice::default();
        // SAFETY: the kernel writes a notice, which has this form.
        let received = unsafe { libc::ioctl(listener.as_raw_fd(), RECEIVE as _, &raw mut notice) };
        if received != 0 {
            // Its thread was killed meanwhile.
            continue;
        }
        let errno = state.lock().unwrap_or_else(PoisonError::into_inner).decide(&notice);
        let mut answer = Answer {
            id: notice.id,
            value: 0,
            error: errno.map_or(0, |errno| -errno),
            flags: if errno.is_none() { CONTINUE } else { 0 },
        };
        // SAFETY: the kernel reads an answer, which has this form. It fails where the thread is gone.
        unsafe { libc::ioctl(listener.as_raw_fd(), SEND as _, &raw mut answer) };
    }
}

impl State {
    /// The number that a call is to fail with, if it is.
    fn decide(&mut self, notice: &Notice) -> Option<i32> {
        let call = CALLS.iter().find(|call| i64::from(call.number) == i64::from(notice.number))?;
        let cannot_fail = match call.number {
            MMAP => notice.arguments[1] < SMALL,
            EPOLL_CTL => notice.arguments[1] != ADD,
            READ | WRITE => notice.arguments[2] == COUNTER,
            _ => false,
        };
        if cannot_fail {
            return None;
        }
        let at = self.seen;
        self.seen += 1;
        let fault = self.fault.filter(|fault| fault.after == at)?;
        let errno = call.errnos[fault.kind % call.errnos.len()];
        let request = match call.number {
            IOCTL => format!(" {:#x}", notice.arguments[1] as u32),
            _ => String::new(),
        };
        self.injected = Some(Injected { call: format!("{}{request}", call.name), errno });
        Some(errno)
    }
}
