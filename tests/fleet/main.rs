//! The scripts of resources/fleet/slurm, each run by itself with stand-ins of the programs that it calls. Under the real
//! engine they are run by tests/fleet/slurm.sh, and with real guests by tests/fleet/cluster.sh.
#![allow(clippy::unwrap_used)]

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use testing::scratch::Scratch;

/// A node with stand-ins: each writes its words to a file, and does what a test says.
struct Node(Scratch);

impl Node {
    fn new() -> Self {
        let node = Self(Scratch::new());
        for name in ["scontrol", "tessera", "tesseractl", "pgrep"] {
            node.stand_in(name, "");
        }
        // There is no process and no job.
        node.stand_in("pgrep", "exit 1");
        node.stand_in("scontrol", "echo 'State=IDLE Reason= TresPerNode=gres:tagmib:2K'");
        node
    }

    fn stand_in(&self, name: &str, script: &str) {
        let log = self.0.join("calls");
        let text = format!("#!/bin/sh\necho \"{name} $*\" >>'{}'\n{script}\n", log.display());
        fs::create_dir_all(self.0.join("bin")).unwrap();
        let path = self.0.join("bin").join(name);
        fs::write(&path, text).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    }

    fn run(&self, script: &str, more: &[(&str, &str)], words: &[&str]) -> Output {
        let mut command = Command::new(scripts().join(script));
        command.args(words).env_clear();
        command.env("PATH", format!("{}:/usr/sbin:/usr/bin:/bin", self.0.join("bin").display()));
        command.env("TESSERA_FLEET_CONFIG", "/nonexistent");
        command.env("TESSERA_FLEET_DIR", self.jobs()).env("TESSERA_FLEET_PAUSE", "0.01");
        command.env("TESSERA_BROKER", "/broker").env("SLURMD_NODENAME", "n1");
        command.env("SLURM_JOB_ID", "7").env("SLURM_JOB_UID", self.owner().to_string());
        command.envs(more.iter().copied()).output().unwrap()
    }

    fn jobs(&self) -> PathBuf {
        self.0.join("jobs")
    }

    /// Who runs this test, to whom files can be given.
    fn owner(&self) -> u32 {
        fs::metadata(self.0.path()).unwrap().uid()
    }

    fn calls(&self) -> String {
        fs::read_to_string(self.0.join("calls")).unwrap_or_default()
    }

    /// With what reason the node was drained.
    fn drained(&self) -> Option<String> {
        let calls = self.calls();
        let drain = "scontrol update NodeName=n1 State=DRAIN Reason=";
        calls.lines().find_map(|line| line.strip_prefix(drain)).map(str::to_owned)
    }
}

fn scripts() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().join("resources/fleet/slurm")
}

fn succeeded(output: &Output) {
    assert!(output.status.success(), "{output:?}");
}

#[test]
fn the_prolog_makes_a_folder_of_the_users_and_drains_a_node_without_broker() {
    let node = Node::new();
    // Of an attempt before.
    fs::create_dir_all(node.jobs().join("7/old")).unwrap();

    succeeded(&node.run("prolog", &[], &[]));

    let made = fs::metadata(node.jobs().join("7")).unwrap();
    assert_eq!((made.mode() & 0o7777, made.uid()), (0o700, node.owner()));
    assert!(!node.jobs().join("7/old").exists());
    assert_eq!(node.drained(), None);

    node.stand_in("tesseractl", "exit 69");
    assert_eq!(node.run("prolog", &[], &[]).status.code(), Some(1));
    let reason = "tessera: job 7: the broker at /broker does not answer";
    assert_eq!(node.drained().as_deref(), Some(reason));
}

#[test]
fn the_epilog_removes_the_folder_and_drains_nothing_where_nothing_is_left() {
    let node = Node::new();
    fs::create_dir_all(node.jobs().join("7")).unwrap();
    // The lease of another job, whose number begins alike.
    let lease = "tessera_lease_reserved_bytes{supply=\"ledger\",name=\"slurm-77\"} 1";
    node.stand_in("tesseractl", &format!("echo '{lease}'"));

    succeeded(&node.run("epilog", &[], &[]));

    assert!(!node.jobs().join("7").exists());
    assert_eq!(node.drained(), None);
}

