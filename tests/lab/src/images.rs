//! The initramfs of guests, and the two halves of the nested host's.

use std::fs::{self, File};
use std::io::{self, BufWriter};
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

use crate::artifacts::{Stamp, readable};
use crate::debian::{digest, hex};
use crate::initramfs::{self, Archive};
use crate::modules::{self, Module, Tree};
use crate::places::{self, Places};
use crate::progress::Progress;

/// The nested host's first program.
const HOST_INIT: &str = include_str!("host-init.sh");
/// The guest's first program, below the folder of programs.
const GUEST_INIT: &str = "guest-init";
/// What a guest loads at its start, where the kernel does not have it built in: the virtio transport and
/// its devices, and both halves of a power key.
const GUEST_MODULES: [&str; 5] =
    ["virtio_mmio", "virtio_balloon", "virtio_rng", "evdev", "gpio_keys"];
/// The guest's agent, below the folder of programs.
const AGENT: &str = "tessera-agent";
/// What a guest with the agent loads beside: sockets, network, disks and what is on them.
const AGENT_MODULES: [&str; 4] = ["vmw_vsock_virtio_transport", "virtio_net", "virtio_blk", "ext4"];
/// What busybox is called in a guest.
const GUEST_APPLETS: &str = "ash awk base64 basename cat chmod chown cksum clear cmp cp cut date dd df dirname dmesg du echo env \
    expr false find free grep head hexdump hostname id insmod ip kill killall ln ls lsmod md5sum mkdir mknod mktemp more mount mv nc \
    nproc od pidof ping poweroff printenv printf ps pwd readlink realpath reboot rm rmdir rmmod sed seq setsid sh sha256sum sleep sort \
    stat stty sync sysctl tail tar tee test time timeout top touch tr true tty umount uname uniq uptime usleep vi watch wc which xargs yes";

/// What a nested host with disks loads at its start, where its kernel does not have it built in. The disks are on
/// PCI, whose transport Debian's kernels have built in.
const HOST_DISK_MODULES: [&str; 1] = ["virtio_blk"];

/// Why an image cannot be made.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    /// An archive cannot be written.
    #[error(transparent)]
    Initramfs(#[from] initramfs::Error),
    /// A guest's modules cannot be had.
    #[error(transparent)]
    Modules(#[from] modules::Error),
    /// A folder cannot be made.
    #[error(transparent)]
    Places(#[from] places::Error),
    /// An image cannot be written.
    #[error("cannot write {path}: check the space left and the permissions")]
    Write {
        /// The image.
        path: PathBuf,
        /// The system's reason.
        #[source]
        source: io::Error,
    },
    /// The guest's init has not been built.
    #[error(
        "{path} is missing: run make, or build it (cargo build --release --target aarch64-unknown-linux-musl -p tessera-guest) and copy it there"
    )]
    NoGuestInit {
        /// Where it should be.
        path: PathBuf,
    },
}

/// Makes the guest's initramfs where it is missing or older than what it is made of.
///
/// # Errors
/// [`Error::NoGuestInit`] before the guest's init is built; else when something cannot be read or written.
pub(crate) fn guest(
    places: &Places,
    stamp: &Stamp,
    programs: &Path,
    progress: Progress,
) -> Result<PathBuf, Error> {
    let init = programs.join(GUEST_INIT);
    let digest = digest(&init).map_err(|_| Error::NoGuestInit { path: init.clone() })?;
    let target = places.artifacts().join("initrd.cpio");
    let made_of = target.with_extension("made-of");
    let identity = format!("{} {digest} {GUEST_MODULES:?} {GUEST_APPLETS}", stamp.identity());
    if target.is_file() && fs::read_to_string(&made_of).is_ok_and(|text| text == identity) {
        return Ok(target);
    }
    let modules = places.artifacts().join("modules").join(&stamp.release);
    let modules = Tree::scan(&modules)?.with_dependencies(&GUEST_MODULES)?;
    write_whole(&target, |archive| {
        skeleton(archive, &places.artifacts().join("busybox"))?;
        archive.copy(&init, "/init")?;
        for applet in GUEST_APPLETS.split_whitespace() {
            archive.link(&format!("/bin/{applet}"), "busybox")?;
        }
        add_modules(archive, &format!("/lib/modules-min/{}", stamp.release), &modules)
    })?;
    fs::write(&made_of, identity).map_err(failed(&made_of))?;
    progress.say(&format!("guest initramfs ready: {}", target.display()));
    Ok(target)
}

