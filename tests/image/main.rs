//! Tests of the Debian image under the real `tessera`, in the lab: `make image-tests`.
#![allow(clippy::unwrap_used)]

mod python;

use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use testing::guest::{Guest, Plan};
use testing::lab::{Lab, image, program};
use testing::scratch::Scratch;

/// The image as a disk of the host's.
const DISK: &str = "/dev/vda";
/// How long Debian may take to boot under two emulations on a busy machine.
const BOOT: &str = "600";
/// Writes a byte with a pointer whose tag is that of the memory, and one past the memory of that tag
/// (Documentation/arch/arm64/memory-tagging-extension.rst).
const BAD_WRITE: &str = r#"
#include <arm_acle.h>
#include <stdio.h>
#include <sys/mman.h>
#include <sys/prctl.h>

int main(void)
{
	prctl(PR_SET_TAGGED_ADDR_CTRL, PR_TAGGED_ADDR_ENABLE | PR_MTE_TCF_SYNC | 0xfffeUL << PR_MTE_TAG_SHIFT, 0, 0, 0);
	char *page = mmap(NULL, 4096, PROT_READ | PROT_WRITE | PROT_MTE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	char *granule = __arm_mte_create_random_tag(page, 1);
	__arm_mte_set_tag(granule);
	granule[15] = 1;
	puts("tagged");
	fflush(stdout);
	granule[16] = 1;
	puts("not stopped");
}
"#;

fn debian(scratch: &Scratch, key: &Path) -> Guest {
    let key = said(Command::new("base64").arg("--wrap=0").arg(key).output().unwrap());
    Plan::bare(&image("Image"))
        .initrd(&image("initrd"))
        .append("console=ttyS0 quiet root=/dev/vda")
        .append(&format!("systemd.set_credential_binary=ssh.authorized_keys.root:{key}"))
        .with("--disk", DISK)
        .with("--memory", "1G")
        .with("--cpus", "2")
        .with("--mte", "require")
        .with("--vsock", scratch.join("vsock").to_str().unwrap())
        .flag("--rng")
        .start()
}

fn tesseractl(guest: &Guest, arguments: &[&str]) -> Output {
    guest.tesseractl(arguments).output().unwrap()
}

fn exec(guest: &Guest, words: &[&str]) -> Output {
    tesseractl(guest, &[&["exec", "--timeout", BOOT, "--"], words].concat())
}

fn said(output: Output) -> String {
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout).unwrap().trim().to_owned()
}

fn new_key(file: &Path) {
    said(
        Command::new("ssh-keygen")
            .args(["-q", "-t", "ed25519", "-N", "", "-f"])
            .arg(file)
            .output()
            .unwrap(),
    );
}

/// Runs `command` in the guest over vsock, logged in by `key` alone.
fn ssh(guest: &Guest, key: &Path, command: &str) -> Output {
    let proxy =
        format!("{} proxy {} 22", program("tesseractl").display(), guest.socket().display());
    let options = [
        "StrictHostKeyChecking=no",
        "UserKnownHostsFile=/dev/null",
        "IdentitiesOnly=yes",
        "BatchMode=yes",
    ];
    Command::new("ssh")
        .args(options.iter().flat_map(|option| ["-o", option]))
        .args(["-o", &format!("ProxyCommand={proxy}"), "-i"])
        .arg(key)
        .args(["root@guest", command])
        .stdin(Stdio::null())
        .output()
        .unwrap()
}

