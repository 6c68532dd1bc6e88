//! A blocking client of the control socket, for `tesseractl` and for tests.
//!
//! Every call has a deadline and every answer a bound: a VMM that hangs or lies cannot make its
//! client do so.

mod events;

use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::net::sockopt::{Timeout, set_socket_timeout};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;
use vmm::api::model::{
    ActionType, Balloon, BalloonStats, BalloonStatsUpdate, BalloonUpdate, DriveUpdate, Fault,
    Footprint, InstanceActionInfo, InstanceInfo, SnapshotConfirm, SnapshotCreate, TagStorage,
    Version, Vm, VmState,
};
use vmm::registry::Process;

pub use events::{Event, Events};

/// How long a call may take unless the caller says otherwise. Pausing waits for a vCPU to leave
/// its present exit, which takes microseconds on hardware and milliseconds in emulation; seconds
/// mean that something is broken.
pub const DEFAULT_TIMEOUT: Duration = Duration::from_secs(10);

/// The longest body accepted: the metrics of a VM with 512 vCPUs fit many times over.
const MAX_BODY: usize = 4 << 20;

/// Before a client connects anew: many clients at once come through in turns.
const RECONNECT_PAUSE: Duration = Duration::from_millis(20);

/// Before a client asks again for a footprint that the VMM still counts.
const COUNT_PAUSE: Duration = Duration::from_millis(200);

/// The status of what the VMM cannot do just now.
const UNAVAILABLE: u16 = 503;

/// How long a process may take to end whose VM is gone: the host takes back the guest's memory meanwhile.
const PROCESS_PATIENCE: Duration = Duration::from_secs(2);

/// The longest head accepted; the server sends about a hundred bytes.
const MAX_HEAD: usize = 64 << 10;

/// The most headers of one answer; the server sends four.
const MAX_HEADERS: usize = 64;