/// Makes the archive that gives a guest the agent and its sockets, where it is missing or older than what it is
/// made of; `None` before the agent is built. It follows the guest's initramfs: the kernel unpacks one after the
/// other (Documentation/driver-api/early-userspace/buffer-format.rst), and guests without the agent need not
/// carry it.
///
/// # Errors
/// When something cannot be read or written.
pub(crate) fn agent(
    places: &Places,
    stamp: &Stamp,
    programs: &Path,
) -> Result<Option<PathBuf>, Error> {
    let agent = programs.join(AGENT);
    let Ok(digest) = digest(&agent) else { return Ok(None) };
    let target = places.artifacts().join("agent.cpio");
    let made_of = target.with_extension("made-of");
    let identity = format!("{} {digest} {AGENT_MODULES:?}", stamp.identity());
    if target.is_file() && fs::read_to_string(&made_of).is_ok_and(|text| text == identity) {
        return Ok(Some(target));
    }
    let modules = places.artifacts().join("modules").join(&stamp.release);
    let modules = Tree::scan(&modules)?.with_dependencies(&AGENT_MODULES)?;
    write_whole(&target, |archive| {
        archive.copy(&agent, "/bin/tessera-agent")?;
        add_modules(archive, &format!("/lib/modules-agent/{}", stamp.release), &modules)
    })?;
    fs::write(&made_of, identity).map_err(failed(&made_of))?;
    Ok(Some(target))
}

/// Modules in a folder, named in the order of loading.
fn add_modules(
    archive: &mut Archive<BufWriter<File>>,
    folder: &str,
    modules: &[Module],
) -> Result<(), initramfs::Error> {
    for (number, module) in modules.iter().enumerate() {
        let path = format!("{folder}/{number:02}-{}.ko", module.name);
        archive.file(&path, 0o644, &module.data)?;
    }
    Ok(())
}

/// Makes the part of the nested host's initramfs that every boot shares, where it is missing.
///
/// # Errors
/// When something cannot be read or written.
pub(crate) fn host_base(places: &Places, stamp: &Stamp) -> Result<PathBuf, Error> {
    let mut identity = Sha256::new();
    identity.update(stamp.identity());
    identity.update(HOST_INIT);
    let name = hex(&identity.finalize());
    let folder = places.images();
    let target = folder.join(format!("host-{}.cpio", name.get(..16).unwrap_or(&name)));
    if target.is_file() {
        return Ok(target);
    }
    // Bases of other versions are of no more use, and large.
    if folder.exists() {
        fs::remove_dir_all(&folder).map_err(failed(&folder))?;
    }
    places::make_folder(&folder)?;
    let artifacts = places.artifacts();
    write_whole(&target, |archive| {
        skeleton(archive, &artifacts.join("busybox"))?;
        archive.file("/init", 0o755, HOST_INIT.as_bytes())?;
        archive.file(
            "/etc/passwd",
            0o644,
            b"root:x:0:0:root:/tmp:/bin/sh\nnobody:x:65534:65534:nobody:/tmp:/bin/sh\n",
        )?;
        archive.file("/etc/group", 0o644, b"root:x:0:\nnogroup:x:65534:\n")?;
        archive.copy(&artifacts.join("Image"), "/artifacts/Image")?;
        archive.copy(&artifacts.join("modules"), "/artifacts/modules")?;
        archive.link("/lib/modules", "/artifacts/modules")
    })?;
    Ok(target)
}

/// What one boot adds to the base.
#[derive(Debug, Default)]
pub(crate) struct Extra {
    /// The text of the script to run.
    pub(crate) payload: String,
    /// Shell assignments for the host's init.
    pub(crate) settings: String,
    /// Files of this machine and where they go.
    pub(crate) files: Vec<(PathBuf, String)>,
    /// Modules that the host loads, in this order.
    pub(crate) modules: Vec<Module>,
}

/// The modules that a nested host with disks loads. `kernel` has its modules beside it; one that has none there is
/// taken for one with the drivers built in.
///
/// # Errors
/// When a module is damaged.
pub(crate) fn disk_modules(kernel: &Path) -> Result<Vec<Module>, Error> {
    let modules = kernel.with_file_name("modules");
    if !modules.is_dir() {
        return Ok(Vec::new());
    }
    Ok(Tree::scan(&modules)?.with_dependencies(&HOST_DISK_MODULES)?)
}

