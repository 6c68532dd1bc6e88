//! The VM that a command names: by its id, the beginning of one, or a socket.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use vmm::error::printable;
use vmm::registry::{Directory, Listing, Process, Skipped, Vm};

use crate::client::{Client, DEFAULT_TIMEOUT};
use crate::failure::Failure;
use crate::output::say;

/// What begins the name of a vsock socket.
const VSOCK: &str = "vsock:";

/// A VM.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Target {
    /// One of the registry.
    Listed(Box<Vm>),
    /// One with this control socket, which is not in the registry.
    Socket(PathBuf),
    /// One with this Unix socket of a vsock device, whatever VMM it has.
    Vsock(PathBuf),
}

impl Target {
    /// Finds the VM that is meant.
    ///
    /// # Errors
    /// When there is none of this name, or more than one that begins with it.
    pub fn find(word: &OsStr) -> Result<Self, Failure> {
        if let Some(path) = word.as_bytes().strip_prefix(VSOCK.as_bytes()) {
            return Ok(Self::Vsock(OsStr::from_bytes(path).into()));
        }
        let listing = listing();
        let path = Path::new(word);
        if word.as_bytes().contains(&b'/') {
            return Ok(Self::at(path, &listing.unwrap_or_default()));
        }
        let name = printable(&word.to_string_lossy());
        let listing = match listing {
            Err(_) if is_socket(path) => return Ok(Self::at(path, &Listing::default())),
            other => other?,
        };
        if let Some(vm) = named(&listing, &name) {
            return Ok(Self::Listed(Box::new(vm.clone())));
        }
        if is_socket(path) {
            return Ok(Self::at(path, &listing));
        }
        let begins = |vm: &&Vm| vm.record.name.starts_with(&name);
        let found: Vec<&Vm> = listing.vms.iter().filter(begins).collect();
        match found[..] {
            [vm] => Ok(Self::Listed(Box::new(vm.clone()))),
            [] => Err(Failure::unreachable(format!(
                "no VM '{name}' runs: `tesseractl list` shows those that do; a socket is named with its path, ./{name}"
            ))),
            _ => {
                let names = found.iter().map(|vm| printable(&vm.record.name)).collect::<Vec<_>>();
                Err(Failure::usage(format!(
                    "'{name}' may be {}: name one of them",
                    names.join(", ")
                )))
            }
        }
    }

    /// The VM with a control socket at this path.
    fn at(path: &Path, listing: &Listing) -> Self {
        let absolute = std::path::absolute(path).ok();
        let has = |vm: &&Vm| vm.record.api_sock.is_some() && vm.record.api_sock == absolute;
        match listing.vms.iter().find(has) {
            Some(vm) => Self::Listed(Box::new(vm.clone())),
            None => Self::Socket(path.to_owned()),
        }
    }

    /// Its control socket.
    ///
    /// # Errors
    /// When it has none.
    pub fn socket(&self) -> Result<&Path, Failure> {
        match self {
            Self::Socket(path) => Ok(path),
            Self::Listed(vm) => vm.record.api_sock.as_deref().ok_or_else(|| {
                Failure::unreachable(format!(
                    "{} has no control socket: start it with --api-sock PATH, or with `tesseractl run`",
                    self.name()
                ))
            }),
            Self::Vsock(_) => Err(Failure::usage(
                "vsock:PATH is a way into the guest (exec, shell, cp, proxy, agent): name the VM, or its control socket",
            )),
        }
    }

    /// A connection to its control socket.
    ///
    /// # Errors
    /// When it has none, or it cannot be connected to.
    pub fn client(&self) -> Result<Client, Failure> {
        self.client_within(DEFAULT_TIMEOUT)
    }

    /// The same, with another bound on each call.
    ///
    /// # Errors
    /// As [`client`](Self::client).
    pub fn client_within(&self, timeout: Duration) -> Result<Client, Failure> {
        Ok(Client::connect(self.socket()?, timeout)?)
    }

    /// Its entry in the registry.
    ///
    /// # Errors
    /// When it is in none.
    pub fn listed(&self) -> Result<&Vm, Failure> {
        match self {
            Self::Listed(vm) => Ok(vm),
            _ => Err(Failure::unreachable(format!(
                "{} is no VM of `tesseractl list`, so that its process is not known",
                self.name()
            ))),
        }
    }

    /// Its process.
    ///
    /// # Errors
    /// When it is not in the registry, or has ended.
    pub fn process(&self) -> Result<Process, Failure> {
        let vm = self.listed()?;
        let directory = Directory::of(vm)?.ok_or(vmm::registry::Error::Ended)?;
        Ok(Process::of(&directory, vm)?)
    }

    /// What it is called in messages.
    pub fn name(&self) -> String {
        printable(&match self {
            Self::Listed(vm) => vm.record.name.clone(),
            Self::Socket(path) | Self::Vsock(path) => path.display().to_string(),
        })
    }
}

/// All VMs of this user, and those of services that it may see.
///
/// # Errors
/// When the user's own registry cannot be read.
pub fn listing() -> Result<Listing, Failure> {
    let own = Directory::open()?.map(|directory| directory.list()).transpose()?;
    let mut listing = own.unwrap_or_default();
    for directory in Directory::of_services() {
        // A service that ends meanwhile takes its registry along.
        let Ok(Listing { vms, skipped }) = directory.list() else { continue };
        listing.vms.extend(vms);
        let path = |file: String| directory.path().join(file).display().to_string();
        let skipped = skipped.into_iter();
        listing.skipped.extend(skipped.map(|it| Skipped { file: path(it.file), ..it }));
    }
    // This user's own come first where two have one name.
    listing.vms.sort_by(|a, b| {
        let names = order(&a.record.name).cmp(&order(&b.record.name));
        names.then(a.user.cmp(&b.user))
    });
    Ok(listing)
}

/// As [`listing`]; what is skipped is said.
///
/// # Errors
/// As [`listing`].
pub fn live_vms() -> Result<Vec<Vm>, Failure> {
    let listing = listing()?;
    for skipped in &listing.skipped {
        let (file, reason) = (printable(&skipped.file), printable(&skipped.reason));
        say(&format!("a file of the registry is skipped: {file:?}: {reason}"));
    }
    Ok(listing.vms)
}

/// What names are sorted by: vm2 comes before vm10.
fn order(name: &str) -> (&str, usize, &str) {
    let word = name.trim_end_matches(|letter: char| letter.is_ascii_digit());
    let number = &name[word.len()..];
    let number = number.trim_start_matches('0');
    (word, number.len(), number)
}

/// The VM of this name; the number of its process is a name, too, of one without an id.
fn named<'a>(listing: &'a Listing, name: &str) -> Option<&'a Vm> {
    let by = |name: &str| listing.vms.iter().find(|vm| vm.record.name == name);
    by(name).or_else(|| by(&format!("pid.{name}")))
}

fn is_socket(path: &Path) -> bool {
    std::fs::metadata(path).is_ok_and(|metadata| metadata.file_type().is_socket())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_in_names_count() {
        let mut names = ["vm10", "vm2", "web", "vm", "vm007", "pid.9", "pid.10"];

        names.sort_by_key(|name| order(name));

        assert_eq!(names, ["pid.9", "pid.10", "vm", "vm2", "vm007", "vm10", "web"]);
    }
}
