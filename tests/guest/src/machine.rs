//! What the guest can see of its machine.

use std::fs::{self, File};
use std::io::{self, Read};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

/// The text of a file, trimmed; empty where there is none.
pub(crate) fn text(path: impl AsRef<Path>) -> String {
    fs::read(path)
        .map(|bytes| String::from_utf8_lossy(&bytes).trim_matches(['\0', '\n', ' ']).to_owned())
        .unwrap_or_default()
}

/// The kernel's command line.
pub(crate) fn command_line() -> String {
    text("/proc/cmdline")
}

/// The kernel's release, as `uname -r` has it.
pub(crate) fn kernel_release() -> String {
    text("/proc/sys/kernel/osrelease")
}

/// The numbers of the processors that are online.
pub(crate) fn online_cpus() -> Vec<usize> {
    parse_list(&text("/sys/devices/system/cpu/online"))
}

/// Whether processes have MTE.
pub(crate) fn has_mte() -> bool {
    features().iter().any(|feature| feature == "mte")
}

/// The features of the first processor, as /proc/cpuinfo names them.
pub(crate) fn features() -> Vec<String> {
    let info = text("/proc/cpuinfo");
    let line = info.lines().find(|line| line.starts_with("Features")).unwrap_or_default();
    let (_, words) = line.split_once(':').unwrap_or_default();
    words.split_whitespace().map(str::to_owned).collect()
}

/// A field of /proc/meminfo, in KiB.
pub(crate) fn memory_kib(field: &str) -> Option<u64> {
    let info = text("/proc/meminfo");
    let line = info.lines().find_map(|line| line.strip_prefix(field)?.strip_prefix(':'))?;
    line.split_whitespace().next()?.parse().ok()
}

/// A counter of /proc/vmstat.
pub(crate) fn counter(name: &str) -> Option<u64> {
    let all = text("/proc/vmstat");
    let line = all.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '))?;
    line.trim().parse().ok()
}

/// Pages that lie free in the lists of the processors, out of the allocator's sight (/proc/zoneinfo).
pub(crate) fn pages_in_lists() -> u64 {
    let info = text("/proc/zoneinfo");
    let counts = info.lines().filter_map(|line| line.trim_start().strip_prefix("count:"));
    counts.filter_map(|count| count.trim().parse::<u64>().ok()).sum()
}

/// `0-3,5` as numbers; what cannot be read is left out.
fn parse_list(list: &str) -> Vec<usize> {
    // More than any kernel's processors, so that a garbled list does not run on.
    const MOST: usize = 4096;
    let mut numbers = Vec::new();
    for part in list.split(',') {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        if let (Ok(first), Ok(last)) = (first.parse::<usize>(), last.parse::<usize>()) {
            numbers.extend(first..=last.min(MOST));
        }
    }
    numbers
}

/// How often the kernel has found that it continues in another VM (add_vmfork_randomness in drivers/char/random.c).
pub(crate) fn forks() -> io::Result<usize> {
    let mut log = File::options().read(true).custom_flags(libc::O_NONBLOCK).open("/dev/kmsg")?;
    let (mut forks, mut record) = (0, [0; 8192]);
    loop {
        match log.read(&mut record) {
            Ok(length) => {
                let text = String::from_utf8_lossy(record.get(..length).unwrap_or_default());
                forks += usize::from(text.contains("crng reseeded due to virtual machine fork"));
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(forks),
            // It was overwritten before it was read.
            Err(error) if error.raw_os_error() == Some(libc::EPIPE) => {}
            Err(error) => return Err(error),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_of_processors_are_read() {
        assert_eq!(parse_list("0"), [0]);
        assert_eq!(parse_list("0-2,5"), [0, 1, 2, 5]);
        assert!(parse_list("").is_empty());
        assert!(parse_list("x-3,-").is_empty());
        assert!(parse_list("0-18446744073709551615").len() <= 4097);
    }
}
