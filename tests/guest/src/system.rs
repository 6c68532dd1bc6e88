//! System calls that the standard library does not offer.
#![allow(unsafe_code)]

use std::ffi::CString;
use std::fs;
use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::thread;
use std::time::Duration;

/// How the guest ends.
#[derive(Clone, Copy, Debug)]
pub(crate) enum End {
    /// PSCI SYSTEM_OFF.
    PowerOff,
    /// PSCI SYSTEM_RESET.
    Reboot,
}

/// Mounts the file systems of the kernel, and memory for /tmp and /run.
///
/// # Errors
/// The first one that fails; those mounted before (devtmpfs by the kernel) are no failure.
pub(crate) fn mount_all() -> io::Result<()> {
    for (kind, path) in [
        ("proc", "/proc"),
        ("sysfs", "/sys"),
        ("devtmpfs", "/dev"),
        ("devpts", "/dev/pts"),
        ("tmpfs", "/tmp"),
        ("tmpfs", "/run"),
    ] {
        // Only a folder that cannot be made matters, and then the mount says so.
        let _ = fs::create_dir_all(path);
        match mount(kind, path) {
            Err(error) if error.raw_os_error() != Some(libc::EBUSY) => {
                return Err(io::Error::new(error.kind(), format!("{kind} on {path}: {error}")));
            }
            _ => {}
        }
    }
    Ok(())
}

fn mount(kind: &str, path: &str) -> io::Result<()> {
    let kind = CString::new(kind)?;
    let path = CString::new(path)?;
    // SAFETY: both strings end with NUL and live through the call; the data argument may be null.
    let status =
        unsafe { libc::mount(kind.as_ptr(), path.as_ptr(), kind.as_ptr(), 0, std::ptr::null()) };
    check(status.into())
}

/// Loads a module file without parameters (finit_module(2)).
///
/// # Errors
/// The kernel's reason; a module that is there already is no error.
pub(crate) fn load_module(file: &File) -> io::Result<()> {
    // SAFETY: the descriptor is open, and the parameter string ends with NUL.
    let status =
        unsafe { libc::syscall(libc::SYS_finit_module, file.as_raw_fd(), c"".as_ptr(), 0) };
    match check(status) {
        Err(error) if error.raw_os_error() == Some(libc::EEXIST) => Ok(()),
        other => other,
    }
}

/// Writes all to disk and ends the guest. Does not return; where the kernel refuses, the guest sleeps.
pub(crate) fn end(end: End) -> ! {
    let command = match end {
        End::PowerOff => libc::RB_POWER_OFF,
        End::Reboot => libc::RB_AUTOBOOT,
    };
    // SAFETY: sync takes nothing and cannot fail.
    unsafe { libc::sync() };
    // SAFETY: reboot takes a number only. This program is PID 1 of a guest: ending it is its task.
    unsafe { libc::reboot(command) };
    sleep_forever()
}

/// Waits for a child of this process, or one that was left to it; its number and its status (wait(2)).
///
/// # Errors
/// When there is none.
pub(crate) fn wait_for_any() -> io::Result<(i32, i32)> {
    let mut status = 0;
    // SAFETY: the pointer is to an integer of ours.
    let pid = unsafe { libc::wait(&raw mut status) };
    if pid < 0 { Err(io::Error::last_os_error()) } else { Ok((pid, status)) }
}

/// SIGUSR2, by which programs ask an init to power off.
pub(crate) struct PowerOffSignal(libc::sigset_t);

impl PowerOffSignal {
    /// Keeps the signal for [`PowerOffSignal::wait`]: for this thread and those that it starts later.
    ///
    /// # Errors
    /// The kernel's.
    pub(crate) fn block() -> io::Result<Self> {
        // SAFETY: a set of signals is plain integers; sigemptyset makes it a valid one.
        let mut set: libc::sigset_t = unsafe { std::mem::zeroed() };
        // SAFETY: the set is ours; the call that blocks reads it and writes nothing.
        let status = unsafe {
            libc::sigemptyset(&raw mut set);
            libc::sigaddset(&raw mut set, libc::SIGUSR2);
            libc::pthread_sigmask(libc::SIG_BLOCK, &raw const set, std::ptr::null_mut())
        };
        match status {
            0 => Ok(Self(set)),
            error => Err(io::Error::from_raw_os_error(error)),
        }
    }

