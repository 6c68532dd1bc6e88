//! A folder that is whole when it is there.

use std::ffi::OsString;
use std::fs::{self, DirBuilder, File};
use std::io::{self, ErrorKind};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use arch::units::Bytes;
use rustix::fs::{CWD, RenameFlags, renameat_with};
use vmm::config::SnapshotFiles;

use crate::failure::Failure;

/// The place of a snapshot, which is made in another one beside it. Dropped before it is whole, nothing of it is left.
#[derive(Debug)]
pub(super) struct Place {
    path: PathBuf,
    /// Where the files are until then.
    work: PathBuf,
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
        let mut beside = OsString::from(".");
        beside.push(name);
        beside.push(format!(".{}.new", std::process::id()));
        let work = path.with_file_name(beside);
        // Guest memory is for its user's eyes only.
        let made = DirBuilder::new().mode(0o700).create(&work);
        made.map_err(|error| failed("make a folder beside", error))?;
        Ok(Self { path, work, replaces })
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

fn own_names() -> [OsString; 2] {
    let SnapshotFiles { state, memory } = SnapshotFiles::in_folder(Path::new(""));
    [state.into(), memory.into()]
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

    #[test]
    fn a_snapshot_is_replaced_only_if_that_is_wanted_and_at_once() {
        let scratch = tempfile::tempdir().unwrap();
        let path = scratch.path().join("one");
        let place = Place::prepare(&path, false).unwrap();
        write(&place, "old");
        place.commit().unwrap();

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
