//! Hosts that tests share: one after the other, until one leaves something behind, hangs, or the run ends.

use std::fs;
use std::process::{Child, Command, Output, Stdio};

use testing::lab::{Lab, artifact, lab_program};
use testing::wait::until;

/// A process for which hosts are there.
struct Runner(Child);

impl Runner {
    fn new() -> Self {
        Self(Command::new("sleep").arg("1000000").spawn().unwrap())
    }

    /// A command that runs a script on one of its hosts, for so many seconds at most.
    fn command(&self, script: &str, seconds: u64) -> Command {
        let mut command = Command::new(lab_program());
        command.arg("exec").arg(artifact("busybox"));
        command.args(["--shared-by", &self.0.id().to_string()]);
        command.args(["--timeout", &seconds.to_string()]);
        command.args(["--", "sh", "-c", script]).stdin(Stdio::null());
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    }

    /// Runs the script and checks its status, and what is said.
    fn run(&self, script: &str, seconds: u64, status: i32, words: &[&str]) -> Output {
        let output = self.command(script, seconds).output().unwrap();
        assert_eq!(output.status.code(), Some(status), "{script}: {output:?}");
        let said = [&output.stdout[..], &output.stderr[..]].concat();
        let said = String::from_utf8_lossy(&said);
        for word in words {
            assert!(said.contains(word), "{script}: {word} is not in: {said}");
        }
        output
    }

    /// Processes that keep its hosts, and their QEMUs.
    fn keepers(&self) -> usize {
        let mark = format!("--runner\0{}\0", self.0.id());
        let processes = fs::read_dir("/proc").unwrap().flatten();
        let lines = processes.filter_map(|entry| fs::read(entry.path().join("cmdline")).ok());
        lines.filter(|line| String::from_utf8_lossy(line).contains(&mark)).count()
    }

    fn end(&mut self) {
        // It may have ended already.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Drop for Runner {
    fn drop(&mut self) {
        self.end();
    }
}

/// More than any of the scripts takes that end, and what is looked for after it.
const LONG: u64 = 500;

#[test]
#[ignore = "long"]
fn a_host_is_shared_until_a_program_leaves_something_or_hangs_and_ends_with_the_run() {
    let mut runner = Runner::new();
    let output = runner.run("printf 'no line'; exit 3", LONG, 3, &["after 0 others"]);
    assert_eq!(output.stdout, b"no line");
    runner.run("echo > /tmp/file; rm /tmp/file", LONG, 0, &["after 1 others"]);
    let leave = "sleep 1000 & touch /tmp/file; mount -t tmpfs t /run; \
                 echo 50 >/proc/sys/vm/swappiness";
    let left = ["after 2 others", "+file /tmp/file", "+mount", "swappiness:50", "sleep", "failure"];
    runner.run(leave, LONG, 121, &left);

    let fresh = ["after 0 others", "60", "timed out"];
    runner.run("cat /proc/sys/vm/swappiness; sleep 1000", 15, 124, &fresh);

    let client = runner.command("sleep 1000", LONG).spawn().unwrap();
    until("a third host", || (runner.keepers() > 0).then_some(()));
    runner.end();
    let output = client.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(125), "{output:?}");
    until("the end of what keeps the hosts", || (runner.keepers() == 0).then_some(()));
}

/// Static keys that the first VM would switch on stay as they are: see tests/guest/src/hold_vm.rs.
#[test]
fn a_host_has_a_vm_before_there_are_any() {
    Lab::new().emulated().run(|| {
        let processes = fs::read_dir("/proc").unwrap().flatten();
        let files = processes.filter_map(|process| fs::read_dir(process.path().join("fd")).ok());
        let links = files.flatten().flatten().filter_map(|file| fs::read_link(file.path()).ok());
        assert_eq!(links.filter(|link| link.as_os_str() == "anon_inode:kvm-vm").count(), 1);
    });
}
