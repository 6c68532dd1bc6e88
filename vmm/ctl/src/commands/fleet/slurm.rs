//! Slurm's programs, and what they print.

use std::ffi::OsStr;
use std::path::Path;
use std::process::{Command, Stdio};

use vmm::error::printable;

use crate::failure::Failure;

/// Runs one of Slurm's programs and returns what it prints.
///
/// # Errors
/// When it cannot be started, or fails; the message has what it said.
pub(super) fn call<W: AsRef<OsStr>>(program: &Path, words: &[W]) -> Result<String, Failure> {
    let name = printable(&program.display().to_string());
    let mut command = Command::new(program);
    let output = command.args(words).stdin(Stdio::null()).output().map_err(|error| {
        Failure::unreachable(format!("cannot start {name} ({error}): install slurm-client"))
    })?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        let said = printable(said.trim());
        return Err(Failure::refused(format!("{name} failed ({}): {said}", output.status)));
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// The value of a field of `scontrol --oneliner show`; `None` where it is absent or empty.
pub(super) fn field<'a>(line: &'a str, name: &str) -> Option<&'a str> {
    let value = line.split_whitespace().find_map(|word| {
        let (key, value) = word.split_once('=')?;
        (key == name).then_some(value)
    })?;
    (!value.is_empty() && value != "(null)").then_some(value)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::failure::{EXIT_REFUSED, EXIT_UNREACHABLE};

    #[test]
    fn a_field_is_found_by_its_whole_name() {
        let line =
            "NodeName=a CoresPerSocket=1 GresUsed=tagmib:1 Gres=gpu:2(S:0),tagmib:7 Comment=";

        assert_eq!(field(line, "Gres"), Some("gpu:2(S:0),tagmib:7"));
        assert_eq!(field(line, "Comment"), None);
        assert_eq!(field("Gres=(null)", "Gres"), None);
        assert_eq!(field(line, "Node"), None);
    }

    #[test]
    fn a_program_that_is_missing_or_fails_is_an_error() {
        let failure = |program: &str, words: &[&str]| {
            let failure = call(Path::new(program), words).err();
            failure.map(|failure| (failure.code, failure.message))
        };

        let (code, message) = failure("/nonexistent/scontrol", &[]).unwrap_or_default();
        assert_eq!(code, EXIT_UNREACHABLE);
        assert!(message.contains("install slurm-client"), "{message}");

        let script = ["-c", "echo no such node >&2; exit 1"];
        let (code, message) = failure("sh", &script).unwrap_or_default();
        assert_eq!(code, EXIT_REFUSED);
        assert!(message.ends_with("no such node"), "{message}");

        assert_eq!(call(Path::new("echo"), &["a"]), Ok("a\n".to_owned()));
    }
}
