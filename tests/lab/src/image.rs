//! The Debian image: a system that VMs boot from, made from the archive's packages and kept until what it is made of
//! changes.
//!
//! Three steps, each kept by itself: packages (apt takes up broken downloads), the installed system as a tar archive
//! (minutes; by its packages and script), the disk with kernel and initramfs (seconds; by all that is in them).

mod emulator;
mod namespace;

use std::ffi::OsString;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::artifacts::{self, SUITE, Stamp};
use crate::debian::{self, ARM64, Archive, KEYRING, digest, hex};
use crate::images;
use crate::initramfs::{self, Archive as Initramfs};
use crate::modules::{self, Tree};
use crate::places;
use crate::session::{self, Lab};
use crate::size::Mib;
use namespace::{Job, Line};

const PRELUDE: &str = include_str!("image/prelude.sh");
const INSTALL: &str = include_str!("image/system.sh");
const DISK: &str = include_str!("image/disk.sh");
const INIT: &str = include_str!("image/init.sh");
/// Beside those that Debian calls essential, and what they depend on.
const PACKAGES: &str = "apt login systemd systemd-sysv systemd-resolved libnss-resolve udev dbus kmod e2fsprogs \
    iproute2 iputils-ping procps less openssh-server openssh-sftp-server curl gcc libc6-dev fio iperf3 \
    python3";
/// What the initramfs loads: the transport, the devices, and for vsock what no device names.
const MODULES: [&str; 7] = [
    "virtio_mmio",
    "virtio_blk",
    "virtio_net",
    "virtio_rng",
    "virtio_balloon",
    "vmw_vsock_virtio_transport",
    "gpio_keys",
];
/// The agent, below the folder of programs.
const AGENT: &str = "tessera-agent";
/// Its unit for systemd.
const AGENT_UNIT: &str = include_str!("../../../resources/tessera-agent.service");
/// Memory that a step may use for files: the system takes 600 MiB of it, and extra packages more.
const WORKSPACE: &str = "6g";
/// Systems that are kept: checkouts with other lists of packages share the cache.
const KEPT: usize = 3;
/// Says what the image is made of; written last.
pub(crate) const STAMP: &str = "stamp.json";

