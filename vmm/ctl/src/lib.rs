//! The client's side of Tessera: what the program `tesseractl` and the tests use to start and control VMs, to work
//! in their guests, to look at a broker, and to make reports of benches.
//!
//! The package knows the VMM's library for the bodies of the control API, the registry of running VMs, the flags of
//! `tessera run` and the broker's report. The VMM never depends on it, so that its dependencies cannot enter the
//! program `tessera`.

pub mod bench;
pub mod cli;
pub mod client;
pub mod commands;
pub mod failure;
pub mod fleet;
pub mod guest;
pub mod output;
pub mod process;
pub mod report;
pub mod target;
mod terminal;
pub mod waiting;
