//! The process of a VM, apart from this one.
#![allow(unsafe_code, reason = "a session begins between fork and exec")]

use std::ffi::OsString;
use std::fs::File;
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use crate::failure::Failure;

/// The program.
const NAME: &str = "tessera";

/// Where it is: where the user says, beside this program, or in PATH.
pub(crate) fn program(named: Option<&Path>) -> Result<PathBuf, Failure> {
    if let Some(path) = named {
        return Ok(path.to_owned());
    }
    let own = std::env::current_exe().ok();
    let beside = own.map(|own| own.with_file_name(NAME)).filter(|path| path.is_file());
    // A name without a slash is looked for in PATH.
    Ok(beside.unwrap_or_else(|| PathBuf::from(NAME)))
}

/// A new log for it, for appending: standard output and standard error share it.
pub(crate) fn create_log(path: &Path) -> io::Result<File> {
    File::options().create_new(true).append(true).mode(0o600).open(path)
}

/// Starts it in a session of its own: it outlives this program and its terminal, and gets none of its keys. What it
/// says goes into this file.
pub(crate) fn spawn(program: &Path, words: &[OsString], log: File) -> Result<Child, Failure> {
    let failed = |error: io::Error| {
        Failure::refused(format!(
            "cannot start {program:?} ({error}): name the program with --tessera PATH"
        ))
    };
    let mut command = Command::new(program);
    command.args(words).env("TESSERA_STARTED_BY", "tesseractl").stdin(Stdio::null());
    command.stdout(log.try_clone().map_err(failed)?).stderr(log);
    // SAFETY: between fork and exec only what is safe in a signal handler may be called: setsid(2) is, and no memory
    // is allocated.
    unsafe {
        command.pre_exec(|| {
            rustix::process::setsid()?;
            Ok(())
        });
    }
    command.spawn().map_err(failed)
}
