//! Folders in a root that a VM has had before: no step to them is a link.
//!
//! The VM may have left a link in the place of any folder, which root would follow: out of the root's own folders, and into
//! what the client has mounted there for the VM to write to.
//!
//! # References
//! open(2) (O_NOFOLLOW), symlink(7)

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Component, Path};

use rustix::fs::{AtFlags, Mode, OFlags};
use rustix::io::Errno;

/// Opens the folder at a path from one that is open, or from the root, and makes what is missing of it. What is no folder
/// goes.
///
/// # Errors
/// What the kernel answers; EINVAL for a path with "..".
pub(super) fn folder_at(from: impl AsFd, path: &Path, mode: Mode) -> io::Result<OwnedFd> {
    let mut folder = open(&from, Path::new("."))?;
    for step in path.components() {
        match step {
            Component::Normal(name) => folder = step_to(&folder, Path::new(name), mode)?,
            Component::RootDir => folder = open(&folder, Path::new("/"))?,
            Component::CurDir => {}
            Component::ParentDir | Component::Prefix(_) => return Err(Errno::INVAL.into()),
        }
    }
    Ok(folder)
}

fn step_to(from: &OwnedFd, name: &Path, mode: Mode) -> Result<OwnedFd, Errno> {
    match open(from, name) {
        Err(Errno::NOENT) => {}
        // Linux answers ENOTDIR for a link as well, as a folder is asked for.
        Err(Errno::NOTDIR | Errno::LOOP) => clear_at(from, name)?,
        opened => return opened,
    }
    rustix::fs::mkdirat(from, name, mode)?;
    open(from, name)
}

/// Opens a folder that is there. The name is no link.
///
/// # Errors
/// What the kernel answers.
pub(super) fn open(from: impl AsFd, name: &Path) -> Result<OwnedFd, Errno> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    rustix::fs::openat(from, name, flags, Mode::empty())
}

/// Removes what a jail before this one has left at a place: a file, a link and not what it leads to, an empty folder.
///
/// # Errors
/// What the kernel answers. A folder that is not empty stays: it may be as deep as its maker liked.
pub(super) fn clear_at(folder: impl AsFd, name: &Path) -> Result<(), Errno> {
    let removed = match rustix::fs::unlinkat(&folder, name, AtFlags::empty()) {
        Err(Errno::ISDIR) => rustix::fs::unlinkat(&folder, name, AtFlags::REMOVEDIR),
        removed => removed,
    };
    match removed {
        Err(Errno::NOENT) => Ok(()),
        removed => removed,
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::fs;
    use std::os::unix::fs::symlink;

    use rustix::fs::CWD;

    use super::*;

    const MODE: Mode = Mode::RWXU;

    #[test]
    fn no_step_is_a_link() {
        let scratch = tempfile::tempdir().unwrap();
        let path = |name: &str| scratch.path().join(name);
        fs::create_dir_all(path("root/there")).unwrap();
        fs::create_dir(path("mounted")).unwrap();
        let root = open(CWD, &path("root")).unwrap();
        for link in ["dev", "there/link"] {
            symlink(path("mounted"), path("root").join(link)).unwrap();
        }
        symlink("none", path("root/broken")).unwrap();
        fs::write(path("root/file"), "").unwrap();

        for name in ["dev/net", "there/link/deep/er", "broken", "file/folder", "new/one"] {
            let folder = folder_at(&root, Path::new(name), MODE).unwrap();
            rustix::fs::mkdirat(&folder, "in", MODE).unwrap();
            assert!(path("root").join(name).join("in").exists(), "{name}");
        }

        assert_eq!(fs::read_dir(path("mounted")).unwrap().count(), 0);
        assert!(path("root/dev").symlink_metadata().unwrap().is_dir());
        // What is there stays.
        folder_at(&root, Path::new("new/one"), MODE).unwrap();
        assert!(path("root/new/one/in").exists());
        folder_at(&root, Path::new("new/../../mounted"), MODE).unwrap_err();
    }

    #[test]
    fn what_a_jail_left_at_a_place_goes_but_for_a_folder_with_something_in_it() {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        fs::write(path("file"), "").unwrap();
        symlink(path("kept"), path("link")).unwrap();
        fs::create_dir(path("empty")).unwrap();
        fs::create_dir_all(path("kept/inner")).unwrap();

        for name in ["file", "link", "empty", "none"] {
            clear_at(CWD, &path(name)).unwrap();
            assert!(path(name).symlink_metadata().is_err(), "{name}");
        }
        let error = clear_at(CWD, &path("kept")).unwrap_err();

        assert_eq!(error, Errno::NOTEMPTY);
        assert!(path("kept/inner").exists());
    }
}
