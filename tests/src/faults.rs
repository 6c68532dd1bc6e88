//! Has system calls of a process fail, one at a time.
//!
//! The process runs under a filter that asks a listener what becomes of each call that can fail (seccomp(2),
//! "Seccomp user-space notification"). The listener counts them, lets them through, and has one of them fail with a
//! number, or do half of what it was asked for, as if the kernel had. The process is as it is built: nothing in it knows of this.
//!
//! # References
//! seccomp_unotify(2); include/uapi/linux/seccomp.h
#![allow(unsafe_code)]

mod short;

use std::fmt;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
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

const KVM_RUN: u32 = 0xae80;
/// What adds to an epoll(7) (`EPOLL_CTL_ADD`): of epoll_ctl(2) that alone takes memory, and fails without a defect of the caller's.
const ADD: u64 = 1;
/// What is read from and written to an eventfd or a timerfd, which do not fail: eventfd(2).
const COUNTER: u64 = 8;
/// Memory of the allocator and of threads, which is not asked about: without it no Rust program continues. Guest memory
/// is larger.
const SMALL: u64 = 16 << 20;

/// A system call and what it may answer when it fails.
struct Call {
    number: libc::c_long,
    name: &'static str,
    errnos: &'static [i32],
}

const fn call(number: libc::c_long, name: &'static str, errnos: &'static [i32]) -> Call {
    Call { number, name, errnos }
}

