//! When the host's KVM first entered a guest, whichever VMM runs it: the kernel's trace event `kvm_entry`.
//!
//! The buffer is small and keeps the oldest: once it is full, an entry costs little more than without.
//!
//! # References
//! Linux Documentation/trace/ftrace.rst, events.rst

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

const PLACE: &str = "/sys/kernel/tracing";
const ENABLE: &str = "events/kvm/kvm_entry/enable";

/// Watches for entries until it is dropped. It needs a host of its own.
#[derive(Debug)]
#[must_use]
pub struct Watch {
    was_mounted: bool,
}

fn set(file: &str, value: &str) {
    fs::write(Path::new(PLACE).join(file), value).unwrap();
}

impl Watch {
    /// Begins.
    ///
    /// # Panics
    /// When the kernel has no such event, or the test is not root.
    pub fn start() -> Self {
        let was_mounted = Path::new(PLACE).join("events").exists();
        if !was_mounted {
            let mount = ["-t", "tracefs", "tracefs", PLACE];
            assert!(Command::new("mount").args(mount).status().unwrap().success(), "no tracefs");
        }
        set("trace_clock", "mono");
        set("options/overwrite", "0");
        set("buffer_size_kb", "4");
        set(ENABLE, "1");
        Self { was_mounted }
    }

    /// Forgets what has been, and watches again.
    ///
    /// # Panics
    /// When it cannot.
    pub fn renew(&self) {
        // Opened to be truncated, it is emptied.
        set("trace", "");
    }

    /// When a guest was first entered since then, on the monotonic clock, in whole microseconds.
    ///
    /// # Panics
    /// When the record cannot be read.
    pub fn first(&self) -> Option<Duration> {
        first_in(&fs::read_to_string(Path::new(PLACE).join("trace")).unwrap())
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        // The host is the test's own: what it had of clock and buffer before does not matter.
        let _ = fs::write(Path::new(PLACE).join(ENABLE), "0");
        if !self.was_mounted {
            let _ = Command::new("umount").arg(PLACE).status();
        }
    }
}

/// The time of the first entry, in a line such as ` vcpu0-123 [000] d..1. 12.345678: kvm_entry: PC: 0x40000000`.
fn first_in(trace: &str) -> Option<Duration> {
    let line = trace.lines().find(|line| line.contains(": kvm_entry:"))?;
    let time = line.split(": kvm_entry:").next()?.split_ascii_whitespace().last()?;
    let (seconds, micros) = time.split_once('.')?;
    Some(Duration::from_secs(seconds.parse().ok()?) + Duration::from_micros(micros.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_entry_is_found() {
        let trace = "# tracer: nop\n#\n  CPU 0/KVM-88  [000] d..1.    12.000678: kvm_entry: PC: 0x40\n\
                       vcpu0-89     [000] d..1.    13.000000: kvm_entry: PC: 0x44\n";
        assert_eq!(first_in(trace), Some(Duration::from_micros(12_000_678)));
        assert_eq!(first_in("# tracer: nop\n"), None);
    }
}
