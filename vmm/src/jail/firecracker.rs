//! The options of Firecracker's `jailer`, for programs that start one: it makes a jail as that does, and executes a program
//! in it.
//!
//! # References
//! Firecracker's docs/jailer.md, 1.16

mod guard;

use std::convert::Infallible;
use std::ffi::{OsStr, OsString};
use std::fs;
use std::io::{self, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::str::FromStr;

use clap::Args;
use rustix::fs::{CWD, Mode};
use rustix::mount::{
    MountFlags, MoveMountFlags, OpenTreeFlags, mount_bind_recursive, mount_remount, move_mount,
    open_tree,
};
use rustix::process::{Pid, Resource, Rlimit, Signal, kill_process, setrlimit, setsid};
use thiserror::Error as ThisError;

use guard::{Lock, running_in};

use super::cgroup::{Entrance, Group};
use super::namespaces::{self, Network};
use super::process::{self, Forked, OneThread, fork};
use super::root::{change_root, failed, make_folder, mount_processes};
use super::steps::{clear_at, folder_at};
use super::{Error, Setting, User, devices, user};
use crate::exit_status::ExitStatus;
use crate::vm_id::{RULE, is_vm_id};

/// Where jails are, unless another place is named.
const BASE: &str = "/srv/jailer";
/// What the name of a program has in it that this may execute.
const PROGRAM: &str = "firecracker";
/// Descriptors of the program, unless another number is given.
const DESCRIPTORS: u64 = 2048;
/// Folders that are the user's.
const FOLDERS: [&str; 4] = ["/", "/dev", "/dev/net", "/run"];
/// The mode of the others.
const FOLDER: Mode = Mode::from_raw_mode(0o755);
/// What a VM reads of the CPUs' caches.
const CPUS: &str = "/sys/devices/system/cpu";

/// Put a VM into a jail as Firecracker's jailer would: its options
#[derive(Args, Clone, Debug, Default)]
#[command(disable_version_flag = true)]
pub struct JailerArgs {
    /// The VM's name
    #[arg(long, value_name = "ID", required_unless_present = "version")]
    pub id: Option<String>,

    /// The program that is executed in the jail, whose name has the word firecracker in it
    #[arg(long, value_name = "FILE", required_unless_present = "version")]
    pub exec_file: Option<PathBuf>,

    /// The program's user
    #[arg(long, value_name = "UID", required_unless_present = "version")]
    pub uid: Option<u32>,

    /// The program's group
    #[arg(long, value_name = "GID", required_unless_present = "version")]
    pub gid: Option<u32>,

    /// Where jails are: this one is DIR/NAME/ID/root, where NAME is the program's
    #[arg(long, value_name = "DIR", default_value = BASE)]
    pub chroot_base_dir: PathBuf,

    /// The network namespace of the program, as a file
    #[arg(long, value_name = "FILE")]
    pub netns: Option<PathBuf>,

    /// Make a session for the program, with /dev/null as its input and outputs
    #[arg(long)]
    pub daemonize: bool,

    /// Execute the program in a PID namespace of its own; the jailer ends, and leaves its number in NAME.pid
    #[arg(long)]
    pub new_pid_ns: bool,

    /// A setting of the program's control group; may be given several times
    #[arg(long, value_name = "FILE=VALUE")]
    pub cgroup: Vec<Setting>,

    /// The version of control groups; those of version 1 cannot be had
    #[arg(long, value_name = "1|2", default_value = "1", value_parser = clap::value_parser!(u8).range(1..=2))]
    pub cgroup_version: u8,

    /// The control group in which that of the program is made; without --cgroup, the one that it is put into [default: the
    /// program's name]
    #[arg(long, value_name = "PATH")]
    pub parent_cgroup: Option<String>,

    /// A limit of the program's process, fsize or no-file; may be given several times [default: no-file=2048]
    #[arg(long, value_name = "NAME=NUMBER")]
    pub resource_limit: Vec<ResourceLimit>,

    /// Print the version
    #[arg(long)]
    pub version: bool,

    /// Options of the program
    #[arg(last = true, value_name = "OPTIONS")]
    pub rest: Vec<OsString>,
}

/// A limit of a process.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum ResourceLimit {
    /// The longest file that it makes, in bytes.
    FileSize(u64),
    /// One more than its highest descriptor.
    Descriptors(u64),
}

/// A text that is no limit.
#[derive(Clone, Debug, Eq, PartialEq, ThisError)]
#[error("'{0}' is no limit of a process: give fsize=BYTES or no-file=NUMBER")]
pub struct ParseLimitError(String);

