//! The broker: the pool of a host in a process of its own, for all VMs of that host.
//!
//! ```text
//! VM: client  ->  packets on a Unix socket  ->  session (a thread)  ->  Pool
//!     hear()           <-  a socket for notices      <-  notices
//! ```
//!
//! A VM's lease belongs to its connection, which the kernel closes with the VM, however that ends. No file
//! keeps what the broker knows: when it is started again, each VM tells it what it holds.
//!
//! | File | The noun |
//! |---|---|
//! | `wire`, `refusal`, `packet` | messages; why not; how they travel |
//! | `server`, `peer` | the socket; who is at its other end |
//! | `session`, `notices` | one connection; who lacks and who could give |
//! | `borrowers` | who may live in tag storage |
//! | `client` | the VM's side |
//! | `report` | what there is to see |
//! | `run` | the command `tessera broker` |

pub(crate) mod client;
pub(crate) mod protocol;
mod server;
#[cfg(test)]
pub(crate) mod testing;
#[cfg(test)]
mod tests;

pub use client::{Awaited, BrokerEvent, Client, Error, LastError, Status, report};
pub use protocol::refusal::{Reason, Refusal};
pub use protocol::report::{BrokerReport, Holder, Traffic};
pub use protocol::wire::Terms;
pub use server::{
    BorrowerConnections, Borrowing, BrokerArgs, MAX_CONNECTIONS, RunError, Server, ServerError,
    ServerResources, run,
};
