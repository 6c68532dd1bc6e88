//! Descriptors that the main thread cannot do without.

use std::io;

use event_manager::{EventOps, EventSet, Events};
use rustix::fd::RawFd;

use super::exit_reason::ExitReason;
use super::shutdown::ShutdownRequest;

/// Watches a descriptor without which the VM must not run.
pub(super) fn watch(fd: RawFd, ops: &mut EventOps<'_>, shutdown: &ShutdownRequest) {
    if let Err(error) = ops.add(Events::new_raw(fd, EventSet::IN)) {
        shutdown.with(ExitReason::NoEvents(io::Error::other(error)));
    }
}
