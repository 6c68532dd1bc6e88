//! What the host says of the process of a VM.

use std::fs::File;
use std::io::Read;
use std::time::Duration;

use arch::units::Bytes;
use vmm::registry::Record;

/// The longest file that is read: `/proc/PID/status` has about 60 lines.
const LONGEST: u64 = 16 << 10;

/// What a process takes.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Usage {
    /// Its memory that is resident, huge pages included.
    pub resident: Bytes,
    /// How long its threads have run.
    pub cpu: Duration,
}

impl Usage {
    /// That of a VM's process; `None` if it cannot be seen, or its number is that of another.
    pub fn of(record: &Record) -> Option<Self> {
        let pid = record.pid;
        let usage =
            Self { resident: resident(&read(&format!("/proc/{pid}/status"))?), ..Self::default() };
        let stat = read(&format!("/proc/{pid}/stat"))?;
        let (cpu, start_time) = times(&stat)?;
        // Read last: if it is the VM's now, it was above.
        let ticks = rustix::param::clock_ticks_per_second();
        let cpu = Duration::from_secs_f64(cpu as f64 / ticks as f64);
        (start_time == record.start_time).then_some(Self { cpu, ..usage })
    }
}

/// `VmRSS`, which leaves out huge pages of hugetlbfs, and those (proc_pid_status(5)).
fn resident(status: &str) -> Bytes {
    let kib = |name: &str| -> u64 {
        let line = status.lines().find_map(|line| line.strip_prefix(name));
        let number = line.and_then(|line| line.split_whitespace().next());
        number.and_then(|number| number.parse().ok()).unwrap_or(0)
    };
    Bytes::new(kib("VmRSS:").saturating_add(kib("HugetlbPages:")).saturating_mul(1 << 10))
}

/// The CPU time and the time of the start of a line of `/proc/PID/stat`, in ticks.
fn times(stat: &str) -> Option<(u64, u64)> {
    // The name, the second field, may have spaces and parentheses.
    let (_, fields) = stat.rsplit_once(')')?;
    let field = |number: usize| fields.split_whitespace().nth(number - 3)?.parse::<u64>().ok();
    Some((field(14)?.checked_add(field(15)?)?, field(22)?))
}

/// Signals that this process ignores; none when the host does not say.
pub(crate) fn ignored_signals() -> Vec<i32> {
    read("/proc/self/status").map_or_else(Vec::new, |status| ignored(&status))
}

/// `SigIgn`, of which bit 0 is signal 1 (proc_pid_status(5)).
fn ignored(status: &str) -> Vec<i32> {
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    let mask = mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).unwrap_or(0);
    (1..=64).filter(|signal| mask >> (signal - 1) & 1 == 1).collect()
}

fn read(path: &str) -> Option<String> {
    let mut text = String::new();
    File::open(path).ok()?.take(LONGEST).read_to_string(&mut text).ok()?;
    Some(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_all_that_is_resident() {
        let status = "Name:\ta\nVmRSS:\t    2048 kB\nHugetlbPages:\t    1024 kB\n";

        assert_eq!(resident(status), Bytes::mib(3));
        assert_eq!(resident("Name:\ta\n"), Bytes::ZERO);
    }

    #[test]
    fn ignored_signals_are_bits() {
        assert_eq!(ignored("Name:\ta\nSigIgn:\t8000000000004001\n"), [1, 15, 64]);
        assert!(ignored("Name:\ta\n").is_empty());
    }

    #[test]
    fn times_are_found_behind_any_name() {
        let stat = "7 (a ) b) S 1 7 7 0 -1 4194560 1 2 3 4 50 6 7 8 20 0 2 0 999 10 11";

        assert_eq!(times(stat), Some((56, 999)));
        assert_eq!(times("7 (a"), None);
        assert_eq!(times("7 (a) S 1"), None);
    }
}
