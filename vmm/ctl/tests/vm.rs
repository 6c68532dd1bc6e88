//! `tesseractl` as its users see it: output and exit codes, against a VM that is not there.
#![allow(clippy::unwrap_used)]

use std::path::PathBuf;
use std::process::{Command, Output};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::JoinHandle;
use std::time::Duration;

use arch::units::Bytes;
use event_manager::{EventManager, SubscriberOps};
use serde_json::{Value, json};
use tempfile::TempDir;
use tesseractl::client::Client;
use vmm::api::model::{
    AutoBalloon, Balloon, BalloonStats, BalloonStatsUpdate, BalloonUpdate, DriveUpdate,
    DriverState, Footprint, GuestStats, InstanceInfo, NetworkInterfaceUpdate, Reporting,
    SnapshotConfirm, SnapshotCreate, SnapshotLoad, SnapshotType, State, TagStorage,
};
use vmm::api::{ControlError, Controller, Server};
use vmm::backends::balloon::{Change, Limits};
use vmm::config::ConfigChange;
use vmm::events::EventLog;

/// How long the VM may take to answer.
const PATIENCE: Duration = Duration::from_secs(60);

struct FakeVm {
    state: State,
    /// What the guest does with the power key.
    key: Key,
    gone: Sender<()>,
    /// Its state as `GET /balloon` tells it.
    balloon: Option<Balloon>,
    /// The Unix socket of its vsock device.
    vsock: Option<PathBuf>,
    /// The last snapshot, if it is not confirmed.
    provisional: Option<PathBuf>,
    /// How many were confirmed.
    confirmed: u32,
}

/// The balloon of a guest without a driver for it.
fn fresh_balloon() -> Balloon {
    Balloon {
        amount_mib: 0,
        needed_mib: 0,
        actual_mib: 0,
        deflate_on_oom: true,
        stats_polling_interval_s: 0,
        free_page_hinting: false,
        free_page_reporting: true,
        driver: DriverState::Absent,
        reporting: Reporting::from(None),
        auto: AutoBalloon { floor_mib: 128, ..AutoBalloon::default() },
    }
}

#[derive(Clone, Copy)]
enum Key {
    PowersOff,
    Ignored,
    Unheard,
}

