//! Files and trees, in and out.

use std::io;

use agent::protocol::message::{CopyIn, CopyOut, Reason, Refusal};

use crate::connection::Connection;
use crate::session::refuse;

/// Takes a file or a tree.
pub(crate) fn take(connection: Connection, _: &CopyIn) -> io::Result<()> {
    refuse(connection, &Refusal::new(Reason::Failed, "not yet"))
}

/// Sends a file or a tree.
pub(crate) fn give(connection: Connection, _: &CopyOut) -> io::Result<()> {
    refuse(connection, &Refusal::new(Reason::Failed, "not yet"))
}
