//! Guests with disks: what they write is in the file, what fails is theirs alone, and what was durable survives.

use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::{Command, Stdio};

use rustix::process::Signal;
use testing::guest::{Guest, Plan};
use testing::lab::Lab;
use testing::scratch::Scratch;
use testing::small_file_system::SmallFileSystem;
use testing::wait::until;
use vmm::api::model::DriveUpdate;

const MIB: u64 = 1 << 20;
/// How often a VM is killed while it writes.
const KILLS: u32 = 4;

fn image(path: &Path, size: u64) -> File {
    let file = OpenOptions::new().create_new(true).read(true).write(true).open(path).unwrap();
    file.set_len(size).unwrap();
    file
}

fn metric(guest: &Guest, disk: &str, name: &str) -> u64 {
    let metrics = serde_json::to_value(guest.client().metrics().unwrap()).unwrap();
    metrics[format!("block_{disk}")][name].as_u64().unwrap()
}

#[test]
fn a_guest_reads_and_writes_its_disks_and_sees_them_grow() {
    Lab::new().run(|| {
        let scratch = Scratch::new();
        let (data, fixed) = (scratch.join("data.img"), scratch.join("fixed.img"));
        let (file, read_only) = (image(&data, 16 * MIB), image(&fixed, MIB + 100));
        read_only.write_all_at(b"from the host", 512).unwrap();
        let guest = Plan::agent(&scratch)
            .with("--disk", &format!("{},id=data", data.display()))
            .with("--disk", &format!("{},ro", fixed.display()))
            .start();
        guest.answers();

        let sys = |what: &str| guest.sh(&format!("cat /sys/block/{what}"));
        assert_eq!((sys("vda/size"), sys("vda/ro")), ("32768".to_owned(), "0".to_owned()));
        assert_eq!((sys("vdb/size"), sys("vdb/ro")), ("2048".to_owned(), "1".to_owned()));
        assert_eq!((sys("vda/serial"), sys("vdb/serial")), ("data".to_owned(), "disk1".to_owned()));

        // What the guest writes is in the file once it has synchronised it.
        guest.sh("for i in 1 2 3; do echo guest $i; done | dd of=/dev/vda bs=512 seek=100 conv=fsync,notrunc 2>/dev/null");
        let mut text = [0; 24];
        file.read_exact_at(&mut text, 51_200).unwrap();
        assert_eq!(&text, b"guest 1\nguest 2\nguest 3\n");
        assert!(metric(&guest, "data", "flushes_total") > 0);
        assert_eq!(guest.sh("dd if=/dev/vdb bs=1 skip=512 count=13 2>/dev/null"), "from the host");
        assert!(!guest.shell("dd if=/dev/zero of=/dev/vdb bs=512 count=1 conv=fsync").status().unwrap().success());
        let whole = guest.sh("dd if=/dev/urandom of=/dev/vda bs=1M count=8 conv=fsync 2>/dev/null; echo 3 >/proc/sys/vm/drop_caches; dd if=/dev/vda bs=64k count=128 2>/dev/null | sha256sum");
        let script = format!("head -c 8388608 {} | sha256sum", data.display());
        let host = Command::new("sh").args(["-c", &script]).output().unwrap();
        assert_eq!(whole, String::from_utf8(host.stdout).unwrap().trim());

        file.set_len(24 * MIB).unwrap();
        let grown = DriveUpdate { drive_id: "data".to_owned(), path_on_host: Some(data.clone()), ..DriveUpdate::default() };
        guest.client().patch_drive(&grown).unwrap();
        until("the new size", || (sys("vda/size") == "49152").then_some(()));
        guest.sh("echo end | dd of=/dev/vda bs=512 seek=49151 conv=fsync,notrunc 2>/dev/null");

        // A second VM must not write to it.
        let second = Plan::workload("count").with("--disk", data.to_str().unwrap()).run();
        assert_eq!(second.code, Some(69), "{second:?}");
        assert!(second.messages.contains("in use by another process"), "{second:?}");
        guest.stop();
    });
}

