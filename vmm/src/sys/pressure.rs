//! How long tasks have waited for memory, as the kernel counts it: pressure stall information.
//!
//! # References
//! Linux Documentation/accounting/psi.rst; Documentation/admin-guide/cgroup-v2.rst, "memory.pressure"

use std::path::Path;
use std::time::Duration;

use super::small_file;

/// For how long at least one task has waited for memory, in all, by a file such as `/proc/pressure/memory`. `None`
/// where the kernel does not count that (`CONFIG_PSI`, `psi=1`).
pub(crate) fn stalled(path: &Path) -> Option<Duration> {
    parse(&small_file::text(path)?)
}

fn parse(text: &str) -> Option<Duration> {
    let some = text.lines().find_map(|line| line.strip_prefix("some "))?;
    let total = some.split_ascii_whitespace().find_map(|word| word.strip_prefix("total="))?;
    total.parse().ok().map(Duration::from_micros)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_total_of_some_tasks_is_read() {
        let text = "some avg10=1.50 avg60=0.00 avg300=0.00 total=1234567\n\
                    full avg10=0.00 avg60=0.00 avg300=0.00 total=99\n";

        assert_eq!(parse(text), Some(Duration::from_micros(1_234_567)));
        for none in ["", "full total=1\n", "some avg10=0.00\n", "some total=-1\n"] {
            assert_eq!(parse(none), None, "{none:?}");
        }
    }
}
