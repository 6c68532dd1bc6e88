//! The broker's side of the protocol.

mod borrowers;
mod listen;
mod pressure;
mod run;
mod session;

pub use borrowers::{Borrowers, Borrowing};
pub use listen::{Error as ServerError, MAX_CONNECTIONS, Server, Stock};
pub use run::{BrokerArgs, Error as RunError, run};
