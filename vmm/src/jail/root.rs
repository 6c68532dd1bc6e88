//! The root of a jail: a file system in memory with what the VM may see, each thing where the host has it.
//!
//! It is mounted over the jail's folder, in the mount namespace of the jail alone, and goes with that. The folder itself
//! is in it at its own path, so that what the VM makes has one name inside and outside.
//!
//! # References
//! pivot_root(2), mount(2), proc(5) ("subset", "hidepid")

use std::fs;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, symlink};
use std::path::{Path, PathBuf};

use rustix::io::Errno;
use rustix::mount::{
    MountFlags, UnmountFlags, mount, mount_bind, mount_move, mount_remount, unmount,
};
use rustix::process::{chroot, pivot_root};

use super::devices::{self, Node};
use super::{Error, Folder, User};

/// What is in a root: names of folders and links.
const SIZE: &std::ffi::CStr = c"size=1m,mode=755";
/// Processes of the jail, those of its user alone, and nothing else of what procfs shows. A group without members sees all
/// of them: by default it is root's, which a VM may be in.
const PROCESSES: &std::ffi::CStr = c"subset=pid,hidepid=2,gid=4294967294";
/// Where they are in the jail. `/proc/self` leads there.
const PIDS: &str = "proc/pids";

/// What the kernel shows of the host that a VM reads: memory and the pressure on it, CPUs and their caches, nodes, huge
/// pages, and how many mappings a process may have.
const OF_THE_KERNEL: [&str; 6] = [
    "/proc/meminfo",
    "/proc/pressure/memory",
    "/proc/sys/vm/max_map_count",
    "/sys/devices/system/cpu",
    "/sys/devices/system/node",
    "/sys/kernel/mm",
];

/// What a VM may do with something that it sees.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Access {
    /// Read it; connect to sockets in it.
    Read,
    /// Write to it.
    Write,
}

/// Something of the host that is seen in the jail.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Seen {
    /// Where the host has it, without links.
    source: PathBuf,
    /// Where the VM finds it.
    at: PathBuf,
    access: Access,
}

impl Seen {
    /// A file or folder of the host at its own place; the links on the way to its last name are followed.
    ///
    /// # Errors
    /// When it is not there.
    pub fn new(path: &Path, access: Access) -> Result<Self, Error> {
        let failed = |source| Error::Input { path: path.to_owned(), source };
        let source = path.canonicalize().map_err(failed)?;
        let at = is_there(path).map_err(failed)?;
        Ok(Self { source, at, access })
    }

    /// Where the VM finds it.
    pub fn at(&self) -> &Path {
        &self.at
    }

    /// Checks that a jail with this folder may show it. The VM may have written what is in the folder.
    ///
    /// # Errors
    /// When it is reached by a link there that leads elsewhere, or has the folder in it.
    pub(super) fn check(&self, folder: &Path) -> Result<(), Error> {
        if self.at.starts_with(folder) && !self.source.starts_with(folder) {
            return Err(Error::LeadsOut { path: self.at.clone(), target: self.source.clone() });
        }
        let is_around = |path: &Path| folder.starts_with(path) && folder != path;
        if is_around(&self.at) || is_around(&self.source) {
            return Err(Error::Around { path: self.at.clone(), folder: folder.to_owned() });
        }
        Ok(())
    }
}

/// The path of a file from the root, in a folder that is there, without links to that folder.
///
/// # Errors
/// When the folder is not there.
pub fn is_there(path: &Path) -> io::Result<PathBuf> {
    match path.file_name() {
        Some(name) => Ok(crate::folder::folder_of(path).canonicalize()?.join(name)),
        // The root, or one that ends with "..".
        None => path.canonicalize(),
    }
}

/// What the kernel shows and a VM reads, as far as this host has it.
pub fn seen_of_the_kernel() -> Vec<Seen> {
    let seen = |path: &str| Seen::new(Path::new(path), Access::Read).ok();
    OF_THE_KERNEL.into_iter().filter_map(seen).collect()
}

/// What a root is made of.
#[derive(Debug)]
pub(super) struct Root<'a> {
    pub(super) folder: &'a Folder,
    pub(super) user: User,
    pub(super) nodes: Vec<Node>,
    pub(super) seen: Vec<Seen>,
}