impl Controller for FakeVm {
    fn instance(&self) -> InstanceInfo {
        InstanceInfo::new("fake", self.state)
    }
    fn vm_config(&self) -> Value {
        let mut config = json!({ "machine-config": self.machine_config() });
        if let Some(path) = &self.vsock {
            config["vsock"] = json!({ "guest_cid": 3, "uds_path": path });
        }
        config
    }
    fn machine_config(&self) -> Value {
        json!({ "vcpu_count": 2, "mem_size_mib": 512, "track_dirty_pages": true })
    }
    fn metrics(&self) -> Value {
        let mut metrics = json!({ "memory": { "resident_bytes": 4096 } });
        if self.confirmed > 0 {
            metrics["confirmed"] = self.confirmed.into();
        }
        metrics
    }
    fn balloon(&self) -> Result<Balloon, ControlError> {
        self.balloon.clone().ok_or_else(ControlError::no_balloon)
    }
    fn patch_balloon(&mut self, update: BalloonUpdate) -> Result<(), ControlError> {
        let balloon = self.balloon.as_mut().ok_or_else(ControlError::no_balloon)?;
        let limits = Limits { memory: Bytes::mib(512), reporting: true, auto: true };
        let change = Change::new(&update.into(), &limits)?;
        balloon.auto.on = change.auto.unwrap_or(balloon.auto.on);
        balloon.auto.floor_mib = change.floor.map_or(balloon.auto.floor_mib, Bytes::as_mib);
        balloon.amount_mib = change.target.map_or(balloon.amount_mib, Bytes::as_mib);
        balloon.free_page_reporting = change.reporting.unwrap_or(balloon.free_page_reporting);
        Ok(())
    }
    fn balloon_statistics(&self) -> Result<BalloonStats, ControlError> {
        let balloon = self.balloon()?;
        let guest = GuestStats { free_memory: Some(4096), ..GuestStats::default() };
        match balloon.stats_polling_interval_s {
            0 => Err(ControlError::statistics_off()),
            _ => Ok(BalloonStats {
                target_mib: balloon.amount_mib,
                guest,
                ..BalloonStats::default()
            }),
        }
    }
    fn patch_balloon_statistics(&mut self, update: BalloonStatsUpdate) -> Result<(), ControlError> {
        let balloon = self.balloon.as_mut().ok_or_else(ControlError::no_balloon)?;
        balloon.stats_polling_interval_s = update.stats_polling_interval_s;
        Ok(())
    }
    fn patch_drive(&mut self, update: DriveUpdate) -> Result<(), ControlError> {
        Err(ControlError::no_such("disk", &update.drive_id))
    }
    fn patch_network_interface(
        &mut self,
        update: NetworkInterfaceUpdate,
    ) -> Result<(), ControlError> {
        Err(ControlError::no_such("network interface", &update.iface_id))
    }
    fn configure(&mut self, _: ConfigChange) -> Result<(), ControlError> {
        Err(ControlError::after_start())
    }
    fn start(&mut self) -> Result<(), ControlError> {
        Err(ControlError::after_start())
    }
    fn flush_metrics(&mut self) -> Result<(), ControlError> {
        Err(ControlError::refused("no file"))
    }
    fn footprint(&self) -> Result<Footprint, ControlError> {
        Ok(Footprint { guest_bytes: 4 << 20, resident_bytes: 1 << 20, ..Footprint::default() })
    }
    fn tag_storage(&self) -> Result<TagStorage, ControlError> {
        Ok(TagStorage::off())
    }
    fn pause(&mut self) -> Result<(), ControlError> {
        self.state = State::Paused;
        Ok(())
    }
    fn resume(&mut self) -> Result<(), ControlError> {
        self.state = State::Running;
        Ok(())
    }
    fn create_snapshot(&mut self, request: SnapshotCreate) -> Result<(), ControlError> {
        if self.state != State::Paused {
            return Err(ControlError::not_paused());
        }
        let contents = match request.snapshot_type {
            SnapshotType::Full => "whole",
            SnapshotType::Diff => "some",
        };
        let provisional = request.provisional;
        if provisional && request.snapshot_path.to_string_lossy().contains(".older.") {
            // As the parser of a program that does not have the field.
            let known = "`snapshot_type`, `snapshot_path`, `mem_file_path`";
            let said = format!("unknown field `provisional`, expected one of {known}");
            return Err(ControlError::refused(said));
        }
        let files = request.files();
        for path in [&files.state, &files.memory] {
            std::fs::write(path, contents).map_err(|error| ControlError::failed("save", error))?;
        }
        let work = files.state.parent().unwrap();
        if work.file_name().unwrap().to_string_lossy().starts_with(".taken.") {
            // Another process is first.
            std::fs::create_dir_all(work.with_file_name("taken").join("other")).unwrap();
        }
        // A save that is signalled while it lasts.
        if let Ok(pid) = std::fs::read_to_string(work.with_file_name("pid")) {
            let kill = Command::new("sh").args(["-c", &format!("kill -TERM {pid}")]).status();
            assert!(kill.unwrap().success());
        }
        self.provisional = provisional.then_some(files.state);
        match self.key {
            // It fails when it has written half of it.
            Key::Unheard => Err(ControlError::failed("save", std::io::Error::other("disk full"))),
            _ => Ok(()),
        }
    }
    fn confirm_snapshot(&mut self, request: SnapshotConfirm) -> Result<(), ControlError> {
        assert!(!request.snapshot_path.exists(), "it is not in its place");
        match self.provisional.take_if(|last| *last == request.snapshot_path) {
            Some(last) if last.to_string_lossy().contains(".late.") => {
                Err(ControlError::refused("it is not the last"))
            }
            Some(_) => {
                self.confirmed += 1;
                Ok(())
            }
            None => Err(ControlError::refused("it is none")),
        }
    }
    fn load_snapshot(&mut self, _: SnapshotLoad) -> Result<(), ControlError> {
        Err(ControlError::after_start())
    }
    fn press_power_key(&mut self) -> Result<(), ControlError> {
        match self.key {
            Key::PowersOff => self.stop(),
            Key::Ignored => Ok(()),
            Key::Unheard => Err(ControlError::refused("the guest does not listen")),
        }
    }
    fn stop(&mut self) -> Result<(), ControlError> {
        self.gone.send(()).unwrap();
        Ok(())
    }
}

