//! The signals that end a VM.

use event_manager::{EventOps, Events, MutEventSubscriber};
use rustix::fd::AsRawFd;

use super::exit_reason::ExitReason;
use super::shutdown::ShutdownRequest;
use super::watch::watch;
use crate::sys::signals::Signals;

/// Ends the VM by a signal.
pub(super) struct SignalWatcher {
    signals: Signals,
    shutdown: ShutdownRequest,
}

impl SignalWatcher {
    pub(super) fn new(signals: Signals, shutdown: ShutdownRequest) -> Self {
        Self { signals, shutdown }
    }
}

impl MutEventSubscriber for SignalWatcher {
    fn init(&mut self, ops: &mut EventOps<'_>) {
        watch(self.signals.as_raw_fd(), ops, &self.shutdown);
    }

    fn process(&mut self, _: Events, _: &mut EventOps<'_>) {
        if let Some(status) = self.signals.take() {
            self.shutdown.with(ExitReason::Signal(status));
        }
    }
}
