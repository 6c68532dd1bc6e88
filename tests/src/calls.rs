//! Records which system calls the threads of the programs make while a test runs: `make calls` compares them with the
//! tables of `resources/seccomp`.
//!
//! The kernel counts them by thread and call, so that a test takes little longer. With each it keeps when it was made last:
//! what a thread has done before it was confined, by seccomp(2), is left out.
//!
//! # References
//! Linux Documentation/trace/histogram.rst

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Asks for a record, if it is set.
pub const RECORD: &str = "TESSERA_RECORD_CALLS";
/// What a line of a record begins with.
pub const LINE: &str = "CALL ";

const PLACE: &str = "/sys/kernel/tracing";

/// An event that is counted, and the field of it.
struct Counted {
    event: &'static str,
    field: &'static str,
    /// As many threads and values.
    size: u32,
}

/// All calls by number, and the arguments that tables look at.
const EVENTS: [Counted; 6] = [
    Counted { event: "raw_syscalls/sys_enter", field: "id", size: 65536 },
    Counted { event: "syscalls/sys_enter_ioctl", field: "cmd", size: 16384 },
    Counted { event: "syscalls/sys_enter_madvise", field: "behavior", size: 16384 },
    Counted { event: "syscalls/sys_enter_fcntl", field: "cmd", size: 16384 },
    Counted { event: "syscalls/sys_enter_prctl", field: "option", size: 16384 },
    Counted { event: "syscalls/sys_enter_seccomp", field: "op", size: 16384 },
];
/// `SECCOMP_SET_MODE_FILTER`, after which a thread is confined.
const SET_FILTER: u64 = 1;
/// The type of KVM's ioctl calls, in bits 8 to 15 of a request (`KVMIO` in include/uapi/linux/kvm.h).
const KVM: u64 = 0xae;
/// memfd_create(2).
const MEMFD_CREATE: u64 = 279;

/// What a thread has done last at a time.
#[derive(Debug, Eq, PartialEq)]
struct Made {
    thread: String,
    number: u32,
    value: u64,
    /// In microseconds of the trace's clock.
    last: u64,
}

/// Counts until it is dropped, and prints then what it has found.
#[derive(Debug)]
pub(crate) struct Recorder {
    was_mounted: bool,
}

impl Recorder {
    /// Begins, if a record is asked for.
    ///
    /// # Panics
    /// When the kernel has no histograms of events.
    pub(crate) fn start() -> Option<Self> {
        std::env::var_os(RECORD)?;
        let was_mounted = Path::new(PLACE).join("events").exists();
        if !was_mounted {
            let mount = ["-t", "tracefs", "tracefs", PLACE];
            assert!(Command::new("mount").args(mount).status().unwrap().success(), "no tracefs");
        }
        for counted in &EVENTS {
            fs::write(counted.file("trigger"), counted.trigger()).unwrap();
        }
        Some(Self { was_mounted })
    }
}

impl Drop for Recorder {
    fn drop(&mut self) {
        let read = |counted: &Counted| {
            let text = fs::read_to_string(counted.file("hist")).unwrap_or_default();
            let _ = fs::write(counted.file("trigger"), format!("!{}", counted.trigger()));
            if text.lines().any(|line| {
                line.trim_start().strip_prefix("Dropped: ").is_some_and(|drops| drops != "0")
            }) {
                println!("{LINE}has lost some: {}", counted.event);
            }
            (counted.call(), entries(&text, counted.field))
        };
        let found: Vec<_> = EVENTS.iter().map(read).collect();
        if !self.was_mounted {
            let _ = Command::new("umount").arg(PLACE).status();
        }
        for line in used(&found) {
            println!("{LINE}{line}");
        }
    }
}

impl Counted {
    fn file(&self, name: &str) -> PathBuf {
        Path::new(PLACE).join("events").join(self.event).join(name)
    }

    fn trigger(&self) -> String {
        let Self { field, size, .. } = self;
        format!(
            "hist:keys=common_pid.execname,{field}:at=common_timestamp.usecs:size={size}:onmax($at).save({field})"
        )
    }

    /// The name of the call; `-` for all.
    fn call(&self) -> &'static str {
        self.event.strip_prefix("syscalls/sys_enter_").unwrap_or("-")
    }
}