/// What can fail (include/uapi/asm-generic/unistd.h; the numbers from their manual pages). Left out are calls of which
/// the C library and Rust's know no failure (futex, exit, rt_sigprocmask, gettid), and those that only ever fail for a
/// defect of the caller (close, munmap, getpid).
const CALLS: &[Call] = &[
    call(libc::SYS_eventfd2, "eventfd2", &[EMFILE, ENOMEM]),
    call(libc::SYS_epoll_create1, "epoll_create1", &[EMFILE, ENOMEM]),
    call(libc::SYS_epoll_ctl, "epoll_ctl", &[ENOMEM, ENOSPC]),
    call(libc::SYS_epoll_pwait, "epoll_pwait", &[EINTR]),
    call(libc::SYS_fcntl, "fcntl", &[EINVAL, EMFILE, EAGAIN]),
    call(libc::SYS_ioctl, "ioctl", &[EINTR, ENOMEM, EINVAL, EIO, EFAULT, EBUSY]),
    call(libc::SYS_flock, "flock", &[EAGAIN, EINTR]),
    call(libc::SYS_unlinkat, "unlinkat", &[EACCES, ENOENT]),
    call(libc::SYS_linkat, "linkat", &[EEXIST, EACCES, EROFS]),
    call(libc::SYS_ftruncate, "ftruncate", &[ENOSPC, EIO, EINTR]),
    call(libc::SYS_fallocate, "fallocate", &[ENOSPC, EOPNOTSUPP, EINTR]),
    call(libc::SYS_fchmod, "fchmod", &[EPERM, EROFS]),
    call(libc::SYS_openat, "openat", &[EACCES, ENOENT, EMFILE, EINTR, ENOMEM]),
    call(libc::SYS_pipe2, "pipe2", &[EMFILE, ENFILE]),
    call(libc::SYS_getdents64, "getdents64", &[EIO, ENOENT]),
    call(libc::SYS_lseek, "lseek", &[EINVAL]),
    call(libc::SYS_read, "read", &[EINTR, EIO, EAGAIN]),
    call(libc::SYS_write, "write", &[EINTR, EIO, EPIPE, ENOSPC, EAGAIN]),
    call(libc::SYS_readv, "readv", &[EINTR, EIO]),
    call(libc::SYS_writev, "writev", &[EINTR, EIO, ENOSPC]),
    call(libc::SYS_pread64, "pread64", &[EINTR, EIO]),
    call(libc::SYS_pwrite64, "pwrite64", &[EINTR, EIO, ENOSPC]),
    call(libc::SYS_preadv, "preadv", &[EINTR, EIO]),
    call(libc::SYS_pwritev, "pwritev", &[EINTR, EIO, ENOSPC]),
    call(libc::SYS_ppoll, "ppoll", &[EINTR, ENOMEM]),
    call(libc::SYS_newfstatat, "newfstatat", &[ENOENT, EACCES]),
    call(libc::SYS_fstat, "fstat", &[EIO, ENOMEM]),
    call(libc::SYS_fsync, "fsync", &[EIO, ENOSPC]),
    call(libc::SYS_fdatasync, "fdatasync", &[EIO, ENOSPC]),
    call(libc::SYS_timerfd_create, "timerfd_create", &[EMFILE, ENOMEM]),
    call(libc::SYS_timerfd_settime, "timerfd_settime", &[EINVAL]),
    call(libc::SYS_nanosleep, "nanosleep", &[EINTR]),
    call(libc::SYS_clock_nanosleep, "clock_nanosleep", &[EINTR]),
    call(libc::SYS_kill, "kill", &[EPERM]),
    call(libc::SYS_prctl, "prctl", &[EINVAL, EPERM]),
    call(libc::SYS_socket, "socket", &[EMFILE, EACCES, ENOMEM]),
    call(libc::SYS_socketpair, "socketpair", &[EMFILE]),
    call(libc::SYS_bind, "bind", &[EACCES, ENOENT, EROFS]),
    call(libc::SYS_listen, "listen", &[EINVAL]),
    call(libc::SYS_connect, "connect", &[ECONNREFUSED, EAGAIN, EINTR, EACCES]),
    call(libc::SYS_sendto, "sendto", &[EPIPE, EINTR, ECONNRESET]),
    call(libc::SYS_recvfrom, "recvfrom", &[ECONNRESET, EINTR, EAGAIN]),
    call(libc::SYS_setsockopt, "setsockopt", &[EINVAL, ENOMEM]),
    call(libc::SYS_getsockopt, "getsockopt", &[EINVAL]),
    call(libc::SYS_sendmsg, "sendmsg", &[EPIPE, EINTR, EAGAIN]),
    call(libc::SYS_recvmsg, "recvmsg", &[ECONNRESET, EINTR, EAGAIN]),
    call(libc::SYS_mremap, "mremap", &[ENOMEM]),
    call(libc::SYS_clone, "clone", &[EAGAIN, ENOMEM]),
    call(libc::SYS_mmap, "mmap", &[ENOMEM, EAGAIN]),
    call(libc::SYS_mlock, "mlock", &[ENOMEM, EPERM]),
    call(libc::SYS_madvise, "madvise", &[EINVAL, ENOMEM, EAGAIN]),
    call(libc::SYS_mbind, "mbind", &[EPERM, ENOMEM]),
    call(libc::SYS_accept4, "accept4", &[EMFILE, ECONNABORTED, EINTR, EPERM]),
    call(libc::SYS_wait4, "wait4", &[EINTR]),
    call(libc::SYS_prlimit64, "prlimit64", &[EPERM]),
    call(libc::SYS_renameat2, "renameat2", &[EACCES, EROFS, ENOSPC, EINVAL]),
    call(libc::SYS_seccomp, "seccomp", &[EINVAL, ENOMEM]),
    // EAGAIN is for GRND_NONBLOCK alone, which Rust's library does not give.
    call(libc::SYS_getrandom, "getrandom", &[EINTR]),
    call(libc::SYS_memfd_create, "memfd_create", &[EMFILE, ENOMEM]),
    call(libc::SYS_userfaultfd, "userfaultfd", &[EPERM, ENOSYS, EMFILE]),
    call(libc::SYS_statx, "statx", &[ENOENT, EACCES]),
    call(libc::SYS_pidfd_open, "pidfd_open", &[EMFILE, ETIMEDOUT]),
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

/// One call that is to fail: the next but so many, in one of the ways that it may.
#[derive(Clone, Copy, Debug)]
pub struct Fault {
    /// Calls that are let through before it.
    pub after: usize,
    /// Which of the call's numbers, counted around; after them, for what moves bytes, half of them.
    pub kind: usize,
}

/// A call that was made to fail.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Injected {
    /// The name of the call, and the request of an ioctl(2).
    pub call: String,
    /// What it gave.
    pub given: Given,
}

/// What a call that was made to fail has given.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Given {
    /// A number of errno(3).
    Errno(i32),
    /// So many bytes, half of what it was asked for at most.
    Bytes(i64),
}

