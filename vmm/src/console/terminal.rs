//! The terminal in raw mode, and back again on every way out.

use std::io::{self, IsTerminal};
use std::os::fd::{AsFd, OwnedFd};

use rustix::termios::{
    InputModes, LocalModes, OptionalActions, SpecialCodeIndex, Termios, tcgetattr, tcgetpgrp,
    tcsetattr,
};

use crate::sys::fatal::OnFault;

/// Standard input's terminal in raw mode; dropped, it is as before. So it is when a fault ends the process.
/// A panic of another thread changes nothing: the VM may run on, or ends as for any other reason.
///
/// Output processing stays on: the VMM's own messages and the guest's lines end in a plain newline.
#[derive(Debug)]
pub(crate) struct RawTerminal {
    terminal: OwnedFd,
    /// As they were.
    modes: Termios,
    _on_fault: Option<OnFault>,
}

impl RawTerminal {
    /// Puts standard input's terminal into raw mode. `None` if it is no terminal, or one that belongs
    /// to another job: a background process that changes its terminal would be stopped.
    ///
    /// # Errors
    /// When the terminal refuses.
    pub(crate) fn enter() -> io::Result<Option<Self>> {
        let stdin = io::stdin();
        if !stdin.is_terminal() || tcgetpgrp(&stdin).ok() != Some(rustix::process::getpgrp()) {
            return Ok(None);
        }
        let terminal = stdin.as_fd().try_clone_to_owned()?;
        let modes = tcgetattr(&terminal)?;
        let mut raw = modes.clone();
        raw.input_modes -= InputModes::IGNBRK
            | InputModes::BRKINT
            | InputModes::PARMRK
            | InputModes::ISTRIP
            | InputModes::INLCR
            | InputModes::IGNCR
            | InputModes::ICRNL
            | InputModes::IXON;
        raw.local_modes -= LocalModes::ECHO
            | LocalModes::ECHONL
            | LocalModes::ICANON
            | LocalModes::ISIG
            | LocalModes::IEXTEN;
        raw.special_codes[SpecialCodeIndex::VMIN] = 1;
        raw.special_codes[SpecialCodeIndex::VTIME] = 0;
        let on_fault = OnFault::restore(terminal.try_clone()?, modes.clone());
        tcsetattr(stdin, OptionalActions::Now, &raw)?;
        Ok(Some(Self { terminal, modes, _on_fault: on_fault }))
    }
}

impl Drop for RawTerminal {
    fn drop(&mut self) {
        // Nothing can be done about a terminal that has gone.
        let _ = tcsetattr(&self.terminal, OptionalActions::Now, &self.modes);
    }
}

#[cfg(test)]
mod tests;
