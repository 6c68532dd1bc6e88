//! A guest under `tessera run`: started, listened to, controlled, ended.

use std::io::{BufRead, BufReader, Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use serde_json::Value;
use tesseractl::client::Client;

use crate::lab::{artifact, program};
use crate::scratch::Scratch;
use crate::wait::{PATIENCE, TURNS, until};

/// The start of a line in which the guest's init reports something as JSON.
const REPORT: &str = "REPORT ";

/// What the command line of a [`Plan::workload`] begins with: words that leave out of the guest's boot what no test
/// looks at (Documentation/admin-guide/kernel-parameters.txt). Of a boot with all of it, in instructions:
///
/// - half are the kernel's tests of its ciphers (`cryptomgr.notests`);
/// - a tenth a source of random numbers that measures jitter (`jent_mod_init`);
/// - a tenth the kernel's keys and the check of the signature of each module (`load_system_certificate_list`): without
///   keys, modules are loaded unchecked;
/// - a tenth the names of numbers in trace events (`trace_eval_init`).
pub const QUICK: &str = "quiet cryptomgr.notests \
    initcall_blacklist=jent_mod_init,load_system_certificate_list,trace_eval_init";

/// Words for [`Guest::tesseractl`] that have a guest power off, for which it has two minutes.
pub const STOP: &[&str] = &["stop", "--timeout", "120"];

/// Lines of a guest's console that a failed test shows.
const LAST_LINES: usize = 40;

/// A guest to be started.
#[derive(Clone, Debug)]
#[must_use]
pub struct Plan {
    kernel: Option<PathBuf>,
    initrd: Option<PathBuf>,
    command_line: String,
    flags: Vec<String>,
    variables: Vec<(String, String)>,
}

impl Plan {
    /// The lab's kernel and init, which runs a workload: see tests/guest. It boots as [`QUICK`] says.
    pub fn workload(name: &str) -> Self {
        Self { command_line: format!("{QUICK} workload={name}"), ..Self::whole(name) }
    }

    /// The same with all of the kernel's boot, which is four times the instructions: for tests of the boot.
    pub fn whole(name: &str) -> Self {
        Self {
            kernel: Some(artifact("Image")),
            initrd: Some(artifact("initrd.cpio")),
            command_line: format!("quiet workload={name}"),
            flags: Vec::new(),
            variables: Vec::new(),
        }
    }

    /// A guest in which the agent runs, reached through the vsock socket that its VM says; `scratch` is to live
    /// as long as the guest.
    ///
    /// # Panics
    /// When the lab has no agent.
    pub fn agent(scratch: &Scratch) -> Self {
        Self::with_sockets("agent", scratch)
    }

    /// A guest that runs a workload of sockets, reached through `vsock` in `scratch`, which is to live as long as the
    /// guest.
    ///
    /// # Panics
    /// When the lab has no agent.
    pub fn with_sockets(workload: &str, scratch: &Scratch) -> Self {
        // One archive after the other is one initramfs.
        let initrd = scratch.join("initrd");
        let archives =
            ["initrd.cpio", "agent.cpio"].map(|name| std::fs::read(artifact(name)).unwrap());
        std::fs::write(&initrd, archives.concat()).unwrap();
        let socket = scratch.join("vsock");
        Self::workload(workload).initrd(&initrd).with("--vsock", socket.to_str().unwrap())
    }

    /// A kernel that needs nothing else.
    pub fn bare(kernel: &Path) -> Self {
        Self {
            kernel: Some(kernel.to_owned()),
            initrd: None,
            command_line: String::new(),
            flags: Vec::new(),
            variables: Vec::new(),
        }
    }

    /// None that is named: the VM waits for a client of its control socket to configure and start it.
    pub fn waiting() -> Self {
        Self {
            kernel: None,
            initrd: None,
            command_line: String::new(),
            flags: Vec::new(),
            variables: Vec::new(),
        }
    }

    /// The guest of a snapshot.
    ///
    /// # Panics
    /// When the path is not UTF-8.
    pub fn restore(folder: &Path) -> Self {
        Self::waiting().with("--restore", folder.to_str().unwrap())
    }

    /// Another initrd.
    pub fn initrd(mut self, file: &Path) -> Self {
        self.initrd = Some(file.to_owned());
        self
    }

    /// Another kernel.
    pub fn kernel(mut self, file: &Path) -> Self {
        self.kernel = Some(file.to_owned());
        self
    }

    /// More words of the guest's command line.
    pub fn append(mut self, words: &str) -> Self {
        self.command_line = format!("{} {words}", self.command_line);
        self
    }

    /// A flag of `tessera run` with its value.
    pub fn with(mut self, flag: &str, value: &str) -> Self {
        self.flags.extend([flag.to_owned(), value.to_owned()]);
        self
    }

    /// A flag of `tessera run` that has no value.
    pub fn flag(mut self, flag: &str) -> Self {
        self.flags.push(flag.to_owned());
        self
    }

    /// A variable of its environment.
    pub fn env(mut self, name: &str, value: &str) -> Self {
        self.variables.push((name.to_owned(), value.to_owned()));
        self
    }

    /// The command that starts it.
    pub fn command(&self) -> Command {
        let mut command = Command::new(program("tessera"));
        command.arg("run");
        if let Some(kernel) = &self.kernel {
            command.arg("--kernel").arg(kernel).args(["--cmdline", &self.command_line]);
        }
        if let Some(initrd) = &self.initrd {
            command.arg("--initrd").arg(initrd);
        }
        command.args(&self.flags);
        // Tests save guests in folders of their own.
        if !self.flags.iter().any(|flag| flag == "--allow") {
            command.arg("--allow").arg(std::env::temp_dir());
        }
        let variables = self.variables.iter();
        command.envs(variables.map(|(name, value)| (name, value)));
        command
    }

    /// Starts it, its console on pipes, its control socket in a folder of its own unless a flag names one.
    pub fn start(self) -> Guest {
        let scratch = Scratch::new();
        let mut command = self.command();
        let given = self.flags.iter().position(|flag| flag == "--api-sock");
        let socket = match given.and_then(|at| self.flags.get(at + 1)) {
            Some(socket) => PathBuf::from(socket),
            None => {
                let socket = scratch.join("api.sock");
                command.arg("--api-sock").arg(&socket);
                socket
            }
        };
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("tessera");
        let (sender, lines) = channel();
        let stdout = child.stdout.take().unwrap();
        let reader = std::thread::spawn(move || {
            let mut reader = BufReader::new(stdout);
            let mut line = Vec::new();
            while reader.read_until(b'\n', &mut line).is_ok_and(|n| n > 0) {
                let text = String::from_utf8_lossy(&line).trim_end().to_owned();
                line.clear();
                if sender.send(text).is_err() {
                    break;
                }
            }
        });
        let stdin = child.stdin.take();
        Guest {
            child,
            stdin,
            lines,
            reader: Some(reader),
            seen: Vec::new(),
            socket,
            _scratch: scratch,
        }
    }

    /// Starts it and waits for its end.
    pub fn run(self) -> Finished {
        self.start().finish()
    }
}

/// A guest that runs.
pub struct Guest {
    child: Child,
    stdin: Option<ChildStdin>,
    lines: Receiver<String>,
    reader: Option<JoinHandle<()>>,
    seen: Vec<String>,
    socket: PathBuf,
    _scratch: Scratch,
}

/// What is left of a guest.
#[derive(Debug)]
pub struct Finished {
    /// The VMM's exit status; `None` if a signal ended it.
    pub code: Option<i32>,
    /// The guest's console, line by line.
    pub console: Vec<String>,
    /// What the VMM said on standard error.
    pub messages: String,
}

impl Guest {
    /// The VMM's process.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// `tesseractl` for this VM: a verb, with the options and arguments that follow the VM.
    pub fn tesseractl(&self, words: &[&str]) -> Command {
        let (verb, rest) = words.split_first().expect("a verb");
        let mut command = Command::new(program("tesseractl"));
        command.arg(verb).arg(self.socket()).args(rest).stdin(Stdio::null());
        command
    }

    /// `tesseractl exec` for a command of the guest's shell. The guest may still boot: its agent has two minutes.
    pub fn shell(&self, script: &str) -> Command {
        self.tesseractl(&["exec", "--timeout", "120", "--", "sh", "-c", script])
    }

    /// What a command of the guest's shell says, which succeeds.
    pub fn sh(&self, script: &str) -> String {
        let output = self.shell(script).output().unwrap();
        assert!(output.status.success(), "{script}: {output:?}");
        String::from_utf8(output.stdout).unwrap().trim().to_owned()
    }

    /// The control socket.
    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// A client of the control socket.
    pub fn client(&self) -> Client {
        Client::connect(&self.socket, PATIENCE).unwrap()
    }

    /// Waits until the VMM answers on its control socket: it has loaded what its guest starts with, or waits for a
    /// client to say what that is. The socket is there before, and connections wait. Or until the VMM has ended.
    ///
    /// # Panics
    /// When it takes too long.
    pub fn answers(&self) {
        until("an answer on the control socket", || {
            let client = Client::connect(&self.socket, PATIENCE);
            let answered = client.is_ok_and(|mut client| client.instance().is_ok());
            (answered || self.has_ended()).then_some(())
        });
    }

    /// Waits until the guest's agent answers. What connects before a restored guest knows that its connections have ended
    /// may end with them.
    ///
    /// # Panics
    /// When it takes too long.
    pub fn agent_answers(&self) {
        let exec = || self.tesseractl(&["exec", "--timeout", "60", "--", "true"]).status().unwrap();
        until("an answer of the agent", || exec().success().then_some(()));
    }

    /// Whether the VMM has ended (proc_pid_stat(5): its state, behind its name in parentheses).
    fn has_ended(&self) -> bool {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.pid()));
        stat.is_ok_and(|stat| stat.rsplit(") ").next().is_some_and(|rest| rest.starts_with('Z')))
    }

    /// Types something on the guest's console.
    ///
    /// # Panics
    /// When the VMM has gone.
    pub fn type_line(&mut self, text: &str) {
        let stdin = self.stdin.as_mut().unwrap();
        writeln!(stdin, "{text}").unwrap();
        stdin.flush().unwrap();
    }

    /// The next line of the guest's console.
    ///
    /// # Panics
    /// When there is none by the deadline.
    pub fn line(&mut self) -> Option<String> {
        match self.lines.recv_timeout(PATIENCE) {
            Ok(line) => {
                self.seen.push(line.clone());
                Some(line)
            }
            Err(std::sync::mpsc::RecvTimeoutError::Disconnected) => None,
            Err(std::sync::mpsc::RecvTimeoutError::Timeout) => {
                let what = self.what_it_does();
                let _ = self.child.kill();
                let mut messages = String::new();
                let _ = self.child.stderr.take().unwrap().read_to_string(&mut messages);
                panic!(
                    "the guest was silent for {PATIENCE:?} after:\n{}\n{messages}\n{what}",
                    self.seen.join("\n")
                )
            }
        }
    }

    /// Each thread of the host's VMMs (a jail's VM is a process of its own), with where in the kernel it is and the time it
    /// has had (proc_pid_stat(5)), twice, a second apart; and what this one counts, if it answers.
    fn what_it_does(&self) -> String {
        let mut text = String::new();
        for _ in 0..2 {
            let processes = std::fs::read_dir("/proc").into_iter().flatten().flatten();
            let tasks =
                processes.filter_map(|entry| std::fs::read_dir(entry.path().join("task")).ok());
            for thread in tasks.flatten().flatten() {
                let read = |name: &str| {
                    let text = std::fs::read_to_string(thread.path().join(name));
                    text.unwrap_or_default().trim_end().to_owned()
                };
                let is_vmm = std::fs::read_link(thread.path().join("exe"))
                    .is_ok_and(|program| program.ends_with("tessera"));
                if is_vmm {
                    text +=
                        &format!("{} | {} | {}\n", read("stat"), read("wchan"), read("syscall"));
                }
            }
            std::thread::sleep(Duration::from_secs(1));
        }
        let client = Client::connect(&self.socket, Duration::from_secs(10));
        let metrics = client.and_then(|mut client| client.metrics());
        text + &metrics.map_or_else(|error| error.to_string(), |metrics| metrics.to_string())
    }

    /// The next report of this event.
    ///
    /// # Panics
    /// When the guest ends first.
    pub fn report(&mut self, event: &str) -> Value {
        loop {
            let Some(line) = self.line() else {
                let _ = self.child.kill();
                let mut messages = String::new();
                let _ = self.child.stderr.take().unwrap().read_to_string(&mut messages);
                panic!(
                    "the guest ended without reporting {event}:\n{}\n{messages}",
                    self.seen.join("\n")
                );
            };
            if let Some(report) = parse(&line).filter(|report| report["event"] == event) {
                return report;
            }
        }
    }

    /// Types a command on the guest's console, and waits for the report that answers it.
    ///
    /// # Panics
    /// When the VMM has gone, or the guest ends first.
    pub fn order(&mut self, command: &str, event: &str) -> Value {
        self.type_line(command);
        self.report(event)
    }

    /// Ends it by force.
    ///
    /// # Panics
    /// When it does not end so.
    pub fn stop(self) {
        self.client().stop().unwrap();
        assert_eq!(self.finish().code, Some(12));
    }

    /// All lines that have arrived by now.
    pub fn drain(&mut self) -> Vec<String> {
        let new: Vec<String> = self.lines.try_iter().collect();
        self.seen.extend_from_slice(&new);
        new
    }

    /// Waits until the VMM has ended.
    pub fn finish(mut self) -> Finished {
        drop(self.stdin.take());
        // A guest that is silent is found by `line`.
        let deadline = Instant::now() + PATIENCE * TURNS;
        while self.line().is_some() {
            assert!(Instant::now() < deadline, "no end:\n{}", self.seen.join("\n"));
        }
        let _ = self.reader.take().unwrap().join();
        let mut messages = String::new();
        self.child.stderr.take().unwrap().read_to_string(&mut messages).unwrap();
        let status: ExitStatus = self.child.wait().unwrap();
        Finished { code: status.code(), console: std::mem::take(&mut self.seen), messages }
    }

    /// Sends the VMM a signal.
    pub fn signal(&self, signal: rustix::process::Signal) {
        let pid = rustix::process::Pid::from_child(&self.child);
        rustix::process::kill_process(pid, signal).unwrap();
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        let ended = self.child.try_wait();
        // Ended already, unless the test has failed.
        let _ = self.child.kill();
        let _ = self.child.wait();
        if std::thread::panicking() {
            self.show(ended.ok().flatten());
        }
    }
}

