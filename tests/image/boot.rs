//! From the start to the power-off, and each way into the guest.

use std::process::Command;

use testing::scratch::Scratch;

use crate::debian::{
    ADDRESS, DISK, Key, Way, exec, lab, on_a_tap, plan, said, start_on_a_tap, tesseractl, timed,
};

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

#[test]
fn debian_boots_with_mte_takes_commands_and_stops_in_order() {
    lab().run(|| {
        let scratch = Scratch::new();
        let (key, other) = (Key::new(scratch.join("key")), Key::new(scratch.join("other")));
        let plan = plan(&scratch).append(&key.credential()).with("--mte", "require");
        let guest = start_on_a_tap(on_a_tap(plan));

        // The end of the boot, without a failed unit.
        let running = || said(exec(&guest, &["systemctl", "is-system-running", "--wait"]));
        assert_eq!(timed("boot", running), "running");
        assert_eq!(said(exec(&guest, &["systemctl", "--failed", "--no-legend"])), "");
        assert_eq!(said(exec(&guest, &["systemd-detect-virt"])), "kvm");

        let source = scratch.file("bad.c", BAD_WRITE.as_bytes());
        said(tesseractl(&guest, &["cp", source.to_str().unwrap(), ":/root/"]));
        said(exec(&guest, &["gcc", "-march=armv8.5-a+memtag", "-o", "/root/bad", "/root/bad.c"]));
        let stopped = exec(&guest, &["/root/bad"]);
        // 128 and SIGSEGV.
        assert_eq!(stopped.status.code(), Some(139), "{stopped:?}");
        assert_eq!(String::from_utf8_lossy(&stopped.stdout), "tagged\n");

        let ways = [("vsock", Way::Vsock(guest.socket())), ("the tap", Way::Tcp(ADDRESS))];
        for (name, way) in &ways {
            let log_in = || said(key.ssh(way, "hostname"));
            assert_eq!(timed(&format!("ssh through {name}"), log_in), "tessera");
            let refused = other.ssh(way, "true");
            assert_eq!(refused.status.code(), Some(255), "{refused:?}");
        }
        // The key was good for this boot alone.
        assert_eq!(said(key.ssh(&ways[0].1, "ls /root/.ssh")), "");

        said(tesseractl(&guest, &["stop"]));
        guest.finish().expect_power_off();
        said(Command::new("e2fsck").args(["-f", "-n", DISK]).output().unwrap());
    });
}