/// A VM process, played by a thread that ends when the VM is stopped.
struct Vm {
    directory: TempDir,
    thread: JoinHandle<()>,
}

impl Vm {
    fn start(key: Key) -> Self {
        Self::with(key, Some(fresh_balloon()))
    }

    fn with(key: Key, balloon: Option<Balloon>) -> Self {
        Self::in_folder(tempfile::tempdir().unwrap(), key, balloon, None)
    }

    /// How many of its snapshots were confirmed.
    fn confirmed(&self) -> u64 {
        let output = self.tesseractl(&["metrics", "--json"]);
        serde_json::from_slice::<Value>(&output.stdout).unwrap()["confirmed"].as_u64().unwrap()
    }

    fn in_folder(
        directory: TempDir,
        key: Key,
        balloon: Option<Balloon>,
        vsock: Option<PathBuf>,
    ) -> Self {
        let path = directory.path().join("api");
        let (gone, left): (_, Receiver<()>) = channel();
        let state = State::Running;
        let (provisional, confirmed) = (None, 0);
        let vm = FakeVm { state, key, gone, balloon, vsock, provisional, confirmed };
        let server = Server::bind(&path, vm, EventLog::default()).unwrap();
        let thread = std::thread::spawn(move || {
            let mut manager = EventManager::new().unwrap();
            manager.add_subscriber(server);
            while left.try_recv().is_err() {
                manager.run().unwrap();
            }
        });
        Self { directory, thread }
    }

    fn path(&self) -> PathBuf {
        self.directory.path().join("api")
    }

    fn tesseractl(&self, arguments: &[&str]) -> Output {
        // The verb and what belongs to it, the VM, the rest.
        let (verb, rest) = arguments.split_first().unwrap();
        Command::new(env!("CARGO_BIN_EXE_tesseractl"))
            .arg(verb)
            .arg(self.path())
            .args(rest)
            .output()
            .unwrap()
    }

    /// Ends the thread. `tesseractl stop` would wait for the end of the process, which is this one.
    fn end(self) {
        let mut client = Client::connect(&self.path(), PATIENCE).unwrap();
        // The thread may be gone before the answer.
        let _ = client.send("PUT", "/actions", &json!({ "action_type": "Stop" }));
        self.thread.join().unwrap();
    }
}

fn text(bytes: &[u8]) -> &str {
    std::str::from_utf8(bytes).unwrap()
}

#[test]
fn status_is_a_table_or_json() {
    let vm = Vm::start(Key::Ignored);

    let table = vm.tesseractl(&["status"]);
    let document = vm.tesseractl(&["status", "--json"]);

    assert!(text(&table.stdout).contains("Memory  512 MiB\n"));
    let document: Value = serde_json::from_slice(&document.stdout).unwrap();
    assert_eq!(document["instance"]["state"], "Running");
    assert_eq!(document["config"]["machine-config"]["vcpu_count"], 2);
    vm.end();
}

#[test]
fn pause_and_resume_show_in_the_status() {
    let vm = Vm::start(Key::Ignored);

    let paused = vm.tesseractl(&["pause"]);
    let status = vm.tesseractl(&["status"]);
    let resumed = vm.tesseractl(&["resume", "--json"]);

    assert_eq!(text(&paused.stdout), "paused\n");
    assert!(text(&status.stdout).contains("Paused"));
    let document: Value = serde_json::from_slice(&resumed.stdout).unwrap();
    assert_eq!(document, json!({ "outcome": "resumed" }));
    vm.end();
}

