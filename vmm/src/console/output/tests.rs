#![allow(clippy::unwrap_used)]

use std::fs::{self, File};
use std::os::fd::OwnedFd;
use std::os::unix::fs::PermissionsExt;
use std::sync::mpsc;
use std::time::Duration;

use super::*;
use crate::console::fake::pipe;
use crate::sys::testing::terminal;

/// How long a test waits for what takes milliseconds, before it fails.
const DEADLINE: Duration = Duration::from_secs(60);

struct Ends {
    quiesce: Quiesce,
    lost: Lost,
}

impl Ends {
    fn new() -> Self {
        Self { quiesce: Quiesce::default(), lost: Lost::new().unwrap() }
    }

    fn file(&self, path: &Path) -> Result<Output, Error> {
        Output::file(path, self.quiesce.clone(), self.lost.clone())
    }

    fn stream(&self, fd: impl Into<OwnedFd>) -> Output {
        Output(Target::Stream(Arc::new(Stream::new(
            NonBlocking::shared(fd.into()),
            self.quiesce.clone(),
            self.lost.clone(),
        ))))
    }
}

/// What a vCPU does: it writes, then waits for the reader.
fn write_and_hold(output: &mut Output, bytes: &[u8]) -> usize {
    let taken = output.write(bytes).unwrap();
    output.throttle().unwrap().wait();
    taken
}

/// A pipe that takes no more.
fn full_pipe() -> (File, File) {
    let (reader, writer) = pipe();
    let page = 4096;
    rustix::pipe::fcntl_setpipe_size(&writer, page).unwrap();
    (&writer).write_all(&vec![b'.'; page]).unwrap();
    (reader, writer)
}

fn fifo(directory: &tempfile::TempDir) -> std::path::PathBuf {
    let path = directory.path().join("fifo");
    rustix::fs::mkfifoat(rustix::fs::CWD, &path, Mode::RUSR | Mode::WUSR).unwrap();
    path
}

#[test]
fn a_file_is_created_for_its_owner_alone_and_takes_the_output() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("console");
    let ends = Ends::new();
    ends.file(&path).unwrap().write_all(b"Linux version").unwrap();
    assert_eq!(fs::read(&path).unwrap(), b"Linux version");
    assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o7777, 0o600);
    assert!(ends.lost.take().is_none());
}

#[test]
fn a_file_that_exists_is_emptied() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("console");
    fs::write(&path, "an earlier run, longer than this one").unwrap();
    Ends::new().file(&path).unwrap().write_all(b"new").unwrap();
    assert_eq!(fs::read(&path).unwrap(), b"new");
}

#[test]
fn a_file_that_is_cut_meanwhile_has_no_hole() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("console");
    let mut output = Ends::new().file(&path).unwrap();
    output.write_all(b"before the rotation").unwrap();

    // What `copytruncate` of logrotate does once it has its copy.
    File::options().write(true).open(&path).unwrap().set_len(0).unwrap();
    output.write_all(b"after it").unwrap();

    assert_eq!(fs::read(&path).unwrap(), b"after it");
}

#[test]
fn a_place_that_cannot_be_opened_is_an_error_that_says_why() {
    let directory = tempfile::tempdir().unwrap();
    let hint = |path: &Path| match Ends::new().file(path) {
        Err(Error::Open { hint, .. }) => hint,
        other => panic!("{} opened, or {:?}", path.display(), other.err()),
    };
    assert_eq!(hint(&directory.path().join("no/such")), "create its directory first");
    assert_eq!(hint(directory.path()), "it is a directory");
    assert_eq!(hint(&fifo(&directory)), "it is a pipe or socket without a reader");
}

#[test]
fn a_pipe_with_a_reader_is_a_place_like_any_other() {
    let directory = tempfile::tempdir().unwrap();
    let path = fifo(&directory);
    let flags = OFlags::RDONLY | OFlags::NONBLOCK;
    let reader = rustix::fs::open(&path, flags, Mode::empty()).unwrap();
    Ends::new().file(&path).unwrap().write_all(b"hi").unwrap();
    let mut read = [0; 8];
    assert_eq!(rustix::io::read(&reader, &mut read).unwrap(), 2);
}

#[test]
fn a_full_disk_is_reported_once_and_everything_after_it_dropped() {
    let ends = Ends::new();
    let mut output = ends.file(Path::new("/dev/full")).unwrap();
    for _ in 0..3 {
        assert!(output.write(b"x").is_err());
    }
    assert_eq!(ends.lost.event().read().unwrap(), 1, "raised once");
    let error = ends.lost.take().unwrap();
    assert_eq!(error.kind(), io::ErrorKind::StorageFull);
    assert!(ends.lost.take().is_none());
}

#[test]
fn a_reader_that_has_gone_is_a_lost_output() {
    let ends = Ends::new();
    let (reader, writer) = pipe();
    let mut output = ends.stream(writer);
    output.write_all(b"x").unwrap();
    drop(reader);
    assert!(output.write(b"y").is_err());
    assert_eq!(ends.lost.take().unwrap().kind(), io::ErrorKind::BrokenPipe);
}

