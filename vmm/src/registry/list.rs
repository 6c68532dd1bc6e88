//! The VMs that live, as their entries say.

use std::fs::File;
use std::io::Read;

use super::record::{LONGEST, Record, is_name};
use super::{Directory, Error};
use crate::sys::file_lock;

/// The most VMs that are listed: more do not fit one host, and each is a file to open.
const MOST_VMS: usize = 4096;
/// The most names of the directory that are looked at.
const MOST_NAMES: usize = 8 * MOST_VMS;
/// The most files for which it is said why they are skipped.
const MOST_SKIPPED: usize = 32;
/// How often an entry is read again that its VM has just replaced.
const ATTEMPTS: usize = 32;

/// What the name of an entry ends in.
const SUFFIX: &str = ".json";
/// What the name of an entry that is being written begins with.
const NEW: &str = ".new.";

/// A VM that lives.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Vm {
    /// What its entry says.
    pub record: Record,
    /// The user, where it is a service of the system's.
    pub user: Option<u32>,
}

/// A file that is no entry.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Skipped {
    /// Its name.
    pub file: String,
    /// Why.
    pub reason: String,
}

/// All that is in a registry.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Listing {
    /// By name.
    pub vms: Vec<Vm>,
    /// What was not understood, or not all of it.
    pub skipped: Vec<Skipped>,
}

/// What an entry was found to be.
enum Found {
    Live(Record),
    /// It has gone, or has been removed just now.
    Gone,
    Skipped(String),
}

impl Directory {
    /// The VMs that live. Entries of this user's VMs that do not are removed.
    ///
    /// # Errors
    /// When the directory cannot be read.
    pub fn list(&self) -> Result<Listing, Error> {
        let failed = |errno| super::directory::system("list", self.path(), errno);
        let mut listing = Listing::default();
        let names = rustix::fs::Dir::read_from(self.fd()).map_err(failed)?;
        for (at, name) in names.enumerate() {
            let name = name.map_err(failed)?;
            if at >= MOST_NAMES || listing.vms.len() >= MOST_VMS {
                listing.skip("", "there are more files than are looked at");
                break;
            }
            let Ok(file) = name.file_name().to_str() else {
                listing.skip(&name.file_name().to_string_lossy(), "its name is no VM's");
                continue;
            };
            if file == "." || file == ".." || name.file_type().is_dir() {
                continue;
            }
            if file.starts_with(NEW) {
                self.remove_if_stale(file);
                continue;
            }
            match file.strip_suffix(SUFFIX).filter(|name| is_name(name)) {
                None => listing.skip(file, "its name is no VM's"),
                Some(name) => match self.look_at(name) {
                    Found::Live(record) => listing.vms.push(self.vm(record)),
                    Found::Gone => {}
                    Found::Skipped(reason) => listing.skip(file, &reason),
                },
            }
        }
        listing.vms.sort_by(|a, b| a.record.name.cmp(&b.record.name));
        Ok(listing)
    }

    /// The VM of this name, if it lives.
    pub fn find(&self, name: &str) -> Option<Vm> {
        if !is_name(name) {
            return None;
        }
        match self.look_at(name) {
            Found::Live(record) => Some(self.vm(record)),
            Found::Gone | Found::Skipped(_) => None,
        }
    }

    fn vm(&self, record: Record) -> Vm {
        Vm { record, user: self.service.as_ref().map(|service| service.user.as_raw()) }
    }

    /// A live entry, if it is to be believed.
    fn live(&self, mut record: Record) -> Found {
        if let Some(service) = &self.service {
            if let Some(doubt) = service.doubts(&record) {
                return Found::Skipped(doubt.to_owned());
            }
            service.confine(&mut record);
        }
        Found::Live(record)
    }

    fn look_at(&self, name: &str) -> Found {
        let entry = file_of(name);
        for _ in 0..ATTEMPTS {
            let file = match self.file(&entry) {
                Ok(file) => file,
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Found::Gone,
                Err(error) => return Found::Skipped(error.to_string()),
            };
            let record = read(&file, name);
            match file_lock::is_locked(&file) {
                Err(error) => return Found::Skipped(error.to_string()),
                Ok(true) => {
                    return match record {
                        Ok(record) => self.live(record),
                        Err(reason) => Found::Skipped(reason),
                    };
                }
                Ok(false) if !self.has(&entry, &file) => {}
                // What no VM has written is left to its owner.
                Ok(false) => {
                    return match record {
                        Ok(_) => {
                            self.remove_if_stale(&entry);
                            Found::Gone
                        }
                        Err(reason) => Found::Skipped(reason),
                    };
                }
            }
        }
        Found::Gone
    }

    /// Removes a file of this user's that no process holds. If the directory is being changed, it stays for the next time.
    fn remove_if_stale(&self, name: &str) {
        if self.service.is_some() {
            return;
        }
        let Ok(Some(_lock)) = self.try_lock() else { return };
        // Under the lock no process gives the name to another file, or makes one that it has not locked yet.
        let Ok(file) = self.file(name) else { return };
        if file_lock::is_locked(&file).is_ok_and(|is_locked| !is_locked) {
            let _ = self.remove(name);
        }
    }
}

impl Listing {
    fn skip(&mut self, file: &str, reason: &str) {
        if self.skipped.len() < MOST_SKIPPED {
            let (file, reason) = (file.to_owned(), reason.to_owned());
            self.skipped.push(Skipped { file, reason });
        }
    }
}

/// The name of the entry of a VM.
pub(super) fn file_of(name: &str) -> String {
    format!("{name}{SUFFIX}")
}

/// The name of an entry that this process writes.
pub(super) fn temporary() -> String {
    format!("{NEW}{}", std::process::id())
}

/// What an entry says, or why it says nothing.
pub(super) fn read(file: &File, name: &str) -> Result<Record, String> {
    let mut text = String::new();
    let read = file.take(LONGEST + 1).read_to_string(&mut text);
    read.map_err(|error| error.to_string())?;
    match text.len() as u64 <= LONGEST {
        true => Record::parse(&text, name),
        false => Err(format!("it is longer than {LONGEST} bytes")),
    }
}
