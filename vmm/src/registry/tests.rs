//! A registry with VMs that start and end, and with files that no VM has written.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs::{self, File};
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tempfile::TempDir;

use super::directory::place_for;
use super::*;
use crate::sys::file_lock;

mod service;

/// A registry of its own.
struct Place(TempDir);

impl Place {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn directory(&self) -> Directory {
        Directory::create_in(self.0.path()).unwrap()
    }

    fn publish(&self, id: Option<&str>) -> Result<Entry, Error> {
        let vm =
            Publication { id, api_sock: Some(Path::new("/run/api")), ..Publication::default() };
        Entry::publish_in(self.directory(), &vm)
    }

    fn names(&self) -> Vec<String> {
        let listing = self.directory().list().unwrap();
        listing.vms.into_iter().map(|vm| vm.record.name).collect()
    }

    fn file(&self, name: &str) -> std::path::PathBuf {
        self.directory().path().join(name)
    }

    /// An entry of another process, with its lock.
    fn entry_of(&self, child: &Child, start_time: u64) -> (File, Vm) {
        let record = record("other", child.id(), start_time);
        fs::write(self.file("other.json"), record).unwrap();
        let file = File::options().write(true).open(self.file("other.json")).unwrap();
        assert!(file_lock::try_lock(&file).unwrap());
        (file, self.directory().find("other").unwrap())
    }

    /// Names of all that is there.
    fn all(&self) -> Vec<String> {
        let entries = fs::read_dir(self.directory().path()).unwrap();
        entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
    }
}

fn record(name: &str, pid: u32, start_time: u64) -> String {
    format!(
        "{{\"version\":1,\"name\":\"{name}\",\"pid\":{pid},\"start_time\":{start_time},\"started_by\":\"test\"}}"
    )
}

/// A process that waits until it is killed.
fn sleeper() -> Child {
    Command::new("cat").stdin(Stdio::piped()).stdout(Stdio::null()).spawn().unwrap()
}

#[test]
fn a_vm_is_listed_for_its_life() {
    let place = Place::new();
    let directory = place.directory();
    let vm = Publication {
        id: Some("vm1"),
        api_sock: Some(Path::new("api")),
        vsock: Some(Path::new("/run/v")),
        serial: Some("socket:serial"),
    };

    let entry = Entry::publish_in(place.directory(), &vm).unwrap();
    let listing = directory.list().unwrap();

    let here = std::env::current_dir().unwrap();
    let [vm] = &listing.vms[..] else { panic!("{listing:?}") };
    assert_eq!((entry.name(), &*vm.record.name), ("vm1", "vm1"));
    assert_eq!(vm.record.pid, std::process::id());
    assert_eq!(vm.record.api_sock, Some(here.join("api")));
    assert_eq!(vm.record.vsock.as_deref(), Some(Path::new("/run/v")));
    assert_eq!(vm.record.serial_socket(), Some(&*here.join("serial")));
    assert!(listing.skipped.is_empty());
    assert!(vm.age().unwrap() < Duration::from_secs(24 * 3600));
    assert_eq!(directory.find("vm1").as_ref(), Some(vm));
    assert_eq!(fs::metadata(place.file("vm1.json")).unwrap().mode() & 0o777, 0o600);
    drop(entry);
    assert_eq!(directory.list().unwrap(), Listing::default());
    assert!(place.all().is_empty());
}

#[test]
fn a_vm_may_say_something_else_of_itself() {
    let place = Place::new();
    let mut entry = place.publish(Some("vm1")).unwrap();

    let vm = Publication { serial: Some("stdio"), ..Publication::default() };
    entry.update(&vm).unwrap();

    let found = place.directory().find("vm1").unwrap();
    assert_eq!((found.record.serial.as_deref(), found.record.api_sock), (Some("stdio"), None));
    assert_eq!(place.all(), ["vm1.json"]);
    drop(entry);
    assert!(place.all().is_empty());
}

#[test]
fn an_id_is_that_of_one_live_vm() {
    let place = Place::new();
    let first = place.publish(Some("vm1")).unwrap();

    let error = place.publish(Some("vm1")).unwrap_err();

    let pid = std::process::id();
    assert_eq!(
        error.to_string(),
        format!("a VM 'vm1' already runs (pid {pid}): give another --id")
    );
    assert!(error.forbids_start());
    assert_eq!(place.names(), ["vm1"]);
    let _other = place.publish(Some("vm10")).unwrap();
    drop(first);
    let _successor = place.publish(Some("vm1")).unwrap();
    assert_eq!(place.names(), ["vm1", "vm10"]);
}

