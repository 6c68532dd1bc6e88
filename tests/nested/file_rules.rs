//! Which files a VM reaches once its guest runs, and what it says of those that it does not.

use std::fs::{self, File};
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::{Path, PathBuf};

use serde_json::json;
use testing::broker::Broker;
use testing::guest::{Guest, Plan};
use testing::lab::{Lab, artifact};
use testing::scratch::Scratch;
use vmm::api::model::DriveUpdate;

const MIB: u64 = 1 << 20;
/// A user of this host who is not root.
const OTHER: u32 = 65_534;

fn folder(scratch: &Scratch, name: &str) -> PathBuf {
    let path = scratch.join(name);
    fs::create_dir(&path).unwrap();
    path
}

fn image(path: &Path, size: u64) -> File {
    let file = File::create_new(path).unwrap();
    file.set_len(size).unwrap();
    file
}

fn saved(guest: &Guest, folder: &Path) -> Result<(), String> {
    let words = ["snapshot", folder.to_str().unwrap(), "--replace"];
    let output = guest.tesseractl(&words).output().unwrap();
    match output.status.success() {
        true => Ok(()),
        false => Err(String::from_utf8(output.stderr).unwrap()),
    }
}

/// Has the disk `data` be of a file.
fn replaced(guest: &Guest, file: &Path) -> Result<(), String> {
    let update = DriveUpdate {
        drive_id: "data".to_owned(),
        path_on_host: Some(file.to_owned()),
        ..DriveUpdate::default()
    };
    guest.client().patch_drive(&update).map_err(|error| error.to_string())
}

/// A guest that counts, and saves nothing anywhere but in this folder.
fn counting(allowed: &Path) -> Plan {
    let plan = Plan::workload("count,200").with("--memory", "128M");
    plan.with("--allow", allowed.to_str().unwrap())
}

#[test]
#[ignore = "long"]
fn a_vm_is_saved_in_the_folder_that_it_was_allowed_and_in_no_other() {
    Lab::new().as_root().run(|| {
        let scratch = Scratch::new();
        let [allowed, other] = ["allowed", "other"].map(|name| folder(&scratch, name));
        let mut guest = counting(&allowed).start();
        guest.report("tick");

        // The folder itself, again and again, and one below it.
        for _ in 0..3 {
            if let Err(said) = saved(&guest, &allowed) {
                panic!("{said}: {:#?}", guest.finish());
            }
            let mut names = fs::read_dir(&allowed).unwrap().map(|entry| entry.unwrap().file_name());
            assert!(names.all(|name| name == "state" || name == "memory"));
        }
        saved(&guest, &allowed.join("below")).unwrap();
        for refused in [&other, &other.join("new")] {
            let said = saved(&guest, refused).unwrap_err();
            assert!(said.contains("--allow DIR"), "{said}");
        }
        assert_eq!(fs::read_dir(&other).unwrap().count(), 0);
        guest.report("tick");
        guest.stop();
    });
}

#[test]
#[ignore = "long"]
fn a_vm_is_saved_beside_its_socket_without_being_asked() {
    Lab::new().as_root().run(|| {
        let (scratch, other) = (Scratch::new(), Scratch::new());
        // Another folder than that of the tests.
        let mut guest = counting(other.path()).start();
        guest.report("tick");

        saved(&guest, &guest.socket().with_file_name("snapshot")).unwrap();
        let said = saved(&guest, &scratch.join("snapshot")).unwrap_err();

        assert!(said.contains("--allow DIR"), "{said}");
        assert_eq!(scratch.names(), [""; 0]);
        guest.stop();
    });
}

#[test]
fn a_disk_is_replaced_by_a_file_beside_it_or_in_a_folder_that_was_named() {
    Lab::new().as_root().run(|| {
        let scratch = Scratch::new();
        let [disks, allowed, other] =
            ["disks", "allowed", "other"].map(|name| folder(&scratch, name));
        for (folder, name) in
            [(&disks, "one"), (&disks, "two"), (&allowed, "three"), (&other, "four")]
        {
            image(&folder.join(name), MIB);
        }
        let disk = format!("{},id=data", disks.join("one").display());
        let mut guest = counting(&allowed).with("--disk", &disk).start();
        guest.report("tick");

        replaced(&guest, &disks.join("two")).unwrap();
        replaced(&guest, &allowed.join("three")).unwrap();
        let said = replaced(&guest, &other.join("four")).unwrap_err();
        assert!(said.contains("--allow DIR"), "{said}");
        replaced(&guest, &disks.join("one")).unwrap();
        let said = replaced(&guest, &disks.join("none")).unwrap_err();
        assert!(!said.contains("--allow"), "{said}");

        guest.report("tick");
        guest.stop();
    });
}

/// What root may do by its capabilities alone: a folder of another user's that no other may enter.
#[test]
#[ignore = "long"]
fn a_vm_of_root_reaches_disks_and_brokers_of_other_users() {
    Lab::new().as_root().run(|| {
        let (scratch, other) = (Scratch::new(), Scratch::new());
        let theirs = folder(&scratch, "theirs");
        let (disk, socket) = (theirs.join("disk"), theirs.join("broker"));
        let file = image(&disk, MIB);
        image(&theirs.join("second"), MIB);
        chown(&theirs, Some(OTHER), Some(OTHER)).unwrap();
        fs::set_permissions(&theirs, fs::Permissions::from_mode(0o700)).unwrap();
        let broker = Broker::start_at(&socket, &["--capacity", "64M"]);
        let mut guest = counting(other.path())
            .with("--mte", "require")
            .with("--tag-storage", "demand")
            .with("--broker", socket.to_str().unwrap())
            .with("--disk", &format!("{},id=data", disk.display()))
            .start();
        guest.report("tick");

        file.set_len(2 * MIB).unwrap();
        replaced(&guest, &disk).unwrap();
        replaced(&guest, &theirs.join("second")).unwrap();
        broker.kill();
        let broker = Broker::start_at(&socket, &["--capacity", "64M"]);
        broker.wait("the VM to be back", |report| !report.pool.leases.is_empty());
        guest.drain();
        guest.report("tick");

        guest.stop();
        let (code, said) = broker.end();
        assert_eq!(code, Some(143), "{said}");
        assert!(!socket.exists());
    });
}

/// The folder of its control socket, which was not named to be written to.
#[test]
#[ignore = "long"]
fn a_vm_starts_when_the_folder_of_its_socket_has_gone() {
    Lab::new().as_root().run(|| {
        let scratch = Scratch::new();
        let plan = Plan::waiting().with("--allow", scratch.path().to_str().unwrap());
        let mut guest = plan.start();
        guest.answers();
        let mut client = guest.client();
        client.instance().unwrap();
        let folder = guest.socket().parent().unwrap().to_owned();
        let moved = scratch.join("moved");
        fs::rename(&folder, &moved).unwrap();

        let boot = json!({
            "kernel_image_path": artifact("Image"),
            "initrd_path": artifact("initrd.cpio"),
            "boot_args": "quiet cryptomgr.notests workload=count,200",
        });
        client.send("PUT", "/boot-source", &boot).unwrap();
        client.send("PUT", "/actions", &json!({ "action_type": "InstanceStart" })).unwrap();
        guest.report("tick");

        fs::rename(&moved, &folder).unwrap();
        guest.stop();
    });
}
