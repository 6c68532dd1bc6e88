//! The flags of a jail. On the command line alone: a configuration may be another person's.

use std::path::PathBuf;

use clap::Args;

use super::Setting;

/// The jail that a VM is put into.
#[derive(Args, Clone, Debug, Default)]
pub struct JailArgs {
    /// Run the VM in a jail, which only root can make: namespaces, a root of its own, a control group. DIR, which it has
    /// for its user, has its sockets and the files that it makes
    #[arg(long, value_name = "DIR", requires_all = ["jail_uid", "jail_gid"])]
    pub jail: Option<PathBuf>,

    /// The user of the VM in a jail
    #[arg(long, value_name = "UID", requires = "jail")]
    pub jail_uid: Option<u32>,

    /// The group of the VM in a jail
    #[arg(long, value_name = "GID", requires = "jail")]
    pub jail_gid: Option<u32>,

    /// The network namespace of the VM in a jail, as a file; without it, one that has nothing
    #[arg(long, value_name = "FILE", requires = "jail")]
    pub jail_netns: Option<PathBuf>,

    /// A setting of the control group (version 2) of the VM in a jail, such as memory.max=1G or cpu.max="50000 100000";
    /// may be given several times [default: pids.max=1024]
    #[arg(long, value_name = "FILE=VALUE", requires = "jail")]
    pub jail_cgroup: Vec<Setting>,

    /// The control group in which that of the VM is made [default: tessera]
    #[arg(long, value_name = "PATH", requires = "jail")]
    pub jail_parent_cgroup: Option<String>,
}
