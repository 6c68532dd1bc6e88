//! A runtime directory, and `tesseractl` there.

use std::path::PathBuf;
use std::process::{Command, Output, Stdio};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use testing::guest::Plan;
use testing::lab::program;
use testing::scratch::Scratch;
use testing::wait::until;

/// A runtime directory of its own; dropped, none of its VMs is left.
pub(crate) struct Place(Scratch);

impl Place {
    pub(crate) fn new() -> Self {
        Self(Scratch::new())
    }

    /// The runtime directory, which the first VM makes.
    pub(crate) fn path(&self) -> PathBuf {
        self.0.join("run")
    }

    /// A file of the registry, or the folder of a VM.
    pub(crate) fn vms(&self, name: &str) -> PathBuf {
        self.path().join("vms").join(name)
    }

    pub(crate) fn tesseractl(&self, words: &[&str]) -> Command {
        let mut command = Command::new(program("tesseractl"));
        command.args(words).env("TESSERA_RUNTIME_DIR", self.path()).stdin(Stdio::null());
        command
    }

    pub(crate) fn output(&self, words: &[&str]) -> Output {
        self.tesseractl(words).output().unwrap()
    }

    /// What a command says that succeeds.
    pub(crate) fn said(&self, words: &[&str]) -> String {
        let output = self.output(words);
        assert!(output.status.success(), "{words:?}: {output:?}");
        String::from_utf8(output.stdout).unwrap()
    }

    /// What a command says of all VMs once each has answered: on a busy host that may take one longer than the command
    /// waits.
    pub(crate) fn answered(&self, words: &[&str]) -> String {
        let is_silent = |line: &str| {
            line.contains("no answer") || (line.starts_with("tessera_up") && line.ends_with(" 0"))
        };
        until("an answer of each VM", || {
            Some(self.said(words)).filter(|said| !said.lines().any(is_silent))
        })
    }

    /// Starts a guest in the background.
    pub(crate) fn run(&self, plan: &Plan, words: &[&str]) -> Output {
        let command = plan.command();
        let flags = command.get_args().skip(1).map(|flag| flag.to_str().unwrap());
        let all: Vec<&str> = ["run", "--timeout", "120"]
            .into_iter()
            .chain(flags)
            .chain(words.iter().copied())
            .collect();
        self.output(&all)
    }

    pub(crate) fn list(&self) -> Vec<Value> {
        let list: Value = serde_json::from_str(&self.answered(&["list", "--json"])).unwrap();
        list.as_array().unwrap().clone()
    }

    pub(crate) fn states(&self) -> Vec<(String, String)> {
        let text = |value: &Value| value.as_str().unwrap().to_owned();
        self.list().iter().map(|vm| (text(&vm["name"]), text(&vm["state"]))).collect()
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        // None lives, unless the test has failed.
        let Ok(listed) = self.tesseractl(&["list", "--json"]).output() else { return };
        let listed: Value = serde_json::from_slice(&listed.stdout).unwrap_or_default();
        for vm in listed.as_array().into_iter().flatten() {
            let pid = vm["pid"].as_i64().and_then(|pid| Pid::from_raw(pid.try_into().ok()?));
            let _ = pid.map(|pid| kill_process(pid, Signal::KILL));
        }
    }
}
