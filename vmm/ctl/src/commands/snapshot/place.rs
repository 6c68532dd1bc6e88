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

/// The place of a snapshot, which is made in a folder of its own first. Dropped before it is whole, nothing of it is left.
#[derive(Debug)]
pub(super) struct Place {
    path: PathBuf,
    /// Where the files are until then.
    work: PathBuf,
    /// That folder, locked: it is in use, whatever process ids another sees.
    _lock: File,
    found: Found,
    /// Whether that folder is the one that was at the place: files that are not of a snapshot stay in it.
    was_replaced: bool,
}

/// What is at the place of a snapshot.
///
/// Into a folder that is there the files are written below it: the VM may be allowed that folder (`--allow`) and no other.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Found {
    Nothing,
    EmptyFolder,
    Snapshot,
}

impl Place {
    /// Checks that a snapshot may be at `path`, and makes the folder for its files.
    pub(super) fn prepare(path: &Path, replace: bool) -> Result<Self, Failure> {
        let shown = path.display();
        let failed = |what: &str, error: io::Error| {
            Failure::refused(format!("cannot {what} {shown}: {error}"))
        };
        // Through links, so that what is replaced is the folder itself; absolute for the VM's process.
        let absolute = match path.canonicalize() {
            Err(error) if error.kind() == ErrorKind::NotFound => std::path::absolute(path),
            found => found,
        };
        let absolute = absolute.map_err(|error| failed("look into", error))?;
        let name = absolute.file_name().map(OsStr::to_owned);
        let name = name.ok_or_else(|| Failure::usage(format!("{shown} names no folder")))?;
        let parent = absolute.parent().unwrap_or(Path::new("/")).to_owned();
        let found = look(&absolute, &name).map_err(|error| failed("look into", error))?;
        if let Some(name) = found.other {
            return Err(Failure::refused(format!(
                "{shown} has other files, such as {name:?}: name a folder for the snapshot alone"
            )));
        }
        if found.what == Found::Snapshot && !replace {
            return Err(Failure::refused(format!(
                "{shown} has a snapshot already: name another folder, or replace it with --replace"
            )));
        }
        remove_abandoned(&parent, &name);
        remove_abandoned(&absolute, &name);
        let (folder, what) = match found.what {
            Found::Nothing => (&parent, "make a folder beside"),
            Found::EmptyFolder | Found::Snapshot => (&absolute, "make a folder in"),
        };
        let work = folder.join(working_name(&name, std::process::id()));
        // Guest memory is for its user's eyes only.
        let made = DirBuilder::new().mode(0o700).create(&work).and_then(|()| File::open(&work));
        let lock = made.map_err(|error| failed(what, error))?;
        // Where a file system has no locks, nothing finds it abandoned either.
        let _ = flock(&lock, FlockOperation::NonBlockingLockExclusive);
        Ok(Self { path: absolute, work, _lock: lock, found: found.what, was_replaced: false })
    }

    /// The files to write.
    pub(super) fn files(&self) -> SnapshotFiles {
        SnapshotFiles::in_folder(&self.work)
    }

    /// Puts the snapshot into its place, where there is a whole one at any time or none; how much it takes.
    pub(super) fn commit(mut self) -> Result<Bytes, Failure> {
        let size = self.size().and_then(|size| {
            match self.found {
                Found::Nothing => self.rename(&self.path, RenameFlags::empty())?,
                Found::EmptyFolder => self.fill()?,
                Found::Snapshot => self.replace()?,
            }
            Ok(size)
        });
        size.map_err(|error| {
            let shown = self.path.display();
            Failure::refused(format!("cannot put the snapshot into its place {shown}: {error}"))
        })
    }

    fn size(&self) -> io::Result<Bytes> {
        let SnapshotFiles { state, memory } = self.files();
        let mut size = Bytes::ZERO;
        for file in [state, memory] {
            let length = Bytes::new(fs::metadata(file)?.len());
            size = size.checked_add(length).unwrap_or(Bytes::MAX);
        }
        Ok(size)
    }

