//! Which files a thread may still open: the kernel's Landlock.
//!
//! # References
//! landlock(7); Linux Documentation/userspace-api/landlock.rst, include/uapi/linux/landlock.h
#![allow(unsafe_code)]

use std::fs;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use rustix::fs::{FileType, Mode, OFlags, fstat};

use super::answer;

/// Asks `landlock_create_ruleset` for the version.
const VERSION: u32 = 1;
/// A rule for what is beneath a file or folder.
const PATH_BENEATH: u32 = 1;

/// What may be done with files: `LANDLOCK_ACCESS_FS_*`.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) struct Access(u64);

impl Access {
    const WRITE_FILE: u64 = 1 << 1;
    const READ_FILE: u64 = 1 << 2;
    const READ_DIR: u64 = 1 << 3;
    const REMOVE_FILE: u64 = 1 << 5;
    const MAKE_REG: u64 = 1 << 8;
    const REFER: u64 = 1 << 13;
    const TRUNCATE: u64 = 1 << 14;
    const IOCTL_DEV: u64 = 1 << 15;

    /// To read files, and to list folders.
    pub(super) const READ: Self = Self(Self::READ_FILE | Self::READ_DIR);
    /// To read what files have.
    pub(super) const READ_FILES: Self = Self(Self::READ_FILE);
    /// To read and write files that are there. They are not cut.
    pub(super) const WRITE_FILES: Self = Self(Self::READ_FILE | Self::WRITE_FILE);
    /// To remove files.
    pub(super) const REMOVE: Self = Self(Self::REMOVE_FILE);
    /// To make, read, write and remove files.
    pub(super) const FILES: Self = Self(
        Self::READ.0
            | Self::WRITE_FILE
            | Self::MAKE_REG
            | Self::REMOVE_FILE
            | Self::REFER
            | Self::TRUNCATE,
    );
    /// To use a device.
    pub(super) const DEVICE: Self = Self(Self::READ_FILE | Self::WRITE_FILE | Self::IOCTL_DEV);

    /// What can be had of a file that is no folder.
    const OF_FILES: u64 = Self::WRITE_FILE | Self::READ_FILE | Self::TRUNCATE | Self::IOCTL_DEV | 1;

    /// All that this version of Landlock knows of files, but for connections to sockets (since version 9), which
    /// guests make to sockets that are named by what they connect to.
    fn all(version: u32) -> Self {
        Self(match version {
            1 => (1 << 13) - 1,
            2 => (1 << 14) - 1,
            3 | 4 => (1 << 15) - 1,
            _ => (1 << 16) - 1,
        })
    }
}

/// `struct landlock_ruleset_attr`: a kernel that knows less takes the first members alone.
#[repr(C)]
struct RulesetAttributes {
    handled_files: u64,
    handled_networks: u64,
}

/// `struct landlock_path_beneath_attr`.
#[repr(C, packed)]
struct PathBeneath {
    allowed: u64,
    parent: RawFd,
}

/// Networks: TCP ports to bind and to connect to, since version 4.
const NETWORKS: u64 = 0b11;
const NETWORKS_SINCE: u32 = 4;
/// The version that knows truncate(2).
pub(super) const TRUNCATION_SINCE: u32 = 3;

/// The version of the kernel's Landlock.
///
/// # Errors
/// ENOSYS or EOPNOTSUPP where it has none.
pub(super) fn version() -> io::Result<u32> {
    // SAFETY: with this flag the call takes no attributes.
    let version = unsafe {
        libc::syscall(libc::SYS_landlock_create_ruleset, std::ptr::null::<u8>(), 0, VERSION)
    };
    u32::try_from(answer(version)?).map_err(|_| io::ErrorKind::InvalidData.into())
}

/// What may be done with which files. All else may not.
#[derive(Debug)]
pub(super) struct Ruleset {
    fd: OwnedFd,
    handled: Access,
    /// What each rule allows, by the device and inode that it is of.
    rules: Vec<((u64, u64), Access)>,
    /// What is read. A rule is one of an inode, and procfs makes another for a name that has gone from the kernel's cache
    /// (proc_pid_lookup in Linux fs/proc/base.c), as it does where memory is short. An open one stays.
    kept: Vec<OwnedFd>,
}

impl Ruleset {
    /// One that allows nothing.
    ///
    /// # Errors
    /// What the kernel answers.
    pub(super) fn new(version: u32) -> io::Result<Self> {
        let handled = Access::all(version);
        let networks = if version >= NETWORKS_SINCE { NETWORKS } else { 0 };
        let attributes = RulesetAttributes { handled_files: handled.0, handled_networks: networks };
        let size = if networks == 0 { size_of::<u64>() } else { size_of_val(&attributes) };
        // SAFETY: the attributes are as long as is said, and the kernel only reads them.
        let fd = unsafe {
            libc::syscall(libc::SYS_landlock_create_ruleset, &raw const attributes, size, 0)
        };
        // A descriptor is an int.
        let fd = answer(fd)? as RawFd;
        // SAFETY: the descriptor was just made, close-on-exec, and has no other owner.
        let fd = unsafe { OwnedFd::from_raw_fd(fd) };
        Ok(Self { fd, handled, rules: Vec::new(), kept: Vec::new() })
    }

