//! A folder that is whole when it is there.

use std::ffi::{OsStr, OsString};
use std::fs::{self, DirBuilder, File};
use std::io::{self, ErrorKind};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use arch::units::Bytes;
use rustix::fs::{CWD, FlockOperation, RenameFlags, flock, renameat_with};
use rustix::io::Errno;
use rustix::process::{Pid, test_kill_process};
use vmm::config::SnapshotFiles;
use vmm::snapshot::WorkingSet;

use crate::failure::Failure;

/// The place of a snapshot, which is made in another one beside it. Dropped before it is whole, nothing of it is left.
#[derive(Debug)]
pub(super) struct Place {
    path: PathBuf,
    /// Where the files are until then.
    work: PathBuf,
    /// That folder, locked: it is in use, whatever process ids another sees.
    _lock: File,
    /// Whether there is a snapshot already.
    replaces: bool,
}

impl Place {
    /// Checks that a snapshot may be at `path`, and makes the folder beside it.
    pub(super) fn prepare(path: &Path, replace: bool) -> Result<Self, Failure> {
        let shown = path.display();
        let failed = |what: &str, error: io::Error| {
            Failure::refused(format!("cannot {what} {shown}: {error}"))
        };
        let found = match fs::read_dir(path) {
            Ok(entries) => {
                let names = entries.map(|entry| entry.map(|entry| entry.file_name()));
                let names = names.collect::<io::Result<Vec<_>>>();
                Some(names.map_err(|error| failed("look into", error))?)
            }
            Err(error) if error.kind() == ErrorKind::NotFound => None,
            Err(error) => return Err(failed("look into", error)),
        };
        let replaces = found.as_ref().is_some_and(|names| !names.is_empty());
        let own = own_names();
        if let Some(name) = found.iter().flatten().find(|name| !own.contains(name)) {
            return Err(Failure::refused(format!(
                "{shown} has other files, such as {name:?}: name a folder for the snapshot alone"
            )));
        }
        if replaces && !replace {
            return Err(Failure::refused(format!(
                "{shown} has a snapshot already: name another folder, or replace it with --replace"
            )));
        }
        // Through links, so that what is replaced is the folder itself; absolute for the VM's process.
        let path = match found {
            Some(_) => path.canonicalize(),
            None => std::path::absolute(path),
        };
        let path = path.map_err(|error| failed("find", error))?;
        let name = path.file_name();
        let name = name.ok_or_else(|| Failure::usage(format!("{shown} names no folder")))?;
        remove_abandoned(&path, name);
        let work = path.with_file_name(beside(name, std::process::id()));
        // Guest memory is for its user's eyes only.
        let made = DirBuilder::new().mode(0o700).create(&work).and_then(|()| File::open(&work));
        let lock = made.map_err(|error| failed("make a folder beside", error))?;
        // Where a file system has no locks, nothing finds it abandoned either.
        let _ = flock(&lock, FlockOperation::NonBlockingLockExclusive);
        Ok(Self { path, work, _lock: lock, replaces })
    }

    /// The files to write.
    pub(super) fn files(&self) -> SnapshotFiles {
        SnapshotFiles::in_folder(&self.work)
    }

    /// Puts the snapshot into its place, in one step; how much it takes.
    pub(super) fn commit(self) -> Result<Bytes, Failure> {
        let shown = self.path.display();
        let failed = |error: io::Error| {
            Failure::refused(format!("cannot put the snapshot into its place {shown}: {error}"))
        };
        let SnapshotFiles { state, memory } = self.files();
        let mut size = Bytes::ZERO;
        for file in [state, memory] {
            let length = Bytes::new(fs::metadata(file).map_err(failed)?.len());
            size = size.checked_add(length).unwrap_or(Bytes::MAX);
        }
        let flags = if self.replaces { RenameFlags::EXCHANGE } else { RenameFlags::empty() };
        renameat_with(CWD, &self.work, CWD, &self.path, flags)
            .map_err(|errno| failed(errno.into()))?;
        let parent = self.path.parent().unwrap_or(Path::new("/"));
        File::open(parent).and_then(|folder| folder.sync_all()).map_err(failed)?;
        Ok(size)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        // It holds what was not finished, or the snapshot that was replaced; or is not there any more.
        let _ = fs::remove_dir_all(&self.work);
    }
}

/// The name of the folder in which this process makes a snapshot.
fn beside(name: &OsStr, process: u32) -> OsString {
    let mut beside = OsString::from(".");
    beside.push(name);
    beside.push(format!(".{process}.new"));
    beside
}

/// Removes what processes have left that were killed while they made this snapshot, as a second Ctrl-C does.
fn remove_abandoned(path: &Path, name: &OsStr) {
    let parent = path.parent().unwrap_or(Path::new("/"));
    for entry in fs::read_dir(parent).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir())
            && let Some(process) = maker(&entry.file_name(), name)
            && is_gone(process)
            && let Ok(folder) = File::open(entry.path())
            && flock(&folder, FlockOperation::NonBlockingLockExclusive).is_ok()
        {
            // A VM that still writes to it finds that it is gone, and runs on.
            let _ = fs::remove_dir_all(entry.path());
        }
    }
}

