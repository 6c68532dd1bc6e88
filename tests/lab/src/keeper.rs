//! Keeps a nested host up for one program after another, and ends with it: when the run that wants it has
//! ended, when a program has left something behind, does not end or is given up, and after a while without one.

use std::collections::VecDeque;
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::net::Shutdown;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::thread;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, poll};
use rustix::pipe::{PipeFlags, pipe_with};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open};

use crate::cli::{CRASHED, FAILED, TIMED_OUT};
use crate::frames::{Reply, Request};
use crate::host::{self, Machine, Outcome, Output, Report};
use crate::interrupt::Interrupt;
use crate::session::{Lab, Payload};
use crate::trailer::{Piece, Trailers};

/// How long a host waits for the next program. It ends with the run, and where memory is short, before that.
const IDLE: Duration = Duration::from_secs(600);
/// How long a host may take to come up, on a machine with much else to do.
const BOOT: Duration = Duration::from_secs(600);
/// How long a client may take to say what it wants.
const ASKING: Duration = Duration::from_secs(10);
/// How long a killed QEMU may take to end.
const ENDING: Duration = Duration::from_secs(10);
/// The status of a program that ended well and left something behind.
const LEFTOVERS: u8 = 121;

/// What is kept, and for what.
#[derive(Debug)]
pub(crate) struct Host {
    /// The machine.
    pub(crate) machine: Machine,
    /// Another kernel than the usual one.
    pub(crate) kernel: Option<PathBuf>,
    /// The folder of the project's programs.
    pub(crate) programs: PathBuf,
    /// Files of this machine and where they go.
    pub(crate) files: Vec<(PathBuf, String)>,
    /// The folder of the socket, which goes with the host.
    pub(crate) folder: PathBuf,
    /// The process of the run that wants the host.
    pub(crate) runner: Pid,
}

enum Event {
    /// From the host.
    Bytes(Vec<u8>),
    /// Of someone who wants a program run.
    Client(UnixStream),
    /// The client with this number has closed its end.
    Left(u32),
    /// The run has ended.
    RunnerEnded,
    /// The host has ended, and this is why.
    HostEnded(Vec<String>),
}

/// Boots the host, serves the clients of standard input, which is a listener, on it, and ends with it.
///
/// # Errors
/// When there are no pipes or threads. A host that does not come up is for the clients to know.
pub(crate) fn keep(lab: &Lab, host: Host) -> io::Result<()> {
    let listener = UnixListener::from(io::stdin().as_fd().try_clone_to_owned()?);
    // Signals of the terminal, and those for the group of the program that started this one, are for others.
    let _ = rustix::process::setsid();
    let token = host::token()?;
    let (input, requests) = pipe_with(PipeFlags::CLOEXEC)?;
    let (events, inbox) = mpsc::channel();
    watch_listener(listener, events.clone())?;
    watch_runner(host.runner, events.clone())?;
    let service = Service {
        inbox,
        events: events.clone(),
        requests: requests.into(),
        trailers: Trailers::new(&token),
        interrupt: lab.interrupt.clone(),
        folder: host.folder.clone(),
        waiting: VecDeque::new(),
        served: 0,
    };
    let service = thread::Builder::new().name("service".into()).spawn(move || service.serve())?;
    // On this thread, to which QEMU is tied.
    let why = boot(lab, host, token, input, &events);
    // The service may have ended first.
    let _ = events.send(Event::HostEnded(why));
    let _ = service.join();
    Ok(())
}

/// Boots the host and waits for its end, of which it returns what there is to say.
fn boot(
    lab: &Lab,
    host: Host,
    token: String,
    input: OwnedFd,
    events: &Sender<Event>,
) -> Vec<String> {
    let payload = Payload { files: host.files, token: Some(token), ..Payload::default() };
    let mut target = Forward(events.clone());
    let output = Output::Between { input, target: &mut target };
    match lab.run(&host.machine, host.kernel.as_deref(), &host.programs, payload, output) {
        Ok(report) => explain(report),
        Err(error) => {
            let mut lines = vec![format!("lab: error: {error}")];
            let mut source = std::error::Error::source(&error);
            while let Some(cause) = source {
                lines.push(format!("lab:   because: {cause}"));
                source = cause.source();
            }
            lines
        }
    }
}

