#![allow(clippy::unwrap_used)]

use arch::caches::Kind;
use tempfile::TempDir;

use super::*;

/// A folder that is laid out as sysfs lays out its CPUs.
struct Host(TempDir);

impl Host {
    fn new() -> Self {
        let host = Self(TempDir::new().unwrap());
        // What else is there.
        host.put("online", "0-3,10\n");
        host.put("cpufreq/boost", "1\n");
        host.put("cpuidle/current_driver", "none\n");
        host
    }

    fn put(&self, file: &str, text: &str) {
        let file = self.0.path().join(file);
        fs::create_dir_all(file.parent().unwrap()).unwrap();
        fs::write(file, text).unwrap();
    }

    fn cache(&self, cpu: u32, index: u32, level: u32, kind: &str, size: &str, shared: &str) {
        let put = |file, text: &str| self.put(&format!("cpu{cpu}/cache/index{index}/{file}"), text);
        put("level", &format!("{level}\n"));
        put("type", &format!("{kind}\n"));
        put("size", &format!("{size}\n"));
        put("coherency_line_size", "64\n");
        put("number_of_sets", "256\n");
        put("shared_cpu_list", &format!("{shared}\n"));
        put("shared_cpu_map", "f\n");
    }

    /// A CPU with 64 KiB each at level 1, `second` at level 2 and a shared level 3.
    fn cpu(&self, cpu: u32, midr: &str, second: &str) {
        self.put(&format!("cpu{cpu}/regs/identification/midr_el1"), midr);
        self.cache(cpu, 0, 1, "Data", "64K", &cpu.to_string());
        self.cache(cpu, 1, 1, "Instruction", "64K", &cpu.to_string());
        self.cache(cpu, 2, 2, "Unified", second, &cpu.to_string());
        self.cache(cpu, 3, 3, "Unified", "32768K", "0-3");
    }

    fn read(&self) -> Result<CacheTopology, Unknown> {
        read_from(self.0.path())
    }
}

#[test]
fn a_host_has_the_caches_that_its_cpus_list() {
    let host = Host::new();
    (0..4).for_each(|cpu| host.cpu(cpu, "0x00000000413fd0c1\n", "1024K"));

    let topology = host.read().unwrap();

    let kinds: Vec<_> =
        topology.levels().iter().map(|level| (level.kind(), level.shared)).collect();
    assert_eq!(kinds, [(Kind::Separate, false), (Kind::Unified, false), (Kind::Unified, true)]);
}

#[test]
fn cpus_of_two_models_are_compared() {
    let host = Host::new();
    host.cpu(0, "0x1", "1024K");
    host.cpu(10, "0x2", "1024K");
    assert!(host.read().is_ok());

    host.cpu(2, "0x3", "512K");

    assert_eq!(host.read(), Err(Unknown::Different));
}

#[test]
fn without_models_every_cpu_is_compared() {
    let host = Host::new();
    host.cpu(0, "0x1", "1024K");
    host.cpu(1, "0x1", "512K");
    for cpu in 0..2 {
        let model = host.0.path().join(format!("cpu{cpu}/regs/identification/midr_el1"));
        fs::remove_file(model).unwrap();
    }

    assert_eq!(host.read(), Err(Unknown::Different));
}

#[test]
fn a_cpu_that_is_offline_lists_nothing_and_is_left_out() {
    let host = Host::new();
    host.put("cpu0/online", "0\n");
    host.cpu(1, "0x1", "1024K");

    assert!(host.read().is_ok());
}

#[test]
fn a_host_that_does_not_say_the_size_is_unknown() {
    let host = Host::new();
    host.cpu(0, "0x1", "1024K");
    fs::remove_file(host.0.path().join("cpu0/cache/index2/size")).unwrap();

    assert_eq!(host.read(), Err(Unknown::Missing { file: "size" }));
}

#[test]
fn a_host_without_lists_is_unknown() {
    let host = Host::new();

    assert_eq!(host.read(), Err(Unknown::Unlisted));
    assert_eq!(read_from(Path::new("/nowhere")), Err(Unknown::Unlisted));
}

#[test]
fn a_list_of_cpus_is_read_as_far_as_it_makes_sense() {
    let host = Host::new();
    let cases: [(&str, &[u32]); 6] = [
        ("0\n", &[0]),
        ("0-2,8\n", &[0, 1, 2, 8]),
        ("", &[]),
        ("x,1", &[1]),
        ("3-1,-2", &[]),
        ("5-,6", &[6]),
    ];
    for (list, expected) in cases {
        host.put("online", list);
        assert_eq!(online(host.0.path()), expected, "{list:?}");
    }
    host.put("online", "0-4294967295");
    assert_eq!(online(host.0.path()).len(), MOST_CPUS);
}

#[test]
fn what_is_no_text_counts_as_missing() {
    let host = Host::new();
    host.cpu(0, "0x1", "1024K");
    fs::write(host.0.path().join("cpu0/cache/index0/size"), [0xff; 8]).unwrap();

    assert_eq!(host.read(), Err(Unknown::Missing { file: "size" }));
}
