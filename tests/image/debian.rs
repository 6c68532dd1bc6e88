//! A guest that runs the image, and what is done with it from the host.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use testing::guest::{Guest, Plan};
use testing::lab::{Lab, image, program};
use testing::scratch::Scratch;

/// The image as a disk of the host's.
pub(crate) const DISK: &str = "/dev/vda";
/// How long Debian may take to boot under two emulations on a busy machine.
pub(crate) const BOOT: &str = "600";
/// The guest's address behind the tap `tap0`, and the host's.
pub(crate) const ADDRESS: &str = "198.51.100.2";
pub(crate) const HOST: &str = "198.51.100.1";

/// A host with the image as its system, as the disk [`DISK`], and as files.
pub(crate) fn lab() -> Lab {
    let lab = Lab::new().debian().timeout(Duration::from_secs(1200));
    let lab = ["Image", "initrd"]
        .iter()
        .fold(lab, |lab, name| lab.file(&image(name), &format!("/image/{name}")));
    lab.disk(&image("debian.ext4"))
}

/// The image on its disk, reached through vsock.
pub(crate) fn plan(scratch: &Scratch) -> Plan {
    Plan::bare(&image("Image"))
        .initrd(&image("initrd"))
        .append("console=ttyS0 quiet root=/dev/vda")
        .with("--disk", DISK)
        .with("--memory", "1G")
        .with("--cpus", "2")
        .with("--vsock", scratch.join("vsock").to_str().unwrap())
        .flag("--rng")
}

/// With a first network interface on a tap of the host's, and its address in the kernel's command line.
pub(crate) fn on_a_tap(plan: Plan) -> Plan {
    let address = format!("ip={ADDRESS}::{HOST}:255.255.255.0::eth0:none");
    plan.append(&address).with("--net", "tap=tap0")
}

/// Starts a guest [on a tap](on_a_tap).
pub(crate) fn start_on_a_tap(plan: Plan) -> Guest {
    said(host("modprobe tun"));
    let guest = plan.start();
    guest.answers();
    said(host(&format!("ip addr add {HOST}/24 dev tap0 && ip link set tap0 up")));
    guest
}

/// Runs a command of the host's shell.
pub(crate) fn host(command: &str) -> Output {
    Command::new("sh").args(["-c", command]).stdin(Stdio::null()).output().unwrap()
}

pub(crate) fn tesseractl(guest: &Guest, arguments: &[&str]) -> Output {
    guest.tesseractl(arguments).output().unwrap()
}

pub(crate) fn exec(guest: &Guest, words: &[&str]) -> Output {
    tesseractl(guest, &[&["exec", "--timeout", BOOT, "--"], words].concat())
}

/// Runs a command of the guest's shell.
pub(crate) fn sh(guest: &Guest, script: &str) -> Output {
    exec(guest, &["sh", "-c", script])
}

/// Starts a command of the guest with these options of `exec`, all of its streams on pipes.
pub(crate) fn start(guest: &Guest, arguments: &[&str]) -> Child {
    let mut command = guest.tesseractl(&[&["exec"], arguments].concat());
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command.spawn().unwrap()
}

/// What a command wrote that has succeeded.
pub(crate) fn said(output: Output) -> String {
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout).unwrap().trim().to_owned()
}

/// Says how long something has taken.
pub(crate) fn timed<T>(what: &str, work: impl FnOnce() -> T) -> T {
    let start = Instant::now();
    let value = work();
    println!("{what}: {:.1?}", start.elapsed());
    value
}

/// A key of ssh's.
pub(crate) struct Key(PathBuf);

impl Key {
    pub(crate) fn new(file: PathBuf) -> Self {
        let mut generate = Command::new("ssh-keygen");
        said(generate.args(["-q", "-t", "ed25519", "-N", "", "-f"]).arg(&file).output().unwrap());
        Self(file)
    }

    /// What gives it to a boot, in the kernel's command line.
    pub(crate) fn credential(&self) -> String {
        let mut encode = Command::new("base64");
        let public = encode.arg("--wrap=0").arg(self.0.with_extension("pub")).output().unwrap();
        format!("systemd.set_credential_binary=ssh.authorized_keys.root:{}", said(public))
    }

    /// Runs `command` in the guest, logged in by this key alone.
    pub(crate) fn ssh(&self, way: &Way<'_>, command: &str) -> Output {
        let options = [
            "StrictHostKeyChecking=no",
            "UserKnownHostsFile=/dev/null",
            "IdentitiesOnly=yes",
            "BatchMode=yes",
        ];
        let mut ssh = Command::new("ssh");
        ssh.args(options.iter().flat_map(|option| ["-o", option])).arg("-i").arg(&self.0);
        let name = match way {
            Way::Vsock(socket) => {
                let ctl = program("tesseractl");
                let proxy = format!("ProxyCommand={} proxy {} 22", ctl.display(), socket.display());
                ssh.args(["-o", &proxy]);
                "guest"
            }
            Way::Tcp(address) => address,
        };
        ssh.args([&format!("root@{name}"), command]).stdin(Stdio::null()).output().unwrap()
    }
}

/// How ssh connects to the guest.
pub(crate) enum Way<'a> {
    /// Through the VM whose control socket this is.
    Vsock(&'a Path),
    /// To this address.
    Tcp(&'a str),
}

/// The digest of a file of the host's.
pub(crate) fn sha256(file: &Path) -> String {
    let sums = said(Command::new("sha256sum").arg(file).output().unwrap());
    sums.split(' ').next().unwrap().to_owned()
}

/// A file of this many bytes that no compression makes shorter.
pub(crate) fn noise(file: &Path, bytes: u64) {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut content = Vec::with_capacity(bytes as usize);
    while (content.len() as u64) < bytes {
        // Xorshift (Marsaglia, "Xorshift RNGs").
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        content.extend_from_slice(&state.to_le_bytes());
    }
    fs::write(file, content).unwrap();
}
