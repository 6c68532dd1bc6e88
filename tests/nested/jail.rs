//! VMs in a jail: what they see of their host, how they end, and what is left; and Firecracker's jailer.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown, symlink};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::json;
use tesseractl::client::Client;
use testing::broker::Broker;
use testing::guest::{Guest, Plan};
use testing::lab::{Lab, artifact, program};
use testing::process::children;
use testing::scratch::Scratch;
use testing::wait::{PATIENCE, until};

/// A user and a group of this host's that are no one's.
const USER: u32 = 61_184;
const GROUP: u32 = 61_185;
const GROUPS: &str = "/sys/fs/cgroup";
/// `CAP_KILL` and `CAP_DAC_OVERRIDE`, as a set.
const OF_INIT: u64 = 1 << 5 | 1 << 1;

/// A folder for a jail.
struct Jail(Scratch);

impl Jail {
    fn new() -> Self {
        let scratch = Scratch::new();
        fs::create_dir(scratch.join("jail")).unwrap();
        Self(scratch)
    }

    fn folder(&self) -> PathBuf {
        self.0.join("jail")
    }

    fn path(&self, name: &str) -> String {
        self.folder().join(name).to_str().unwrap().to_owned()
    }

    fn names(&self) -> Vec<String> {
        let names = fs::read_dir(self.folder()).unwrap();
        names.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
    }

    /// A guest in it that has a control socket there.
    fn plan(&self, plan: Plan) -> Plan {
        let (user, group) = (USER.to_string(), GROUP.to_string());
        let plan = plan.with("--memory", "128M").with("--jail", self.folder().to_str().unwrap());
        let plan = plan.with("--jail-uid", &user).with("--jail-gid", &group);
        plan.with("--api-sock", &self.path("api.sock")).with("--allow", &self.path(""))
    }
}

/// The processes of a VM in a jail.
#[derive(Clone, Copy, Debug)]
struct Processes {
    supervisor: u32,
    init: u32,
    vm: u32,
}

impl Processes {
    fn of(guest: &Guest) -> Self {
        let child = |of| until("a child", || children(of).first().copied());
        let init = child(guest.pid());
        Self { supervisor: guest.pid(), init, vm: child(init) }
    }

    /// Of those inside.
    fn have_gone(self) -> bool {
        [self.init, self.vm].iter().all(|pid| !Path::new(&format!("/proc/{pid}")).exists())
    }
}

/// What a process's `status` says.
fn field(process: u32, name: &str) -> String {
    let status = fs::read_to_string(format!("/proc/{process}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
    line.unwrap_or_else(|| panic!("no {name} in {status}")).trim().to_owned()
}

fn capabilities(process: u32, set: &str) -> u64 {
    u64::from_str_radix(&field(process, set), 16).unwrap()
}

/// All that is below a folder, but for what is in folders with these paths, as paths from it.
fn below(root: &Path, but_in: &[&str]) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    let mut open = vec![root.to_owned()];
    while let Some(folder) = open.pop() {
        for entry in fs::read_dir(&folder).unwrap().map(Result::unwrap) {
            let path = entry.path();
            let name = format!("/{}", path.strip_prefix(root).unwrap().display());
            let is_folder = entry.file_type().unwrap().is_dir();
            let is_shown_whole = is_folder && but_in.contains(&name.as_str());
            match is_folder && !is_shown_whole {
                true => open.push(path),
                false => assert!(found.insert(name)),
            }
        }
    }
    found
}

/// Those of these paths that the host has.
fn that_exist<'a>(paths: &[&'a str]) -> Vec<&'a str> {
    paths.iter().copied().filter(|path| Path::new(path).exists()).collect()
}

/// Where something is mounted, as a process sees it, its kind and whether it can be written to.
fn mounts(process: u32) -> Vec<(String, String, bool)> {
    let text = fs::read_to_string(format!("/proc/{process}/mountinfo")).unwrap();
    let mount = |line: &str| {
        let (left, right) = line.split_once(" - ").unwrap();
        let left: Vec<_> = left.split(' ').collect();
        let kind = right.split(' ').next().unwrap();
        let is_written = left[5].split(',').any(|option| option == "rw");
        (left[4].to_owned(), kind.to_owned(), is_written)
    };
    text.lines().map(mount).collect()
}