/// A call that was let through or failed.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
struct Seen {
    number: libc::c_long,
    /// The request of an ioctl(2), 0 of other calls.
    request: u32,
    /// In how many ways it may fail.
    ways: usize,
}

/// Calls that were let through or failed.
#[derive(Clone, Default)]
pub struct Calls(Vec<Seen>);

impl Calls {
    /// How many there are.
    pub fn count(&self) -> usize {
        self.0.len()
    }

    /// Each call fails, in each of its ways; of a series, its ends.
    pub fn all_faults(&self) -> Vec<Fault> {
        let ways = |after: usize| (0..self.0[after].ways).map(move |kind| Fault { after, kind });
        self.ends().into_iter().flat_map(ways).collect()
    }

    /// At least so many calls fail, or as many as there are, at equal distances, each in the next of its ways; of a series,
    /// its ends.
    pub fn some_faults(&self, least: usize) -> Vec<Fault> {
        let ends = self.ends();
        let step = (ends.len() / least).max(1);
        let calls = ends.into_iter().step_by(step).enumerate();
        calls.map(|(kind, after)| Fault { after, kind }).collect()
    }

    /// The calls but for those between two that are the same: a loop over registers fails at any of them in the same
    /// way, and one vCPU has hundreds.
    fn ends(&self) -> Vec<usize> {
        let same = |one: usize, other: usize| self.0.get(one) == self.0.get(other);
        let inside = |at: usize| at > 0 && same(at - 1, at) && same(at, at + 1);
        (0..self.count()).filter(|at| !inside(*at)).collect()
    }
}

impl fmt::Debug for Calls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} calls, {} without those inside of series", self.count(), self.ends().len())
    }
}

#[derive(Default)]
struct State {
    /// Those since the last [`Injector::arm`].
    seen: Calls,
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
        let process = child.id();
        let listener = Arc::new(copy_of(process, LISTENER)?);
        let state = Arc::new(Mutex::new(State { fault, ..State::default() }));
        let decides = Arc::clone(&state);
        let thread = std::thread::spawn(move || decide(process, &listener, &decides));
        Ok((child, Self { state, thread: Some(thread) }))
    }

    /// Begins to count anew, and has a call fail.
    pub fn arm(&self, fault: Option<Fault>) {
        *lock(&self.state) = State { fault, ..State::default() };
    }

    /// The calls since it was armed.
    pub fn seen(&self) -> Calls {
        lock(&self.state).seen.clone()
    }

    /// What has failed since it was armed.
    pub fn injected(&self) -> Option<Injected> {
        lock(&self.state).injected.clone()
    }

    /// Waits until no process is left that it decides for.
    pub fn join(mut self) {
        if let Some(thread) = self.thread.take() {
            thread.join().expect("the injector's thread");
        }
    }
}

fn lock(state: &Mutex<State>) -> MutexGuard<'_, State> {
    state.lock().unwrap_or_else(PoisonError::into_inner)
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
        line(EQUAL, 0, 3, libc::SYS_ioctl as u32),
        line(LOAD, 0, 0, 16 + 8),
        line(EQUAL, 0, 1, KVM_RUN),
        line(RETURN, 0, 0, ALLOW),
        line(LOAD, 0, 0, 0),
    ];
    for call in CALLS {
        lines.push(line(EQUAL, 0, 1, call.number as u32));
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

/// A descriptor of what a process has open.
fn copy_of(process: u32, descriptor: RawFd) -> io::Result<OwnedFd> {
    // SAFETY: the kernel gives descriptors that nothing else has.
    unsafe {
        let pidfd = libc::syscall(libc::SYS_pidfd_open, process, 0);
        if pidfd < 0 {
            return Err(io::Error::last_os_error());
        }
        let pidfd = OwnedFd::from_raw_fd(pidfd as RawFd);
        match libc::syscall(libc::SYS_pidfd_getfd, pidfd.as_raw_fd(), descriptor, 0) {
            -1 => Err(io::Error::last_os_error()),
            copy => Ok(OwnedFd::from_raw_fd(copy as RawFd)),
        }
    }
}

/// Answers until no process is left.
fn decide(process: u32, listener: &Arc<OwnedFd>, state: &Arc<Mutex<State>>) {
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
        let verdict = lock(state).judge(&notice);
        match verdict {
            Verdict::Continue => answer(listener, &notice, None),
            Verdict::Fail(injected) => {
                let given = injected.given;
                lock(state).injected = Some(injected);
                answer(listener, &notice, Some(given));
            }
            // Memory that it reads or writes may be waited for, by the leave of calls of other threads.
            Verdict::Halve(call) => {
                let (listener, state) = (Arc::clone(listener), Arc::clone(state));
                std::thread::spawn(move || {
                    let given = short::halve(process, &notice).map(Given::Bytes);
                    if let Some(given) = given {
                        let injected = Some(Injected { call, given });
                        lock(&state).injected = injected;
                    }
                    answer(&listener, &notice, given);
                });
            }
        }
    }
}

