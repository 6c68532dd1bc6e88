//! Tests that this machine lacks the means for: noted as skipped, never as passed.

use std::fs::OpenOptions;
use std::io::Write;

/// Names the file in which skipped tests are noted; tests/lab/test.sh sets it and counts them.
const NOTES: &str = "TESSERA_SKIPPED";

/// What a machine may lack. tests/lab/test.sh looks by itself whether this one has it, and fails if so.
#[allow(dead_code, reason = "each test program includes this file and needs some of them")]
#[derive(Clone, Copy, Debug)]
pub(crate) enum Means {
    /// Page faults of this process caught by userfaultfd.
    Userfaultfd,
    /// Huge pages of the size of a chunk.
    HugePages,
    /// Huge pages made of small ones (MADV_COLLAPSE).
    Collapse,
    /// Pages of another process moved.
    PageMoves,
    /// Files that are read and written past the page cache, where temporary files are.
    DirectIo,
    /// Taps made by this process.
    Taps,
    /// The program passt.
    Passt,
    /// Rules for files (Landlock).
    Landlock,
    /// As many descriptors as the reason says.
    Descriptors,
}

impl Means {
    /// The word for it in the file.
    const fn name(self) -> &'static str {
        match self {
            Self::Userfaultfd => "userfaultfd",
            Self::HugePages => "huge-pages",
            Self::Collapse => "collapse",
            Self::PageMoves => "page-moves",
            Self::DirectIo => "direct-io",
            Self::Taps => "taps",
            Self::Passt => "passt",
            Self::Landlock => "landlock",
            Self::Descriptors => "descriptors",
        }
    }
}

/// Notes that the test of this thread is skipped, and why; the test returns then. By itself it would count as
/// passed, so it fails where there is no file to note it in.
///
/// # Panics
/// When there is no file, or it cannot be written.
pub(crate) fn skip(lacks: Means, reason: impl std::fmt::Display) {
    let thread = std::thread::current();
    let test = thread.name().unwrap_or("a test");
    let what = lacks.name();
    let Some(notes) = std::env::var_os(NOTES) else {
        panic!(
            "{test} cannot run on this machine ({what}: {reason}): `make test` counts it as skipped, and so does a run \
             with {NOTES} set to a file for notes"
        );
    };
    let reason = reason.to_string().replace(['\t', '\n'], " ");
    let line = format!("{what}\t{test}\t{reason}\n");
    // One write: tests of other processes append to the same file.
    let file = OpenOptions::new().create(true).append(true).open(notes);
    file.and_then(|mut file| file.write_all(line.as_bytes())).expect("the file for notes");
}
