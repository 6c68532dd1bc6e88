//! Timers as events of the main thread's loop.

use std::io;
use std::time::Duration;

use rustix::fd::{AsRawFd, OwnedFd, RawFd};
use rustix::time::{
    Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create,
    timerfd_settime,
};

/// A timer, stopped at first. Its descriptor is readable once it went off, until [`Timer::take`].
#[derive(Debug)]
pub(crate) struct Timer(OwnedFd);

impl Timer {
    /// A timer.
    ///
    /// # Errors
    /// When the host gives none.
    pub(crate) fn new() -> io::Result<Self> {
        let flags = TimerfdFlags::NONBLOCK | TimerfdFlags::CLOEXEC;
        Ok(Self(timerfd_create(TimerfdClockId::Monotonic, flags)?))
    }

    /// Has it go off once, so long from now. Zero stops it.
    ///
    /// # Errors
    /// When the host refuses: then it is as before.
    pub(crate) fn once(&self, after: Duration) -> io::Result<()> {
        self.set(after, Duration::ZERO)
    }

    /// Has it go off again and again, for the first time a period from now. Zero stops it.
    ///
    /// # Errors
    /// When the host refuses: then it is as before.
    pub(crate) fn every(&self, period: Duration) -> io::Result<()> {
        self.set(period, period)
    }

    /// Whether it went off since the last call. Setting it anew clears an expiry that was not taken.
    pub(crate) fn take(&self) -> bool {
        rustix::io::read(&self.0, &mut [0; 8]).is_ok()
    }

    /// Whether it is to go off.
    #[cfg(test)]
    pub(crate) fn is_set(&self) -> bool {
        !self.left().is_zero()
    }

    /// How long until it goes off; zero if it is not to.
    #[cfg(test)]
    pub(crate) fn left(&self) -> Duration {
        let left = rustix::time::timerfd_gettime(&self.0).map(|left| left.it_value);
        left.ok().and_then(|left| left.try_into().ok()).unwrap_or_default()
    }

    fn set(&self, first: Duration, then: Duration) -> io::Result<()> {
        let when = Itimerspec { it_interval: timespec(then)?, it_value: timespec(first)? };
        timerfd_settime(&self.0, TimerfdTimerFlags::empty(), &when)?;
        Ok(())
    }
}

/// An alarm on the wall clock (CLOCK_REALTIME), none at first. Its descriptor is readable once it went
/// off, until [`WallTimer::take`]. It goes off, too, when the clock is set to a time beyond it.
pub(crate) struct WallTimer(OwnedFd);

impl WallTimer {
    /// An alarm that is not set.
    ///
    /// # Errors
    /// When the host gives none.
    pub(crate) fn new() -> io::Result<Self> {
        let flags = TimerfdFlags::NONBLOCK | TimerfdFlags::CLOEXEC;
        Ok(Self(timerfd_create(TimerfdClockId::Realtime, flags)?))
    }

    /// Replaces the alarm: in seconds since 1970, or none.
    ///
    /// # Errors
    /// When the host refuses: then it is as before.
    pub(crate) fn set(&self, at: Option<u64>) -> io::Result<()> {
        // Zero stops a timer. Any other time in the past is as good.
        let at = at.map_or(0, |at| i64::try_from(at).unwrap_or(i64::MAX).max(1));
        let when = Itimerspec {
            it_interval: Timespec { tv_sec: 0, tv_nsec: 0 },
            it_value: Timespec { tv_sec: at, tv_nsec: 0 },
        };
        timerfd_settime(&self.0, TimerfdTimerFlags::ABSTIME, &when)?;
        Ok(())
    }

    /// Whether it went off since the last call.
    pub(crate) fn take(&self) -> bool {
        rustix::io::read(&self.0, &mut [0; 8]).is_ok()
    }
}

impl AsRawFd for WallTimer {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }
}

fn timespec(time: Duration) -> io::Result<Timespec> {
    Timespec::try_from(time).map_err(|_| io::ErrorKind::InvalidInput.into())
}

impl AsRawFd for Timer {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use rustix::event::{PollFd, PollFlags, poll};

    use super::*;

    const SHORT: Duration = Duration::from_millis(1);

    /// Whether it goes off within a minute.
    fn goes_off(timer: &Timer) -> bool {
        let minute = Timespec { tv_sec: 60, tv_nsec: 0 };
        poll(&mut [PollFd::new(&timer.0, PollFlags::IN)], Some(&minute)).unwrap();
        timer.take()
    }

    #[test]
    fn a_timer_that_is_not_set_does_not_go_off() {
        assert!(!Timer::new().unwrap().take());
    }

    #[test]
    fn a_timer_goes_off_once_or_again_and_again() {
        let timer = Timer::new().unwrap();

        timer.every(SHORT).unwrap();
        assert!(goes_off(&timer) && goes_off(&timer));
        timer.once(SHORT).unwrap();
        assert!(goes_off(&timer));
        assert!(!timer.take());
    }

    #[test]
    fn a_wall_timer_takes_any_time_and_goes_off_when_it_has_passed() {
        let timer = WallTimer::new().unwrap();
        for far in [u64::MAX, i64::MAX as u64, 1 << 34] {
            timer.set(Some(far)).unwrap();
            assert!(!timer.take());
        }

        for past in [0, 1_000_000] {
            timer.set(Some(past)).unwrap();
            poll(&mut [PollFd::new(&timer.0, PollFlags::IN)], None).unwrap();
            assert!(timer.take());
        }
        timer.set(None).unwrap();
        assert!(!timer.take());
    }

    #[test]
    fn a_timer_that_is_set_anew_has_nothing_to_say() {
        let timer = Timer::new().unwrap();
        timer.once(SHORT).unwrap();
        poll(&mut [PollFd::new(&timer.0, PollFlags::IN)], None).unwrap();

        timer.every(Duration::ZERO).unwrap();

        assert!(!timer.take());
    }
}
