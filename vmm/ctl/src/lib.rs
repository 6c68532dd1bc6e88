//! The client's side of Tessera: what the program `tesseractl` and the tests use to control a VM, to work
//! in its guest, and to look at a broker.
//!
//! The package knows the VMM's library for the bodies of the control API and the broker's report. The
//! VMM never depends on it, so that its dependencies cannot enter the program `tessera`.

pub mod client;
pub mod guest;
pub mod report;
