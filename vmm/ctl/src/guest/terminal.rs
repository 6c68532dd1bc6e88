//! The user's terminal while a command of the guest has it.

use std::io::{self, IsTerminal, Write};
use std::os::fd::{AsFd, OwnedFd};

use agent::protocol::message::Size;
use rustix::termios::{OptionalActions, Termios, tcgetattr, tcgetpgrp, tcgetwinsize, tcsetattr};

/// Standard input's terminal in raw mode; dropped, it is as before.
#[derive(Debug)]
pub(super) struct RawTerminal {
    terminal: OwnedFd,
    /// As they were.
    modes: Termios,
}

impl RawTerminal {
    /// Puts standard input's terminal into raw mode. `None` if it is no terminal, or one that belongs to
    /// another job: a background process that changes its terminal would be stopped.
    pub(super) fn enter() -> io::Result<Option<Self>> {
        let stdin = io::stdin();
        if !stdin.is_terminal() || tcgetpgrp(&stdin).ok() != Some(rustix::process::getpgrp()) {
            return Ok(None);
        }
        let terminal = stdin.as_fd().try_clone_to_owned()?;
        let raw = Self { modes: tcgetattr(&terminal)?, terminal };
        raw.apply()?;
        Ok(Some(raw))
    }

    /// Raw mode, once more: a shell has its own modes after the job was stopped.
    pub(super) fn apply(&self) -> io::Result<()> {
        let mut raw = self.modes.clone();
        raw.make_raw();
        Ok(tcsetattr(&self.terminal, OptionalActions::Now, &raw)?)
    }

    /// The terminal as it was.
    pub(super) fn restore(&self) {
        // Nothing can be done about a terminal that has gone.
        let _ = tcsetattr(&self.terminal, OptionalActions::Now, &self.modes);
    }
}

impl Drop for RawTerminal {
    fn drop(&mut self) {
        self.restore();
    }
}

/// The size of the user's terminal.
pub(super) fn size() -> Option<Size> {
    let size = tcgetwinsize(io::stdin()).or_else(|_| tcgetwinsize(io::stdout())).ok()?;
    Some(Size { rows: size.ws_row, columns: size.ws_col })
        .filter(|size| size.rows > 0 && size.columns > 0)
}

/// A line for a person who waits; a program that reads standard error does not get it.
pub(super) fn note(message: &str) {
    let mut stderr = io::stderr();
    if stderr.is_terminal() {
        let _ = writeln!(stderr, "tesseractl: {message}");
    }
}
