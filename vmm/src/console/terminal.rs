//! The terminal in raw mode, and back again on every way out.

use std::io::{self, IsTerminal};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Arc, Mutex, PoisonError};

use rustix::termios::{
    InputModes, LocalModes, OptionalActions, SpecialCodeIndex, Termios, tcgetattr, tcgetpgrp,
    tcsetattr,
};

/// The terminal's modes as they were.
struct Saved {
    terminal: OwnedFd,
    modes: Termios,
}

impl Saved {
    fn restore(&self) {
        // Nothing can be done about a terminal that has gone.
        let _ = tcsetattr(&self.terminal, OptionalActions::Now, &self.modes);
    }
}

/// Standard input's terminal in raw mode; dropped, it is as before. A panic restores it too.
///
/// Output processing stays on: the VMM's own messages and the guest's lines end in a plain newline.
pub struct RawTerminal(Arc<Mutex<Option<Saved>>>);

impl RawTerminal {
    /// Puts standard input's terminal into raw mode. `None` if it is no terminal, or one that belongs
    /// to another job: a background process that changes its terminal would be stopped.
    ///
    /// # Errors
    /// When the terminal refuses.
    pub fn enter() -> io::Result<Option<Self>> {
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
        let saved = Arc::new(Mutex::new(Some(Saved { terminal, modes })));
        let guard = Self(Arc::clone(&saved));
        let before = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |panic| {
            if let Some(saved) = saved.lock().unwrap_or_else(PoisonError::into_inner).take() {
                saved.restore();
            }
            before(panic);
        }));
        tcsetattr(stdin, OptionalActions::Now, &raw)?;
        Ok(Some(guard))
    }
}

impl Drop for RawTerminal {
    fn drop(&mut self) {
        if let Some(saved) = self.0.lock().unwrap_or_else(PoisonError::into_inner).take() {
            saved.restore();
        }
    }
}

#[cfg(test)]
mod tests;
