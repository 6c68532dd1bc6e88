//! The summary for newcomers after `lab guest`.

use std::env::consts::ARCH;
use std::fmt::Write as _;
use std::fs;
use std::io;

use serde_json::Value;

/// What the host's clock measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Clock {
    /// Time on this machine: the guest ran on it directly.
    Real,
    /// Time in an emulated host, which says little of any other machine.
    Emulated,
    /// Instructions of an emulated host.
    Instructions,
}

/// Where the guest ran.
#[derive(Clone, Debug)]
pub(crate) struct Place {
    clock: Clock,
    /// This machine's architecture and kernel.
    machine: String,
}

impl Place {
    /// This machine, with an emulated arm64 host between it and the guest unless the clock is real.
    pub(crate) fn here(clock: Clock) -> Self {
        let release = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
        Self { clock, machine: format!("{ARCH}, Linux {}", release.trim()) }
    }
}

/// What the guest's console and the lab's script said.
pub(crate) struct Transcript<F> {
    /// Told each line of the guest's console that is no report.
    show: F,
    partial: Vec<u8>,
    reports: Vec<Value>,
    /// The host's clock when the VMM started.
    launched: Option<u64>,
    /// The host's clock at the guest's first report.
    first: Option<u64>,
    smaps: String,
}

impl<F: FnMut(&str)> Transcript<F> {
    /// An empty transcript; `show` gets the console's lines.
    pub(crate) fn new(show: F) -> Self {
        Self {
            show,
            partial: Vec::new(),
            reports: Vec::new(),
            launched: None,
            first: None,
            smaps: String::new(),
        }
    }

    /// The VMM's memory by mappings (proc_pid_smaps(5)).
    pub(crate) fn set_smaps(&mut self, smaps: String) {
        self.smaps = smaps;
    }

    /// Takes one line.
    pub(crate) fn line(&mut self, line: &str) {
        let line = line.trim_end_matches('\r');
        if let Some(text) = line.strip_prefix("@lab ") {
            let number = |text: &str| text.parse().ok();
            match text.split_once(' ') {
                Some(("launched", clock)) => self.launched = number(clock),
                Some(("report", clock)) => self.first = self.first.or_else(|| number(clock)),
                Some(("smaps", text)) => {
                    self.smaps.push_str(text);
                    self.smaps.push('\n');
                }
                _ => {}
            }
            return;
        }
        match line.strip_prefix("REPORT ").map(serde_json::from_str::<Value>) {
            Some(Ok(report)) => self.reports.push(report),
            _ if line.is_empty() => {}
            _ => (self.show)(line),
        }
    }

    /// The closing text, and whether MTE caught all that it should; `status` is the VMM's.
    pub(crate) fn summary(&self, place: &Place, status: u8) -> (String, bool) {
        let mut rows = vec![("host", host(place)), ("guest", self.guest())];
        let passed = self.mte(&mut rows);
        if let (Some(launched), Some(first)) = (self.launched, self.first) {
            rows.push(("start-up", start_up(place, first.saturating_sub(launched))));
        }
        if let Some((guest, own)) = memory(&self.smaps) {
            rows.push((
                "memory",
                format!(
                    "the guest touched {:.1} MiB of its 512 MiB; the VMM itself uses {:.1} MiB",
                    mib(guest),
                    mib(own)
                ),
            ));
        }
        let end = match status {
            0 => "the guest powered off, the VMM ended with exit code 0".to_owned(),
            code => format!("the VMM ended with exit code {code}"),
        };
        rows.push(("end", end));
        let title = if passed && status == 0 {
            "A Linux guest ran with the Memory Tagging Extension, and MTE stopped every bad access."
        } else {
            "The guest did not show all that it should; the lines below say what is missing."
        };
        let mut text = format!("\n{title}\n\n");
        for (name, value) in rows {
            // Writing to a String cannot fail.
            let _ = writeln!(text, "  {name:<15} {value}");
        }
        (text, passed)
    }

    fn report(&self, workload: &str, event: &str) -> Option<&Value> {
        let is = |report: &&Value| report["workload"] == workload && report["event"] == event;
        self.reports.iter().find(is)
    }

    fn guest(&self) -> String {
        let Some(start) = self.report("init", "start") else {
            return "never reported".to_owned();
        };
        let kernel = start["kernel"].as_str().unwrap_or("?");
        let cpus = start["cpus"].as_u64().unwrap_or(0);
        let plural = if cpus == 1 { "" } else { "s" };
        format!("Linux {kernel}, {cpus} CPU{plural}, 512 MiB, run by tessera")
    }

