//! The broker's side of the protocol.

mod borrowers;
#[cfg(any(test, fuzzing))]
pub(crate) mod fuzz;
mod grace;
mod listen;
mod pressure;
mod run;
mod session;
mod state;

pub use borrowers::{BorrowerConnections, Borrowing};
#[cfg(test)]
pub(crate) use grace::GraceTimes;
pub use listen::{Error as ServerError, MAX_CONNECTIONS, Server};
pub use run::{BrokerArgs, Error as RunError, run};
pub use state::ServerResources;
