//! QEMU and other programs of Debian's in a nested host that counts instructions.

use std::fs::{self, File};
use std::io::{BufRead, BufReader, Lines, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use serde_json::Value;
use tesseractl::bench::Vmm;
use testing::figures::vmm;
use testing::guest::{Plan, QUICK, parse};
use testing::lab::artifact;
use testing::procfs::first_number;
use testing::scratch::Scratch;

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

/// What QEMU's machine can do without, where a guest has no PCI device and no firmware.
pub(crate) const LEAN: &str = ",acpi=off,its=off,highmem-ecam=off";

/// QEMU with [`LEAN`].
pub(crate) fn lean_qemu() -> Vmm {
    Vmm { variant: "lean".to_owned(), ..qemu() }
}

/// A command line of the kernel's that every VMM gives its guest: each has another console.
pub(crate) fn words(workload: &str) -> String {
    format!("console=ttyAMA0 console=ttyS0 {QUICK} nokaslr workload={workload}")
}

/// What a VMM is called; without one, Tessera.
pub(crate) fn label(vmm: Option<&Vmm>) -> String {
    vmm.map_or_else(|| "tessera".to_owned(), Vmm::label)
}

/// Tessera's boot of what the others boot.
pub(crate) fn tessera(kernel: &Path, memory: &str, words: &str) -> Plan {
    let plan = Plan::bare(kernel).initrd(&artifact("initrd.cpio")).append(words);
    plan.with("--memory", memory)
}

/// QEMU's machine for KVM guests ("virt", docs/system/arm/virt.rst) with these properties, and with no device but a
/// console.
pub(crate) fn virt(
    properties: &str,
    kernel: &Path,
    initrd: &Path,
    memory: &str,
    vcpus: u32,
    words: &str,
) -> Command {
    let mut command = program("qemu-system-aarch64");
    command.args(["-M", &format!("virt,gic-version=3{properties}"), "-cpu", "host"]);
    command.args(["-accel", "kvm", "-smp", &vcpus.to_string(), "-m", memory]);
    command.args(["-no-user-config", "-nodefaults", "-display", "none", "-serial", "stdio"]);
    command.arg("-kernel").arg(kernel).arg("-initrd").arg(initrd);
    command.args(["-append", words]);
    command
}

/// An initramfs of the lab's parts, and after them the programs of a folder of the host's (their libraries in `/lib`, they
/// themselves in `/PLACE`) and what `add` puts into `/PLACE`, which exists.
pub(crate) fn initrd(
    scratch: &Scratch,
    parts: &[&str],
    (programs, place): (&str, &str),
    add: impl FnOnce(&Path),
) -> PathBuf {
    let folder = scratch.join("guest");
    let target = folder.join(place);
    fs::create_dir_all(&target).unwrap();
    fs::create_dir_all(folder.join("lib")).unwrap();
    shell(&format!(
        "cp {programs}/bin/* {}; cp {programs}/lib/* {}/lib",
        target.display(),
        folder.display()
    ));
    add(&target);
    let own = scratch.join("programs.cpio");
    shell(&format!(
        "cd {0}; chmod +x {place}/init; find . | cpio -o -H newc >../programs.cpio; rm -r {0}",
        folder.display()
    ));
    // One archive after the other is one initramfs.
    let path = scratch.join("initrd");
    let mut whole = File::create(&path).unwrap();
    for part in parts.iter().map(|name| artifact(name)).chain([own.clone()]) {
        whole.write_all(&fs::read(part).unwrap()).unwrap();
    }
    fs::remove_file(own).unwrap();
    path
}

pub(crate) fn shell(command: &str) {
    let status = Command::new("sh").args(["-ec", command]).status().unwrap();
    assert!(status.success(), "{command}: {status}");
}

/// A guest that obeys lines on its console.
pub(crate) struct Guest {
    child: Child,
    stdin: ChildStdin,
    console: Lines<BufReader<ChildStdout>>,
}

impl Guest {
    /// Starts it, and waits until its init listens.
    pub(crate) fn start(mut command: Command) -> Self {
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let stdin = child.stdin.take().unwrap();
        let console = BufReader::new(child.stdout.take().unwrap()).lines();
        let mut guest = Self { child, stdin, console };
        guest.report("ready");
        guest
    }

    /// Types a command. Returns the report that answers it.
    pub(crate) fn order(&mut self, command: &str, event: &str) -> Value {
        writeln!(self.stdin, "{command}").unwrap();
        self.report(event)
    }

    fn report(&mut self, event: &str) -> Value {
        let mut reports = self.console.by_ref().filter_map(|line| parse(&line.unwrap()));
        let found = reports.find(|report| report["event"] == event);
        found.unwrap_or_else(|| panic!("the guest ended without {event}"))
    }

    /// The VMM's process.
    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Its memory that is resident, in MiB, all of its process.
    pub(crate) fn resident_mib(&self) -> u64 {
        first_number(&format!("/proc/{}/smaps_rollup", self.pid()), "Rss:") >> 10
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