#[test]
fn a_vm_without_an_id_has_the_name_of_its_process() {
    let place = Place::new();
    let entry = place.publish(None).unwrap();

    let again = place.publish(None).unwrap_err();

    assert_eq!(entry.name(), format!("pid.{}", std::process::id()));
    // No user has chosen the name: the VM runs, only without an entry.
    assert!(matches!(again, Error::Taken(_)) && !again.forbids_start());
}

#[test]
fn what_is_no_id_is_no_name_of_a_file() {
    let place = Place::new();
    for id in ["", ".", "..", "a/b", "pid.1", "a.json", &"x".repeat(65), "ä", "a b"] {
        let error = place.publish(Some(id)).unwrap_err();
        assert!(matches!(error, Error::Id(_)) && !error.forbids_start(), "{id}");
        assert!(place.directory().find(id).is_none());
    }
    assert!(place.directory().folder_of("..").is_err());
    assert!(place.all().is_empty());
}

#[test]
fn the_entry_of_a_dead_vm_is_removed_or_replaced() {
    let place = Place::new();
    // The number is that of a process that lives: this one.
    for name in ["vm1", "vm2", "pid.7"] {
        let text = record(name, std::process::id(), 1);
        fs::write(place.file(&format!("{name}.json")), text).unwrap();
    }
    fs::write(place.file(".new.7"), "{").unwrap();

    let entry = place.publish(Some("vm1")).unwrap();

    assert_eq!(place.names(), ["vm1"]);
    assert_eq!(place.all(), ["vm1.json"]);
    drop(entry);
}

#[test]
fn what_no_vm_has_written_is_skipped_and_left() {
    let place = Place::new();
    let outside = place.0.path().join("outside");
    fs::write(&outside, record("link", 1, 1)).unwrap();
    let good = |name: &str| record(name, 1, 1);
    for (file, text) in [
        ("damaged.json", "{\"version\":1"),
        ("empty.json", ""),
        ("binary.json", "\u{0}\u{1b}[2J"),
        ("array.json", "[1]"),
        ("later.json", &good("later").replace(":1,", ":2,")),
        ("renamed.json", &good("vm1")),
        ("nobody.json", &record("nobody", 0, 1)),
        ("huge.json", &good("huge").replace("test", &"x".repeat(1 << 20))),
        ("relative.json", &good("relative").replace("{", "{\"api_sock\":\"api\",")),
        ("broker", "not ours"),
        ("pid.01.json", "not a number as we write it"),
    ] {
        fs::write(place.file(file), text).unwrap();
    }
    symlink(&outside, place.file("link.json")).unwrap();
    symlink("/nonexistent", place.file("nowhere.json")).unwrap();
    let mode = rustix::fs::Mode::RUSR | rustix::fs::Mode::WUSR;
    let fifo = rustix::fs::FileType::Fifo;
    rustix::fs::mknodat(rustix::fs::CWD, place.file("fifo.json"), fifo, mode, 0).unwrap();
    fs::create_dir(place.file("folder")).unwrap();
    let before = place.all().len();

    let _entry = place.publish(Some("vm1")).unwrap();
    let listing = place.directory().list().unwrap();

    let names: Vec<_> = listing.vms.iter().map(|vm| &*vm.record.name).collect();
    assert_eq!(names, ["vm1"]);
    let skipped: BTreeMap<_, _> =
        listing.skipped.into_iter().map(|skipped| (skipped.file, skipped.reason)).collect();
    // All but the directory, which is what is kept of a VM.
    assert_eq!(skipped.len(), before - 1, "{skipped:?}");
    assert!(skipped["huge.json"].contains("longer than"), "{skipped:?}");
    assert_eq!(place.all().len(), before + 1);
    assert_eq!(fs::read_to_string(outside).unwrap(), record("link", 1, 1));
}

#[test]
fn a_live_vm_with_a_damaged_entry_keeps_its_id() {
    let place = Place::new();
    let _entry = place.publish(Some("vm1")).unwrap();
    fs::write(place.file("vm1.json"), "{").unwrap();

    assert!(place.names().is_empty());
    assert!(place.publish(Some("vm1")).unwrap_err().forbids_start());
}

#[test]
fn however_many_files_are_skipped_few_are_named() {
    let place = Place::new();
    for number in 0..100 {
        fs::write(place.file(&format!("junk{number}")), "").unwrap();
    }

    assert_eq!(place.directory().list().unwrap().skipped.len(), 32);
}