impl FromStr for ResourceLimit {
    type Err = ParseLimitError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let refused = || ParseLimitError(text.to_owned());
        let (name, number) = text.split_once('=').ok_or_else(refused)?;
        let number = number.parse().map_err(|_| refused())?;
        match name {
            "fsize" => Ok(Self::FileSize(number)),
            "no-file" => Ok(Self::Descriptors(number)),
            _ => Err(refused()),
        }
    }
}

/// Why a program was not executed in a jail.
#[derive(Debug, ThisError)]
pub enum JailerError {
    /// The jail cannot be made.
    #[error(transparent)]
    Jail(#[from] Error),
    /// The jail's program runs already.
    #[error(
        "the jail of '{id}' has a program that runs, process {process}: end it, or give another --id"
    )]
    Running {
        /// The VM's name.
        id: String,
        /// The program's number.
        process: u32,
    },
    /// Another jailer is at it.
    #[error("another jailer makes the jail of '{0}' at this moment: give this one another --id")]
    Starting(String),
    /// A name that no VM has.
    #[error("Invalid instance ID '{0}': {RULE}")]
    Id(String),
    /// A path that leads nowhere.
    #[error("Failed to canonicalize path {}", path.display())]
    Path {
        /// The path.
        path: PathBuf,
        /// The system's reason.
        #[source]
        source: io::Error,
    },
    /// The program is none.
    #[error("{} is not a file", .0.display())]
    NotAFile(PathBuf),
    /// The jails' place is none.
    #[error("{} is not a directory", .0.display())]
    NotADirectory(PathBuf),
    /// A program of another kind.
    #[error(
        "Invalid filename. The filename of `--exec-file` option must contain \"{PROGRAM}\": {0}"
    )]
    Program(String),
    /// Control groups of version 1.
    #[error(
        "control groups of version 1 cannot be had: give --cgroup-version 2, and settings of version 2"
    )]
    Version,
    /// The program cannot be copied into the jail.
    #[error("Failed to copy {} to {}", from.display(), to.display())]
    Copy {
        /// The program.
        from: PathBuf,
        /// Where it would be.
        to: PathBuf,
        /// The system's reason.
        #[source]
        source: io::Error,
    },
    /// There is no new session.
    #[error(
        "Failed to daemonize: a process that leads a group cannot (setsid): start it as another's child"
    )]
    Session(#[source] io::Error),
    /// The program cannot be executed.
    #[error("Failed to exec into {}", program.display())]
    Exec {
        /// The program, in the jail.
        program: PathBuf,
        /// The system's reason.
        #[source]
        source: io::Error,
    },
}

impl JailerError {
    /// The status that the process ends with.
    pub fn status(&self) -> ExitStatus {
        match self {
            Self::Jail(error) => error.status(),
            Self::Id(_) | Self::Program(_) | Self::Version => ExitStatus::Usage,
            Self::Path { source, .. } => ExitStatus::for_input(source.kind()),
            Self::NotAFile(_) | Self::NotADirectory(_) => ExitStatus::NoInput,
            Self::Running { .. } | Self::Starting(_) => ExitStatus::CannotCreate,
            Self::Copy { source, .. } => ExitStatus::for_output(source.kind()),
            Self::Session(_) | Self::Exec { .. } => ExitStatus::Unavailable,
        }
    }
}

/// Makes the jail and executes the program in it. It returns in a process that has left the program in a PID namespace
/// alone.
///
/// # Errors
/// When it cannot be done.
pub fn run(args: &JailerArgs) -> Result<ExitStatus, JailerError> {
    // A program has nothing of who has started the jailer, but for its input and outputs.
    process::close(process::inherited().map_err(Error::Process)?);
    let jailer = Jailer::new(args)?;
    if !rustix::process::geteuid().is_root() {
        return Err(Error::NotRoot.into());
    }
    // While there is a /proc to ask.
    jailer.run(OneThread::new().map_err(Error::Process)?)
}

/// Options that make sense.
struct Jailer<'a> {
    args: &'a JailerArgs,
    id: &'a str,
    program: PathBuf,
    name: OsString,
    root: PathBuf,
    user: User,
}

