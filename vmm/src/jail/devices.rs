//! The device nodes of a jail.
//!
//! # References
//! mknod(2); Linux Documentation/admin-guide/devices.txt

use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::Path;

use rustix::fs::{FileType, Mode};

use super::root::failed;
use super::steps::{clear_at, folder_at};
use super::{Error, User};

/// What a VM may open, of what the host has: KVM, taps, random numbers, and descriptors that catch page faults.
const NAMES: [&str; 4] = ["kvm", "net/tun", "urandom", "userfaultfd"];
/// The mode of folders that they are in.
const FOLDER: Mode = Mode::from_raw_mode(0o755);

/// A node of the host.
#[derive(Debug)]
pub(super) struct Node {
    name: &'static str,
    number: u64,
}

/// Those that the host has. Their numbers are the host's own: that of userfaultfd is another on each.
pub(super) fn of_the_host() -> Vec<Node> {
    let node = |name: &'static str| {
        let found = fs::metadata(Path::new("/dev").join(name)).ok()?;
        let is_device = found.file_type().is_char_device();
        is_device.then(|| Node { name, number: found.rdev() })
    };
    NAMES.into_iter().filter_map(node).collect()
}

/// Makes them in a folder for one user, in the place of those of a jail before this one.
///
/// # Errors
/// When the kernel refuses.
pub(super) fn make(folder: &OwnedFd, nodes: &[Node], user: User) -> Result<(), Error> {
    for node in nodes {
        let path = Path::new("/dev").join(node.name);
        make_node(folder, node, user).map_err(failed("make the device", &path))?;
    }
    Ok(())
}

fn make_node(folder: &OwnedFd, node: &Node, user: User) -> io::Result<()> {
    let (inner, name) = node.name.rsplit_once('/').unwrap_or((".", node.name));
    let (folder, name) = (folder_at(folder, Path::new(inner), FOLDER)?, Path::new(name));
    clear_at(&folder, name)?;
    let mode = Mode::RUSR | Mode::WUSR;
    rustix::fs::mknodat(&folder, name, FileType::CharacterDevice, mode, node.number)?;
    user.own_at(&folder, name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_nodes_are_those_that_this_host_has() {
        let random = fs::metadata("/dev/urandom").map(|found| found.rdev()).ok();

        let nodes = of_the_host();

        let found = nodes.iter().find(|node| node.name == "urandom").map(|node| node.number);
        assert_eq!(found, random);
    }
}
