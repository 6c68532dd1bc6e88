#![allow(clippy::unwrap_used)]

use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use proptest::collection::vec;
use proptest::prelude::*;
use tempfile::TempDir;

use super::header::{BLOCK, Entry, Kind, pad};
use super::stream::{Counts, Receiver, Sender};
use super::*;
use crate::protocol::frame;
use crate::protocol::limits::{MAX_DEPTH, MAX_PATH};
use crate::protocol::message::{Source, SourceKind, Summary};

/// Keeps what an observer is shown.
#[derive(Default)]
struct Notes(Vec<String>, u64);

impl Observer for &mut Notes {
    fn moved(&mut self, bytes: u64) {
        self.1 += bytes;
    }

    fn notice(&mut self, message: &str) {
        self.0.push(message.to_owned());
    }
}

const TREE: Source = Source { name: Text::empty(), kind: SourceKind::Tree };

/// The frames that carry a source.
fn sent(path: &Path) -> (Vec<u8>, Summary) {
    let mut frames = Vec::new();
    let summary = Opened::new(path).unwrap().send(Sender::new(&mut frames, ())).unwrap();
    (frames, summary)
}

fn received(frames: &[u8], destination: &Path, source: &Source) -> Result<Summary, Error> {
    Target::new(destination, source)?.receive(Receiver::new(frames, ()))
}

/// Copies as the two sides do.
fn copied(from: &Path, to: &Path) -> Result<Summary, Error> {
    let opened = Opened::new(from)?;
    let target = Target::new(to, opened.source())?;
    let mut frames = Vec::new();
    opened.send(Sender::new(&mut frames, ()))?;
    target.receive(Receiver::new(&frames[..], ()))
}

/// What a tree has: of each entry its path, kind and permissions, time, and content.
fn listing(root: &Path) -> Vec<String> {
    fn walk(root: &Path, path: &Path, found: &mut Vec<String>) {
        let meta = fs::symlink_metadata(path).unwrap();
        let content = match meta.file_type() {
            kind if kind.is_symlink() => format!("{:?}", fs::read_link(path).unwrap()),
            kind if kind.is_file() => format!("{:?} {}", fs::read(path).unwrap(), meta.nlink()),
            _ => String::new(),
        };
        let name = path.strip_prefix(root).unwrap();
        let (mode, time) = (meta.mode(), (meta.mtime(), meta.mtime_nsec()));
        let mode = if meta.is_symlink() { 0 } else { mode };
        found.push(format!("{name:?} {mode:o} {time:?} {content}"));
        if meta.is_dir() {
            let entries = fs::read_dir(path).unwrap().map(|entry| entry.unwrap().path());
            entries.for_each(|entry| walk(root, &entry, found));
        }
    }
    let mut found = Vec::new();
    walk(root, root, &mut found);
    found.sort();
    found
}

fn write(path: &Path, content: &[u8], mode: u32) {
    fs::write(path, content).unwrap();
    fs::set_permissions(path, PermissionsExt::from_mode(mode)).unwrap();
}

/// A folder with a tree of everything that is copied.
fn everything() -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path().join("tree");
    fs::create_dir_all(root.join("a/b/empty")).unwrap();
    write(&root.join("a/script"), b"#!/bin/sh\n", 0o755);
    write(&root.join("a/b/secret"), &[7; 100_000], 0o600);
    write(&root.join("a/b/nothing"), b"", 0o444);
    write(&root.join(std::ffi::OsStr::from_bytes(b"not \xff utf8\n")), b"x", 0o644);
    fs::hard_link(root.join("a/script"), root.join("a/b/again")).unwrap();
    symlink("../nowhere", root.join("a/dangling")).unwrap();
    symlink("/etc/passwd", root.join("outside")).unwrap();
    symlink("x".repeat(300), root.join("long")).unwrap();
    let deep = root.join("d".repeat(90)).join("e".repeat(90));
    fs::create_dir_all(&deep).unwrap();
    write(&deep.join("f".repeat(200)), b"deep", 0o640);
    fs::set_permissions(root.join("a/b"), PermissionsExt::from_mode(0o555)).unwrap();
    File::open(root.join("a")).unwrap().set_modified(std::time::UNIX_EPOCH).unwrap();
    folder
}

