//! The command line of `tessera`.

use clap::{Parser, Subcommand};

use crate::config::{Deferred, FirecrackerArgs, RunArgs};
use crate::jail::firecracker::JailerArgs;
use crate::tag_storage::broker::BrokerArgs;
use crate::template::TemplateArgs;

/// A small aarch64 VMM on KVM that boots Linux guests with Arm's Memory Tagging Extension
#[derive(Debug, Parser)]
#[command(name = "tessera", version, about)]
pub struct Arguments {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// A verb.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Boot a guest and run it until it ends
    Run(Deferred<RunArgs>),
    /// Own the tag storage of this host and share it among its VMs
    Broker(Deferred<BrokerArgs>),
    /// Hold the memory of a snapshot, or a kernel, once for all VMs that share it (`run --shared`, `run --boot-image`)
    Template(Deferred<TemplateArgs>),
    /// Run a VM as Firecracker's process would: its options, its API
    Firecracker(Deferred<FirecrackerArgs>),
    /// Put such a VM into a jail as Firecracker's jailer would: its options
    Jailer(Deferred<JailerArgs>),
    /// Say what this host can do for guests, and what to do about what it cannot
    Doctor {
        /// Answer in JSON
        #[arg(long)]
        json: bool,
    },
}