#[test]
fn the_directory_is_its_users_alone() {
    let place = tempfile::tempdir().unwrap();
    let inside = place.path().join("tessera");
    assert!(Directory::open_in(&inside).unwrap().is_none());
    assert!(!inside.exists());

    let directory = Directory::create_in(&inside).unwrap();
    let mode = |path: &Path| fs::metadata(path).unwrap().mode() & 0o777;
    assert_eq!((mode(&inside), mode(directory.path())), (0o700, 0o700));
    assert!(Directory::open_in(&inside).unwrap().is_some());

    // One that others may enter is closed, one that they may write is not trusted.
    fs::set_permissions(directory.path(), fs::Permissions::from_mode(0o755)).unwrap();
    Directory::create_in(&inside).unwrap();
    assert_eq!(mode(directory.path()), 0o700);
    for (path, mode) in [(directory.path(), 0o770), (&inside, 0o777)] {
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
        for error in [Directory::create_in(&inside).err(), Directory::open_in(&inside).err()] {
            assert!(matches!(error, Some(Error::NotOurs(_))), "{error:?}");
        }
        fs::set_permissions(path, fs::Permissions::from_mode(0o700)).unwrap();
    }
}

#[test]
fn links_lead_to_no_registry() {
    let place = tempfile::tempdir().unwrap();
    let real = place.path().join("real");
    Directory::create_in(&real).unwrap();
    symlink(&real, place.path().join("link")).unwrap();
    let other = place.path().join("other");
    fs::create_dir(&other).unwrap();
    symlink(real.join("vms"), other.join("vms")).unwrap();

    for path in [place.path().join("link"), other] {
        let error = Directory::create_in(&path).err();
        assert!(matches!(error, Some(Error::NotOurs(_))), "{error:?}");
    }
}

#[test]
fn without_a_registry_a_vm_may_run() {
    let file = tempfile::NamedTempFile::new().unwrap();

    for path in [Path::new("/proc/none"), file.path(), Path::new("/nonexistent/tessera")] {
        let error = Directory::create_in(path).unwrap_err();

        assert!(!error.forbids_start(), "{error}");
    }
}

#[test]
fn an_entry_that_cannot_be_written_stops_no_vm_and_leaves_nothing() {
    let place = Place::new();
    let directory = place.directory();
    let mut entry = place.publish(Some("vm1")).unwrap();
    // As on a full file system, no file can be made in a directory that has gone.
    fs::remove_dir_all(directory.path()).unwrap();
    let error = Entry::publish_in(directory, &Publication::default()).unwrap_err();
    assert!(matches!(error, Error::System { .. }) && !error.forbids_start(), "{error}");
    assert!(entry.update(&Publication::default()).is_err());

    // An entry that cannot take its name leaves none of another.
    fs::create_dir_all(place.file("vm2.json")).unwrap();
    fs::write(place.file("vm2.json/file"), "").unwrap();
    let error = place.publish(Some("vm2")).unwrap_err();
    assert!(matches!(error, Error::System { .. }) && !error.forbids_start(), "{error}");
    assert_eq!(place.all(), ["vm2.json"]);
}

#[test]
fn the_place_is_the_users() {
    let place = |variables: &[(&str, &str)], is_root| {
        let variables: BTreeMap<&str, &str> = variables.iter().copied().collect();
        let value = |name: &str| variables.get(name).map(OsString::from);
        place_for(value, is_root).map(|path| path.to_str().unwrap().to_owned())
    };
    let (own, session) = (("TESSERA_RUNTIME_DIR", "/a"), ("XDG_RUNTIME_DIR", "/run/user/1"));

    for (variables, is_root, expected) in [
        (&[own, session][..], false, "/a"),
        (&[own], true, "/a"),
        (&[session], false, "/run/user/1/tessera"),
        (&[session], true, "/run/tessera"),
        (&[], true, "/run/tessera"),
        (&[("TESSERA_RUNTIME_DIR", ""), session], false, "/run/user/1/tessera"),
    ] {
        assert_eq!(place(variables, is_root).unwrap(), expected);
    }
    for variables in [&[][..], &[("XDG_RUNTIME_DIR", "run")]] {
        let error = place(variables, false).unwrap_err();
        assert!(error.to_string().contains("TESSERA_RUNTIME_DIR"), "{error}");
    }
    assert!(matches!(place(&[("TESSERA_RUNTIME_DIR", "a")], true), Err(Error::NotAbsolute(_))));
}