#[test]
fn a_snapshot_leaves_the_vm_as_it_was_unless_it_is_to_be_otherwise() {
    let vm = Vm::start(Key::Ignored);
    let snapshot = |name: &str, words: &[&str]| {
        let folder = vm.directory.path().join(name);
        let output = vm.tesseractl(&[&["snapshot", folder.to_str().unwrap()], words].concat());
        assert!(output.status.success(), "{output:?}");
        assert_eq!(std::fs::read_to_string(folder.join("memory")).unwrap(), "whole");
        let status: Value =
            serde_json::from_slice(&vm.tesseractl(&["status", "--json"]).stdout).unwrap();
        (output, status["instance"]["state"].as_str().unwrap().to_owned())
    };

    let (said, state) = snapshot("one", &[]);
    assert_eq!(state, "Running");
    assert!(text(&said.stdout).contains("it runs again"), "{said:?}");
    let (said, state) = snapshot("two", &["--keep-paused", "--json"]);
    assert_eq!(state, "Paused");
    let said: Value = serde_json::from_slice(&said.stdout).unwrap();
    assert_eq!((&said["outcome"], &said["state"]), (&json!("saved"), &json!("Paused")));
    assert_eq!(said["bytes"], 10);
    // Paused before.
    assert_eq!(snapshot("three", &[]).1, "Paused");
    assert_eq!(snapshot("three", &["--replace", "--resume"]).1, "Running");
    let diff = vm.directory.path().join("diff");
    let output = vm.tesseractl(&["snapshot", diff.to_str().unwrap(), "--diff"]);
    assert!(output.status.success(), "{output:?}");
    assert_eq!(std::fs::read_to_string(diff.join("memory")).unwrap(), "some");
    vm.end();
}

#[test]
fn a_snapshot_is_confirmed_when_it_is_in_its_place_and_not_before() {
    let vm = Vm::start(Key::Ignored);
    let snapshot = |name: &str| {
        let folder = vm.directory.path().join(name);
        let output = vm.tesseractl(&["snapshot", folder.to_str().unwrap(), "--diff"]);
        (output.status.code(), text(&output.stderr).to_owned())
    };

    assert_eq!(snapshot("one").0, Some(0));
    assert_eq!(vm.confirmed(), 1);
    let (code, said) = snapshot("taken");
    assert_eq!(code, Some(1), "{said}");
    assert!(said.contains("into its place") && said.contains("runs again"), "{said}");
    assert_eq!(vm.confirmed(), 1);
    // The snapshot is there, but the VM does not build on it.
    let (code, said) = snapshot("late");
    assert_eq!(code, Some(1), "{said}");
    assert!(said.contains("builds on the one before"), "{said}");
    assert!(vm.directory.path().join("late/state").exists());
    assert!(text(&vm.tesseractl(&["status"]).stdout).contains("Running"));
    let (code, said) = snapshot("older");
    assert_eq!(code, Some(1), "{said}");
    assert!(said.contains("older version") && said.contains("runs again"), "{said}");
    assert_eq!(vm.confirmed(), 1);
    vm.end();
}

#[test]
fn a_vm_that_cannot_be_saved_runs_again_and_nothing_is_left() {
    let vm = Vm::start(Key::Unheard);
    let folder = vm.directory.path().join("one");

    let output = vm.tesseractl(&["snapshot", folder.to_str().unwrap()]);

    let said = text(&output.stderr);
    assert_eq!(output.status.code(), Some(1));
    assert!(said.contains("disk full") && said.contains("runs again"), "{said}");
    let names = std::fs::read_dir(vm.directory.path()).unwrap();
    let names: Vec<_> = names.map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(names, ["api"]);
    assert!(text(&vm.tesseractl(&["status"]).stdout).contains("Running"));
    vm.end();
}

