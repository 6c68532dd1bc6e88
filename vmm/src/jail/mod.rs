//! A VM in a jail: a process that has of its host what its VM needs, and no more ([docs/jail.md](../../../docs/jail.md)).
//!
//! ```text
//! supervisor   the process that was started: root, in the host's namespaces; waits, forwards signals
//! └ init       process 1 of the jail's PID namespace: makes the jail; root with two capabilities
//!   └ VM       the jail's user, without capabilities
//! ```
//!
//! Each is a copy of the one before it (fork(2)): there is no program in the jail. Whichever of the three is killed, the
//! other two end and the control group is removed: by init where the supervisor has gone, and by the supervisor where
//! init has. What is mounted goes with the last process of the mount namespace.
//!
//! [`firecracker`] is the same for programs that start Firecracker's `jailer`: no supervisor, a program that is executed.

mod cgroup;
mod devices;
pub mod firecracker;
mod folder;
mod namespaces;
mod options;
mod process;
mod root;
mod steps;
mod supervisor;
mod user;

use std::io;
use std::path::PathBuf;

use thiserror::Error;

pub use cgroup::{ParseSettingError, Setting};
pub use folder::Folder;
pub use options::JailArgs;
pub use root::{Access, Seen, is_there, seen_of_the_kernel};
pub use supervisor::{Plan, Side, enter};
pub use user::User;

use crate::exit_status::ExitStatus;

/// Why there is no jail.
#[derive(Debug, Error)]
pub enum Error {
    /// Only root makes namespaces and devices.
    #[error("a jail is made by root: run it as root, or leave out --jail and use --sandbox on")]
    NotRoot,
    /// The jail's user is to be another than its maker.
    #[error(
        "in a jail the VM runs as a user and a group of its own: give --jail-uid and --jail-gid other than 0"
    )]
    RootUser,
    /// The folder cannot be used.
    #[error("cannot use {} for a jail: name a folder that is there (--jail DIR)", path.display())]
    Folder {
        /// The folder.
        path: PathBuf,
        /// The system's reason.
        #[source]
        source: io::Error,
    },
    /// The folder has files of others.
    #[error(
        "{} is not the folder of the jail's user, and has files in it or is another user's: name an empty one of yours \
         (--jail DIR)",
        .0.display()
    )]
    NotEmpty(PathBuf),
    /// The folder is another jail's.
    #[error(
        "{} is the folder of a jail whose VM has not ended: end it, or name another (--jail DIR)",
        .0.display()
    )]
    InUse(PathBuf),
    /// There is no hierarchy of version 2.
    #[error(
        "no control groups of version 2 are mounted: mount them (mount -t cgroup2 cgroup2 /sys/fs/cgroup)"
    )]
    NoCgroups,
    /// A controller is not there.
    #[error(
        "this host has no controller '{controller}' for control groups, which {file} needs: it has {known}"
    )]
    NoController {
        /// The controller.
        controller: String,
        /// What it was wanted for.
        file: String,
        /// Those that there are.
        known: String,
    },
    /// The path of a control group leaves its hierarchy.
    #[error(
        "'{0}' is no control group below which that of the VM could be: give a relative path without '.' and '..'"
    )]
    Parent(String),
    /// Another process is in the control group.
    #[error("the control group {} is in use: give the VM another --id", .0.display())]
    GroupInUse(PathBuf),
    /// The kernel does not do it.
    #[error("cannot {what} the control group {}", path.display())]
    Group {
        /// What was tried.
        what: &'static str,
        /// With what.
        path: PathBuf,
        /// The kernel's reason.
        #[source]
        source: io::Error,
    },
    /// A file that was named is not there.
    #[error("cannot have {} in the jail", path.display())]
    Input {
        /// The file.
        path: PathBuf,
        /// The system's reason.
        #[source]
        source: io::Error,
    },
    /// A file or socket would be made outside of the jail.
    #[error("{what} {} is not in the jail: name a path in {}", path.display(), folder.display())]
    Outside {
        /// What it is.
        what: &'static str,
        /// The path.
        path: PathBuf,
        /// The jail's folder.
        folder: PathBuf,
    },
    /// A link of the jail's folder leads out of it.
    #[error(
        "{} is in the jail's folder and leads to {}, out of it: who has written it is not known, so name the file itself",
        path.display(), target.display()
    )]
    LeadsOut {
        /// The path.
        path: PathBuf,
        /// Where it leads.
        target: PathBuf,
    },
    /// The jail's folder is in another that the VM would see.
    #[error(
        "the folder {} has the jail's folder {} in it, and all beside it: give what the VM needs a folder of its own",
        path.display(), folder.display()
    )]
    Around {
        /// The folder.
        path: PathBuf,
        /// The jail's.
        folder: PathBuf,
    },
    /// A VM that waits keeps the paths that it was given.
    #[error(
        "a VM in a jail that waits for its configuration has the path {}: name it {}",
        path.display(), whole.display()
    )]
    Relative {
        /// The path that was given.
        path: PathBuf,
        /// The same from the root, without links.
        whole: PathBuf,
    },
    /// Something that a jail has not.
    #[error("{option} cannot be had in a jail: {why}")]
    Unsupported {
        /// What was asked for.
        option: &'static str,
        /// Why not, and what to do.
        why: &'static str,
    },
    /// A tap cannot be opened for the VM.
    #[error("cannot open the tap '{name}' for a VM in a jail")]
    Tap {
        /// The tap.
        name: String,
        /// The system's reason.
        #[source]
        source: io::Error,
    },
    /// The kernel gives no namespaces.
    #[error(
        "the kernel gives no namespaces for a jail: is this a container that may not have any?"
    )]
    Namespaces(#[source] io::Error),
    /// The network namespace cannot be joined.
    #[error("cannot enter the network namespace {}", path.display())]
    NetworkNamespace {
        /// Its file.
        path: PathBuf,
        /// The system's reason.
        #[source]
        source: io::Error,
    },
    /// The new root cannot be made.
    #[error("cannot make the jail's root: {what} {}", path.display())]
    Root {
        /// What was tried.
        what: &'static str,
        /// With what.
        path: PathBuf,
        /// The kernel's reason.
        #[source]
        source: io::Error,
    },
    /// The kernel does not let the process be another user's.
    #[error("cannot become the jail's user")]
    User(#[source] io::Error),
    /// There are no more processes.
    #[error("cannot start a process for the jail")]
    Process(#[source] io::Error),
    /// A limit cannot be set.
    #[error("cannot set the limit {what} of the VM's process")]
    Limit {
        /// The limit.
        what: &'static str,
        /// The kernel's reason.
        #[source]
        source: io::Error,
    },
}

impl Error {
    /// The status that the process ends with.
    pub fn status(&self) -> ExitStatus {
        match self {
            Self::NotRoot => ExitStatus::NoPermission,
            Self::RootUser
            | Self::NotEmpty(_)
            | Self::Parent(_)
            | Self::Outside { .. }
            | Self::LeadsOut { .. }
            | Self::Around { .. }
            | Self::Relative { .. }
            | Self::Unsupported { .. } => ExitStatus::Config,
            Self::Folder { source, .. }
            | Self::Input { source, .. }
            | Self::NetworkNamespace { source, .. } => ExitStatus::for_input(source.kind()),
            Self::GroupInUse(_) | Self::InUse(_) => ExitStatus::CannotCreate,
            _ => ExitStatus::Unavailable,
        }
    }
}