#[test]
fn a_listing_beside_a_change_waits_for_nothing() {
    let place = Place::new();
    fs::write(place.file("vm1.json"), record("vm1", 1, 1)).unwrap();
    let directory = place.directory();
    let lock = directory.lock().unwrap();

    assert!(place.names().is_empty());
    assert_eq!(place.all(), ["vm1.json"]);
    drop(lock);
    assert!(place.names().is_empty());
    assert!(place.all().is_empty());
}

#[test]
fn listings_beside_starts_and_ends_miss_no_vm_and_keep_no_dead_one() {
    let place = Place::new();
    let _steady = place.publish(Some("steady")).unwrap();
    let mut changing = place.publish(Some("changing")).unwrap();
    let done = AtomicBool::new(false);

    std::thread::scope(|scope| {
        for number in 0..2 {
            let (place, done) = (&place, &done);
            scope.spawn(move || {
                while !done.load(Ordering::Relaxed) {
                    drop(place.publish(Some(&format!("short{number}"))).unwrap());
                    let name = format!("dead{number}");
                    let text = record(&name, std::process::id(), 1);
                    fs::write(place.file(&format!("{name}.json")), text).unwrap();
                }
            });
        }
        let changing = &mut changing;
        let updates = scope.spawn(move || {
            for number in 0..200 {
                let path = format!("/run/{number}");
                let vm = Publication { vsock: Some(Path::new(&path)), ..Publication::default() };
                changing.update(&vm).unwrap();
            }
        });
        let mut listings = 0;
        while listings < 200 || !updates.is_finished() {
            let names = place.names();
            assert!(names.contains(&"steady".to_owned()), "{names:?}");
            assert!(names.contains(&"changing".to_owned()), "{names:?}");
            assert!(!names.iter().any(|name| name.starts_with("dead")), "{names:?}");
            listings += 1;
        }
        done.store(true, Ordering::Relaxed);
    });

    assert_eq!(place.names(), ["changing", "steady"]);
    assert_eq!(place.all().len(), 2);
}

#[test]
fn of_vms_that_start_at_once_with_one_id_one_starts() {
    let place = Place::new();
    for _ in 0..20 {
        let entries: Vec<_> = std::thread::scope(|scope| {
            let starts: Vec<_> =
                (0..4).map(|_| scope.spawn(|| place.publish(Some("vm1")))).collect();
            starts.into_iter().map(|start| start.join().unwrap()).collect()
        });

        let refused = entries.iter().filter_map(|entry| entry.as_ref().err());
        assert_eq!(refused.inspect(|error| assert!(error.forbids_start())).count(), 3);
        assert_eq!(place.names(), ["vm1"]);
    }
}

#[test]
fn the_process_of_a_vm_is_killed() {
    let place = Place::new();
    let mut child = sleeper();
    let (lock, vm) = place.entry_of(&child, process::start_time(child.id()).unwrap());

    let process = Process::of(&place.directory(), &vm).unwrap();
    assert!(!process.has_ended(Duration::ZERO));
    process.kill().unwrap();

    assert!(process.has_ended(Duration::from_secs(60)));
    process.kill().unwrap();
    child.wait().unwrap();
    // As its kernel does.
    drop(lock);
    assert!(matches!(Process::of(&place.directory(), &vm), Err(Error::Ended)));
}

#[test]
fn a_number_that_is_used_again_is_another_process() {
    let place = Place::new();
    let mut child = sleeper();
    let (lock, vm) = place.entry_of(&child, 1);

    assert!(matches!(Process::of(&place.directory(), &vm), Err(Error::OtherNamespace(_))));
    drop(lock);
    assert!(matches!(Process::of(&place.directory(), &vm), Err(Error::Ended)));

    assert!(child.try_wait().unwrap().is_none());
    child.kill().unwrap();
    child.wait().unwrap();
}

#[test]
fn a_process_that_has_ended_is_not_its_successor_by_name() {
    let place = Place::new();
    let mut child = sleeper();
    let start_time = process::start_time(child.id()).unwrap();
    let (lock, vm) = place.entry_of(&child, start_time);
    drop(lock);
    // Another VM of the id has started since the listing.
    let _successor = place.publish(Some("other")).unwrap();

    assert!(matches!(Process::of(&place.directory(), &vm), Err(Error::Ended)));

    assert!(child.try_wait().unwrap().is_none());
    child.kill().unwrap();
    child.wait().unwrap();
}
