#![allow(clippy::unwrap_used)]

use std::fs;

use tempfile::TempDir;

use super::*;

fn read(bytes: &[u8]) -> Option<String> {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("file");
    fs::write(&path, bytes).unwrap();
    text(&path)
}

#[test]
fn a_small_file_is_read_whole() {
    assert_eq!(read(b"64K\n").as_deref(), Some("64K\n"));
    assert_eq!(read(b"").as_deref(), Some(""));
    assert_eq!(read(&[b'x'; LONGEST]).unwrap().len(), LONGEST);
}

#[test]
fn a_longer_file_is_read_in_part() {
    assert_eq!(read(&[b'x'; 3 * LONGEST]).unwrap().len(), LONGEST);
}

#[test]
fn what_is_no_text_or_no_file_is_not_read() {
    let folder = TempDir::new().unwrap();

    assert_eq!(read(&[0xff; 8]), None);
    assert_eq!(text(folder.path()), None);
    assert_eq!(text(&folder.path().join("nothing")), None);
}