impl<'a> Jailer<'a> {
    fn new(args: &'a JailerArgs) -> Result<Self, JailerError> {
        let id = args.id.as_deref().unwrap_or_default();
        if !is_vm_id(id) {
            return Err(JailerError::Id(id.to_owned()));
        }
        let given = args.exec_file.as_deref().unwrap_or(Path::new(""));
        let program = canonical(given)?;
        if !program.is_file() {
            return Err(JailerError::NotAFile(program));
        }
        // The name that was given: it may be a link to this program.
        let name = given.file_name().unwrap_or_default().to_owned();
        if !name.to_string_lossy().contains(PROGRAM) {
            return Err(JailerError::Program(name.to_string_lossy().into_owned()));
        }
        let base = canonical(&args.chroot_base_dir)?;
        if !base.is_dir() {
            return Err(JailerError::NotADirectory(base));
        }
        if !args.cgroup.is_empty() && args.cgroup_version == 1 {
            return Err(JailerError::Version);
        }
        let root = base.join(&name).join(id).join("root");
        let user = User { uid: args.uid.unwrap_or_default(), gid: args.gid.unwrap_or_default() };
        Ok(Self { args, id, program, name, root, user })
    }

    fn run(&self, one: OneThread) -> Result<ExitStatus, JailerError> {
        let network = self.args.netns.as_deref().map(Network::open).transpose()?;
        let _lock = self.be_alone()?;
        let entrance = self.group()?;
        let nodes = devices::of_the_host();
        let null = open_null(self.args.daemonize)?;
        make_folder(&self.root).map_err(failed("make", &self.root))?;
        self.copy_program()?;
        network.as_ref().map(Network::enter).transpose()?;
        self.limit()?;
        if let Some(entrance) = entrance {
            entrance.enter().map_err(failed("enter the control group of", &self.root))?;
        }
        namespaces::new_mounts()?;
        let cpus =
            open_tree(CWD, CPUS, OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC);
        // With what the client has mounted in it.
        mount_bind_recursive(&self.root, &self.root)
            .map_err(|errno| failed("mount", &self.root)(errno.into()))?;
        change_root(&self.root)?;
        // From here on no link leads out of the jail.
        let devices = self.make_folders()?;
        devices::make(&devices, &nodes, self.user)?;
        show_cpus(cpus.ok())?;
        if let Some(null) = null {
            // The one that was started may lead a group, which cannot begin a session.
            if let Forked::Parent(_) = fork(one).map_err(Error::Process)? {
                return Ok(ExitStatus::Success);
            }
            setsid().map_err(|errno| JailerError::Session(errno.into()))?;
            into_null(&null).map_err(JailerError::Session)?;
        }
        match self.args.new_pid_ns {
            true => self.execute_as_first(one),
            false => {
                self.note(rustix::process::getpid())?;
                match self.execute()? {}
            }
        }
    }

    /// Sees to it that no other program has the root, and none comes to have it until this one has.
    fn be_alone(&self) -> Result<Lock, JailerError> {
        let folder = self.root.parent().unwrap_or(&self.root);
        make_folder(folder).map_err(failed("make", folder))?;
        let lock = Lock::take(folder).map_err(failed("lock", folder))?;
        let lock = lock.ok_or_else(|| JailerError::Starting(self.id.to_owned()))?;
        match running_in(&self.root).map_err(failed("look for processes in", &self.root))? {
            None => Ok(lock),
            Some(process) => Err(JailerError::Running { id: self.id.to_owned(), process }),
        }
    }

    /// Writes the number of the program's process into its file.
    fn note(&self, process: Pid) -> Result<(), JailerError> {
        let path = PathBuf::from("/").join(pid_file(&self.name));
        Ok(note(process, &path).map_err(failed("write", &path))?)
    }

    /// The control group that the program is to be in.
    fn group(&self) -> Result<Option<Entrance>, JailerError> {
        let JailerArgs { cgroup, cgroup_version, parent_cgroup, .. } = self.args;
        let name = self.name.to_string_lossy();
        let parent = parent_cgroup.as_deref().unwrap_or(&name);
        Ok(match (cgroup.is_empty(), cgroup_version, parent_cgroup) {
            (false, ..) => {
                let group = Group::that_stays(parent, self.id.to_owned(), cgroup.clone())?;
                Some(group.make()?)
            }
            (true, 2, Some(_)) => Some(Entrance::of_existing(parent)?),
            _ => None,
        })
    }

    /// Puts the program into the jail, in the place of what a jail before this one had there.
    fn copy_program(&self) -> Result<(), JailerError> {
        let to = self.root.join(&self.name);
        let copy = || -> io::Result<()> {
            let mut from = fs::File::open(&self.program)?;
            clear_at(CWD, &to)?;
            // The folder is the user's: a link that waits there is not followed.
            let mut file =
                fs::OpenOptions::new().write(true).create_new(true).mode(0o755).open(&to)?;
            io::copy(&mut from, &mut file)?;
            file.set_permissions(fs::Permissions::from_mode(0o755))
        };
        copy().map_err(|source| JailerError::Copy { from: self.program.clone(), to, source })
    }

