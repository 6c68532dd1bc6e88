//! Figures of benches: recorded where a bench runs, and written to a file of the machine that runs the benches.
//!
//! A bench prints what it has found for who watches it, and records the same for a report (docs/benchmarks.md). On a nested
//! host a record is a line of its output, which [`Lab`](crate::lab::Lab) takes out again.

use std::env;
use std::fs::{self, OpenOptions};
use std::io::Write;

use tesseractl::bench::{
    Aim, Better, Bound, Figure, Host, Method, OWN, Reference, Setting, Vmm, line,
};

use crate::lab::in_nested_host;

/// The file to which figures are added, if it is set.
pub const FILE: &str = "TESSERA_FIGURES";
/// What a line of a nested host begins with that is a record.
const LINE: &str = "FIGURE ";

/// MiB to which the host's memory is rounded up: what its kernel keeps for itself is left out of what it says.
const ROUND: u64 = 128;

/// A figure that is about to be recorded.
#[derive(Clone, Debug)]
#[must_use]
pub struct Entry(Figure);

/// A figure of Tessera's that was found by counting instructions; less of it is better.
pub fn counted(bench: &str, name: &str, unit: &str) -> Entry {
    Entry(Figure {
        bench: bench.to_owned(),
        name: name.to_owned(),
        case: String::new(),
        vmm: vmm(OWN, env!("CARGO_PKG_VERSION")),
        value: None,
        cannot: None,
        unit: unit.to_owned(),
        better: Better::Less,
        method: Method::Counted,
        supply: None,
        setting: Setting::default(),
        host: Host::default(),
        samples: Vec::new(),
        aim: None,
    })
}

/// The same of what the host's kernel or a VMM counts: bytes, pages.
pub fn kept(bench: &str, name: &str, unit: &str) -> Entry {
    counted(bench, name, unit).method(Method::Kernel)
}

/// A VMM of this name and version.
pub fn vmm(name: &str, version: &str) -> Vmm {
    Vmm { name: name.to_owned(), version: version.to_owned(), variant: String::new() }
}

impl Entry {
    /// The row of the plot.
    pub fn case(mut self, case: &str) -> Self {
        case.clone_into(&mut self.0.case);
        self
    }

    /// Of another VMM.
    pub fn of(mut self, vmm: &Vmm) -> Self {
        self.0.vmm = vmm.clone();
        self
    }

    /// The guest's memory, such as "256M", and its vCPUs.
    ///
    /// # Panics
    /// When this is no size.
    pub fn guest(mut self, memory: &str, vcpus: u32) -> Self {
        let memory: arch::units::Bytes = memory.parse().unwrap();
        self.0.setting.memory_mib = memory.as_mib();
        self.0.setting.vcpus = vcpus;
        self
    }

    /// The VMM's options that matter.
    pub fn options(mut self, options: &str) -> Self {
        options.clone_into(&mut self.0.setting.options);
        self
    }

    /// What tag storage is made of.
    pub fn supply(mut self, supply: &str) -> Self {
        self.0.supply = Some(supply.to_owned());
        self
    }

    /// More of it is better.
    pub fn more_is_better(mut self) -> Self {
        self.0.better = Better::More;
        self
    }

    /// It was found in another way.
    pub fn method(mut self, method: Method) -> Self {
        self.0.method = method;
        self
    }

    /// What the value was chosen from.
    pub fn samples(mut self, samples: &[f64]) -> Self {
        self.0.samples = samples.to_vec();
        self
    }

    fn aim(mut self, bound: Bound, value: f64, of: Option<Reference>) -> Self {
        self.0.aim = Some(Aim { bound, value, of });
        self
    }

    /// It shall be no more than this.
    pub fn at_most(self, value: f64) -> Self {
        self.aim(Bound::AtMost, value, None)
    }

    /// It shall be no less than this.
    pub fn at_least(self, value: f64) -> Self {
        self.aim(Bound::AtLeast, value, None)
    }

    /// It shall be no more than so many times the same figure of another VMM, by its label, or in another case.
    pub fn at_most_of(self, value: f64, vmm: &str, case: Option<&str>) -> Self {
        let of = Reference { vmm: vmm.to_owned(), case: case.map(str::to_owned) };
        self.aim(Bound::AtMost, value, Some(of))
    }

    /// It shall be no less than this many times the same figure of another VMM, as [`at_most_of`](Self::at_most_of).
    pub fn at_least_of(self, value: f64, vmm: &str, case: Option<&str>) -> Self {
        let of = Reference { vmm: vmm.to_owned(), case: case.map(str::to_owned) };
        self.aim(Bound::AtLeast, value, Some(of))
    }

    /// Records that the VMM cannot do it.
    ///
    /// # Panics
    /// As [`record`](Self::record).
    pub fn cannot(mut self, why: &str) {
        self.0.cannot = Some(why.to_owned());
        self.keep();
    }