impl Root<'_> {
    /// Makes it the root of this process, which has a mount namespace and a PID namespace of its own.
    ///
    /// # Errors
    /// When the kernel refuses. What was mounted goes with the process.
    pub(super) fn enter(mut self) -> Result<(), Error> {
        let root = self.folder.path().to_owned();
        let folder = self.folder.open_again()?;
        self.folder.give_to(self.user)?;
        memory_at(&root, MountFlags::NODEV)?;
        let devices = self.make_devices(&root)?;
        self.show_folder(&root, &folder)?;
        // What is in another thing that is seen comes after it.
        self.seen.sort_by(|a, b| a.at.cmp(&b.at));
        for seen in self.seen.iter().filter_map(|seen| from_beneath(&root, seen)) {
            show(&root, &seen)?;
        }
        self.show_processes(&root)?;
        to_read(&devices, MountFlags::empty())?;
        change_root(&root)?;
        to_read(Path::new("/"), MountFlags::NODEV)
    }

    /// The jail's folder, which is beneath the new root by now.
    fn show_folder(&self, root: &Path, folder: &OwnedFd) -> Result<(), Error> {
        let source = format!("/proc/self/fd/{}", folder.as_raw_fd());
        let at = inside(root, self.folder.path());
        make_folder(&at).map_err(failed("make", &at))?;
        let flags = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
        let bind = || -> Result<(), Errno> {
            mount_bind(&source, &at)?;
            mount_remount(&at, MountFlags::BIND | flags, c"")
        };
        bind().map_err(|errno| failed("mount", &at)(errno.into()))
    }

    fn show_processes(&self, root: &Path) -> Result<(), Error> {
        let at = root.join(PIDS);
        make_folder(&at).map_err(failed("make", &at))?;
        mount_processes(&at)?;
        for name in ["self", "thread-self"] {
            let at = root.join("proc").join(name);
            let target = Path::new("pids").join(name);
            symlink(target, &at).map_err(failed("make", &at))?;
        }
        Ok(())
    }

    fn make_devices(&self, root: &Path) -> Result<PathBuf, Error> {
        let at = root.join("dev");
        make_folder(&at).map_err(failed("make", &at))?;
        memory_at(&at, MountFlags::empty())?;
        let folder = fs::File::open(&at).map_err(failed("open", &at))?;
        devices::make(&folder.into(), &self.nodes, self.user)?;
        Ok(at)
    }
}

/// The same, where the jail's folder is beneath the new root; nothing, for what is seen as a part of that folder.
fn from_beneath(root: &Path, seen: &Seen) -> Option<Seen> {
    let mut seen = seen.clone();
    match (seen.source.starts_with(root), seen.at.starts_with(root)) {
        (true, true) => return None,
        (true, false) => seen.source = inside(root, &seen.source),
        // Not by a link in the folder (`Seen::check`).
        (false, _) => {}
    }
    Some(seen)
}

/// Has nothing be made any more in a file system in memory.
fn to_read(at: &Path, more: MountFlags) -> Result<(), Error> {
    let flags = more | MountFlags::RDONLY | MountFlags::NOSUID | MountFlags::NOEXEC;
    let remounted = mount_remount(at, flags, c"");
    remounted.map_err(|errno| failed("mount to read", at)(errno.into()))
}

/// Mounts the processes of this PID namespace.
///
/// # Errors
/// When the kernel refuses.
pub(super) fn mount_processes(at: &Path) -> Result<(), Error> {
    let flags = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
    // `subset` is since Linux 5.8.
    let mounted = mount("proc", at, "proc", flags, PROCESSES);
    mounted.map_err(|errno| failed("mount processes at", at)(errno.into()))
}

/// A file system in memory.
fn memory_at(at: &Path, more: MountFlags) -> Result<(), Error> {
    let flags = more | MountFlags::NOSUID | MountFlags::NOEXEC;
    let mounted = mount("tmpfs", at, "tmpfs", flags, SIZE);
    mounted.map_err(|errno| failed("mount memory at", at)(errno.into()))
}

/// Shows something of the host beneath a new root.
fn show(root: &Path, seen: &Seen) -> Result<(), Error> {
    let at = inside(root, &seen.at);
    let kind = fs::metadata(&seen.source).map_err(failed("look at", &seen.source))?.file_type();
    let is_device = kind.is_block_device() || kind.is_char_device();
    let bind = || -> io::Result<()> {
        if kind.is_dir() {
            make_folder(&at)?;
            // Without what is mounted in it.
            mount_bind(&seen.source, &at)?;
        } else {
            at.parent().map(make_folder).transpose()?;
            if !at.exists() {
                fs::File::create_new(&at)?;
            }
            mount_bind(&seen.source, &at)?;
        }
        let mut flags = MountFlags::BIND | MountFlags::NOSUID | MountFlags::NOEXEC;
        flags.set(MountFlags::NODEV, !is_device);
        flags.set(MountFlags::RDONLY, seen.access == Access::Read);
        Ok(mount_remount(&at, flags, c"")?)
    };
    bind().map_err(failed("show", &seen.at))
}

/// Makes what is mounted at a path the root of this process, and unmounts all else.
///
/// # Errors
/// When the kernel refuses.
pub(super) fn change_root(to: &Path) -> Result<(), Error> {
    std::env::set_current_dir(to).map_err(failed("enter", to))?;
    let changed = match pivot_root(".", ".") {
        // The old root is over the new one, at the same place (pivot_root(2), "NOTES").
        Ok(()) => unmount(".", UnmountFlags::DETACH),
        // A host that runs from its initramfs has a root that no other can take the place of.
        Err(Errno::INVAL) => cover_root(to),
        Err(errno) => Err(errno),
    };
    changed.map_err(|errno| failed("take for the root", to)(errno.into()))?;
    std::env::set_current_dir("/").map_err(failed("enter", to))
}