#[test]
fn a_tree_survives_with_permissions_times_and_links() {
    let from = everything();
    let to = tempfile::tempdir().unwrap();

    let summary = copied(&from.path().join("tree"), to.path()).unwrap();

    let (before, after) = (listing(&from.path().join("tree")), listing(&to.path().join("tree")));
    assert_eq!(before, after);
    assert_eq!(summary.entries, before.len() as u64);
    assert_eq!((summary.skipped, summary.failed), (0, 0));
}

#[test]
fn a_copy_over_itself_replaces_and_keeps_what_it_does_not_have() {
    let from = everything();
    let to = tempfile::tempdir().unwrap();
    let source = from.path().join("tree");
    copied(&source, to.path()).unwrap();
    write(&to.path().join("tree/a/script"), b"changed and longer than before", 0o700);
    write(&to.path().join("tree/kept"), b"kept", 0o600);

    // Only root writes to a folder that is read-only.
    fs::set_permissions(to.path().join("tree/a/b"), PermissionsExt::from_mode(0o755)).unwrap();
    copied(&source, to.path()).unwrap();

    assert_eq!(fs::read(to.path().join("tree/a/script")).unwrap(), b"#!/bin/sh\n");
    assert_eq!(fs::read(to.path().join("tree/kept")).unwrap(), b"kept");
}

#[test]
fn names_follow_the_rules_of_cp() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    fs::create_dir_all(at("tree/inner")).unwrap();
    fs::create_dir_all(at("there")).unwrap();
    write(&at("file"), b"f", 0o644);
    let copied = |from: &str, to: &str| copied(&at(from), &at(to)).map(drop);

    copied("file", "renamed").unwrap();
    copied("file", "there").unwrap();
    copied("file", "there/").unwrap();
    copied("tree", "new").unwrap();
    copied("tree", "there").unwrap();
    copied("tree/.", "there").unwrap();
    copied("tree", "slash/").unwrap();

    for path in
        ["renamed", "there/file", "new/inner", "there/tree/inner", "there/inner", "slash/inner"]
    {
        assert!(at(path).exists(), "{path}");
    }
    assert!(matches!(copied("file", "missing/"), Err(Error::NoFolder(_))));
    assert!(matches!(copied("file", "missing/x"), Err(Error::NoFolder(_))));
    assert!(matches!(copied("tree", "file"), Err(Error::IsNoFolder(_))));
    assert!(matches!(copied("file", "renamed/"), Err(Error::IsNoFolder(_))));
    assert!(matches!(copied("missing", "x"), Err(Error::File { .. })));
    fs::create_dir(at("there/renamed")).unwrap();
    assert!(matches!(copied("renamed", "there"), Err(Error::IsFolder(_))));
}

#[test]
fn a_file_replaces_a_link_and_never_a_device() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    write(&at("file"), b"new", 0o640);
    write(&at("target"), b"old", 0o600);
    symlink("target", at("link")).unwrap();

    copied(&at("file"), &at("link")).unwrap();
    let device = copied(&at("file"), Path::new("/dev/null"));

    assert_eq!(fs::read(at("target")).unwrap(), b"old");
    let link = fs::symlink_metadata(at("link")).unwrap();
    assert!(link.is_file() && link.mode() & 0o7777 == 0o640);
    assert!(matches!(device, Err(Error::Special(_))), "{device:?}");
    assert!(matches!(Opened::new(Path::new("/dev/null")), Err(Error::Special(_))));
}