/// The entries of a histogram. Each is a line such as `{ common_pid: vcpu0  [  1234], id:  29 } hitcount:  7`, and behind
/// it one such as `max:  123456  id:  29`.
fn entries(text: &str, field: &str) -> Vec<Made> {
    let mut found: Vec<Made> = Vec::new();
    for line in text.lines() {
        if let Some(made) = entry(line, field) {
            found.push(made);
        } else if let (Some(made), Some(rest)) =
            (found.last_mut(), line.trim().strip_prefix("max:"))
        {
            made.last = rest.split_whitespace().next().and_then(number).unwrap_or(0);
        }
    }
    found
}

fn entry(line: &str, field: &str) -> Option<Made> {
    let (thread, rest) = line.strip_prefix("{ common_pid: ")?.split_once('[')?;
    let (own, rest) = rest.split_once(']')?;
    let (_, value) = rest.split_once(&format!("{field}:"))?;
    let value = number(value.split_whitespace().next()?)?;
    Some(Made {
        thread: thread.trim().to_owned(),
        number: own.trim().parse().ok()?,
        value,
        last: 0,
    })
}

fn number(word: &str) -> Option<u64> {
    match word.strip_prefix("0x") {
        Some(digits) => u64::from_str_radix(digits, 16).ok(),
        None => word.parse().ok(),
    }
}

fn of<'a>(found: &'a [(&str, Vec<Made>)], name: &'static str) -> impl Iterator<Item = &'a Made> {
    found.iter().filter(move |(call, _)| *call == name).flat_map(|(_, all)| all)
}

/// What threads have done under their filters: filter, call and value.
fn used(found: &[(&str, Vec<Made>)]) -> BTreeSet<String> {
    let threads = |name: &'static str, is: fn(u64) -> bool| -> BTreeSet<u32> {
        of(found, name).filter(|made| is(made.value)).map(|made| made.number).collect()
    };
    let vms = threads("ioctl", |request| request >> 8 & 0xff == KVM);
    let holders = threads("-", |call| call == MEMFD_CREATE);
    // The name that a thread has then is its own; an entry may have that of the process before its program.
    let set = of(found, "seccomp").filter(|made| made.value == SET_FILTER);
    let confined: BTreeMap<u32, &Made> = set.map(|made| (made.number, made)).collect();
    let mut used = BTreeSet::new();
    for (call, all) in found {
        for made in all {
            let Some(set) = confined.get(&made.number).filter(|set| made.last >= set.last) else {
                continue;
            };
            let main = match (vms.contains(&made.number), holders.contains(&made.number)) {
                (true, _) => "main",
                (false, true) => "template",
                (false, false) => "broker_main",
            };
            let filter = filter_of(&set.thread, main);
            used.extend(filter.map(|filter| format!("{filter} {call} {}", made.value)));
        }
    }
    used
}

/// The filter of a thread of this name, where a main thread has `main`.
fn filter_of<'a>(thread: &str, main: &'a str) -> Option<&'a str> {
    match thread.split_once('-').map_or(thread, |(kind, _)| kind) {
        "tessera" => Some(main),
        "faults" => Some("faults"),
        "loader" => Some("loader"),
        "disk" => Some("disk"),
        "net" => Some("net"),
        "vsock" => Some("vsock"),
        "broker" => Some("broker_client"),
        "client" => Some("broker_session"),
        "footprint" => Some("footprint"),
        vcpu if vcpu.starts_with("vcpu") => Some("vcpu"),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_thread_has_done_under_its_filter_is_told_by_call_and_value() {
        let hist = |field: &str, entries: &[(&str, u32, u64, u64)]| {
            let line = |(thread, own, value, at): &(&str, u32, u64, u64)| {
                format!(
                    "{{ common_pid: {thread:<16}[{own:>10}], {field}: {value:>10} }} hitcount:          4\n\
                     \tmax:  {at:>10}\t{field}: {value:>10}\n"
                )
            };
            let text: String = entries.iter().map(line).collect();
            super::entries(&format!("# event histogram\n\n{text}\nTotals:\n    Hits: 9\n"), field)
        };
        let calls = hist("id", &[("sh", 7, 67, 90), ("disk-data", 7, 56, 10), ("sh", 8, 3, 90)]);
        assert_eq!(calls.len(), 3);
        let set = hist("op", &[("disk-data", 7, 1, 20), ("disk-data", 7, 2, 99)]);

        let used = used(&[("-", calls), ("seccomp", set)]);

        let used: Vec<_> = used.iter().map(String::as_str).collect();
        assert_eq!(used, ["disk - 67", "disk seccomp 1", "disk seccomp 2"]);
    }
}
