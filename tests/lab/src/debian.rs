//! Packages of a Debian archive, through apt with a state of its own.
//!
//! apt checks the chain from the archive's signature over the index to the package, takes up broken
//! downloads, and knows the machine's proxy. Nothing of the system's own apt state is read (but its
//! `Acquire` settings) or changed, no foreign architecture is added, and no privilege is needed.

use std::env;
use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::{self, BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};
use std::thread;

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::child::{Group, spawn_tied};
use crate::interrupt::{Interrupt, Interrupted};
use crate::progress::Progress;
use crate::stanza;

/// The archive that `TESSERA_MIRROR` replaces.
const MIRROR: &str = "http://deb.debian.org/debian";
/// The keys that sign Debian's archives; package debian-archive-keyring.
pub(crate) const KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";
/// The architecture of everything the lab runs inside, as Debian calls it.
pub(crate) const ARM64: &str = "arm64";
/// What packages are called that hold a part of a kernel.
const KERNEL_PARTS: [&str; 3] = ["linux-binary-", "linux-modules-", "linux-base-"];
/// dlstatus gives percent with four decimals: thousandths of a percent are exact enough for a bar.
const STATUS_SCALE: f64 = 1000.0;

/// Why a package is not to be had.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    /// The suite's name would not be a name in a sources list.
    #[error(
        "'{0}' is no suite of a Debian archive: use a name like bookworm, trixie, trixie-backports or sid"
    )]
    Suite(String),
    /// The mirror's address cannot stand in a sources list.
    #[error("TESSERA_MIRROR='{0}' is no archive address: use one like {MIRROR}")]
    Mirror(String),
    /// No apt on this machine.
    #[error(
        "cannot start {program}: the lab gets its kernel and busybox with apt; install the packages apt and debian-archive-keyring (Debian 12 or 13, Ubuntu)"
    )]
    NoApt {
        /// The missing program.
        program: &'static str,
        /// The system's reason.
        #[source]
        source: io::Error,
    },
    /// The archive's keys are missing.
    #[error(
        "{KEYRING} is missing: install the package debian-archive-keyring, which checks what is fetched"
    )]
    NoKeyring,
    /// apt refused or failed.
    #[error(
        "{action} failed ({status}): check the network and the mirror ({mirror}; TESSERA_MIRROR names another), then run the command again, it takes up where it stopped\n{said}"
    )]
    Apt {
        /// What was tried.
        action: String,
        /// How apt ended.
        status: ExitStatus,
        /// The archive.
        mirror: String,
        /// The last lines of apt.
        said: String,
    },
    /// The packages do not exist, or not beside each other.
    #[error("the suite {suite} cannot give these packages: check their names\n{said}")]
    Choice {
        /// The suite.
        suite: String,
        /// What apt said.
        said: String,
    },
    /// The index does not know the package.
    #[error(
        "the suite {suite} has no package {package} for {architecture}: check the name, or choose another suite with --suite"
    )]
    Unknown {
        /// The package.
        package: String,
        /// The suite.
        suite: String,
        /// The architecture.
        architecture: String,
    },
    /// A file differs from what the index says.
    #[error(
        "{path} is not what the archive's index names (SHA-256 {found}, expected {expected}): it has been removed, run the command again"
    )]
    Digest {
        /// The downloaded file.
        path: PathBuf,
        /// The digest of the file.
        found: String,
        /// The digest in the index.
        expected: String,
    },
    /// A file or folder of the download cache.
    #[error(
        "cannot use {path}: check the space left and the permissions, or choose another cache with TESSERA_CACHE"
    )]
    File {
        /// The file.
        path: PathBuf,
        /// The system's reason.
        #[source]
        source: io::Error,
    },
    /// Ctrl-C.
    #[error(transparent)]
    Interrupted(#[from] Interrupted),
}

/// A package as the archive's index names it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Package {
    /// Its name.
    pub(crate) name: String,
    /// Its version.
    pub(crate) version: String,
    /// The SHA-256 digest of its file, in lower-case hexadecimal.
    pub(crate) sha256: String,
    /// Its architecture.
    #[serde(default = "arm64")]
    pub(crate) architecture: String,
}

/// What a file that does not name it has.
fn arm64() -> String {
    ARM64.to_owned()
}

