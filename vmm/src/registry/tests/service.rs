//! Registries of services, as another user sees them.

use std::os::unix::fs::chown;
use std::os::unix::net::UnixListener;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;

use rustix::process::geteuid;

use super::*;

/// A place with the directories of services.
struct Services(TempDir);

impl Services {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn folder(&self, name: &str) -> PathBuf {
        let folder = self.0.path().join(name);
        let _ = fs::create_dir(&folder);
        folder
    }

    /// What a service does that starts a VM.
    fn publish(&self, name: &str, vm: &Publication<'_>) -> Entry {
        Entry::publish_in(Directory::create_in(&self.folder(name)).unwrap(), vm).unwrap()
    }

    /// An entry of another process, with its lock.
    fn write(&self, service: &str, name: &str, record: &str) -> File {
        let directory = Directory::create_in(&self.folder(service)).unwrap();
        let path = directory.path().join(format!("{name}.json"));
        fs::write(&path, record).unwrap();
        let file = File::options().write(true).open(path).unwrap();
        assert!(file_lock::try_lock(&file).unwrap());
        file
    }

    /// What is found.
    fn listing(&self) -> Listing {
        let mut all = Listing::default();
        for directory in Directory::of_services_in(self.0.path(), geteuid()) {
            let Listing { vms, skipped } = directory.list().unwrap();
            all.vms.extend(vms);
            all.skipped.extend(skipped);
        }
        all.vms.sort_by(|a, b| a.record.name.cmp(&b.record.name));
        all
    }

    fn names(&self) -> Vec<String> {
        self.listing().vms.into_iter().map(|vm| vm.record.name).collect()
    }

    fn doubts(&self) -> Vec<String> {
        let listing = self.listing();
        assert!(listing.vms.is_empty(), "{listing:?}");
        listing.skipped.into_iter().map(|skipped| skipped.reason).collect()
    }
}

fn named(id: &str) -> Publication<'_> {
    Publication { id: Some(id), ..Publication::default() }
}

#[test]
fn the_vms_of_services_are_listed_with_their_user() {
    let services = Services::new();
    let _own = services.publish("vms", &named("own"));
    let two = services.publish("two", &named("two"));
    let socket = services.folder("one").join("api.sock");
    let _listener = UnixListener::bind(&socket).unwrap();
    let one = Publication { api_sock: Some(&socket), ..named("one") };
    let _one = services.publish("one", &one);

    let listing = services.listing();

    let users: Vec<_> = listing.vms.iter().map(|vm| (&*vm.record.name, vm.uid())).collect();
    assert_eq!(users, [("one", geteuid().as_raw()), ("two", geteuid().as_raw())]);
    assert_eq!(listing.vms[0].record.api_sock.as_ref(), Some(&socket));
    assert!(listing.vms.iter().all(|vm| vm.user.is_some()) && listing.skipped.is_empty());
    drop(two);
    assert_eq!(services.names(), ["one"]);
}

#[test]
fn the_entry_of_a_dead_service_is_left_to_it() {
    let services = Services::new();
    drop(services.write("one", "one", &record("one", 1 << 21, 1)));

    assert!(services.names().is_empty());

    assert!(services.folder("one").join("vms/one.json").exists());
}

#[test]
fn a_service_speaks_for_its_own_vm_alone() {
    let own = std::process::id();
    let services = Services::new();
    let _other = services.write("one", "two", &record("two", own, 1));
    assert_eq!(services.doubts(), ["it has another name than its service"]);

    // A process of another user, which the file names as its own.
    let services = Services::new();
    let stranger = geteuid().is_root().then(|| {
        let mut command = Command::new("cat");
        command.stdin(Stdio::piped()).stdout(Stdio::null()).uid(65534).spawn().unwrap()
    });
    let pid = stranger.as_ref().map_or(1, Child::id);
    let _one = services.write("one", "one", &record("one", pid, 1));
    assert_eq!(services.doubts(), ["its process is another user's"]);
    if let Some(mut stranger) = stranger {
        stranger.kill().unwrap();
        stranger.wait().unwrap();
    }
}

#[test]
fn a_service_leads_to_no_socket_but_its_own() {
    let services = Services::new();
    let elsewhere = services.folder("two").join("api.sock");
    let _listener = UnixListener::bind(&elsewhere).unwrap();
    let link = services.folder("one").join("link");
    symlink(&elsewhere, &link).unwrap();
    let detour = services.folder("one").join("../two/api.sock");
    for path in [&elsewhere, &link, &detour, &services.folder("one").join("nothing")] {
        let _one = services.publish("one", &Publication { api_sock: Some(path), ..named("one") });

        let reason = "its control socket is not in its service's directory";
        assert_eq!(services.doubts(), [reason], "{path:?}");
    }

    let serial = format!("socket:{}", elsewhere.display());
    let serial = Some(serial.as_str());
    let vm = Publication { vsock: Some(&elsewhere), serial, ..named("one") };
    let _one = services.publish("one", &vm);
    let record = services.listing().vms.remove(0).record;
    assert_eq!((record.vsock, record.serial), (None, None));
}

#[test]
fn what_others_can_write_or_a_link_leads_to_is_no_service() {
    let services = Services::new();
    let _one = services.publish("one", &named("one"));
    let _dotted = services.publish("a.b", &named("a"));
    symlink(services.folder("one"), services.0.path().join("two")).unwrap();
    assert_eq!(services.names(), ["one"]);

    let mode = |path: PathBuf, mode| fs::set_permissions(path, PermissionsExt::from_mode(mode));
    mode(services.folder("one").join("vms"), 0o777).unwrap();
    assert!(services.names().is_empty());
    mode(services.folder("one").join("vms"), 0o700).unwrap();
    mode(services.folder("one"), 0o770).unwrap();
    assert!(services.names().is_empty());
    mode(services.folder("one"), 0o700).unwrap();
    assert_eq!(services.names(), ["one"]);
    // Another user's in that of the service.
    if geteuid().is_root() {
        chown(services.folder("one").join("vms"), Some(65534), None).unwrap();
        assert!(services.names().is_empty());
    }
}

#[test]
fn a_directory_for_a_group_has_a_registry_that_the_group_reads() {
    for (mode, directory, file) in
        [(0o700, 0o700, 0o600), (0o750, 0o750, 0o640), (0o755, 0o700, 0o600), (0o710, 0o700, 0o600)]
    {
        let services = Services::new();
        let folder = services.folder("one");
        fs::set_permissions(&folder, PermissionsExt::from_mode(mode)).unwrap();

        let _one = services.publish("one", &named("one"));

        let found = |name: &str| folder.join(name).metadata().unwrap().mode() & 0o777;
        assert_eq!((found("vms"), found("vms/one.json")), (directory, file), "{mode:o}");
    }
}
