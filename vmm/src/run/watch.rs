//! Descriptors that the main thread cannot do without.

use std::io;

use event_manager::{EventOps, EventSet, Events};
use rustix::fd::RawFd;

use super::ending::Ending;
use super::finish::Finish;

/// Watches a descriptor without which the VM must not run.
pub(super) fn watch(fd: RawFd, ops: &mut EventOps<'_>, finish: &Finish) {
    if let Err(error) = ops.add(Events::new_raw(fd, EventSet::IN)) {
        finish.with(Ending::NoEvents(io::Error::other(error)));
    }
}
