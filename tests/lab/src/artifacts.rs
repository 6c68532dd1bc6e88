//! What the nested host and its guests run on: kernel, modules, busybox; fetched once, kept, checked.

use std::fs;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::deb;
use crate::debian::{self, ARM64, Archive, Package};
use crate::interrupt::Interrupt;
use crate::places::{self, Lock, Places};
use crate::progress::Progress;

/// The suite whose kernel and busybox the lab uses by default: Debian 13, Linux 6.12.
pub(crate) const SUITE: &str = "trixie";
/// The package that depends on the suite's current kernel for virtual machines.
const KERNEL: &str = "linux-image-cloud-arm64";
/// The shell and tools of the nested host and its guests, one static file.
const BUSYBOX: &str = "busybox-static";
/// Raise it when what lies in the artifacts folder changes its form.
const SCHEMA: u32 = 1;
const STAMP: &str = "stamp.json";

/// Why the artifacts cannot be had.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    /// A package cannot be fetched.
    #[error(transparent)]
    Debian(#[from] debian::Error),
    /// A package cannot be unpacked.
    #[error(transparent)]
    Deb(#[from] deb::Error),
    /// A folder cannot be made.
    #[error(transparent)]
    Places(#[from] places::Error),
    /// A package lacks the files it is fetched for.
    #[error("{package} {version} holds no {missing}: choose another package or suite")]
    Incomplete {
        /// The package.
        package: String,
        /// Its version.
        version: String,
        /// What was looked for.
        missing: &'static str,
    },
    /// The name of a folder for a kernel.
    #[error("'{0}' is no folder name for a kernel: use letters, digits, '.', '+', '_' and '-'")]
    Name(String),
    /// A file of the artifacts.
    #[error("cannot use {path}: check the space left and the permissions")]
    File {
        /// The file.
        path: PathBuf,
        /// The system's reason.
        #[source]
        source: io::Error,
    },
}

/// The packages of one suite, as its index named them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Resolved {
    /// The packages of the kernel, that of the image first.
    kernel: Vec<Package>,
    busybox: Package,
}

/// A kernel by the name of its package.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Kernel {
    /// The package; one that depends on the suite's current kernel will do.
    pub(crate) package: String,
    /// The suite it comes from.
    pub(crate) suite: String,
}

impl Resolved {
    fn all(&self) -> impl Iterator<Item = &Package> {
        self.kernel.iter().chain([&self.busybox])
    }
}

/// What the artifacts folder holds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Stamp {
    schema: u32,
    suite: String,
    kernel: Vec<Package>,
    busybox: Package,
    /// The kernel's release: the name of its folder of modules.
    pub(crate) release: String,
}

impl Stamp {
    /// What it is, for people.
    pub(crate) fn describe(&self) -> String {
        let kernel = self.kernel.first().map_or("?", |package| package.version.as_str());
        format!("Linux {} ({kernel}), busybox {}", self.release, self.busybox.version)
    }

    /// A text that differs whenever the artifacts do.
    pub(crate) fn identity(&self) -> String {
        let digests: Vec<&str> =
            self.kernel.iter().map(|package| package.sha256.as_str()).collect();
        format!("{} {} {}", self.schema, digests.join(" "), self.busybox.sha256)
    }
}

/// A program that prepares the artifacts.
#[derive(Debug)]
pub(crate) struct Store<'a> {
    places: &'a Places,
    interrupt: &'a Interrupt,
    progress: Progress,
}

impl<'a> Store<'a> {
    /// The store in `places`. The lock proves that no other process prepares it.
    pub(crate) fn new(
        places: &'a Places,
        _lock: &'a Lock,
        interrupt: &'a Interrupt,
        progress: Progress,
    ) -> Self {
        Self { places, interrupt, progress }
    }

