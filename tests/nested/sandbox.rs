//! What threads of a VM may not do any more once its guest runs.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::process::{Command, Output, Stdio};

use rustix::process::{Pid, Signal, kill_process};
use testing::broker::Broker;
use testing::guest::{Finished, Guest, Plan};
use testing::inject::{Change, thread_of};
use testing::lab::{Lab, artifact};
use testing::scratch::Scratch;
use testing::template::Holder;
use testing::wait::until;
use vmm::sandbox::{Files, Role, SandboxArgs, SandboxMode, SeccompMode};
use vmm::sys::thread::spawn;

// System calls of arm64.
const IOCTL: u64 = 29;
const EPOLL_PWAIT: u64 = 22;
const OPENAT: u32 = 56;
const SYNC: u32 = 81;
const PTRACE: u32 = 117;
const CLONE: u32 = 220;
const EXECVE: u32 = 221;
const MMAP: u32 = 222;

/// `PROT_READ | PROT_EXEC`.
const EXECUTABLE: u64 = 5;

/// What a thread's `status` says.
fn field(process: u32, thread: i32, name: &str) -> String {
    let status = fs::read_to_string(format!("/proc/{process}/task/{thread}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
    line.unwrap_or_else(|| panic!("no {name} in {status}")).trim().to_owned()
}

fn threads(process: u32) -> Vec<i32> {
    let tasks = fs::read_dir(format!("/proc/{process}/task")).unwrap();
    tasks.map(|task| task.unwrap().file_name().to_str().unwrap().parse().unwrap()).collect()
}

/// A VM with a thread of each kind that one can have at once.
fn with_all_devices(scratch: &Scratch, broker: &Broker) -> Guest {
    let disk = scratch.file("disk.img", vec![0; 1 << 20]);
    let plan = Plan::workload("count,200")
        .with("--memory", "128M")
        .with("--mte", "require")
        .with("--tag-storage", "demand")
        .with("--broker", broker.socket())
        .with("--vsock", scratch.join("vsock").to_str().unwrap())
        .with("--disk", &format!("{},id=data", disk.display()));
    let mut guest = plan.start();
    guest.report("tick");
    guest
}

fn forbidden(finished: &Finished, thread: &str, call: &str) {
    assert_eq!(finished.code, Some(16), "{thread}, {call}: {finished:#?}");
    let expected = format!("thread {thread} made the system call {call} (");
    assert!(finished.messages.contains(&expected), "{thread}, {call}: {finished:#?}");
}

/// The next call of a thread of a new VM is this one. How the VM ends.
fn calls(name: &str, call: u32, arguments: &[(usize, u64)]) -> Finished {
    let (scratch, broker) = (Scratch::new(), Broker::start(&["--capacity", "64M"]));
    let guest = with_all_devices(&scratch, &broker);
    let thread = thread_of(guest.pid(), name).unwrap();
    Change { thread, call: None, becomes: Some(call), arguments }.make().unwrap();
    let socket = guest.socket().to_owned();
    let finished = guest.finish();
    assert!(!socket.exists(), "{name}: its socket is left");
    finished
}

#[test]
fn a_call_that_a_vcpu_has_no_use_for_ends_the_vm_and_is_named() {
    Lab::new().as_root().run(|| {
        forbidden(&calls("vcpu0", OPENAT, &[]), "vcpu0", "openat");
    });
}

#[test]
#[ignore = "long"]
fn no_thread_makes_calls_that_it_has_no_use_for() {
    Lab::new().as_root().run(|| {
        // Another program, another process, memory that could be executed, a look at another process.
        let [program, process]: [(_, _, &[_]); 2] =
            [(EXECVE, "execve", &[]), (CLONE, "clone", &[(0, 17)])];
        let memory: (_, _, &[_]) = (MMAP, "mmap", &[(2, EXECUTABLE)]);
        for (thread, (call, name, arguments)) in [
            ("tessera", program),
            ("tessera", process),
            ("vcpu0", memory),
            ("faults", process),
            ("disk-data", program),
            ("vsock", (PTRACE, "ptrace", &[])),
        ] {
            forbidden(&calls(thread, call, arguments), thread, name);
        }
    });
}

#[test]
#[ignore = "long"]
fn an_argument_that_was_never_meant_ends_the_vm() {
    Lab::new().as_root().run(|| {
        let (scratch, broker) = (Scratch::new(), Broker::start(&["--capacity", "64M"]));
        let guest = with_all_devices(&scratch, &broker);
        let thread = thread_of(guest.pid(), "vcpu0").unwrap();

        // KVM_CREATE_VM in the place of KVM_RUN.
        let arguments = &[(1, 0xae01)];
        Change { thread, call: Some(IOCTL), becomes: None, arguments }.make().unwrap();

        forbidden(&guest.finish(), "vcpu0", "ioctl");
    });
}

#[test]
#[ignore = "long"]
fn a_call_of_the_broker_or_a_holder_ends_it() {
    Lab::new().as_root().run(|| {
        for name in ["tessera", "client"] {
            let (scratch, broker) = (Scratch::new(), Broker::start(&["--capacity", "64M"]));
            let guest = with_all_devices(&scratch, &broker);
            let thread = thread_of(broker.pid(), name).unwrap();

            Change { thread, call: None, becomes: Some(EXECVE), arguments: &[] }.make().unwrap();

            let (code, said) = broker.wait_for_end();
            assert_eq!(code, Some(16), "{name}: {said}");
            assert!(said.contains(&format!("thread {name} made the system call execve")), "{said}");
            guest.stop();
        }
    });
}

#[test]
#[ignore = "long"]
fn every_thread_has_a_filter_and_no_new_privileges() {
    Lab::new().as_root().run(|| {
        let (scratch, broker) = (Scratch::new(), Broker::start(&["--capacity", "64M"]));
        let guest = with_all_devices(&scratch, &broker);
        // Its thread starts with the first request.
        guest.client().footprint().unwrap();
        until("all threads", || thread_of(guest.pid(), "footprint"));

        for (process, least) in [(guest.pid(), 6), (broker.pid(), 2)] {
            let threads = threads(process);
            assert!(threads.len() >= least, "{threads:?}");
            for thread in threads {
                let field = |name| field(process, thread, name);
                let name = field("Name");
                assert_eq!(field("Seccomp"), "2", "{name}");
                assert_eq!(field("NoNewPrivs"), "1", "{name}");
                // What starts later has the main thread's filter as well.
                let filters = if ["footprint", "client"].contains(&&*name) { "2" } else { "1" };
                assert_eq!(field("Seccomp_filters"), filters, "{name}");
            }
        }
        guest.stop();
    });
}

/// Another call, which has no effect and answers 0, in the place of the main thread's wait for events.
fn waits_otherwise(guest: &Guest) {
    let thread = thread_of(guest.pid(), "tessera").unwrap();
    Change { thread, call: Some(EPOLL_PWAIT), becomes: Some(SYNC), arguments: &[] }.make().unwrap();
}

#[test]
#[ignore = "long"]
fn a_filter_that_logs_lets_the_call_through() {
    Lab::new().as_root().run(|| {
        for (mode, ends) in [("on", true), ("log", false)] {
            let mut guest = Plan::workload("count,200").with("--seccomp", mode).start();
            guest.report("tick");
            guest.drain();

            waits_otherwise(&guest);

            if ends {
                forbidden(&guest.finish(), "tessera", "sync");
            } else {
                guest.report("tick");
                guest.client().pause().unwrap();
                guest.stop();
            }
        }
    });
}

#[test]
#[ignore = "long"]
fn filters_can_be_left_out_or_log() {
    Lab::new().as_root().run(|| {
        for (mode, seccomp) in [("off", "0"), ("log", "2")] {
            let plan = Plan::workload("count,200").with("--seccomp", mode);
            let mut guest = plan.start();
            guest.report("tick");
            let thread = thread_of(guest.pid(), "vcpu0").unwrap();
            assert_eq!(field(guest.pid(), thread, "Seccomp"), seccomp);

            guest.report("tick");
            guest.stop();
        }
    });
}

/// Names the role to the process that a test starts for itself.
const ROLE: &str = "TESSERA_TEST_ROLE";

/// Runs a test of this file again in a process that it may confine.
fn again(test: &str, role: &str) -> Output {
    Command::new(std::env::current_exe().unwrap())
        .args(["--exact", &format!("sandbox::{test}"), "--include-ignored", "--nocapture"])
        .env(ROLE, role)
        .stdin(Stdio::null())
        .output()
        .unwrap()
}

/// What a process does first that is to be confined.
fn begin(sandbox: SandboxMode) {
    vmm::sys::fatal::install();
    let args = SandboxArgs { seccomp: SeccompMode::On, sandbox };
    vmm::sandbox::begin(&args, Files::default()).unwrap();
}

/// As bin/tessera.rs has it.
#[test]
#[ignore = "long"]
fn a_panic_gets_through_each_filter() {
    let test = "a_panic_gets_through_each_filter";
    if let Ok(role) = std::env::var(ROLE) {
        return panics_in(&role);
    }
    Lab::new().run(|| {
        for role in vmm::sandbox::ROLES {
            let output = again(test, &format!("{role:?}"));

            let said = String::from_utf8_lossy(&output.stderr);
            assert_eq!(output.status.code(), Some(70), "{role:?}: {said}");
            assert!(said.contains("a fault of the program"), "{role:?}: {said}");
        }
    });
}

fn panics_in(role: &str) {
    let role = vmm::sandbox::ROLES.into_iter().find(|known| format!("{known:?}") == role).unwrap();
    begin(SandboxMode::Off);
    std::panic::set_hook(Box::new(|panic| vmm::error::say(&panic.to_string())));
    vmm::sandbox::confine(role).unwrap();
    let end = std::panic::catch_unwind(|| panic!("a fault of the program"));
    assert!(end.is_err());
    std::process::exit(70);
}

/// CAP_DAC_OVERRIDE and CAP_DAC_READ_SEARCH (include/uapi/linux/capability.h).
const PAST_MODES: u64 = 0b110;

#[test]
fn threads_of_roots_vm_keep_the_capability_to_open_files_or_none() {
    Lab::new().as_root().run(|| {
        let (scratch, broker) = (Scratch::new(), Broker::start(&["--capacity", "64M"]));
        let guest = with_all_devices(&scratch, &broker);

        for thread in threads(guest.pid()) {
            let name = field(guest.pid(), thread, "Name");
            let kept = match &*name {
                "vcpu0" | "disk-data" => 0,
                "tessera" | "faults" | "vsock" | "broker" => PAST_MODES,
                other => panic!("another thread: {other}"),
            };
            for (set, kept) in [("CapEff", kept), ("CapPrm", kept), ("CapInh", 0)] {
                let found = field(guest.pid(), thread, set);
                assert_eq!(u64::from_str_radix(&found, 16), Ok(kept), "{name}: {set}");
            }
        }
        let socket = guest.socket().to_owned();
        guest.stop();
        assert!(!socket.exists());
    });
}

/// The thread `faults` looks for a broker by one that it starts, also before the main thread is confined.
#[test]
fn a_thread_that_a_confined_one_starts_is_confined_as_well() {
    let test = "a_thread_that_a_confined_one_starts_is_confined_as_well";
    if std::env::var_os(ROLE).is_some() {
        return starts_a_thread_in_a_thread();
    }
    Lab::new().run(|| {
        let output = again(test, "Faults");

        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(71), "{said}");
    });
}

fn starts_a_thread_in_a_thread() {
    const STACK: usize = 64 << 10;
    begin(SandboxMode::On);
    let read = vec!["/proc/self".into()];
    vmm::sandbox::restrict_files(Files { read, ..Files::default() }).unwrap();
    let outer = || {
        let inner = spawn(Role::BrokerClient, "broker", STACK, || std::process::exit(71));
        inner.unwrap().join().unwrap();
    };
    spawn(Role::Faults, "faults", STACK, outer).unwrap().join().unwrap();
}

/// A start that fails after the main thread was confined.
#[test]
#[ignore = "long"]
fn a_process_that_is_confined_prepares_no_guest() {
    let test = "a_process_that_is_confined_prepares_no_guest";
    if std::env::var_os(ROLE).is_some() {
        begin(SandboxMode::On);
        vmm::sandbox::check_free().unwrap();
        vmm::sandbox::confine(Role::Main).unwrap();
        let refused = vmm::sandbox::check_free().unwrap_err();
        vmm::error::say(&refused.to_string());
        std::process::exit(71);
    }
    Lab::new().run(|| {
        let output = again(test, "Main");

        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(71), "{said}");
        assert!(said.contains("end it, and start another"), "{said}");
    });
}