/// Why a call did not succeed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The path cannot be connected to.
    #[error(
        "cannot reach {path:?}: is the VM running, and was it started with --api-sock {path:?}?"
    )]
    Unreachable {
        /// The socket asked for.
        path: PathBuf,
        /// The kernel's reason.
        #[source]
        source: io::Error,
    },
    /// The VM answered that it will not.
    #[error("{message}")]
    Refused {
        /// The HTTP status, 400 or above.
        status: u16,
        /// The server's `fault_message`.
        message: String,
    },
    /// The deadline passed without an answer.
    #[error("no answer within {0:?}; the VMM may be busy or hung")]
    TimedOut(Duration),
    /// The VM did not go away in time.
    #[error("the VM still runs after {0:?}")]
    StillRunning(Duration),
    /// The connection ended before any of the answer.
    #[error("the VMM closed the connection and did not answer; it may have ended just now")]
    Unanswered,
    /// The connection ended within the answer.
    #[error("the VMM closed the connection before it answered; it may have ended just now")]
    Closed,
    /// The connection broke.
    #[error("the connection to the VMM failed")]
    Transport(#[source] io::Error),
    /// What came back is not an answer of this interface.
    #[error("the answer is not understood: {0}; is this the control socket of a tessera VM?")]
    Malformed(String),
    /// A request body cannot be written as JSON.
    #[error("the request cannot be written as JSON")]
    Body(#[source] serde_json::Error),
}

/// A connection to the control socket of one VM.
///
/// After an error other than [`Error::Refused`] the connection is of no further use.
#[derive(Debug)]
pub struct Client {
    path: PathBuf,
    stream: UnixStream,
    timeout: Duration,
}

/// The answer to one request: its status (200 to 299) and body.
#[derive(Debug, Clone, PartialEq)]
pub struct Answer {
    /// The HTTP status.
    pub status: u16,
    /// The JSON body, if there is one.
    pub body: Option<Value>,
}

impl Client {
    /// Connects to the socket at `path`. `timeout` bounds this and each later call.
    ///
    /// # Errors
    /// [`Error::Unreachable`].
    pub fn connect(path: &Path, timeout: Duration) -> Result<Self, Error> {
        match open(path, timeout) {
            Ok(stream) => Ok(Self { path: path.to_owned(), stream, timeout }),
            Err(source) => Err(Error::Unreachable { path: path.to_owned(), source }),
        }
    }

    /// `GET /`.
    ///
    /// # Errors
    /// See [`Error`]; so for all calls below.
    pub fn instance(&mut self) -> Result<InstanceInfo, Error> {
        self.get("/")
    }

    /// `GET /version`.
    ///
    /// # Errors
    /// See [`Error`].
    pub fn version(&mut self) -> Result<Version, Error> {
        self.get("/version")
    }

    /// `GET /vm/config`.
    ///
    /// # Errors
    /// See [`Error`].
    pub fn vm_config(&mut self) -> Result<Value, Error> {
        self.get("/vm/config")
    }

    /// `GET /machine-config`.
    ///
    /// # Errors
    /// See [`Error`].
    pub fn machine_config(&mut self) -> Result<Value, Error> {
        self.get("/machine-config")
    }

    /// `GET /metrics`.
    ///
    /// # Errors
    /// See [`Error`].
    pub fn metrics(&mut self) -> Result<Value, Error> {
        self.get("/metrics")
    }

    /// `GET /balloon`.
    ///
    /// # Errors
    /// See [`Error`].
    pub fn balloon(&mut self) -> Result<Balloon, Error> {
        self.get("/balloon")
    }

    /// `PATCH /balloon`.
    ///
    /// # Errors
    /// See [`Error`].
    pub fn patch_balloon(&mut self, update: BalloonUpdate) -> Result<(), Error> {
        self.send("PATCH", "/balloon", &update)
    }

    /// `PATCH /drives/{drive_id}`, of the disk that the update names.
    ///
    /// # Errors
    /// See [`Error`].
    pub fn patch_drive(&mut self, update: &DriveUpdate) -> Result<(), Error> {
        self.send("PATCH", &format!("/drives/{}", update.drive_id), update)
    }

    /// `GET /balloon/statistics`.
    ///
    /// # Errors
    /// See [`Error`].
    pub fn balloon_statistics(&mut self) -> Result<BalloonStats, Error> {
        self.get("/balloon/statistics")
    }

    /// `PATCH /balloon/statistics`.
    ///
    /// # Errors
    /// See [`Error`].
    pub fn patch_balloon_statistics(&mut self, update: BalloonStatsUpdate) -> Result<(), Error> {
        self.send("PATCH", "/balloon/statistics", &update)
    }

    /// `GET /footprint`, again for as long as the VMM still counts.
    ///
    /// # Errors
    /// See [`Error`].
    pub fn footprint(&mut self) -> Result<Footprint, Error> {
        let deadline = Deadline::after(self.timeout);
        loop {
            match self.get("/footprint") {
                Err(Error::Refused { status: UNAVAILABLE, .. })
                    if deadline.left().is_ok_and(|left| left > COUNT_PAUSE) =>
                {
                    std::thread::sleep(COUNT_PAUSE);
                }
                answer => return answer,
            }
        }
    }

    /// `GET /tag-storage`.
    ///
    /// # Errors
    /// See [`Error`].
    pub fn tag_storage(&mut self) -> Result<TagStorage, Error> {
        self.get("/tag-storage")
    }

    /// Holds the vCPUs: `PATCH /vm`.
    ///
    /// # Errors
    /// See [`Error`].
    pub fn pause(&mut self) -> Result<(), Error> {
        let state = VmState::Paused;
        self.send("PATCH", "/vm", &Vm { state })
    }

    /// Lets the vCPUs run again: `PATCH /vm`.
    ///
    /// # Errors
    /// See [`Error`].
    pub fn resume(&mut self) -> Result<(), Error> {
        let state = VmState::Resumed;
        self.send("PATCH", "/vm", &Vm { state })
    }

    /// Saves the VM, which is paused: `PUT /snapshot/create`. The paths are those of the VM's process.
    ///
    /// # Errors
    /// See [`Error`].
    pub fn create_snapshot(&mut self, request: &SnapshotCreate) -> Result<(), Error> {
        self.send("PUT", "/snapshot/create", request)
    }

    /// Has the next diff build on the snapshot that was just made there: `PUT /snapshot/confirm`.
    ///
    /// # Errors
    /// See [`Error`].
    pub fn confirm_snapshot(&mut self, request: &SnapshotConfirm) -> Result<(), Error> {
        self.send("PUT", "/snapshot/confirm", request)
    }

    /// Asks the guest to power off: `PUT /actions`.
    ///
    /// # Errors
    /// See [`Error`].
    pub fn press_power_key(&mut self) -> Result<(), Error> {
        let action_type = ActionType::SendCtrlAltDel;
        self.send("PUT", "/actions", &InstanceActionInfo { action_type })
    }

    /// Ends the VM without asking the guest: `PUT /actions`.
    ///
    /// # Errors
    /// See [`Error`].
    pub fn stop(&mut self) -> Result<(), Error> {
        let action_type = ActionType::Stop;
        self.send("PUT", "/actions", &InstanceActionInfo { action_type })
    }

    /// Reads a resource.
    ///
    /// # Errors
    /// See [`Error`].
    pub fn get<T: DeserializeOwned>(&mut self, path: &str) -> Result<T, Error> {
        let body = self.request("GET", path, None)?.body.unwrap_or_default();
        serde_json::from_value(body).map_err(|error| Error::Malformed(error.to_string()))
    }

    /// Sends a change, whose answer has no body.
    ///
    /// # Errors
    /// See [`Error`].
    pub fn send(&mut self, method: &str, path: &str, body: &impl Serialize) -> Result<(), Error> {
        let body = serde_json::to_value(body).map_err(Error::Body)?;
        self.request(method, path, Some(&body)).map(drop)
    }

    /// Sends any request and waits for its answer.
    ///
    /// # Errors
    /// See [`Error`].
    pub fn request(
        &mut self,
        method: &str,
        path: &str,
        body: Option<&Value>,
    ) -> Result<Answer, Error> {
        let deadline = Deadline::after(self.timeout);
        let body = body.map(Value::to_string).unwrap_or_default();
        let mut request = format!("{method} {path} HTTP/1.1\r\nHost: localhost\r\n");
        if !body.is_empty() {
            let length = body.len();
            request.push_str("Content-Type: application/json\r\n");
            request.push_str(&format!("Content-Length: {length}\r\n"));
        }
        request.push_str("\r\n");
        request.push_str(&body);
        let answer = loop {
            self.write(request.as_bytes(), &deadline)?;
            match self.read_answer(&deadline) {
                // An idle connection may have been closed for another client. What can be done twice is asked again.
                Err(Error::Unanswered) if method != "PUT" => self.reconnect(&deadline)?,
                answer => break answer?,
            }
        };
        match answer.status < 400 {
            true => Ok(answer),
            false => Err(refused(answer)),
        }
    }

    /// Waits until the VM is gone: until its process closed this connection and no process listens at the path any more.
    /// Then the process itself has a moment to end, as it has files open until then.
    ///
    /// # Errors
    /// [`Error::StillRunning`] after `timeout`, or the connection fails.
    pub fn wait_gone(mut self, timeout: Duration) -> Result<(), Error> {
        let deadline = Deadline::after(timeout);
        let process = Process::peer_of(&self.stream);
        loop {
            match self.read(&deadline) {
                Ok(chunk) if !chunk.is_empty() => {
                    return Err(Error::Malformed("an answer to no request".to_owned()));
                }
                Err(Error::TimedOut(_)) => return Err(Error::StillRunning(timeout)),
                Err(error) => return Err(error),
                // A busy server may close an idle connection: ask for another.
                Ok(_) => {}
            }
            let Ok(left) = deadline.left() else {
                return Err(Error::StillRunning(timeout));
            };
            match open(&self.path, left) {
                Ok(stream) => self.stream = stream,
                Err(error) if is_gone(&error) => {
                    let left = deadline.left().unwrap_or_default();
                    if let Some(process) = process {
                        process.has_ended(left.min(PROCESS_PATIENCE));
                    }
                    return Ok(());
                }
                Err(source) => {
                    let path = self.path;
                    return Err(Error::Unreachable { path, source });
                }
            }
        }
    }

    fn write(&mut self, mut bytes: &[u8], deadline: &Deadline) -> Result<(), Error> {
        while !bytes.is_empty() {
            let left = deadline.left()?;
            self.stream.set_write_timeout(Some(left)).map_err(Error::Transport)?;
            match self.stream.write(bytes) {
                Ok(count) => bytes = &bytes[count..],
                // The server may have refused early, answered and closed: read its answer.
                Err(error) if is_hang_up(&error) => return Ok(()),
                Err(error) => deadline.allow(error)?,
            }
        }
        Ok(())
    }

    /// The next bytes; none when the peer closed.
    fn read(&mut self, deadline: &Deadline) -> Result<Vec<u8>, Error> {
        let mut chunk = vec![0; 16 << 10];
        loop {
            let left = deadline.left()?;
            self.stream.set_read_timeout(Some(left)).map_err(Error::Transport)?;
            match self.stream.read(&mut chunk) {
                Ok(count) => {
                    chunk.truncate(count);
                    return Ok(chunk);
                }
                Err(error) if is_hang_up(&error) => return Ok(Vec::new()),
                Err(error) => deadline.allow(error)?,
            }
        }
    }

    /// Connects anew where the server has closed a connection without a word of an answer: it gives the place of a
    /// silent client to the next one, and answers each request that it takes.
    fn reconnect(&mut self, deadline: &Deadline) -> Result<(), Error> {
        std::thread::sleep(RECONNECT_PAUSE.min(deadline.left()?));
        self.stream = open(&self.path, deadline.left()?).map_err(|_| Error::Closed)?;
        Ok(())
    }

    fn read_answer(&mut self, deadline: &Deadline) -> Result<Answer, Error> {
        let (head, body) = self.read_head(deadline)?;
        self.read_body(&head, body, deadline)
    }

    /// Reads the head of an answer, past interim ones; what of the body has come with it.
    fn read_head(&mut self, deadline: &Deadline) -> Result<(Head, Vec<u8>), Error> {
        let mut bytes = Vec::new();
        loop {
            match parse_head(&bytes)? {
                Some(head) => {
                    bytes.drain(..head.length);
                    // 1xx: another answer follows.
                    if head.status >= 200 {
                        return Ok((head, bytes));
                    }
                }
                None => {
                    let chunk = self.read(deadline)?;
                    if chunk.is_empty() {
                        let unanswered = bytes.is_empty();
                        return Err(if unanswered { Error::Unanswered } else { Error::Closed });
                    }
                    bytes.extend_from_slice(&chunk);
                }
            }
        }
    }

    fn read_body(
        &mut self,
        head: &Head,
        mut body: Vec<u8>,
        deadline: &Deadline,
    ) -> Result<Answer, Error> {
        while body.len() < head.body_length {
            let chunk = self.read(deadline)?;
            if chunk.is_empty() {
                return Err(Error::Closed);
            }
            body.extend_from_slice(&chunk);
        }
        let body = match body.get(..head.body_length) {
            None | Some([]) => None,
            Some(body) => Some(
                serde_json::from_slice(body)
                    .map_err(|error| Error::Malformed(error.to_string()))?,
            ),
        };
        Ok(Answer { status: head.status, body })
    }

    /// The error that an answer is whose head has been read.
    fn refusal(&mut self, head: &Head, body: Vec<u8>, deadline: &Deadline) -> Result<Error, Error> {
        self.read_body(head, body, deadline).map(refused)
    }
}

/// The moment by which a call must be done.
struct Deadline {
    start: Instant,
    timeout: Duration,
}

impl Deadline {
    fn after(timeout: Duration) -> Self {
        let start = Instant::now();
        Self { start, timeout }
    }

    /// The time left, never zero: to a socket, zero means for ever.
    fn left(&self) -> Result<Duration, Error> {
        match self.timeout.checked_sub(self.start.elapsed()) {
            Some(left) if !left.is_zero() => Ok(left),
            _ => Err(Error::TimedOut(self.timeout)),
        }
    }

    /// Nothing, if the call may simply be repeated while time is left.
    fn allow(&self, error: io::Error) -> Result<(), Error> {
        match error.kind() {
            io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut | io::ErrorKind::Interrupted => {
                Ok(())
            }
            _ => Err(Error::Transport(error)),
        }
    }
}

/// Connects within `timeout`: a full backlog of a hung server would hold an unbounded connect.
pub(crate) fn open(path: &Path, timeout: Duration) -> io::Result<UnixStream> {
    let address = SocketAddrUnix::new(path)?;
    let socket = rustix::net::socket_with(
        AddressFamily::UNIX,
        SocketType::STREAM,
        SocketFlags::CLOEXEC,
        None,
    )?;
    // The send timeout bounds connect, too (net/unix/af_unix.c, unix_stream_connect). Zero would
    // mean for ever, and the largest durations do not fit the kernel's type.
    let timeout = timeout.clamp(Duration::from_micros(1), Duration::from_secs(3600));
    set_socket_timeout(&socket, Timeout::Send, Some(timeout))?;
    rustix::net::connect(&socket, &address)?;
    Ok(UnixStream::from(socket))
}

fn is_hang_up(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset)
}

