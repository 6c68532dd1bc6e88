//! The state of a socket device, saved and restored. No connection is in it: the streams are the host's.

use serde::{Deserialize, Serialize};

use super::peers::Peers;
use super::{Reset, Vsock};
use crate::state::{RestoreError, Stateful, check};

/// The state of a socket device.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct State {
    /// The next port of the host. A guest may still have the ports of connections that it has not closed.
    next_port: u32,
}

impl<P: Peers> Stateful for Vsock<P> {
    type State = State;

    fn save(&self) -> State {
        State { next_port: self.muxer.next_port() }
    }

    /// The driver is to end the connections that it had.
    fn restore(&mut self, state: State) -> Result<(), RestoreError> {
        let valid = self.muxer.set_next_port(state.next_port);
        check(valid, "the next port", "is none of those for connections of the host")?;
        self.reset = Reset::Due;
        Ok(())
    }
}