    /// Allows something beneath a folder, or with a file.
    ///
    /// # Errors
    /// What the kernel answers; ENOENT where there is nothing at the path.
    pub(super) fn allow(&mut self, path: &Path, access: Access) -> io::Result<()> {
        let place = rustix::fs::open(path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty())?;
        let found = fstat(&place)?;
        let allowed = access.0 & self.handled.0;
        let is_folder = FileType::from_raw_mode(found.st_mode).is_dir();
        self.add(&place, if is_folder { allowed } else { allowed & Access::OF_FILES })?;
        self.rules.push(((found.st_dev, found.st_ino), access));
        if access == Access::READ {
            self.kept.push(place);
        }
        Ok(())
    }

    /// Whether the rules allow something with what is at a path, or would beneath it. Where
    /// that cannot be seen it is not for the rules, which hide nothing. For messages: the kernel alone decides.
    pub(super) fn allows(&self, path: &Path, access: Access) -> bool {
        let Ok(path) = path.canonicalize() else { return true };
        let above = path.ancestors().filter_map(|place| fs::metadata(place).ok());
        let granted = above.fold(0, |granted, place| {
            let is_of = |(inode, _): &&_| *inode == (place.dev(), place.ino());
            self.rules.iter().filter(is_of).fold(granted, |all, (_, allowed)| all | allowed.0)
        });
        let wanted = access.0 & self.handled.0;
        granted & wanted == wanted
    }

    fn add(&self, place: &OwnedFd, allowed: u64) -> io::Result<()> {
        let rule = PathBeneath { allowed, parent: place.as_raw_fd() };
        // SAFETY: the rule is what its kind asks for, and the kernel only reads it; both descriptors are open.
        let added = unsafe {
            let (ruleset, rule) = (self.fd.as_raw_fd(), &raw const rule);
            libc::syscall(libc::SYS_landlock_add_rule, ruleset, PATH_BENEATH, rule, 0)
        };
        answer(added).map(drop)
    }

    /// Puts the calling thread under these rules, for good, and the threads that it starts.
    ///
    /// # Errors
    /// What the kernel answers; EPERM for a thread that may have new privileges.
    pub(super) fn restrict(&self) -> io::Result<()> {
        // SAFETY: the call takes two numbers.
        answer(unsafe { libc::syscall(libc::SYS_landlock_restrict_self, self.fd.as_raw_fd(), 0) })
            .map(drop)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;
    use crate::testing::{Means, skip};

    /// What a thread under rules can do with the files of a folder.
    #[test]
    fn a_thread_opens_what_its_rules_name_and_nothing_else() {
        let Ok(version) = version() else {
            return skip(Means::Landlock, "the kernel has no Landlock");
        };
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        for name in ["made", "read", "removed", "other"] {
            fs::create_dir(path(name)).unwrap();
            fs::write(path(name).join("file"), name).unwrap();
        }
        let open = fs::File::open(path("other").join("file")).unwrap();
        let mut rules = Ruleset::new(version).unwrap();
        for (name, access) in
            [("made", Access::FILES), ("read", Access::READ), ("removed", Access::REMOVE)]
        {
            rules.allow(&path(name), access).unwrap();
        }
        rules.allow(&path("other").join("file"), Access::REMOVE).unwrap_err();
        assert!(rules.allow(&path("none"), Access::READ).is_err());

        let thread = std::thread::scope(|scope| {
            let under_rules = || {
                rustix::thread::set_no_new_privs(true).unwrap();
                rules.restrict().unwrap();
                let file = |name: &str| path(name).join("file");
                let denied = |done: io::Result<()>| {
                    done.is_err_and(|error| error.kind() == io::ErrorKind::PermissionDenied)
                };
                let read = |name: &str| denied(fs::read(file(name)).map(drop));
                let write = |name: &str| denied(fs::write(path(name).join("new"), ""));
                let remove = |name: &str| denied(fs::remove_file(file(name)));
                // What was open before stays so.
                let mut byte = [0];
                rustix::io::pread(&open, &mut byte, 0).unwrap();
                ["made", "read", "removed", "other"]
                    .map(|name| [read(name), write(name), remove(name)])
            };
            scope.spawn(under_rules).join().unwrap()
        });

        assert_eq!(
            thread,
            [[false, false, false], [false, true, true], [true, true, false], [true, true, true]]
        );
        // No other thread is under them.
        fs::read(path("other").join("file")).unwrap();
    }

    #[test]
    fn what_rules_allow_is_known_by_the_folder_itself_and_what_is_below() {
        let Ok(version) = version() else {
            return skip(Means::Landlock, "the kernel has no Landlock");
        };
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        fs::create_dir_all(path("images/below")).unwrap();
        fs::create_dir(path("other")).unwrap();
        fs::write(path("images/below/disk"), "").unwrap();
        fs::write(path("other/disk"), "").unwrap();
        std::os::unix::fs::symlink(path("other/disk"), path("images/link")).unwrap();
        let mut rules = Ruleset::new(version).unwrap();
        rules.allow(&path("images"), Access::WRITE_FILES).unwrap();

        assert!(rules.allows(&path("images/below/disk"), Access::WRITE_FILES));
        assert!(rules.allows(&path("images/below/disk"), Access::READ_FILES));
        assert!(!rules.allows(&path("images"), Access::FILES));
        assert!(!rules.allows(&path("images/link"), Access::READ_FILES));
        assert!(!rules.allows(&path("other/disk"), Access::READ_FILES));
        // It is not the rules that keep it from being found.
        assert!(rules.allows(&path("none/disk"), Access::READ_FILES));
        fs::rename(path("images"), path("moved")).unwrap();
        assert!(rules.allows(&path("moved/below/disk"), Access::WRITE_FILES));
    }
}
