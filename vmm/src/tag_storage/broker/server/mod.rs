//! The broker's side of the protocol.

mod borrowers;
mod listen;
mod pressure;
mod run;
mod session;
mod state;

pub use borrowers::{BorrowerConnections, Borrowing};
pub use listen::{Error as ServerError, MAX_CONNECTIONS, Server};
pub use run::{BrokerArgs, Error as RunError, run};
pub use state::ServerResources;
