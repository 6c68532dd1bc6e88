//! Tests of real guests on real KVM: here where this machine has it, else in the lab.
#![allow(clippy::unwrap_used)]

mod agent;
mod alarm;
mod background;
mod bad_snapshots;
mod balloon;
mod boot;
mod broker;
mod clones;
mod consoles;
mod control;
mod diffs;
mod disk;
mod endings;
mod fleet;
mod footprint;
mod hostile;
mod hosts;
mod hwrng;
mod kernels;
mod kills;
mod kvm_state;
mod leaks;
mod lending;
mod lent_vms;
mod memory;
mod net;
mod place;
mod refusals;
mod reporting;
mod services;
mod snapshots;
mod startup;
mod tag_storage;
mod threads;
mod vsock;
