//! The grace period of a broker that takes another's place: for some seconds it serves only VMs that come back
//! with what they hold. Otherwise a VM that is new, or waits, would get slots that another VM's memory uses
//! already. Lock managers do the same (NFS: RFC 8881, section 8.4.2.1).
//!
//! A broker takes another's place when it finds one of two traces at its path: a stale socket, which a broker that
//! was killed or ended in a fault leaves, or the *restart mark*, a file that a broker leaves that is ended while VMs hold leases. The
//! first broker of a host finds neither and serves at once.
//!
//! The period ends when no VM has come back for a while, which is longer than a VM pauses between two attempts to
//! connect; at most it lasts for a fixed time.

use std::fs::{self, OpenOptions};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// How long a grace period lasts.
#[derive(Clone, Copy, Debug)]
pub(crate) struct GraceTimes {
    /// From the start, if no VM comes back.
    pub quiet: Duration,
    /// After each message with which a VM comes back.
    pub after: Duration,
    /// In all: a client that comes back without end keeps others waiting no longer.
    pub most: Duration,
}

impl GraceTimes {
    /// A client pauses for 2 s at most (`broker/client/reconnect.rs`) and sends its messages one after the other.
    pub(crate) const USUAL: Self = Self {
        quiet: Duration::from_millis(2500),
        after: Duration::from_secs(1),
        most: Duration::from_secs(15),
    };

    /// No grace period.
    #[cfg(test)]
    pub(crate) const NONE: Self =
        Self { quiet: Duration::ZERO, after: Duration::ZERO, most: Duration::ZERO };
}

/// A grace period.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Grace {
    end: Instant,
    latest: Instant,
    after: Duration,
}

impl Grace {
    /// One that begins now.
    pub(crate) fn new(times: GraceTimes, now: Instant) -> Self {
        let GraceTimes { quiet, after, most } = times;
        let latest = now + most;
        Self { end: (now + quiet).min(latest), latest, after }
    }

    /// A VM has come back with something.
    pub(crate) fn adopted(&mut self, now: Instant) {
        self.end = self.end.max(now + self.after).min(self.latest);
    }

    pub(crate) fn is_over(&self, now: Instant) -> bool {
        now >= self.end
    }
}

/// The file that says that a broker ended here while VMs held leases.
#[derive(Clone, Debug)]
pub(crate) struct RestartMark(PathBuf);

impl RestartMark {
    /// Of the broker at this path.
    pub(crate) fn beside(socket: &Path) -> Self {
        let mut path = socket.as_os_str().to_owned();
        path.push(".restart");
        Self(path.into())
    }

    /// Leaves it. Without it the next broker has no grace period, and nothing else is wrong.
    pub(crate) fn leave(&self) {
        // An existing file, or a link, is not opened.
        let _ = OpenOptions::new().write(true).create_new(true).open(&self.0);
    }

    /// Removes it. Returns whether it was there.
    pub(crate) fn take(&self) -> bool {
        fs::remove_file(&self.0).is_ok()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    const TIMES: GraceTimes = GraceTimes {
        quiet: Duration::from_secs(2),
        after: Duration::from_secs(1),
        most: Duration::from_secs(5),
    };

    #[test]
    fn it_ends_early_when_no_vm_comes_back() {
        let start = Instant::now();
        let grace = Grace::new(TIMES, start);

        assert!(!grace.is_over(start + TIMES.quiet - Duration::from_millis(1)));
        assert!(grace.is_over(start + TIMES.quiet));
    }

    #[test]
    fn each_return_extends_it_up_to_a_limit() {
        let start = Instant::now();
        let mut grace = Grace::new(TIMES, start);

        grace.adopted(start);
        assert!(grace.is_over(start + TIMES.quiet));
        for half_seconds in 0..20 {
            grace.adopted(start + Duration::from_millis(500) * half_seconds);
        }

        assert!(!grace.is_over(start + TIMES.most - Duration::from_millis(1)));
        assert!(grace.is_over(start + TIMES.most));
    }

    #[test]
    fn a_mark_is_found_once() {
        let directory = tempfile::tempdir().unwrap();
        let mark = RestartMark::beside(&directory.path().join("broker"));

        assert!(!mark.take());
        mark.leave();
        mark.leave();

        assert!(mark.take());
        assert!(!mark.take());
    }
}
