//! Where the lab keeps what it fetches and makes.

use std::env;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use rustix::fs::{FlockOperation, flock};

use crate::interrupt::{Interrupt, Interrupted};
use crate::progress::Progress;

/// The folders of the lab.
#[derive(Clone, Debug)]
pub(crate) struct Places {
    cache: PathBuf,
    products: PathBuf,
}

/// Why a folder or the lock cannot be had.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    /// Neither a cache folder nor a home is known.
    #[error("no place for downloads: set TESSERA_CACHE to a folder that may be written")]
    NoCache,
    /// A folder cannot be made.
    #[error(
        "cannot make the folder {path}: choose another with TESSERA_CACHE (downloads) or TESSERA_LAB (products)"
    )]
    Folder {
        /// The folder.
        path: PathBuf,
        /// The system's reason.
        #[source]
        source: io::Error,
    },
    /// The lock file cannot be opened or locked.
    #[error("cannot lock {path}")]
    Lock {
        /// The lock file.
        path: PathBuf,
        /// The system's reason.
        #[source]
        source: io::Error,
    },
    /// Ctrl-C while another process held the lock.
    #[error(transparent)]
    Interrupted(#[from] Interrupted),
}

impl Places {
    /// The folders as the environment has them: `TESSERA_CACHE` for downloads (else the user's cache
    /// folder), `TESSERA_LAB` for products (else target/lab of the source tree this program was built from).
    ///
    /// # Errors
    /// [`Error::NoCache`].
    pub(crate) fn from_environment() -> Result<Self, Error> {
        let folder =
            |name: &str| env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
        let cache = folder("TESSERA_CACHE")
            .or_else(|| folder("XDG_CACHE_HOME").map(|cache| cache.join("tessera")))
            .or_else(|| folder("HOME").map(|home| home.join(".cache/tessera")))
            .ok_or(Error::NoCache)?;
        let products = folder("TESSERA_LAB").unwrap_or_else(|| {
            let package = Path::new(env!("CARGO_MANIFEST_DIR"));
            let root = package.ancestors().nth(2).unwrap_or(package);
            root.join("target/lab")
        });
        Ok(Self { cache, products })
    }

    /// Folders for tests.
    #[cfg(test)]
    pub(crate) fn under(root: &Path) -> Self {
        Self { cache: root.join("cache"), products: root.join("lab") }
    }

    /// Downloaded packages, kept between checkouts.
    pub(crate) fn packages(&self) -> PathBuf {
        self.cache.join("packages")
    }

    /// The package manager's private state.
    pub(crate) fn apt(&self) -> PathBuf {
        self.cache.join("apt")
    }

    /// The emulator of arm64 programs.
    pub(crate) fn emulator(&self) -> PathBuf {
        self.cache.join("emulator")
    }

    /// Debian systems as tar archives, kept between checkouts.
    pub(crate) fn systems(&self) -> PathBuf {
        self.cache.join("systems")
    }

    /// The Debian image.
    pub(crate) fn image(&self) -> PathBuf {
        self.products.join("image")
    }

    /// Programs of Debian's, by the name that they were given together.
    pub(crate) fn programs_of(&self, name: &str) -> PathBuf {
        self.products.join("programs").join(name)
    }

    /// What the nested host and its guests run on.
    pub(crate) fn artifacts(&self) -> PathBuf {
        self.products.join("artifacts")
    }

    /// The project's arm64 programs.
    pub(crate) fn programs(&self) -> PathBuf {
        self.products.join("bin")
    }

    /// The nested host's base images.
    pub(crate) fn images(&self) -> PathBuf {
        self.products.join("images")
    }

    /// One temporary folder a boot.
    pub(crate) fn temporary(&self) -> PathBuf {
        self.products.join("tmp")
    }

    /// One folder for each host that is kept up.
    pub(crate) fn hosts(&self) -> PathBuf {
        self.temporary().join("hosts")
    }

    /// Waits until no other process prepares the lab's folders; the lock ends with the returned guard.
    ///
    /// # Errors
    /// When the lock file cannot be used, and on Ctrl-C.
    pub(crate) fn lock(&self, interrupt: &Interrupt, progress: Progress) -> Result<Lock, Error> {
        // The cache is shared by checkouts, the products by processes: one lock in each.
        let cache = lock(&self.cache, interrupt, progress)?;
        let products = lock(&self.products, interrupt, progress)?;
        Ok(Lock { _files: [cache, products] })
    }
}

/// Exclusive use of the lab's folders.
#[derive(Debug)]
pub(crate) struct Lock {
    _files: [fs::File; 2],
}

/// Waits until no other process has locked the folder, which is made where it is missing.
///
/// # Errors
/// When the lock file cannot be used, and on Ctrl-C.
pub(crate) fn lock(
    folder: &Path,
    interrupt: &Interrupt,
    progress: Progress,
) -> Result<fs::File, Error> {
    make_folder(folder)?;
    let path = folder.join("lock");
    let failed = |source: io::Error| Error::Lock { path: path.clone(), source };
    let file = fs::File::create(&path).map_err(failed)?;
    let mut told = false;
    loop {
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => return Ok(file),
            Err(rustix::io::Errno::WOULDBLOCK) => {
                if !told {
                    progress.say("waiting for another lab process that prepares the same folders");
                    told = true;
                }
                interrupt.check()?;
                // A blocking lock could not be interrupted: the handler's thread gets the signal.
                thread::sleep(Duration::from_millis(100));
            }
            Err(source) => return Err(failed(source.into())),
        }
    }
}

/// Makes a folder and its parents.
///
/// # Errors
/// [`Error::Folder`].
pub(crate) fn make_folder(path: &Path) -> Result<(), Error> {
    fs::create_dir_all(path).map_err(|source| Error::Folder { path: path.to_owned(), source })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn a_lock_excludes_others_until_it_is_dropped() {
        let root = tempfile::tempdir().unwrap();
        let places = Places::under(root.path());
        let interrupt = Interrupt::default();
        let held = places.lock(&interrupt, Progress::new(true)).unwrap();
        let other = fs::File::open(root.path().join("cache/lock")).unwrap();

        assert!(flock(&other, FlockOperation::NonBlockingLockExclusive).is_err());
        drop(held);
        assert!(flock(&other, FlockOperation::NonBlockingLockExclusive).is_ok());
    }
}