/// The most open files of a process, as it may have them and as it may ask for them.
fn limits(pid: u32, name: &str) -> [String; 2] {
    let limits = fs::read_to_string(format!("/proc/{pid}/limits")).unwrap();
    let line = limits.lines().find_map(|line| line.strip_prefix(name)).unwrap();
    let mut words = line.split_whitespace().map(str::to_owned);
    [words.next().unwrap(), words.next().unwrap()]
}

#[test]
#[ignore = "long"]
fn a_vm_a_broker_and_a_holder_have_few_descriptors_and_leave_no_core() {
    Lab::new().as_root().run(|| {
        let (scratch, broker) = (Scratch::new(), Broker::start(&["--capacity", "64M"]));
        let holder = Holder::of_boot_files(&artifact("Image"), &artifact("initrd.cpio"));
        let guest = with_all_devices(&scratch, &broker);

        for pid in [guest.pid(), broker.pid(), holder.pid()] {
            assert_eq!(limits(pid, "Max core file size"), ["0", "0"]);
            let [soft, hard] = limits(pid, "Max open files");
            assert_eq!(soft, hard);
        }
        let open = fs::read_dir(format!("/proc/{}/fd", guest.pid())).unwrap().count() as u64;
        let [soft, _] = limits(guest.pid(), "Max open files");
        let soft: u64 = soft.parse().unwrap();
        // 1023 connections of the guest and 64 greetings; 128 others, and a number that is taken already.
        assert!((open + 1000..open + 1400).contains(&soft), "{soft} with {open} open");
        guest.stop();
    });
}