#[test]
fn debian_boots_with_mte_takes_commands_and_stops_in_order() {
    let lab = Lab::new().debian().timeout(Duration::from_secs(1200));
    let lab = ["Image", "initrd"]
        .iter()
        .fold(lab, |lab, name| lab.file(&image(name), &format!("/image/{name}")));
    lab.disk(&image("debian.ext4")).run(|| {
        let scratch = Scratch::new();
        let (key, other) = (scratch.join("key"), scratch.join("other"));
        new_key(&key);
        new_key(&other);
        let guest = debian(&scratch, &scratch.join("key.pub"));
        guest.is_loaded();

        // The end of the boot, without a failed unit.
        assert_eq!(said(exec(&guest, &["systemctl", "is-system-running", "--wait"])), "running");
        assert_eq!(said(exec(&guest, &["systemctl", "--failed", "--no-legend"])), "");
        assert_eq!(said(exec(&guest, &["systemd-detect-virt"])), "kvm");

        let source = scratch.file("bad.c", BAD_WRITE.as_bytes());
        said(tesseractl(&guest, &["cp", source.to_str().unwrap(), ":/root/"]));
        said(exec(&guest, &["gcc", "-march=armv8.5-a+memtag", "-o", "/root/bad", "/root/bad.c"]));
        let stopped = exec(&guest, &["/root/bad"]);
        // 128 and SIGSEGV.
        assert_eq!(stopped.status.code(), Some(139), "{stopped:?}");
        assert_eq!(String::from_utf8_lossy(&stopped.stdout), "tagged\n");

        assert_eq!(said(ssh(&guest, &key, "hostname")), "tessera");
        let refused = ssh(&guest, &other, "true");
        assert_eq!(refused.status.code(), Some(255), "{refused:?}");
        // The key was good for this boot alone.
        assert_eq!(said(ssh(&guest, &key, "ls /root/.ssh")), "");

        said(tesseractl(&guest, &["stop"]));
        guest.finish().expect_power_off();
        said(Command::new("e2fsck").args(["-f", "-n", DISK]).output().unwrap());
    });
}

/// Everything below the folders that packages and units write to, and the units that systemd knows.
const STATE: &str = "find /etc /usr /var/lib /run/systemd/system /run/tessera* -path /var/lib/dpkg -prune -o -path \
    /var/lib/systemd -prune -o -print 2>/dev/null | sort; systemctl list-unit-files --no-legend | sort; stat -c '%n %G %a' \
    /dev/userfaultfd";

/// In the guest, which has no KVM of its own: units are checked, the broker runs, a VM says why it cannot.
#[test]
fn the_package_for_hosts_is_installed_used_and_removed_without_a_trace() {
    let lab = Lab::new().debian().timeout(Duration::from_secs(1200));
    let files = ["Image", "initrd"].map(|name| (image(name), format!("/image/{name}")));
    let lab = files.iter().fold(lab, |lab, (from, to)| lab.file(from, to));
    let lab = lab.file(&image("../debs"), "/debs");
    lab.disk(&image("debian.ext4")).run(|| {
        let scratch = Scratch::new();
        new_key(&scratch.join("key"));
        let guest = debian(&scratch, &scratch.join("key.pub"));
        guest.is_loaded();
        let sh = |script: &str| said(exec(&guest, &["sh", "-c", script]));
        sh("systemctl is-system-running --wait");
        said(tesseractl(&guest, &["cp", "/debs", ":/root/"]));
        let before = sh(STATE);

        sh("dpkg -i /root/debs/tessera_*_arm64.deb");
        assert!(sh("stat -c '%G %a' /dev/userfaultfd") == "kvm 660");
        let units = "/usr/lib/systemd/system/tessera-broker.service tessera@demo.service";
        assert_eq!(sh(&format!("systemd-analyze verify {units} 2>&1")), "");
        sh("tessera --version && tesseractl --version && tessera doctor >/dev/null; test $? = 13");

        sh("systemctl start tessera-broker");
        let pool = sh("tesseractl pool --broker /run/tessera-broker/socket");
        assert!(pool.contains("lending never"), "{pool}");
        // Who is not in the group may not.
        sh("! setpriv --reuid nobody --clear-groups tesseractl pool --broker /run/tessera-broker/socket");
        sh("cp /usr/share/doc/tessera/examples/demo.json /etc/tessera/");
        sh("! systemctl start tessera@demo");
        let messages = sh("journalctl --unit tessera@demo --output cat");
        assert!(messages.contains("/dev/kvm"), "{messages}");

        sh("DEBIAN_FRONTEND=noninteractive apt-get -q -y purge tessera");
        assert_eq!(sh(STATE), before);
        assert_eq!(sh("systemctl list-units --all --no-legend 'tessera-broker*' 'tessera@*'"), "");

        // The agent that runs this is in no package yet.
        sh("dpkg -i /root/debs/tessera-agent_*_arm64.deb");
        assert_eq!(sh("systemctl is-active tessera-agent; dpkg -V tessera-agent"), "active");

        said(tesseractl(&guest, &["stop"]));
        guest.finish().expect_power_off();
    });
}
