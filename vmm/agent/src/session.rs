//! One connection from its first frame to its end.

use std::io::{self, Read};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use agent::protocol::frame::{self, Kind};
use agent::protocol::limits::{MAX_OPERATIONS, VERSION};
use agent::protocol::message::{
    Accepted, Exec, Greeting, Hello, Operation, PROTOCOL, Reason, Refusal,
};
use rustix::process::Rlimit;

use crate::connection::Connection;
use crate::exec::{self, Relay};
use crate::{chain, clock, copy};

/// How long a client may take to say what it wants: on a busy host, with many others that begin at once, far longer
/// than it takes alone.
const HELLO: Duration = Duration::from_secs(60);

/// The agent's name and version.
pub(crate) const AGENT: &str = concat!("tessera-agent ", env!("CARGO_PKG_VERSION"));

/// What all connections share.
#[derive(Debug)]
pub(crate) struct Shared {
    operations: AtomicUsize,
    /// The limit that commands have of descriptors: what the agent was started with.
    descriptors: Rlimit,
}

/// A place among the operations that are served.
#[derive(Debug)]
pub(crate) struct Place(Arc<Shared>);

impl Shared {
    pub(crate) fn new(descriptors: Rlimit) -> Arc<Self> {
        Arc::new(Self { operations: AtomicUsize::new(0), descriptors })
    }

    /// A place, if there is one.
    pub(crate) fn enter(self: &Arc<Self>) -> Option<Place> {
        let more = |count: usize| (count < MAX_OPERATIONS).then_some(count.saturating_add(1));
        let entered = self.operations.fetch_update(Ordering::Relaxed, Ordering::Relaxed, more);
        entered.is_ok().then(|| Place(Arc::clone(self)))
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.0.operations.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Refuses a connection for which there is no place, or no thread.
pub(crate) fn refuse_busy(mut connection: Connection) {
    let message = format!(
        "the guest's agent serves {MAX_OPERATIONS} operations already, commands that have outlived their clients included: end some"
    );
    // A client that does not read it does not keep the agent.
    if connection.set_nonblocking(true).is_ok() {
        let _ = connection.answer(Kind::Refused, &Refusal::new(Reason::Busy, message));
    }
}

/// Serves a connection.
///
/// # Errors
/// The connection's, which ends with it.
pub(crate) fn serve(mut connection: Connection, place: &Place) -> io::Result<()> {
    connection.set_read_timeout(Some(HELLO))?;
    let hello = hello(&mut connection);
    connection.set_read_timeout(None)?;
    match hello.map(|hello| hello.operation) {
        Err(refusal) => refuse(connection, &refusal),
        Ok(Operation::Exec(request)) => run(connection, &request, &place.0),
        Ok(Operation::CopyIn(request)) => copy::take(connection, &request),
        Ok(Operation::CopyOut(request)) => copy::give(connection, &request),
        Ok(Operation::Info) => {
            let operations = place.0.operations.load(Ordering::Relaxed);
            let operations = Some(u32::try_from(operations).unwrap_or(u32::MAX));
            accept(&mut connection, Accepted { operations, ..Accepted::default() })?;
            connection.finish();
            Ok(())
        }
        Ok(Operation::SetClock) => match clock::set_now() {
            Ok(moved) => {
                let clock_moved_ms = Some(moved);
                accept(&mut connection, Accepted { clock_moved_ms, ..Accepted::default() })?;
                connection.finish();
                Ok(())
            }
            Err(error) => refuse(connection, &Refusal::new(Reason::Failed, chain(&error))),
        },
    }
}

/// The first frame.
fn hello(connection: impl Read) -> Result<Hello, Refusal> {
    let malformed = |error: agent::protocol::Error| Refusal::new(Reason::Malformed, chain(&error));
    let frame = frame::read(connection).map_err(malformed)?;
    let frame = frame.filter(|frame| frame.kind == Kind::Hello);
    let unknown = "this is the port of tessera-agent, and no request of its protocol";
    let frame = frame.ok_or_else(|| Refusal::new(Reason::Malformed, unknown))?;
    let greeting: Greeting = frame.json().map_err(malformed)?;
    if greeting.protocol != PROTOCOL {
        return Err(Refusal::new(Reason::Malformed, unknown));
    }
    if greeting.version != VERSION {
        let message = format!(
            "the guest's agent speaks version {VERSION} of the protocol, the client version {}: update the older one",
            greeting.version
        );
        return Err(Refusal::new(Reason::Version, message));
    }
    frame.json().map_err(malformed)
}

pub(crate) fn accept(connection: &mut Connection, accepted: Accepted) -> io::Result<()> {
    connection.answer(Kind::Accepted, &Accepted { agent: AGENT.to_owned(), ..accepted })
}

pub(crate) fn refuse(mut connection: Connection, refusal: &Refusal) -> io::Result<()> {
    connection.answer(Kind::Refused, refusal)?;
    connection.finish();
    Ok(())
}

fn run(mut connection: Connection, request: &Exec, shared: &Shared) -> io::Result<()> {
    match exec::spawn(request, shared.descriptors) {
        Err(error) => refuse(connection, &Refusal::new(error.reason(), chain(&error))),
        Ok(command) => {
            let process = u32::try_from(command.pid.as_raw_pid()).ok();
            // A client that has gone already is found by the relay, which waits for the command.
            let _ = accept(&mut connection, Accepted { process, ..Accepted::default() });
            Relay::new(connection, command, request.die_with_client).run()
        }
    }
}
