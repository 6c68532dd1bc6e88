//! The process that holds the memory of a snapshot: started where there is none.

use std::ffi::OsString;
use std::fs::File;
use std::io;
use std::path::Path;
use std::process::Child;
use std::time::{Duration, Instant};

use vmm::config::SnapshotFiles;
use vmm::error::{chain, printable};
use vmm::snapshot::{MemoryReader, Pair};
use vmm::template::{self, Connection, Error, HolderError};

use crate::cli::CloneCommand;
use crate::commands::run::spawn;
use crate::failure::Failure;
use crate::output::printable_lines;
use crate::waiting::Waiting;

/// Between two looks: short beside what reading a snapshot takes.
const PAUSE: Duration = Duration::from_millis(10);

/// Has a process hold the memory of the snapshot, and waits until it does, which is as long as the connection is there.
///
/// # Errors
/// When the snapshot cannot be read, or the process does not start, ends, or has not read it in time.
pub(super) fn ensure(program: &Path, args: &CloneCommand) -> Result<Connection, Failure> {
    let files = SnapshotFiles::in_folder(&args.folder());
    let pair = Pair::open(&files.state, &files.memory)
        .map_err(|error| Failure::refused(printable(&chain(&error))))?;
    let _waiting = Waiting::on("the memory of the snapshot is to be read");
    let deadline = Instant::now() + args.start.timeout;
    match wait(&pair.memory, deadline)? {
        Held::By(connection) => Ok(connection),
        Held::ByNobody => start(program, args, &pair.memory, deadline),
        Held::Late => Err(Failure::refused(
            "the process that holds the memory of the snapshot has not answered in time: give more with --timeout"
                .to_owned(),
        )),
    }
}

/// Who holds a template.
enum Held {
    By(Connection),
    /// There is no process, or it is about to end.
    ByNobody,
    /// A process has not read it in time.
    Late,
}

/// Waits until a process that is there holds it, however long that reads.
fn wait(memory: &MemoryReader, deadline: Instant) -> Result<Held, Failure> {
    loop {
        let left = deadline.saturating_duration_since(Instant::now()).max(PAUSE);
        match template::wait_for(memory, left) {
            Ok(connection) => return Ok(Held::By(connection)),
            Err(Error::Absent { .. } | Error::Holder { source: HolderError::Refused, .. }) => {
                return Ok(Held::ByNobody);
            }
            Err(Error::Holder { source: HolderError::Silent(_), .. }) => {
                if Instant::now() >= deadline {
                    return Ok(Held::Late);
                }
            }
            Err(error) => return Err(failed(&error)),
        }
    }
}

fn start(
    program: &Path,
    args: &CloneCommand,
    memory: &MemoryReader,
    deadline: Instant,
) -> Result<Connection, Failure> {
    let path = template::log_of(memory.about().id).map_err(|error| failed(&error))?;
    let log = create(&path).map_err(|error| {
        Failure::refused(format!("cannot create {path:?} for the messages of a process: {error}"))
    })?;
    let folder = args.folder();
    let linger = args.linger.to_string();
    let words: [OsString; 4] = ["template".into(), folder.into(), "--linger".into(), linger.into()];
    let mut child = spawn::spawn(program, &words, log)?;
    loop {
        // Before the look: another process may have been first, and this one have ended for it.
        let ended = has_ended(&mut child);
        match wait(memory, deadline)? {
            Held::By(connection) => {
                // It has said what there was to say; no file is to stay when it ends.
                let _ = std::fs::remove_file(&path);
                return Ok(connection);
            }
            Held::ByNobody if ended => return Err(said(&path)),
            Held::ByNobody if Instant::now() < deadline => std::thread::sleep(PAUSE),
            Held::ByNobody | Held::Late => {
                return Err(Failure::refused(format!(
                    "process {}, which is to hold the memory of the snapshot, has not read it in time, and continues: \
                     give more with --timeout; {path:?} has its messages",
                    child.id()
                )));
            }
        }
    }
}

/// A new file in the place of what another holder said.
fn create(path: &Path) -> io::Result<File> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    spawn::create_log(path)
}

fn has_ended(child: &mut Child) -> bool {
    !matches!(child.try_wait(), Ok(None))
}

fn failed(error: &Error) -> Failure {
    Failure::refused(printable(&chain(error)))
}

/// What a holder has said that has ended.
fn said(log: &Path) -> Failure {
    let text = std::fs::read(log).unwrap_or_default();
    let _ = std::fs::remove_file(log);
    let text = printable_lines(&String::from_utf8_lossy(&text));
    let line = text.lines().last().unwrap_or("it has said nothing");
    let line = line.trim_start_matches("tessera: ");
    Failure::refused(format!("the memory of the snapshot is not held: {line}"))
}