fn explain(report: Report) -> Vec<String> {
    let how = match report.outcome {
        Outcome::Crashed(status) if status.success() => "crashed or powered off".to_owned(),
        Outcome::Crashed(status) => format!("ended with QEMU ({status})"),
        Outcome::Ended { .. } | Outcome::TimedOut => "ended".to_owned(),
    };
    let wall = report.wall.as_secs_f64();
    let title = format!("lab: the nested host {how} after {wall:.1} s; the end of its log:");
    let lines = report.tail.into_iter().map(|line| format!("  | {line}"));
    std::iter::once(title).chain(lines).collect()
}

/// Hands on what the host writes.
struct Forward(Sender<Event>);

impl Write for Forward {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.send(Event::Bytes(bytes.to_vec())).map_err(|_| io::ErrorKind::BrokenPipe)?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn watch_listener(listener: UnixListener, events: Sender<Event>) -> io::Result<()> {
    let accept = move || {
        for stream in listener.incoming().flatten() {
            if events.send(Event::Client(stream)).is_err() {
                return;
            }
        }
    };
    thread::Builder::new().name("listener".into()).spawn(accept).map(drop)
}

fn watch_runner(runner: Pid, events: Sender<Event>) -> io::Result<()> {
    let wait = move || {
        // A run that has ended already cannot be opened.
        if let Ok(process) = pidfd_open(runner, PidfdFlags::empty()) {
            let mut ends = [PollFd::new(&process, PollFlags::IN)];
            while poll(&mut ends, None) == Err(rustix::io::Errno::INTR) {}
        }
        let _ = events.send(Event::RunnerEnded);
    };
    thread::Builder::new().name("runner".into()).spawn(wait).map(drop)
}

/// Serves one client after another.
struct Service {
    inbox: Receiver<Event>,
    events: Sender<Event>,
    /// Where the host reads.
    requests: File,
    trailers: Trailers,
    interrupt: Interrupt,
    folder: PathBuf,
    waiting: VecDeque<UnixStream>,
    /// Programs so far.
    served: u32,
}

impl Service {
    fn serve(mut self) {
        if self.comes_up() {
            while let Some(client) = self.next() {
                if !self.attend(client) {
                    break;
                }
            }
        }
        self.retire();
        // Ends QEMU, for which the main thread waits, if it has not ended yet.
        self.interrupt.raise();
        self.interrupt.end_child(Signal::KILL);
    }

    /// Removes this host from those that can be found.
    fn retire(&self) {
        // It may be gone, with the whole of the lab's products.
        let _ = fs::remove_dir_all(&self.folder);
    }

    /// Waits for the host; when it does not come up, says why to those who wait for it.
    fn comes_up(&mut self) -> bool {
        let deadline = Instant::now() + BOOT;
        let why = loop {
            match self.inbox.recv_timeout(left(deadline)) {
                Ok(Event::Bytes(bytes)) => {
                    if self.trailers.feed(&bytes).contains(&Piece::Ready) {
                        return true;
                    }
                }
                Ok(Event::Client(stream)) => self.waiting.push_back(stream),
                Ok(Event::Left(_)) => {}
                Ok(Event::RunnerEnded) | Err(RecvTimeoutError::Disconnected) => return false,
                Ok(Event::HostEnded(why)) => break why,
                Err(RecvTimeoutError::Timeout) => break self.kill(),
            }
        };
        self.retire();
        while let Some(client) = self.waiting.pop_front() {
            give_up(&client, "the nested host did not come up", &why, FAILED);
        }
        false
    }

    /// The next client, if there is one within the time.
    fn next(&mut self) -> Option<UnixStream> {
        if let Some(client) = self.waiting.pop_front() {
            return Some(client);
        }
        let deadline = Instant::now() + IDLE;
        loop {
            match self.inbox.recv_timeout(left(deadline)) {
                Ok(Event::Client(client)) => return Some(client),
                // Of a client before, or of the host's between two programs.
                Ok(Event::Left(_) | Event::Bytes(_)) => {}
                Ok(Event::RunnerEnded | Event::HostEnded(_)) | Err(_) => return None,
            }
        }
    }