/// No process listens at the path.
fn is_gone(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused)
}

/// The beginning of an answer.
struct Head {
    status: u16,
    /// Its own length.
    length: usize,
    body_length: usize,
    is_chunked: bool,
}

/// The head that these bytes begin with; `None` if it does not end yet.
fn parse_head(bytes: &[u8]) -> Result<Option<Head>, Error> {
    let malformed = |what: &dyn std::fmt::Display| Error::Malformed(what.to_string());
    let mut headers = [httparse::EMPTY_HEADER; MAX_HEADERS];
    let mut parsed = httparse::Response::new(&mut headers);
    let length = match parsed.parse(bytes).map_err(|error| malformed(&error))? {
        httparse::Status::Partial if bytes.len() >= MAX_HEAD => {
            return Err(malformed(&"its head does not end"));
        }
        httparse::Status::Partial => return Ok(None),
        httparse::Status::Complete(length) => length,
    };
    let header = |name: &str| {
        let found = parsed.headers.iter().find(|header| header.name.eq_ignore_ascii_case(name))?;
        Some(std::str::from_utf8(found.value).unwrap_or_default().trim())
    };
    let body_length = match header("content-length").map(str::parse::<usize>) {
        None => 0,
        Some(Ok(length)) if length <= MAX_BODY => length,
        Some(_) => return Err(malformed(&"its Content-Length is no acceptable number")),
    };
    let encoding = header("transfer-encoding");
    let is_chunked = encoding.is_some_and(|encoding| encoding.eq_ignore_ascii_case("chunked"));
    let status = parsed.code.unwrap_or_default();
    Ok(Some(Head { status, length, body_length, is_chunked }))
}

/// The error that an answer of 400 or above is.
fn refused(answer: Answer) -> Error {
    let Answer { status, body } = answer;
    let message = match serde_json::from_value::<Fault>(body.unwrap_or_default()) {
        Ok(fault) => fault.fault_message,
        Err(_) => format!("HTTP status {status} without a reason"),
    };
    Error::Refused { status, message }
}

#[cfg(test)]
mod tests;
