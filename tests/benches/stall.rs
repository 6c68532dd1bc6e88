//! A disk of the host that does not answer: the API does, and how soon.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use testing::figures::counted;
use testing::guest::{Guest, Plan};
use testing::lab::Lab;
use testing::scratch::Scratch;
use testing::wait::until;

/// How long the disk does not answer.
const STALL: Duration = Duration::from_secs(2);

/// What one answer may take on the host's clock, which counts instructions here: a busy machine changes nothing.
const MOST: Duration = Duration::from_millis(20);

fn host(command: &str) {
    let status = Command::new("sh").args(["-ec", command]).status().unwrap();
    assert!(status.success(), "{command}: {status}");
}

fn image(folder: &Path) {
    let image = folder.join("host.ext4");
    let made = Command::new("mke2fs").args(["-q", "-t", "ext4"]).arg(&image).arg("32M").status();
    assert!(made.unwrap().success());
}

/// A file system of the host. Frozen, it has everything wait that writes to it (fsfreeze(8)).
struct FileSystem(PathBuf);

impl FileSystem {
    /// Debian's kernels have both drivers as modules, with all that they need.
    fn mount(image: &Path, at: PathBuf) -> Self {
        for module in ["loop", "crc16", "mbcache", "jbd2", "ext4"] {
            host(&format!(
                "test -e /sys/module/{module} || \
                 for file in $(find /lib/modules/ /artifacts/modules/ -name {module}.ko.xz | head -n 1); do \
                 xzcat $file >/tmp/module && insmod /tmp/module && rm /tmp/module; done"
            ));
        }
        fs::create_dir(&at).unwrap();
        host(&format!("mount -t ext4 -o loop {} {}", image.display(), at.display()));
        Self(at)
    }

    fn freeze(&self) {
        host(&format!("fsfreeze --freeze {}", self.0.display()));
    }

    fn thaw(&self) {
        host(&format!("fsfreeze --unfreeze {}", self.0.display()));
    }
}

impl Drop for FileSystem {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg(&self.0).status();
    }
}

/// Whether a thread of the VMM waits in the kernel for what no signal ends, as for a file system that is frozen.
fn waits_for_the_disk(guest: &Guest) -> bool {
    let threads = fs::read_dir(format!("/proc/{}/task", guest.pid())).unwrap();
    threads.flatten().any(|thread| {
        let status = fs::read_to_string(thread.path().join("status")).unwrap_or_default();
        status.contains("State:\tD") && status.starts_with("Name:\tdisk")
    })
}

fn writes(guest: &Guest) -> u64 {
    guest.client().metrics().unwrap()["block_disk0"]["writes_total"].as_u64().unwrap()
}

#[test]
fn the_api_answers_while_a_disk_stalls() {
    Lab::new().counting_instructions().prepare(image).run_with(|prepared| {
        let scratch = Scratch::new();
        let file_system = FileSystem::mount(&prepared.join("host.ext4"), scratch.join("mounted"));
        let disk = file_system.0.join("disk");
        File::create(&disk).unwrap().set_len(8 << 20).unwrap();
        let guest = Plan::agent(&scratch).with("--disk", disk.to_str().unwrap()).start();
        guest.answers();
        let write = [
            "exec",
            "--timeout",
            "60",
            "--",
            "dd",
            "if=/dev/zero",
            "of=/dev/vda",
            "count=1",
            "conv=fsync",
        ];
        assert!(guest.tesseractl(&write).status().unwrap().success());
        let before = writes(&guest);

        file_system.freeze();
        let mut writer = guest.tesseractl(&write).spawn().unwrap();
        until("the write", || waits_for_the_disk(&guest).then_some(()));
        let mut client = guest.client();
        let mut longest = Duration::ZERO;
        let (start, mut answers) = (Instant::now(), 0);
        while start.elapsed() < STALL || answers < 100 {
            let asked = Instant::now();
            match answers % 3 {
                0 => drop(client.instance().unwrap()),
                1 => drop(client.vm_config().unwrap()),
                _ => drop(client.metrics().unwrap()),
            }
            longest = longest.max(asked.elapsed());
            answers += 1;
            std::thread::sleep(Duration::from_millis(5));
        }
        // All of them came before the disk's.
        assert!(waits_for_the_disk(&guest));
        assert_eq!((writes(&guest), writer.try_wait().unwrap()), (before, None));
        file_system.thaw();

        assert!(writer.wait().unwrap().success());
        assert!(writes(&guest) > before);
        println!(
            "{answers} answers of the API while a disk stalled for {STALL:?}: {longest:?} at most"
        );
        counted("stall", "longest answer of the API while a disk stalls", "million instructions")
            .at_most(MOST.as_secs_f64() * 1e3)
            .record(longest.as_secs_f64() * 1e3);
        assert!(longest < MOST, "an answer took {longest:?} while the disk stalled");
        guest.stop();
    });
}