/// The process that this one has started under a name.
fn child_of(pid: u32, name: &str) -> Option<Pid> {
    let processes = fs::read_dir("/proc").unwrap().flatten();
    let mut pids = processes.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
    let found = pids.find(|child| {
        let stat = fs::read_to_string(format!("/proc/{child}/stat")).unwrap_or_default();
        // Number, name, state, parent (proc_pid_stat(5)).
        stat.contains(&format!("({name})")) && stat.split(' ').nth(3) == Some(&pid.to_string())
    });
    found.and_then(Pid::from_raw)
}

#[test]
#[ignore = "long"]
fn a_passt_that_ends_is_not_started_again_and_the_vm_says_so() {
    Lab::new().as_root().run(|| {
        let scratch = Scratch::new();
        let passt = scratch.file("passt", "#!/bin/sh\nexec sleep 1000\n");
        fs::set_permissions(&passt, fs::Permissions::from_mode(0o755)).unwrap();
        let programs = std::env::var("PATH").unwrap_or_default();
        let log = scratch.join("log");
        let plan = Plan::workload("count,200").with("--net", "user");
        let plan = plan.env("PATH", &format!("{}:{programs}", scratch.path().display()));
        let mut guest = plan.with("--log", log.to_str().unwrap()).start();
        guest.report("tick");
        let passt = until("a child", || child_of(guest.pid(), "sleep"));

        kill_process(passt, Signal::KILL).unwrap();

        let said = || fs::read_to_string(&log).unwrap();
        until("a message", || said().contains("a VM that runs starts no program").then_some(()));
        assert!(said().contains("--net stream=PATH"), "{}", said());
        guest.drain();
        guest.report("tick");
        guest.stop();
    });
}

