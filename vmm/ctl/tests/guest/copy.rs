//! Files and trees, in and out.

use std::fs;
use std::io::{Read, Write};
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::process::{Output, Stdio};

use agent::protocol::frame::{self, Kind};
use agent::protocol::message::{Accepted, Source, SourceKind};
use rustix::process::Signal;

use super::common::until;
use super::harness::{Guest, anonymous_kib, signal, text};

/// A path of the guest as an argument.
fn there(path: &Path) -> String {
    format!(":{}", path.display())
}

fn cp(guest: &Guest, from: &str, to: &str) -> Output {
    guest.run("cp", &[from, to])
}

fn succeeds(output: &Output) {
    assert_eq!((output.status.code(), text(&output.stderr).as_str()), (Some(0), ""));
}

fn sha256(path: &Path) -> String {
    let output = std::process::Command::new("sha256sum").arg(path).output().unwrap();
    text(&output.stdout).split(' ').next().unwrap().to_owned()
}

#[test]
fn a_file_goes_in_and_comes_out_with_mode_and_time() {
    let guest = Guest::start();
    let (from, inside, back) = (guest.path("from"), guest.path("inside"), guest.path("back"));
    let bytes: Vec<u8> = (0..20_000_000_u32).map(|number| (number % 253) as u8).collect();
    fs::write(&from, &bytes).unwrap();
    fs::set_permissions(&from, PermissionsExt::from_mode(0o750)).unwrap();

    succeeds(&cp(&guest, from.to_str().unwrap(), &there(&inside)));
    succeeds(&cp(&guest, &there(&inside), back.to_str().unwrap()));

    assert_eq!(sha256(&back), sha256(&from));
    let (first, last) = (fs::metadata(&from).unwrap(), fs::metadata(&back).unwrap());
    assert_eq!(last.mode(), first.mode());
    assert_eq!((last.mtime(), last.mtime_nsec()), (first.mtime(), first.mtime_nsec()));
}

#[test]
fn five_thousand_files_go_both_ways() {
    let guest = Guest::start();
    let tree = guest.path("tree");
    for folder in 0..50 {
        let folder = tree.join(format!("folder{folder}"));
        fs::create_dir_all(folder.join("empty")).unwrap();
        for file in 0..100 {
            fs::write(folder.join(format!("file{file}")), format!("{file}").repeat(file)).unwrap();
        }
        symlink("file7", folder.join("link")).unwrap();
    }
    fs::create_dir(guest.path("inside")).unwrap();
    fs::create_dir(guest.path("back")).unwrap();

    succeeds(&cp(&guest, tree.to_str().unwrap(), &there(&guest.path("inside"))));
    succeeds(&cp(&guest, &there(&guest.path("inside/tree")), guest.path("back").to_str().unwrap()));

    let differences = std::process::Command::new("diff")
        .args(["-r", "--no-dereference"])
        .args([&tree, &guest.path("back/tree")])
        .output()
        .unwrap();
    assert!(differences.status.success(), "{}", text(&differences.stdout));
}

#[test]
fn streams_are_files_too() {
    let guest = Guest::start();
    let inside = guest.path("inside");

    let mut copy =
        guest.command("cp", &["-", &there(&inside)]).stdin(Stdio::piped()).spawn().unwrap();
    copy.stdin.take().unwrap().write_all(b"from a pipe").unwrap();
    assert!(copy.wait().unwrap().success());
    let output = cp(&guest, &there(&inside), "-");

    assert_eq!(text(&output.stdout), "from a pipe");
    assert_eq!(fs::metadata(&inside).unwrap().mode() & 0o777, 0o644);
}

#[test]
fn a_tree_as_a_stream_is_an_archive() {
    let guest = Guest::start();
    fs::create_dir(guest.path("tree")).unwrap();
    fs::write(guest.path("tree/file"), "x").unwrap();

    let output = cp(&guest, &there(&guest.path("tree")), "-");

    let mut list = std::process::Command::new("tar")
        .arg("t")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    list.stdin.take().unwrap().write_all(&output.stdout).unwrap();
    assert_eq!(text(&list.wait_with_output().unwrap().stdout), ".\nfile\n");
}

#[test]
fn what_cannot_be_copied_is_said() {
    let guest = Guest::start();
    fs::write(guest.path("file"), "x").unwrap();
    let here = guest.path("file").to_str().unwrap().to_owned();
    let missing = there(&guest.path("missing/file"));

    for (from, to, code, message) in [
        (here.as_str(), "elsewhere", 64, "with a colon"),
        (":/etc", ":/tmp", 64, "with a colon"),
        (here.as_str(), missing.as_str(), 1, "make it first"),
        (missing.as_str(), "/tmp", 1, "No such file"),
        (":/dev/null", "/tmp", 1, "neither a file nor a folder"),
        (here.as_str(), ":/dev/null", 1, "neither a file nor a folder"),
        (here.as_str(), ":relative", 1, "begins with /"),
        ("/nonexistent", ":/tmp", 1, "No such file"),
        (here.as_str(), ":/dev/full/x", 1, "no folder"),
    ] {
        let output = cp(&guest, from, to);

        assert_eq!(output.status.code(), Some(code), "{from} {to}: {}", text(&output.stderr));
        assert!(text(&output.stderr).contains(message), "{from} {to}: {}", text(&output.stderr));
    }
}

