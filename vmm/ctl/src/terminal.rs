//! The user's terminal while a guest or a table has it.

use std::io::{self, IsTerminal};
use std::os::fd::{AsFd, OwnedFd};

use agent::protocol::message::Size;
use rustix::termios::{OptionalActions, Termios, tcgetattr, tcgetpgrp, tcgetwinsize, tcsetattr};

/// Standard input's terminal in raw mode; dropped, it is as before.
#[derive(Debug)]
pub(crate) struct RawTerminal {
    terminal: OwnedFd,
    /// As they were.
    modes: Termios,
}

impl RawTerminal {
    /// Puts standard input's terminal into raw mode. `None` if it is no terminal, or one that belongs to
    /// another job: a background process that changes its terminal would be stopped.
    pub(crate) fn enter() -> io::Result<Option<Self>> {
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
    pub(crate) fn apply(&self) -> io::Result<()> {
        let mut raw = self.modes.clone();
        raw.make_raw();
        Ok(tcsetattr(&self.terminal, OptionalActions::Now, &raw)?)
    }

    /// The terminal as it was.
    pub(crate) fn restore(&self) {
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
pub(crate) fn size() -> Option<Size> {
    let size = tcgetwinsize(io::stdin()).or_else(|_| tcgetwinsize(io::stdout())).ok()?;
    Some(Size { rows: size.ws_row, columns: size.ws_col })
        .filter(|size| size.rows > 0 && size.columns > 0)
}
