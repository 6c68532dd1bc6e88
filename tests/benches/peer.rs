//! QEMU and other programs of Debian's in a nested host that counts instructions.

use std::fs;
use std::process::Command;

use tesseractl::bench::Vmm;
use testing::figures::vmm;

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

/// QEMU, as it says itself: `QEMU emulator version 10.0.13 (Debian ...)`.
pub(crate) fn qemu() -> Vmm {
    let output = program("qemu-system-aarch64").arg("--version").output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    vmm("QEMU", text.split_ascii_whitespace().nth(3).expect("a version"))
}

pub(crate) fn shell(command: &str) {
    let status = Command::new("sh").args(["-ec", command]).status().unwrap();
    assert!(status.success(), "{command}: {status}");
}
