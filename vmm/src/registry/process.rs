//! The process of a VM: held by a descriptor, so that a number that is used again is never meant.

use std::fs::File;
use std::io::Read;
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, Signal, Uid, pidfd_open, pidfd_send_signal};

use super::directory::system;
use super::{Directory, Error, Vm};
use crate::sys::peer;

/// The longest line of `/proc/PID/stat`: 52 numbers of 20 digits.
const LONGEST_STAT: u64 = 2 << 10;
/// Fields of it between the state, which follows the name, and the time of the start (proc_pid_stat(5)).
const TO_START_TIME: usize = 19;

/// A process that was the VM's when it was found.
#[derive(Debug)]
pub struct Process {
    fd: OwnedFd,
    pid: u32,
}

impl Process {
    /// The process of a VM that was listed.
    ///
    /// # Errors
    /// When the VM has ended, or its process is not one of this PID namespace.
    pub fn of(directory: &Directory, vm: &Vm) -> Result<Self, Error> {
        let pid = vm.record.pid;
        let raw = i32::try_from(pid).ok().and_then(Pid::from_raw);
        let raw = raw.ok_or(Error::OtherNamespace(pid))?;
        let fd = match pidfd_open(raw, PidfdFlags::empty()) {
            Ok(fd) => fd,
            Err(Errno::SRCH) => return Err(Self::missing(directory, vm)),
            Err(errno) => return Err(system("open the process", &path(pid), errno)),
        };
        let process = Self { fd, pid };
        // The number is that of the descriptor's process as long as that has not ended.
        let start_time = start_time(pid);
        if process.has_ended(Duration::ZERO) || start_time != Some(vm.record.start_time) {
            return Err(Self::missing(directory, vm));
        }
        // Its entry is locked still: the process that has written it lives, and no other has this start.
        match directory.find(&vm.record.name) {
            Some(found) if is_same(&found, vm) => Ok(process),
            _ => Err(Error::Ended),
        }
    }

    /// The process that listens where this socket is connected to. `None` if it has ended, is this one, or is in
    /// another PID namespace.
    pub fn peer_of(socket: impl AsFd) -> Option<Self> {
        let peer = peer::process(socket).ok()?;
        let is_other = peer.pid != std::process::id();
        is_other.then_some(Self { fd: peer.pidfd?, pid: peer.pid })
    }

    fn missing(directory: &Directory, vm: &Vm) -> Error {
        match directory.find(&vm.record.name) {
            Some(found) if is_same(&found, vm) => Error::OtherNamespace(vm.record.pid),
            _ => Error::Ended,
        }
    }

    /// Ends it at once: SIGKILL.
    ///
    /// # Errors
    /// When this user may not.
    pub fn kill(&self) -> Result<(), Error> {
        match pidfd_send_signal(&self.fd, Signal::KILL) {
            Ok(()) | Err(Errno::SRCH) => Ok(()),
            Err(errno) => Err(system("kill the process", &path(self.pid), errno)),
        }
    }

    /// Whether it has ended, after a wait of at most so long.
    pub fn has_ended(&self, timeout: Duration) -> bool {
        let timeout = Timespec {
            tv_sec: i64::try_from(timeout.as_secs()).unwrap_or(i64::MAX),
            tv_nsec: timeout.subsec_nanos().into(),
        };
        // An interrupted wait is a short one.
        poll(&mut [PollFd::new(&self.fd, PollFlags::IN)], Some(&timeout))
            .is_ok_and(|ready| ready > 0)
    }
}

impl Vm {
    /// How long its process has run.
    pub fn age(&self) -> Option<Duration> {
        let uptime = read("/proc/uptime")?;
        let uptime: f64 = uptime.split_whitespace().next()?.parse().ok()?;
        let started =
            self.record.start_time as f64 / rustix::param::clock_ticks_per_second() as f64;
        Duration::try_from_secs_f64(uptime - started).ok()
    }
}

/// Whether two entries are of one process. A VM may say something else of itself at any time.
fn is_same(a: &Vm, b: &Vm) -> bool {
    (a.record.pid, a.record.start_time) == (b.record.pid, b.record.start_time)
}

/// The user that a process runs as.
pub(super) fn user(pid: u32) -> Option<Uid> {
    let status = read(&format!("/proc/{pid}/status"))?;
    // The real, effective, saved and file system user (proc_pid_status(5)).
    let mut users = status.lines().find_map(|line| line.strip_prefix("Uid:"))?.split_whitespace();
    let user = users.next()?;
    users.all(|other| other == user).then(|| user.parse().ok().map(Uid::from_raw)).flatten()
}

/// When a process started, in clock ticks since the boot.
pub(super) fn start_time(pid: u32) -> Option<u64> {
    let stat = read(&format!("/proc/{pid}/stat"))?;
    // The name may have spaces and parentheses.
    let (_, fields) = stat.rsplit_once(')')?;
    fields.split_whitespace().nth(TO_START_TIME)?.parse().ok()
}

fn read(path: &str) -> Option<String> {
    let mut text = String::new();
    File::open(path).ok()?.take(LONGEST_STAT).read_to_string(&mut text).ok()?;
    Some(text)
}

fn path(pid: u32) -> PathBuf {
    PathBuf::from(format!("/proc/{pid}"))
}
