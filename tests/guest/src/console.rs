//! The console: /dev/console as standard input and output, and the line behind it.

use std::fs;
use std::path::PathBuf;
use std::process::{Command, Stdio};

/// Turns off what a terminal adds: reports end with a bare line feed, and input does not come back.
pub(crate) fn plain() {
    stty(&["-opost", "-echo"]);
}

/// Makes the console a terminal for a person, of `size` (rows and columns) where it is known.
pub(crate) fn interactive(size: Option<(u16, u16)>) {
    stty(&["sane"]);
    if let Some((rows, columns)) = size {
        stty(&["rows", &rows.to_string(), "columns", &columns.to_string()]);
    }
}

/// The terminal behind /dev/console, which can be a controlling one where /dev/console cannot.
pub(crate) fn device() -> PathBuf {
    let active = fs::read_to_string("/sys/class/tty/console/active").unwrap_or_default();
    // The last one named is the one that /dev/console stands for.
    let name = active.split_whitespace().next_back().unwrap_or("console");
    PathBuf::from("/dev").join(name)
}

fn stty(arguments: &[&str]) {
    // A console that is no terminal is as plain as can be.
    let _ = Command::new("/bin/busybox").arg("stty").args(arguments).stderr(Stdio::null()).status();
}
