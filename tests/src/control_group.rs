//! A control group of the host's for a process.

use std::fs;
use std::path::{Path, PathBuf};

const ROOT: &str = "/sys/fs/cgroup";

/// A group with limits of memory; when dropped, its processes are in the root's again and it is gone.
#[derive(Debug)]
pub struct ControlGroup(PathBuf);

impl ControlGroup {
    /// One of this name, with this process in it. The test needs to be root.
    ///
    /// # Panics
    /// When it cannot be made.
    pub fn new(name: &str, pid: u32) -> Self {
        fs::write(Path::new(ROOT).join("cgroup.subtree_control"), "+memory").unwrap();
        let group = Self(Path::new(ROOT).join(name));
        fs::create_dir(&group.0).unwrap();
        group.set("cgroup.procs", &pid.to_string());
        group
    }

    /// Writes one of its files (Documentation/admin-guide/cgroup-v2.rst).
    ///
    /// # Panics
    /// When the kernel refuses.
    pub fn set(&self, file: &str, value: &str) {
        fs::write(self.0.join(file), value).unwrap();
    }

    /// What one of its files has.
    ///
    /// # Panics
    /// When it cannot be read.
    pub fn get(&self, file: &str) -> String {
        fs::read_to_string(self.0.join(file)).unwrap()
    }

    /// Its memory, in bytes.
    pub fn current(&self) -> u64 {
        self.get("memory.current").trim().parse().unwrap()
    }

    /// How many of its processes the kernel has killed for want of memory.
    pub fn killed(&self) -> u64 {
        let events = self.get("memory.events");
        let count = events.lines().find_map(|line| line.strip_prefix("oom_kill "));
        count.unwrap().parse().unwrap()
    }
}

impl Drop for ControlGroup {
    fn drop(&mut self) {
        let processes = fs::read_to_string(self.0.join("cgroup.procs")).unwrap_or_default();
        for pid in processes.lines() {
            let _ = fs::write(Path::new(ROOT).join("cgroup.procs"), pid);
        }
        let _ = fs::remove_dir(&self.0);
        let _ = fs::write(Path::new(ROOT).join("cgroup.subtree_control"), "-memory");
    }
}