#[test]
fn the_epilog_drains_a_node_on_which_something_is_left() {
    let lease = "echo 'tessera_lease_reserved_bytes{supply=\"ledger\",name=\"slurm-7\"} 1'";
    let mut vm = Command::new("sleep").arg("60").env("SLURM_JOB_ID", "7").spawn().unwrap();
    let process = format!("echo {}", vm.id());
    let running = format!("tessera: job 7: process {} has not ended", vm.id());
    let reasons = [
        ("tesseractl", lease, "tessera: job 7: its lease is still there"),
        ("tesseractl", "exit 69", "tessera: job 7: the broker at /broker does not answer"),
        ("pgrep", &process, &running),
    ]
    .map(|(program, script, reason)| {
        let node = Node::new();
        node.stand_in(program, script);
        let output = node.run("epilog", &[("TESSERA_FLEET_TRIES", "2")], &[]);
        (output.status.success(), node.drained(), reason.to_owned())
    });
    vm.kill().unwrap();
    vm.wait().unwrap();
    for (succeeded, drained, reason) in reasons {
        assert!(succeeded);
        assert_eq!(drained, Some(reason));
    }
    // A VM that is not the job's.
    let node = Node::new();
    node.stand_in("pgrep", &format!("echo {}", std::process::id()));
    succeeded(&node.run("epilog", &[], &[]));
    assert_eq!(node.drained(), None);
}

#[test]
fn the_epilog_waits_for_a_lease_that_is_being_closed() {
    let node = Node::new();
    let gone = node.0.join("gone");
    let lease = "tessera_lease_reserved_bytes{supply=\"ledger\",name=\"slurm-7\"} 1";
    let script = format!("test -e '{0}' || {{ touch '{0}'; echo '{lease}'; }}", gone.display());
    node.stand_in("tesseractl", &script);

    succeeded(&node.run("epilog", &[], &[]));

    assert_eq!(node.drained(), None);
    assert_eq!(node.calls().matches("tesseractl pool").count(), 2);
}

#[test]
fn the_health_check_drains_a_sick_node_and_resumes_one_that_it_has_drained() {
    let node = Node::new();
    succeeded(&node.run("health", &[], &[]));
    assert!(node.calls().contains("tesseractl fleet gres --broker /broker --node n1 --update"));
    assert_eq!(node.drained(), None);

    node.stand_in("tessera", "exit 13");
    succeeded(&node.run("health", &[], &[]));
    let reason = "tessera-health: tessera doctor finds what keeps guests from running";
    assert_eq!(node.drained().as_deref(), Some(reason));

    let resume = "scontrol update NodeName=n1 State=RESUME";
    for (by, resumed) in [(reason, true), ("a disk is exchanged", false)] {
        let node = Node::new();
        let state = format!("echo 'State=IDLE+DRAIN Reason={by} [root@2026-11-28T00:00:00]'");
        node.stand_in("scontrol", &state);
        succeeded(&node.run("health", &[], &[]));
        assert_eq!(node.calls().contains(resume), resumed, "{by}");

        // One reason is enough.
        node.stand_in("tessera", "exit 13");
        succeeded(&node.run("health", &[], &[]));
        assert_eq!(node.drained(), None, "{by}");
    }
}

#[test]
fn a_job_has_the_status_of_its_vm_and_its_share_of_tag_storage() {
    let node = Node::new();
    fs::create_dir_all(node.jobs().join("7")).unwrap();
    node.stand_in("tessera", "exit 11");

    let output = node.run("vm.job", &[], &["--kernel", "Image"]);

    assert_eq!(output.status.code(), Some(11), "{output:?}");
    let (api, calls) = (node.jobs().join("7/api"), node.calls());
    let line = format!(
        "tessera run --id slurm-7 --api-sock {} --broker /broker --tag-min 2048M --tag-max 2048M --kernel Image\n",
        api.display()
    );
    assert!(calls.contains(&line), "{calls}");
    let comment = "scontrol update JobId=7 Comment=footprint_peak_kib=0 tag_storage_peak_kib=0 supply=none \
                   status=11 restarts=0\n";
    assert!(calls.contains(comment), "{calls}");
}

