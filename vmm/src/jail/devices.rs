//! The device nodes of a jail.
//!
//! # References
//! mknod(2); Linux Documentation/admin-guide/devices.txt

use std::fs;
use std::io;
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, MetadataExt};
use std::path::Path;

use rustix::fs::{CWD, FileType, Mode};

use super::root::{clear, failed};
use super::{Error, User};

/// What a VM may open, of what the host has: KVM, taps, random numbers, and descriptors that catch page faults.
const NAMES: [&str; 4] = ["kvm", "net/tun", "urandom", "userfaultfd"];

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
pub(super) fn make(folder: &Path, nodes: &[Node], user: User) -> Result<(), Error> {
    for node in nodes {
        let path = folder.join(node.name);
        make_node(&path, node.number, user).map_err(failed("make the device", &path))?;
    }
    Ok(())
}

fn make_node(path: &Path, number: u64, user: User) -> io::Result<()> {
    if let Some(folder) = path.parent() {
        fs::DirBuilder::new().recursive(true).mode(0o755).create(folder)?;
    }
    clear(path)?;
    let mode = Mode::RUSR | Mode::WUSR;
    rustix::fs::mknodat(CWD, path, FileType::CharacterDevice, mode, number)?;
    user.own_at(path)
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
