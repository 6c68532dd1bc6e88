//! The process that holds the template of a snapshot, or a boot image: `tessera template`.

use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStderr, Command, Stdio};
use std::rc::Rc;

use rustix::process::{Pid, Signal, kill_process};

use crate::guest::Plan;
use crate::lab::program;
use crate::scratch::Scratch;

/// The process that holds a template.
pub struct Holder {
    child: Child,
    messages: BufReader<ChildStderr>,
    /// Where runtime files are, the socket among them.
    place: Rc<Scratch>,
}

impl Holder {
    /// Has a process hold the template of a snapshot; it does when this returns.
    ///
    /// # Panics
    /// When it cannot.
    pub fn start(folder: &Path, words: &[&str]) -> Self {
        Self::start_in(Rc::default(), folder, words)
    }

    /// As [`start`](Self::start), with this folder for runtime files.
    ///
    /// # Panics
    /// When it cannot.
    pub fn start_in(place: Rc<Scratch>, folder: &Path, words: &[&str]) -> Self {
        let command = command(folder, &place);
        Self::of(command, words, "holds a template", place)
    }

    /// Has a process hold a kernel and an initrd for VMs that boot; it does when this returns.
    ///
    /// # Panics
    /// When it cannot.
    pub fn of_boot_files(kernel: &Path, initrd: &Path) -> Self {
        let place = Rc::default();
        let mut command = in_place(&place);
        command.arg("--kernel").arg(kernel).arg("--initrd").arg(initrd);
        Self::of(command, &[], "holds a boot image", place)
    }

    fn of(mut command: Command, words: &[&str], says: &str, place: Rc<Scratch>) -> Self {
        let mut child = command.args(words).stderr(Stdio::piped()).spawn().unwrap();
        let mut messages = BufReader::new(child.stderr.take().unwrap());
        let mut line = String::new();
        messages.read_line(&mut line).unwrap();
        assert!(line.contains(says), "{line}");
        Self { child, messages, place }
    }

    /// Its process.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// The command that starts another.
    pub fn command(&self, folder: &Path) -> Command {
        command(folder, &self.place)
    }

    /// A clone of it.
    ///
    /// # Panics
    /// When a path is not UTF-8.
    pub fn plan(&self, folder: &Path) -> Plan {
        self.with_place(Plan::restore(folder).flag("--shared"))
    }

    /// A VM that boots what this process holds.
    ///
    /// # Panics
    /// When a path is not UTF-8.
    pub fn boots(&self, plan: Plan) -> Plan {
        self.with_place(plan.flag("--boot-image"))
    }

    /// A VM that waits to be configured, and finds this process.
    ///
    /// # Panics
    /// When a path is not UTF-8.
    pub fn waits(&self) -> Plan {
        self.with_place(Plan::waiting())
    }

    fn with_place(&self, plan: Plan) -> Plan {
        plan.env("TESSERA_RUNTIME_DIR", self.place.path().to_str().unwrap())
    }

    /// What the template has in memory: data and tags, by its checksum.
    ///
    /// # Panics
    /// When this process may not look.
    pub fn checksum(&self) -> u64 {
        let folder = format!("/proc/{}/fd", self.child.id());
        let is_template = |path: &PathBuf| {
            fs::read_link(path).is_ok_and(|to| to.to_string_lossy().contains("memfd:tessera-ram"))
        };
        let paths = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
        let found: Vec<_> = paths.filter(is_template).collect();
        let [path] = found.as_slice() else { panic!("{found:?}") };
        let mut file = fs::File::open(path).unwrap();
        let (mut buffer, mut sum) = (vec![0; 1 << 20], 14_695_981_039_346_656_037u64);
        loop {
            let count = file.read(&mut buffer).unwrap();
            if count == 0 {
                return sum;
            }
            for word in buffer[..count].chunks_exact(8) {
                let word = u64::from_ne_bytes(word.try_into().unwrap());
                sum = (sum ^ word).wrapping_mul(1_099_511_628_211);
            }
        }
    }

    /// Ends it at once.
    ///
    /// # Panics
    /// When it cannot be ended.
    pub fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// Its exit code, and what else it said.
    ///
    /// # Panics
    /// When it cannot be waited for.
    pub fn end(mut self, signal: Option<Signal>) -> (Option<i32>, String) {
        if let Some(signal) = signal {
            kill_process(Pid::from_child(&self.child), signal).unwrap();
        }
        let mut rest = String::new();
        self.messages.read_to_string(&mut rest).unwrap();
        (self.child.wait().unwrap().code(), rest)
    }
}

impl Drop for Holder {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn command(folder: &Path, place: &Scratch) -> Command {
    let mut command = in_place(place);
    command.arg(folder);
    command
}

fn in_place(place: &Scratch) -> Command {
    let mut command = Command::new(program("tessera"));
    command.arg("template").stdin(Stdio::null());
    command.env("TESSERA_RUNTIME_DIR", place.path());
    command
}
