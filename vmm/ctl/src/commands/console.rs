//! The serial console of a VM: its Unix socket, and the user's terminal.

use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::Arc;

use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;
use signal_hook::consts::{SIGHUP, SIGINT, SIGQUIT, SIGTERM};
use signal_hook::iterator::Signals;
use vmm::error::printable;

use crate::cli::OfVm;
use crate::client::{DEFAULT_TIMEOUT, open};
use crate::failure::Failure;
use crate::guest::stdio;
use crate::output::note;
use crate::target::Target;
use crate::terminal::RawTerminal;

/// Ctrl-], as telnet(1) and virsh(1) have it.
const ESCAPE: u8 = 0x1d;
/// What one read takes.
const CHUNK: usize = 16 << 10;

/// Why a session has ended.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum End {
    /// The user has detached.
    Detached,
    /// The VM has closed the connection; whether it had sent anything.
    Closed { has_sent: bool },
}

/// Attaches to the console until the user detaches or the VM ends.
///
/// # Errors
/// When the serial port leads elsewhere, or another client is attached.
pub fn attach(of: &OfVm) -> Result<(), Failure> {
    let target = Target::find(&of.vm)?;
    let path = socket(&target)?;
    let stream = open(&path, DEFAULT_TIMEOUT).map_err(|error| {
        Failure::unreachable(format!("cannot reach the console's socket {path:?} ({error})"))
    })?;
    let name = target.name();
    let failed = |what: &str, error: io::Error| Failure::refused(format!("cannot {what}: {error}"));
    let raw = RawTerminal::enter().map_err(|error| failed("set up the terminal", error))?;
    let raw = Arc::new(raw);
    restore_at_signals(&raw).map_err(|error| failed("take signals", error))?;
    if raw.is_some() {
        note(&format!("attached to the console of {name}; Ctrl-] detaches\r"));
    }
    let end = relay(stream, raw.is_some());
    if let Some(raw) = &*raw {
        raw.restore();
    }
    match end.map_err(|error| failed("write the console's output", error))? {
        End::Detached => note(&format!("detached from {name}")),
        End::Closed { has_sent: false } if target.client().is_ok() => {
            return Err(Failure::refused(format!(
                "the console of {name} has another client: one can be attached at a time"
            )));
        }
        End::Closed { .. } => note(&format!("{name} has closed its console")),
    }
    Ok(())
}

/// Where the console is.
fn socket(target: &Target) -> Result<PathBuf, Failure> {
    let listed = target.listed().ok();
    let mut serial = listed.and_then(|vm| vm.record.serial.clone());
    if serial.is_none() {
        let config = target.client()?.vm_config()?;
        serial = config["serial"]["target"].as_str().map(str::to_owned);
    }
    // What is left out is standard input and output.
    let serial = serial.unwrap_or_else(|| "stdio".to_owned());
    serial.strip_prefix("socket:").map(PathBuf::from).ok_or_else(|| {
        Failure::refused(format!(
            "the serial port of {} leads to {}: start the VM with --serial socket:PATH, or with `tesseractl run`",
            target.name(),
            printable(&serial)
        ))
    })
}

/// A terminal in raw mode is not left so by a signal.
fn restore_at_signals(raw: &Arc<Option<RawTerminal>>) -> io::Result<()> {
    let mut signals = Signals::new([SIGHUP, SIGINT, SIGQUIT, SIGTERM])?;
    let raw = Arc::clone(raw);
    std::thread::spawn(move || {
        if let Some(signal) = signals.forever().next() {
            if let Some(raw) = &*raw {
                raw.restore();
            }
            std::process::exit(128_i32.saturating_add(signal));
        }
    });
    Ok(())
}

/// Carries bytes both ways. The end of standard input is none of the session: its output is still of use.
fn relay(mut stream: UnixStream, with_escape: bool) -> io::Result<End> {
    stream.set_nonblocking(true)?;
    let mut input = Input { pending: Vec::new(), has_ended: false, is_escaped: false };
    let mut has_sent = false;
    let mut chunk = vec![0; CHUNK];
    loop {
        if input.is_escaped && input.pending.is_empty() {
            return Ok(End::Detached);
        }
        let (keys, console) = wait(&stream, &input)?;
        if keys {
            input.read(with_escape);
        }
        // A guest that takes no input may still have output.
        if !input.pending.is_empty() {
            match stream.write(&input.pending) {
                Ok(count) => drop(input.pending.drain(..count)),
                Err(error) if is_later(&error) => {}
                Err(_) => input.pending.clear(),
            }
        }
        if console {
            match stream.read(&mut chunk) {
                Ok(0) => return Ok(End::Closed { has_sent }),
                Ok(count) => {
                    has_sent = true;
                    match stdio::write_all(rustix::stdio::stdout(), &chunk[..count]) {
                        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => {
                            return Ok(End::Detached);
                        }
                        other => other?,
                    }
                }
                Err(error) if is_later(&error) => {}
                Err(_) => return Ok(End::Closed { has_sent }),
            }
        }
    }
}

/// What the user types.
struct Input {
    /// Read, and not yet taken by the VM.
    pending: Vec<u8>,
    has_ended: bool,
    is_escaped: bool,
}

impl Input {
    fn read(&mut self, with_escape: bool) {
        let mut chunk = [0; 1024];
        let count = stdio::read_input(&mut chunk);
        self.has_ended = count == 0;
        let mut keys = &chunk[..count];
        if with_escape && let Some(at) = keys.iter().position(|key| *key == ESCAPE) {
            self.is_escaped = true;
            keys = &keys[..at];
        }
        self.pending.extend_from_slice(keys);
    }
}

/// Waits for either side; whether there are keys, and whether there is output or the end of it.
fn wait(stream: &UnixStream, input: &Input) -> io::Result<(bool, bool)> {
    let stdin = rustix::stdio::stdin();
    let wanted = !input.has_ended && !input.is_escaped && input.pending.is_empty();
    let direction = match input.pending.is_empty() {
        true => PollFlags::IN,
        false => PollFlags::IN | PollFlags::OUT,
    };
    let mut fds = vec![PollFd::new(stream, direction)];
    if wanted {
        fds.push(PollFd::new(&stdin, PollFlags::IN));
    }
    loop {
        match poll(&mut fds, None) {
            Ok(_) => break,
            Err(Errno::INTR) => {}
            Err(errno) => return Err(errno.into()),
        }
    }
    let console = fds[0].revents().intersects(!PollFlags::OUT);
    Ok((fds.get(1).is_some_and(|keys| !keys.revents().is_empty()), console))
}

fn is_later(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted)
}