#[test]
fn a_guest_that_asks_for_a_reset_is_started_again() {
    let node = Node::new();
    fs::create_dir_all(node.jobs().join("7")).unwrap();
    let once = node.0.join("once");
    node.stand_in(
        "tessera",
        &format!("test -e '{0}' || {{ touch '{0}'; exit 10; }}", once.display()),
    );

    succeeded(&node.run("vm.job", &[], &[]));

    assert_eq!(node.calls().matches("tessera run").count(), 2);
}

#[test]
fn a_job_is_requeued_for_the_codes_of_the_configuration_and_not_for_ever() {
    let configuration = fs::read_to_string(scripts().join("tessera.conf")).unwrap();
    let codes = configuration.lines().find_map(|line| line.strip_prefix("RequeueExit=")).unwrap();
    let node = Node::new();
    fs::create_dir_all(node.jobs().join("7")).unwrap();
    for code in codes.split(',') {
        node.stand_in("tessera", &format!("exit {code}"));
        let status = |restarts| {
            node.run("vm.job", &[("SLURM_RESTART_COUNT", restarts)], &[]).status.code().unwrap()
        };

        assert_eq!(status("4"), code.parse::<i32>().unwrap());
        assert_eq!(status("5"), 1, "code {code}");
    }
    // A panic of the guest's is the same everywhere.
    node.stand_in("tessera", "exit 11");
    assert_eq!(node.run("vm.job", &[("SLURM_RESTART_COUNT", "5")], &[]).status.code(), Some(11));
}

#[test]
fn sigterm_shuts_the_guest_down_and_does_not_end_the_vmm() {
    let node = Node::new();
    fs::create_dir_all(node.jobs().join("7")).unwrap();
    let (up, off) = (node.0.join("up"), node.0.join("off"));
    // The VM sends SIGTERM to the whole job, itself included, and ends when the power key is pressed.
    let vm = format!(
        "kill -TERM $PPID $$; touch '{}'; until test -e '{}'; do sleep 0.01; done",
        up.display(),
        off.display()
    );
    node.stand_in("tessera", &vm);
    node.stand_in("tesseractl", &format!("test \"$1\" != stop || touch '{}'", off.display()));

    succeeded(&node.run("vm.job", &[], &[]));

    assert!(up.exists());
    assert!(node.calls().contains("tesseractl stop slurm-7 --timeout 60"), "{}", node.calls());
    assert!(!node.calls().contains("--force"), "{}", node.calls());
}

/// A node whose job moves: `saved` is its snapshot in the shared folder.
struct Moving {
    node: Node,
    shared: PathBuf,
    saved: PathBuf,
}

impl Moving {
    fn new() -> Self {
        let node = Node::new();
        let shared = node.0.join("shared");
        fs::create_dir_all(&shared).unwrap();
        fs::create_dir_all(node.jobs().join("7")).unwrap();
        let saved = shared.join("slurm-7/vm");
        Self { node, shared, saved }
    }

    fn with_snapshot() -> Self {
        let moving = Self::new();
        fs::create_dir_all(&moving.saved).unwrap();
        fs::write(moving.saved.join("state"), "").unwrap();
        moving
    }

    fn run(&self, words: &[&str]) -> Output {
        let shared = self.shared.to_str().unwrap();
        self.node.run("vm.job", &[("TESSERA_FLEET_MOVE", shared)], words)
    }

    /// A VM that has the job signalled, and ends as `tesseractl` does what `off` says to.
    fn signalled(&self, restarts: &str, tesseractl: &str) -> Output {
        let off = self.node.0.join("off");
        let job = format!("echo 'JobId=7 Requeue=1 Restarts={restarts} BatchFlag=1'");
        self.node.stand_in("scontrol", &job);
        let vm = format!(
            "kill -TERM $PPID $$; until test -e '{}'; do sleep 0.01; done; exit 12",
            off.display()
        );
        self.node.stand_in("tessera", &vm);
        let stop = format!("test \"$1\" != stop || touch '{}'", off.display());
        self.node.stand_in("tesseractl", &format!("{tesseractl}\n{stop}"));
        self.run(&["--kernel", "Image"])
    }
}

const SAVES: &str = "test \"$1\" != snapshot || { mkdir \"$3\" && touch \"$3/state\"; }";