/// Saves a VM in a folder of its user's.
fn save(guest: &Guest, folder: &str) {
    fs::create_dir(folder).unwrap();
    chown(folder, Some(USER), Some(GROUP)).unwrap();
    let mut client = guest.client();
    client.pause().unwrap();
    let files = json!({
        "snapshot_path": format!("{folder}/state"),
        "mem_file_path": format!("{folder}/memory"),
    });
    client.send("PUT", "/snapshot/create", &files).unwrap();
    client.resume().unwrap();
}

/// What is to be seen of the files: exactly what the VM was given, and nothing that it could write to but its own.
fn sees_its_own_files(vm: u32, jail: &Jail, disk: &Path, broker: &Broker, group: &str) {
    let root = PathBuf::from(format!("/proc/{vm}/root"));
    let whole = [
        "/proc/pids",
        "/sys/devices/system/cpu",
        "/sys/devices/system/node",
        "/sys/kernel/mm",
        group,
    ];
    let found = below(&root, &whole);
    println!("in the jail: {found:#?}");
    let (kernel, initrd) = (artifact("Image"), artifact("initrd.cpio"));
    let (socket, vsock) = (jail.path("api.sock"), jail.path("vsock"));
    let named = [&kernel, &initrd, disk, broker.path(), Path::new(&socket), Path::new(&vsock)];
    let mut expected: BTreeSet<_> =
        named.iter().map(|path| path.to_str().unwrap().to_owned()).collect();
    let of_the_kernel = ["/proc/meminfo", "/proc/pressure/memory", "/proc/sys/vm/max_map_count"];
    let devices = ["/dev/kvm", "/dev/net/tun", "/dev/urandom", "/dev/userfaultfd"];
    for path in [&of_the_kernel[..], &devices, &whole[1..]].concat() {
        expected.extend(that_exist(&[path]).into_iter().map(str::to_owned));
    }
    expected.extend(["/proc/pids", "/proc/self", "/proc/thread-self"].map(str::to_owned));
    assert_eq!(found, expected);

    let mounts = mounts(vm);
    println!("mounted there: {mounts:#?}");
    let written: BTreeSet<_> = mounts
        .iter()
        .filter(|(_, _, is_written)| *is_written)
        .map(|(at, ..)| at.as_str())
        .collect();
    let folder = jail.folder();
    let own = [folder.to_str().unwrap(), disk.to_str().unwrap(), "/proc/pids"];
    assert_eq!(written, own.into());

    let processes: BTreeSet<_> = fs::read_dir(root.join("proc/pids"))
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    assert_eq!(processes, ["1", "2", "self", "thread-self"].map(str::to_owned).into());
}

