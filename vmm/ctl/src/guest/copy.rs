//! Files and trees into the guest and out of it.

use std::ffi::{OsStr, OsString};
use std::io::{self, BufReader, Write};
use std::net::Shutdown;
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use agent::protocol;
use agent::protocol::frame::{self, Frame, Kind};
use agent::protocol::message::{CopyIn, CopyOut, Operation, Source, SourceKind, Summary};
use agent::protocol::text::Text;
use agent::transfer::stream::{Receiver, Sender};
use agent::transfer::{self, Observer, Opened, Target, name_of, receive_into};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;

use super::Error;
use super::connect::Vsock;
use super::progress::Progress;
use super::stdio;

/// One side of a copy.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Side {
    /// A path of this machine.
    Here(OsString),
    /// A path of the guest.
    Guest(OsString),
    /// Standard input or output.
    Stream,
}

impl Side {
    /// `:/path` is the guest's, `-` is a stream, all else is here; `./-` and `./:x` are files of these names.
    pub fn new(word: &OsStr) -> Self {
        match word.as_bytes() {
            b"-" => Self::Stream,
            [b':', path @ ..] => Self::Guest(OsStr::from_bytes(path).to_owned()),
            _ => Self::Here(word.to_owned()),
        }
    }
}

/// Copies; what was copied. A tree of which single files could not be read is copied without them, and
/// counted in the summary.
///
/// # Errors
/// When the copy is not complete, or was not begun.
pub fn run(vsock: &Vsock, from: &Side, to: &Side, timeout: Duration) -> Result<Summary, Error> {
    match (from, to) {
        (Side::Here(path), Side::Guest(to)) => {
            send(vsock, Opened::new(Path::new(path))?, to, timeout, false)
        }
        (Side::Stream, Side::Guest(to)) => {
            let stdin = io::stdin().as_fd().try_clone_to_owned();
            let stdin = stdin.map_err(|error| Error::System("read standard input", error))?;
            send(vsock, Opened::stream(stdin), to, timeout, true)
        }
        (Side::Guest(from), Side::Here(path)) => {
            receive(vsock, from, Some(Path::new(path)), timeout)
        }
        (Side::Guest(from), Side::Stream) => receive(vsock, from, None, timeout),
        _ => Err(Error::Sides),
    }
}

fn send(
    vsock: &Vsock,
    opened: Opened,
    to: &OsStr,
    timeout: Duration,
    is_input: bool,
) -> Result<Summary, Error> {
    let progress = Progress::new(length(opened.source()));
    let destination = Text::new(to.as_bytes());
    let request = CopyIn { destination, source: opened.source().clone() };
    let (stream, _) = vsock.operate(Operation::CopyIn(request), timeout)?;
    let stopped = stop_on_signals(&stream, is_input)?;
    let sender = Sender::new(&stream, Watch { progress: &progress, stream: Some(&stream) });
    let sent = opened.send(sender);
    progress.finish();
    let sent = match sent {
        Err(_) if stopped.load(Ordering::Relaxed) => return Err(transfer::Error::Stopped.into()),
        // The agent stops to read when it has failed: what it says is the reason.
        Err(error @ transfer::Error::Protocol(_)) => {
            return Err(reason(&stream).unwrap_or(error.into()));
        }
        other => other?,
    };
    match frame::read(&stream)?.ok_or(Error::Closed)? {
        frame @ Frame { kind: Kind::Done, .. } => match frame.json::<Summary>()? {
            done if done == sent => Ok(done),
            _ => Err(transfer::Error::Mismatch.into()),
        },
        frame => Err(failure(&frame)?),
    }
}