#[test]
fn special_files_are_left_out_and_named() {
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path().join("tree");
    fs::create_dir(&root).unwrap();
    let _socket = std::os::unix::net::UnixListener::bind(root.join("socket")).unwrap();
    write(&root.join("file"), b"x", 0o644);
    let (mut notes, mut frames) = (Notes::default(), Vec::new());

    let opened = Opened::new(&root).unwrap();
    let summary = opened.send(Sender::new(&mut frames, &mut notes)).unwrap();

    assert_eq!((summary.entries, summary.skipped), (2, 1));
    assert!(notes.0[0].contains("socket was left out"), "{:?}", notes.0);
    let mut notes = Notes::default();
    let to = tempfile::tempdir().unwrap();
    let target = Target::new(to.path(), &TREE).unwrap();
    target.receive(Receiver::new(&frames[..], &mut notes)).unwrap();
    assert_eq!((notes.0.len(), notes.1), (1, summary.bytes));
}

#[test]
fn a_file_that_fails_its_check_leaves_nothing() {
    let folder = tempfile::tempdir().unwrap();
    write(&folder.path().join("from"), &[1; 1000], 0o644);
    let (frames, _) = sent(&folder.path().join("from"));
    let source = Opened::new(&folder.path().join("from")).unwrap().source().clone();
    let to = tempfile::tempdir().unwrap();
    write(&to.path().join("to"), b"old", 0o600);

    for (at, cut) in [(100, None), (0, Some(500)), (0, Some(frames.len() - 1))] {
        let mut damaged = frames.clone();
        if at > 0 {
            damaged[at] ^= 1;
        }
        damaged.truncate(cut.unwrap_or(damaged.len()));

        assert!(received(&damaged, &to.path().join("to"), &source).is_err());
        assert_eq!(fs::read(to.path().join("to")).unwrap(), b"old");
        assert_eq!(fs::read_dir(to.path()).unwrap().count(), 1, "a temporary file is left");
    }
}

#[test]
fn what_stopped_a_tree_is_said_with_what_is_there() {
    let from = everything();
    let (frames, _) = sent(&from.path().join("tree"));
    let to = tempfile::tempdir().unwrap();

    let result = received(&frames[..frames.len() / 2], to.path(), &TREE);

    let Err(Error::Partial { target, .. }) = result else { panic!("{result:?}") };
    assert_eq!(target, to.path());
}

#[test]
fn the_other_sides_failure_is_the_result() {
    let refusal = Refusal::new(crate::protocol::message::Reason::Failed, "disk full");
    let frames = frame::json(frame::Kind::Failed, &refusal).unwrap();
    let to = tempfile::tempdir().unwrap();
    let kind = SourceKind::File { mode: None, modified: None, size: None };

    let result = received(&frames, to.path(), &Source { name: "x".into(), kind });

    assert!(matches!(result, Err(Error::Remote(found)) if found == refusal));
}

/// An archive as its frames: entries, each with its content.
fn archive(entries: &[(Entry, &[u8])]) -> Vec<u8> {
    let mut frames = Vec::new();
    let mut sender = Sender::new(&mut frames, ());
    for (entry, content) in entries {
        entry.write(&mut sender).unwrap();
        sender.write_all(content).unwrap();
        pad(&mut sender, content.len() as u64).unwrap();
    }
    sender.write_all(&[0; 2 * BLOCK]).unwrap();
    let counts = Counts { entries: entries.len() as u64, ..Counts::default() };
    sender.finish(counts).unwrap();
    frames
}

fn entry(path: &str, kind: Kind, link: &str, size: usize) -> Entry {
    Entry {
        path: path.into(),
        kind,
        link: link.into(),
        mode: 0o777,
        modified: (0, 0),
        size: size as u64,
    }
}

/// A destination beside something that must not change.
struct Victim {
    folder: TempDir,
}

