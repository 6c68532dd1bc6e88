//! VMs of other users, as `tessera@NAME` has them: root sees them beside its own, and their users see nothing of root's.

use std::fs;
use std::os::unix::fs::{PermissionsExt, chown};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};

use serde_json::Value;
use testing::bare::{WAITS, image};
use testing::lab::{Lab, program};
use testing::scratch::Scratch;
use testing::wait::until;

/// Where services have their directories; root's own registry is there, too.
const PLACE: &str = "/run/tessera";
/// A user and a group of this host's that are no one's.
const USER: u32 = 61_184;
const GROUP: u32 = 61_185;

/// The runtime directory of a service, and its VM.
struct Service {
    name: &'static str,
    child: Child,
}

impl Service {
    /// As systemd starts it, with this mode of its directory.
    fn start(name: &'static str, kernel: &Path, mode: u32) -> Self {
        let folder = PathBuf::from(PLACE).join(name);
        fs::create_dir(&folder).unwrap();
        set_mode(&folder, mode);
        chown(&folder, Some(USER), Some(GROUP)).unwrap();
        let mut command = Command::new(program("tessera"));
        command.args(["run", "--id", name, "--memory", "64M", "--serial", "none", "--kernel"]);
        command.arg(kernel).arg("--api-sock").arg(folder.join("api.sock"));
        command.env("TESSERA_RUNTIME_DIR", &folder).stdin(Stdio::null());
        Self { name, child: command.uid(USER).gid(GROUP).spawn().unwrap() }
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        let _ = fs::remove_dir_all(PathBuf::from(PLACE).join(self.name));
    }
}

/// A file with another mode for as long as this lives.
struct Mode(&'static str, u32);

impl Mode {
    fn set(path: &'static str, mode: u32) -> Self {
        let before = fs::metadata(path).unwrap().permissions().mode();
        set_mode(Path::new(path), mode);
        Self(path, before)
    }
}

impl Drop for Mode {
    fn drop(&mut self) {
        set_mode(Path::new(self.0), self.1);
    }
}

fn set_mode(path: &Path, mode: u32) {
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
}

/// As this user and group, who is of no other group.
fn tesseractl_as(user: u32, group: u32, words: &[&str]) -> Output {
    let scratch = Scratch::new();
    chown(scratch.path(), Some(user), Some(group)).unwrap();
    let mut command = Command::new(program("tesseractl"));
    command.args(words).env_remove("TESSERA_RUNTIME_DIR").env("XDG_RUNTIME_DIR", scratch.path());
    command.stdin(Stdio::null()).uid(user).gid(group).output().unwrap()
}

fn listed(user: u32, group: u32) -> Vec<(String, String, u64)> {
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    // On a busy host an answer may take longer than the command waits.
    let vms = until("an answer of each VM", || {
        let output = tesseractl_as(user, group, &["list", "--json"]);
        assert!(output.status.success(), "{output:?}");
        let vms: Vec<Value> = serde_json::from_slice(&output.stdout).unwrap();
        Some(vms).filter(|vms| vms.iter().all(|vm| vm["state"] != "no answer"))
    });
    vms.iter()
        .map(|vm| (text(&vm["name"]), text(&vm["state"]), vm["uid"].as_u64().unwrap()))
        .collect()
}

#[test]
fn root_sees_the_vms_of_services_and_controls_them() {
    Lab::new().emulated().run(|| {
        // As the package has them, but for KVM's group.
        let (scratch, _kvm) = (Scratch::new(), Mode::set("/dev/kvm", 0o666));
        let _place = Mode::set(PLACE, 0o755);
        let kernel = scratch.file("kernel", image(&WAITS));
        set_mode(scratch.path(), 0o755);
        let mut hidden = Service::start("hidden", &kernel, 0o700);
        let shown = Service::start("shown", &kernel, 0o750);
        let vm = |name: &str, state: &str| (name.to_owned(), state.to_owned(), u64::from(USER));
        let both = [vm("hidden", "Running"), vm("shown", "Running")];

        until("both VMs", || (listed(0, 0) == both).then_some(()));
        until("both VMs in the table", || {
            let top = String::from_utf8(tesseractl_as(0, 0, &["top"]).stdout).unwrap();
            let has_both = top.contains("hidden  Running") && top.contains("shown   Running");
            has_both.then_some(())
        });
        // Who is in the group of the one sees it, and cannot control it; others see neither.
        assert_eq!(listed(65_534, GROUP), [vm("shown", "no access")]);
        let refused = tesseractl_as(65_534, GROUP, &["stop", "shown", "--force"]);
        assert_eq!(refused.status.code(), Some(69), "{refused:?}");
        assert_eq!(listed(65_534, 65_534), []);

        // Its user has been taken over: it says that it is another's process.
        let entry = PathBuf::from(PLACE).join("shown/vms/shown.json");
        let before = fs::read_to_string(&entry).unwrap();
        let own = std::process::id();
        let pid = format!("\"pid\":{}", shown.child.id());
        let lie = before.replace(&pid, &format!("\"pid\":{own}"));
        assert_ne!(lie, before);
        fs::write(&entry, lie).unwrap();
        let killed = tesseractl_as(0, 0, &["kill", "shown"]);
        assert_eq!(killed.status.code(), Some(69), "{killed:?}");
        assert_eq!(listed(0, 0), [vm("hidden", "Running")]);
        fs::write(&entry, before).unwrap();

        let done = tesseractl_as(0, 0, &["pause", "hidden"]);
        assert!(done.status.success(), "{done:?}");
        assert_eq!(listed(0, 0)[0], vm("hidden", "Paused"));
        for (verb, name) in [("stop", "hidden"), ("kill", "shown")] {
            let force = if verb == "stop" { &["--force"][..] } else { &[] };
            let done = tesseractl_as(0, 0, &[&[verb, name], force].concat());
            assert!(done.status.success(), "{done:?}");
        }
        assert_eq!(hidden.child.wait().unwrap().code(), Some(12));
        assert_eq!(listed(0, 0), []);
    });
}
