//! What it costs to take memory from a guest by a balloon and to give it back, beside QEMU's balloon, in one host and
//! one run: instructions of guest, VMM and host's kernel together.
//!
//! The memory has been touched and freed, and is in huge pages of the host. Both guests are the same: its driver lists
//! up to 256 single pages, and waits for each list to be answered.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use serde_json::{Value, json};
use tesseractl::client::{Client, DEFAULT_TIMEOUT};
use testing::figures::counted;
use testing::lab::{Lab, artifact, program, programs};
use testing::scratch::Scratch;
use testing::wait::until;

use crate::peer::{self, Guest, HOST_PROGRAMS, busy};

/// MiB: of the guest, of what it touches first, and of the balloon.
const MEMORY: u64 = 1024;
const TOUCHED: u64 = 700;
const BALLOON: u64 = 512;

/// The first is left out: it has memory in the guest's caches, and the guest's page tables to make.
const TIMES: usize = 3;

/// What each direction costs at most, of what it costs with QEMU.
const MOST: f64 = 0.5;

const COMMAND_LINE: &str =
    "console=ttyAMA0 console=ttyS0 quiet nokaslr cryptomgr.notests workload=memory";

const LIMIT: Duration = Duration::from_secs(1500);

/// A VMM's interface to its balloon.
trait Balloon {
    /// Asks for a balloon of this size.
    fn set(&mut self, mib: u64);

    /// What the driver says is in it.
    fn mib(&mut self) -> u64;
}

impl Balloon for Client {
    fn set(&mut self, mib: u64) {
        self.send("PATCH", "/balloon", &json!({ "amount_mib": mib })).unwrap();
    }

    fn mib(&mut self) -> u64 {
        let balloon: Value = self.get("/balloon").unwrap();
        balloon["actual_mib"].as_u64().unwrap()
    }
}

/// QEMU's machine protocol (docs/interop/qmp-spec.rst).
struct Qmp(BufReader<UnixStream>);

impl Qmp {
    fn connect(path: &Path) -> Self {
        let stream = until("QEMU's socket", || UnixStream::connect(path).ok());
        let mut qmp = Self(BufReader::new(stream));
        qmp.0.read_line(&mut String::new()).unwrap();
        qmp.call("qmp_capabilities", &json!({}));
        qmp
    }

    fn call(&mut self, command: &str, arguments: &Value) -> Value {
        let request = json!({ "execute": command, "arguments": arguments });
        writeln!(self.0.get_mut(), "{request}").unwrap();
        loop {
            let mut line = String::new();
            assert_ne!(self.0.read_line(&mut line).unwrap(), 0, "QEMU has ended");
            let mut answer: Value = serde_json::from_str(&line).unwrap();
            if answer.get("event").is_none() {
                let result = answer["return"].take();
                assert!(!result.is_null(), "QEMU answered {command} with {line}");
                return result;
            }
        }
    }
}

impl Balloon for Qmp {
    fn set(&mut self, mib: u64) {
        self.call("balloon", &json!({ "value": (MEMORY - mib) << 20 }));
    }

    fn mib(&mut self) -> u64 {
        let left = self.call("query-balloon", &json!({}))["actual"].as_u64().unwrap();
        MEMORY - (left >> 20)
    }
}

/// Millions of instructions a GiB.
#[derive(Clone, Copy, Debug, Default)]
struct Cost {
    inflate: f64,
    deflate: f64,
}

/// Changes the size of a balloon, and returns millions of instructions a GiB.
fn change(balloon: &mut dyn Balloon, mib: u64) -> f64 {
    let start = busy();
    balloon.set(mib);
    until(&format!("a balloon of {mib} MiB"), || (balloon.mib() == mib).then_some(()));
    (busy() - start) as f64 / 1e6 * 1024.0 / BALLOON as f64
}

/// The mean of the times after the first.
fn measure(name: &str, mut guest: Guest, balloon: &mut dyn Balloon) -> Cost {
    let mut mean = Cost::default();
    for time in 0..TIMES {
        guest.order(&format!("touch {TOUCHED}"), "touched");
        guest.order("free", "freed");
        let before = guest.resident_mib();
        let inflate = change(balloon, BALLOON);
        let left = guest.resident_mib();
        let deflate = change(balloon, 0);
        println!(
            "{name}: inflate {inflate:.0}, deflate {deflate:.0} million instructions a GiB; \
             {before} MiB resident, then {left}"
        );
        if time > 0 {
            mean.inflate += inflate / (TIMES - 1) as f64;
            mean.deflate += deflate / (TIMES - 1) as f64;
        }
    }
    mean
}

fn tessera(scratch: &Scratch) -> Cost {
    let socket = scratch.join("api");
    let mut command = Command::new(program("tessera"));
    command.arg("run").arg("--kernel").arg(artifact("Image"));
    command.arg("--initrd").arg(artifact("initrd.cpio"));
    command.args(["--memory", &format!("{MEMORY}M"), "--cpus", "1", "--cmdline", COMMAND_LINE]);
    command.args(["--balloon", "reporting=off,target=0", "--api-sock"]).arg(&socket);
    let guest = Guest::start(command);
    measure("tessera", guest, &mut Client::connect(&socket, DEFAULT_TIMEOUT).unwrap())
}

fn qemu(scratch: &Scratch) -> Cost {
    let socket: PathBuf = scratch.join("qmp");
    let memory = format!("{MEMORY}M");
    let [kernel, initrd] = ["Image", "initrd.cpio"].map(artifact);
    let mut command = peer::virt("", &kernel, &initrd, &memory, 1, COMMAND_LINE);
    command.args(["-device", "virtio-balloon-device", "-qmp"]);
    command.arg(format!("unix:{},server=on,wait=off", socket.display()));
    let guest = Guest::start(command);
    measure("QEMU", guest, &mut Qmp::connect(&socket))
}

#[test]
fn a_balloon_costs_half_of_what_it_costs_with_qemu() {
    let lab = Lab::new().counting_instructions().timeout(LIMIT);
    lab.file(&programs("host"), HOST_PROGRAMS).run(|| {
        let scratch = Scratch::new();
        let (own, other) = (tessera(&scratch), qemu(&scratch));
        for (what, own, other) in
            [("inflate", own.inflate, other.inflate), ("deflate", own.deflate, other.deflate)]
        {
            let ratio = own / other;
            println!("{what}: {own:.0} million instructions a GiB, QEMU {other:.0}: {ratio:.2}");
            let memory = format!("{MEMORY}M");
            let figure = counted("inflation", "balloon", "million instructions a GiB");
            let figure = figure.case(what).guest(&memory, 1);
            figure.clone().at_most_of(MOST, "QEMU", None).record(own);
            figure.of(&peer::qemu()).record(other);
            assert!(ratio <= MOST, "to {what} costs {ratio:.2} of what it costs with QEMU");
        }
    });
}
