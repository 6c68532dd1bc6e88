//! What this kernel can keep a process from.

use std::fs;
use std::path::Path;

use super::Check;
use crate::sandbox;
use crate::sys::cgroup;

/// Each user may make so many; no file without CONFIG_USER_NS.
const USER_NAMESPACES: &str = "/proc/sys/user/max_user_namespaces";
/// Debian's and Ubuntu's switches, which other kernels do not have: what they are where users may make some.
const SWITCHES: [(&str, &str); 2] = [
    ("/proc/sys/kernel/unprivileged_userns_clone", "1"),
    ("/proc/sys/kernel/apparmor_restrict_unprivileged_userns", "0"),
];
/// The controllers of version 2 that hold a VM within bounds.
const WANTED: [&str; 3] = ["cpu", "memory", "pids"];

/// What Landlock does not know before each version, where VMs gain by it (landlock(7), "ABI versions").
const SINCE: [(u32, &str); 4] = [
    (2, "moves between folders"),
    (3, "files that are cut"),
    (4, "TCP ports"),
    (5, "ioctl of devices"),
];

pub(super) fn checks() -> Vec<Check> {
    vec![seccomp(), landlock(), user_namespaces(), control_groups()]
}

fn seccomp() -> Check {
    const NAME: &str = "seccomp";
    match sandbox::can_filter() {
        Ok(()) => Check::ok(NAME, "filters of system calls"),
        Err(_) => Check::fail(
            NAME,
            "none",
            "no VM starts without --seccomp off: use a kernel with CONFIG_SECCOMP_FILTER",
        ),
    }
}

fn landlock() -> Check {
    const NAME: &str = "Landlock";
    match sandbox::landlock_version() {
        Ok(version) => Check::ok(NAME, describe(version)),
        Err(_) => Check::warn(
            NAME,
            "none",
            "a VM may open all files of its user: use a kernel with CONFIG_SECURITY_LANDLOCK, and landlock in lsm=",
        ),
    }
}

fn describe(version: u32) -> String {
    let lacks: Vec<_> =
        SINCE.iter().filter(|(since, _)| version < *since).map(|(_, what)| *what).collect();
    match lacks.is_empty() {
        true => format!("version {version}"),
        false => format!("version {version}, which knows nothing of {}", lacks.join(", ")),
    }
}

/// No VM needs them.
fn user_namespaces() -> Check {
    let read = |path: &str| fs::read_to_string(path).map(|text| text.trim().to_owned());
    let is_root = rustix::process::geteuid().is_root();
    let found = match read(USER_NAMESPACES) {
        Err(_) => "none",
        Ok(most) if most == "0" => "none may be made",
        Ok(_) if is_root => "for root",
        Ok(_) => {
            let is_free =
                SWITCHES.iter().all(|(path, free)| read(path).map_or(true, |found| found == *free));
            if is_free { "for every user" } else { "for root alone" }
        }
    };
    Check::ok("user namespaces", found)
}

fn control_groups() -> Check {
    const NAME: &str = "control groups";
    let Ok(text) = fs::read_to_string(Path::new(cgroup::ROOT).join("cgroup.controllers")) else {
        return Check::warn(
            NAME,
            "no version 2",
            format!(
                "--balloon auto sees no limits of groups: mount it at {} (systemd does)",
                cgroup::ROOT
            ),
        );
    };
    let found: Vec<_> = text.split_whitespace().filter(|name| WANTED.contains(name)).collect();
    let found = if found.is_empty() { "no controllers".to_owned() } else { found.join(", ") };
    Check::ok(NAME, format!("version 2, {found}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_old_landlock_is_said_to_lack_what_came_later() {
        assert_eq!(describe(6), "version 6");
        assert_eq!(describe(4), "version 4, which knows nothing of ioctl of devices");
        assert!(describe(1).contains("moves between folders, files that are cut, TCP ports"));
    }

    #[test]
    fn each_is_looked_at() {
        let names: Vec<_> = checks().iter().map(|check| check.name).collect();

        assert_eq!(names, ["seccomp", "Landlock", "user namespaces", "control groups"]);
    }
}
