//! Connections that cannot be accepted.
//!
//! # References
//! accept(2), ERRORS

use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::time::Duration;

use event_manager::{EventOps, Events};

use super::timer::Timer;

/// How long a listener is not watched while the kernel is short of something. It stays readable, and would
/// wake its thread again at once.
const PAUSE: Duration = Duration::from_millis(100);

/// What to do when a connection cannot be accepted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Remedy {
    /// Accept and close it: this process has no descriptor for it.
    TurnAway,
    /// Wait a moment: the kernel is short of memory, or of open files for all its processes, and the listener stays
    /// readable.
    Pause,
    /// The client went away while it waited.
    None,
}

/// Whether a call on a socket has failed as the kernel is short of memory, and may succeed a moment later.
pub(crate) fn is_short_of_memory(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::ENOMEM | libc::ENOBUFS))
}

impl Remedy {
    /// The remedy for an error of accept(2).
    pub(crate) fn for_accept(error: &io::Error) -> Self {
        match error.raw_os_error() {
            Some(libc::EMFILE) => Self::TurnAway,
            Some(libc::ENFILE) => Self::Pause,
            _ if is_short_of_memory(error) => Self::Pause,
            _ => Self::None,
        }
    }
}

/// Keeps a listener off its event loop for a moment.
#[derive(Debug)]
pub(crate) struct AcceptPause(Timer);

impl AcceptPause {
    /// No pause yet. The timer is made here, as the host may have none to give when it is needed.
    ///
    /// # Errors
    /// When the host gives no timer.
    pub(crate) fn new() -> io::Result<Self> {
        Timer::new().map(Self)
    }

    /// Stops watching `listener` for a moment. Then this is readable, and [`end`](Self::end) is due.
    pub(crate) fn start(&self, listener: Events, ops: &mut EventOps<'_>) {
        // Without the timer nothing would end the pause.
        if self.0.once(PAUSE).is_ok() {
            // It cannot fail for a descriptor that was added.
            let _ = ops.remove(listener);
        }
    }

    /// Watches `listener` again.
    pub(crate) fn end(&self, listener: Events, ops: &mut EventOps<'_>) {
        // epoll_ctl needs memory, too (ENOMEM).
        if self.0.take() && ops.add(listener).is_err() {
            let _ = self.0.once(PAUSE);
        }
    }
}

impl AsRawFd for AcceptPause {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_error_of_accept_has_its_remedy() {
        let remedy = |errno| Remedy::for_accept(&io::Error::from_raw_os_error(errno));

        for errno in [libc::ENOMEM, libc::ENOBUFS, libc::ENFILE] {
            assert_eq!(remedy(errno), Remedy::Pause);
        }
        assert_eq!(remedy(libc::EMFILE), Remedy::TurnAway);
        for errno in [libc::ECONNABORTED, libc::EAGAIN, libc::EINTR] {
            assert_eq!(remedy(errno), Remedy::None);
        }
    }
}