#[test]
fn a_reader_that_goes_while_a_vcpu_waits_ends_the_wait() {
    let ends = Ends::new();
    let (reader, writer) = full_pipe();
    let mut output = ends.stream(writer);
    assert_eq!(output.write(b"x").unwrap(), 1);
    let throttle = output.throttle().unwrap();
    let (done, when_done) = mpsc::channel();
    let vcpu = std::thread::spawn(move || {
        throttle.wait();
        done.send(()).unwrap();
    });
    drop(reader);
    when_done.recv_timeout(DEADLINE).unwrap();
    vcpu.join().unwrap();
    assert_eq!(ends.lost.take().unwrap().kind(), io::ErrorKind::BrokenPipe);
}

#[test]
fn a_blocked_write_waits_for_its_reader() {
    let ends = Ends::new();
    let (mut reader, writer) = full_pipe();
    let mut output = ends.stream(writer);
    let (done, when_done) = mpsc::channel();
    let vcpu = std::thread::spawn(move || done.send(write_and_hold(&mut output, b"x")).unwrap());
    assert!(when_done.try_recv().is_err(), "there is no room yet");
    let mut read = vec![0; 4096 + 1];
    io::Read::read_exact(&mut reader, &mut read).unwrap();
    assert_eq!(read.last(), Some(&b'x'));
    assert_eq!(when_done.recv_timeout(DEADLINE).unwrap(), 1);
    vcpu.join().unwrap();
}

#[test]
fn a_blocked_write_gives_way_to_a_pause_and_its_byte_comes_later() {
    let ends = Ends::new();
    let (mut reader, writer) = full_pipe();
    let mut output = ends.stream(writer);
    let (done, when_done) = mpsc::channel();
    let vcpu = std::thread::spawn(move || {
        done.send(write_and_hold(&mut output, b"x")).unwrap();
        output
    });
    ends.quiesce.set(true);
    assert_eq!(when_done.recv_timeout(DEADLINE).unwrap(), 1, "kept, not dropped");
    let mut output = vcpu.join().unwrap();
    ends.quiesce.set(false);

    let mut read = vec![0; 4096];
    io::Read::read_exact(&mut reader, &mut read).unwrap();
    output.write_all(b"y").unwrap();
    let mut read = [0; 2];
    io::Read::read_exact(&mut reader, &mut read).unwrap();
    assert_eq!(&read, b"xy", "in the order in which the guest wrote");
}

#[test]
fn a_write_itself_never_waits() {
    let ends = Ends::new();
    let (_reader, writer) = full_pipe();
    let mut output = ends.stream(writer);
    assert_eq!(output.write(b"x").unwrap(), 1, "kept for the throttle to wait for");
}

/// A terminal whose user has stopped it with Ctrl-S, or does not read, says that it takes a byte, and would
/// make a writer wait with all others.
#[test]
fn a_write_to_a_terminal_never_waits_either() {
    let ends = Ends::new();
    ends.quiesce.set(true);
    // How much room there is at the end depends on how fast the kernel moves it on: many are tried.
    for _ in 0..50 {
        let (_user, terminal) = terminal();
        let mut output = ends.stream(terminal);
        let (done, when_done) = mpsc::channel();
        std::thread::spawn(move || {
            while output.write(&[b'x'; MAX_KEPT]).is_ok() {}
            done.send(()).unwrap();
        });

        when_done.recv_timeout(DEADLINE).expect("a vCPU waits with the serial port locked");
    }
    assert!(ends.lost.take().is_none(), "nothing is wrong with the output");
}

#[test]
fn what_is_kept_while_paused_is_bounded_and_the_rest_is_refused() {
    let ends = Ends::new();
    let (_reader, writer) = full_pipe();
    let mut output = ends.stream(writer);
    ends.quiesce.set(true);
    let mut kept = 0;
    while let Ok(taken) = output.write(&[b'x'; 100]) {
        kept += taken;
        assert!(kept <= MAX_KEPT);
    }
    assert_eq!(kept, MAX_KEPT);
    assert!(ends.lost.take().is_none(), "nothing is wrong with the output");
}

#[test]
fn an_output_that_others_made_non_blocking_is_waited_for_all_the_same() {
    let ends = Ends::new();
    let (mut reader, writer) = full_pipe();
    rustix::io::ioctl_fionbio(&writer, true).unwrap();
    let mut output = ends.stream(writer);
    let vcpu = std::thread::spawn(move || write_and_hold(&mut output, b"x"));
    let mut read = vec![0; 4096 + 1];
    io::Read::read_exact(&mut reader, &mut read).unwrap();
    assert_eq!(vcpu.join().unwrap(), 1);
}

#[test]
fn output_to_nowhere_or_to_nobody_is_dropped() {
    assert!(Output::nowhere().write(b"x").is_err());
    assert!(Output::client(Client::default()).write(b"x").is_err());
}