    /// Records the figure, if figures are wanted. A quotient of nothing is recorded as a dash.
    ///
    /// # Panics
    /// When this is no figure, or cannot be written.
    pub fn record(mut self, value: f64) {
        if !value.is_finite() {
            return self.cannot("nothing of that kind happened");
        }
        self.0.value = Some(value);
        self.keep();
    }

    fn keep(mut self) {
        self.0.host = host(self.0.method);
        self.0.check().unwrap_or_else(|error| panic!("{error}: {:?}", self.0));
        let Some(file) = env::var_os(FILE) else { return };
        let line = line(&self.0);
        if in_nested_host() {
            return println!("{LINE}{line}");
        }
        let mut file = OpenOptions::new().create(true).append(true).open(file).unwrap();
        file.write_all(format!("{line}\n").as_bytes()).unwrap();
    }
}

/// What stands before a record in a line of a nested host, and the record; `None` where the line has none.
///
/// A record may stand behind text that was printed without an end of its line, such as a test's name. There it is one only
/// if it is whole: text may quote a part of a record. At the start of a line it always is, so that the report names one that
/// is broken.
pub(crate) fn record_in(line: &[u8]) -> Option<(&[u8], &[u8])> {
    let mark = LINE.as_bytes();
    if let Some(record) = line.strip_prefix(mark) {
        return Some((&[], record));
    }
    let starts = line.windows(mark.len()).enumerate().filter(|(_, word)| *word == mark);
    let mut parts = starts.map(|(at, _)| (&line[..at], &line[at + mark.len()..]));
    parts.find(|(_, record)| {
        serde_json::from_slice::<serde_json::Value>(record).is_ok_and(|value| value.is_object())
    })
}

/// This host.
fn host(method: Method) -> Host {
    let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
    let memory = read("/proc/meminfo");
    let kib = memory.split_ascii_whitespace().nth(1).and_then(|kib| kib.parse::<u64>().ok());
    let cpus = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let machine = match (in_nested_host(), method) {
        (_, Method::Model) => {
            return Host { machine: "any: no guest runs".to_owned(), ..Host::default() };
        }
        (true, _) => "an arm64 machine with MTE, emulated by QEMU".to_owned(),
        (false, _) => model(&read("/proc/cpuinfo")),
    };
    Host {
        machine,
        kernel: read("/proc/sys/kernel/osrelease").trim().to_owned(),
        memory_mib: (kib.unwrap_or_default() >> 10).next_multiple_of(ROUND),
        cpus: cpus.try_into().unwrap_or(u32::MAX),
    }
}

/// A processor, by what /proc/cpuinfo says of the first.
fn model(text: &str) -> String {
    let field = |name: &str| {
        let line = text.lines().find(|line| line.starts_with(name))?;
        Some(line.split_once(':')?.1.trim().to_owned())
    };
    let arm =
        || Some(format!("implementer {}, part {}", field("CPU implementer")?, field("CPU part")?));
    field("model name").or_else(arm).unwrap_or_else(|| std::env::consts::ARCH.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_is_found_among_what_a_bench_prints() {
        assert_eq!(record_in(b"FIGURE {}\n"), Some((&b""[..], &b"{}\n"[..])));
        assert_eq!(record_in(b"12 FIGURES\n"), None);
    }

    #[test]
    fn a_record_is_found_behind_text_without_an_end_of_its_line() {
        let found = record_in(b"test start ... FIGURE {\"schema\":1}\n");
        assert_eq!(found, Some((&b"test start ... "[..], &b"{\"schema\":1}\n"[..])));
        // Each mark is looked at.
        let found = record_in(b"FIGUR FIGURE FIGURE {}\n");
        assert_eq!(found, Some((&b"FIGUR FIGURE "[..], &b"{}\n"[..])));

        assert_eq!(record_in(b"it printed FIGURE {\"schema\":\n"), None);
        assert_eq!(record_in(b"it printed FIGURE 12\n"), None);
        // One that is broken is for the report to name.
        assert_eq!(record_in(b"FIGURE {\n"), Some((&b""[..], &b"{\n"[..])));
    }

    #[test]
    fn an_entry_becomes_a_figure() {
        let entry = counted("start", "exit", "instructions").case("raw").guest("1G", 4);

        let Entry(figure) = entry.supply("node:1").at_most_of(0.5, "QEMU", Some("gz"));

        assert_eq!((figure.setting.memory_mib, figure.setting.vcpus), (1024, 4));
        let complete = Figure { value: Some(1.0), host: host(Method::Counted), ..figure };
        assert_eq!(complete.check(), Ok(()));
    }

    #[test]
    fn a_processor_has_a_name_on_each_machine() {
        assert_eq!(model("processor\t: 0\nmodel name\t: Some CPU\n"), "Some CPU");
        let arm = "processor\t: 0\nCPU implementer\t: 0x41\nCPU part\t: 0xd0c\n";
        assert_eq!(model(arm), "implementer 0x41, part 0xd0c");
        assert_eq!(model(""), std::env::consts::ARCH);
    }
}
