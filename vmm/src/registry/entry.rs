//! The entry of this process.

use std::fs::File;
use std::io::{self, Write};
use std::path::Path;

use rustix::fs::{Mode, OFlags, fchmod, openat, renameat};
use rustix::io::Errno;

use super::directory::{Directory, system};
use super::record::{Draft, Record};
use super::{Error, list, process};
use crate::sys::file_lock;
use crate::vm_id::is_vm_id;

/// The variable by which a program that starts VMs gives its name.
const STARTED_BY: &str = "TESSERA_STARTED_BY";
/// The longest such name.
const LONGEST_STARTER: usize = 64;

/// What a VM lets others know.
#[derive(Clone, Copy, Debug, Default)]
pub struct Publication<'a> {
    /// Its id, if its user has chosen one.
    pub id: Option<&'a str>,
    /// The control socket.
    pub api_sock: Option<&'a Path>,
    /// The Unix socket of its vsock device.
    pub vsock: Option<&'a Path>,
    /// Where its serial port leads, as `--serial` has it.
    pub serial: Option<&'a str>,
}

/// The entry of a VM of this process: dropped, the VM is no longer listed.
#[derive(Debug)]
pub struct Entry {
    directory: Directory,
    name: String,
    /// With the lock.
    file: File,
}

impl Entry {
    /// Publishes a VM of this process in this user's registry.
    ///
    /// # Errors
    /// When a VM of this id lives ([`Error::forbids_start`]), or the entry cannot be written.
    pub fn publish(vm: &Publication<'_>) -> Result<Self, Error> {
        Self::publish_in(Directory::create()?, vm)
    }

    /// As [`publish`](Self::publish), in another directory.
    ///
    /// # Errors
    /// As [`publish`](Self::publish).
    pub fn publish_in(directory: Directory, vm: &Publication<'_>) -> Result<Self, Error> {
        let name = match vm.id {
            Some(id) if is_vm_id(id) => id.to_owned(),
            Some(id) => return Err(Error::Id(id.to_owned())),
            None => format!("pid.{}", std::process::id()),
        };
        let record = record(&name, vm)?;
        let file = write(&directory, &record, || is_free(&directory, &name, vm.id))?;
        Ok(Self { directory, name, file })
    }

    /// Says something else of the VM, whose id stays.
    ///
    /// # Errors
    /// When the entry cannot be written; it says then what it said before.
    pub fn update(&mut self, vm: &Publication<'_>) -> Result<(), Error> {
        let record = record(&self.name, vm)?;
        self.file = write(&self.directory, &record, || Ok(()))?;
        Ok(())
    }

    /// The folder that it is in.
    pub fn folder(&self) -> &Path {
        self.directory.path()
    }

    /// What the VM is called in the registry.
    pub fn name(&self) -> &str {
        &self.name
    }
}

impl Drop for Entry {
    fn drop(&mut self) {
        let file = list::file_of(&self.name);
        // Only its own. While it is locked no other process replaces it.
        if self.directory.has(&file, &self.file) {
            // What is left is found to be stale, as the lock ends here.
            let _ = self.directory.remove(&file);
        }
    }
}

fn record(name: &str, vm: &Publication<'_>) -> Result<Record, Error> {
    let (pid, Publication { api_sock, vsock, serial, .. }) = (std::process::id(), *vm);
    let start_time = process::start_time(pid).unwrap_or(0);
    let started_by = starter(std::env::var(STARTED_BY).ok());
    let draft = Draft { name, pid, start_time, api_sock, vsock, serial, started_by };
    draft.record().ok_or(Error::Unwritable)
}

/// The name of what has started this process.
fn starter(variable: Option<String>) -> String {
    let usable = |name: &String| (1..=LONGEST_STARTER).contains(&name.len());
    variable.filter(usable).unwrap_or_else(|| "tessera".to_owned())
}

/// Whether the name can be taken: no live VM has it.
fn is_free(directory: &Directory, name: &str, id: Option<&str>) -> Result<(), Error> {
    let file = list::file_of(name);
    let path = || directory.path().join(&file);
    let found = match directory.file(&file) {
        Ok(found) => found,
        Err(source) if is_passing(&source) => {
            return Err(Error::System { what: "look at", path: path(), source });
        }
        // What is no file of ours is replaced, or the rename says why it cannot be.
        Err(_) => return Ok(()),
    };
    let is_live = file_lock::is_locked(&found).map_err(|source| Error::System {
        what: "look at the lock of",
        path: path(),
        source,
    })?;
    match (is_live, id) {
        (false, _) => Ok(()),
        (true, None) => Err(Error::Taken(path())),
        (true, Some(id)) => {
            let pid = list::read(&found, name).map_or(0, |record| record.pid);
            Err(Error::AlreadyRuns { id: id.to_owned(), pid })
        }
    }
}

/// Whether an error says nothing of the file that was looked at.
fn is_passing(error: &io::Error) -> bool {
    let errno = error.raw_os_error().map(Errno::from_raw_os_error);
    matches!(errno, Some(Errno::INTR | Errno::NOMEM | Errno::MFILE | Errno::NFILE | Errno::IO))
}

/// Writes an entry and locks it before it has its name, so that none is ever seen without its lock.
fn write(
    directory: &Directory,
    record: &Record,
    may_replace: impl FnOnce() -> Result<(), Error>,
) -> Result<File, Error> {
    let text = record.to_text().ok_or(Error::Unwritable)?;
    let _lock = directory.lock()?;
    may_replace()?;
    let new = list::temporary();
    let path = directory.path().join(&new);
    // One that a process of this number left. Others that are being written are locked out.
    directory.remove(&new)?;
    let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let file = openat(directory.fd(), &new, flags, Mode::RUSR | Mode::WUSR)
        .map_err(|errno| system("create", &path, errno))?;
    let mut file = File::from(file);
    // Whatever the mask of this process is.
    let mode = directory.mode_of_files().and_then(|mode| fchmod(&file, mode));
    let mode = mode.map_err(|errno| system("set the mode of", &path, errno));
    let failed = |what| move |source| Error::System { what, path, source };
    let written = mode.and_then(|()| file.write_all(text.as_bytes()).map_err(failed("write")));
    let written = written.and_then(|()| {
        let path = directory.path().join(&new);
        match file_lock::try_lock(&file) {
            Ok(true) => Ok(()),
            Ok(false) => Err(Error::Busy(path)),
            Err(source) => Err(Error::System { what: "lock", path, source }),
        }
    });
    let name = list::file_of(&record.name);
    let named = written.and_then(|()| {
        renameat(directory.fd(), &new, directory.fd(), &name)
            .map_err(|errno| system("make", &directory.path().join(&name), errno))
    });
    if named.is_err() {
        // A full file system is not to keep what could not be written whole.
        let _ = directory.remove(&new);
    }
    named.map(|()| file)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_that_starts_vms_is_named_within_bounds() {
        for (variable, name) in [
            (None, "tessera"),
            (Some(String::new()), "tessera"),
            (Some("x".repeat(65)), "tessera"),
            (Some("systemd".to_owned()), "systemd"),
        ] {
            assert_eq!(starter(variable), name);
        }
    }
}
