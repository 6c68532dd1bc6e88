//! What integration tests stand on: the lab, guests, and a look at the host's memory.
//!
//! A test here is an ordinary `#[test]` whose body runs on an arm64 host with KVM and MTE. On such a
//! machine it runs directly; on any other the lab boots one in QEMU and runs the same test there, from
//! the arm64 build of the same test program. See [`lab::Lab`].
#![allow(clippy::unwrap_used, clippy::missing_panics_doc)]

pub mod assault;
pub mod balloon;
pub mod bare;
pub mod borrower;
pub mod broker;
pub mod calls;
pub mod client;
pub mod control_group;
pub mod dice;
pub mod fault_prices;
pub mod faults;
pub mod figures;
pub mod first_entry;
pub mod footprint;
pub mod forked;
pub mod free_lists;
pub mod guest;
pub mod inject;
pub mod lab;
pub mod memory;
pub mod packed;
pub mod pin;
pub mod process;
pub mod procfs;
mod role;
pub mod scratch;
pub mod setting;
pub mod small_file_system;
pub mod snapshot;
pub mod tag_samples;
pub mod template;
pub mod wait;
