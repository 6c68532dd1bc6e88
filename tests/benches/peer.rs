//! QEMU and other programs of Debian's in a nested host that counts instructions.

use std::fs;
use std::process::Command;

/// Where programs of Debian's are on the host: of the host, and of its guests.
pub(crate) const HOST_PROGRAMS: &str = "/peers/host";
pub(crate) const GUEST_PROGRAMS: &str = "/peers/guest";

/// For how long the host's processor has been busy, in ns: instructions.
pub(crate) fn busy() -> u64 {
    let timers = fs::read_to_string("/proc/timer_list").unwrap();
    let number = |line: &str| line.split_whitespace().rev().nth(1).unwrap().parse::<u64>().unwrap();
    let find = |what: &str| timers.lines().find(|line| line.contains(what)).map(number).unwrap();
    find("now at ") - find(".idle_sleeptime")
}

/// A program of Debian's on the host.
pub(crate) fn program(name: &str) -> Command {
    let libraries = format!("{HOST_PROGRAMS}/lib");
    let mut command = Command::new(format!("{libraries}/ld-linux-aarch64.so.1"));
    command.args(["--library-path", &libraries]).arg(format!("{HOST_PROGRAMS}/bin/{name}"));
    command
}

pub(crate) fn shell(command: &str) {
    let status = Command::new("sh").args(["-ec", command]).status().unwrap();
    assert!(status.success(), "{command}: {status}");
}