/// Rights, namespaces and descriptors of the VM's process.
fn has_no_rights(processes: Processes) {
    let Processes { init, vm, .. } = processes;
    let four = |id: u32| [id; 4].map(|id| id.to_string()).join("\t");
    assert_eq!(field(vm, "Uid"), four(USER));
    assert_eq!(field(vm, "Gid"), four(GROUP));
    assert_eq!(field(vm, "Groups"), "");
    for set in ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"] {
        assert_eq!(capabilities(vm, set), 0, "{set}");
    }
    assert_eq!((field(vm, "NoNewPrivs"), field(vm, "Seccomp")), ("1".into(), "2".into()));
    assert_eq!(capabilities(init, "CapEff"), OF_INIT);
    assert_eq!(capabilities(init, "CapPrm"), OF_INIT);

    let namespace =
        |pid: &str, kind: &str| fs::read_link(format!("/proc/{pid}/ns/{kind}")).unwrap();
    for (kind, is_own) in
        [("mnt", true), ("pid", true), ("net", true), ("ipc", true), ("uts", true), ("user", false)]
    {
        let (own, host) = (namespace(&vm.to_string(), kind), namespace("self", kind));
        println!("namespace {kind}: {} of the VM, {} of the host", own.display(), host.display());
        assert_eq!(own != host, is_own, "{kind}");
    }
    let devices = fs::read_to_string(format!("/proc/{vm}/net/dev")).unwrap();
    let names: Vec<_> =
        devices.lines().skip(2).map(|line| line.split(':').next().unwrap().trim()).collect();
    assert_eq!(names, ["lo"]);

    // What is open of files is of what is mounted in the jail: a folder of the host's would be a way out of the root.
    let mountinfo = fs::read_to_string(format!("/proc/{vm}/mountinfo")).unwrap();
    let mounted: BTreeSet<_> =
        mountinfo.lines().map(|line| line.split(' ').next().unwrap()).collect();
    for entry in fs::read_dir(format!("/proc/{vm}/fd")).unwrap() {
        let name = entry.unwrap().file_name().into_string().unwrap();
        let to = fs::read_link(format!("/proc/{vm}/fd/{name}")).unwrap();
        let info = fs::read_to_string(format!("/proc/{vm}/fdinfo/{name}")).unwrap();
        let mount = info.lines().find_map(|line| line.strip_prefix("mnt_id:")).unwrap().trim();
        let is_of_files = to.is_absolute() && !to.starts_with("/memfd:");
        assert!(!is_of_files || mounted.contains(mount), "a descriptor of {}", to.display());
    }
}

#[test]
fn from_inside_nothing_of_the_host_is_seen_but_what_the_vm_was_given() {
    Lab::new().as_root().run(|| {
        let (jail, others) = (Jail::new(), Scratch::new());
        let disk = others.file("disk.img", vec![0; 1 << 20]);
        others.file("secret", "of another");
        chown(&disk, Some(USER), Some(GROUP)).unwrap();
        let broker = Broker::start(&["--capacity", "64M"]);
        chown(broker.path(), Some(USER), None).unwrap();
        let plan = jail
            .plan(Plan::workload("count,200"))
            .with("--mte", "require")
            .with("--tag-storage", "demand")
            .with("--broker", broker.socket())
            .with("--vsock", &jail.path("vsock"))
            .with("--disk", &format!("{},id=data", disk.display()))
            .with("--jail-cgroup", "memory.max=512M")
            .with("--id", "jailed")
            .with("--sandbox", "on");
        let mut guest = plan.start();
        guest.report("tick");
        let processes = Processes::of(&guest);
        let group = "/sys/fs/cgroup/tessera/jailed";

        sees_its_own_files(processes.vm, &jail, &disk, &broker, group);
        has_no_rights(processes);
        let own = fs::read_to_string(format!("/proc/{}/cgroup", processes.vm)).unwrap();
        assert!(own.lines().any(|line| line == "0::/tessera/jailed"), "{own}");
        let setting = |name: &str| fs::read_to_string(Path::new(group).join(name)).unwrap();
        assert_eq!(setting("memory.max").trim(), (512 << 20).to_string());
        assert_eq!(setting("pids.max").trim(), "1024");
        assert_eq!(setting("cgroup.procs").trim(), processes.vm.to_string());

        // All else is as without a jail.
        let listed = Command::new(program("tesseractl")).arg("list").output().unwrap();
        assert!(String::from_utf8_lossy(&listed.stdout).contains("jailed"), "{listed:?}");
        save(&guest, &jail.path("saved"));
        guest.stop();
        until("no process", || processes.have_gone().then_some(()));
        assert!(!Path::new("/sys/fs/cgroup/tessera").exists());
        assert_eq!(jail.names(), ["saved"]);
    });
}

