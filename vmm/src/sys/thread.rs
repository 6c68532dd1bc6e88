//! Starts the threads of both programs.
//!
//! A signal to the process goes to any thread that does not block it (`complete_signal` in Linux
//! `kernel/signal.c`). A thread that is started with the mask of its parent takes SIGTERM whenever the
//! parent was early, and the process dies without having cleaned up. So each thread starts with all
//! asynchronous signals blocked, whatever its parent's mask is: the main thread alone takes them.
#![allow(unsafe_code)]

use std::cell::Cell;
use std::io;
use std::mem::MaybeUninit;
use std::sync::OnceLock;
use std::thread::{Builder, JoinHandle, Scope, ScopedJoinHandle};

/// Raised by what the thread itself does. Blocked, each would end the process past its handler
/// (`force_sig_info_to_task` in Linux `kernel/signal.c`).
const SYNCHRONOUS: [libc::c_int; 6] =
    [libc::SIGBUS, libc::SIGFPE, libc::SIGILL, libc::SIGSEGV, libc::SIGSYS, libc::SIGTRAP];

/// What a thread is for. What it may do follows from it.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Role {
    /// The main thread of a VM.
    Main,
    /// A vCPU.
    Vcpu,
    /// It reserves tag storage for memory that is touched.
    Faults,
    /// It loads memory that is touched.
    Loader,
    /// A disk.
    Disk,
    /// A network interface.
    Net,
    /// Sockets of the guest.
    Vsock,
    /// It looks for a broker.
    BrokerClient,
    /// It counts memory.
    Footprint,
    /// The main thread of a broker.
    Broker,
    /// A connection of a broker.
    BrokerSession,
    /// The main thread of the holder of a template.
    Template,
}

/// All of them.
pub const ROLES: [Role; 12] = [
    Role::Main,
    Role::Vcpu,
    Role::Faults,
    Role::Loader,
    Role::Disk,
    Role::Net,
    Role::Vsock,
    Role::BrokerClient,
    Role::Footprint,
    Role::Broker,
    Role::BrokerSession,
    Role::Template,
];

/// What each thread does first. There is one for the process, set before its first thread starts.
static FIRST: OnceLock<fn(Role)> = OnceLock::new();

thread_local! {
    /// Whether this thread is confined. The kernel has a new thread be confined as the one that starts it is.
    static IS_CONFINED: Cell<bool> = const { Cell::new(false) };
}

/// Whether the calling thread is confined, by itself or as the one that has started it was.
pub(crate) fn is_confined() -> bool {
    IS_CONFINED.get()
}

/// Notes that the calling thread is confined, for the threads that it starts.
pub(crate) fn set_confined() {
    IS_CONFINED.set(true);
}

/// Has each thread that starts from here on call this first.
pub(crate) fn at_start(first: fn(Role)) {
    // A second one is the same, by another test of this process.
    let _ = FIRST.set(first);
}

fn starting(role: Role, is_confined: bool) {
    IS_CONFINED.set(is_confined);
    if let Some(first) = FIRST.get() {
        first(role);
    }
}

/// Starts a thread that takes no asynchronous signal. `stack` is in bytes.
///
/// # Errors
/// When the host refuses a thread.
pub fn spawn(
    role: Role,
    name: impl Into<String>,
    stack: usize,
    body: impl FnOnce() + Send + 'static,
) -> io::Result<JoinHandle<()>> {
    let (_blocked, is_confined) = (Blocked::new()?, is_confined());
    Builder::new().name(name.into()).stack_size(stack).spawn(move || {
        starting(role, is_confined);
        body();
    })
}

/// As [`spawn`], in a scope.
///
/// # Errors
/// When the host refuses a thread.
pub(crate) fn spawn_scoped<'scope>(
    scope: &'scope Scope<'scope, '_>,
    role: Role,
    name: impl Into<String>,
    stack: usize,
    body: impl FnOnce() + Send + 'scope,
) -> io::Result<ScopedJoinHandle<'scope, ()>> {
    let (_blocked, is_confined) = (Blocked::new()?, is_confined());
    Builder::new().name(name.into()).stack_size(stack).spawn_scoped(scope, move || {
        starting(role, is_confined);
        body();
    })
}

/// Blocks the signals in the calling thread, whose mask a new thread inherits, until it is dropped.
struct Blocked {
    before: libc::sigset_t,
}

impl Blocked {
    fn new() -> io::Result<Self> {
        let mut set = MaybeUninit::<libc::sigset_t>::uninit();
        let mut before = MaybeUninit::<libc::sigset_t>::uninit();
        // SAFETY: `sigfillset` initialises the set before the other calls read it, the signal numbers are
        // valid, and `before` is large enough for the mask that the last call writes.
        let result = unsafe {
            libc::sigfillset(set.as_mut_ptr());
            for signal in SYNCHRONOUS {
                libc::sigdelset(set.as_mut_ptr(), signal);
            }
            libc::pthread_sigmask(libc::SIG_SETMASK, set.as_ptr(), before.as_mut_ptr())
        };
        if result != 0 {
            return Err(io::Error::from_raw_os_error(result));
        }
        // SAFETY: the call succeeded, so it has written the mask.
        Ok(Self { before: unsafe { before.assume_init() } })
    }
}

impl Drop for Blocked {
    fn drop(&mut self) {
        // SAFETY: the mask was written by the kernel; no mask is written back. With a valid set and a
        // valid `how` the call cannot fail.
        unsafe { libc::pthread_sigmask(libc::SIG_SETMASK, &self.before, std::ptr::null_mut()) };
    }
}

#[cfg(test)]
mod tests;
