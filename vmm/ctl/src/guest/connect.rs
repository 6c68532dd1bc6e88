//! Connections to ports of a guest: Firecracker's convention of a Unix socket for a vsock device.
//!
//! A client writes `CONNECT PORT` and a newline, and is answered `OK` and a number once the guest has
//! accepted. What refuses a connection closes it without a word.

use std::io::{self, ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use agent::protocol::frame::{self, Kind};
use agent::protocol::limits::PORT;
use agent::protocol::message::{Accepted, Hello, Operation};
use vmm::api::model::State;

use super::Error;
use crate::client::{DEFAULT_TIMEOUT, open};
use crate::failure::Failure;
use crate::target::Target;
use crate::waiting::Waiting;

/// How long a guest may take to boot and start its agent unless the user says otherwise.
pub const BOOT_TIMEOUT: Duration = Duration::from_secs(30);
/// The longest answer to CONNECT, as Firecracker has it for the request.
const MAX_ANSWER: usize = 32;
/// Between two attempts: short at first, so that a guest that boots is found soon.
const PAUSE: (Duration, Duration) = (Duration::from_millis(20), Duration::from_millis(500));

/// The Unix socket of a VM's vsock device.
#[derive(Clone, Debug)]
pub struct Vsock {
    path: PathBuf,
}

impl Vsock {
    /// The one at this path.
    pub fn at(path: &Path) -> Self {
        Self { path: path.to_owned() }
    }

    /// That of a VM.
    ///
    /// # Errors
    /// When the VM has none or is paused, or its control socket fails.
    pub fn of(target: &Target) -> Result<Self, Failure> {
        // Where no state can be asked for, the connection shows whether the guest runs.
        if target.socket().is_ok() {
            match target.client()?.instance()?.state {
                State::Paused => return Err(Error::Paused.into()),
                State::NotStarted => return Err(Error::NotStarted.into()),
                State::Running => {}
            }
        }
        Self::in_any_state(target)
    }

    /// The same, of a VM that may be paused.
    ///
    /// # Errors
    /// When the VM has none, or its control socket fails.
    pub fn in_any_state(target: &Target) -> Result<Self, Failure> {
        match target {
            Target::Vsock(path) => return Ok(Self::at(path)),
            Target::Listed(vm) => {
                if let Some(path) = &vm.record.vsock {
                    return Ok(Self::at(path));
                }
            }
            Target::Socket(_) => {}
        }
        let config = target.client()?.vm_config()?;
        let path = config["vsock"]["uds_path"].as_str().ok_or(Error::NoVsock)?;
        Ok(Self::at(Path::new(path)))
    }

    /// Connects to a port of the guest; where nothing listens yet, as long as there is time.
    ///
    /// # Errors
    /// [`Error::NotListening`] after `timeout`; [`Error::Unreachable`], [`Error::NoHandshake`].
    pub fn connect(&self, port: u32, timeout: Duration) -> Result<UnixStream, Error> {
        let start = Instant::now();
        let mut pause = PAUSE.0;
        let _waiting = Waiting::on("waiting until something in the guest listens");
        loop {
            let left = timeout.saturating_sub(start.elapsed());
            if let Some(stream) = self.attempt(port, left)? {
                return Ok(stream);
            }
            if start.elapsed().saturating_add(pause) >= timeout {
                let hint = match port {
                    PORT => {
                        "is tessera-agent running there (systemctl status tessera-agent), and its vsock module loaded? A guest that still boots needs a longer --timeout"
                    }
                    _ => "is a service of the guest bound to AF_VSOCK at this port?",
                };
                return Err(Error::NotListening { port, timeout, hint });
            }
            std::thread::sleep(pause);
            pause = (pause * 2).min(PAUSE.1);
        }
    }

    /// One attempt; `None` if the guest refused, or did not answer in time.
    fn attempt(&self, port: u32, timeout: Duration) -> Result<Option<UnixStream>, Error> {
        let path = || self.path.clone();
        let timeout = timeout.max(Duration::from_millis(1));
        let stream = open(&self.path, timeout)
            .map_err(|source| Error::Unreachable { path: path(), source })?;
        let mut answers = Answers::within(timeout, &stream);
        if let Err(error) = (&stream).write_all(format!("CONNECT {port}\n").as_bytes()) {
            return refused(error).map(|()| None);
        }
        let mut answer = Vec::new();
        loop {
            // Byte by byte: what follows the answer is the guest's.
            let mut byte = [0];
            match answers.read(&mut byte) {
                Ok(0) => return Ok(None),
                Ok(_) if byte == *b"\n" => break,
                Ok(_) if answer.len() < MAX_ANSWER => answer.extend_from_slice(&byte),
                Ok(_) => return Err(Error::NoHandshake { path: path() }),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return refused(error).map(|()| None),
            }
        }
        let number = std::str::from_utf8(&answer).ok().and_then(|text| text.strip_prefix("OK "));
        if number.and_then(|number| number.trim_end().parse::<u32>().ok()).is_none() {
            return Err(Error::NoHandshake { path: path() });
        }
        stream.set_read_timeout(None).map_err(system)?;
        stream.set_write_timeout(None).map_err(system)?;
        Ok(Some(stream))
    }

    /// Asks the guest's agent for an operation.
    ///
    /// # Errors
    /// Those of [`Vsock::connect`]; [`Error::Refused`], and what is no agent.
    pub fn operate(
        &self,
        operation: Operation,
        timeout: Duration,
    ) -> Result<(UnixStream, Accepted), Error> {
        let stream = self.connect(PORT, timeout)?;
        let accepted = ask(&stream, operation, timeout)?;
        Ok((stream, accepted))
    }
}

/// Asks an agent for an operation, and waits so long for its answer, but not less than for that of a VMM.
///
/// # Errors
/// [`Error::Refused`], and what is no agent.
pub(super) fn ask(
    mut stream: &UnixStream,
    operation: Operation,
    timeout: Duration,
) -> Result<Accepted, Error> {
    let hello = frame::json(Kind::Hello, &Hello::new(operation)).map_err(|_| Error::TooLong)?;
    // An agent that refuses early has answered before it has read all.
    let _ = stream.write_all(&hello);
    let answers = Answers::within(timeout.max(DEFAULT_TIMEOUT), stream);
    let answer = frame::read(answers).map_err(|error| match error {
        agent::protocol::Error::Transport(_) | agent::protocol::Error::Ended => Error::Closed,
        error => Error::Protocol(error),
    })?;
    let answer = answer.ok_or(Error::Closed)?;
    match answer.kind {
        Kind::Accepted => {
            stream.set_read_timeout(None).map_err(system)?;
            Ok(answer.json()?)
        }
        Kind::Refused => Err(Error::Refused(answer.json()?)),
        other => Err(agent::protocol::Error::Unexpected(other).into()),
    }
}

/// What comes on a stream within a time. A guest that answers byte by byte gets no more.
struct Answers<'a> {
    stream: &'a UnixStream,
    start: Instant,
    timeout: Duration,
}

impl<'a> Answers<'a> {
    fn within(timeout: Duration, stream: &'a UnixStream) -> Self {
        Self { stream, start: Instant::now(), timeout }
    }
}

impl Read for Answers<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let left = self.timeout.saturating_sub(self.start.elapsed());
        if left.is_zero() {
            return Err(ErrorKind::TimedOut.into());
        }
        self.stream.set_read_timeout(Some(left))?;
        self.stream.read(buffer)
    }
}

/// Whether the connection was closed, or not answered in time: then another attempt may succeed.
fn refused(error: io::Error) -> Result<(), Error> {
    match error.kind() {
        ErrorKind::WouldBlock
        | ErrorKind::TimedOut
        | ErrorKind::BrokenPipe
        | ErrorKind::ConnectionReset => Ok(()),
        _ => Err(system(error)),
    }
}

fn system(source: io::Error) -> Error {
    Error::System("use the connection to the guest", source)
}
