//! Many VMs, each a process (examples/fake_vm.rs), in a registry of their own.
#![allow(clippy::unwrap_used)]

#[path = "../common/mod.rs"]
mod common;
mod harness;
mod lifecycle;
mod registry;
mod terminal;
mod watch;