    fn mte(&self, rows: &mut Vec<(&'static str, String)>) -> bool {
        if self.report("mte", "absent").is_some() {
            rows.push(("MTE", "absent in the guest".to_owned()));
            return false;
        }
        let tags = self.report("mte", "tags").filter(|tags| tags["ok"] == true);
        rows.push((
            "tags",
            tags.map_or_else(
                || "NOT read back as written".to_owned(),
                |tags| {
                    format!(
                        "{} granules of 16 bytes tagged, every tag read back as written",
                        tags["granules"]
                    )
                },
            ),
        ));
        let mut passed = tags.is_some();
        let faults = [
            ("overflow", "overflow", "a write just past a buffer"),
            ("use after free", "use_after_free", "a write through a stale pointer"),
        ];
        for (name, event, what) in faults {
            let caught = self.report("mte", event).filter(|report| report["caught"] == true);
            passed &= caught.is_some();
            rows.push((
                name,
                caught.map_or_else(
                    || format!("NOT stopped: {what}"),
                    |report| {
                        let (pointer, memory) = (&report["pointer_tag"], &report["memory_tag"]);
                        format!("stopped by MTE (SIGSEGV, SEGV_MTESERR): {what}; pointer tag {pointer}, memory tag {memory}")
                    },
                ),
            ));
        }
        passed
    }
}

impl<F: FnMut(&str)> io::Write for Transcript<F> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        for byte in bytes {
            if *byte == b'\n' {
                let line = std::mem::take(&mut self.partial);
                self.line(&String::from_utf8_lossy(&line));
            } else {
                self.partial.push(*byte);
            }
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn host(place: &Place) -> String {
    match place.clock {
        Clock::Real => format!("{}, with KVM and MTE", place.machine),
        _ => format!("arm64 with KVM and MTE, emulated by QEMU on {}", place.machine),
    }
}

fn start_up(place: &Place, took: u64) -> String {
    // Both clocks are far below 2^53.
    let millions = took as f64 / 1e6;
    let unit = match place.clock {
        Clock::Real => "ms",
        Clock::Emulated => "ms under emulation",
        Clock::Instructions => "million instructions of the host",
    };
    format!("{millions:.0} {unit} from the VMM's start to the guest's init")
}

/// The guest's resident memory and the VMM's own private memory in KiB, from the VMM's smaps.
///
/// Guest memory is what allows tags: the flag `mt` (Documentation/filesystems/proc.rst). A page that the
/// VMM only shares with its file is no cost of this VMM.
fn memory(smaps: &str) -> Option<(u64, u64)> {
    let (mut guest, mut own) = (0u64, 0u64);
    let (mut resident, mut private) = (0u64, 0u64);
    let mut found = false;
    for line in smaps.lines() {
        let mut words = line.split_whitespace();
        let name = words.next().unwrap_or_default();
        let mut size = || words.next().and_then(|word| word.parse::<u64>().ok()).unwrap_or(0);
        match name {
            "Rss:" => resident = size(),
            "Private_Dirty:" => private = size(),
            // The last line of each mapping.
            "VmFlags:" => {
                found = true;
                if words.any(|flag| flag == "mt") {
                    guest = guest.saturating_add(resident);
                } else {
                    own = own.saturating_add(private);
                }
            }
            _ => {}
        }
    }
    found.then_some((guest, own))
}

fn mib(kib: u64) -> f64 {
    kib as f64 / 1024.0
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::io::Write as _;

    use super::*;

    const SMAPS: &str = "7f0000000000-7f0020000000 rw-p 00000000 00:00 0\nRss:  49152 kB\nPrivate_Dirty: 49152 kB\nVmFlags: rd wr mr mw me mt hg\n\
        aaaa0000-aaab0000 rw-p 00000000 00:00 0 [heap]\nRss:  300 kB\nPrivate_Dirty: 256 kB\nVmFlags: rd wr mr mw me\n";

    fn place() -> Place {
        Place { clock: Clock::Instructions, machine: "x86_64, Linux 6.1".into() }
    }

    fn good() -> String {
        let mut text = "@lab launched 1000000\n[    0.1] noise\r\n@lab report 801000000\n\
            REPORT {\"workload\":\"init\",\"event\":\"start\",\"kernel\":\"6.12\",\"cpus\":2}\r\n@lab report 900000000\n\
            REPORT {\"workload\":\"mte\",\"event\":\"tags\",\"granules\":256,\"ok\":true}\n\
            REPORT {\"workload\":\"mte\",\"event\":\"overflow\",\"caught\":true,\"pointer_tag\":3,\"memory_tag\":7}\n\
            REPORT {\"workload\":\"mte\",\"event\":\"use_after_free\",\"caught\":true,\"pointer_tag\":3,\"memory_tag\":8}\n"
            .to_owned();
        for line in SMAPS.lines() {
            text.push_str(&format!("@lab smaps {line}\n"));
        }
        text
    }

    #[test]
    fn a_good_run_is_told_with_its_figures() {
        let mut noise = Vec::new();
        let mut transcript = Transcript::new(|line| noise.push(line.to_owned()));
        transcript.write_all(good().as_bytes()).unwrap();

        let (text, passed) = transcript.summary(&place(), 0);

        assert!(passed, "{text}");
        for part in [
            "Linux 6.12, 2 CPUs",
            "256 granules",
            "pointer tag 3, memory tag 8",
            "800 million",
            "48.0 MiB",
            "0.2 MiB",
        ] {
            assert!(text.contains(part), "{part} not in {text}");
        }
        assert_eq!(noise, ["[    0.1] noise"]);
    }

    #[test]
    fn what_was_not_stopped_is_said_and_fails() {
        let mut transcript = Transcript::new(|_| {});
        let text = good()
            .replace("\"use_after_free\",\"caught\":true", "\"use_after_free\",\"caught\":false");
        transcript.write_all(text.as_bytes()).unwrap();

        let (text, passed) = transcript.summary(&place(), 0);

        assert!(!passed);
        assert!(text.contains("NOT stopped: a write through a stale pointer"), "{text}");
    }

    #[test]
    fn a_silent_or_garbled_guest_fails_without_a_panic() {
        let mut transcript = Transcript::new(|_| {});
        transcript.write_all(b"REPORT {broken\n@lab\n@lab x y\nREPORT 5\n\xff\xfe\n").unwrap();

        let (text, passed) = transcript.summary(&place(), 7);

        assert!(!passed);
        assert!(text.contains("never reported") && text.contains("exit code 7"), "{text}");
    }

    #[test]
    fn guest_memory_is_what_allows_tags() {
        assert_eq!(memory(SMAPS), Some((49152, 256)));
        assert_eq!(memory(""), None);
    }
}