    /// Gives the folder of the files another name, beside the place or that of the place itself.
    fn rename(&self, to: &Path, flags: RenameFlags) -> io::Result<()> {
        renameat_with(CWD, &self.work, CWD, to, flags)?;
        sync_if_possible(self.path.parent().unwrap_or(Path::new("/")));
        Ok(())
    }

    /// Moves the files into the folder, the state file last: where it is, the snapshot is complete.
    fn fill(&self) -> io::Result<()> {
        let (from, to) = (self.files(), SnapshotFiles::in_folder(&self.path));
        let moved = |from: &Path, to: &Path| -> io::Result<()> {
            Ok(renameat_with(CWD, from, CWD, to, RenameFlags::NOREPLACE)?)
        };
        moved(&from.memory, &to.memory)?;
        let whole = sync(&self.path).and_then(|()| moved(&from.state, &to.state));
        whole.inspect_err(|_| {
            // Memory without a state is no snapshot, and is in the way of the next one.
            let _ = fs::rename(&to.memory, &from.memory);
        })?;
        sync_if_possible(&self.path);
        Ok(())
    }

    /// Exchanges the folder for that of the files.
    fn replace(&mut self) -> io::Result<()> {
        let name = self.work.file_name().unwrap_or_default();
        let beside = self.path.with_file_name(name);
        self.rename(&beside, RenameFlags::NOREPLACE)?;
        self.work = beside;
        self.rename(&self.path, RenameFlags::EXCHANGE)?;
        self.was_replaced = true;
        // What a VM is allowed is a folder, not its name. Where this fails the snapshot is whole all the same.
        if self.restore_folder().is_ok() {
            self.was_replaced = false;
        }
        Ok(())
    }

    /// Brings the folder back that was at the place, with the files of the new snapshot.
    fn restore_folder(&self) -> io::Result<()> {
        for name in own_names() {
            match fs::remove_file(self.work.join(name)) {
                Err(error) if error.kind() != ErrorKind::NotFound => return Err(error),
                _ => {}
            }
        }
        let (from, to) = (SnapshotFiles::in_folder(&self.path), self.files());
        fs::hard_link(&from.memory, &to.memory)?;
        fs::hard_link(&from.state, &to.state)?;
        sync(&self.work)?;
        self.rename(&self.path, RenameFlags::EXCHANGE)
    }
}

fn sync(folder: &Path) -> io::Result<()> {
    File::open(folder)?.sync_all()
}

/// A name that has been given stays given, whether the file system can be told to keep it or not: some folders cannot be
/// read, and some file systems do not sync them (EINVAL).
fn sync_if_possible(folder: &Path) {
    let _ = sync(folder);
}

/// Removes the files of a snapshot, and the folder if it has no others.
fn remove_own(folder: &Path) {
    for name in own_names() {
        let _ = fs::remove_file(folder.join(name));
    }
    let _ = fs::remove_dir(folder);
}

impl Drop for Place {
    fn drop(&mut self) {
        // It is not there any more, or holds the snapshot that was replaced, or what was not finished.
        if self.was_replaced {
            remove_own(&self.work);
        } else {
            let _ = fs::remove_dir_all(&self.work);
        }
    }
}

/// What is in the folder of a snapshot.
struct Looked {
    what: Found,
    /// A file that is none of a snapshot.
    other: Option<OsString>,
}

fn look(path: &Path, name: &OsStr) -> io::Result<Looked> {
    let entries = match fs::read_dir(path) {
        Ok(entries) => entries,
        Err(error) if error.kind() == ErrorKind::NotFound => {
            return Ok(Looked { what: Found::Nothing, other: None });
        }
        Err(error) => return Err(error),
    };
    let own = own_names();
    let mut looked = Looked { what: Found::EmptyFolder, other: None };
    for entry in entries {
        let entry = entry?.file_name();
        if own.contains(&entry) {
            looked.what = Found::Snapshot;
        } else if maker(&entry, name).is_none() {
            looked.other = Some(entry);
        }
    }
    Ok(looked)
}