/// Writes the nested host's whole initramfs to `target`.
///
/// # Errors
/// When something cannot be read or written.
pub(crate) fn host(base: &Path, extra: &Extra, target: &Path) -> Result<(), Error> {
    let mut file = File::create(target).map_err(failed(target))?;
    let mut base_file = File::open(base).map_err(failed(base))?;
    io::copy(&mut base_file, &mut file).map_err(failed(target))?;
    // The kernel unpacks one archive after the other; of two entries of one path the later one counts.
    let mut archive = Archive::new(BufWriter::new(file));
    archive.file("/lab/payload", 0o755, extra.payload.as_bytes())?;
    archive.file("/lab/settings", 0o600, extra.settings.as_bytes())?;
    // What a host with a system of its own carries to it.
    let carried = extra.files.iter().map(|(_, path)| path.as_str());
    let carried: String =
        ["/artifacts"].into_iter().chain(carried).map(|path| format!("{path}\n")).collect();
    archive.file("/lab/files", 0o600, carried.as_bytes())?;
    for (number, module) in extra.modules.iter().enumerate() {
        let path = format!("/lab/modules/{number:02}-{}.ko", module.name);
        archive.file(&path, 0o644, &module.data)?;
    }
    for (source, path) in &extra.files {
        archive.copy(source, path)?;
    }
    archive.finish()?;
    Ok(())
}

/// What every initramfs has: busybox, folders to mount on, and a console before devtmpfs is there.
pub(crate) fn skeleton(
    archive: &mut Archive<BufWriter<File>>,
    busybox: &Path,
) -> Result<(), initramfs::Error> {
    for folder in ["proc", "sys", "dev", "tmp", "run", "etc"] {
        archive.folder(folder)?;
    }
    archive.device("/dev/console", 5, 1)?;
    archive.device("/dev/null", 1, 3)?;
    archive.copy(busybox, "/bin/busybox")
}

/// Writes an archive to a temporary file that then takes the place of `target`.
pub(crate) fn write_whole(
    target: &Path,
    fill: impl FnOnce(&mut Archive<BufWriter<File>>) -> Result<(), initramfs::Error>,
) -> Result<(), Error> {
    let folder = target.parent().unwrap_or(Path::new("."));
    let temporary = readable(folder).map_err(failed(target))?;
    let file = temporary.reopen().map_err(failed(target))?;
    let mut archive = Archive::new(BufWriter::new(file));
    fill(&mut archive)?;
    archive.finish()?;
    temporary.persist(target).map_err(|error| failed(target)(error.error))?;
    Ok(())
}

fn failed(path: &Path) -> impl FnOnce(io::Error) -> Error + use<> {
    let path = path.to_owned();
    |source| Error::Write { path, source }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::process::Command;

    use super::*;

    #[test]
    fn the_hosts_init_is_a_valid_script() {
        let status = Command::new("sh").args(["-n", "-c", HOST_INIT]).status().unwrap();

        assert!(status.success());
    }

    #[test]
    fn a_boots_own_archive_follows_the_base_on_its_own_boundary() {
        let folder = tempfile::tempdir().unwrap();
        let (base, target) = (folder.path().join("base"), folder.path().join("host"));
        write_whole(&base, |archive| archive.file("/init", 0o755, b"base")).unwrap();
        let extra = Extra {
            payload: "exit 3".into(),
            settings: "token=1".into(),
            files: vec![(base.clone(), "/artifacts/initrd.cpio".into())],
            modules: Vec::new(),
        };

        host(&base, &extra, &target).unwrap();

        let (base, host) = (fs::read(&base).unwrap(), fs::read(&target).unwrap());
        assert!(base.len() % 512 == 0 && host.len() % 512 == 0);
        let (first, second) = host.split_at(base.len());
        assert_eq!(first, base);
        assert!(second.starts_with(b"070701"));
    }

    #[test]
    fn an_image_that_cannot_be_completed_is_not_left_behind() {
        let folder = tempfile::tempdir().unwrap();
        let target = folder.path().join("image");

        let result = write_whole(&target, |archive| archive.file("..", 0o644, b""));

        assert!(result.is_err());
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
    }
}