impl Victim {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        fs::create_dir_all(folder.path().join("victim/inner")).unwrap();
        write(&folder.path().join("victim/file"), b"precious", 0o600);
        fs::create_dir(folder.path().join("destination")).unwrap();
        Self { folder }
    }

    fn destination(&self) -> PathBuf {
        self.folder.path().join("destination")
    }

    /// The victim, and what lies beside the destination.
    fn state(&self) -> (Vec<String>, usize) {
        let beside = fs::read_dir(self.folder.path()).unwrap().count();
        (listing(&self.folder.path().join("victim")), beside)
    }
}

#[test]
fn no_archive_writes_outside_its_destination() {
    let folder = || entry("", Kind::Folder, "", 0);
    let file = |path: &str| (entry(path, Kind::File, "", 4), &b"evil"[..]);
    let link = |path: &str, to: &str| (entry(path, Kind::Symlink, to, 0), &b""[..]);
    let hard = |path: &str, to: &str| (entry(path, Kind::Link, to, 0), &b""[..]);
    let make = |path: &str| (entry(path, Kind::Folder, "", 0), &b""[..]);
    let hostile: Vec<Vec<(Entry, &[u8])>> = vec![
        vec![file("../victim/file")],
        vec![file("a/../../victim/file")],
        vec![file("/tmp/evil")],
        vec![file("//tmp/evil")],
        vec![file("./../victim/file")],
        vec![file("..")],
        vec![make("..")],
        vec![make("../evil")],
        vec![file("a//b")],
        vec![link("l", "../victim"), file("l/file")],
        vec![link("l", "../victim"), make("l/evil")],
        vec![link("l", "../victim"), make("l"), file("l/file")],
        vec![link("l", "../victim"), link("l/evil", "x")],
        vec![link("l", ".."), file("l/victim/file")],
        vec![make("d"), link("d/l", "../../victim"), file("d/l/file")],
        vec![hard("h", "../victim/file"), file("h")],
        vec![link("l", "../victim"), hard("h", "l/file"), file("h")],
        vec![file("f"), hard("l/evil", "f")],
        vec![link("l", "../victim"), file("f"), hard("l/evil", "f")],
        vec![file("")],
        vec![link("", "../victim")],
    ];
    for entries in hostile {
        let victim = Victim::new();
        let before = victim.state();
        let entries: Vec<_> = std::iter::once((folder(), &b""[..])).chain(entries).collect();

        let result = received(&archive(&entries), &victim.destination(), &TREE);

        assert!(result.is_err(), "{entries:?}");
        assert_eq!(victim.state(), before, "{entries:?}");
    }
}

/// What is a link in the archive, and then a file or a folder, is replaced and not followed.
#[test]
fn a_link_is_never_written_through() {
    let victim = Victim::new();
    let before = victim.state();
    symlink("../victim/file", victim.destination().join("there")).unwrap();
    let frames = archive(&[
        (entry("", Kind::Folder, "", 0), b""),
        (entry("l", Kind::Symlink, "../victim/file", 0), b""),
        (entry("l", Kind::File, "", 4), b"evil"),
        (entry("there", Kind::File, "", 4), b"evil"),
        (entry("h", Kind::Symlink, "../victim/file", 0), b""),
        // Another name of the link itself.
        (entry("again", Kind::Link, "h", 0), b""),
        (entry("again", Kind::File, "", 4), b"evil"),
    ]);

    received(&frames, &victim.destination(), &TREE).unwrap();

    assert_eq!(victim.state(), before);
    assert_eq!(fs::read(victim.destination().join("there")).unwrap(), b"evil");
}

#[test]
fn rights_of_another_user_do_not_travel() {
    let victim = Victim::new();
    let mut file = entry("program", Kind::File, "", 1);
    file.mode = 0o6755;
    let frames = archive(&[(entry("", Kind::Folder, "", 0), b""), (file, b"x")]);

    received(&frames, &victim.destination(), &TREE).unwrap();

    let mode = fs::metadata(victim.destination().join("program")).unwrap().mode();
    assert_eq!(mode & 0o7777, 0o755);
}