    /// Waits for it.
    pub(crate) fn wait(&self) {
        let mut signal = 0;
        // SAFETY: set and number are ours, and live through the call.
        unsafe { libc::sigwait(&raw const self.0, &raw mut signal) };
    }
}

/// Waits without end; the guest must not lose its PID 1.
pub(crate) fn sleep_forever() -> ! {
    loop {
        thread::sleep(Duration::from_secs(3600));
    }
}

/// The guest's monotonic clock in ns, 0 at boot.
pub(crate) fn monotonic_ns() -> u64 {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the pointer is to a timespec of ours; this clock always exists.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &raw mut time) };
    let (seconds, rest) = (u64::try_from(time.tv_sec), u64::try_from(time.tv_nsec));
    seconds.unwrap_or(0).saturating_mul(1_000_000_000).saturating_add(rest.unwrap_or(0))
}

/// The size of a page in bytes.
pub(crate) fn page_size() -> usize {
    // SAFETY: sysconf takes a number and has no side effect.
    let size = unsafe { libc::sysconf(libc::_SC_PAGESIZE) };
    // 4096 is the smallest of the architecture.
    usize::try_from(size).unwrap_or(4096)
}

/// Whether random numbers are to be had already (getrandom(2), `GRND_NONBLOCK`).
pub(crate) fn random_ready() -> bool {
    let mut byte = 0u8;
    // SAFETY: the buffer is one byte of ours.
    let got = unsafe { libc::getrandom((&raw mut byte).cast(), 1, libc::GRND_NONBLOCK) };
    got == 1
}

/// A random number.
///
/// # Errors
/// When the kernel has none, or a signal came first.
pub(crate) fn random_word() -> io::Result<u64> {
    let mut bytes = [0u8; 8];
    // SAFETY: the buffer is ours and of the length given.
    let got = unsafe { libc::getrandom(bytes.as_mut_ptr().cast(), bytes.len(), 0) };
    match usize::try_from(got) {
        Ok(got) if got == bytes.len() => Ok(u64::from_ne_bytes(bytes)),
        Ok(_) => Err(io::ErrorKind::Interrupted.into()),
        Err(_) => Err(io::Error::last_os_error()),
    }
}

/// How a child ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ChildEnd {
    /// Its work was done.
    Done,
    /// By SIGSEGV.
    Segfault,
    /// In another way.
    Other,
}

/// Has a child, which is a copy of this process, do some work that returns whether it is done; how it ended. The work
/// may make system calls and touch memory, and nothing else: of the threads there is only this one in the child
/// (fork(2)).
///
/// # Errors
/// When there is no child.
pub(crate) fn child_ends_by(work: impl FnOnce() -> bool) -> io::Result<ChildEnd> {
    // SAFETY: the child runs nothing but the work, which keeps to the rule above, and _exit.
    let pid = unsafe { libc::fork() };
    match pid {
        -1 => return Err(io::Error::last_os_error()),
        0 => {
            let status = i32::from(!work());
            // SAFETY: ends the child at once; nothing of it is used after that.
            unsafe { libc::_exit(status) };
        }
        _ => {}
    }
    let mut status = 0;
    // SAFETY: the pointer is to an integer of ours, and the child is ours.
    let waited = unsafe { libc::waitpid(pid, &raw mut status, 0) };
    check(waited.into())?;
    Ok(if libc::WIFSIGNALED(status) && libc::WTERMSIG(status) == libc::SIGSEGV {
        ChildEnd::Segfault
    } else if libc::WIFEXITED(status) && libc::WEXITSTATUS(status) == 0 {
        ChildEnd::Done
    } else {
        ChildEnd::Other
    })
}