/// Packages with all that they need, ready to be installed.
#[derive(Debug)]
pub(crate) struct Selection {
    /// The folder of their files.
    pub(crate) archives: PathBuf,
    /// The folder of the archive's index.
    pub(crate) lists: PathBuf,
    /// The archive.
    pub(crate) mirror: String,
    /// How many they are.
    pub(crate) count: u64,
    /// Their files.
    pub(crate) files: Vec<PathBuf>,
}

/// One suite of a Debian archive.
#[derive(Debug)]
pub(crate) struct Archive<'a> {
    root: PathBuf,
    suite: String,
    architecture: String,
    mirror: String,
    config: PathBuf,
    interrupt: &'a Interrupt,
    progress: Progress,
}

impl<'a> Archive<'a> {
    /// Makes a private apt state for `suite` and `architecture` in `folder`.
    ///
    /// # Errors
    /// When suite, mirror or keyring cannot be used, or the folder not be written.
    pub(crate) fn open(
        folder: &Path,
        suite: &str,
        architecture: &str,
        interrupt: &'a Interrupt,
        progress: Progress,
    ) -> Result<Self, Error> {
        let mirror = env::var("TESSERA_MIRROR")
            .ok()
            .filter(|mirror| !mirror.is_empty())
            .unwrap_or_else(|| MIRROR.to_owned());
        check_names(suite, &mirror)?;
        if !Path::new(KEYRING).exists() {
            return Err(Error::NoKeyring);
        }
        let root = match architecture {
            ARM64 => folder.join(suite),
            other => folder.join(format!("{suite}-{other}")),
        };
        let etc = root.join("etc");
        for name in [
            "state/lists/partial",
            "cache/archives/partial",
            "log",
            "etc/apt.conf.d",
            "etc/preferences.d",
        ] {
            write_folder(&root.join(name))?;
        }
        write(&root.join("state/status"), "")?;
        let sources =
            format!("deb [arch={architecture} signed-by={KEYRING}] {mirror} {suite} main\n");
        write(&etc.join("sources.list"), &sources)?;
        let config = root.join("apt.conf");
        write(&config, &settings(&root, architecture, &network_settings()))?;
        let (suite, architecture) = (suite.to_owned(), architecture.to_owned());
        Ok(Self { root, suite, architecture, mirror, config, interrupt, progress })
    }

    /// Fetches the archive's index, where it changed.
    ///
    /// # Errors
    /// When the archive cannot be reached or its signature does not hold.
    pub(crate) fn refresh(&self) -> Result<(), Error> {
        let text = format!("package index of {} ({})", self.suite, self.mirror);
        self.fetch(&text, Path::new("/"), ["update"])
    }

    /// The newest version of a package, which the index has.
    ///
    /// # Errors
    /// [`Error::Unknown`] where the index lacks it.
    pub(crate) fn find(&self, name: &str) -> Result<Package, Error> {
        let stanza = self.show(name)?;
        let field = |field: &str| stanza.field(field).map(str::to_owned);
        match (field("Version"), field("SHA256")) {
            (Some(version), Some(sha256)) => {
                let architecture = self.architecture.clone();
                Ok(Package { name: name.to_owned(), version, sha256, architecture })
            }
            _ => Err(self.unknown(name)),
        }
    }

    /// The packages of the kernel that `name` stands for: itself, or what a package like linux-image-arm64
    /// depends on. The first one is the image's; newer kernels keep binary, modules and configuration in
    /// packages of their own.
    ///
    /// # Errors
    /// [`Error::Unknown`] where the index lacks one.
    pub(crate) fn find_kernel(&self, name: &str) -> Result<Vec<Package>, Error> {
        let depends =
            |stanza: &stanza::Stanza| stanza.depends().map(str::to_owned).collect::<Vec<_>>();
        let stanza = self.show(name)?;
        let real = depends(&stanza).into_iter().find(|package| package.starts_with("linux-image-"));
        let (image, stanza) = match real {
            Some(real) => (real.clone(), self.show(&real)?),
            None => (name.to_owned(), stanza),
        };
        let parts = depends(&stanza)
            .into_iter()
            .filter(|package| KERNEL_PARTS.iter().any(|part| package.starts_with(part)));
        std::iter::once(image).chain(parts).map(|package| self.find(&package)).collect()
    }

