//! The packages, installed and removed.

use testing::lab::image;
use testing::scratch::Scratch;

use crate::debian::{lab, plan, said, sh, tesseractl};

/// Everything below the folders that packages and units write to, and the units that systemd knows.
const STATE: &str = "\
    find /etc /usr /var/lib /run/systemd/system /run/tessera* -path /var/lib/dpkg -prune -o -path /var/lib/systemd -prune \
    -o -path /var/lib/apt -prune -o -print 2>/dev/null | sort; \
    systemctl list-unit-files --no-legend | sort; \
    stat -c '%n %G %a' /dev/userfaultfd";

/// In the guest, which has no KVM of its own: units are checked, the broker runs, a VM says why it cannot.
#[test]
fn the_package_for_hosts_is_installed_used_and_removed_without_a_trace() {
    lab().file(&image("../debs"), "/debs").run(|| {
        let scratch = Scratch::new();
        let guest = plan(&scratch).start();
        guest.answers();
        let sh = |script: &str| said(sh(&guest, script));
        sh("systemctl is-system-running --wait");
        said(tesseractl(&guest, &["cp", "/debs", ":/root/"]));
        let before = sh(STATE);

        sh("dpkg -i /root/debs/tessera_*_arm64.deb");
        assert!(sh("stat -c '%G %a' /dev/userfaultfd") == "kvm 660");
        let units = "/usr/lib/systemd/system/tessera-broker.service tessera@demo.service";
        assert_eq!(sh(&format!("systemd-analyze --man=no verify {units} 2>&1")), "");
        sh("tessera --version && tesseractl --version && tessera doctor >/dev/null; test $? = 13");

        sh("systemctl start tessera-broker");
        let pool = sh("tesseractl pool --broker /run/tessera-broker/socket");
        assert!(pool.contains("lending never"), "{pool}");
        // Who is not in the group may not.
        sh("! setpriv --reuid nobody --clear-groups tesseractl pool --broker /run/tessera-broker/socket");
        sh("cp /usr/share/tessera/demo.json /etc/tessera/");
        sh("! systemctl start tessera@demo");
        let messages = sh("journalctl --unit tessera@demo --output cat");
        assert!(messages.contains("/dev/kvm"), "{messages}");

        sh("DEBIAN_FRONTEND=noninteractive apt-get -q -y purge tessera");
        assert_eq!(sh(STATE), before);
        assert_eq!(sh("systemctl list-units --all --no-legend 'tessera-broker*' 'tessera@*'"), "");

        // The agent that runs this is in no package yet.
        sh("dpkg -i /root/debs/tessera-agent_*_arm64.deb");
        assert_eq!(sh("systemctl is-active tessera-agent"), "active");

        said(tesseractl(&guest, &["stop"]));
        guest.finish().expect_power_off();
    });
}
