#![allow(clippy::unwrap_used)]

use std::fs::File;
use std::io::Read;
use std::os::unix::net::UnixStream;
use std::sync::mpsc;
use std::time::{Duration, Instant};

use rustix::pipe::{PipeFlags, pipe_with};
use rustix::termios::{Action, tcflow};

use super::*;
use crate::sys::testing::terminal;

/// How long a test waits for what takes milliseconds, before it fails.
const DEADLINE: Duration = Duration::from_secs(60);

fn pipe() -> (OwnedFd, OwnedFd) {
    pipe_with(PipeFlags::CLOEXEC).unwrap()
}

/// Writes until nothing is taken any more, in a thread, and says how much was.
fn fill(output: NonBlocking, piece: usize) -> (NonBlocking, usize) {
    let (done, when_done) = mpsc::channel();
    std::thread::spawn(move || {
        let mut total = 0;
        let error = loop {
            match output.write(&vec![b'x'; piece]) {
                Ok(n) => total += n,
                Err(error) => break error,
            }
        };
        assert_eq!(error.kind(), io::ErrorKind::WouldBlock);
        done.send((output, total)).unwrap();
    });
    when_done.recv_timeout(DEADLINE).expect("a write that waits")
}

#[test]
fn nothing_is_waited_for_however_full_it_is() {
    let (reader, pipe) = pipe();
    let (user, terminal) = terminal();
    let (other, socket) = UnixStream::pair().unwrap();
    for (what, fd) in [("pipe", pipe), ("terminal", terminal), ("socket", socket.into())] {
        let flags = rustix::fs::fcntl_getfl(&fd).unwrap();
        let shared = fd.try_clone().unwrap();

        let (mut output, total) = fill(NonBlocking::shared(fd), 4096);

        assert!(total > 1000, "{what}: {total}");
        // A terminal moves what it has taken to its reader's side by and by, which makes room for more.
        let deadline = Instant::now() + DEADLINE;
        while output.wait(&Timespec::default()).unwrap() {
            assert!(Instant::now() < deadline, "{what} is never full");
            (output, _) = fill(output, 4096);
        }
        assert_eq!(rustix::fs::fcntl_getfl(&shared).unwrap(), flags, "{what}: flags stay");
    }
    drop((reader, user, other));
}

#[test]
fn what_cannot_be_opened_anew_is_asked_first() {
    let (user, terminal) = terminal();
    let (reader, output) = pipe();
    for (what, fd, most) in [("pipe", output, PIPE_BUF), ("terminal", terminal, TERMINAL)] {
        let (_, total) = fill(NonBlocking { fd, how: How::Ask { most } }, 5000);
        assert!(total > 1000, "{what}: {total}");
    }
    drop((reader, user));
}

#[test]
fn a_reader_that_has_gone_is_an_error() {
    for how in [How::Write, How::Ask { most: PIPE_BUF }] {
        let (reader, fd) = pipe();
        drop(reader);
        let error = NonBlocking { fd, how }.write(b"x").unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::BrokenPipe, "{how:?}");
    }
}

#[test]
fn a_stopped_terminal_takes_nothing_until_it_is_started() {
    let (user, terminal) = terminal();
    let output = NonBlocking::shared(terminal.try_clone().unwrap());
    assert_eq!(output.how, How::Write);
    tcflow(&terminal, Action::OOff).unwrap();

    let (output, total) = fill(output, 10);
    assert_eq!(total, 0);

    tcflow(&terminal, Action::OOn).unwrap();
    assert_eq!(output.write(b"go on").unwrap(), 5);
    let mut read = [0; 5];
    File::from(user).read_exact(&mut read).unwrap();
    assert_eq!(&read, b"go on");
}

#[test]
fn a_file_keeps_its_offset_for_those_who_share_it() {
    let file = tempfile::tempfile().unwrap();
    let output = NonBlocking::shared(file.try_clone().unwrap().into());

    rustix::io::write(&file, b"theirs, ").unwrap();
    output.write(b"ours").unwrap();

    let mut text = [0; 12];
    std::os::unix::fs::FileExt::read_exact_at(&file, &mut text, 0).unwrap();
    assert_eq!(&text, b"theirs, ours");
}
