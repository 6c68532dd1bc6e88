//! Messages on standard error, which never wait for a reader.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use rustix::event::Timespec;

use crate::sys::fatal;
use crate::sys::nonblocking::{NonBlocking, PIPE_BUF};

/// How long the last message of a process waits for room. The VM has ended; a supervisor that reads standard
/// error only afterwards shall not wait for ever.
const LAST: Duration = Duration::from_secs(1);

/// The process's one standard error. Held for writes that do not wait.
static VOICE: Mutex<Voice> = Mutex::new(Voice::new());

/// Says something on standard error. Where there is no room for it, it is dropped and counted: a full pipe or
/// a stopped terminal must not stop the VM.
pub fn say(message: &str) {
    let mut voice = VOICE.lock().unwrap_or_else(PoisonError::into_inner);
    voice.say(message, Duration::ZERO);
}

/// Says why the process ends, and waits a moment for room.
pub fn say_last(message: &str) {
    let mut voice = VOICE.lock().unwrap_or_else(PoisonError::into_inner);
    voice.say(message, LAST);
}

/// From here on messages go to this file or FIFO, whose open file description does not block.
pub(crate) fn log_to(log: OwnedFd) {
    let mut voice = VOICE.lock().unwrap_or_else(PoisonError::into_inner);
    voice.output = Some(NonBlocking::own(log));
}

/// What speaks, and what it could not say.
struct Voice {
    /// Opened with the first message.
    output: Option<NonBlocking>,
    /// Messages that were dropped since the last one that was written, in whole or in part.
    dropped: u64,
    /// The last one that was written lacks its end.
    cut: bool,
}

impl Voice {
    const fn new() -> Self {
        Self { output: None, dropped: 0, cut: false }
    }

    /// Writes a message, for the room of all of which it waits so long, and before it how many were dropped.
    fn say(&mut self, message: &str, patience: Duration) {
        let mut text = String::new();
        if self.cut {
            text.push('\n');
        }
        if self.dropped > 0 {
            let (number, are) = match self.dropped {
                1 => ("one message", "was"),
                n => (&*format!("{n} messages"), "were"),
            };
            text.push_str(&format!(
                "tessera: {number} {are} dropped here: nothing read standard error\n"
            ));
        }
        text.push_str(&format!("tessera: {message}\n"));
        match self.write(text.as_bytes(), patience) {
            Written::All => (self.dropped, self.cut) = (0, false),
            Written::Some => (self.dropped, self.cut) = (self.dropped.saturating_add(1), true),
            Written::None => self.dropped = self.dropped.saturating_add(1),
        }
    }

    fn write(&mut self, text: &[u8], patience: Duration) -> Written {
        let output = match &mut self.output {
            Some(output) => output,
            empty => match open() {
                Ok(output) => empty.insert(output),
                // It is closed.
                Err(_) => return Written::None,
            },
        };
        // One for all pieces: a reader that takes one now and then keeps the process no longer.
        let deadline = Instant::now() + patience;
        let mut left = text;
        while !left.is_empty() {
            // A pipe takes a piece of this size as a whole, or not at all.
            let piece = &left[..left.len().min(PIPE_BUF)];
            match output.write(piece) {
                Ok(n) if n > 0 => left = &left[n..],
                Err(error)
                    if error.kind() == io::ErrorKind::WouldBlock
                        && output.wait(&left_until(deadline)).unwrap_or(false) => {}
                Ok(_) | Err(_) if left.len() == text.len() => return Written::None,
                Ok(_) | Err(_) => return Written::Some,
            }
        }
        Written::All
    }
}

/// Standard error, as it was opened when the process could still open files, or now.
fn open() -> io::Result<NonBlocking> {
    match fatal::output() {
        Some(output) => output.try_clone(),
        None => Ok(NonBlocking::shared(io::stderr().as_fd().try_clone_to_owned()?)),
    }
}

/// The time that is left until a deadline, for poll(2).
fn left_until(deadline: Instant) -> Timespec {
    let left = deadline.saturating_duration_since(Instant::now());
    Timespec {
        tv_sec: i64::try_from(left.as_secs()).unwrap_or(i64::MAX),
        tv_nsec: left.subsec_nanos().into(),
    }
}

/// How much of a text was written.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Written {
    All,
    Some,
    None,
}

#[cfg(test)]
mod tests;
