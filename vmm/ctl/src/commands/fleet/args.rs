//! The options of `tesseractl fleet`.

use std::ffi::OsString;
use std::path::PathBuf;

use clap::{Args, Subcommand};

/// What is done in a fleet.
#[derive(Clone, Debug, Subcommand)]
pub enum FleetCommand {
    /// Show the tag storage of this host as a generic resource of Slurm, or update Slurm's count of it
    Gres(GresArgs),
    /// Submit a job that runs a VM, and follow it until it ends
    Run(FleetRunArgs),
}

/// `fleet gres`.
#[derive(Clone, Debug, Args)]
pub struct GresArgs {
    /// The socket that the broker was given with --socket
    #[arg(long, value_name = "PATH")]
    pub broker: PathBuf,
    /// Slurm's name of this host [default: SLURMD_NODENAME, or the host's name up to its first dot]
    #[arg(long, value_name = "NAME")]
    pub node: Option<String>,
    /// Print the line for gres.conf instead of that for slurm.conf
    #[arg(long, conflicts_with_all = ["update", "json"])]
    pub gres_conf: bool,
    /// Set Slurm's count for the node where it differs and no job uses it; other generic resources of the node stay
    #[arg(long)]
    pub update: bool,
    /// Slurm's program scontrol
    #[arg(long, value_name = "PATH", default_value = "scontrol")]
    pub scontrol: PathBuf,
}

/// `fleet run`.
#[derive(Clone, Debug, Args)]
#[command(after_help = "\
The exit status is that of the job, which is that of `tessera run` (docs/exit-codes.md). A signal ends this program and not
the job: `scancel JOB` has the guest power off.")]
pub struct FleetRunArgs {
    /// What the VM may have of generic resources: `tagmib:N` is N MiB of tag storage
    #[arg(long, value_name = "GRES")]
    pub gres: String,
    /// The memory of the job, as sbatch takes it: the guest's, its tag storage and that of the VMM
    #[arg(long, value_name = "SIZE")]
    pub mem: String,
    /// A further option of sbatch, for instance --sbatch=--partition=vms; as often as wanted
    #[arg(long = "sbatch", value_name = "OPTION", allow_hyphen_values = true)]
    pub options: Vec<OsString>,
    /// Return when the job is submitted
    #[arg(long)]
    pub detach: bool,
    /// The job script [default: share/tessera/fleet/slurm/vm.job beside the folder of tesseractl]
    #[arg(long, value_name = "PATH")]
    pub script: Option<PathBuf>,
    /// The words for the VM: `tessera`, which may be left out, and the options of `tessera run`
    #[arg(last = true, required = true, value_name = "OPTIONS")]
    pub vm: Vec<OsString>,
}