/// As the passt of root does, which becomes another user: it takes what comes, and ends with its stream.
#[test]
#[ignore = "long"]
fn a_vm_ends_whose_passt_is_another_users() {
    let test = "a_vm_ends_whose_passt_is_another_users";
    if let Ok(stream) = std::env::var(ROLE) {
        let script = match stream.strip_prefix("ends,") {
            Some(stream) => format!("exec cat <&{stream} >/dev/null"),
            None => format!("exec sleep 1000 <&{stream}"),
        };
        let mut takes = Command::new("/bin/sh");
        takes.args(["-c", &script]);
        panic!("no shell: {}", takes.uid(65_534).gid(65_534).exec());
    }
    Lab::new().as_root().run(|| {
        let says_that_it_does_not_end = |kind: &str, program: &str| {
            let scratch = Scratch::new();
            let own = std::env::current_exe().unwrap();
            let script = format!(
                "#!/bin/sh\n{ROLE}={kind}$4 exec {} --exact sandbox::{test} --include-ignored --nocapture\n",
                own.display()
            );
            let passt = scratch.file("passt", script);
            fs::set_permissions(&passt, fs::Permissions::from_mode(0o755)).unwrap();
            let programs = std::env::var("PATH").unwrap_or_default();
            let plan = Plan::workload("count,200").with("--net", "user");
            let plan = plan.env("PATH", &format!("{}:{programs}", scratch.path().display()));
            let mut guest = plan.start();
            guest.report("tick");
            let passt = until("a child", || child_of(guest.pid(), program));

            guest.client().stop().unwrap();

            let ended = || fs::read_to_string(format!("/proc/{}/stat", guest.pid())).unwrap();
            until("the end of the VM", || ended().contains(") Z ").then_some(()));
            // The one that does not end is left, and has the VM's standard error.
            let is_left = kill_process(passt, Signal::KILL).is_ok();
            assert!(is_left || program == "cat");
            let finished = guest.finish();
            assert_eq!(finished.code, Some(12), "{program}: {finished:#?}");
            let says_so = finished.messages.contains("does not end");
            assert!(says_so || !is_left, "{finished:#?}");
            says_so
        };
        // One that ends with its stream: the VM waits two seconds, within which a busy host may not have run it, so that
        // three have a try. And one that does not end.
        assert!((0..3).any(|_| !says_that_it_does_not_end("ends,", "cat")));
        assert!(says_that_it_does_not_end("", "sleep"));
    });
}
