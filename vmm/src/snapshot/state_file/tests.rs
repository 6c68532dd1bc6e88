#![allow(clippy::unwrap_used)]

use arch::units::Bytes;

use super::super::testing::{FakeMemory, state};
use super::*;

fn example() -> State {
    state(SnapshotId([5; 16]), &FakeMemory::new(2, Bytes::kib(4), true))
}

#[test]
fn what_is_written_is_read() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("state");

    StateFile::write(&path, &example()).unwrap();

    assert_eq!(StateFile::read(&path).unwrap(), example());
    assert_eq!(folder.path().read_dir().unwrap().count(), 1);
}