    /// Does what the client wants. False when the host is not to be used any more.
    fn attend(&mut self, client: UnixStream) -> bool {
        // Some only look whether the host is there.
        let _ = client.set_read_timeout(Some(ASKING));
        let (seconds, line) = match Request::read(&client) {
            Ok(Request::Run(seconds, line)) => (seconds, line),
            Ok(Request::End) => return false,
            Err(_) => return true,
        };
        let _ = client.set_read_timeout(None);
        let number = self.served;
        self.served += 1;
        let watched =
            client.try_clone().and_then(|end| watch_client(end, number, self.events.clone()));
        let _ = Reply::Started(number).write(&client);
        if let Err(error) = watched.and_then(|()| writeln!(self.requests, "{line}")) {
            give_up(&client, "cannot reach the nested host", &[error.to_string()], FAILED);
            return false;
        }
        let keep =
            self.follow(&client, number, Instant::now() + Duration::from_secs(seconds.into()));
        // Ends the thread that watches it.
        let _ = client.shutdown(Shutdown::Both);
        keep
    }

    /// Follows the program to its end.
    fn follow(&mut self, client: &UnixStream, number: u32, deadline: Instant) -> bool {
        loop {
            match self.inbox.recv_timeout(left(deadline)) {
                Ok(Event::Bytes(bytes)) => {
                    for piece in self.trailers.feed(&bytes) {
                        match piece {
                            // A client that is gone leaves an event.
                            Piece::Output(bytes) => drop(Reply::Output(bytes).write(client)),
                            Piece::Ready => {}
                            Piece::End { status, whole } => {
                                self.conclude(client, status, whole);
                                return whole;
                            }
                        }
                    }
                }
                Ok(Event::Client(other)) => self.waiting.push_back(other),
                Ok(Event::Left(other)) if other != number => {}
                Ok(Event::Left(_) | Event::RunnerEnded) | Err(RecvTimeoutError::Disconnected) => {
                    return false;
                }
                Ok(Event::HostEnded(why)) => {
                    self.retire();
                    give_up(client, "the nested host has gone", &why, CRASHED);
                    return false;
                }
                Err(RecvTimeoutError::Timeout) => {
                    let why = self.kill();
                    self.retire();
                    give_up(client, "timed out", &why, TIMED_OUT);
                    return false;
                }
            }
        }
    }

    fn conclude(&self, client: &UnixStream, status: u8, whole: bool) {
        let mut status = status;
        if !whole {
            self.retire();
            if status == 0 {
                status = LEFTOVERS;
                let note = "lab: it ended well, but left behind on the host what is listed above: that is a failure";
                let _ = Reply::Note(note.to_owned()).write(client);
            }
            let _ = Reply::Note("lab: this host is not used again".to_owned()).write(client);
        }
        let _ = Reply::End(status).write(client);
    }

    /// Kills QEMU, and returns what there is to say of the host's end.
    fn kill(&self) -> Vec<String> {
        self.interrupt.end_child(Signal::KILL);
        let deadline = Instant::now() + ENDING;
        while let Ok(event) = self.inbox.recv_timeout(left(deadline)) {
            if let Event::HostEnded(why) = event {
                return why;
            }
        }
        Vec::new()
    }
}

fn left(deadline: Instant) -> Duration {
    deadline.saturating_duration_since(Instant::now())
}

/// A client says nothing after its request; that its end closes is an event.
fn watch_client(mut end: UnixStream, number: u32, events: Sender<Event>) -> io::Result<()> {
    let wait = move || {
        let _ = end.read(&mut [0; 1]);
        let _ = events.send(Event::Left(number));
    };
    thread::Builder::new().name("client".into()).spawn(wait).map(drop)
}

fn give_up(client: &UnixStream, what: &str, why: &[String], status: u8) {
    let first = format!("lab: {what}");
    for line in std::iter::once(&first).chain(why) {
        // A client that is gone needs no reason.
        let _ = Reply::Note(line.clone()).write(client);
    }
    let _ = Reply::End(status).write(client);
}

/// Where a host's folder has its socket. The path of a socket is limited to 107 bytes (unix(7)), which a
/// folder's may exceed: the folder is opened, and named by its descriptor.
pub(crate) fn socket(folder: &File) -> PathBuf {
    use std::os::fd::AsRawFd;
    Path::new("/proc/self/fd").join(folder.as_raw_fd().to_string()).join("socket")
}
