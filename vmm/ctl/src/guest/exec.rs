//! A command in the guest, with the streams, the signals and the terminal of this process.

use std::io::{self, BufReader, ErrorKind};
use std::os::fd::BorrowedFd;
use std::os::unix::net::UnixStream;
use std::sync::mpsc::{SyncSender, sync_channel};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use agent::protocol::frame::{self, Frame, Kind};
use agent::protocol::limits::{INPUT_WINDOW, PORT};
use agent::protocol::message::{Exec, Exit, Operation};
use signal_hook::consts::{SIGCONT, SIGHUP, SIGINT, SIGQUIT, SIGTERM, SIGUSR1, SIGUSR2, SIGWINCH};
use signal_hook::iterator::Signals;

use super::Error;
use super::connect::{Vsock, ask};
use super::stdio::{read_input, write_all};
use crate::terminal::{self, RawTerminal};

/// What one read of standard input takes.
const CHUNK: usize = 32 << 10;
/// The signal of this number that the user sends ends this process: the command did not heed the others.
const PATIENCE: u32 = 3;

/// Signals that wait to be sent. Beyond that the agent does not read, and others are dropped.
const MOST_SIGNALS: usize = 64;

/// Frames that another thread sends.
type Frames = SyncSender<(Kind, Vec<u8>)>;

/// Runs a command to its end; its exit status, 128 and the number of the signal that ended it.
///
/// # Errors
/// When the command does not start, or the connection to it is lost.
pub fn run(vsock: &Vsock, request: Exec, timeout: Duration) -> Result<u8, Error> {
    let with_terminal = request.terminal.is_some();
    let stream = vsock.connect(PORT, timeout)?;
    // Before there is a command: a signal that comes between is its signal, too.
    let signals =
        Signals::new([SIGINT, SIGTERM, SIGQUIT, SIGHUP, SIGUSR1, SIGUSR2, SIGWINCH, SIGCONT]);
    let signals = signals.map_err(|error| Error::System("take signals", error))?;
    ask(&stream, Operation::Exec(request), timeout)?;
    let sender =
        stream.try_clone().map_err(|error| Error::System("share the connection", error))?;
    let raw = match with_terminal {
        true => {
            RawTerminal::enter().map_err(|error| Error::System("set up the terminal", error))?
        }
        false => None,
    };
    let session = Arc::new(Session {
        sender: Mutex::new(sender),
        credit: Mutex::new(Credit { bytes: INPUT_WINDOW, is_closed: false }),
        changed: Condvar::new(),
        raw,
        with_terminal,
    });
    let (signalled, frames) = sync_channel(MOST_SIGNALS);
    let taker = Arc::clone(&session);
    thread::spawn(move || taker.take_signals(signals, &signalled));
    let passer = Arc::clone(&session);
    thread::spawn(move || frames.iter().for_each(|(kind, payload)| passer.send(kind, &payload)));
    let reader = Arc::clone(&session);
    // It may wait for input when the command has ended; it ends with the process.
    thread::spawn(move || reader.pass_input_on());
    let end = session.follow(stream);
    if let Some(raw) = &session.raw {
        raw.restore();
    }
    end
}

/// What the threads of one command share.
struct Session {
    sender: Mutex<UnixStream>,
    credit: Mutex<Credit>,
    changed: Condvar,
    raw: Option<RawTerminal>,
    with_terminal: bool,
}

/// How much input the agent takes.
struct Credit {
    bytes: u32,
    /// The command has closed its input.
    is_closed: bool,
}

impl Session {
    /// Sends a frame. If the connection is lost, the thread that reads from it finds out.
    fn send(&self, kind: Kind, payload: &[u8]) {
        let mut sender = self.sender.lock().unwrap_or_else(PoisonError::into_inner);
        // The agent reads at all times: this does not wait for long.
        let _ = frame::write(&mut *sender, kind, payload);
    }

    /// Reads what the agent sends, until the command has ended.
    fn follow(&self, stream: UnixStream) -> Result<u8, Error> {
        let mut stream = BufReader::with_capacity(64 << 10, stream);
        let stdout = &mut Output::new("standard output", Kind::OutputClosed);
        let stderr = &mut Output::new("standard error", Kind::ErrorsClosed);
        loop {
            let frame = frame::read(&mut stream)?.ok_or(Error::Closed)?;
            match frame.kind {
                Kind::Output => stdout.write(rustix::stdio::stdout(), &frame, self),
                Kind::Errors => stderr.write(rustix::stdio::stderr(), &frame, self),
                Kind::Credit => {
                    let more = frame.number()?;
                    // An agent that gives more than its window would be sent more than it takes.
                    self.change_credit(|credit| {
                        credit.bytes = credit.bytes.saturating_add(more).min(INPUT_WINDOW);
                    });
                }
                Kind::InputClosed => self.change_credit(|credit| credit.is_closed = true),
                Kind::Exit => {
                    for output in [stdout, stderr] {
                        if let Some(error) = output.error.take() {
                            return Err(Error::Output(output.name, error));
                        }
                    }
                    return Ok(match frame.json()? {
                        Exit::Code(code) => code,
                        Exit::Signal(signal) => 128_u8.saturating_add(signal),
                    });
                }
                other => return Err(agent::protocol::Error::Unexpected(other).into()),
            }
        }
    }