#[test]
fn a_save_stops_at_a_signal_that_its_user_does_not_ignore() {
    let vm = Vm::start(Key::Ignored);
    let snapshot = |name: &str, before: &str| {
        let folder = vm.directory.path().join(name);
        let pid = vm.directory.path().join("pid");
        let script = format!(r#"{before}; echo $$ > "$1"; exec "$2" snapshot "$3" "$4""#);
        let output = Command::new("sh")
            .args(["-c", &script, "sh"])
            .args([&pid, &env!("CARGO_BIN_EXE_tesseractl").into(), &vm.path(), &folder])
            .output()
            .unwrap();
        std::fs::remove_file(pid).unwrap();
        (output.status.code(), text(&output.stderr).to_owned(), folder.exists())
    };

    let (code, said, exists) = snapshot("stopped", "trap - TERM");
    assert!(code == Some(130) && said.contains("was not saved") && !exists, "{code:?} {said}");
    let (code, said, exists) = snapshot("ignored", "trap '' TERM");
    assert!(code == Some(0) && exists, "{code:?} {said}");
    assert!(text(&vm.tesseractl(&["status"]).stdout).contains("Running"));
    vm.end();
}

#[test]
fn a_snapshot_that_is_none_is_named() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("state"), "whole").unwrap();
    let tesseractl = |words: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_tesseractl"));
        let output = command.arg("snapshot").args(words).current_dir(folder.path()).output();
        let output = output.unwrap();
        (output.status.code(), text(&output.stderr).to_owned())
    };

    let (code, said) = tesseractl(&["info", "."]);
    assert_eq!(code, Some(1), "{said}");
    assert!(said.contains("./state"), "{said}");
    let (code, said) = tesseractl(&["merge", ".", "nowhere", "into"]);
    assert_eq!(code, Some(1), "{said}");
    assert!(!folder.path().join("into").exists());
    for words in [
        &["one"][..],
        &["merge", "a", "b"],
        &["info", "--resume"],
        &["one", "info"],
        &["one", "two", "--diff", "--replace"],
    ] {
        let (code, said) = tesseractl(words);
        let is_usage = code == Some(64);
        // A folder may be called info.
        assert!(is_usage || said.contains("no VM 'one'"), "{words:?}: {said}");
    }
}

#[test]
fn metrics_are_a_table_with_units_or_raw() {
    let vm = Vm::start(Key::Ignored);

    let table = vm.tesseractl(&["metrics"]);
    let raw = vm.tesseractl(&["metrics", "--json"]);

    assert_eq!(text(&table.stdout), "memory.resident_bytes  4 KiB\n");
    let raw: Value = serde_json::from_slice(&raw.stdout).unwrap();
    assert_eq!(raw["memory"]["resident_bytes"], 4096);
    vm.end();
}

#[test]
fn the_balloon_is_shown_and_changed() {
    let vm = Vm::start(Key::Ignored);

    let target = vm.tesseractl(&["balloon", "target", "256M"]);
    let reporting = vm.tesseractl(&["balloon", "reporting", "off", "--json"]);
    let table = vm.tesseractl(&["balloon"]);
    let raw = vm.tesseractl(&["balloon", "--json"]);
    let auto = vm.tesseractl(&["balloon", "auto", "on", "--floor", "64M"]);
    let chosen = vm.tesseractl(&["balloon", "--json"]);

    assert_eq!(text(&auto.stdout), "auto on\n");
    let chosen: Value = serde_json::from_slice(&chosen.stdout).unwrap();
    assert_eq!(chosen["auto"], json!({ "on": true, "floor_mib": 64 }));
    assert_eq!(text(&target.stdout), "target 256 MiB\n");
    let reporting: Value = serde_json::from_slice(&reporting.stdout).unwrap();
    assert_eq!(reporting, json!({ "outcome": "reporting off" }));
    assert!(text(&table.stdout).contains("Target          256 MiB\n"), "{}", text(&table.stdout));
    let raw: Value = serde_json::from_slice(&raw.stdout).unwrap();
    assert_eq!((&raw["amount_mib"], &raw["free_page_reporting"]), (&json!(256), &json!(false)));
    vm.end();
}

