#![allow(clippy::unwrap_used)]

use std::env;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::Command;

use arch::units::Bytes;
use tempfile::TempDir;

use super::super::testing::{FakeMemory, Filling, Page, state};
use super::super::{MEMORY, STATE, load_memory};
use super::*;

struct Folder(TempDir);

impl Folder {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn paths(&self) -> (PathBuf, PathBuf) {
        (self.0.path().join(STATE), self.0.path().join(MEMORY))
    }

    fn create(&self) -> NewPair {
        let (state, memory) = self.paths();
        NewPair::create(&state, &memory).unwrap()
    }

    fn open(&self) -> Result<Pair, Error> {
        let (state, memory) = self.paths();
        Pair::open(&state, &memory)
    }

    fn names(&self) -> Vec<String> {
        let entries = self.0.path().read_dir().unwrap();
        let mut names: Vec<_> =
            entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }
}

fn memory(byte: u8) -> FakeMemory {
    let page = Page::Present(Filling::One(byte), Filling::One(0x44));
    FakeMemory::with(&[vec![page]], Bytes::kib(4), true)
}

/// Saves this memory under the names of the folder.
fn save(folder: &Folder, memory: &FakeMemory) -> SnapshotId {
    let mut pair = folder.create();
    pair.save_memory(memory, None, &mut |_| {}).unwrap();
    let id = pair.id();
    pair.commit(&state(id, memory)).unwrap();
    id
}

#[test]
fn a_snapshot_is_saved_and_restored() {
    let folder = Folder::new();
    let saved = memory(3);

    let id = save(&folder, &saved);

    let pair = folder.open().unwrap();
    let loaded = FakeMemory::new(1, Bytes::kib(4), true);
    load_memory(&loaded, &pair.memory, &mut |_| {}).unwrap();
    assert!(loaded.same(&saved));
    assert_eq!(pair.state, state(id, &saved));
    assert_eq!(folder.names(), [MEMORY, STATE]);
    let (state, memory) = folder.paths();
    for path in [state, memory] {
        assert_eq!(fs::metadata(path).unwrap().permissions().mode() & 0o777, 0o600);
    }
}

#[test]
fn files_of_two_snapshots_are_no_pair() {
    let (one, other) = (Folder::new(), Folder::new());
    save(&one, &memory(1));
    save(&other, &memory(2));
    let ((state, memory), (_, others)) = (one.paths(), other.paths());

    let error = Pair::open(&state, &others).unwrap_err();

    assert!(matches!(error.fault, Fault::WrongPair { .. }), "{error:?}");
    assert_eq!(error.file, others);
    let error = Pair::open(&memory, &state).unwrap_err();
    assert!(matches!(error.fault, Fault::OtherRole { .. }), "{error:?}");
}

#[test]
fn a_snapshot_takes_the_place_of_another_when_it_is_complete() {
    let folder = Folder::new();
    let first = save(&folder, &memory(1));
    let mut pair = folder.create();
    pair.save_memory(&memory(2), None, &mut |_| {}).unwrap();
    assert_eq!(folder.open().unwrap().state.id, first);
    drop(pair);
    assert_eq!(folder.open().unwrap().state.id, first);

    let second = save(&folder, &memory(2));

    assert_eq!(folder.open().unwrap().state.id, second);
    assert_eq!(folder.names(), [MEMORY, STATE]);
}

#[test]
fn a_snapshot_that_was_opened_stays_when_another_takes_its_place() {
    let folder = Folder::new();
    save(&folder, &memory(1));
    let pair = folder.open().unwrap();
    save(&folder, &memory(2));
    let loaded = FakeMemory::new(1, Bytes::kib(4), true);

    load_memory(&loaded, &pair.memory, &mut |_| {}).unwrap();

    assert!(loaded.same(&memory(1)));
}

#[test]
fn a_state_that_cannot_be_committed_leaves_what_was_there() {
    let folder = Folder::new();
    let first = save(&folder, &memory(1));
    let lies: [fn(&mut State); 6] = [
        |state| state.id = SnapshotId([0; 16]),
        |state| state.manifest.memory_size *= 2,
        |state| state.manifest.page_size = 64 << 10,
        |state| state.manifest.mte = false,
        |state| state.manifest.kind = Kind::Diff { base: SnapshotId([1; 16]) },
        |state| state.vcpus.clear(),
    ];
    for lie in lies {
        let saved = memory(2);
        let mut pair = folder.create();
        pair.save_memory(&saved, None, &mut |_| {}).unwrap();
        let mut state = state(pair.id(), &saved);
        lie(&mut state);

        pair.commit(&state).unwrap_err();

        assert_eq!(folder.open().unwrap().state.id, first);
        assert_eq!(folder.names(), [MEMORY, STATE]);
    }
    let pair = folder.create();
    let state = state(pair.id(), &memory(2));
    pair.commit(&state).unwrap_err();
    assert_eq!(folder.open().unwrap().state.id, first);
}