/// A snapshot that the jail's user can change is not believed; one that root has taken is.
#[test]
#[ignore = "long"]
fn a_vm_is_restored_in_its_jail_and_loads_its_memory_as_it_touches_it() {
    Lab::new().as_root().run(|| {
        let jail = Jail::new();
        let mut guest = jail.plan(Plan::workload("count,200")).start();
        guest.report("tick");
        let saved = jail.path("saved");
        save(&guest, &saved);
        guest.stop();

        let user = [USER.to_string(), GROUP.to_string()];
        let plan = |saved: &str| {
            let plan = Plan::waiting().with("--restore", saved).flag("--lazy");
            let plan = plan.with("--jail", jail.folder().to_str().unwrap());
            let plan = plan.with("--jail-uid", &user[0]).with("--jail-gid", &user[1]);
            plan.with("--api-sock", &jail.path("api.sock"))
        };
        let refused = plan(&saved).with("--allow", &saved).run();
        assert_eq!(refused.code, Some(78), "{refused:?}");
        assert!(refused.messages.contains("is read as root"), "{refused:?}");
        let taken = Scratch::new();
        for name in ["state", "memory"] {
            let to = taken.join(name);
            fs::copy(Path::new(&saved).join(name), &to).unwrap();
            fs::set_permissions(&to, fs::Permissions::from_mode(0o644)).unwrap();
        }
        fs::set_permissions(taken.path(), fs::Permissions::from_mode(0o755)).unwrap();
        let mut guest = plan(taken.path().to_str().unwrap()).with("--allow", &saved).start();
        guest.report("tick");

        guest.signal(Signal::TERM);
        assert_eq!(guest.finish().code, Some(143));
        assert_eq!(jail.names(), ["saved"]);
    });
}

#[test]
#[ignore = "long"]
fn a_vm_that_waits_is_configured_by_what_is_in_its_folder() {
    Lab::new().as_root().run(|| {
        let jail = Jail::new();
        for name in ["Image", "initrd.cpio"] {
            fs::copy(artifact(name), jail.path(name)).unwrap();
        }
        // What is in it is to be the user's.
        chown(jail.folder(), Some(USER), Some(GROUP)).unwrap();
        let guest = jail.plan(Plan::waiting()).start();
        guest.answers();
        let mut client = guest.client();
        let boot = json!({
            "kernel_image_path": jail.path("Image"),
            "initrd_path": jail.path("initrd.cpio"),
            "boot_args": "quiet workload=poweroff",
        });
        client.send("PUT", "/boot-source", &boot).unwrap();
        client.send("PUT", "/actions", &json!({ "action_type": "InstanceStart" })).unwrap();
        drop(client);
        guest.finish().expect_power_off();
    });
}

#[test]
#[ignore = "long"]
fn each_end_of_a_vm_is_that_of_its_jail() {
    Lab::new().as_root().run(|| {
        let jail = Jail::new();
        jail.plan(Plan::workload("poweroff")).run().expect_power_off();
        for (signal, code) in [(Signal::TERM, 143), (Signal::INT, 130), (Signal::HUP, 129)] {
            let mut guest = jail.plan(Plan::workload("count,200")).start();
            guest.report("tick");
            guest.signal(signal);
            let finished = guest.finish();
            assert_eq!(finished.code, Some(code), "{finished:#?}");
        }
        assert_eq!(jail.names(), [""; 0]);
        assert!(!Path::new(GROUPS).join("tessera").exists());
    });
}

#[test]
#[ignore = "long"]
fn whichever_process_is_killed_the_others_end_and_nothing_is_left() {
    Lab::new().as_root().run(|| {
        let mounted = || fs::read_to_string("/proc/self/mounts").unwrap();
        let before = mounted();
        for name in ["the VM", "init", "the supervisor"] {
            let jail = Jail::new();
            let mut guest = jail.plan(Plan::workload("count,200")).start();
            guest.report("tick");
            let processes = Processes::of(&guest);

            let victim = match name {
                "the VM" => processes.vm,
                "init" => processes.init,
                _ => processes.supervisor,
            };
            let pid = i32::try_from(victim).unwrap();
            kill_process(Pid::from_raw(pid).unwrap(), Signal::KILL).unwrap();

            let code = guest.finish().code;
            let expected = if name == "the supervisor" { None } else { Some(128 + 9) };
            assert_eq!(code, expected, "{name}");
            until("no process", || processes.have_gone().then_some(()));
            let group = Path::new(GROUPS).join("tessera");
            until("no control group", || (!group.exists()).then_some(()));
            assert_eq!(mounted(), before, "{name}");
            assert_eq!(jail.names(), ["api.sock"], "{name}");
        }
    });
}