#[test]
fn the_guests_statistics_are_shown_once_they_are_switched_on() {
    let vm = Vm::start(Key::Ignored);

    let off = vm.tesseractl(&["balloon", "stats"]);
    let switched = vm.tesseractl(&["balloon", "stats", "5"]);
    let table = vm.tesseractl(&["balloon", "stats"]);

    assert_eq!(off.status.code(), Some(1));
    assert!(text(&off.stderr).contains("--balloon stats=1"));
    assert_eq!(text(&switched.stdout), "statistics every 5 s\n");
    assert!(text(&table.stdout).contains("Free memory     4 KiB\n"), "{}", text(&table.stdout));
    vm.end();
}

#[test]
fn a_change_that_the_vm_refuses_is_told() {
    let without = Vm::with(Key::Ignored, None);
    let vm = Vm::start(Key::Ignored);

    let none = without.tesseractl(&["balloon"]);
    let large = vm.tesseractl(&["balloon", "target", "1G"]);
    let part = vm.tesseractl(&["balloon", "target", "512K"]);

    assert_eq!(part.status.code(), Some(64));
    assert!(text(&part.stderr).contains("try 1M"), "{}", text(&part.stderr));
    assert_eq!((none.status.code(), large.status.code()), (Some(1), Some(1)));
    assert!(text(&none.stderr).contains("--no-balloon"));
    assert!(text(&large.stderr).contains("more than the guest's 512 MiB"));
    without.end();
    vm.end();
}

#[test]
fn the_footprint_is_a_table_with_shares_or_raw() {
    let vm = Vm::start(Key::Ignored);

    let table = vm.tesseractl(&["footprint"]);
    let raw = vm.tesseractl(&["footprint", "--json"]);

    let line = "Resident             1 MiB  1,048,576 B  [#####---------------]  25 %\n";
    assert!(text(&table.stdout).contains(line), "{}", text(&table.stdout));
    let raw: Value = serde_json::from_slice(&raw.stdout).unwrap();
    assert_eq!((&raw["resident_bytes"], &raw["tagged_bytes"]), (&json!(1 << 20), &json!(null)));
    vm.end();
}

#[test]
fn stop_waits_until_an_obedient_guest_has_gone() {
    let vm = Vm::start(Key::PowersOff);

    let output = vm.tesseractl(&["stop"]);

    assert_eq!(text(&output.stdout), "stopped\n");
    assert_eq!(output.status.code(), Some(0));
    assert!(!vm.path().exists());
    vm.thread.join().unwrap();
}

#[test]
fn stop_of_a_deaf_guest_times_out_and_names_force() {
    let vm = Vm::start(Key::Ignored);

    let output = vm.tesseractl(&["stop", "--timeout", "0.05"]);

    assert_eq!(output.status.code(), Some(1));
    assert!(text(&output.stderr).contains("--force"));
    vm.end();
}

#[test]
fn refusal_of_the_vm_is_printed() {
    let vm = Vm::start(Key::Unheard);

    let output = vm.tesseractl(&["stop"]);

    assert_eq!(output.status.code(), Some(1));
    assert_eq!(text(&output.stderr), "tesseractl: the guest does not listen\n");
    vm.end();
}

#[test]
fn force_stops_without_asking_the_guest() {
    let vm = Vm::start(Key::Unheard);

    let output = vm.tesseractl(&["stop", "--force"]);

    assert_eq!(output.status.code(), Some(0));
    vm.thread.join().unwrap();
}

#[test]
fn exec_in_a_vm_without_vsock_says_how_to_get_one() {
    let vm = Vm::start(Key::Ignored);

    let output = vm.tesseractl(&["exec", "true"]);

    assert_eq!(output.status.code(), Some(125));
    assert!(text(&output.stderr).contains("start it with --vsock"), "{}", text(&output.stderr));
    vm.end();
}

