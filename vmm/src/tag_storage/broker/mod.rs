//! The broker: the pool of a host in a process of its own, for all VMs of that host.
//!
//! ```text
//! VM: client  ->  packets on a Unix socket  ->  session (a thread)  ->  Pool
//!             <-  a socket for notices      <-  pressure
//! ```
//!
//! A VM's lease belongs to its connection, which the kernel closes with the VM, however that ends. No file
//! keeps what the broker knows: when it is started again, each VM tells it what it holds.
//!
//! | File | Responsibility |
//! |---|---|
//! | `protocol/wire`, `limits`, `refusal`, `report` | messages, their bounds, reasons for a refusal, figures |
//! | `server/listen`, `state` | the socket, and what all connections share |
//! | `server/session` | one connection |
//! | `server/pressure` | VMs that wait, VMs that are asked to give back |
//! | `server/grace` | the time after a restart |
//! | `server/borrowers` | processes whose memory may be in tag storage |
//! | `server/run` | the command `tessera broker` |
//! | `client` | the VM's side |

pub(crate) mod client;
pub(crate) mod protocol;
pub(crate) mod server;
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
