//! Files and trees, in and out.

use std::ffi::OsStr;
use std::io::{self, BufReader};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use agent::protocol::frame::Kind;
use agent::protocol::message::{Accepted, CopyIn, CopyOut, Reason, Refusal, Summary};
use agent::protocol::text::Text;
use agent::transfer::stream::{Receiver, Sender};
use agent::transfer::{Error, Opened, Target};

use crate::chain;
use crate::connection::Connection;
use crate::session::{accept, refuse};

/// What is read of a connection at once: a frame and its header.
const BUFFER: usize = 64 << 10;

/// Takes a file or a tree.
///
/// # Errors
/// The connection's.
pub(crate) fn take(mut connection: Connection, request: &CopyIn) -> io::Result<()> {
    let target = path(&request.destination)
        .and_then(|path| Target::new(path, &request.source).map_err(|error| failure(&error)));
    let target = match target {
        Ok(target) => target,
        Err(refusal) => return refuse(connection, &refusal),
    };
    accept(&mut connection, Accepted::default())?;
    let received = {
        let reader = BufReader::with_capacity(BUFFER, &mut connection);
        target.receive(Receiver::new(reader, ()))
    };
    conclude(connection, Kind::Done, received)
}

/// Sends a file or a tree.
///
/// # Errors
/// The connection's.
pub(crate) fn give(mut connection: Connection, request: &CopyOut) -> io::Result<()> {
    let opened =
        path(&request.source).and_then(|path| Opened::new(path).map_err(|error| failure(&error)));
    let opened = match opened {
        Ok(opened) => opened,
        Err(refusal) => return refuse(connection, &refusal),
    };
    let source = Some(opened.source().clone());
    accept(&mut connection, Accepted { source, ..Accepted::default() })?;
    match opened.send(Sender::new(&mut connection, ())) {
        Ok(_) => {
            connection.finish();
            Ok(())
        }
        failed => conclude(connection, Kind::Done, failed),
    }
}

/// The last frame: what was done, or why it was not.
fn conclude(
    mut connection: Connection,
    kind: Kind,
    result: Result<Summary, Error>,
) -> io::Result<()> {
    match result {
        Ok(summary) => connection.answer(kind, &summary)?,
        // The client has gone: there is nothing to say.
        Err(Error::Protocol(agent::protocol::Error::Transport(error))) => return Err(error),
        Err(error) => connection.answer(Kind::Failed, &failure(&error))?,
    }
    connection.finish();
    Ok(())
}

fn failure(error: &Error) -> Refusal {
    Refusal::new(Reason::Failed, format!("in the guest: {}", chain(error)))
}

/// A path of the guest. The agent has no working directory that a user would know.
fn path(text: &Text) -> Result<&Path, Refusal> {
    let path = Path::new(OsStr::from_bytes(text.as_bytes()));
    match path.is_absolute() && !text.has_nul() {
        true => Ok(path),
        false => {
            let message = format!("{path:?}: a path of the guest begins with /");
            Err(Refusal::new(Reason::Malformed, message))
        }
    }
}