#[test]
fn a_folder_that_was_there_keeps_its_permissions() {
    let victim = Victim::new();
    let before = listing(&victim.destination());
    let mut root = entry("", Kind::Folder, "", 0);
    root.mode = 0o700;

    received(&archive(&[(root, b"")]), &victim.destination(), &TREE).unwrap();

    assert_eq!(listing(&victim.destination()), before);
}

#[test]
fn trees_without_end_are_refused() {
    let to = tempfile::tempdir().unwrap();
    let deep = "d/".repeat(MAX_DEPTH) + "d";
    let long = ("y".repeat(200) + "/").repeat(MAX_PATH / 200 + 1) + "y";

    for path in [deep, long] {
        let frames = archive(&[
            (entry("", Kind::Folder, "", 0), b""),
            (entry(&path, Kind::Folder, "", 0), b""),
        ]);
        let result = received(&frames, to.path(), &TREE);
        let Err(Error::Partial { source, .. }) = result else { panic!("{result:?}") };
        assert!(matches!(*source, Error::TooDeep(_)), "{source:?}");
    }
}

#[test]
fn a_stream_that_goes_on_behind_its_archive_is_refused() {
    let mut frames = Vec::new();
    let mut sender = Sender::new(&mut frames, ());
    entry("", Kind::Folder, "", 0).write(&mut sender).unwrap();
    sender.write_all(&vec![0; 4 << 20]).unwrap();
    sender.finish(Counts { entries: 1, ..Counts::default() }).unwrap();
    let to = tempfile::tempdir().unwrap();

    assert!(received(&frames, to.path(), &TREE).is_err());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Whatever arrives: an error or a tree inside the destination; no panic, and nothing beside it.
    #[test]
    fn any_stream_stays_in_its_destination(
        changes in vec((any::<prop::sample::Index>(), any::<u8>()), 1..20),
        cut in any::<prop::sample::Index>(),
    ) {
        let victim = Victim::new();
        let before = victim.state();
        let mut frames = archive(&[
            (entry("", Kind::Folder, "", 0), b""),
            (entry("d", Kind::Folder, "", 0), b""),
            (entry("d/l", Kind::Symlink, "../../victim", 0), b""),
            (entry("d/f", Kind::File, "", 3), b"abc"),
            (entry("d/h", Kind::Link, "d/f", 0), b""),
        ]);
        for (at, byte) in changes {
            let at = at.index(frames.len());
            frames[at] = byte;
        }
        frames.truncate(cut.index(frames.len()) + 1);

        let _ = received(&frames, &victim.destination(), &TREE);

        prop_assert_eq!(victim.state(), before);
    }

    #[test]
    fn a_stream_of_any_bytes_survives(pieces in vec(vec(any::<u8>(), 0..5000), 0..40)) {
        let mut frames = Vec::new();
        let mut sender = Sender::new(&mut frames, ());
        pieces.iter().for_each(|piece| sender.write_all(piece).unwrap());
        let summary = sender.finish(Counts::default()).unwrap();
        let mut out = Vec::new();

        let received = receive_into(Receiver::new(&frames[..], ()), &mut out).unwrap();

        prop_assert_eq!(received, summary);
        prop_assert_eq!(out, pieces.concat());
    }
}

/// A file system without space: a failure with its reason, and nothing left of the file.
#[test]
fn a_full_disk_is_said() {
    struct Full;
    impl Write for Full {
        fn write(&mut self, _: &[u8]) -> io::Result<usize> {
            Err(io::ErrorKind::StorageFull.into())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }
    let folder = tempfile::tempdir().unwrap();
    write(&folder.path().join("from"), b"x", 0o644);
    let (frames, _) = sent(&folder.path().join("from"));

    let result = receive_into(Receiver::new(&frames[..], ()), Full);

    let Err(Error::File { source, .. }) = result else { panic!("{result:?}") };
    assert_eq!(source.kind(), io::ErrorKind::StorageFull);
}
