//! The workloads by name.

mod agent;
mod alarm;
mod count;
mod cpuinfo;
mod echo;
mod ends;
mod hwrng;
mod memory;
pub(crate) mod mte;
mod shell;
mod smp;
mod snapshot;
mod sockets;
mod touch;
pub(crate) mod unserved;

/// What PID 1 does once a workload has returned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum After {
    /// Power off.
    PowerOff,
    /// Reset.
    Reboot,
    /// Go on until the power key.
    Stay,
}

/// A workload.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Workload {
    name: &'static str,
    /// Runs it; the argument is what follows the name's comma.
    pub(crate) start: fn(Option<&str>) -> Result<After, String>,
    /// The power key works meanwhile.
    pub(crate) power_key: bool,
}

const fn workload(
    name: &'static str,
    start: fn(Option<&str>) -> Result<After, String>,
) -> Workload {
    Workload { name, start, power_key: true }
}

/// All there are.
const ALL: &[Workload] = &[
    workload(agent::NAME, agent::run),
    Workload { power_key: false, ..workload("agent-key", agent::run_with_key) },
    workload(alarm::NAME, alarm::run),
    workload(count::NAME, count::run),
    workload(cpuinfo::NAME, cpuinfo::run),
    workload(echo::NAME, echo::run),
    // A guest that hangs ignores keys: it is there to be ended by force.
    Workload { power_key: false, ..workload("hang", ends::hang) },
    workload(hwrng::NAME, hwrng::run),
    workload("idle", ends::idle),
    workload(memory::NAME, memory::run),
    workload(mte::NAME, mte::run),
    workload("panic", ends::panic),
    workload("poweroff", ends::power_off),
    workload("reboot", ends::reboot),
    workload(shell::NAME, shell::run),
    workload(smp::NAME, smp::run),
    workload(snapshot::NAME, snapshot::run),
    workload(sockets::NAME, sockets::run),
    workload(touch::NAME, touch::run),
    workload(unserved::NAME, unserved::run),
];

/// The workload of that name.
pub(crate) fn find(name: &str) -> Option<Workload> {
    ALL.iter().find(|workload| workload.name == name).copied()
}

/// The names of all workloads.
pub(crate) fn names() -> impl Iterator<Item = &'static str> {
    ALL.iter().map(|workload| workload.name)
}

/// A number given as an argument, or `default` where none is.
fn number(argument: Option<&str>, default: u64) -> Result<u64, String> {
    match argument {
        None => Ok(default),
        Some(text) => text.parse().map_err(|_| format!("'{text}' is no number")),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn names_are_unique_and_found() {
        let all: BTreeSet<_> = names().collect();

        assert_eq!(all.len(), ALL.len());
        assert!(all.iter().all(|name| find(name).is_some()));
        assert!(find("").is_none());
    }

    #[test]
    fn numbers_have_defaults_and_errors() {
        assert_eq!(number(None, 7), Ok(7));
        assert_eq!(number(Some("12"), 7), Ok(12));
        assert!(number(Some("-1"), 7).is_err());
        assert!(number(Some(""), 7).is_err());
    }
}
