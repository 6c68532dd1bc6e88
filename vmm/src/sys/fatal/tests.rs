#![allow(clippy::unwrap_used)]

use std::env;
use std::fs;
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use super::*;
use crate::sys::nonblocking::NonBlocking;
use crate::sys::thread;
use crate::sys::unix_socket::Socket;

/// Names the directory to the process that a test starts for itself, which ends in a fault.
const INSIDE: &str = "TESSERA_TEST_FAULT";

/// How many bytes that process first writes to its terminal.
const ROOM: &str = "TESSERA_TEST_ROOM";

/// How long a test waits for what takes milliseconds, before it fails.
const DEADLINE: Duration = Duration::from_secs(60);

/// Runs the test of this name once more, in a process of its own that has the handlers, and returns how that
/// ended; or, in that process, where its files are to be.
fn in_a_process(test: &str, directory: &Path) -> Result<Output, PathBuf> {
    if let Some(directory) = env::var_os(INSIDE) {
        install();
        return Err(directory.into());
    }
    Ok(command(test, directory).output().unwrap())
}

/// Runs the test of this name in a process of its own.
fn command(test: &str, directory: &Path) -> Command {
    let mut command = Command::new(env::current_exe().unwrap());
    command.args(["--exact", &format!("sys::fatal::tests::{test}"), "--nocapture"]);
    command.env(INSIDE, directory).stdin(Stdio::null());
    command
}

/// Ends in a fault, in a thread of the VMM's and with a socket that must not stay.
fn end(directory: &Path, fault: impl FnOnce() + Send + 'static) -> ! {
    let socket = Socket::bind(&directory.join("socket")).unwrap();
    thread::spawn(thread::Role::Vcpu, "toucher", 128 << 10, fault).unwrap().join().unwrap();
    drop(socket);
    unreachable!("a fault was survived");
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[test]
fn a_touch_of_memory_that_is_gone_ends_the_process_in_order() {
    let directory = tempfile::tempdir().unwrap();
    let test = "a_touch_of_memory_that_is_gone_ends_the_process_in_order";
    let output = match in_a_process(test, directory.path()) {
        Ok(output) => output,
        Err(place) => end(&place, || {
            touch_behind_the_end(&tempfile::tempfile().unwrap(), Some(0x4000_0000));
        }),
    };

    assert_eq!(output.status.code(), Some(15), "{}", said(&output));
    let expected =
        "tessera: thread toucher touched guest memory at guest address 0x40000010, and the host";
    assert!(said(&output).contains(expected), "{}", said(&output));
    assert!(!directory.path().join("socket").exists());
}

/// Writes so many bytes to a terminal that nothing is read from, or as many as it takes. Returns how many.
fn fill(terminal: &OwnedFd, most: usize) -> usize {
    let output = NonBlocking::shared(terminal.try_clone().unwrap());
    (0..most).take_while(|_| output.write(b".").is_ok()).count()
}

/// A terminal takes the first part of the message and not the rest when it is almost full. How full that is
/// differs from kernel to kernel.
#[test]
fn a_terminal_that_nothing_reads_does_not_keep_the_process() {
    let test = "a_terminal_that_nothing_reads_does_not_keep_the_process";
    if let Some(directory) = env::var_os(INSIDE) {
        install();
        let room: usize = env::var(ROOM).unwrap().parse().unwrap();
        let terminal = std::io::stderr().as_fd().try_clone_to_owned().unwrap();
        fill(&terminal, room);
        end(Path::new(&directory), || {
            touch_behind_the_end(&tempfile::tempfile().unwrap(), None);
        });
    }
    let directory = tempfile::tempdir().unwrap();
    let (user, terminal) = crate::sys::testing::terminal();
    let all = fill(&terminal, usize::MAX);
    drop((user, terminal));

    for left in (0..1024).step_by(64) {
        let (user, terminal) = crate::sys::testing::terminal();
        let mut command = command(test, directory.path());
        command.env(ROOM, (all - left).to_string()).stdout(Stdio::null()).stderr(terminal);
        let mut child = command.spawn().unwrap();

        let deadline = Instant::now() + DEADLINE;
        let ended = loop {
            match child.try_wait().unwrap() {
                Some(status) => break Some(status),
                None if Instant::now() >= deadline => break None,
                None => std::thread::sleep(Duration::from_millis(5)),
            }
        };
        // One that hangs ends with its terminal.
        child.kill().unwrap();
        drop(user);
        let code = ended.map(|status| status.code());
        assert_eq!(code, Some(Some(15)), "with room for {left} bytes");
    }
}

#[test]
fn memory_of_the_vmm_is_told_from_the_guests() {
    let directory = tempfile::tempdir().unwrap();
    let output = match in_a_process("memory_of_the_vmm_is_told_from_the_guests", directory.path()) {
        Ok(output) => output,
        Err(place) => end(&place, || {
            touch_behind_the_end(&tempfile::tempfile().unwrap(), None);
        }),
    };

    assert_eq!(output.status.code(), Some(15), "{}", said(&output));
    assert!(said(&output).contains("touched the VMM's own memory at 0x"), "{}", said(&output));
}

#[test]
fn an_abort_leaves_no_socket_and_is_an_abort() {
    let directory = tempfile::tempdir().unwrap();
    let output = match in_a_process("an_abort_leaves_no_socket_and_is_an_abort", directory.path()) {
        Ok(output) => output,
        Err(place) => end(&place, || std::process::abort()),
    };

    assert_eq!(output.status.signal(), Some(libc::SIGABRT), "{}", said(&output));
    assert!(!directory.path().join("socket").exists());
}

#[test]
fn a_signal_that_is_sent_ends_the_process_by_itself() {
    let directory = tempfile::tempdir().unwrap();
    let test = "a_signal_that_is_sent_ends_the_process_by_itself";
    let output = match in_a_process(test, directory.path()) {
        Ok(output) => output,
        Err(place) => end(&place, || {
            let own = rustix::process::getpid();
            rustix::process::kill_process(own, rustix::process::Signal::BUS).unwrap();
            std::thread::park();
        }),
    };

    assert_eq!(output.status.signal(), Some(libc::SIGBUS), "{}", said(&output));
    assert!(!directory.path().join("socket").exists());
}

#[test]
fn a_file_that_has_a_successor_stays() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("file");
    fs::write(&path, "ours").unwrap();
    let ours = fs::symlink_metadata(&path).unwrap();
    let name = CString::new(path.as_os_str().as_encoded_bytes()).unwrap();
    let successor = directory.path().join("successor");
    fs::write(&successor, "theirs").unwrap();
    fs::rename(&successor, &path).unwrap();

    remove(&name, ours.dev(), ours.ino());
    assert_eq!(fs::read(&path).unwrap(), b"theirs");

    let theirs = fs::symlink_metadata(&path).unwrap();
    remove(&name, theirs.dev(), theirs.ino());
    assert!(!path.exists());
}

#[test]
fn places_are_used_again_and_more_than_there_are_is_no_error() {
    for _ in 0..3 {
        let kept: Vec<_> = (0..PLACES + 5)
            .filter_map(|at| OnFault::remove(Path::new("/no/such"), 0, at as u64))
            .collect();
        // Other tests of this process may have some of them.
        assert!(!kept.is_empty() && kept.len() <= PLACES);
    }
}
