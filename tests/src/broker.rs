//! A broker of tag storage under `tessera broker`: started, looked at, ended.

use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStderr, Command, Stdio};

use rustix::process::{Pid, Signal, kill_process};
use vmm::tag_storage::broker::{self, BrokerReport};

use crate::lab::program;
use crate::scratch::Scratch;
use crate::wait::until;

/// A broker that runs.
pub struct Broker {
    child: Child,
    errors: BufReader<ChildStderr>,
    /// What it said of itself.
    pub greeting: String,
    path: PathBuf,
    _scratch: Option<Scratch>,
}

impl Broker {
    /// Starts one with these options beside its socket, which is in a folder of its own.
    pub fn start(options: &[&str]) -> Self {
        let scratch = Scratch::new();
        let path = scratch.join("broker");
        let mut broker = Self::start_at(&path, options);
        broker._scratch = Some(scratch);
        broker
    }

    /// Starts one at this path.
    pub fn start_at(path: &Path, options: &[&str]) -> Self {
        let mut child = Command::new(program("tessera"))
            .arg("broker")
            .arg("--socket")
            .arg(path)
            .args(options)
            .stdin(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .expect("tessera broker");
        let mut errors = BufReader::new(child.stderr.take().unwrap());
        let mut greeting = String::new();
        errors.read_line(&mut greeting).unwrap();
        assert!(greeting.contains("the broker serves"), "{greeting}");
        Self { child, errors, greeting, path: path.to_owned(), _scratch: None }
    }

    /// Its socket.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Its socket as a flag's value.
    pub fn socket(&self) -> &str {
        self.path.to_str().unwrap()
    }

    /// Its process.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// The broker at this moment. On a busy host it may need longer for an answer than a client waits.
    pub fn report(&self) -> BrokerReport {
        until("a report of the broker's", || broker::report(&self.path).ok())
    }

    /// Waits until it is so, and returns the report that says it.
    pub fn wait(&self, what: &str, mut so: impl FnMut(&BrokerReport) -> bool) -> BrokerReport {
        until(what, || Some(self.report()).filter(&mut so))
    }

    /// Kills it, so that it can do nothing more.
    pub fn kill(mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// Ends it as a user does. Returns its status and what it said meanwhile.
    pub fn end(self) -> (Option<i32>, String) {
        kill_process(Pid::from_child(&self.child), Signal::TERM).unwrap();
        self.wait_for_end()
    }

    /// Waits until it has ended. Returns its status and what it said meanwhile.
    pub fn wait_for_end(mut self) -> (Option<i32>, String) {
        let mut text = String::new();
        self.errors.read_to_string(&mut text).unwrap();
        (self.child.wait().unwrap().code(), text)
    }
}

impl Drop for Broker {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
