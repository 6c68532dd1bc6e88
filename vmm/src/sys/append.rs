//! Files and FIFOs that take lines for as long as the process runs.

use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;

use rustix::fs::{Mode, OFlags};

/// Opens a file for appending, or a FIFO, and waits for no reader. A file that is not there is made.
///
/// # Errors
/// What the system answers.
pub(crate) fn open(path: &Path) -> io::Result<OwnedFd> {
    // A FIFO that is opened for both needs no reader (fifo(7)).
    let flags = OFlags::RDWR | OFlags::APPEND | OFlags::CREATE | OFlags::NONBLOCK | OFlags::CLOEXEC;
    Ok(rustix::fs::open(path, flags | OFlags::NOCTTY, Mode::RUSR | Mode::WUSR)?)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::fs;

    use super::*;

    #[test]
    fn a_file_is_made_and_appended_to_and_a_fifo_needs_no_reader() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("file");
        for line in ["one\n", "two\n"] {
            rustix::io::write(open(&file).unwrap(), line.as_bytes()).unwrap();
        }
        assert_eq!(fs::read_to_string(&file).unwrap(), "one\ntwo\n");

        let fifo = folder.path().join("fifo");
        rustix::fs::mkfifoat(rustix::fs::CWD, &fifo, Mode::RUSR | Mode::WUSR).unwrap();
        rustix::io::write(open(&fifo).unwrap(), b"line\n").unwrap();

        assert!(open(&folder.path().join("no/file")).is_err());
    }
}
