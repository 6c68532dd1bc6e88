//! `shell[,ROWSxCOLUMNS]`: an interactive shell on the console; the guest powers off when it ends.

use std::fs::File;
use std::process::{Command, Stdio};

use serde_json::json;

use super::After;
use crate::{console, report};

pub(super) const NAME: &str = "shell";

pub(super) fn run(argument: Option<&str>) -> Result<After, String> {
    let terminal = console::device();
    let open = |input: bool| {
        File::options()
            .read(input)
            .write(!input)
            .open(&terminal)
            .map_err(|error| format!("{}: {error}", terminal.display()))
    };
    let (input, output, errors) = (open(true)?, open(false)?, open(false)?);
    console::interactive(argument.and_then(size));
    // setsid -c makes the terminal the session's own: job control and Ctrl-C work.
    let status = Command::new("/bin/busybox")
        .args(["setsid", "-c", "/bin/sh", "-i"])
        .current_dir("/tmp")
        .env_clear()
        .env("PATH", "/bin")
        .env("HOME", "/tmp")
        .env("TERM", "linux")
        .env("PS1", "guest:\\w# ")
        .stdin(Stdio::from(input))
        .stdout(Stdio::from(output))
        .stderr(Stdio::from(errors))
        .status()
        .map_err(|error| format!("no shell: {error}"))?;
    console::plain();
    report::send(NAME, "done", json!({ "status": status.code() }));
    Ok(After::PowerOff)
}

/// `24x80` as rows and columns.
fn size(text: &str) -> Option<(u16, u16)> {
    let (rows, columns) = text.split_once('x')?;
    Some((rows.parse().ok()?, columns.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_rows_by_columns() {
        assert_eq!(size("24x80"), Some((24, 80)));
        assert_eq!(size("24"), None);
        assert_eq!(size("x80"), None);
        assert_eq!(size("99999x80"), None);
    }
}