#[test]
fn a_job_that_is_requeued_is_saved_in_the_shared_folder() {
    let moving = Moving::new();

    let output = moving.signalled("1", SAVES);

    let (calls, saved) = (moving.node.calls(), moving.saved.display());
    let allowed = format!("--allow {} --kernel Image\n", moving.shared.join("slurm-7").display());
    assert!(calls.contains(&allowed), "{calls}");
    let save = format!("tesseractl snapshot slurm-7 {saved} --keep-paused --timeout 60\n");
    assert!(calls.contains(&save), "{calls} {output:?}");
    assert!(calls.contains("tesseractl stop slurm-7 --force"), "{calls}");
    assert!(!calls.contains("tesseractl stop slurm-7 --timeout"), "{calls}");
    assert!(moving.saved.join("state").exists());
    let folder = fs::metadata(moving.shared.join("slurm-7")).unwrap();
    assert_eq!(folder.mode() & 0o7777, 0o700);
}

#[test]
fn a_job_that_is_cancelled_or_cannot_be_saved_is_shut_down() {
    for (restarts, tesseractl, tried) in
        [("0", SAVES, false), ("1", "test $1 != snapshot || exit 1", true)]
    {
        let moving = Moving::new();

        moving.signalled(restarts, tesseractl);

        let calls = moving.node.calls();
        assert_eq!(calls.contains("tesseractl snapshot"), tried, "{calls}");
        assert!(calls.contains("tesseractl stop slurm-7 --timeout 60"), "{calls}");
        assert!(!moving.shared.join("slurm-7").exists());
    }
}

#[test]
fn a_saved_vm_continues_with_its_snapshot_out_of_the_way() {
    let moving = Moving::with_snapshot();
    let (runs, saved) = (moving.node.0.join("runs"), moving.saved.display());
    // The guest runs from the resume on.
    let vm = format!("until test -e '{}'; do sleep 0.01; done", runs.display());
    moving.node.stand_in("tessera", &vm);
    let client = format!(
        "case $1 in status) echo '  \"state\": \"Paused\",' ;; resume) test -e '{saved}' || touch '{}' ;; esac",
        runs.display()
    );
    moving.node.stand_in("tesseractl", &client);

    let output =
        moving.run(&["--kernel", "Image", "--serial", "none", "--log=/log", "--memory", "1G"]);

    succeeded(&output);
    let calls = moving.node.calls();
    let words = format!("--restore {saved} --paused --serial none --log=/log\n");
    assert!(calls.contains(&words), "{calls}");
    assert!(!moving.shared.join("slurm-7").exists());
}

#[test]
fn a_vm_that_a_host_does_not_restore_is_held_with_its_snapshot() {
    let configuration = fs::read_to_string(scripts().join("tessera.conf")).unwrap();
    assert!(configuration.lines().any(|line| line == "RequeueExitHold=75"));
    let moving = Moving::with_snapshot();
    moving.node.stand_in("tessera", "echo 'tessera: this host has no MTE' >&2; exit 69");

    let output = moving.run(&["--kernel", "Image"]);

    assert_eq!(output.status.code(), Some(75), "{output:?}");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(said.contains("tessera: this host has no MTE"), "{said}");
    assert!(said.contains("scontrol update JobId=7 ExcNodeList=n1; scontrol release 7"), "{said}");
    assert!(moving.saved.join("state").exists());

    // What may be better another time is requeued as ever, and the snapshot stays, too.
    moving.node.stand_in("tessera", "exit 15");
    assert_eq!(moving.run(&[]).status.code(), Some(15));
    assert!(moving.saved.join("state").exists());
}

#[test]
fn a_vm_that_does_not_continue_before_its_job_ends_keeps_its_snapshot() {
    let moving = Moving::with_snapshot();

    moving.signalled("0", SAVES);

    let calls = moving.node.calls();
    assert!(calls.contains("tesseractl stop slurm-7 --force"), "{calls}");
    assert!(!calls.contains("tesseractl snapshot"), "{calls}");
    assert!(moving.saved.join("state").exists());
}

#[test]
fn a_job_is_sent_elsewhere_where_the_shared_folder_is_missing() {
    let moving = Moving::new();
    fs::remove_dir(&moving.shared).unwrap();

    let output = moving.run(&["--kernel", "Image"]);

    assert_eq!(output.status.code(), Some(73), "{output:?}");
    assert!(!moving.node.calls().contains("tessera run"), "{}", moving.node.calls());
}