#[test]
fn a_full_or_shrunk_disk_fails_alone() {
    Lab::new().emulated().run(|| {
        let scratch = Scratch::new();
        let small = SmallFileSystem::mount(scratch.join("small"), 4 << 20);
        let (full, cut) = (small.path().join("full.img"), scratch.join("cut.img"));
        image(&full, 64 * MIB);
        let cut_file = image(&cut, 16 * MIB);
        let guest = Plan::agent(&scratch)
            .with("--disk", full.to_str().unwrap())
            .with("--disk", cut.to_str().unwrap())
            .start();
        guest.answers();

        let write = "dd if=/dev/zero of=/dev/vda bs=1M count=16 conv=fsync";
        assert!(!guest.shell(write).status().unwrap().success());
        cut_file.set_len(MIB).unwrap();
        assert!(!guest.shell("dd if=/dev/vdb of=/dev/null bs=64k skip=100 count=1").status().unwrap().success());
        assert!(!guest.shell("dd if=/dev/zero of=/dev/vdb bs=64k seek=100 count=1 conv=fsync").status().unwrap().success());

        // Everything else works: the same disks where they are whole, the guest, its control socket.
        guest.sh("dd if=/dev/vda of=/dev/null bs=64k count=1; dd if=/dev/vdb of=/dev/null bs=64k count=1");
        assert!(metric(&guest, "disk0", "failures_total") > 0);
        assert!(metric(&guest, "disk1", "failures_total") > 0);
        assert_eq!(fs::metadata(&cut).unwrap().len(), MIB);
        guest.stop();
        drop(small);
    });
}

/// Writes files for ever, each durable before its name is printed.
const LOAD: &str = "n=$(ls /mnt | wc -l); while :; do echo content $n >/mnt/$n; head -c 30000 /dev/zero >>/mnt/$n; \
    sync /mnt/$n /mnt && echo durable $n; n=$((n+1)); done";

fn file_system(folder: &Path) {
    let image = folder.join("root.ext4");
    let made = Command::new("mke2fs").args(["-q", "-t", "ext4"]).arg(&image).arg("64M").status();
    assert!(made.unwrap().success());
}

#[test]
#[ignore = "long"]
fn nothing_durable_is_lost_when_a_vm_is_killed_as_it_writes() {
    Lab::new().prepare(file_system).run_with(|prepared| {
        let scratch = Scratch::new();
        // The folder of what was prepared may be only read.
        let disk = scratch.join("root.ext4");
        fs::copy(prepared.join("root.ext4"), &disk).unwrap();
        let mut durable = Vec::new();
        for round in 0..=KILLS {
            let scratch = Scratch::new();
            let guest = Plan::agent(&scratch).with("--disk", disk.to_str().unwrap()).start();
            guest.answers();
            guest.sh("mkdir -p /mnt && mount -t ext4 /dev/vda /mnt");
            let found =
                guest.sh("cd /mnt && for n in [0-9]*; do echo $(head -n 1 $n) $(wc -c <$n); done");
            for number in &durable {
                let length = 30_001 + format!("content {number}").len();
                let whole = format!("content {number} {length}");
                assert!(
                    found.lines().any(|line| line == whole),
                    "round {round}: {number} of {found}"
                );
            }
            if round == KILLS {
                guest.sh("umount /mnt");
                guest.stop();
                break;
            }
            let mut load = guest
                .tesseractl(&["exec", "--", "sh", "-c", LOAD])
                .stdout(Stdio::piped())
                .spawn()
                .unwrap();
            let lines =
                std::io::BufRead::lines(std::io::BufReader::new(load.stdout.take().unwrap()));
            let written = lines.map_while(Result::ok).take(10 + round as usize);
            durable.extend(written.map(|line| line.strip_prefix("durable ").unwrap().to_owned()));
            guest.signal(Signal::KILL);
            guest.finish();
            let _ = load.wait();
        }
        assert!(durable.len() >= 10 * KILLS as usize, "{durable:?}");
    });
}
