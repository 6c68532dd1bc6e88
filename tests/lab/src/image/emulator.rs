//! The program that runs arm64 programs on this machine: QEMU's user mode, a static file out of Debian's package.

use std::fs;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use crate::artifacts::SUITE;
use crate::deb;
use crate::debian::{self, Archive};
use crate::places;
use crate::session::Lab;

/// Debian 13's is linked statically.
const PACKAGE: &str = "qemu-user";
const PROGRAM: &str = "qemu-aarch64";

/// Why there is no emulator.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    /// The package cannot be fetched.
    #[error(transparent)]
    Debian(#[from] debian::Error),
    /// The package cannot be unpacked.
    #[error(transparent)]
    Deb(#[from] deb::Error),
    /// A folder cannot be made.
    #[error(transparent)]
    Places(#[from] places::Error),
    /// The file cannot be kept.
    #[error("cannot use {path}: check the space left and the permissions")]
    File {
        /// The file.
        path: PathBuf,
        /// The system's reason.
        #[source]
        source: io::Error,
    },
}

/// The emulator, fetched where it is missing; nothing on an arm64 machine.
///
/// # Errors
/// When it cannot be fetched.
pub(crate) fn ensure(lab: &Lab) -> Result<Option<PathBuf>, Error> {
    let architecture = match std::env::consts::ARCH {
        "aarch64" => return Ok(None),
        "x86_64" => "amd64",
        other => other,
    };
    let folder = lab.places.emulator();
    let path = folder.join(PROGRAM);
    if path.is_file() {
        return Ok(Some(path));
    }
    places::make_folder(&folder)?;
    let archive =
        Archive::open(&lab.places.apt(), SUITE, architecture, &lab.interrupt, lab.progress)?;
    archive.refresh()?;
    let package = archive.download(&archive.find(PACKAGE)?, &folder)?;
    let fresh = folder.join("new");
    deb::unpack(&package, &lab.interrupt, lab.progress, |inside| {
        (inside == Path::new("usr/bin").join(PROGRAM)).then(|| fresh.clone())
    })?;
    let keep = || {
        fs::set_permissions(&fresh, fs::Permissions::from_mode(0o755))?;
        fs::rename(&fresh, &path)?;
        // It holds emulators of all other machines as well.
        fs::remove_file(&package)
    };
    keep().map_err(|source| Error::File { path: path.clone(), source })?;
    Ok(Some(path))
}
