//! An agent and the vsock socket of the VM that it would be in.

use std::fs;
use std::io::{self, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::SystemTime;

use rustix::event::{PollFd, PollFlags, poll};
use tempfile::TempDir;

use super::common::until;

/// A guest, as far as it can be reached over vsock.
pub(crate) struct Guest {
    pub(crate) folder: TempDir,
    agent: Child,
    /// Connections that are to be refused before one is accepted.
    refusals: Arc<AtomicUsize>,
}

impl Guest {
    /// A guest with an agent that listens.
    pub(crate) fn start() -> Self {
        Self::booting(0)
    }

    /// A guest that refuses so many connections before its agent listens.
    pub(crate) fn booting(refusals: usize) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let agent = start_agent(&folder.path().join("agent"));
        let refusals = Arc::new(AtomicUsize::new(refusals));
        let muxer = UnixListener::bind(folder.path().join("vsock")).unwrap();
        let (path, left) = (folder.path().to_owned(), Arc::clone(&refusals));
        thread::spawn(move || {
            for stream in muxer.incoming().map_while(Result::ok) {
                let refuse = |left: usize| left.checked_sub(1);
                let is_refused =
                    left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, refuse).is_ok();
                let path = path.clone();
                thread::spawn(move || {
                    if !is_refused {
                        serve(stream, &path)
                    }
                });
            }
        });
        Self { folder, agent, refusals }
    }

    pub(crate) fn vsock(&self) -> PathBuf {
        self.folder.path().join("vsock")
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// How many connections are still to be refused.
    pub(crate) fn refusals_left(&self) -> usize {
        self.refusals.load(Ordering::Relaxed)
    }

    /// The VM as `tesseractl` is given it.
    pub(crate) fn name(&self) -> String {
        format!("vsock:{}", self.vsock().display())
    }

    /// The process of the agent.
    pub(crate) fn agent(&self) -> u32 {
        self.agent.id()
    }

    pub(crate) fn kill_agent(&mut self) {
        self.agent.kill().unwrap();
        self.agent.wait().unwrap();
    }

    /// `tesseractl COMMAND vsock:PATH`, with the arguments that follow.
    pub(crate) fn command(&self, command: &str, arguments: &[&str]) -> Command {
        let mut tesseractl = Command::new(env!("CARGO_BIN_EXE_tesseractl"));
        tesseractl.arg(command).arg(self.name()).args(arguments);
        tesseractl.stdin(Stdio::null());
        tesseractl
    }

    pub(crate) fn run(&self, command: &str, arguments: &[&str]) -> Output {
        self.command(command, arguments).output().unwrap()
    }

    /// Runs a script of the guest's shell.
    pub(crate) fn sh(&self, script: &str) -> Output {
        self.run("exec", &["--", "sh", "-c", script])
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        // Commands outlive their clients: none is left behind, of a test that has failed either.
        for command in children(self.agent()) {
            let _ = rustix::process::kill_process_group(command, rustix::process::Signal::KILL);
        }
        let _ = self.agent.kill();
        let _ = self.agent.wait();
    }
}

/// The processes that the threads of a process have started.
fn children(pid: u32) -> Vec<rustix::process::Pid> {
    let threads = fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten();
    let lists =
        threads.filter_map(|thread| fs::read_to_string(thread.ok()?.path().join("children")).ok());
    let all = lists.collect::<Vec<_>>().join(" ");
    all.split_whitespace()
        .filter_map(|child| rustix::process::Pid::from_raw(child.parse().ok()?))
        .collect()
}

/// The agent beside `tesseractl`: cargo builds it for the tests of its own package.
fn agent_program() -> PathBuf {
    let program = Path::new(env!("CARGO_BIN_EXE_tesseractl")).with_file_name("tessera-agent");
    let built = fs::metadata(&program).and_then(|file| file.modified()).ok();
    let sources = newest(&Path::new(env!("CARGO_MANIFEST_DIR")).join("../agent/src"));
    assert!(
        built.is_some_and(|built| built >= sources),
        "{} is missing or older than its source: cargo build -p tessera-agent",
        program.display()
    );
    program
}

fn newest(folder: &Path) -> SystemTime {
    let entries = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    let times = entries.map(|path| match path.is_dir() {
        true => newest(&path),
        false => fs::metadata(path).unwrap().modified().unwrap(),
    });
    times.max().unwrap()
}

fn start_agent(socket: &Path) -> Child {
    let agent = Command::new(agent_program())
        .args(["--no-clock", "--no-power-key", "--listen"])
        .arg(format!("unix:{}", socket.display()))
        .stdin(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    until("the agent listens", || UnixStream::connect(socket).ok());
    agent
}

/// One connection of a client: the handshake, then bytes both ways, half-closes included.
fn serve(mut client: UnixStream, folder: &Path) {
    let mut line = Vec::new();
    let mut byte = [0];
    while !line.ends_with(b"\n") {
        match client.read(&mut byte) {
            Ok(1) if line.len() < 32 => line.push(byte[0]),
            _ => return,
        }
    }
    let Some(port) = std::str::from_utf8(&line).ok().and_then(|line| line.strip_prefix("CONNECT "))
    else {
        return;
    };
    let name =
        if port.trim() == "1024" { "agent".to_owned() } else { format!("port{}", port.trim()) };
    let Ok(guest) = UnixStream::connect(folder.join(name)) else { return };
    client.write_all(b"OK 1073741824\n").unwrap();
    let (mut from, mut to) = (client.try_clone().unwrap(), guest.try_clone().unwrap());
    thread::spawn(move || {
        let _ = io::copy(&mut from, &mut to);
        let _ = to.shutdown(Shutdown::Write);
    });
    let (mut from, mut to) = (guest, client);
    // Where the client has gone, so has the connection.
    if io::copy(&mut from, &mut to).is_err() {
        let _ = from.shutdown(Shutdown::Both);
    }
    let _ = to.shutdown(Shutdown::Write);
    // A guest that has closed both directions resets the connection.
    let _ = poll(&mut [PollFd::new(&from, PollFlags::empty())], None);
    let _ = to.shutdown(Shutdown::Both);
}

pub(crate) fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// A signal to a process.
pub(crate) fn signal(pid: u32, signal: rustix::process::Signal) {
    let pid = rustix::process::Pid::from_raw(pid.try_into().unwrap()).unwrap();
    rustix::process::kill_process(pid, signal).unwrap();
}

/// Whether a process runs: it is there and no zombie.
pub(crate) fn runs(pid: u32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit(") ").next().is_some_and(|rest| !rest.is_empty() && !rest.starts_with(['Z', 'X']))
}

/// Memory of a process that is its own, in KiB.
pub(crate) fn anonymous_kib(pid: u32) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:")).unwrap();
    line.trim().trim_end_matches(" kB").parse().unwrap()
}