    /// Makes the artifacts complete, fetching only what is missing. `refresh` asks the archive for newer
    /// versions; without it, artifacts that are complete are left, and packages once fetched are used.
    ///
    /// # Errors
    /// When a package cannot be fetched, checked or unpacked.
    pub(crate) fn ensure(&self, refresh: bool) -> Result<Stamp, Error> {
        let folder = self.places.artifacts();
        let present =
            read_stamp(&folder).filter(|stamp| stamp.schema == SCHEMA && stamp.suite == SUITE);
        let complete =
            ["Image", "busybox", "kernel-config"].iter().all(|name| folder.join(name).is_file());
        match present {
            Some(stamp)
                if complete && !refresh && folder.join("modules").join(&stamp.release).is_dir() =>
            {
                Ok(stamp)
            }
            present => {
                let resolved = self.packages(refresh)?;
                let same = |stamp: &Stamp| {
                    stamp.kernel == resolved.kernel && stamp.busybox == resolved.busybox
                };
                match present {
                    Some(stamp) if complete && same(&stamp) => Ok(stamp),
                    _ => self.install(resolved),
                }
            }
        }
    }

    /// The default packages, all of them in the cache.
    fn packages(&self, refresh: bool) -> Result<Resolved, Error> {
        let cache = self.places.packages();
        places::make_folder(&cache)?;
        let index = cache.join(format!("{SUITE}.json"));
        let known: Option<Resolved> =
            fs::read(&index).ok().and_then(|text| serde_json::from_slice(&text).ok());
        if let (Some(resolved), false) = (known, refresh)
            && resolved.all().all(|package| is_cached(&cache, package))
        {
            return Ok(resolved);
        }
        let archive =
            Archive::open(&self.places.apt(), SUITE, ARM64, self.interrupt, self.progress)?;
        archive.refresh()?;
        let resolved =
            Resolved { kernel: archive.find_kernel(KERNEL)?, busybox: archive.find(BUSYBOX)? };
        for package in resolved.all() {
            archive.download(package, &cache)?;
        }
        write_json(&index, &resolved)?;
        Ok(resolved)
    }

    fn install(&self, resolved: Resolved) -> Result<Stamp, Error> {
        let folder = self.places.artifacts();
        let fresh = Fresh::new(&folder)?;
        let release = self.unpack_kernel(&resolved.kernel, fresh.path())?;
        let busybox = fresh.path().join("busybox");
        let file = self.places.packages().join(debian::file_name(&resolved.busybox));
        deb::unpack(&file, self.interrupt, self.progress, |inside| {
            ["bin/busybox", "usr/bin/busybox"]
                .iter()
                .any(|path| inside == Path::new(path))
                .then(|| busybox.clone())
        })?;
        if !busybox.is_file() {
            return Err(incomplete(Some(&resolved.busybox), "bin/busybox"));
        }
        make_executable(&busybox)?;
        let stamp = Stamp {
            schema: SCHEMA,
            suite: SUITE.to_owned(),
            kernel: resolved.kernel,
            busybox: resolved.busybox,
            release,
        };
        fresh.publish(&["Image", "modules", "kernel-config", "busybox"], &stamp)?;
        self.progress.say(&format!("artifacts ready: {}", stamp.describe()));
        Ok(stamp)
    }

    /// Brings another arm64 kernel into kernels/NAME below the artifacts, for tests over kernels and forms.
    /// `refresh` as for [`Store::ensure`].
    ///
    /// # Errors
    /// As [`Store::ensure`].
    pub(crate) fn kernel(
        &self,
        wanted: &Kernel,
        name: &str,
        refresh: bool,
    ) -> Result<PathBuf, Error> {
        let known = |c: char| c.is_ascii_alphanumeric() || ".+_-".contains(c);
        if name.is_empty() || name.starts_with('.') || !name.chars().all(known) {
            return Err(Error::Name(name.to_owned()));
        }
        let folder = self.places.artifacts().join("kernels").join(name);
        let text = fs::read(folder.join(STAMP)).ok();
        let present = text
            .and_then(|text| serde_json::from_slice::<(Kernel, Vec<Package>)>(&text).ok())
            .filter(|(kernel, _)| kernel == wanted);
        if present.is_some() && !refresh {
            return Ok(folder);
        }
        let found = self.kernel_packages(wanted, refresh)?;
        if present.is_some_and(|(_, packages)| packages == found) {
            return Ok(folder);
        }
        let fresh = Fresh::new(&folder)?;
        self.unpack_kernel(&found, fresh.path())?;
        fresh.publish(&["Image", "modules", "kernel-config"], &(wanted, found))?;
        Ok(folder)
    }

