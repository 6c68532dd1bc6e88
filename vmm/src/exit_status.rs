//! How a `tessera` process ends, as its exit status.

use std::io;
use std::process::ExitCode;

/// Why the process ended. Each reason has a code of its own, so that a script can tell a guest
/// that powered off from one that crashed and from a VM that never started.
///
/// Refusals use the numbers of `sysexits.h`, which is what other tools use for the same causes.
/// Codes 1 and 2 are never used: a shell gives them for its own failures.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
#[repr(u8)]
pub enum ExitStatus {
    /// The guest powered off (PSCI SYSTEM_OFF), or the command did what was asked.
    Success = 0,
    /// The guest asked for a reset (PSCI SYSTEM_RESET). The VM is not restarted.
    GuestReset = 10,
    /// The guest's kernel panicked.
    GuestPanic = 11,
    /// The host ended the VM: `Stop` on the control socket, or the terminal's escape key.
    Stopped = 12,
    /// `tessera doctor` found something that keeps guests from running.
    DoctorFailed = 13,
    /// The host had no tag storage for memory that the guest touched (`--on-exhausted kill`), or could no
    /// longer reserve any.
    TagStorage = 14,
    /// The host could not give a page of memory that was touched: it is poisoned, its huge page is gone, it
    /// cannot be read back from swap.
    MemoryFault = 15,
    /// A thread made a system call that it has no need of: its filter does not allow it.
    SystemCall = 16,
    /// The command line is wrong (`EX_USAGE`).
    Usage = 64,
    /// A kernel, an initrd or a snapshot has the wrong form or does not fit (`EX_DATAERR`).
    BadImage = 65,
    /// A file that was named cannot be read (`EX_NOINPUT`).
    NoInput = 66,
    /// The host lacks what the VM needs: KVM, MTE, the architecture, vCPUs, memory (`EX_UNAVAILABLE`).
    Unavailable = 69,
    /// The VMM met an exit that it does not handle, or an error of its own (`EX_SOFTWARE`).
    VmmFault = 70,
    /// A console or a socket cannot be created (`EX_CANTCREAT`).
    CannotCreate = 73,
    /// Output was lost while the VM ran, for instance on a full disk (`EX_IOERR`).
    Io = 74,
    /// The user may not do this (`EX_NOPERM`).
    NoPermission = 77,
    /// A configuration, from a file or from flags, that makes no sense (`EX_CONFIG`).
    Config = 78,
    /// SIGHUP.
    Hangup = 129,
    /// SIGINT, as a shell reports it.
    Interrupted = 130,
    /// SIGQUIT.
    Quit = 131,
    /// SIGTERM.
    Terminated = 143,
}

impl ExitStatus {
    /// The status for a named file that cannot be read.
    pub fn for_input(error: io::ErrorKind) -> Self {
        match error {
            io::ErrorKind::PermissionDenied => Self::NoPermission,
            _ => Self::NoInput,
        }
    }

    /// The status for an output that cannot be created.
    pub fn for_output(error: io::ErrorKind) -> Self {
        match error {
            io::ErrorKind::PermissionDenied => Self::NoPermission,
            io::ErrorKind::StorageFull => Self::Io,
            _ => Self::CannotCreate,
        }
    }
}

impl From<ExitStatus> for ExitCode {
    fn from(status: ExitStatus) -> Self {
        Self::from(status as u8)
    }
}

#[cfg(test)]
mod tests;
