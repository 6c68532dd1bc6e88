//! Which files a VM opens, makes and removes once its guest runs.

use std::env;
use std::ffi::OsString;
use std::path::{Path, PathBuf};

use super::snapshots::Restore;
use crate::backends::{balloon, vsock};
#[cfg(target_arch = "aarch64")]
use crate::config::CommandLineOnly;
use crate::folder::folder_of;
use crate::registry;
#[cfg(target_arch = "aarch64")]
use crate::registry::Entry;
use crate::sandbox::{FileUse, Files};
use crate::spec::{DiskSpec, NetBackendSpec, SerialTarget, Spec};

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
    if let Some(folder) = flags.api_sock.map(folder_of) {
        files.made_in_if_there.extend(unnamed(folder));
        files.removed_in.push(folder.to_owned());
    }
    files.removed_in.extend(entry.map(|entry| entry.folder().to_owned()));
    files
}

/// Folders of the system: what is in them decides what others do.
const OF_THE_SYSTEM: [&str; 10] =
    ["/bin", "/boot", "/dev", "/etc", "/lib", "/lib64", "/proc", "/sbin", "/sys", "/usr"];

/// Folders with one for each user, or each part of the system: those in them have an owner each.
const OF_OTHERS: [&str; 3] = ["/home", "/run/user", "/var"];

/// A folder in which a VM may have files without being asked for it (`--allow`), by its canonical path. Rules are for all
/// that is below.
fn unnamed(folder: &Path) -> Option<PathBuf> {
    let shared = shared_places(|name| env::var_os(name), registry::entries());
    folder.canonicalize().ok().filter(|folder| is_of_vms(folder, &shared))
}

/// Places of the user in which others decide what programs do, or which VMs there are.
fn shared_places(
    variable: impl Fn(&str) -> Option<OsString>,
    registry: Option<PathBuf>,
) -> Vec<PathBuf> {
    let places = ["HOME", "XDG_RUNTIME_DIR"].map(|name| variable(name).map(PathBuf::from));
    let places = places.into_iter().flatten().chain(registry);
    places.map(|place| place.canonicalize().unwrap_or(place)).collect()
}

/// Whether a folder can be of VMs alone: not one of the system's, and none that has one of these places in it.
fn is_of_vms(folder: &Path, shared: &[PathBuf]) -> bool {
    let is_at_the_root = folder.parent().is_none_or(|above| above.parent().is_none());
    let is_of_the_system = OF_THE_SYSTEM.iter().any(|place| folder.starts_with(place));
    let is_of_others = OF_OTHERS.iter().any(|place| folder.parent() == Some(Path::new(place)));
    let is_shared = shared.iter().any(|place| place.starts_with(folder));
    (!is_at_the_root || folder == Path::new("/tmp"))
        && !is_of_the_system
        && !is_of_others
        && !is_shared
}

/// The folder of a disk, in which a client may name another file for it. Where devices are, each is named at the start.
fn beside(disk: &DiskSpec) -> Option<(PathBuf, FileUse)> {
    let file_use = if disk.read_only { FileUse::Read } else { FileUse::Write };
    // That of the file, whatever link leads to it.
    let file = disk.path.canonicalize().ok()?;
    Some((unnamed(folder_of(&file))?, file_use))
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
    let record = restore.and_then(Restore::record);
    files.made_in_if_there.extend(record.map(folder_of).and_then(unnamed));
    files.opened_in.extend(spec.disks.iter().filter_map(beside));
    if spec.net.iter().any(|net| matches!(net.backend, NetBackendSpec::Tap(_))) {
        files.devices.push(TAPS.into());
    }
    files
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;
    use crate::spec::RateLimiterSpec;

    #[test]
    fn a_vm_has_the_folders_of_its_socket_and_disks_unless_they_are_places_of_others() {
        let variable = |name: &str| match name {
            "HOME" => Some("/home/me".into()),
            "XDG_RUNTIME_DIR" => Some("/run/user/7".into()),
            _ => None,
        };
        let shared = shared_places(variable, Some("/run/tessera/vms".into()));
        let is_of_vms = |folder: &str| is_of_vms(Path::new(folder), &shared);

        for folder in ["/tmp", "/tmp/a", "/home/me/vms", "/srv/vms", "/run/tessera/vms/one"] {
            assert!(is_of_vms(folder), "{folder}");
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
            "/home/you",
            "/run/user/8",
            "/var/lib",
            "/etc/cron.d",
            "/usr/local/bin",
            "/root",
        ] {
            assert!(!is_of_vms(folder), "{folder}");
        }
    }

    #[test]
    fn a_disk_may_be_replaced_by_a_file_beside_it_and_never_by_a_device() {
        let scratch = tempfile::tempdir().unwrap();
        let folder = scratch.path().canonicalize().unwrap();
        let disk = |path: &Path, read_only| DiskSpec {
            id: "data".into(),
            path: path.to_owned(),
            root: false,
            partuuid: None,
            read_only,
            direct: false,
            rate_limiter: RateLimiterSpec::default(),
        };

        std::fs::write(folder.join("a.img"), "").unwrap();
        assert_eq!(
            beside(&disk(&folder.join("a.img"), false)),
            Some((folder.clone(), FileUse::Write))
        );
        assert_eq!(
            beside(&disk(&folder.join("a.img"), true)),
            Some((folder.clone(), FileUse::Read))
        );
        assert_eq!(beside(&disk(&folder.join("none/a.img"), true)), None);
        for device in ["/dev/null", "/dev/shm/disk"] {
            assert_eq!(beside(&disk(Path::new(device), false)), None, "{device}");
        }
        // By the file, not by the link to it.
        let images = folder.join("images");
        std::fs::create_dir(&images).unwrap();
        std::fs::write(images.join("v1"), "").unwrap();
        std::os::unix::fs::symlink(images.join("v1"), folder.join("current")).unwrap();
        assert_eq!(beside(&disk(&folder.join("current"), false)), Some((images, FileUse::Write)));
    }
}
