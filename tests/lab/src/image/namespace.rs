//! Runs a script as root of a user namespace of its own: it makes files of all owners, mounts and registers binary
//! formats there, and nothing outside of the namespace changes.
//!
//! The namespace has the user numbers 0 to 65535 (user_namespaces(7)). Root maps them to themselves; any other user
//! to itself and to the numbers that /etc/subuid and /etc/subgid give it, through the programs of the package uidmap.

use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{self, BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, ExitStatus, Stdio};

use rustix::process::geteuid;

use crate::child::{Group, spawn_tied};
use crate::interrupt::{Interrupt, Interrupted};

/// How many user numbers Debian's packages may use (Debian policy, 9.2.2).
const IDS: u32 = 1 << 16;
/// What the namespace's first program prints when it runs.
const READY: &str = "@ready";
/// What begins a line that says what the script does.
const STEP: &str = "@step ";
/// Lines of output that an error carries.
const TAIL: usize = 15;
/// The first program waits for its user numbers. Then it is root, and makes the other namespaces, which end with
/// what runs in them. It ends that when it is asked to end, and with its input: the kernel's tie to a parent
/// (prctl(2), `PR_SET_PDEATHSIG`) is lost when a process gets capabilities, as it does here. The shell gives a
/// program in the background another input, hence descriptor 3.
const FIRST: &str = r#"
exec 2>&1 3<&0
trap 'kill -KILL ${child:-$!}; exit 143' TERM
echo @ready
read go || exit 1
unshare --mount --pid --fork --kill-child --mount-proc sh "$1" </dev/null 3<&- &
child=$!
{ cat <&3; kill -KILL $child; } >/dev/null 2>&1 &
watcher=$!
wait $child
status=$?
kill $watcher
exit $status
"#;

/// Why a script cannot be run, or failed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    /// There is no unshare(1), or no process more.
    #[error("cannot start unshare: install the package util-linux")]
    Start(#[source] io::Error),
    /// The kernel refuses user namespaces.
    #[error(
        "no user namespace can be made here ({said}): the kernel or a container forbids it; run make image on a machine that allows unshare --user"
    )]
    Refused {
        /// What unshare said.
        said: String,
    },
    /// No user numbers of the user's.
    #[error(
        "{file} gives '{user}' no {IDS} numbers: run, as root, usermod --add-subuids 100000-165535 --add-subgids 100000-165535 {user}"
    )]
    NoNumbers {
        /// The list.
        file: &'static str,
        /// The user's name.
        user: String,
    },
    /// The numbers cannot be set.
    #[error("cannot give the namespace its user numbers ({said})")]
    Map {
        /// What the program or the kernel said.
        said: String,
    },
    /// The script failed.
    #[error("{what} failed ({status}); all it said is in {log}, and in the end:\n{tail}")]
    Failed {
        /// What the script was at.
        what: String,
        /// How it ended.
        status: ExitStatus,
        /// The file with all output.
        log: PathBuf,
        /// The last lines.
        tail: String,
    },
    /// The log.
    #[error("cannot write {path}: check the space left and the permissions")]
    Log {
        /// The file.
        path: PathBuf,
        /// The system's reason.
        #[source]
        source: io::Error,
    },
    /// Ctrl-C.
    #[error(transparent)]
    Interrupted(#[from] Interrupted),
}

/// A script and what it needs.
pub(crate) struct Job<'a> {
    /// The text of the script.
    pub(crate) script: String,
    /// Variables for it.
    pub(crate) environment: Vec<(&'static str, OsString)>,
    /// The file for its output; the script goes beside it.
    pub(crate) log: &'a Path,
}