/// Binds the calling thread to processor `cpu`, and returns the one it then runs on.
///
/// # Errors
/// When the processor is not online.
pub(crate) fn run_on(cpu: usize) -> io::Result<usize> {
    // SAFETY: a cpu_set_t is a plain array of bits, for which zeros are a value.
    let mut set: libc::cpu_set_t = unsafe { std::mem::zeroed() };
    let bits = size_of::<libc::cpu_set_t>().saturating_mul(8);
    if cpu >= bits {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    // SAFETY: `cpu` lies within the set, as checked above.
    unsafe { libc::CPU_SET(cpu, &mut set) };
    // SAFETY: the set is ours and of the size given; 0 is the calling thread.
    let status =
        unsafe { libc::sched_setaffinity(0, size_of::<libc::cpu_set_t>(), &raw const set) };
    check(status.into())?;
    // SAFETY: takes nothing.
    let current = unsafe { libc::sched_getcpu() };
    usize::try_from(current).map_err(|_| io::Error::last_os_error())
}

/// Has the calling thread run when no other of its processor wants to.
///
/// # Errors
/// The kernel's.
pub(crate) fn yield_to_others() -> io::Result<()> {
    // The kernel's `struct sched_param` is this number alone (include/uapi/linux/sched/types.h).
    let priority: libc::c_int = 0;
    // SAFETY: the number is ours; 0 is the calling thread.
    let status = unsafe {
        libc::syscall(libc::SYS_sched_setscheduler, 0, libc::SCHED_IDLE, &raw const priority)
    };
    check(status)
}

/// A request of the GPIO character device for one input line whose rising edges are events.
///
/// The layout of `struct gpio_v2_line_request` (include/uapi/linux/gpio.h); the arrays this program leaves
/// empty are written as words.
#[repr(C)]
struct LineRequest {
    offsets: [u32; 64],
    consumer: [u8; 32],
    flags: u64,
    attributes: [u32; 66],
    lines: u32,
    event_buffer_size: u32,
    padding: [u32; 5],
    fd: i32,
}

/// `GPIO_V2_GET_LINE_IOCTL`: `_IOWR(0xB4, 0x07, struct gpio_v2_line_request)`.
const GET_LINE: u32 = 0xC000_0000 | ((size_of::<LineRequest>() as u32) << 16) | (0xB4 << 8) | 0x07;
const LINE_INPUT: u64 = 1 << 2;
const LINE_EDGE_RISING: u64 = 1 << 4;

/// Takes line `offset` of a GPIO chip; each rising edge is 48 bytes to read from the file returned.
///
/// # Errors
/// When the line does not exist or is taken.
pub(crate) fn rising_edges(chip: &File, offset: u32) -> io::Result<File> {
    use std::os::fd::FromRawFd;
    let mut request = LineRequest {
        offsets: [0; 64],
        consumer: [0; 32],
        flags: LINE_INPUT | LINE_EDGE_RISING,
        attributes: [0; 66],
        lines: 1,
        event_buffer_size: 0,
        padding: [0; 5],
        fd: -1,
    };
    if let Some(first) = request.offsets.first_mut() {
        *first = offset;
    }
    for (target, byte) in request.consumer.iter_mut().zip(b"guest-init power key") {
        *target = *byte;
    }
    // SAFETY: the request has the size and layout that the number of the ioctl names, and lives through it.
    let status = unsafe { libc::ioctl(chip.as_raw_fd(), GET_LINE as _, &raw mut request) };
    check(status.into())?;
    // SAFETY: on success the kernel has put a new descriptor there, which has no other owner.
    Ok(unsafe { File::from_raw_fd(request.fd) })
}

fn check(status: libc::c_long) -> io::Result<()> {
    if status == -1 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_line_request_has_the_kernels_size_and_number() {
        assert_eq!(size_of::<LineRequest>(), 592);
        assert_eq!(GET_LINE, 0xC250_B407);
        assert_eq!(std::mem::offset_of!(LineRequest, flags), 288);
        assert_eq!(std::mem::offset_of!(LineRequest, lines), 560);
        assert_eq!(std::mem::offset_of!(LineRequest, fd), 588);
    }

    #[test]
    fn the_clock_runs_forward() {
        let first = monotonic_ns();
        assert!(first > 0 && monotonic_ns() >= first);
    }

    #[test]
    fn the_end_of_a_child_is_told_apart() {
        // The first one ends at the standard library's handler, which looks for an overflow of the stack.
        // SAFETY: raise sends a signal to the child itself.
        let dies = || unsafe { libc::raise(libc::SIGSEGV) + libc::raise(libc::SIGSEGV) } == 0;

        let ends = [child_ends_by(|| true), child_ends_by(|| false), child_ends_by(dies)];

        let ends = ends.map(|end| end.ok());
        assert_eq!(ends, [ChildEnd::Done, ChildEnd::Other, ChildEnd::Segfault].map(Some));
        assert_ne!(random_word().ok(), random_word().ok());
    }

    #[test]
    fn a_thread_runs_where_it_is_bound() {
        assert_eq!(run_on(0).ok(), Some(0));
        assert!(run_on(usize::MAX).is_err());
    }
}