    /// The packages of a kernel, all of them in the cache.
    fn kernel_packages(&self, wanted: &Kernel, refresh: bool) -> Result<Vec<Package>, Error> {
        let cache = self.places.packages();
        places::make_folder(&cache)?;
        let archive =
            Archive::open(&self.places.apt(), &wanted.suite, ARM64, self.interrupt, self.progress)?;
        // Nothing is written there before the archive has found a package of that name.
        let index = cache.join(format!("{}-{}.json", wanted.suite, wanted.package));
        let known: Option<Vec<Package>> =
            fs::read(&index).ok().and_then(|text| serde_json::from_slice(&text).ok());
        if let (Some(found), false) = (known, refresh)
            && found.iter().all(|package| is_cached(&cache, package))
        {
            return Ok(found);
        }
        archive.refresh()?;
        let found = archive.find_kernel(&wanted.package)?;
        for package in &found {
            archive.download(package, &cache)?;
        }
        write_json(&index, &found)?;
        Ok(found)
    }

    /// Unpacks a kernel's packages to Image, modules/ and kernel-config; returns its release.
    fn unpack_kernel(&self, packages: &[Package], into: &Path) -> Result<String, Error> {
        let mut release = None;
        for package in packages {
            let file = self.places.packages().join(debian::file_name(package));
            deb::unpack(&file, self.interrupt, self.progress, |inside| {
                let (target, named) = kernel_file(inside)?;
                release = release.take().or(named);
                Some(into.join(target))
            })?;
        }
        for (name, missing) in [("Image", "boot/vmlinuz"), ("kernel-config", "boot/config")] {
            if !into.join(name).is_file() {
                return Err(incomplete(packages.first(), missing));
            }
        }
        release.ok_or_else(|| incomplete(packages.first(), "lib/modules"))
    }
}

/// Where a file of a kernel package goes, and the kernel's release if its path says so.
fn kernel_file(inside: &Path) -> Option<(PathBuf, Option<String>)> {
    // Since Debian 13 the modules lie below /usr.
    let inside = inside.strip_prefix("usr").unwrap_or(inside);
    if let Ok(module) = inside.strip_prefix("lib/modules") {
        let mut parts = module.components().map(|part| part.as_os_str().to_string_lossy());
        let release = parts.next()?.into_owned();
        // Since Linux 7 image and configuration lie beside the modules; device trees are not for guests.
        let target = match &*parts.next()? {
            "vmlinuz" => PathBuf::from("Image"),
            "config" => PathBuf::from("kernel-config"),
            "dtb" | "System.map" => return None,
            _ => Path::new("modules").join(module),
        };
        return Some((target, Some(release)));
    }
    let name = inside.strip_prefix("boot").ok()?.to_str()?;
    let target = match name.split_once('-')? {
        ("vmlinuz", _) => "Image",
        ("config", _) => "kernel-config",
        _ => return None,
    };
    Some((PathBuf::from(target), None))
}

/// Whether the package's file is in the cache and whole.
fn is_cached(cache: &Path, package: &Package) -> bool {
    let path = cache.join(debian::file_name(package));
    path.is_file() && debian::verify(&path, package).is_ok()
}

/// A folder beside the artifacts that takes their place piece by piece once it is complete.
struct Fresh<'a> {
    target: &'a Path,
    folder: tempfile::TempDir,
}

impl<'a> Fresh<'a> {
    fn new(target: &'a Path) -> Result<Self, Error> {
        places::make_folder(target)?;
        let folder =
            tempfile::Builder::new().prefix(".new-").tempdir_in(target).map_err(failed(target))?;
        Ok(Self { target, folder })
    }

    fn path(&self) -> &Path {
        self.folder.path()
    }

    /// Moves `names` into place. The stamp goes first and comes back last: an interrupted move shows.
    fn publish(&self, names: &[&str], stamp: &impl Serialize) -> Result<(), Error> {
        remove(&self.target.join(STAMP))?;
        for name in names {
            let target = self.target.join(name);
            remove(&target)?;
            fs::rename(self.path().join(name), &target).map_err(failed(&target))?;
        }
        write_json(&self.target.join(STAMP), stamp)
    }
}

fn read_stamp(folder: &Path) -> Option<Stamp> {
    serde_json::from_slice(&fs::read(folder.join(STAMP)).ok()?).ok()
}