/// Runs a VM that is not to start, with these flags.
fn refused(flags: &[&str]) -> Output {
    let mut command = Command::new(program("tessera"));
    command.args(["run", "--kernel"]).arg(artifact("Image")).args(["--serial", "none"]);
    command.args(flags).stdin(Stdio::null()).output().unwrap()
}

#[test]
#[ignore = "long"]
fn what_a_jail_cannot_have_is_refused_before_anything_is_made() {
    Lab::new().as_root().run(|| {
        let (jail, others) = (Jail::new(), Scratch::new());
        let folder = jail.folder();
        let folder = folder.to_str().unwrap();
        others.file("file", "");
        let (occupied, socket) = (others.path().to_str().unwrap(), others.join("api"));
        let user = ["--jail-uid", "61184", "--jail-gid", "61185"];
        let in_jail = ["--jail", folder, user[0], user[1], user[2], user[3]];
        let with = |more: &[&'static str]| [&in_jail[..], more].concat();
        let cases: Vec<(Vec<&str>, i32, &str)> = vec![
            (vec!["--jail", folder], 64, "--jail-uid"),
            (vec!["--jail-uid", "1"], 64, "--jail"),
            (vec!["--jail", folder, "--jail-uid", "0", "--jail-gid", "5"], 78, "other than 0"),
            ([&["--jail", occupied], &user[..]].concat(), 78, "has files in it"),
            ([&["--jail", "/none"], &user[..]].concat(), 66, "name a folder that is there"),
            (
                [&in_jail[..], &["--api-sock", socket.to_str().unwrap()]].concat(),
                78,
                "is not in the jail",
            ),
            (with(&["--net", "user"]), 78, "start passt outside"),
            (with(&["--boot-image"]), 78, "--boot-image"),
            (with(&["--initrd", "/none"]), 66, "/none"),
            (with(&["--jail-cgroup", "none.max=1"]), 69, "no controller 'none'"),
            (with(&["--jail-cgroup", "none"]), 64, "FILE=VALUE"),
            (with(&["--jail-parent-cgroup", "../a"]), 78, "relative path"),
            (with(&["--jail-netns", "/none"]), 66, "/none"),
            (with(&["--jail-netns", "/dev/null"]), 66, "network namespace /dev/null"),
            (with(&["--jail-cgroup", "memory.max=much"]), 69, "memory.max"),
        ];
        for (flags, code, expected) in cases {
            let output = refused(&flags);
            let said = String::from_utf8_lossy(&output.stderr);
            assert_eq!(output.status.code(), Some(code), "{flags:?}: {said}");
            assert!(said.contains(expected), "{flags:?}: {said}");
            assert!(!Path::new(GROUPS).join("tessera").exists(), "{flags:?}");
            assert_eq!(jail.names(), [""; 0], "{flags:?}");
        }
        // Not by another user.
        let mut command = Command::new(program("tessera"));
        command.args(["run", "--kernel", "/k"]).args(in_jail).uid(USER).gid(GROUP);
        let output = command.output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(said.contains("made by root") && output.status.code() == Some(77), "{output:?}");
    });
}

/// The lab's host runs from its initramfs, whose root no other can take the place of. Here it has another.
#[test]
#[ignore = "long"]
fn a_root_that_can_be_replaced_is() {
    Lab::new().as_root().run(|| {
        let jail = Jail::new();
        let command = jail.plan(Plan::workload("poweroff")).with("--sandbox", "on").command();
        let words = [command.get_program()].into_iter().chain(command.get_args());
        let words: Vec<_> = words.map(|word| format!("'{}'", word.to_str().unwrap())).collect();
        let root = jail.0.join("root");
        fs::create_dir(&root).unwrap();
        let script = format!(
            "mount --rbind / {root} && cd {root} && mount --move . / && exec chroot . {command}",
            root = root.display(),
            command = words.join(" ")
        );

        let output = Command::new("unshare").args(["-m", "sh", "-c", &script]).output().unwrap();

        assert!(output.status.success(), "{output:?}");
        assert_eq!(jail.names(), [""; 0]);
    });
}

/// A host as a client of Firecracker's has it.
struct Firecracker {
    scratch: Scratch,
    id: &'static str,
}

impl Firecracker {
    fn new(id: &'static str) -> Self {
        let scratch = Scratch::new();
        for name in ["firecracker", "jailer"] {
            symlink(program("tessera"), scratch.join(name)).unwrap();
        }
        let client = Self { scratch, id };
        fs::create_dir_all(client.root()).unwrap();
        for name in ["Image", "initrd.cpio"] {
            let file = client.root().join(name);
            fs::copy(artifact(name), &file).unwrap();
            chown(&file, Some(USER), Some(GROUP)).unwrap();
        }
        client
    }

    fn root(&self) -> PathBuf {
        self.scratch.join("srv").join("firecracker").join(self.id).join("root")
    }

    /// Starts the jailer with these options, and the program with those.
    fn start(&self, options: &[&str], more: &[&str]) -> Child {
        let mut command = Command::new(self.scratch.join("jailer"));
        command.args(["--id", self.id]).arg("--exec-file").arg(self.scratch.join("firecracker"));
        command.args(["--uid", &USER.to_string(), "--gid", &GROUP.to_string()]);
        fs::create_dir_all(self.scratch.join("srv")).unwrap();
        command.arg("--chroot-base-dir").arg(self.scratch.join("srv")).args(options);
        command.arg("--").args(more).env("SECRET", "of the client");
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command.spawn().unwrap()
    }

    /// Configures and starts the guest through the socket at this path of the jail.
    fn boot(&self, socket: &str, workload: &str) {
        let socket = self.root().join(socket);
        let mut client = until("an answer on the API's socket", || {
            let mut client = Client::connect(&socket, PATIENCE).ok()?;
            client.instance().is_ok().then_some(client)
        });
        let boot = json!({
            "kernel_image_path": "/Image",
            "initrd_path": "/initrd.cpio",
            "boot_args": format!("quiet workload={workload}"),
        });
        client.send("PUT", "/boot-source", &boot).unwrap();
        let machine = json!({ "vcpu_count": 1, "mem_size_mib": 128 });
        client.send("PUT", "/machine-config", &machine).unwrap();
        client.send("PUT", "/actions", &json!({ "action_type": "InstanceStart" })).unwrap();
    }
}

#[test]
fn a_client_of_firecracker_starts_a_vm_in_its_jailer() {
    Lab::new().as_root().run(|| {
        let client = Firecracker::new("vm-1");
        let options = [
            "--cgroup-version",
            "2",
            "--cgroup",
            "memory.max=512M",
            "--resource-limit",
            "no-file=1024",
        ];
        let jailer = client.start(&options, &[]);

        client.boot("run/firecracker.socket", "count,200");

        // The jailer has become the program.
        let vm = jailer.id();
        assert_eq!(field(vm, "Name"), "firecracker");
        assert_eq!(field(vm, "Uid").split('\t').next(), Some(USER.to_string().as_str()));
        assert_eq!((field(vm, "Groups"), capabilities(vm, "CapBnd")), (String::new(), 0));
        let environment = fs::read_to_string(format!("/proc/{vm}/environ")).unwrap();
        assert_eq!(environment, "");
        let limits = fs::read_to_string(format!("/proc/{vm}/limits")).unwrap();
        let files = limits.lines().find(|line| line.starts_with("Max open files")).unwrap();
        // The sandbox leaves it less than the jailer.
        let most = files.split_whitespace().nth(4).and_then(|most| most.parse::<u32>().ok());
        assert!(most.is_some_and(|most| most <= 1024), "{files}");
        let own = fs::read_to_string(format!("/proc/{vm}/cgroup")).unwrap();
        assert!(own.contains("0::/firecracker/vm-1"), "{own}");
        let root = fs::read_dir(format!("/proc/{vm}/root")).unwrap();
        let names: BTreeSet<_> =
            root.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        let expected =
            ["Image", "dev", "firecracker", "firecracker.pid", "initrd.cpio", "proc", "run", "sys"];
        assert_eq!(names, expected.map(str::to_owned).into());
        let kvm = fs::metadata(client.root().join("dev/kvm")).unwrap();
        assert_eq!((kvm.uid(), kvm.permissions().mode() & 0o777), (USER, 0o600));

        // A second one would take its socket and its devices. The file is the VM's to write.
        fs::write(client.root().join("firecracker.pid"), "1").unwrap();
        let second = client.start(&options, &[]).wait_with_output().unwrap();
        let said = String::from_utf8_lossy(&second.stderr);
        assert!(said.contains(&format!("runs, process {vm}:")), "{said}");
        assert_eq!(second.status.code(), Some(73), "{said}");

        let socket = client.root().join("run/firecracker.socket");
        let mut api = Client::connect(&socket, PATIENCE).unwrap();
        api.send("PUT", "/actions", &json!({ "action_type": "Stop" })).unwrap();
        let output = jailer.wait_with_output().unwrap();
        assert_eq!(output.status.code(), Some(12), "{output:?}");
        // As there, what the jailer has made is its starter's to remove.
        for group in ["firecracker/vm-1", "firecracker"] {
            fs::remove_dir(Path::new(GROUPS).join(group)).unwrap();
        }
    });
}

#[test]
#[ignore = "long"]
fn a_jailer_leaves_its_program_in_the_background_and_in_a_namespace_of_processes() {
    Lab::new().as_root().run(|| {
        let client = Firecracker::new("vm-2");
        let options = ["--daemonize", "--new-pid-ns"];
        // A VM before this one may have left links to what the client has put there for it to write to.
        let shared = client.root().join("shared");
        fs::create_dir(&shared).unwrap();
        for name in ["dev", "run", "proc", "sys"] {
            symlink("/shared", client.root().join(name)).unwrap();
        }

        let output = client.start(&options, &["--api-sock", "/api"]).wait_with_output().unwrap();

        assert!(output.status.success(), "{output:?}");
        let pid: u32 = until("the program's number", || {
            fs::read_to_string(client.root().join("firecracker.pid")).ok()?.parse().ok()
        });
        assert_eq!(field(pid, "NSpid").split('\t').nth(1), Some("1"));
        assert_eq!(fs::read_dir(&shared).unwrap().count(), 0);
        assert_eq!(fs::metadata(&shared).unwrap().uid(), 0);
        assert!(client.root().join("dev").symlink_metadata().unwrap().is_dir());
        for number in 0..3 {
            let to = fs::read_link(format!("/proc/{pid}/fd/{number}")).unwrap();
            assert_eq!(to, Path::new("/dev/null"));
        }
        client.boot("api", "poweroff");
        let path = format!("/proc/{pid}");
        let has_ended = || {
            let state = fs::read_to_string(format!("{path}/stat")).unwrap_or_default();
            (state.is_empty() || state.contains(") Z ")).then_some(())
        };
        until("the end of the guest", has_ended);
    });
}

#[test]
#[ignore = "long"]
fn a_jailer_refuses_what_firecrackers_does() {
    Lab::new().as_root().run(|| {
        let client = Firecracker::new("vm-3");
        let said = |options: &[&str]| {
            let output = client.start(options, &[]).wait_with_output().unwrap();
            assert!(!output.status.success());
            String::from_utf8_lossy(&output.stderr).into_owned()
        };

        assert!(said(&["--cgroup", "cpu.shares=5"]).contains("--cgroup-version 2"));
        assert!(said(&["--netns", "/none"]).contains("/none"));
        assert!(
            said(&["--parent-cgroup", "/a", "--cgroup-version", "2", "--cgroup", "pids.max=9"])
                .contains("relative path")
        );
        assert!(said(&["--resource-limit", "cpu=1"]).contains("no-file=NUMBER"));
        let version =
            Command::new(client.scratch.join("jailer")).arg("--version").output().unwrap();
        assert!(String::from_utf8_lossy(&version.stdout).starts_with("Jailer v"));
        let names = fs::read_dir(client.root()).unwrap().count();
        assert_eq!(names, 2);
    });
}
