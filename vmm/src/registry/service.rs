//! The VMs of services: each `tessera@NAME` has a user and a registry of its own, in `/run/tessera/NAME`.
//!
//! Root sees them beside its own, and who else may enter such a directory. What is there is another user's: it is read
//! and never changed, and believed only of that user's own process and sockets. A VM that a guest has taken over must
//! not have a command of root's reach another VM, or end another process.

use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, Mode, OFlags, openat};
use rustix::process::{Uid, geteuid};

use super::directory::{NAME, Owner, open};
use super::record::Record;
use super::{Directory, Error, Vm, process};
use crate::vm_id::is_vm_id;

/// Where the directories of services are (`RuntimeDirectory=` of `tessera@.service`).
const PLACE: &str = "/run/tessera";
/// The most names there that are looked at: more VMs do not fit one host.
const MOST_NAMES: usize = 4096;

/// A service whose registry it is.
#[derive(Clone, Debug)]
pub(super) struct Service {
    /// NAME of `tessera@NAME`.
    pub(super) name: String,
    /// Its user.
    pub(super) user: Uid,
    /// Its directory.
    folder: PathBuf,
}

impl Directory {
    /// The registries of services that this user may read. A process with a `TESSERA_RUNTIME_DIR` has that alone.
    pub fn of_services() -> Vec<Self> {
        match std::env::var_os("TESSERA_RUNTIME_DIR").is_some_and(|path| !path.is_empty()) {
            true => Vec::new(),
            false => Self::of_services_in(Path::new(PLACE), Uid::ROOT),
        }
    }

    /// As [`of_services`](Self::of_services), at another place, which this user is to own.
    pub(super) fn of_services_in(place: &Path, owner: Uid) -> Vec<Self> {
        let Ok(Some((above, _))) = open(CWD, place, place, Owner::Is(owner)) else {
            return Vec::new();
        };
        let Ok(names) = rustix::fs::Dir::read_from(&above) else { return Vec::new() };
        let names = names.take(MOST_NAMES).filter_map(Result::ok);
        let names = names.filter_map(|name| name.file_name().to_str().ok().map(str::to_owned));
        names.filter_map(|name| Self::of_service(place, &above, name)).collect()
    }

    /// The registry of one service, if it has one that this user may read.
    fn of_service(place: &Path, above: impl std::os::fd::AsFd, name: String) -> Option<Self> {
        // This user's own registry has a name that no service may have.
        if name == NAME || !is_vm_id(&name) {
            return None;
        }
        let folder = place.join(&name);
        let (at, user) = open(above, Path::new(&name), &folder, Owner::Any).ok()??;
        let path = folder.join(NAME);
        let (fd, _) = open(&at, Path::new(NAME), &path, Owner::Is(user)).ok()??;
        Some(Self { path, fd, service: Some(Service { name, user, folder }) })
    }

    /// The registry that a VM was found in; `None` if it has gone.
    ///
    /// # Errors
    /// As [`open`](Self::open).
    pub fn of(vm: &Vm) -> Result<Option<Self>, Error> {
        if vm.user.is_none() {
            return Self::open();
        }
        let (place, flags) = (Path::new(PLACE), OFlags::DIRECTORY | OFlags::CLOEXEC);
        let above = openat(CWD, place, flags, Mode::empty());
        Ok(above.ok().and_then(|above| Self::of_service(place, above, vm.record.name.clone())))
    }
}

impl Service {
    /// Why an entry of its registry is not to be believed; `None` if it is.
    pub(super) fn doubts(&self, record: &Record) -> Option<&'static str> {
        if record.name != self.name {
            return Some("it has another name than its service");
        }
        if process::user(record.pid) != Some(self.user) {
            return Some("its process is another user's");
        }
        let is_its_own = |path: &PathBuf| {
            let found = std::fs::symlink_metadata(path);
            path.parent() == Some(&self.folder)
                && found.is_ok_and(|found| {
                    found.file_type().is_socket() && found.uid() == self.user.as_raw()
                })
        };
        match record.api_sock.as_ref().is_none_or(is_its_own) {
            true => None,
            false => Some("its control socket is not in its service's directory"),
        }
    }

    /// Takes out of an entry what leads elsewhere. The control socket says the same to who asks there.
    pub(super) fn confine(&self, record: &mut Record) {
        let is_inside = |path: &Path| path.parent() == Some(&self.folder);
        record.vsock.take_if(|path| !is_inside(path));
        if record.serial_socket().is_some_and(|path| !is_inside(path)) {
            record.serial = None;
        }
    }
}

impl Vm {
    /// The user whose VM it is.
    pub fn uid(&self) -> u32 {
        self.user.unwrap_or_else(|| geteuid().as_raw())
    }

    /// Whether its entry is that of a live process still.
    pub fn lives(&self) -> bool {
        let directory = Directory::of(self).ok().flatten();
        directory.is_some_and(|directory| directory.find(&self.record.name).is_some())
    }
}
