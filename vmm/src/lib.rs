//! Tessera: a small aarch64 VMM on KVM that boots Linux guests with Arm's Memory Tagging Extension.
//!
//! The way of the data: [`config`] to [`spec`] to `machine` to [`vcpu`] thread to bus to device. See
//! ARCHITECTURE.md for the numbered steps of one run.

pub mod api;
pub mod backends;
pub mod cli;
pub mod config;
pub(crate) mod console;
pub mod doctor;
pub mod error;
pub mod events;
pub mod exit_status;
mod folder;
#[cfg(any(test, fuzzing))]
pub mod fuzz;
pub mod hypervisor;
pub mod jail;
#[cfg(target_arch = "aarch64")]
pub mod kvm;
pub mod machine;
pub mod memory;
pub mod metrics;
pub mod prometheus;
pub mod registry;
pub mod run;
pub mod sandbox;
pub mod snapshot;
pub mod spec;
pub mod sys;
pub mod tag_storage;
pub mod template;
#[cfg(test)]
mod testing;
pub mod vcpu;
mod vm_id;
