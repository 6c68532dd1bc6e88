//! One line of the console as a command.

use std::time::Duration;

/// A command to the workload; sizes in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Command {
    Touch(usize),
    Free,
    Tag(usize),
    Press(usize),
    Relax,
    Fault(Duration),
    Compact,
    Figures,
    PowerOff,
}

impl Command {
    /// Reads a line.
    ///
    /// # Errors
    /// When it is no command.
    pub(super) fn parse(line: &str) -> Result<Self, String> {
        let words: Vec<&str> = line.split_whitespace().collect();
        let known = match words.as_slice() {
            ["touch", mib] => size(mib).map(Self::Touch),
            ["free"] => Some(Self::Free),
            ["tag", mib] => size(mib).map(Self::Tag),
            ["press", mib] => size(mib).map(Self::Press),
            ["relax"] => Some(Self::Relax),
            ["fault", seconds] => {
                seconds.parse().ok().map(|seconds| Self::Fault(Duration::from_secs(seconds)))
            }
            ["compact"] => Some(Self::Compact),
            ["figures"] => Some(Self::Figures),
            ["poweroff"] => Some(Self::PowerOff),
            _ => None,
        };
        known.ok_or_else(|| format!("'{line}' is no command of this workload"))
    }
}

/// MiB as bytes.
fn size(mib: &str) -> Option<usize> {
    mib.parse::<usize>().ok()?.checked_mul(1 << 20)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_have_their_numbers() {
        assert_eq!(Command::parse("touch 768"), Ok(Command::Touch(768 << 20)));
        assert_eq!(Command::parse(" fault  3 "), Ok(Command::Fault(Duration::from_secs(3))));
        assert_eq!(Command::parse("free"), Ok(Command::Free));
    }

    #[test]
    fn other_lines_are_refused() {
        for line in ["", "touch", "touch x", "touch -1", "free 3", "tag 99999999999999999999"] {
            assert!(Command::parse(line).is_err(), "{line}");
        }
        assert!(Command::parse(&format!("touch {}", usize::MAX)).is_err());
    }
}