/// Has a call give this, or do what it is asked for.
fn answer(listener: &OwnedFd, notice: &Notice, given: Option<Given>) {
    let (value, error, flags) = match given {
        None => (0, 0, CONTINUE),
        Some(Given::Errno(errno)) => (0, -errno, 0),
        Some(Given::Bytes(count)) => (count, 0, 0),
    };
    let mut answer = Answer { id: notice.id, value, error, flags };
    // SAFETY: the kernel reads an answer, which has this form. It fails where the thread is gone.
    unsafe { libc::ioctl(listener.as_raw_fd(), SEND as _, &raw mut answer) };
}

/// What becomes of a call.
enum Verdict {
    Continue,
    Fail(Injected),
    /// It is to do half of what it is asked for. Its name.
    Halve(String),
}

impl State {
    fn judge(&mut self, notice: &Notice) -> Verdict {
        let number = libc::c_long::from(notice.number);
        let Some(call) = CALLS.iter().find(|call| call.number == number) else {
            return Verdict::Continue;
        };
        let cannot_fail = match call.number {
            libc::SYS_mmap => notice.arguments[1] < SMALL,
            libc::SYS_epoll_ctl => notice.arguments[1] != ADD,
            libc::SYS_read | libc::SYS_write => notice.arguments[2] == COUNTER,
            _ => false,
        };
        if cannot_fail {
            return Verdict::Continue;
        }
        let ways = call.errnos.len() + usize::from(short::is_transfer(call.number));
        let at = self.seen.count();
        let request = match call.number {
            libc::SYS_ioctl => notice.arguments[1] as u32,
            _ => 0,
        };
        self.seen.0.push(Seen { number, request, ways });
        let Some(fault) = self.fault.filter(|fault| fault.after == at) else {
            return Verdict::Continue;
        };
        let name = match call.number {
            libc::SYS_ioctl => format!("{} {request:#x}", call.name),
            _ => call.name.to_owned(),
        };
        match call.errnos.get(fault.kind % ways) {
            Some(errno) => Verdict::Fail(Injected { call: name, given: Given::Errno(*errno) }),
            None => Verdict::Halve(name),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn calls(numbers: &[libc::c_long]) -> Calls {
        Calls(numbers.iter().map(|number| Seen { number: *number, request: 0, ways: 2 }).collect())
    }

    #[test]
    fn of_a_series_its_ends_fail() {
        let ends = |numbers: &[libc::c_long]| calls(numbers).ends();

        assert_eq!(ends(&[]), [0; 0]);
        assert_eq!(ends(&[1]), [0]);
        assert_eq!(ends(&[1, 1]), [0, 1]);
        assert_eq!(ends(&[1, 2, 2, 2, 2, 3, 3]), [0, 1, 4, 5, 6]);
        assert_eq!(ends(&[2, 2, 2]), [0, 2]);
    }

    #[test]
    fn every_end_fails_in_each_way_or_at_least_so_many_in_one() {
        let calls = calls(&[1, 2, 2, 2, 3]);
        let faults = |faults: Vec<Fault>| -> Vec<(usize, usize)> {
            faults.into_iter().map(|fault| (fault.after, fault.kind)).collect()
        };

        let all = faults(calls.all_faults());
        assert_eq!(all, [(0, 0), (0, 1), (1, 0), (1, 1), (3, 0), (3, 1), (4, 0), (4, 1)]);
        assert_eq!(faults(calls.some_faults(2)), [(0, 0), (3, 1)]);
        assert_eq!(calls.some_faults(9).len(), 4);
    }
}