fn receive(
    vsock: &Vsock,
    from: &OsStr,
    to: Option<&Path>,
    timeout: Duration,
) -> Result<Summary, Error> {
    let request = CopyOut { source: Text::new(from.as_bytes()) };
    let (stream, accepted) = vsock.operate(Operation::CopyOut(request), timeout)?;
    let kind = accepted.source.ok_or(Error::Closed)?.kind;
    // The name is the one that the user has given, not what the guest makes of it.
    let source = Source { name: Text::new(name_of(Path::new(from))), kind };
    let progress = Progress::new(length(&source));
    let stopped = stop_on_signals(&stream, to.is_none())?;
    let reader = BufReader::with_capacity(64 << 10, &stream);
    let receiver = Receiver::new(reader, Watch { progress: &progress, stream: None });
    let received = match to {
        Some(to) => Target::new(to, &source).and_then(|target| target.receive(receiver)),
        None => receive_into(receiver, Stdout),
    };
    progress.finish();
    match received {
        Err(_) if stopped.load(Ordering::Relaxed) => Err(transfer::Error::Stopped.into()),
        other => Ok(other?),
    }
}

/// Shows a copy, and stops it when the other side says that it has failed.
struct Watch<'a> {
    progress: &'a Progress,
    /// The connection, for what is sent.
    stream: Option<&'a UnixStream>,
}

impl Observer for Watch<'_> {
    fn moved(&mut self, bytes: u64) {
        self.progress.moved(bytes);
    }

    fn notice(&mut self, message: &str) {
        self.progress.say(&vmm::error::printable(message));
    }

    fn check(&mut self) -> Result<(), transfer::Error> {
        let Some(mut stream) = self.stream else { return Ok(()) };
        let now = Timespec { tv_sec: 0, tv_nsec: 0 };
        let mut fds = [PollFd::new(stream, PollFlags::IN)];
        // Nothing is expected before the end: what is there is a failure.
        if !matches!(poll(&mut fds, Some(&now)), Ok(1..)) {
            return Ok(());
        }
        let frame = frame::read(&mut stream)?.ok_or(protocol::Error::Ended)?;
        match frame.kind {
            Kind::Failed => Err(transfer::Error::Remote(frame.json()?)),
            other => Err(protocol::Error::Unexpected(other).into()),
        }
    }
}

/// Why the agent has stopped reading, if it has sent a reason.
fn reason(mut stream: &UnixStream) -> Option<Error> {
    let frame = frame::read(&mut stream).ok()??;
    (frame.kind == Kind::Failed).then(|| frame.json().ok().map(Error::Refused))?
}

/// The answer to a copy that is none.
fn failure(frame: &Frame) -> Result<Error, Error> {
    match frame.kind {
        Kind::Failed => Ok(Error::Refused(frame.json()?)),
        other => Err(protocol::Error::Unexpected(other).into()),
    }
}

/// Ends the connection at a signal, so that what is not complete is removed. A copy of standard input, which may
/// wait for more of it, has nothing here to be removed and ends at once.
fn stop_on_signals(stream: &UnixStream, at_once: bool) -> Result<Arc<AtomicBool>, Error> {
    let stopped = Arc::new(AtomicBool::new(false));
    let signals = Signals::new([SIGINT, SIGTERM, SIGHUP]);
    let mut signals = signals.map_err(|error| Error::System("take signals", error))?;
    let stream =
        stream.try_clone().map_err(|error| Error::System("share the connection", error))?;
    let flag = Arc::clone(&stopped);
    thread::spawn(move || {
        for signal in signals.forever() {
            if at_once || flag.swap(true, Ordering::Relaxed) {
                std::process::exit(128_i32.saturating_add(signal));
            }
            let _ = stream.shutdown(Shutdown::Both);
        }
    });
    Ok(stopped)
}

fn length(source: &Source) -> Option<u64> {
    match source.kind {
        SourceKind::File { size, .. } => size.filter(|size| *size > 0),
        SourceKind::Tree => None,
    }
}

/// Standard output without a buffer.
struct Stdout;

impl Write for Stdout {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        stdio::write_all(rustix::stdio::stdout(), bytes)?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sides_are_told_apart_by_their_first_letter() {
        for (word, side) in [
            (":/etc", Side::Guest("/etc".into())),
            (":", Side::Guest("".into())),
            ("-", Side::Stream),
            ("./-", Side::Here("./-".into())),
            ("./:x", Side::Here("./:x".into())),
            ("a:b", Side::Here("a:b".into())),
        ] {
            assert_eq!(Side::new(word.as_ref()), side);
        }
    }
}
