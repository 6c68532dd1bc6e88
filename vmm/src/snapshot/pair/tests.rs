#![allow(clippy::unwrap_used)]

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;

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