/// A temporary file in `folder` that everybody may read once it has its place.
///
/// # Errors
/// When it cannot be made.
pub(crate) fn readable(folder: &Path) -> io::Result<tempfile::NamedTempFile> {
    tempfile::Builder::new().permissions(fs::Permissions::from_mode(0o644)).tempfile_in(folder)
}

/// Writes a file whole or not at all.
pub(crate) fn write_json(path: &Path, value: &impl Serialize) -> Result<(), Error> {
    let write = || {
        let folder = path.parent().unwrap_or(Path::new("."));
        let file = readable(folder)?;
        serde_json::to_writer_pretty(&file, value)?;
        file.as_file().sync_data()?;
        file.persist(path).map_err(io::Error::from)
    };
    write().map(drop).map_err(failed(path))
}

fn remove(path: &Path) -> Result<(), Error> {
    let removed = match fs::symlink_metadata(path) {
        Ok(metadata) if metadata.is_dir() => fs::remove_dir_all(path),
        Ok(_) => fs::remove_file(path),
        Err(_) => Ok(()),
    };
    removed.map_err(failed(path))
}

fn make_executable(path: &Path) -> Result<(), Error> {
    fs::set_permissions(path, fs::Permissions::from_mode(0o755)).map_err(failed(path))
}

fn incomplete(package: Option<&Package>, missing: &'static str) -> Error {
    let (package, version) =
        package.map_or(("?", "?"), |package| (package.name.as_str(), package.version.as_str()));
    Error::Incomplete { package: package.to_owned(), version: version.to_owned(), missing }
}

fn failed(path: &Path) -> impl FnOnce(io::Error) -> Error + use<> {
    let path = path.to_owned();
    |source| Error::File { path, source }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    fn place(path: &str) -> Option<(String, Option<String>)> {
        kernel_file(Path::new(path)).map(|(path, release)| (path.display().to_string(), release))
    }

    #[test]
    fn kernel_files_have_the_same_place_whatever_the_package() {
        let module = Some(("modules/6.12/kernel/a.ko.xz".to_owned(), Some("6.12".to_owned())));
        assert_eq!(place("lib/modules/6.12/kernel/a.ko.xz"), module);
        assert_eq!(place("usr/lib/modules/6.12/kernel/a.ko.xz"), module);
        assert_eq!(place("boot/vmlinuz-6.12"), Some(("Image".to_owned(), None)));
        assert_eq!(place("boot/config-6.12"), Some(("kernel-config".to_owned(), None)));
        let beside = |name: &str| Some((name.to_owned(), Some("7.3".to_owned())));
        assert_eq!(place("usr/lib/modules/7.3/vmlinuz"), beside("Image"));
        assert_eq!(place("usr/lib/modules/7.3/config"), beside("kernel-config"));
        assert_eq!(place("usr/lib/modules/7.3/dtb/a/b.dtb"), None);
        assert_eq!(place("boot/System.map-6.12"), None);
        assert_eq!(place("usr/share/doc/vmlinuz-6.12"), None);
    }

    #[test]
    fn what_is_published_replaces_the_old_and_is_stamped_last() {
        let root = tempfile::tempdir().unwrap();
        let target = root.path().join("artifacts");
        fs::create_dir_all(target.join("modules/old")).unwrap();
        fs::write(target.join(STAMP), "old").unwrap();
        let fresh = Fresh::new(&target).unwrap();
        fs::create_dir_all(fresh.path().join("modules/new")).unwrap();

        fresh.publish(&["modules"], &"stamp").unwrap();
        drop(fresh);

        assert!(target.join("modules/new").is_dir() && !target.join("modules/old").exists());
        assert_eq!(fs::read_to_string(target.join(STAMP)).unwrap(), "\"stamp\"");
        assert_eq!(fs::read_dir(&target).unwrap().count(), 2);
    }

    #[test]
    fn an_interrupted_publication_leaves_no_stamp() {
        let root = tempfile::tempdir().unwrap();
        fs::write(root.path().join(STAMP), "old").unwrap();
        let fresh = Fresh::new(root.path()).unwrap();

        assert!(fresh.publish(&["missing"], &"stamp").is_err());
        assert!(read_stamp(root.path()).is_none());
    }
}
