//! `tessera doctor`: what this host can do for guests, and what to do about what it cannot.

mod confinement;
mod host;
mod kernel;
#[cfg(target_arch = "aarch64")]
mod kvm;
mod reclaim;

use std::fmt;

use serde::Serialize;

/// How a check came out.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Outcome {
    /// As it should be.
    Ok,
    /// Guests run, but something is lost.
    Warn,
    /// No guest runs.
    Fail,
}

/// One thing that was looked at.
#[derive(Clone, Debug, Eq, PartialEq, Serialize)]
pub struct Check {
    /// What was looked at, in a word or two.
    pub name: &'static str,
    /// How it came out.
    pub outcome: Outcome,
    /// What was found.
    pub found: String,
    /// What to do about it, unless it is as it should be.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub advice: Option<String>,
}

impl Check {
    fn ok(name: &'static str, found: impl Into<String>) -> Self {
        Self { name, outcome: Outcome::Ok, found: found.into(), advice: None }
    }

    fn warn(name: &'static str, found: impl Into<String>, advice: impl Into<String>) -> Self {
        Self { name, outcome: Outcome::Warn, found: found.into(), advice: Some(advice.into()) }
    }

    fn fail(name: &'static str, found: impl Into<String>, advice: impl Into<String>) -> Self {
        Self { name, outcome: Outcome::Fail, found: found.into(), advice: Some(advice.into()) }
    }
}

impl fmt::Display for Check {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mark = match self.outcome {
            Outcome::Ok => "ok  ",
            Outcome::Warn => "warn",
            Outcome::Fail => "FAIL",
        };
        write!(f, "{mark}  {:<16} {}", self.name, self.found)?;
        match &self.advice {
            Some(advice) => write!(f, ": {advice}"),
            None => Ok(()),
        }
    }
}

/// Everything that was looked at.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// The worst outcome of all checks.
    pub outcome: Outcome,
    /// The checks, the most basic first.
    pub checks: Vec<Check>,
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for check in &self.checks {
            writeln!(f, "{check}")?;
        }
        f.write_str(match self.outcome {
            Outcome::Ok => "This host runs guests with MTE.",
            Outcome::Warn => "This host runs guests, with the limits above.",
            Outcome::Fail => "This host runs no guests: see FAIL above.",
        })
    }
}

/// Looks at this host.
pub fn examine() -> Report {
    let mut checks = vec![host::architecture(), kernel::version()];
    #[cfg(target_arch = "aarch64")]
    checks.extend(kvm::checks());
    #[cfg(not(target_arch = "aarch64"))]
    checks.push(host::no_kvm());
    checks.extend(host::checks());
    checks.extend(reclaim::checks());
    checks.extend(confinement::checks());
    let outcome = checks.iter().map(|check| check.outcome).max().unwrap_or(Outcome::Ok);
    Report { outcome, checks }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_names_the_check_what_was_found_and_what_to_do() {
        let check = Check::fail("KVM", "no /dev/kvm", "load KVM");

        assert_eq!(check.to_string(), "FAIL  KVM              no /dev/kvm: load KVM");
    }

    #[test]
    fn every_check_that_is_not_ok_says_what_to_do() {
        let report = examine();

        for check in &report.checks {
            assert_eq!(check.outcome == Outcome::Ok, check.advice.is_none(), "{check}");
        }
    }

    #[test]
    fn the_worst_check_decides() {
        let report = examine();

        assert!(report.checks.iter().any(|check| check.outcome == report.outcome));
        assert!(report.checks.iter().all(|check| check.outcome <= report.outcome));
    }
}