/// Why there is no image.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    /// The kernel cannot be had.
    #[error(transparent)]
    Session(#[from] session::Error),
    /// The packages cannot be had.
    #[error(transparent)]
    Debian(#[from] debian::Error),
    /// The emulator cannot be had.
    #[error(transparent)]
    Emulator(#[from] emulator::Error),
    /// A step failed.
    #[error(transparent)]
    Namespace(#[from] namespace::Error),
    /// The initramfs cannot be written.
    #[error(transparent)]
    Images(#[from] images::Error),
    /// Its modules cannot be had.
    #[error(transparent)]
    Modules(#[from] modules::Error),
    /// A folder cannot be made.
    #[error(transparent)]
    Places(#[from] places::Error),
    /// The stamp cannot be written.
    #[error(transparent)]
    Artifacts(#[from] artifacts::Error),
    /// A file of the image.
    #[error("cannot use {path}: check the space left and the permissions")]
    File {
        /// The file.
        path: PathBuf,
        /// The system's reason.
        #[source]
        source: io::Error,
    },
}

/// What a user may choose.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Choice {
    /// Packages beside the usual ones.
    pub(crate) packages: Vec<String>,
    /// The size of the disk in MiB.
    size: u32,
}

impl Choice {
    /// These packages beside the usual ones, on a disk of this size.
    pub(crate) fn new(packages: Vec<String>, size: Mib) -> Self {
        Self { packages, size: size.get() }
    }

    /// The names of all packages.
    fn all(&self) -> Vec<String> {
        let extra = self.packages.iter().map(String::as_str);
        let mut all: Vec<String> =
            PACKAGES.split_whitespace().chain(extra).map(str::to_owned).collect();
        let mut seen = std::collections::HashSet::new();
        all.retain(|name| seen.insert(name.clone()));
        all
    }
}

/// The size of the disk where no other is chosen: a quarter of it is used.
pub(crate) const SIZE: Mib = Mib::new(2048);

/// What lies beside the image.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Made {
    choice: Choice,
    /// Differs whenever something in the image does.
    identity: String,
}

/// The files of the image.
#[derive(Clone, Debug)]
pub(crate) struct Image {
    /// The kernel.
    pub(crate) kernel: PathBuf,
    /// Its initramfs, which mounts the disk.
    pub(crate) initrd: PathBuf,
    /// The disk: a file system without a partition table.
    pub(crate) disk: PathBuf,
}

impl Image {
    fn at(folder: &Path) -> Self {
        Self {
            kernel: folder.join("Image"),
            initrd: folder.join("initrd"),
            disk: folder.join("debian.ext4"),
        }
    }

    fn is_complete(&self) -> bool {
        [&self.kernel, &self.initrd, &self.disk].iter().all(|path| path.is_file())
    }
}

/// Makes the image where it is missing or made of other things; without a choice, the one that is there is made
/// again as it was chosen. `refresh` asks the archive for newer packages.
///
/// # Errors
/// When something cannot be fetched, installed or written.
pub(crate) fn ensure(
    lab: &Lab,
    programs: &Path,
    choice: Option<Choice>,
    refresh: bool,
) -> Result<Image, Error> {
    let stamp = lab.fetch(refresh, programs)?;
    let folder = lab.places.image();
    // Not the lab's lock: tests may run beside this.
    let _lock = places::lock(&folder, &lab.interrupt, lab.progress)?;
    let made = read(&folder.join(STAMP));
    let choice = choice
        .or_else(|| made.as_ref().map(|made| made.choice.clone()))
        .unwrap_or_else(|| Choice::new(Vec::new(), SIZE));
    let image = Image::at(&folder);
    let agent = Some(programs.join(AGENT)).filter(|path| path.is_file());

    let system = system(lab, &choice, refresh)?;
    let identity = identity(&system, &stamp, agent.as_deref(), &choice)?;
    let wanted = Made { choice, identity };
    if image.is_complete() && made.is_some_and(|made| made == wanted) {
        return Ok(image);
    }
    if agent.is_none() {
        lab.progress.say(&format!("the image gets no {AGENT}: {} has none", programs.display()));
    }
    let _ = fs::remove_file(folder.join(STAMP));
    initrd(lab, &stamp, &image.initrd)?;
    replace(&image.kernel, |fresh| {
        fs::copy(lab.places.artifacts().join("Image"), fresh).map(drop).map_err(failed(fresh))
    })?;
    replace(&image.disk, |fresh| {
        disk(lab, &stamp, &system, agent.as_deref(), &wanted.choice, fresh)
    })?;
    artifacts::write_json(&folder.join(STAMP), &wanted)?;
    Ok(image)
}

/// The installed system as a tar archive.
fn system(lab: &Lab, choice: &Choice, refresh: bool) -> Result<PathBuf, Error> {
    let folder = lab.places.systems();
    let _lock = places::lock(&folder, &lab.interrupt, lab.progress)?;
    let packages = choice.all();
    let mut key = Sha256::new();
    for text in [SUITE, PRELUDE, INSTALL, &packages.join(" ")] {
        key.update(text);
        key.update([0]);
    }
    let name = hex(&key.finalize());
    let path = folder.join(format!("{}.tar", name.get(..16).unwrap_or(&name)));
    if path.is_file() && !refresh {
        return Ok(path);
    }
    // apt's state is the lab's.
    let lock = lab.places.lock(&lab.interrupt, lab.progress)?;
    let emulator = emulator::ensure(lab)?;
    let archive = Archive::open(&lab.places.apt(), SUITE, ARM64, &lab.interrupt, lab.progress)?;
    archive.refresh()?;
    let selection = archive.select(&packages)?;
    drop(lock);
    replace(&path, |fresh| {
        let environment = vec![
            ("SUITE", SUITE.into()),
            ("PACKAGES", packages.join(",").into()),
            ("MIRROR", selection.mirror.clone().into()),
            ("KEYRING", KEYRING.into()),
            ("LISTS", selection.lists.clone().into()),
            ("ARCHIVES", selection.archives.clone().into()),
            ("OUTPUT", fresh.into()),
        ];
        // A package is unpacked, and later set up.
        run(lab, INSTALL, environment, emulator.as_deref(), selection.count * 2)
    })?;
    forget(&folder);
    Ok(path)
}

/// Makes the disk at `fresh`.
fn disk(
    lab: &Lab,
    stamp: &Stamp,
    system: &Path,
    agent: Option<&Path>,
    choice: &Choice,
    fresh: &Path,
) -> Result<(), Error> {
    let emulator = emulator::ensure(lab)?;
    let environment = vec![
        ("SUITE", SUITE.into()),
        ("SYSTEM", system.into()),
        ("MODULES", lab.places.artifacts().join("modules").join(&stamp.release).into()),
        ("RELEASE", stamp.release.clone().into()),
        ("AGENT_UNIT", AGENT_UNIT.into()),
        ("AGENT", agent.map(OsString::from).unwrap_or_default()),
        ("SIZE", format!("{}M", choice.size).into()),
        ("OUTPUT", fresh.into()),
    ];
    run(lab, DISK, environment, emulator.as_deref(), 0)
}

/// Runs a script of the image; `units` is how much of its output counts as progress.
fn run(
    lab: &Lab,
    script: &str,
    mut environment: Vec<(&'static str, OsString)>,
    emulator: Option<&Path>,
    units: u64,
) -> Result<(), Error> {
    let workspace = lab.places.image().join("workspace");
    places::make_folder(&workspace)?;
    environment.extend([
        ("WORK", workspace.into_os_string()),
        ("MEMORY", WORKSPACE.into()),
        ("EMULATOR", emulator.map(OsString::from).unwrap_or_default()),
    ]);
    let log = lab.places.image().join("build.log");
    let job = Job { script: format!("{PRELUDE}{script}"), environment, log: &log };
    let mut bar = None;
    let mut done = 0;
    namespace::run(&job, &lab.interrupt, |line| match line {
        Line::Step(step) if units > 0 => bar = Some(lab.progress.bar(step, units)),
        Line::Step(step) => lab.progress.say(step),
        Line::Output(line) => {
            if let Some(bar) = &bar
                && (line.starts_with("Unpacking ") || line.starts_with("Setting up "))
            {
                done += 1;
                bar.set(done);
            }
        }
    })?;
    if let Some(bar) = bar {
        bar.done();
    }
    Ok(())
}

fn initrd(lab: &Lab, stamp: &Stamp, target: &Path) -> Result<(), Error> {
    let artifacts = lab.places.artifacts();
    let modules =
        Tree::scan(&artifacts.join("modules").join(&stamp.release))?.with_dependencies(&MODULES)?;
    let fill = |archive: &mut Initramfs<_>| -> Result<(), initramfs::Error> {
        images::skeleton(archive, &artifacts.join("busybox"))?;
        archive.file("/init", 0o755, INIT.as_bytes())?;
        for (number, module) in modules.iter().enumerate() {
            archive.file(
                &format!("/modules/{number:02}-{}.ko", module.name),
                0o644,
                &module.data,
            )?;
        }
        Ok(())
    };
    Ok(images::write_whole(target, fill)?)
}

fn identity(
    system: &Path,
    stamp: &Stamp,
    agent: Option<&Path>,
    choice: &Choice,
) -> Result<String, Error> {
    let data = fs::metadata(system).map_err(failed(system))?;
    let time =
        data.modified().ok().and_then(|time| time.duration_since(SystemTime::UNIX_EPOCH).ok());
    let agent = match agent {
        Some(path) => digest(path).map_err(failed(path))?,
        None => String::new(),
    };
    let mut identity = Sha256::new();
    for text in [
        &*system.to_string_lossy(),
        &format!("{} {time:?}", data.len()),
        &stamp.identity(),
        PRELUDE,
        DISK,
        AGENT_UNIT,
        INIT,
        &MODULES.join(" "),
        &agent,
        &choice.size.to_string(),
    ] {
        identity.update(text);
        identity.update([0]);
    }
    Ok(hex(&identity.finalize()))
}

/// Has a file made beside `target`, which it then replaces.
fn replace(target: &Path, make: impl FnOnce(&Path) -> Result<(), Error>) -> Result<(), Error> {
    let mut name = target.file_name().unwrap_or_default().to_owned();
    name.push(".new");
    let fresh = target.with_file_name(name);
    // What an interrupted run left.
    let _ = fs::remove_file(&fresh);
    make(&fresh).inspect_err(|_| drop(fs::remove_file(&fresh)))?;
    fs::rename(&fresh, target).map_err(failed(target))
}

/// Removes all but the newest systems.
fn forget(folder: &Path) {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.path());
    let mut systems: Vec<_> = entries
        .filter(|path| path.extension().is_some_and(|extension| extension == "tar"))
        .filter_map(|path| Some((fs::metadata(&path).ok()?.modified().ok()?, path)))
        .collect();
    systems.sort();
    for (_, path) in systems.iter().rev().skip(KEPT) {
        // One that stays takes space and does no harm.
        let _ = fs::remove_file(path);
    }
}

fn read(path: &Path) -> Option<Made> {
    serde_json::from_slice(&fs::read(path).ok()?).ok()
}

fn failed(path: &Path) -> impl FnOnce(io::Error) -> Error + use<> {
    let path = path.to_owned();
    |source| Error::File { path, source }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::process::Command;

    use super::*;

    #[test]
    fn the_scripts_are_valid() {
        for script in [format!("{PRELUDE}{INSTALL}"), format!("{PRELUDE}{DISK}"), INIT.to_owned()] {
            let status = Command::new("sh").args(["-n", "-c", &script]).status().unwrap();

            assert!(status.success());
        }
    }

    #[test]
    fn a_package_is_named_once() {
        let choice = Choice::new(vec!["gcc".into(), "munge".into()], SIZE);

        let all = choice.all();

        assert_eq!(all.iter().filter(|name| *name == "gcc").count(), 1);
        assert_eq!(all.last().map(String::as_str), Some("munge"));
    }

    #[test]
    fn what_cannot_be_made_leaves_what_is_there() {
        let folder = tempfile::tempdir().unwrap();
        let target = folder.path().join("disk");
        fs::write(&target, "old").unwrap();

        let result = replace(&target, |fresh| {
            fs::write(fresh, "half").map_err(failed(fresh))?;
            Err(failed(fresh)(io::ErrorKind::StorageFull.into()))
        });
        assert!(result.is_err());
        assert_eq!(fs::read(&target).unwrap(), b"old");
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);

        replace(&target, |fresh| fs::write(fresh, "new").map_err(failed(fresh))).unwrap();
        assert_eq!(fs::read(&target).unwrap(), b"new");
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
    }

    #[test]
    fn the_newest_systems_are_kept() {
        let folder = tempfile::tempdir().unwrap();
        for number in 0..5u64 {
            let path = folder.path().join(format!("{number}.tar"));
            let file = fs::File::create(path).unwrap();
            file.set_modified(SystemTime::UNIX_EPOCH + std::time::Duration::from_secs(number))
                .unwrap();
        }

        forget(folder.path());

        let mut left: Vec<_> = fs::read_dir(folder.path())
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        left.sort();
        assert_eq!(left, ["2.tar", "3.tar", "4.tar"]);
    }
}