/// A line of a script's output.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Line<'a> {
    /// What it does from here on.
    Step(&'a str),
    /// Anything else.
    Output(&'a str),
}

/// Runs the script to its end; `see` gets its output line by line.
///
/// # Errors
/// When it cannot be run or fails, and on Ctrl-C.
pub(crate) fn run(
    job: &Job<'_>,
    interrupt: &Interrupt,
    mut see: impl FnMut(Line<'_>),
) -> Result<(), Error> {
    interrupt.check()?;
    let unwritable = |source| Error::Log { path: job.log.to_owned(), source };
    let mut log = File::create(job.log).map_err(unwritable)?;
    let script = job.log.with_extension("sh");
    fs::write(&script, &job.script)
        .map_err(|source| Error::Log { path: script.clone(), source })?;
    let mut command = Command::new("unshare");
    command
        .args(["--user", "--", "sh", "-c", FIRST, "sh"])
        .arg(&script)
        .envs(job.environment.iter().map(|(name, value)| (name, value)))
        .env("LC_ALL", "C.UTF-8")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(log.try_clone().map_err(unwritable)?);
    let mut child = spawn_tied(&mut command, Group::Own).map_err(Error::Start)?;
    let watch = interrupt.watch(&child);
    let mut what = "a user namespace".to_owned();
    let mut tail = Vec::new();
    let mut up = false;
    let mut mapped = Ok(None);
    for line in child.stdout.take().into_iter().flat_map(|out| BufReader::new(out).split(b'\n')) {
        let line = line.unwrap_or_default();
        let line = String::from_utf8_lossy(&line);
        if !up && line == READY {
            up = true;
            mapped = admit(&mut child);
            continue;
        }
        writeln!(log, "{line}").map_err(unwritable)?;
        if let Some(step) = line.strip_prefix(STEP) {
            what = step.to_owned();
            see(Line::Step(step));
            continue;
        }
        see(Line::Output(&line));
        tail.push(line.into_owned());
        if tail.len() > TAIL {
            tail.remove(0);
        }
    }
    drop(watch);
    let status = child.wait().map_err(Error::Start)?;
    interrupt.check()?;
    drop(mapped?);
    if !up {
        let said = fs::read_to_string(job.log).unwrap_or_default();
        return Err(Error::Refused { said: said.trim().to_owned() });
    }
    match status.success() {
        true => Ok(()),
        false => {
            Err(Error::Failed { what, status, log: job.log.to_owned(), tail: tail.join("\n") })
        }
    }
}

/// Gives the child's namespace its user numbers and lets the child begin. It ends with its input, which is returned.
fn admit(child: &mut Child) -> Result<Option<ChildStdin>, Error> {
    let mut input = child.stdin.take();
    map(child.id())?;
    if let Some(input) = &mut input {
        // A child that has ended has a status.
        let _ = input.write_all(b"go\n");
    }
    Ok(input)
}

fn map(child: u32) -> Result<(), Error> {
    if geteuid().is_root() {
        for file in ["uid_map", "gid_map"] {
            fs::write(format!("/proc/{child}/{file}"), format!("0 0 {IDS}\n"))
                .map_err(|error| Error::Map { said: format!("{file}: {error}") })?;
        }
        return Ok(());
    }
    let number = geteuid().as_raw().to_string();
    // A user may have no name.
    let user = said_by("id", &["-un"]).unwrap_or_else(|_| number.clone());
    for (file, program, own) in
        [("/etc/subuid", "newuidmap", "-u"), ("/etc/subgid", "newgidmap", "-g")]
    {
        let own = said_by("id", &[own])?;
        let text = fs::read_to_string(file).unwrap_or_default();
        let first = first_number(&text, [&user, &number])
            .ok_or_else(|| Error::NoNumbers { file, user: user.clone() })?;
        let rest = (IDS - 1).to_string();
        let child = child.to_string();
        said_by(program, &[&child, "0", &own, "1", "1", &first.to_string(), &rest])?;
    }
    Ok(())
}

/// The first number of a range in subuid(5) that belongs to a user of one of these names and is large enough.
fn first_number(text: &str, names: [&str; 2]) -> Option<u32> {
    text.lines().find_map(|line| {
        let mut fields = line.trim().split(':');
        let name = fields.next()?;
        let (first, count) = (fields.next()?.parse().ok()?, fields.next()?.parse::<u32>().ok()?);
        (names.contains(&name) && count >= IDS - 1).then_some(first)
    })
}

fn said_by(program: &str, arguments: &[&str]) -> Result<String, Error> {
    let output = Command::new(program).args(arguments).stdin(Stdio::null()).output();
    let output = output.map_err(|error| Error::Map { said: format!("{program}: {error}") })?;
    match output.status.success() {
        true => Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned()),
        false => {
            Err(Error::Map { said: String::from_utf8_lossy(&output.stderr).trim().to_owned() })
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn a_script_ends_with_the_process_that_runs_it() {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        // Namespaces may be forbidden here, and make no difference to this.
        let unshare = "#!/bin/sh\nwhile [ \"${1#--}\" != \"$1\" ]; do shift; done\nexec \"$@\"\n";
        fs::write(path("unshare"), unshare).unwrap();
        fs::set_permissions(path("unshare"), fs::Permissions::from_mode(0o755)).unwrap();
        fs::write(path("script"), "echo begun; exec sleep 1000\n").unwrap();
        let search = format!("{}:{}", folder.path().display(), std::env::var("PATH").unwrap());
        let mut first = Command::new("sh")
            .args(["-c", FIRST, "sh"])
            .arg(path("script"))
            .env("PATH", search)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut input = first.stdin.take().unwrap();
        let mut lines = BufReader::new(first.stdout.take().unwrap()).lines();
        assert_eq!(lines.next().unwrap().unwrap(), READY);
        input.write_all(b"go\n").unwrap();
        assert_eq!(lines.next().unwrap().unwrap(), "begun");

        // As when the process at the other end is killed.
        drop(input);

        // The script holds the other end of the output, to which the shell still says how the script ended.
        lines.for_each(drop);
        assert!(!first.wait().unwrap().success());
    }

    #[test]
    fn ranges_are_found_by_name_or_number_and_size() {
        let text = "other:100000:65536\nme:1:100\n1000:200000:65536\nbroken\nme:x:65536\n";

        assert_eq!(first_number(text, ["me", "1000"]), Some(200_000));
        assert_eq!(first_number(text, ["other", "1"]), Some(100_000));
        assert_eq!(first_number(text, ["me", "1"]), None);
    }
}