    fn limit(&self) -> Result<(), JailerError> {
        let given = &self.args.resource_limit;
        let is_of_descriptors =
            |limit: &ResourceLimit| matches!(limit, ResourceLimit::Descriptors(_));
        let default = (!given.iter().any(is_of_descriptors))
            .then_some(ResourceLimit::Descriptors(DESCRIPTORS));
        for limit in given.iter().copied().chain(default) {
            let (resource, what, number) = match limit {
                ResourceLimit::FileSize(number) => (Resource::Fsize, "fsize", number),
                ResourceLimit::Descriptors(number) => (Resource::Nofile, "no-file", number),
            };
            let both = Rlimit { current: Some(number), maximum: Some(number) };
            setrlimit(resource, both)
                .map_err(|errno| Error::Limit { what, source: errno.into() })?;
        }
        Ok(())
    }

    /// Makes the folders that are the user's, and returns that of the devices.
    fn make_folders(&self) -> Result<OwnedFd, JailerError> {
        for folder in FOLDERS.map(Path::new) {
            let make = || -> io::Result<()> {
                let open = folder_at(CWD, folder, Mode::RWXU)?;
                rustix::fs::fchmod(&open, Mode::RWXU)?;
                self.user.own(&open)
            };
            make().map_err(failed("make", folder))?;
        }
        let devices = Path::new("/dev");
        Ok(folder_at(CWD, devices, Mode::RWXU).map_err(failed("open", devices))?)
    }

    /// Executes it in a PID namespace, whose process 1 it is.
    fn execute_as_first(&self, one: OneThread) -> Result<ExitStatus, JailerError> {
        namespaces::new_pids()?;
        match fork(one).map_err(Error::Process)? {
            Forked::Child => match self.execute()? {},
            Forked::Parent(child) => {
                if let Err(error) = self.note(child) {
                    // Its number would be lost.
                    let _ = kill_process(child, Signal::KILL);
                    return Err(error);
                }
                Ok(ExitStatus::Success)
            }
        }
    }

    fn execute(&self) -> Result<Infallible, JailerError> {
        let at = Path::new("/proc");
        folder_at(CWD, at, FOLDER).map_err(failed("make", at))?;
        mount_processes(at)?;
        user::forget_capabilities().map_err(Error::User)?;
        let program = Path::new("/").join(&self.name);
        let mut command = Command::new(&program);
        // There is no time of a start that the program would report.
        command.args(["--id", self.id, "--start-time-us", "0", "--start-time-cpu-us", "0"]);
        command.args(["--parent-cpu-time-us", "0"]).args(&self.args.rest);
        let source = command.env_clear().gid(self.user.gid).uid(self.user.uid).exec();
        Err(JailerError::Exec { program, source })
    }
}

fn canonical(path: &Path) -> Result<PathBuf, JailerError> {
    path.canonicalize().map_err(|source| JailerError::Path { path: path.to_owned(), source })
}

/// Opened while there is one.
fn open_null(is_wanted: bool) -> Result<Option<fs::File>, JailerError> {
    let open = || fs::File::options().read(true).write(true).open("/dev/null");
    let opened = is_wanted.then(open).transpose();
    opened.map_err(|source| Error::Input { path: "/dev/null".into(), source }.into())
}

fn into_null(null: &fs::File) -> io::Result<()> {
    rustix::stdio::dup2_stdin(null)?;
    rustix::stdio::dup2_stdout(null)?;
    Ok(rustix::stdio::dup2_stderr(null)?)
}

/// Shows the host's CPUs where the host has them.
fn show_cpus(cpus: Option<OwnedFd>) -> Result<(), Error> {
    let Some(cpus) = cpus else { return Ok(()) };
    let at = Path::new(CPUS);
    let folder = folder_at(CWD, at, FOLDER).map_err(failed("make", at))?;
    let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
    let moved = move_mount(&cpus, "", &folder, "", flags).and_then(|()| {
        let flags = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
        mount_remount(at, MountFlags::BIND | MountFlags::RDONLY | flags, c"")
    });
    moved.map_err(|errno| failed("show", at)(errno.into()))
}

/// What has the number of a program's process.
fn pid_file(name: &OsStr) -> OsString {
    let mut file = name.to_owned();
    file.push(".pid");
    file
}

fn note(process: Pid, path: &Path) -> io::Result<()> {
    clear_at(CWD, path)?;
    let mut file = fs::File::create_new(path)?;
    write!(file, "{}", process.as_raw_nonzero())
}

#[cfg(test)]
mod tests;
