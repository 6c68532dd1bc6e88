//! A VM in the background: `tessera run` in a session of its own, with its sockets and its log where this program
//! finds them.

mod folder;
pub(crate) mod spawn;
mod words;

use std::ffi::OsString;
use std::path::PathBuf;
use std::process::{Child, ExitStatus};
use std::time::{Duration, Instant};

use agent::protocol::message::Operation;
use serde_json::{Value, json};
use vmm::api::model::State;
use vmm::config::SnapshotFiles;
use vmm::error::printable;
use vmm::registry::Directory;
use vmm::run::saved_config;

use self::folder::Folder;
pub(crate) use self::folder::LOG;
use crate::cli::{Awaited, RunCommand};
use crate::client::{Client, Error};
use crate::failure::Failure;
use crate::fleet::PATIENCE;
use crate::guest::connect::Vsock;
use crate::output::{Form, printable_lines};
use crate::waiting::Waiting;

/// Between two looks at a VM that starts: short beside what a start takes.
const PAUSE: Duration = Duration::from_millis(10);

/// Starts a VM, and waits until its guest runs; the exit status of `tessera run` if it does not.
///
/// # Errors
/// When it cannot be started, or has not in time.
pub fn run(args: &RunCommand, form: Form) -> Result<u8, Failure> {
    match start(args, std::env::args_os().collect())? {
        Outcome::Started { answer, text } => {
            form.show(&answer, |_| text)?;
            Ok(0)
        }
        Outcome::Ended(status) => Ok(status),
    }
}

/// What has become of a VM.
pub(crate) enum Outcome {
    /// It has started.
    Started {
        /// What it is, and where.
        answer: Value,
        /// The same for people.
        text: String,
    },
    /// It has ended with this exit status, and its messages were passed on.
    Ended(u8),
}

/// Starts the VM of a command line and waits for it.
pub(crate) fn start(args: &RunCommand, command_line: Vec<OsString>) -> Result<Outcome, Failure> {
    let program = spawn::program(args.start.tessera.as_deref())?;
    let folder = Folder::take(args.vm.id.as_deref())?;
    let paths = Paths::of(args, &folder)?;
    let words = words::passed_on(command_line, args, &folder, &paths);
    let child = spawn::spawn(&program, &words, folder.create_log()?)?;
    let mut start = Start { child, folder, paths, deadline: Instant::now() + args.start.timeout };
    let waiting = Waiting::on(format!("{} is to start", start.folder.name()));
    let end = start.wait(args);
    drop(waiting);
    let state = match end {
        Ok(state) => state,
        Err(Ended::Itself(status)) => return Ok(Outcome::Ended(start.report(status))),
        Err(Ended::InVain(failure)) => return Err(failure),
    };
    start.say_if_unlisted();
    let (name, pid) = (start.folder.name(), start.child.id());
    let answer = json!({
        "name": name,
        "pid": pid,
        "state": state,
        "api_sock": start.paths.api_sock,
        "vsock": start.paths.vsock,
        "log": start.folder.log(),
    });
    let text = match state {
        State::NotStarted => format!("{name} waits to be configured (pid {pid})\n"),
        State::Paused => format!("{name} is paused (pid {pid})\n"),
        State::Running => format!("{name} runs (pid {pid})\n"),
    };
    Ok(Outcome::Started { answer, text })
}

/// Where the VM is reached.
struct Paths {
    api_sock: PathBuf,
    /// Unless the user's configuration has one that is not known here.
    vsock: Option<PathBuf>,
    has_serial: bool,
    /// It may be given a path for its vsock device.
    takes_vsock: bool,
    /// It starts by itself: there is a kernel, or a snapshot.
    has_kernel: bool,
}

impl Paths {
    fn of(args: &RunCommand, folder: &Folder) -> Result<Self, Failure> {
        let absolute = |path: PathBuf| std::path::absolute(&path).unwrap_or(path);
        // What is wrong with a configuration is said by the program that uses it.
        let config = args.vm.merge().unwrap_or_default();
        let saved = args.vm.restore.as_deref().map(SnapshotFiles::in_folder);
        let saved = saved.and_then(|files| saved_config(&files).ok());
        let vsock = config.vsock.map(|vsock| vsock.uds_path);
        let boot = config.boot_source.and_then(|boot| boot.kernel_image_path);
        Ok(Self {
            api_sock: absolute(args.vm.api_sock.clone().unwrap_or_else(|| folder.join("api"))),
            vsock: vsock.map(absolute),
            has_serial: config.serial.is_some(),
            takes_vsock: saved.is_none_or(|saved| saved.vsock.is_some()),
            has_kernel: boot.is_some() || args.vm.restore.is_some(),
        })
    }
}