    /// Brings a package's file into `folder`; one that is there and whole is not fetched again.
    ///
    /// # Errors
    /// When it cannot be fetched, or is not what the index says.
    pub(crate) fn download(&self, package: &Package, folder: &Path) -> Result<PathBuf, Error> {
        let path = folder.join(file_name(package));
        if path.exists() && verify(&path, package).is_ok() {
            return Ok(path);
        }
        // A folder for each version: apt takes up the partial file it left there.
        let partial = folder.join(format!("{}.partial", file_name(package)));
        write_folder(&partial)?;
        let wanted = format!("{}:{}={}", package.name, self.architecture, package.version);
        let text = format!("{} {}", package.name, package.version);
        self.fetch(&text, &partial, ["download", &wanted])?;
        let fetched = only_package(&partial)?.ok_or_else(|| self.unknown(&package.name))?;
        verify(&fetched, package)?;
        fs::rename(&fetched, &path).map_err(failed(&path))?;
        fs::remove_dir_all(&partial).map_err(failed(&partial))?;
        Ok(path)
    }

    /// Fetches these packages, all that they depend on, and what every system has (the field Essential). What is there
    /// already is not fetched again.
    ///
    /// # Errors
    /// When one is unknown or cannot be fetched.
    pub(crate) fn select(&self, names: &[String]) -> Result<Selection, Error> {
        if let Some(name) = names.iter().find(|name| !is_package_name(name)) {
            return Err(self.unknown(name));
        }
        let essential = format!("?and(?architecture({}),?essential)", self.architecture);
        let mut words = vec!["install", "--yes", "--no-install-recommends", &essential];
        words.extend(names.iter().map(String::as_str));
        let plan = self
            .command("apt-get")
            .args(["-q", "--simulate"])
            .args(&words)
            .output()
            .map_err(no_apt("apt-get"))?;
        if !plan.status.success() {
            let said = String::from_utf8_lossy(&plan.stderr).into_owned();
            return Err(Error::Choice { suite: self.suite.clone(), said });
        }
        let plan = String::from_utf8_lossy(&plan.stdout).into_owned();
        let names: Vec<String> = plan.lines().filter_map(planned).collect();
        let count = names.len();
        words.push("--download-only");
        self.fetch(&format!("{count} packages of {}", self.suite), Path::new("/"), words)?;
        let archives = self.root.join("cache/archives");
        Ok(Selection {
            files: names.iter().map(|name| archives.join(name)).collect(),
            archives,
            lists: self.root.join("state/lists"),
            mirror: self.mirror.clone(),
            count: count as u64,
        })
    }

    fn unknown(&self, package: &str) -> Error {
        Error::Unknown {
            package: package.to_owned(),
            suite: self.suite.clone(),
            architecture: self.architecture.clone(),
        }
    }

    fn show(&self, name: &str) -> Result<stanza::Stanza, Error> {
        if !is_package_name(name) {
            return Err(self.unknown(name));
        }
        let output = self
            .command("apt-cache")
            .args(["show", "--no-all-versions", name])
            .stderr(Stdio::null())
            .output()
            .map_err(no_apt("apt-cache"))?;
        stanza::parse(&String::from_utf8_lossy(&output.stdout))
            .into_iter()
            .next()
            .ok_or_else(|| self.unknown(name))
    }

    fn command(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        command.env("APT_CONFIG", &self.config).env("LC_ALL", "C.UTF-8").stdin(Stdio::null());
        command
    }

    /// Runs apt-get with a progress bar; `text` says what it gets.
    fn fetch<I>(&self, text: &str, folder: &Path, arguments: I) -> Result<(), Error>
    where
        I: IntoIterator,
        I::Item: AsRef<OsStr>,
    {
        self.interrupt.check()?;
        let bar = self.progress.bar(&format!("getting {text}"), 100 * 1000);
        let mut command = self.command("apt-get");
        command
            .args(["-q", "-o", "APT::Status-Fd=1"])
            .args(arguments)
            .current_dir(folder)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let mut child = spawn_tied(&mut command, Group::Own).map_err(no_apt("apt-get"))?;
        let watch = self.interrupt.watch(&child);
        let errors = child.stderr.take().map(|mut stderr| {
            thread::spawn(move || {
                let mut said = String::new();
                // What was read before a failure is all there is to show.
                let _ = stderr.read_to_string(&mut said);
                said
            })
        });
        for line in child.stdout.take().into_iter().flat_map(|out| BufReader::new(out).lines()) {
            if let Some(done) = line.ok().as_deref().and_then(status) {
                bar.set(done);
            }
        }
        drop(watch);
        let ended = child.wait().map_err(no_apt("apt-get"))?;
        self.interrupt.check()?;
        if !ended.success() {
            return Err(Error::Apt {
                action: format!("getting {text}"),
                status: ended,
                mirror: self.mirror.clone(),
                said: errors.and_then(|thread| thread.join().ok()).unwrap_or_default(),
            });
        }
        bar.done();
        Ok(())
    }
}

