//! Starts a command.

use std::ffi::{CString, OsStr};
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::rc::Rc;

use agent::protocol::limits::MAX_WORDS;
use agent::protocol::message::{Exec, Reason, Size};
use agent::protocol::text::Text;
use rustix::fs::{Mode, fchmod, fchown};
use rustix::pipe::{PipeFlags, pipe_with};
use rustix::process::{Pid, PidfdFlags, Rlimit, pidfd_open};
use rustix::pty::{OpenptFlags, grantpt, ioctl_tiocgptpeer, openpt, unlockpt};
use rustix::termios::{InputModes, OptionalActions, Winsize, tcgetattr, tcsetattr, tcsetwinsize};

use crate::sys::child::{Preparation, Step};
use crate::users::{User, Users};

/// Where programs are looked for if the client does not say.
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Why a command did not start.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    /// The request makes no sense.
    #[error("{0}")]
    Malformed(&'static str),
    /// The user.
    #[error("the guest has no user {0}: see its /etc/passwd")]
    User(Text),
    /// No such program.
    #[error(
        "the guest has no program {0} in its PATH, or not the interpreter or loader that it needs"
    )]
    NotFound(String),
    /// The program.
    #[error("{program} cannot be executed in the guest")]
    NotExecutable {
        program: String,
        #[source]
        source: io::Error,
    },
    /// The directory.
    #[error("the working directory {directory} cannot be entered: --cwd names another")]
    Directory {
        directory: String,
        #[source]
        source: io::Error,
    },
    /// The user cannot be assumed.
    #[error("the command cannot run as that user")]
    Identity(#[source] io::Error),
    /// The system refused something else.
    #[error("the guest cannot {0}")]
    System(&'static str, #[source] io::Error),
}

impl Error {
    /// Of which kind it is for the client.
    pub(crate) fn reason(&self) -> Reason {
        match self {
            Self::Malformed(_) => Reason::Malformed,
            Self::NotFound(_) => Reason::NotFound,
            Self::NotExecutable { .. } => Reason::NotExecutable,
            _ => Reason::Failed,
        }
    }
}

/// A command that runs, and the agent's ends of its streams. All of them are non-blocking.
#[derive(Debug)]
pub(crate) struct Spawned {
    pub(crate) pid: Pid,
    pub(crate) pidfd: OwnedFd,
    pub(crate) input: Rc<OwnedFd>,
    pub(crate) outputs: [Option<Rc<OwnedFd>>; 2],
    pub(crate) is_terminal: bool,
}

/// Starts it. `descriptors` is the limit that a command has of them.
///
/// # Errors
/// See [`Error`].
pub(crate) fn spawn(request: &Exec, descriptors: Rlimit) -> Result<Spawned, Error> {
    check(request)?;
    let users = Users::read();
    let user = match &request.user {
        None => users.own(),
        Some(name) => users.find(&name.to_string()).ok_or_else(|| Error::User(name.clone()))?,
    };
    let directory = directory(request, &user);
    let (mut step, failed) = pipe_with(PipeFlags::CLOEXEC)
        .map(|(read, write)| (File::from(read), write))
        .map_err(system("make a pipe"))?;
    let mut command = command(request, &user);
    Preparation {
        terminal: request.terminal.is_some(),
        identity: request.user.is_some().then(|| user.identity.clone()),
        directory: CString::new(directory.clone())
            .map_err(|_| Error::Malformed("the working directory has a NUL"))?,
        descriptors,
        failed,
    }
    .install(&mut command);
    let streams = match request.terminal {
        Some(size) => terminal(&mut command, size, &user)?,
        None => pipes(&mut command)?,
    };
    let child = command.spawn();
    let program = command.get_program().to_string_lossy().into_owned();
    // The child's ends, so that the end of the streams is seen.
    drop(command);
    let child = child.map_err(|source| {
        let mut number = [0];
        let step = step.read_exact(&mut number).ok().and_then(|()| Step::new(number[0]));
        match (step, source.kind()) {
            (Some(Step::Session), _) => Error::System("give the command a session", source),
            (Some(Step::User), _) => Error::Identity(source),
            (Some(Step::Directory), _) => {
                Error::Directory { directory: String::from_utf8_lossy(&directory).into(), source }
            }
            (None, io::ErrorKind::NotFound) => Error::NotFound(program),
            (None, io::ErrorKind::PermissionDenied) => Error::NotExecutable { program, source },
            (None, _) if source.raw_os_error() == Some(libc::ENOEXEC) => {
                Error::NotExecutable { program, source }
            }
            (None, _) => Error::System("start the command", source),
        }
    })?;
    // The process is there until the relay has waited for it: this number is its own.
    let pid = Pid::from_child(&child);
    let pidfd = pidfd_open(pid, PidfdFlags::empty()).map_err(|error| {
        let _ = rustix::process::kill_process_group(pid, rustix::process::Signal::KILL);
        system("watch the command")(error)
    })?;
    let Streams { input, outputs } = streams;
    Ok(Spawned { pid, pidfd, input, outputs, is_terminal: request.terminal.is_some() })
}

fn check(request: &Exec) -> Result<(), Error> {
    let words = request.arguments.len().saturating_add(request.environment.len());
    if words > MAX_WORDS {
        return Err(Error::Malformed("more arguments and variables than the agent takes (4096)"));
    }
    let variables = request.environment.iter();
    let mut all =
        variables.clone().flat_map(|(name, value)| [name, value]).chain(&request.arguments);
    if all.any(Text::has_nul) {
        return Err(Error::Malformed("an argument or a variable has a NUL"));
    }
    let mut names = variables.map(|(name, _)| name.as_bytes());
    if names.any(|name| name.is_empty() || name.contains(&b'=')) {
        return Err(Error::Malformed("a variable has no name, or one with '='"));
    }
    Ok(())
}

/// The user's home is no must where the client has not asked for a directory.
fn directory(request: &Exec, user: &User) -> Vec<u8> {
    match &request.directory {
        Some(directory) => directory.as_bytes().to_vec(),
        None if user.home.is_dir() => user.home.as_os_str().as_bytes().to_vec(),
        None => b"/".to_vec(),
    }
}

fn command(request: &Exec, user: &User) -> Command {
    let os = |text: &Text| OsStr::from_bytes(text.as_bytes()).to_owned();
    let mut command = match request.arguments.split_first() {
        Some((program, arguments)) => {
            let mut command = Command::new(os(program));
            command.args(arguments.iter().map(os));
            command
        }
        None => login_shell(&user.shell),
    };
    command
        .env_clear()
        .env("PATH", PATH)
        .env("HOME", &user.home)
        .env("USER", &user.name)
        .env("LOGNAME", &user.name)
        .env("SHELL", &user.shell)
        .envs(request.environment.iter().map(|(name, value)| (os(name), os(value))));
    command
}

/// A shell reads the user's profile if its name begins with a dash.
fn login_shell(shell: &Path) -> Command {
    let mut command = Command::new(shell);
    let name = shell.file_name().unwrap_or(shell.as_os_str());
    let mut dashed = std::ffi::OsString::from("-");
    dashed.push(name);
    command.arg0(dashed);
    command
}

struct Streams {
    input: Rc<OwnedFd>,
    outputs: [Option<Rc<OwnedFd>>; 2],
}

fn pipes(command: &mut Command) -> Result<Streams, Error> {
    let pipe = || pipe_with(PipeFlags::CLOEXEC).map_err(system("make a pipe"));
    let own = |end: OwnedFd| -> Result<Rc<OwnedFd>, Error> {
        rustix::io::ioctl_fionbio(&end, true).map_err(system("set up a pipe"))?;
        Ok(Rc::new(end))
    };
    let (theirs, input) = pipe()?;
    let (output, their_output) = pipe()?;
    let (errors, their_errors) = pipe()?;
    command.stdin(Stdio::from(theirs)).stdout(Stdio::from(their_output)).stderr(their_errors);
    Ok(Streams { input: own(input)?, outputs: [Some(own(output)?), Some(own(errors)?)] })
}

fn terminal(command: &mut Command, size: Size, user: &User) -> Result<Streams, Error> {
    let make = || -> rustix::io::Result<(OwnedFd, OwnedFd)> {
        let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
        let master = openpt(flags)?;
        grantpt(&master)?;
        unlockpt(&master)?;
        let terminal = ioctl_tiocgptpeer(&master, flags)?;
        tcsetwinsize(&terminal, winsize(size))?;
        // The line editor of the kernel removes a whole character of UTF-8.
        let mut modes = tcgetattr(&terminal)?;
        modes.input_modes |= InputModes::IUTF8;
        tcsetattr(&terminal, OptionalActions::Now, &modes)?;
        // Programs open it by its name, too (ttyname(3)).
        if user.identity.user != rustix::process::geteuid() {
            fchown(&terminal, Some(user.identity.user), None)?;
            fchmod(&terminal, Mode::from_raw_mode(0o620))?;
        }
        rustix::io::ioctl_fionbio(&master, true)?;
        Ok((master, terminal))
    };
    let (master, terminal) =
        make().map_err(system("give the command a terminal (is /dev/pts mounted?)"))?;
    let clone = || terminal.as_fd().try_clone_to_owned();
    let (input, output) = clone()
        .and_then(|input| Ok((input, clone()?)))
        .map_err(|error| Error::System("give the command a terminal", error))?;
    command.stdin(Stdio::from(input)).stdout(Stdio::from(output)).stderr(terminal);
    let master = Rc::new(master);
    Ok(Streams { input: Rc::clone(&master), outputs: [Some(master), None] })
}

pub(super) fn winsize(size: Size) -> Winsize {
    Winsize { ws_row: size.rows, ws_col: size.columns, ws_xpixel: 0, ws_ypixel: 0 }
}

fn system(what: &'static str) -> impl Fn(rustix::io::Errno) -> Error {
    move |error| Error::System(what, error.into())
}
