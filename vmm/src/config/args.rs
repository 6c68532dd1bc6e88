//! The flags of `tessera run`.

use std::path::PathBuf;

use arch::units::Bytes;
use clap::Args;

use super::{
    BalloonFlag, ClockMode, DiskFlag, ExhaustedFlag, MemoryBacking, MteMode, NetFlag,
    TagStorageMode, VsockFlag,
};
use crate::jail::JailArgs;
use crate::sandbox::SandboxArgs;

/// Boot a guest and run it until it ends.
#[derive(Args, Clone, Debug, Default)]
pub struct RunArgs {
    /// The guest's kernel: an arm64 Image, raw, gzip or EFI zboot
    #[arg(long, value_name = "FILE")]
    pub kernel: Option<PathBuf>,

    /// The guest's initial RAM disk
    #[arg(long, value_name = "FILE")]
    pub initrd: Option<PathBuf>,

    /// The guest kernel's command line
    #[arg(long, value_name = "STRING", allow_hyphen_values = true)]
    pub cmdline: Option<String>,

    /// Put nothing before the kernel's command line: a panic then looks like a reset
    #[arg(long)]
    pub bare_cmdline: bool,

    /// Share kernel and initrd with other VMs, through the process `tessera template --kernel FILE`
    #[arg(long)]
    pub boot_image: bool,

    /// Guest memory: a multiple of 2M, at least 64M [default: 512M]
    #[arg(long, value_name = "SIZE")]
    pub memory: Option<Bytes>,

    /// What guest memory is made of; hugetlbfs takes 2M pages of the host's pool [default: anonymous]
    #[arg(long, value_name = "KIND")]
    pub memory_backing: Option<MemoryBacking>,

    /// Populate guest memory at the start and keep it from swap; none of it is given back then
    #[arg(long)]
    pub lock_memory: bool,

    /// Record which pages of guest memory change, for snapshots of what has changed (`snapshot --diff`)
    #[arg(long)]
    pub track_dirty_pages: bool,

    /// Number of vCPUs [default: 1]
    #[arg(long, value_name = "N", allow_negative_numbers = true)]
    pub cpus: Option<u32>,

    /// Give the vCPUs performance monitors (PMUv3)
    #[arg(long)]
    pub pmu: bool,

    /// The guest's counter while it is paused: stop, or advance with the host's [default: stop]
    #[arg(long, value_name = "MODE")]
    pub clock: Option<ClockMode>,

    /// The guest's MTE; `--mte` alone means require [default: auto]
    #[arg(long, value_name = "MODE", num_args = 0..=1, default_missing_value = "require")]
    pub mte: Option<MteMode>,

    /// When the host's tag storage is reserved for guest memory [default: off; demand with --broker]
    #[arg(long, value_name = "MODE")]
    pub tag_storage: Option<TagStorageMode>,

    /// Reserve it from the broker at this Unix socket, instead of a pool of this VM's own
    #[arg(long, value_name = "PATH")]
    pub broker: Option<PathBuf>,

    /// Tag storage that is set aside for this VM [default: 0]
    #[arg(long, value_name = "SIZE")]
    pub tag_min: Option<Bytes>,

    /// The most tag storage that this VM can have [default: all there is]
    #[arg(long, value_name = "SIZE")]
    pub tag_max: Option<Bytes>,

    /// What to do when the guest has waited for tag storage until a deadline: wait, pause or kill, and
    /// perhaps ,deadline=SECONDS [default: wait,deadline=5]
    #[arg(long, value_name = "ACTION")]
    pub on_exhausted: Option<ExhaustedFlag>,

    /// The memory balloon: reporting=on|off, deflate-on-oom=on|off, target=SIZE, stats=SECONDS, auto (the VMM chooses the
    /// target by how host and guest do), floor=SIZE (what auto leaves to the guest), separated by commas
    /// [default: reporting=on,deflate-on-oom=on,target=0,stats=0,auto=off]
    #[arg(long, value_name = "KEY=VALUE,...", num_args = 0..=1, default_missing_value = "")]
    pub balloon: Option<BalloonFlag>,

    /// Give the guest no memory balloon
    #[arg(long, conflicts_with = "balloon")]
    pub no_balloon: bool,

    /// A disk: a raw image or a block device, and perhaps ro, direct (past the host's page cache) and id=NAME,
    /// separated by commas; may be given several times
    #[arg(long, value_name = "PATH[,...]")]
    pub disk: Vec<DiskFlag>,

    /// Give the guest a source of random numbers
    #[arg(long)]
    pub rng: bool,

    /// Connect sockets of the guest (AF_VSOCK) with the host through this Unix socket [default: cid=3]
    #[arg(long, value_name = "PATH[,cid=N]")]
    pub vsock: Option<VsockFlag>,

    /// A network interface: tap=NAME, fd=N, stream=PATH or user, and perhaps ,mac=..,mtu=..,id=.. and
    /// ,forward=HOST:GUEST for user. May be given several times
    #[arg(long, value_name = "BACKEND,...")]
    pub net: Vec<NetFlag>,

    /// The guest's serial port: stdio, file:PATH, socket:PATH or none [default: stdio]
    #[arg(long, value_name = "WHERE")]
    pub serial: Option<String>,

    /// Serve the control API (HTTP) on this Unix socket; without a kernel, wait there to be configured and started
    #[arg(long, value_name = "PATH")]
    pub api_sock: Option<PathBuf>,

    /// Write messages to this file or FIFO instead of standard error
    #[arg(long, value_name = "PATH")]
    pub log: Option<PathBuf>,

    /// Write the counters to this file or FIFO, as JSON, each minute and at the end
    #[arg(long, value_name = "PATH")]
    pub metrics: Option<PathBuf>,

    /// The VM's name, as the control API reports it [default: tessera]
    #[arg(long, value_name = "NAME")]
    pub id: Option<String>,

    /// Read the configuration from a JSON file; flags replace its values
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,

    /// Restore the VM of a snapshot, from the files `state` and `memory` of this folder, instead of booting one
    #[arg(long, value_name = "DIR")]
    pub restore: Option<PathBuf>,

    /// With --restore, read guest memory when the guest touches it, and not before it runs
    #[arg(long, requires = "restore")]
    pub lazy: bool,

    /// With --lazy, record in which order the guest touches its memory: later restores read that in advance
    #[arg(long, requires = "restore")]
    pub record_working_set: bool,

    /// With --restore, share guest memory with other VMs of the snapshot, through the process `tessera template DIR`
    #[arg(long, requires = "restore")]
    pub shared: bool,

    /// With --restore, leave the VM paused
    #[arg(long, requires = "restore")]
    pub paused: bool,

    /// A folder in which a client of the control API may have the VM saved, or find another file for a disk, beside those
    /// of the control socket and of the disks; may be given several times
    #[arg(long, value_name = "DIR")]
    pub allow: Vec<PathBuf>,

    /// How the process is confined.
    #[command(flatten)]
    pub sandbox: SandboxArgs,

    /// The jail that it is put into.
    #[command(flatten)]
    pub jail: JailArgs,

    /// Whether the files of sockets stay when the VM has ended, as under the name `firecracker`.
    #[arg(skip)]
    pub leave_sockets: bool,
}
