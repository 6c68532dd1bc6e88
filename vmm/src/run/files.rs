//! Which files a VM opens, makes and removes once its guest runs.

use std::path::PathBuf;

use super::snapshots::Restore;
#[cfg(target_arch = "aarch64")]
use crate::config::CommandLineOnly;
use crate::folder::folder_of;
#[cfg(target_arch = "aarch64")]
use crate::registry::Entry;
use crate::sandbox::Files;
use crate::spec::{NetBackendSpec, SerialTarget, Spec};

/// What the kernel shows of this process and of memory: for footprints, snapshots, and huge pages that are mended.
const SHOWN: [&str; 5] = [
    "/proc/self",
    "/proc/meminfo",
    "/proc/sys/vm/max_map_count",
    "/sys/kernel/mm/transparent_hugepage",
    "/sys/kernel/mm/hugepages",
];

/// The device of taps, of which one that is made again under its name is opened again.
const TAPS: &str = "/dev/net/tun";

/// Those of the process, whatever its VM is.
#[cfg(target_arch = "aarch64")]
pub(super) fn of_the_process(
    flags: CommandLineOnly<'_>,
    allowed: &[PathBuf],
    entry: Option<&Entry>,
) -> Files {
    let mut files = Files { made_in: allowed.to_vec(), ..Files::default() };
    files.removed_in.extend(flags.api_sock.map(folder_of).map(PathBuf::from));
    files.removed_in.extend(entry.map(|entry| entry.folder().to_owned()));
    files
}

/// Those of a VM.
pub(super) fn of_the_vm(spec: &Spec, restore: Option<&Restore>) -> Files {
    let mut files = Files { read: SHOWN.map(PathBuf::from).to_vec(), ..Files::default() };
    files.removed_in.extend(spec.vsock.as_ref().map(|vsock| folder_of(&vsock.path).to_owned()));
    if let SerialTarget::Socket(path) = &spec.serial {
        files.removed_in.push(folder_of(path.as_ref()).to_owned());
    }
    // A record of what was touched gets its name when it is complete.
    files.made_in.extend(restore.and_then(Restore::record).map(folder_of).map(PathBuf::from));
    if spec.net.iter().any(|net| matches!(net.backend, NetBackendSpec::Tap(_))) {
        files.devices.push(TAPS.into());
    }
    files
}