/// The process that a folder is of, if it is one beside `name`.
fn maker(folder: &OsStr, name: &OsStr) -> Option<Pid> {
    let rest = folder.as_bytes().strip_prefix(b".")?.strip_prefix(name.as_bytes())?;
    let process = rest.strip_prefix(b".")?.strip_suffix(b".new")?;
    Pid::from_raw(str::from_utf8(process).ok()?.parse().ok().filter(|process| *process > 0)?)
}

fn is_gone(process: Pid) -> bool {
    test_kill_process(process) == Err(Errno::SRCH)
}

/// The files of a snapshot, with what VMs that are restored from it may record.
fn own_names() -> [OsString; 3] {
    let SnapshotFiles { state, memory } = SnapshotFiles::in_folder(Path::new(""));
    let working_set = WorkingSet::path(&memory);
    [state.into(), memory.into(), working_set.into()]
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::os::unix::fs::{PermissionsExt, symlink};

    use super::*;

    /// What a VM does.
    fn write(place: &Place, text: &str) {
        let files = place.files();
        fs::write(files.state, text).unwrap();
        fs::write(files.memory, text).unwrap();
    }

    fn names(folder: &Path) -> Vec<OsString> {
        let mut names: Vec<_> =
            fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        names.sort();
        names
    }

    #[test]
    fn a_folder_is_there_when_it_is_whole() {
        let scratch = tempfile::tempdir().unwrap();
        let path = scratch.path().join("one");

        let place = Place::prepare(&path, false).unwrap();
        write(&place, "1234");
        assert!(!path.exists());
        let size = place.commit().unwrap();

        assert_eq!(size, Bytes::new(8));
        assert_eq!(names(&path), ["memory", "state"]);
        assert_eq!(names(scratch.path()), ["one"]);
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o700);
    }

    #[test]
    fn one_that_is_not_finished_leaves_nothing() {
        let scratch = tempfile::tempdir().unwrap();
        let path = scratch.path().join("one");

        let place = Place::prepare(&path, false).unwrap();
        fs::write(place.files().state, "half").unwrap();
        assert!(place.commit().unwrap_err().message.contains("one"));

        assert!(names(scratch.path()).is_empty());
    }

    /// The id of a process that has ended.
    fn gone() -> u32 {
        let mut process = std::process::Command::new("true").spawn().unwrap();
        process.wait().unwrap();
        process.id()
    }

    #[test]
    fn what_a_killed_process_left_of_this_snapshot_is_removed_and_nothing_else() {
        let scratch = tempfile::tempdir().unwrap();
        let path = scratch.path().join("one");
        let (gone, lives) = (gone(), std::os::unix::process::parent_id());
        let left = scratch.path().join(format!(".one.{gone}.new"));
        let in_use = fs::create_dir(&left).and_then(|()| File::open(&left)).unwrap();
        fs::write(left.join("memory"), "half").unwrap();
        let others = [format!(".two.{gone}.new"), format!(".one.{lives}.new"), ".one.0.new".into()];
        others.iter().for_each(|name| fs::create_dir(scratch.path().join(name)).unwrap());
        flock(&in_use, FlockOperation::NonBlockingLockExclusive).unwrap();

        // A process in another namespace has no id here, but the lock.
        drop(Place::prepare(&path, false).unwrap());
        assert!(left.exists());
        drop(in_use);
        drop(Place::prepare(&path, false).unwrap());

        let mut expected = others.map(OsString::from);
        expected.sort();
        assert_eq!(names(scratch.path()), expected);
    }

    #[test]
    fn a_snapshot_is_replaced_only_if_that_is_wanted_and_at_once() {
        let scratch = tempfile::tempdir().unwrap();
        let path = scratch.path().join("one");
        let place = Place::prepare(&path, false).unwrap();
        write(&place, "old");
        place.commit().unwrap();
        // What a restored VM has recorded is part of it.
        fs::write(path.join("memory.working-set"), "old").unwrap();

        let refused = Place::prepare(&path, false).unwrap_err();
        assert!(refused.message.contains("--replace"), "{refused:?}");
        drop(Place::prepare(&path, true).unwrap());
        assert_eq!(fs::read_to_string(path.join("state")).unwrap(), "old");
        let link = scratch.path().join("link");
        symlink(&path, &link).unwrap();
        let place = Place::prepare(&link, true).unwrap();
        write(&place, "new");
        place.commit().unwrap();

        assert_eq!(fs::read_to_string(path.join("memory")).unwrap(), "new");
        assert_eq!(names(&path), ["memory", "state"]);
        assert_eq!(names(scratch.path()), ["link", "one"]);
    }

    #[test]
    fn a_folder_with_other_files_is_left_alone_and_an_empty_one_taken() {
        let scratch = tempfile::tempdir().unwrap();
        let path = scratch.path().join("one");
        fs::create_dir(&path).unwrap();
        let place = Place::prepare(&path, false).unwrap();
        write(&place, "x");
        place.commit().unwrap();
        fs::write(path.join("notes"), "").unwrap();

        let others = Place::prepare(&path, true).unwrap_err();
        let file = Place::prepare(&path.join("notes"), true).unwrap_err();
        let nowhere = Place::prepare(&path.join("a/b"), false).unwrap_err();

        assert!(others.message.contains("notes"), "{others:?}");
        assert!(file.message.contains("cannot look into"), "{file:?}");
        assert!(nowhere.message.contains("beside"), "{nowhere:?}");
    }
}