#[test]
fn a_state_file_that_cannot_be_published_takes_the_memory_file_back() {
    for before in [None, Some("old")] {
        let (states, memories) = (Folder::new(), Folder::new());
        let (path, file) = (states.0.path().join("gone"), memories.paths().1);
        if let Some(text) = before {
            fs::write(&file, text).unwrap();
        }
        fs::create_dir(&path).unwrap();
        let saved = memory(2);
        let mut pair = NewPair::create(&path.join(STATE), &file).unwrap();
        pair.save_memory(&saved, None, &mut |_| {}).unwrap();
        let state = state(pair.id(), &saved);
        fs::remove_dir_all(&path).unwrap();

        let error = pair.commit(&state).unwrap_err();

        assert!(matches!(error.fault, Fault::Create(_)), "{error:?}");
        assert_eq!(fs::read_to_string(&file).ok().as_deref(), before);
        assert_eq!(memories.names().len(), usize::from(before.is_some()));
    }
}

#[test]
fn both_files_have_names_of_their_own() {
    let folder = Folder::new();
    let (path, _) = folder.paths();
    let again = folder.0.path().join(".").join(STATE);

    let error = NewPair::create(&path, &again).unwrap_err();

    assert!(matches!(error.fault, Fault::SameFile), "{error:?}");
    assert!(folder.names().is_empty());
}

#[test]
fn a_diff_is_not_restored_by_itself() {
    let folder = Folder::new();
    let (base, saved) = (SnapshotId([7; 16]), memory(1));
    let mut pair = folder.create();
    pair.save_memory(&saved, Some(base), &mut |_| {}).unwrap();
    let mut state = state(pair.id(), &saved);
    state.manifest.kind = Kind::Diff { base };
    pair.commit(&state).unwrap();

    let error = folder.open().unwrap_err();

    assert!(matches!(error.fault, Fault::Diff { base: found } if found == base), "{error:?}");
    let (state, memory) = folder.paths();
    assert!(Pair::open_any(&state, &memory).is_ok());
}

/// Names the directory to which a process of this test saves.
const CHILD: &str = "TESSERA_SNAPSHOT_FULL";

/// Files are limited in size, which fails a write as a full disk does. The limit is that of a process, so each save
/// has one of its own.
#[test]
fn a_save_without_room_leaves_nothing_and_what_was_there() {
    let name = "snapshot::pair::tests::a_save_without_room_leaves_nothing_and_what_was_there";
    let random = Page::Present(Filling::Random(1), Filling::Random(2));
    let saved = FakeMemory::with(&[vec![random; 64]], Bytes::kib(4), true);
    if let Some(path) = env::var_os(CHILD) {
        let folder = PathBuf::from(path);
        let mut pair = NewPair::create(&folder.join(STATE), &folder.join(MEMORY)).unwrap();
        let id = pair.id();
        let result = pair
            .save_memory(&saved, None, &mut |_| {})
            .and_then(|_| pair.commit(&state(id, &saved)));
        let error = result.expect_err("there is no room");
        assert!(matches!(error.fault, Fault::NoSpace(_)), "{error:?}");
        return;
    }
    let folder = Folder::new();
    let first = save(&folder, &saved);
    let length = fs::metadata(folder.paths().1).unwrap().len();

    // sh(1) counts in blocks of 512 bytes.
    for blocks in (0..10).map(|tenth| length * tenth / 10 / 512) {
        let script = format!("trap '' XFSZ; ulimit -f {blocks}; exec \"$0\" --exact {name}");
        let mut child = Command::new("sh");
        child.args(["-c", &script]).arg(env::current_exe().unwrap());
        let output = child.env(CHILD, folder.0.path()).output().unwrap();

        let text = String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success() && text.contains("1 passed"), "{blocks}: {output:?}");
        assert_eq!(folder.names(), [MEMORY, STATE]);
        assert_eq!(folder.open().unwrap().state.id, first);
    }
}