    fn change_credit(&self, change: impl FnOnce(&mut Credit)) {
        change(&mut self.credit());
        self.changed.notify_all();
    }

    fn credit(&self) -> MutexGuard<'_, Credit> {
        self.credit.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until there is credit; how much, or `None` if the command has closed its input.
    fn wait_for_credit(&self) -> Option<usize> {
        let credit = self.credit();
        let credit = self
            .changed
            .wait_while(credit, |credit| credit.bytes == 0 && !credit.is_closed)
            .unwrap_or_else(PoisonError::into_inner);
        (!credit.is_closed).then(|| usize::try_from(credit.bytes).unwrap_or(usize::MAX))
    }

    /// Sends standard input as far as there is credit. Nothing is read that cannot be sent.
    fn pass_input_on(&self) {
        let mut chunk = [0; CHUNK];
        while let Some(credit) = self.wait_for_credit() {
            let buffer = chunk.get_mut(..credit.min(CHUNK)).unwrap_or_default();
            match read_input(buffer) {
                0 => return self.send(Kind::InputEnd, &[]),
                count => {
                    let taken = u32::try_from(count).unwrap_or(u32::MAX);
                    self.change_credit(|credit| credit.bytes = credit.bytes.saturating_sub(taken));
                    self.send(Kind::Input, chunk.get(..count).unwrap_or_default());
                }
            }
        }
        // As with a pipe to the command itself, the writer of this input gets SIGPIPE.
        if let Ok(null) = std::fs::File::open("/dev/null") {
            let _ = rustix::stdio::dup2_stdin(null);
        }
    }

    /// Takes signals, to be passed on to the command by another thread: an agent that does not read must not keep
    /// the user from ending this process.
    fn take_signals(&self, mut signals: Signals, passed_on: &Frames) {
        let mut requests = 0_u32;
        for signal in signals.forever() {
            match signal {
                SIGWINCH => self.pass_size_on(passed_on),
                SIGCONT => {
                    if let Some(raw) = &self.raw {
                        let _ = raw.apply();
                    }
                    self.pass_size_on(passed_on);
                }
                // The user's terminal has gone: a command with a terminal gets the same from its own.
                SIGHUP => self.end(signal),
                SIGINT | SIGTERM | SIGQUIT if requests.saturating_add(1) >= PATIENCE => {
                    self.end(signal);
                }
                signal => {
                    requests = requests.saturating_add(1);
                    let signal = vec![u8::try_from(signal).unwrap_or(0)];
                    let _ = passed_on.try_send((Kind::Signal, signal));
                }
            }
        }
    }

    fn pass_size_on(&self, passed_on: &Frames) {
        if self.with_terminal
            && let Some(size) = terminal::size()
        {
            let [r0, r1] = size.rows.to_le_bytes();
            let [c0, c1] = size.columns.to_le_bytes();
            let _ = passed_on.try_send((Kind::Resize, vec![r0, r1, c0, c1]));
        }
    }

    /// Ends this process as the signal would have.
    fn end(&self, signal: i32) {
        if let Some(raw) = &self.raw {
            raw.restore();
        }
        std::process::exit(128_i32.saturating_add(signal));
    }
}

/// Standard output or standard error.
struct Output {
    name: &'static str,
    /// What the agent is sent when the reader has gone.
    closed: Kind,
    is_closed: bool,
    /// Why something was lost.
    error: Option<io::Error>,
}

impl Output {
    fn new(name: &'static str, closed: Kind) -> Self {
        Self { name, closed, is_closed: false, error: None }
    }

    fn write(&mut self, fd: BorrowedFd<'_>, frame: &Frame, session: &Session) {
        if self.is_closed {
            return;
        }
        if let Err(error) = write_all(fd, &frame.payload) {
            self.is_closed = true;
            session.send(self.closed, &[]);
            // A reader that has seen enough is no loss.
            self.error = Some(error).filter(|error| error.kind() != ErrorKind::BrokenPipe);
        }
    }
}