#[test]
fn exec_in_a_paused_vm_says_how_to_resume_it() {
    let vm = Vm::start(Key::Ignored);
    vm.tesseractl(&["pause"]);

    for (arguments, code) in [(["exec", "true"], 125), (["proxy", "22"], 69)] {
        let output = vm.tesseractl(&arguments);

        assert_eq!(output.status.code(), Some(code));
        assert!(text(&output.stderr).contains("resume"), "{}", text(&output.stderr));
    }
    vm.end();
}

#[test]
fn the_vm_says_where_its_vsock_socket_is() {
    let folder = tempfile::tempdir().unwrap();
    let vsock = folder.path().join("vsock");
    let listener = std::os::unix::net::UnixListener::bind(&vsock).unwrap();
    let vm = Vm::in_folder(folder, Key::Ignored, None, Some(vsock));
    let guest = std::thread::spawn(move || {
        let (stream, _) = listener.accept().unwrap();
        let mut line = String::new();
        std::io::BufRead::read_line(&mut std::io::BufReader::new(stream), &mut line).unwrap();
        line
    });

    vm.tesseractl(&["proxy", "--timeout", "0", "22"]);

    assert_eq!(guest.join().unwrap(), "CONNECT 22\n");
    vm.end();
}

#[test]
fn a_clock_is_set_after_the_resume_and_only_where_the_agent_can_be_reached() {
    let vm = Vm::start(Key::Ignored);
    vm.tesseractl(&["pause"]);
    let refused = vm.tesseractl(&["resume", "--set-clock"]);
    assert_eq!(refused.status.code(), Some(1), "{refused:?}");
    assert!(text(&refused.stderr).contains("--vsock"), "{refused:?}");
    assert!(text(&vm.tesseractl(&["status"]).stdout).contains("Paused"));
    vm.end();

    let folder = tempfile::tempdir().unwrap();
    let vsock = folder.path().join("vsock");
    let listener = std::os::unix::net::UnixListener::bind(&vsock).unwrap();
    let vm = Vm::in_folder(folder, Key::Ignored, None, Some(vsock));
    vm.tesseractl(&["pause"]);
    // A guest without an agent.
    let guest = std::thread::spawn(move || drop(listener.accept().unwrap()));
    let failed = vm.tesseractl(&["resume", "--set-clock", "--timeout", "0"]);
    guest.join().unwrap();
    assert_eq!(failed.status.code(), Some(69), "{failed:?}");
    assert!(text(&failed.stderr).contains("the VM runs, its clock is not set"), "{failed:?}");
    assert!(text(&vm.tesseractl(&["status"]).stdout).contains("Running"));
    vm.end();
}

#[test]
fn missing_socket_says_what_to_check() {
    let output = Command::new(env!("CARGO_BIN_EXE_tesseractl"))
        .args(["status", "/nonexistent/api"])
        .output()
        .unwrap();

    assert_eq!(output.status.code(), Some(69));
    assert!(text(&output.stderr).contains("--api-sock"));
}

#[test]
fn wrong_command_lines_exit_with_64_and_help_with_0() {
    for (arguments, code) in [
        (&["status"][..], 64),
        (&[], 64),
        (&["fly", "sock"], 64),
        (&["stop", "sock", "--timeout", "-1"], 64),
        (&["stop", "sock", "--timeout", "soon"], 64),
        (&["status", "sock", "--force"], 64),
        (&["resume", "sock", "--timeout", "3"], 64),
        (&["balloon", "sock", "target"], 64),
        (&["balloon", "sock", "target", "much"], 64),
        (&["balloon", "sock", "target", "4K"], 64),
        (&["balloon", "sock", "reporting", "maybe"], 64),
        (&["balloon", "sock", "stats", "65536"], 64),
        (&["--help"], 0),
        (&["--version"], 0),
    ] {
        let output =
            Command::new(env!("CARGO_BIN_EXE_tesseractl")).args(arguments).output().unwrap();
        assert_eq!(output.status.code(), Some(code), "{arguments:?}");
    }
}
