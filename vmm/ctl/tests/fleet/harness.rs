//! A place for VMs, and `tesseractl` there.

use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use tempfile::TempDir;

use super::common::until;

/// A runtime directory; dropped, none of its VMs is left.
pub(crate) struct Place(TempDir);

impl Place {
    pub(crate) fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// What is kept of VMs.
    pub(crate) fn vms(&self, name: &str) -> PathBuf {
        self.0.path().join("vms").join(name)
    }

    pub(crate) fn command(&self, words: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_tesseractl"));
        command.args(words).env("TESSERA_RUNTIME_DIR", self.0.path()).stdin(Stdio::null());
        command
    }

    pub(crate) fn tesseractl(&self, words: &[&str]) -> Output {
        self.command(words).output().unwrap()
    }

    /// Starts a VM with these options.
    pub(crate) fn run(&self, words: &[&str]) -> Output {
        let tessera = fake_vm();
        let tessera = tessera.to_str().unwrap();
        self.tesseractl(&[&["run", "--tessera", tessera][..], words].concat())
    }

    /// A VM that this program has not started with `tesseractl run`.
    pub(crate) fn start_directly(&self, words: &[&str]) -> std::process::Child {
        let mut command = Command::new(fake_vm());
        command.arg("run").args(words).env("TESSERA_RUNTIME_DIR", self.0.path());
        command.stdin(Stdio::null()).stderr(Stdio::null()).spawn().unwrap()
    }

    /// What `list` says once each VM has answered that can: it waits for half a second, and the machine may be busy.
    pub(crate) fn list(&self) -> Vec<Value> {
        let is_late = |vm: &Value| {
            vm["state"] == "no answer" && !vm["name"].as_str().unwrap().starts_with("mute")
        };
        until("an answer of each VM", || Some(self.look()).filter(|list| !list.iter().any(is_late)))
    }

    /// What `list` says at this moment.
    fn look(&self) -> Vec<Value> {
        json(&self.tesseractl(&["list", "--json"])).as_array().unwrap().clone()
    }

    pub(crate) fn names(&self) -> Vec<String> {
        self.look().iter().map(|vm| vm["name"].as_str().unwrap().to_owned()).collect()
    }

    pub(crate) fn pid(&self, name: &str) -> u32 {
        let list = self.look();
        let vm = list.iter().find(|vm| vm["name"] == name).unwrap();
        vm["pid"].as_u64().unwrap().try_into().unwrap()
    }

    /// As `kill -9` does.
    pub(crate) fn kill(&self, name: &str) {
        kill(self.pid(name));
        until(name, || (!self.names().contains(&name.to_owned())).then_some(()));
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        for vm in self.look() {
            kill(vm["pid"].as_u64().unwrap().try_into().unwrap());
        }
    }
}

fn kill(pid: u32) {
    let pid = Pid::from_raw(pid.try_into().unwrap()).unwrap();
    let _ = kill_process(pid, Signal::KILL);
}

/// What was written to standard output by a command that has succeeded.
pub(crate) fn said(output: &Output) -> &str {
    assert!(output.status.success(), "{output:?}");
    std::str::from_utf8(&output.stdout).unwrap()
}

/// The error of a command, and its exit status.
pub(crate) fn failed(output: &Output) -> (i32, &str) {
    (output.status.code().unwrap(), std::str::from_utf8(&output.stderr).unwrap())
}

pub(crate) fn json(output: &Output) -> Value {
    serde_json::from_str(said(output)).unwrap()
}

/// The program that is started in the place of `tessera`: cargo builds examples for the tests of their package.
pub(crate) fn fake_vm() -> PathBuf {
    let path = Path::new(env!("CARGO_BIN_EXE_tesseractl")).with_file_name("examples/fake_vm");
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/fake_vm.rs");
    let changed = |path: &Path| std::fs::metadata(path).and_then(|file| file.modified()).ok();
    assert!(
        changed(&path) >= changed(&source),
        "{path:?} is missing or older than its source: cargo build -p tesseractl --examples"
    );
    path
}