/// The name of the folder in which this process makes a snapshot.
fn working_name(name: &OsStr, process: u32) -> OsString {
    let mut working = OsString::from(".");
    working.push(name);
    working.push(format!(".{process}.new"));
    working
}

/// Removes what processes have left in a folder that were killed while they made this snapshot, as a second Ctrl-C does.
fn remove_abandoned(folder: &Path, name: &OsStr) {
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
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

/// The process that a folder is of, if it is one for the snapshot `name`.
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

    use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};

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
    fn a_folder_that_is_there_stays_the_same_and_has_a_whole_snapshot() {
        let scratch = tempfile::tempdir().unwrap();
        let path = scratch.path().join("one");
        fs::create_dir(&path).unwrap();
        let inode = || fs::metadata(&path).unwrap().ino();
        let folder = inode();

        for text in ["first", "second", "third"] {
            let place = Place::prepare(&path, true).unwrap();
            // Below the folder, which may be all that the VM may write to.
            assert!(place.files().memory.starts_with(&path));
            write(&place, text);
            place.commit().unwrap();

            assert_eq!(inode(), folder);
            assert_eq!(fs::read_to_string(path.join("state")).unwrap(), text);
            assert_eq!(fs::read_to_string(path.join("memory")).unwrap(), text);
            assert_eq!(names(&path), ["memory", "state"]);
            assert_eq!(names(scratch.path()), ["one"]);
        }
    }

    #[test]
    fn one_that_is_not_finished_leaves_a_folder_as_it_was() {
        let scratch = tempfile::tempdir().unwrap();
        let (empty, old) = (scratch.path().join("empty"), scratch.path().join("old"));
        fs::create_dir(&empty).unwrap();
        let place = Place::prepare(&old, false).unwrap();
        write(&place, "old");
        place.commit().unwrap();

        for path in [&empty, &old] {
            let place = Place::prepare(path, true).unwrap();
            fs::write(place.files().memory, "half").unwrap();
            place.commit().unwrap_err();
        }

        assert!(names(&empty).is_empty());
        assert_eq!(names(&old), ["memory", "state"]);
        assert_eq!(fs::read_to_string(old.join("memory")).unwrap(), "old");
    }

    #[test]
    fn two_that_are_made_at_once_in_an_empty_folder_do_not_mix() {
        let scratch = tempfile::tempdir().unwrap();
        let path = scratch.path().join("one");
        fs::create_dir(&path).unwrap();
        let place = Place::prepare(&path, false).unwrap();
        write(&place, "mine");
        fs::write(path.join("state"), "theirs").unwrap();
        let refused = place.commit().unwrap_err();

        assert!(refused.message.contains("into its place"), "{refused:?}");
        assert_eq!(names(&path), ["state"]);
        assert_eq!(fs::read_to_string(path.join("state")).unwrap(), "theirs");
    }

    #[test]
    fn what_comes_into_a_folder_while_it_is_replaced_stays() {
        let scratch = tempfile::tempdir().unwrap();
        let path = scratch.path().join("one");
        for text in ["old", "new"] {
            let place = Place::prepare(&path, true).unwrap();
            write(&place, text);
            if text == "new" {
                fs::write(path.join("notes"), "mine").unwrap();
            }
            place.commit().unwrap();
        }

        assert_eq!(fs::read_to_string(path.join("memory")).unwrap(), "new");
        assert_eq!(fs::read_to_string(path.join("notes")).unwrap(), "mine");
        assert_eq!(names(scratch.path()), ["one"]);
    }

    #[test]
    fn the_folder_that_was_replaced_goes_with_its_snapshot_alone() {
        let scratch = tempfile::tempdir().unwrap();
        for (name, others) in [("a", &[][..]), ("b", &["notes"])] {
            let folder = scratch.path().join(name);
            fs::create_dir(&folder).unwrap();
            for file in own_names() {
                fs::write(folder.join(file), "").unwrap();
            }
            others.iter().for_each(|other| fs::write(folder.join(other), "").unwrap());

            remove_own(&folder);

            assert_eq!(folder.exists(), !others.is_empty());
        }
        assert_eq!(names(&scratch.path().join("b")), ["notes"]);
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
