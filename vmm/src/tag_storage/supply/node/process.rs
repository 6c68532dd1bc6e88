//! A process whose pages can be looked for and moved.

use std::fs::File;
use std::io::{self, Read};
use std::ops::Range;
use std::os::fd::OwnedFd;

use rustix::fs::{Mode, OFlags, openat};
use rustix::process::Pid;

use super::maps::mappings_on;
use crate::sys::{numa, peer};

/// The longest list of a process's mappings that is read: some 100 000 of the usual length, more than the usual
/// vm.max_map_count allows. The process chooses the names in it.
const MAX_LIST: u64 = 16 << 20;

/// What there is to do with a process. Tests have their own.
pub(crate) trait Process: Send {
    /// Its number.
    fn pid(&self) -> u32;

    /// Whether it still runs, so that its number means no other.
    fn is_alive(&self) -> bool;

    /// The mappings that have pages on a node.
    fn mappings(&self, node: u32) -> io::Result<Vec<Range<u64>>>;

    /// The node that each of these pages is on, or something negative.
    fn locate(&self, pages: &[u64]) -> io::Result<Vec<i32>>;

    /// Has these pages moved to a node, as far as they will.
    fn relocate(&self, pages: &[u64], node: u32) -> io::Result<()>;
}

/// A process of this host.
pub(crate) struct Real {
    pid: Pid,
    /// Readable once it has ended.
    end: OwnedFd,
    /// /proc/PID of this very process: nothing can be opened there once it has ended.
    folder: OwnedFd,
}

impl Real {
    /// The process that `end` is the descriptor of. It had this number when it was started, and has it for as long
    /// as it runs.
    ///
    /// # Errors
    /// ESRCH when it has ended, EPERM or EACCES when this user may not look at it or move its pages.
    pub(crate) fn new(pid: Pid, end: OwnedFd) -> io::Result<Self> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let path = format!("/proc/{}", pid.as_raw_nonzero());
        let folder = rustix::fs::open(path, flags, Mode::empty())?;
        let process = Self { pid, end, folder };
        if !process.is_alive() {
            // The folder may be another's, which got the number.
            return Err(io::Error::from_raw_os_error(libc::ESRCH));
        }
        // What comes later is refused here already.
        process.read("numa_maps")?;
        process.locate(&[0])?;
        Ok(process)
    }

    fn read(&self, name: &str) -> io::Result<String> {
        let file = openat(&self.folder, name, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?;
        // Names of files need not be text.
        let mut bytes = Vec::new();
        File::from(file).take(MAX_LIST + 1).read_to_end(&mut bytes)?;
        if bytes.len() as u64 > MAX_LIST {
            return Err(io::ErrorKind::FileTooLarge.into());
        }
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    }
}

impl Process for Real {
    fn pid(&self) -> u32 {
        self.pid.as_raw_nonzero().get().unsigned_abs()
    }

    fn is_alive(&self) -> bool {
        peer::is_alive(&self.end)
    }

    fn mappings(&self, node: u32) -> io::Result<Vec<Range<u64>>> {
        Ok(mappings_on(node, &self.read("numa_maps")?, &self.read("maps")?))
    }

    fn locate(&self, pages: &[u64]) -> io::Result<Vec<i32>> {
        numa::locate(self.pid, pages)
    }

    fn relocate(&self, pages: &[u64], node: u32) -> io::Result<()> {
        numa::relocate(self.pid, pages, node)
    }
}
