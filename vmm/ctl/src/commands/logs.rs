//! The messages of a VM that runs in the background.

use std::ffi::OsStr;
use std::fs::File;
use std::io::Read;
use std::path::PathBuf;
use std::time::Duration;

use vmm::registry::Directory;

use crate::cli::LogsArgs;
use crate::commands::run::LOG;
use crate::failure::Failure;
use crate::output::{printable_lines, write};
use crate::target::Target;

/// Between two looks at the file.
const PAUSE: Duration = Duration::from_millis(200);
/// What one read takes.
const CHUNK: usize = 64 << 10;

/// Shows the log, and with `--follow` what is added to it until the VM ends.
///
/// # Errors
/// When there is none.
pub fn show(args: &LogsArgs) -> Result<(), Failure> {
    let (name, path) = find(&args.vm)?;
    let mut log = File::open(&path)
        .map_err(|error| Failure::refused(format!("cannot read {path:?}: {error}")))?;
    let mut text = Vec::new();
    loop {
        // What is written before the end is read after it has been seen.
        let has_ended = !args.follow || !is_live(&name);
        let is_read = copy(&mut log, &mut text, has_ended)
            .map_err(|error| Failure::refused(format!("cannot show {path:?}: {error}")))?;
        if has_ended || !is_read {
            return Ok(());
        }
        std::thread::sleep(PAUSE);
    }
}

/// Writes whole lines of what is new, and at the end all; false if the reader has gone.
fn copy(log: &mut File, text: &mut Vec<u8>, is_last: bool) -> std::io::Result<bool> {
    let mut chunk = vec![0; CHUNK];
    loop {
        let count = log.read(&mut chunk)?;
        text.extend_from_slice(&chunk[..count]);
        let whole = match text.iter().rposition(|byte| *byte == b'\n') {
            // A line without an end is cut somewhere.
            None if text.len() > CHUNK => text.len(),
            _ if is_last && count == 0 => text.len(),
            last => last.map_or(0, |last| last + 1),
        };
        let lines: Vec<u8> = text.drain(..whole).collect();
        if !write(&printable_lines(&String::from_utf8_lossy(&lines)))? {
            return Ok(false);
        }
        if count == 0 {
            return Ok(true);
        }
    }
}

/// The name and the log of a VM, which may have ended.
fn find(word: &str) -> Result<(String, PathBuf), Failure> {
    let directory = Directory::open()?;
    let log = |name: &str| {
        let path = directory.as_ref()?.path().join(name).join(LOG);
        (!name.contains('/') && path.is_file()).then(|| (name.to_owned(), path))
    };
    if let Some(found) = log(word) {
        return Ok(found);
    }
    let target = Target::find(OsStr::new(word))?;
    log(&target.name()).ok_or_else(|| {
        Failure::refused(format!(
            "`tesseractl run` has not started {}: its messages are where its standard error leads",
            target.name()
        ))
    })
}

fn is_live(name: &str) -> bool {
    Directory::open().ok().flatten().is_some_and(|directory| directory.find(name).is_some())
}
