//! The broker's side of the protocol.

mod borrowers;
mod listen;
mod pressure;
mod run;
mod session;

pub use borrowers::{BorrowerConnections, Borrowing};
pub use listen::{Error as ServerError, MAX_CONNECTIONS, Server, ServerResources};
pub use run::{BrokerArgs, Error as RunError, run};
