//! Which files a VM opens, makes and removes once its guest runs.

#[cfg(target_arch = "aarch64")]
use std::env;
#[cfg(any(target_arch = "aarch64", test))]
use std::ffi::OsString;
#[cfg(any(target_arch = "aarch64", test))]
use std::path::Path;
use std::path::PathBuf;

use super::snapshots::Restore;
use crate::backends::{balloon, vsock};
#[cfg(target_arch = "aarch64")]
use crate::config::CommandLineOnly;
use crate::folder::folder_of;
#[cfg(target_arch = "aarch64")]
use crate::registry::Entry;
use crate::sandbox::Files;
use crate::spec::{NetBackendSpec, SerialTarget, Spec};

/// Descriptors of a VM that runs, beside those of its start and those of its guest's sockets: ten clients of the control
/// socket, one of the console, a broker and a network that are looked for, two snapshots (one is read, one is written)
/// with their folders, and files of the kernel, at once; and numbers among them that are taken already.
const DESCRIPTORS: u64 = 128;

/// What the kernel shows of this process and of memory: for footprints, snapshots, and huge pages that are mended.
const SHOWN: [&str; 4] =
    ["/proc/self", "/proc/meminfo", "/proc/sys/vm/max_map_count", "/sys/kernel/mm"];

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
    let registry = entry.map(|entry| entry.folder().to_owned());
    if let Some(folder) = flags.api_sock.map(folder_of) {
        let saved_in = folder.canonicalize().ok();
        let variable = |name: &str| env::var_os(name);
        let saved_in =
            saved_in.filter(|folder| is_for_snapshots(folder, registry.as_deref(), variable));
        files.made_in.extend(saved_in);
        files.removed_in.push(folder.to_owned());
    }
    files.removed_in.extend(registry);
    files
}

/// Whether a VM may make files in the folder of its control socket without being asked for it (`--allow`). Not where
/// others are that decide what its user's programs do, or which VMs there are. The folder is a canonical path.
#[cfg(any(target_arch = "aarch64", test))]
fn is_for_snapshots(
    folder: &Path,
    registry: Option<&Path>,
    variable: impl Fn(&str) -> Option<OsString>,
) -> bool {
    let is_of_the_system = folder.parent().is_none_or(|above| above.parent().is_none());
    let places = ["HOME", "XDG_RUNTIME_DIR"].map(|name| variable(name).map(PathBuf::from));
    let places = places.into_iter().flatten().map(|place| place.canonicalize().unwrap_or(place));
    let has = |place: &Path| place.starts_with(folder);
    let is_shared = places.chain(registry.map(Path::to_owned)).any(|place| has(&place));
    (!is_of_the_system || folder == Path::new("/tmp")) && !is_shared
}

/// Those of a VM.
pub(super) fn of_the_vm(spec: &Spec, restore: Option<&Restore>) -> Files {
    let mut files = Files { read: SHOWN.map(PathBuf::from).to_vec(), ..Files::default() };
    // A client may switch it on at any time.
    files.read.extend(spec.balloon.iter().flat_map(|_| balloon::READ_BY_AUTO).map(PathBuf::from));
    let streams = spec.vsock.as_ref().map_or(0, |_| vsock::MOST_STREAMS as u64);
    files.descriptors = Some(DESCRIPTORS + streams);
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_vm_is_saved_beside_its_socket_unless_that_is_a_place_of_others() {
        let is_for_snapshots = |folder: &str| {
            let variable = |name: &str| match name {
                "HOME" => Some("/home/me".into()),
                "XDG_RUNTIME_DIR" => Some("/run/user/7".into()),
                _ => None,
            };
            is_for_snapshots(Path::new(folder), Some(Path::new("/run/tessera/vms")), variable)
        };

        for folder in ["/tmp", "/tmp/a", "/home/me/vms", "/srv/vms", "/run/tessera/vms/one"] {
            assert!(is_for_snapshots(folder), "{folder}");
        }
        for folder in [
            "/",
            "/run",
            "/home",
            "/etc",
            "/home/me",
            "/run/user",
            "/run/user/7",
            "/run/tessera",
            "/run/tessera/vms",
        ] {
            assert!(!is_for_snapshots(folder), "{folder}");
        }
    }
}