/// Whether the file at `path` is the package's, by its digest; one that is not is removed.
///
/// # Errors
/// [`Error::Digest`], or when the file cannot be read.
pub(crate) fn verify(path: &Path, package: &Package) -> Result<(), Error> {
    let found = digest(path).map_err(failed(path))?;
    if found == package.sha256 {
        return Ok(());
    }
    fs::remove_file(path).map_err(failed(path))?;
    Err(Error::Digest { path: path.to_owned(), found, expected: package.sha256.clone() })
}

/// The SHA-256 digest of a file, in lower-case hexadecimal.
///
/// # Errors
/// When the file cannot be read.
pub(crate) fn digest(path: &Path) -> io::Result<String> {
    let mut hasher = Sha256::new();
    let mut file = BufReader::with_capacity(64 << 10, File::open(path)?);
    loop {
        let length = match file.fill_buf()? {
            [] => return Ok(hex(&hasher.finalize())),
            bytes => {
                hasher.update(bytes);
                bytes.len()
            }
        };
        file.consume(length);
    }
}

/// Bytes in lower-case hexadecimal.
pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The name of a package's file in the cache.
pub(crate) fn file_name(package: &Package) -> String {
    // An epoch's colon is legal in a file name, and a nuisance in a path list.
    let version = package.version.replace(':', "%3a");
    format!("{}_{version}_{}.deb", package.name, package.architecture)
}

/// The name of the file that a line of apt's plan stands for: `Inst NAME (VERSION SUITE ... [ARCHITECTURE])`.
fn planned(line: &str) -> Option<String> {
    let (name, rest) = line.strip_prefix("Inst ")?.split_once(' ')?;
    let (_, rest) = rest.split_once('(')?;
    let (version, rest) = rest.split_once(' ')?;
    let (_, architecture) = rest.split_once('[')?;
    let (architecture, _) = architecture.split_once(']')?;
    // apt names packages of another architecture than this machine's with it.
    let (name, _) = name.split_once(':').unwrap_or((name, ""));
    let version = version.replace(':', "%3a");
    Some(format!("{name}_{version}_{architecture}.deb"))
}

/// The progress in a line of apt's status descriptor, in thousandths of a percent.
fn status(line: &str) -> Option<u64> {
    let percent = line.strip_prefix("dlstatus:")?.split(':').nth(1)?;
    let percent: f64 = percent.parse().ok()?;
    // The clamp makes the conversion exact and bounded.
    Some((percent.clamp(0.0, 100.0) * STATUS_SCALE) as u64)
}

/// Whether apt takes the text for a package and nothing else.
fn is_package_name(name: &str) -> bool {
    let known = |c: char| c.is_ascii_alphanumeric() || "+-.".contains(c);
    name.starts_with(|c: char| c.is_ascii_alphanumeric())
        && !name.ends_with('-')
        && name.chars().all(known)
}

fn check_names(suite: &str, mirror: &str) -> Result<(), Error> {
    let name = |c: char| c.is_ascii_alphanumeric() || "-.".contains(c);
    if suite.is_empty() || suite.starts_with(['-', '.']) || !suite.chars().all(name) {
        return Err(Error::Suite(suite.to_owned()));
    }
    let address = |c: char| c.is_ascii_graphic() && !"[]\"#".contains(c);
    if !mirror.contains(':') || !mirror.chars().all(address) {
        return Err(Error::Mirror(mirror.to_owned()));
    }
    Ok(())
}

/// apt.conf(5) for a state below `root`; `network` holds the machine's own `Acquire` settings.
fn settings(root: &Path, architecture: &str, network: &str) -> String {
    let root = root.display();
    format!(
        "Dir \"{root}/\";\nDir::State \"state/\";\nDir::State::status \"{root}/state/status\";\nDir::Cache \"cache/\";\n\
         Dir::Cache::pkgcache \"\";\nDir::Cache::srcpkgcache \"\";\nDir::Etc \"etc/\";\nDir::Etc::sourcelist \"sources.list\";\n\
         Dir::Etc::sourceparts \"-\";\nDir::Log \"log/\";\nAPT::Architecture \"{architecture}\";\nAPT::Architectures \"{architecture}\";\n\
         APT::Sandbox::User \"\";\nAPT::Update::Error-Mode \"any\";\n{network}\
         Acquire::Languages \"none\";\nAcquire::GzipIndexes \"true\";\nAcquire::Retries \"5\";\n"
    )
}