/// The guest's disk fills up: the reason arrives although this side is still sending.
#[test]
fn a_failure_in_the_guest_stops_the_sender_with_its_reason() {
    let folder = tempfile::tempdir().unwrap();
    let vsock = folder.path().join("vsock");
    let listener = UnixListener::bind(&vsock).unwrap();
    let agent = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let mut byte = [0];
        while byte != *b"\n" {
            stream.read_exact(&mut byte).unwrap();
        }
        stream.write_all(b"OK 1\n").unwrap();
        frame::read(&mut stream).unwrap();
        let accepted = frame::json(Kind::Accepted, &Accepted::default()).unwrap();
        stream.write_all(&accepted).unwrap();
        for _ in 0..10 {
            frame::read(&mut stream).unwrap();
        }
        let failed = br#"{"reason":"failed","message":"in the guest: no space left"}"#;
        frame::write(&mut stream, Kind::Failed, failed).unwrap();
        std::io::copy(&mut stream, &mut std::io::sink()).unwrap()
    });
    let zeros = fs::File::open("/dev/zero").unwrap();

    let output = std::process::Command::new(env!("CARGO_BIN_EXE_tesseractl"))
        .args(["cp", &format!("vsock:{}", vsock.display()), "-", ":/file"])
        .stdin(zeros)
        .output()
        .unwrap();

    assert_eq!(output.status.code(), Some(1));
    assert!(text(&output.stderr).contains("no space left"), "{}", text(&output.stderr));
    agent.join().unwrap();
}

#[test]
fn a_full_disk_of_the_guest_leaves_nothing_behind() {
    let guest = Guest::start();
    // A limit of the size of files is a disk of that size.
    let agent = rustix::process::Pid::from_raw(guest.agent().try_into().unwrap());
    let limit = rustix::process::Rlimit { current: Some(1 << 20), maximum: None };
    rustix::process::prlimit(agent, rustix::process::Resource::Fsize, limit).unwrap();
    fs::create_dir(guest.path("inside")).unwrap();
    fs::write(guest.path("large"), vec![1; 4 << 20]).unwrap();

    let output = cp(&guest, guest.path("large").to_str().unwrap(), &there(&guest.path("inside")));

    assert_eq!(output.status.code(), Some(1));
    let message = text(&output.stderr);
    assert!(
        message.contains("in the guest: cannot write") && message.contains("large"),
        "{message}"
    );
    assert_eq!(fs::read_dir(guest.path("inside")).unwrap().count(), 0);
}

#[test]
fn a_file_that_cannot_be_read_is_counted_and_the_others_are_copied() {
    let guest = Guest::start();
    let tree = guest.path("tree");
    fs::create_dir(&tree).unwrap();
    fs::write(tree.join("file"), "x").unwrap();
    let _socket = UnixListener::bind(tree.join("socket")).unwrap();
    fs::create_dir(guest.path("back")).unwrap();

    let output = cp(&guest, &there(&tree), guest.path("back").to_str().unwrap());

    assert_eq!(output.status.code(), Some(0));
    assert!(text(&output.stderr).contains("socket was left out"), "{}", text(&output.stderr));
    assert!(guest.path("back/tree/file").exists());
}

#[test]
fn a_copy_that_is_stopped_leaves_nothing_of_the_file() {
    let guest = Guest::start();
    fs::create_dir(guest.path("back")).unwrap();
    // A file of the guest whose copy does not end during the test.
    let long = fs::File::create(guest.path("long")).unwrap();
    long.set_len(1 << 40).unwrap();
    let back = guest.path("back");
    let mut copy = guest
        .command("cp", &[&there(&guest.path("long")), back.to_str().unwrap()])
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    until("it has begun", || (fs::read_dir(&back).unwrap().count() > 0).then_some(()));

    let bounded = anonymous_kib(copy.id());
    signal(copy.id(), Signal::INT);

    assert_eq!(copy.wait().unwrap().code(), Some(130));
    assert_eq!(fs::read_dir(&back).unwrap().count(), 0);
    assert!(bounded < 8192, "{bounded} KiB");
}

/// An agent that sends another name than the one asked for, or a tree for a file.
#[test]
fn a_hostile_agent_writes_where_the_user_said() {
    for kind in
        [SourceKind::Tree, SourceKind::File { mode: Some(0o4777), modified: None, size: None }]
    {
        let folder = tempfile::tempdir().unwrap();
        let vsock = folder.path().join("vsock");
        let listener = UnixListener::bind(&vsock).unwrap();
        let agent = std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            stream.write_all(b"OK 1\n").unwrap();
            let source = Some(Source { name: "../../evil".into(), kind });
            let accepted = Accepted { source, ..Accepted::default() };
            stream.write_all(&frame::json(Kind::Accepted, &accepted).unwrap()).unwrap();
            let mut sender = agent::transfer::stream::Sender::new(&mut stream, ());
            sender.write_all(&[0; 1024]).unwrap();
            sender.finish(agent::transfer::stream::Counts::default()).unwrap();
            let _ = std::io::copy(&mut stream, &mut std::io::sink());
        });
        let to = folder.path().join("a/b");
        fs::create_dir_all(&to).unwrap();

        let output = std::process::Command::new(env!("CARGO_BIN_EXE_tesseractl"))
            .args(["cp", &format!("vsock:{}", vsock.display()), ":/etc/name", to.to_str().unwrap()])
            .output()
            .unwrap();

        let found: Vec<_> =
            fs::read_dir(&to).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        assert_eq!(found, ["name"], "{}", text(&output.stderr));
        assert_eq!(fs::metadata(to.join("name")).unwrap().mode() & 0o7000, 0);
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 2);
        agent.join().unwrap();
    }
}
