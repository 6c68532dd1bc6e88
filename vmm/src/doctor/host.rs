//! What can be seen of the host without KVM.

use std::fs;
use std::path::Path;

use arch::layout::CHUNK;
use rustix::param::page_size;

use super::Check;
use crate::sys::caches;
use crate::sys::huge_pages::huge_page_size;

const THP: &str = "/sys/kernel/mm/transparent_hugepage/enabled";
const NODES: &str = "/sys/devices/system/node";
const UFFD_SYSCTL: &str = "/proc/sys/vm/unprivileged_userfaultfd";
const UFFD_DEVICE: &str = "/dev/userfaultfd";

pub(super) fn architecture() -> Check {
    let machine = rustix::system::uname().machine().to_string_lossy().into_owned();
    if cfg!(target_arch = "aarch64") {
        Check::ok("architecture", machine)
    } else {
        Check::fail(
            "architecture",
            machine,
            "guests need an arm64 host; on this machine `make run` boots one in QEMU",
        )
    }
}

#[cfg(not(target_arch = "aarch64"))]
pub(super) fn no_kvm() -> Check {
    Check::fail("KVM", "not looked at", "this program runs guests on arm64 only")
}

pub(super) fn checks() -> Vec<Check> {
    vec![pages(), huge_pages(), userfaultfd(), numa(), caches(), descriptors()]
}

fn pages() -> Check {
    Check::ok("page size", arch::units::Bytes::new(page_size() as u64).to_string())
}

fn huge_pages() -> Check {
    const NAME: &str = "huge pages";
    let Ok(text) = fs::read_to_string(THP) else {
        return Check::warn(
            NAME,
            "none",
            "the kernel has no transparent huge pages: guests run slower and discard page by page",
        );
    };
    if let Some(size) = huge_page_size().filter(|size| *size > CHUNK) {
        return Check::warn(
            NAME,
            format!("transparent, {size}"),
            format!(
                "larger than the {CHUNK} in which guests use memory: guests are not given them"
            ),
        );
    }
    match text.split(['[', ']']).nth(1) {
        Some(mode @ ("always" | "madvise")) => Check::ok(NAME, format!("transparent, {mode}")),
        _ => Check::warn(NAME, "transparent, never", format!("echo madvise > {THP}")),
    }
}

fn userfaultfd() -> Check {
    const NAME: &str = "userfaultfd";
    let allowed = fs::read_to_string(UFFD_SYSCTL).is_ok_and(|text| text.trim() == "1");
    let device =
        rustix::fs::access(UFFD_DEVICE, rustix::fs::Access::READ_OK | rustix::fs::Access::WRITE_OK);
    if rustix::process::geteuid().is_root() {
        Check::ok(NAME, "usable as root")
    } else if allowed {
        Check::ok(NAME, "usable by everyone")
    } else if device.is_ok() {
        Check::ok(NAME, format!("usable through {UFFD_DEVICE}"))
    } else {
        Check::warn(
            NAME,
            "not usable by this user",
            format!(
                "tag storage on demand needs it: give access to {UFFD_DEVICE}, or echo 1 > {UFFD_SYSCTL}"
            ),
        )
    }
}

fn numa() -> Check {
    const NAME: &str = "NUMA nodes";
    let Ok(entries) = fs::read_dir(NODES) else {
        return Check::ok(NAME, "1");
    };
    let mut nodes: Vec<u32> = entries
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.strip_prefix("node")?.parse().ok())
        .collect();
    nodes.sort_unstable();
    let without_cpus: Vec<String> = nodes
        .iter()
        .filter(|node| {
            let list = Path::new(NODES).join(format!("node{node}/cpulist"));
            fs::read_to_string(list).is_ok_and(|cpus| cpus.trim().is_empty())
        })
        .map(u32::to_string)
        .collect();
    let mut found = nodes.len().max(1).to_string();
    if !without_cpus.is_empty() {
        found += &format!(", without CPUs: {}", without_cpus.join(", "));
    }
    Check::ok(NAME, found)
}

/// What a guest's device tree says of them. KVM may show other caches in CLIDR_EL1; then it says nothing.
fn caches() -> Check {
    const NAME: &str = "caches";
    match caches::read() {
        Ok(topology) => Check::ok(NAME, format!("{} levels", topology.levels().len())),
        Err(unknown) => Check::ok(NAME, format!("not described to guests, as {unknown}")),
    }
}

fn descriptors() -> Check {
    const NAME: &str = "open files";
    // A vCPU takes one descriptor; the rest of a VM about thirty.
    const ENOUGH: u64 = 256;
    let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile).current;
    match limit {
        Some(limit) if limit < ENOUGH => Check::warn(
            NAME,
            format!("{limit} a process"),
            format!("large guests need more: ulimit -n {ENOUGH}"),
        ),
        Some(limit) => Check::ok(NAME, format!("{limit} a process")),
        None => Check::ok(NAME, "no limit"),
    }
}