/// The machine's settings for reaching archives, such as a proxy.
fn network_settings() -> String {
    let output = Command::new("apt-config").arg("dump").stdin(Stdio::null()).output();
    let dump = output.map(|output| output.stdout).unwrap_or_default();
    String::from_utf8_lossy(&dump)
        .lines()
        .filter(|line| ["Acquire::http", "Acquire::ftp"].iter().any(|kind| line.starts_with(kind)))
        .map(|line| format!("{line}\n"))
        .collect()
}

/// The package file in a folder that apt downloaded one into.
fn only_package(folder: &Path) -> Result<Option<PathBuf>, Error> {
    let entries = fs::read_dir(folder).map_err(failed(folder))?;
    Ok(entries
        .filter_map(Result::ok)
        .map(|entry| entry.path())
        .find(|path| path.extension() == Some(OsStr::new("deb"))))
}

fn write(path: &Path, text: &str) -> Result<(), Error> {
    fs::write(path, text).map_err(failed(path))
}

fn write_folder(path: &Path) -> Result<(), Error> {
    fs::create_dir_all(path).map_err(failed(path))
}

fn failed(path: &Path) -> impl FnOnce(io::Error) -> Error + use<> {
    let path = path.to_owned();
    |source| Error::File { path, source }
}

fn no_apt(program: &'static str) -> impl FnOnce(io::Error) -> Error {
    move |source| Error::NoApt { program, source }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn a_plan_names_the_files_of_its_packages() {
        let line =
            "Inst zlib1g:arm64 (1:1.3+b1 Debian:13.2/stable, Debian-Security:13/stable [arm64]) []";

        assert_eq!(planned(line).as_deref(), Some("zlib1g_1%3a1.3+b1_arm64.deb"));
        let line = "Inst mime-support (3.66 Debian:13.2/stable [all])";
        assert_eq!(planned(line).as_deref(), Some("mime-support_3.66_all.deb"));
        assert_eq!(planned("Conf zlib1g (1:1.3 Debian:13.2/stable [arm64])"), None);
    }

    #[test]
    fn progress_lines_are_read_and_others_left() {
        assert_eq!(status("dlstatus:3:14.4850:Retrieving file 3 of 3"), Some(14_485));
        assert_eq!(status("dlstatus:1:900:x"), Some(100_000));
        assert_eq!(status("dlstatus:1:-5:x"), Some(0));
        assert_eq!(status("dlstatus:1"), None);
        assert_eq!(status("Get:1 http://deb.debian.org/debian trixie"), None);
    }

    #[test]
    fn names_that_would_change_the_sources_list_are_refused() {
        for suite in ["", "-o", "../x", "trixie main contrib", "a\nb"] {
            assert!(check_names(suite, MIRROR).is_err(), "{suite}");
        }
        for mirror in ["", "nowhere", "http://a b", "http://a\ndeb", "http://a#"] {
            assert!(check_names("trixie", mirror).is_err(), "{mirror}");
        }
        assert!(check_names("trixie-backports", "file:/srv/debian").is_ok());
    }

    #[test]
    fn options_and_patterns_are_no_packages() {
        for name in ["", "-o", "?essential", "gcc-", "a b", "a=1", "./x.deb"] {
            assert!(!is_package_name(name), "{name}");
        }
        assert!(is_package_name("libstdc++6") && is_package_name("g++"));
    }

    #[test]
    fn a_file_that_differs_from_the_index_is_removed() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.deb");
        fs::write(&path, "abc").unwrap();
        let package = |sha256: &str| Package {
            name: "a".into(),
            version: "1".into(),
            sha256: sha256.into(),
            architecture: arm64(),
        };

        // The digest of "abc" is the first example of FIPS 180-4.
        let right = package("ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
        assert!(verify(&path, &right).is_ok());
        assert!(matches!(verify(&path, &package("00")), Err(Error::Digest { .. })));
        assert!(!path.exists());
    }

    #[test]
    fn file_names_carry_version_and_no_colon() {
        let package = Package {
            name: "busybox-static".into(),
            version: "1:1.37.0-6+b9".into(),
            sha256: String::new(),
            architecture: arm64(),
        };
        assert_eq!(file_name(&package), "busybox-static_1%3a1.37.0-6+b9_arm64.deb");
    }
}