/// Why a VM is not waited for any longer.
enum Ended {
    Itself(ExitStatus),
    InVain(Failure),
}

/// A VM that starts.
struct Start {
    child: Child,
    folder: Folder,
    paths: Paths,
    deadline: Instant,
}

impl Start {
    fn wait(&mut self, args: &RunCommand) -> Result<State, Ended> {
        let mut reason = "its control socket is not there yet".to_owned();
        let state = loop {
            match self.state() {
                Ok(State::NotStarted) if self.paths.has_kernel => {
                    reason = "its guest is still being loaded".to_owned();
                }
                Ok(state) => break state,
                Err(Error::Unreachable { .. }) => {}
                Err(error) => reason = Failure::from(error).message,
            }
            self.pause(&reason)?;
        };
        if args.start.wait == Awaited::Agent && state != State::NotStarted {
            let vsock =
                Vsock::at(self.paths.vsock.as_deref().unwrap_or(&self.folder.join("vsock")));
            while let Err(error) = vsock.operate(Operation::Info, PATIENCE) {
                self.pause(&error.line())?;
            }
        }
        Ok(state)
    }

    fn state(&self) -> Result<State, Error> {
        Ok(Client::connect(&self.paths.api_sock, PATIENCE)?.instance()?.state)
    }

    /// Lets time pass, unless it is over or the VM has ended.
    fn pause(&mut self, reason: &str) -> Result<(), Ended> {
        let (pid, name) = (self.child.id(), self.folder.name());
        match self.child.try_wait() {
            Ok(Some(status)) => return Err(Ended::Itself(status)),
            Ok(None) => {}
            Err(error) => {
                return Err(Ended::InVain(Failure::refused(format!(
                    "cannot wait for process {pid}: {error}"
                ))));
            }
        }
        if Instant::now() >= self.deadline {
            return Err(Ended::InVain(Failure::refused(format!(
                "{name} (pid {pid}) has not started in time and still tries: {reason}; `tesseractl logs {name}` shows \
                 its messages, `tesseractl kill {name}` ends it"
            ))));
        }
        std::thread::sleep(PAUSE);
        Ok(())
    }

    /// Says of a VM that could write no entry how it is reached, and what it has said.
    fn say_if_unlisted(&self) {
        let (directory, name) = (Directory::open().ok().flatten(), self.folder.name());
        if directory.is_some_and(|directory| directory.find(&name).is_some()) {
            return;
        }
        eprint!("{}", printable_lines(&self.folder.messages()));
        let socket = printable(&self.paths.api_sock.display().to_string());
        crate::output::say(&format!(
            "{name} has no entry in the registry, so that no command finds it by name: name its control socket, {socket}"
        ));
    }

    /// Passes on what a VM has said that has not started; its exit status.
    fn report(self, status: ExitStatus) -> u8 {
        use std::os::unix::process::ExitStatusExt;

        let messages = self.folder.messages();
        // As the program itself would have.
        eprint!("{}", printable_lines(&messages));
        if messages.trim().is_empty() {
            crate::output::say(&format!("tessera ended without a message: {status}"));
        }
        self.folder.remove();
        match (status.code(), status.signal()) {
            // It has ended, if in order: `run` promises that it runs.
            (Some(code), _) => u8::try_from(code).unwrap_or(1),
            (None, signal) => 128_u8.saturating_add(u8::try_from(signal.unwrap_or(0)).unwrap_or(0)),
        }
    }
}

impl Folder {
    /// The log's end, as much as a terminal shows.
    fn messages(&self) -> String {
        const LONGEST: usize = 16 << 10;

        let text = std::fs::read(self.log()).unwrap_or_default();
        let start = text.len().saturating_sub(LONGEST);
        String::from_utf8_lossy(&text[start..]).into_owned()
    }
}
