//! What the nested host and its guests run on: kernel, modules, busybox; fetched once, kept, checked.

use std::fs;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::deb;
use crate::debian::{self, Archive, Package};
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
    kernel: Package,
    busybox: Package,
}

/// What the artifacts folder holds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Stamp {
    schema: u32,
    suite: String,
    kernel: Package,
    busybox: Package,
    /// The kernel's release: the name of its folder of modules.
    pub(crate) release: String,
}

impl Stamp {
    /// What it is, for people.
    pub(crate) fn describe(&self) -> String {
        format!(
            "Linux {} ({}), busybox {}",
            self.release, self.kernel.version, self.busybox.version
        )
    }

    /// A text that differs whenever the artifacts do.
    pub(crate) fn identity(&self) -> String {
        format!("{} {} {}", self.schema, self.kernel.sha256, self.busybox.sha256)
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
                let (resolved, files) = self.packages(refresh)?;
                let same = |stamp: &Stamp| {
                    stamp.kernel == resolved.kernel && stamp.busybox == resolved.busybox
                };
                match present {
                    Some(stamp) if complete && same(&stamp) => Ok(stamp),
                    _ => self.install(resolved, &files),
                }
            }
        }
    }

    /// The default packages and their files in the cache.
    fn packages(&self, refresh: bool) -> Result<(Resolved, [PathBuf; 2]), Error> {
        let cache = self.places.packages();
        places::make_folder(&cache)?;
        let index = cache.join(format!("{SUITE}.json"));
        let known: Option<Resolved> =
            fs::read(&index).ok().and_then(|text| serde_json::from_slice(&text).ok());
        if let (Some(resolved), false) = (known, refresh) {
            let paths = [&resolved.kernel, &resolved.busybox]
                .map(|package| cache.join(debian::file_name(package)));
            let whole = |(path, package): (&PathBuf, &Package)| {
                path.is_file() && debian::verify(path, package).is_ok()
            };
            if paths.iter().zip([&resolved.kernel, &resolved.busybox]).all(whole) {
                return Ok((resolved, paths));
            }
        }
        let archive = Archive::open(&self.places.apt(), SUITE, self.interrupt, self.progress)?;
        archive.refresh()?;
        let resolved =
            Resolved { kernel: archive.find_kernel(KERNEL)?, busybox: archive.find(BUSYBOX)? };
        let files = [
            archive.download(&resolved.kernel, &cache)?,
            archive.download(&resolved.busybox, &cache)?,
        ];
        write_json(&index, &resolved)?;
        Ok((resolved, files))
    }

    fn install(&self, resolved: Resolved, files: &[PathBuf; 2]) -> Result<Stamp, Error> {
        let folder = self.places.artifacts();
        let fresh = Fresh::new(&folder)?;
        let release = self.unpack_kernel(&resolved.kernel, &files[0], fresh.path())?;
        let busybox = fresh.path().join("busybox");
        deb::unpack(&files[1], self.interrupt, self.progress, |inside| {
            ["bin/busybox", "usr/bin/busybox"]
                .iter()
                .any(|path| inside == Path::new(path))
                .then(|| busybox.clone())
        })?;
        if !busybox.is_file() {
            return Err(incomplete(&resolved.busybox, "bin/busybox"));
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
    ///
    /// # Errors
    /// As [`Store::ensure`].
    pub(crate) fn kernel(&self, package: &str, suite: &str, name: &str) -> Result<PathBuf, Error> {
        let known = |c: char| c.is_ascii_alphanumeric() || ".+_-".contains(c);
        if name.is_empty() || name.starts_with('.') || !name.chars().all(known) {
            return Err(Error::Name(name.to_owned()));
        }
        let folder = self.places.artifacts().join("kernels").join(name);
        let archive = Archive::open(&self.places.apt(), suite, self.interrupt, self.progress)?;
        archive.refresh()?;
        let found = archive.find_kernel(package)?;
        let present: Option<Package> =
            fs::read(folder.join(STAMP)).ok().and_then(|text| serde_json::from_slice(&text).ok());
        if present.as_ref() == Some(&found) {
            return Ok(folder);
        }
        let cache = self.places.packages();
        places::make_folder(&cache)?;
        let file = archive.download(&found, &cache)?;
        let fresh = Fresh::new(&folder)?;
        self.unpack_kernel(&found, &file, fresh.path())?;
        fresh.publish(&["Image", "modules", "kernel-config"], &found)?;
        Ok(folder)
    }

    /// Unpacks a kernel package to Image, modules/ and kernel-config; returns its release.
    fn unpack_kernel(&self, package: &Package, file: &Path, into: &Path) -> Result<String, Error> {
        let mut release = None;
        deb::unpack(file, self.interrupt, self.progress, |inside| {
            // Since Debian 13 the modules lie below /usr.
            let inside = inside.strip_prefix("usr").unwrap_or(inside);
            if let Ok(module) = inside.strip_prefix("lib/modules") {
                if let Some(name) = module.components().next() {
                    release.get_or_insert_with(|| name.as_os_str().to_string_lossy().into_owned());
                }
                return Some(into.join("modules").join(module));
            }
            let name = inside.strip_prefix("boot").ok()?.to_str()?;
            if name.starts_with("vmlinuz-") {
                Some(into.join("Image"))
            } else {
                name.starts_with("config-").then(|| into.join("kernel-config"))
            }
        })?;
        if !into.join("Image").is_file() {
            return Err(incomplete(package, "boot/vmlinuz"));
        }
        release.ok_or_else(|| incomplete(package, "lib/modules"))
    }
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

fn incomplete(package: &Package, missing: &'static str) -> Error {
    Error::Incomplete { package: package.name.clone(), version: package.version.clone(), missing }
}

fn failed(path: &Path) -> impl FnOnce(io::Error) -> Error + use<> {
    let path = path.to_owned();
    |source| Error::File { path, source }
}