/// Covers the first root, which stays beneath without a way to it, and unmounts all else.
fn cover_root(to: &Path) -> Result<(), Errno> {
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap_or_default();
    let places: Vec<_> = mounts.lines().filter_map(|line| line.split(' ').nth(1)).collect();
    // Before what it was mounted in is unmounted. Paths from the root lead to the first one until `chroot`.
    mount_move(".", "/")?;
    for place in places.into_iter().rev() {
        if place != "/" && !Path::new(place).starts_with(to) {
            // What stays is beneath as well.
            let _ = unmount(place, UnmountFlags::DETACH);
        }
    }
    chroot(".")
}

/// A path of the jail, as the host names it while the root is made.
fn inside(root: &Path, path: &Path) -> PathBuf {
    root.join(path.strip_prefix("/").unwrap_or(path))
}

pub(super) fn make_folder(path: &Path) -> io::Result<()> {
    fs::DirBuilder::new().recursive(true).mode(0o755).create(path)
}

pub(super) fn failed(what: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Error + use<> {
    let path = path.to_owned();
    move |source| Error::Root { what, path, source }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn links_on_the_way_are_followed_and_the_last_name_stays() {
        let folder = tempfile::tempdir().unwrap();
        let real = folder.path().canonicalize().unwrap();
        fs::create_dir(real.join("images")).unwrap();
        fs::write(real.join("images/v1"), "").unwrap();
        symlink("images", real.join("link")).unwrap();
        symlink("v1", real.join("images/current")).unwrap();

        let seen = Seen::new(&real.join("link/current"), Access::Read).unwrap();

        assert_eq!(seen.at, real.join("images/current"));
        assert_eq!(seen.source, real.join("images/v1"));
        let missing = Seen::new(&real.join("link/none"), Access::Read).unwrap_err();
        assert!(matches!(missing, Error::Input { .. }));
    }

    #[test]
    fn a_file_that_is_not_there_yet_has_a_place() {
        let folder = tempfile::tempdir().unwrap();
        let real = folder.path().canonicalize().unwrap();

        assert_eq!(is_there(&real.join("new")).unwrap(), real.join("new"));
        assert_eq!(is_there(&real.join("..")).unwrap(), real.parent().unwrap());
        assert!(is_there(&real.join("none/new")).is_err());
    }

    #[test]
    fn what_is_in_the_jails_folder_is_not_shown_twice() {
        let root = Path::new("/srv/jail");
        let seen = |source: &str, at: &str| {
            let seen = Seen { source: source.into(), at: at.into(), access: Access::Read };
            let seen = from_beneath(root, &seen)?;
            Some((seen.source.to_str()?.to_owned(), seen.at.to_str()?.to_owned()))
        };
        let pair = |source: &str, at: &str| Some((source.to_owned(), at.to_owned()));

        assert_eq!(seen("/srv/jail/a", "/srv/jail/b"), None);
        assert_eq!(seen("/boot/a", "/boot/b"), pair("/boot/a", "/boot/b"));
        assert_eq!(seen("/srv/jail/a", "/boot/b"), pair("/srv/jail/srv/jail/a", "/boot/b"));
    }

    #[test]
    fn what_leads_out_of_the_jails_folder_or_is_around_it_is_not_shown() {
        let folder = Path::new("/srv/vms/one");
        let check = |source: &str, at: &str| {
            Seen { source: source.into(), at: at.into(), access: Access::Read }.check(folder)
        };

        for (source, at) in [
            ("/boot/a", "/boot/b"),
            ("/srv/vms/one/a", "/boot/b"),
            ("/srv/vms/one/a", "/srv/vms/one/b"),
            ("/srv/vms/one", "/srv/vms/one"),
            ("/srv/vms/other", "/srv/vms/other"),
        ] {
            check(source, at).unwrap();
        }
        for (source, at) in [("/etc", "/srv/vms/one/saved"), ("/", "/srv/vms/one/disk")] {
            assert!(matches!(check(source, at), Err(Error::LeadsOut { .. })), "{source}");
        }
        for path in ["/srv/vms", "/srv", "/"] {
            assert!(matches!(check(path, path), Err(Error::Around { .. })), "{path}");
        }
        assert!(matches!(check("/srv/vms", "/vms"), Err(Error::Around { .. })));
    }

    #[test]
    fn a_path_is_found_beneath_the_new_root() {
        let at = inside(Path::new("/srv/jail"), Path::new("/boot/Image"));
        assert_eq!(at, Path::new("/srv/jail/boot/Image"));
    }

    #[test]
    fn what_the_kernel_shows_is_seen_where_it_is() {
        for seen in seen_of_the_kernel() {
            assert!(OF_THE_KERNEL.contains(&seen.at.to_str().unwrap()), "{seen:?}");
            assert_eq!(seen.access, Access::Read);
        }
    }
}