impl Guest {
    /// For a test that has failed: how the VMM ended, if it did by itself, and the last that it and its guest said.
    fn show(&mut self, ended: Option<ExitStatus>) {
        match ended {
            Some(status) => eprintln!("VM {} ended: {status}", self.socket.display()),
            None => eprintln!("VM {} was there", self.socket.display()),
        }
        self.drain();
        for line in &self.seen[self.seen.len().saturating_sub(LAST_LINES)..] {
            eprintln!("  guest: {line}");
        }
        if let Some(stderr) = &mut self.child.stderr {
            // A program that it has started may have the pipe open still.
            let mut said = Vec::new();
            let _ =
                rustix::io::ioctl_fionbio(&*stderr, true).map(|()| stderr.read_to_end(&mut said));
            eprint!("{}", String::from_utf8_lossy(&said));
        }
    }
}

impl Finished {
    /// All reports of this event.
    pub fn reports(&self, event: &str) -> Vec<Value> {
        let all = self.console.iter().filter_map(|line| parse(line));
        all.filter(|report| report["event"] == event).collect()
    }

    /// The one report of this event.
    ///
    /// # Panics
    /// When there is none, or more than one.
    pub fn report(&self, event: &str) -> Value {
        match self.reports(event).as_slice() {
            [one] => one.clone(),
            other => panic!("{} reports of {event} in\n{self:#?}", other.len()),
        }
    }

    /// The guest powered off, having said all it had to.
    ///
    /// # Panics
    /// When it ended otherwise.
    pub fn expect_power_off(self) -> Self {
        assert_eq!(self.code, Some(0), "{self:#?}");
        self
    }
}

/// What a line of the guest's console reports, if it does.
pub fn parse(line: &str) -> Option<Value> {
    serde_json::from_str(line.split_once(REPORT)?.1).ok()
}
