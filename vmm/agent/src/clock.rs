//! The system's clock after a pause.
//!
//! While a VM is paused, or its host sleeps, the guest's counter stops and with it all its clocks. The
//! real-time clock does not: in the guest it is a PL031 that shows the host's time. A jump of it against the
//! monotonic clock is a pause, and the system's clock is then set to it.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use rustix::time::{ClockId, Timespec, clock_gettime, clock_settime};

use crate::sys::ntp;

/// How often the clocks are compared: by so much an idle guest is late after a pause.
const INTERVAL: Duration = Duration::from_secs(5);
/// A difference that matters. The real-time clock has whole seconds, so that two readings differ by one more
/// or less than the time between them.
const TOLERANCE: Duration = Duration::from_secs(2);
/// With an NTP client: it slews away what is less than this.
const TOLERANCE_SYNCHRONISED: Duration = Duration::from_secs(30);
/// How long the next second of the real-time clock may take to come.
const EDGE: Duration = Duration::from_millis(1500);
/// How often it is looked at for that.
const EDGE_STEP: Duration = Duration::from_millis(10);

/// Why the clock was not set.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    /// The guest's kernel has no driver, or the VM no such device.
    #[error("the guest has no PL031 real-time clock: its kernel needs the driver rtc-pl031")]
    NoClock,
    /// It stands still or cannot be read.
    #[error("the guest's real-time clock cannot be read")]
    Read(#[source] io::Error),
    /// No permission.
    #[error("the guest's clock cannot be set: the agent must run as root")]
    Set(#[source] io::Error),
}

/// The clocks at one moment, each since its own beginning.
#[derive(Clone, Copy, Debug)]
struct Sample {
    /// The real-time clock, in seconds.
    hardware: Duration,
    /// The monotonic clock.
    monotonic: Duration,
    /// The system's clock.
    system: Duration,
}

impl Sample {
    fn take(rtc: &Path) -> Result<Self, Error> {
        Ok(Self {
            hardware: seconds(rtc)?,
            monotonic: now(ClockId::Monotonic),
            system: now(ClockId::Realtime),
        })
    }

    /// Whether the VM was paused between the two, and the system's clock, which was right before, is not.
    fn shows_pause_since(&self, before: &Self, tolerance: Duration) -> bool {
        let hardware = self.hardware.saturating_sub(before.hardware);
        let monotonic = self.monotonic.saturating_sub(before.monotonic);
        // A clock that was set to another time on purpose stays so.
        let was_right = before.hardware.abs_diff(before.system) <= TOLERANCE;
        let is_wrong = self.hardware.abs_diff(self.system) > tolerance;
        hardware > monotonic.saturating_add(TOLERANCE) && was_right && is_wrong
    }
}

/// Compares the clocks from time to time, for ever.
///
/// # Errors
/// Why that makes no sense here.
pub(crate) fn watch() -> Result<(), String> {
    let Some(rtc) = find() else { return Ok(()) };
    let message = |error| crate::chain(&error);
    let mut before = Sample::take(&rtc).map_err(message)?;
    loop {
        thread::sleep(INTERVAL);
        let now = Sample::take(&rtc).map_err(message)?;
        let tolerance = match ntp::is_synchronised() {
            true => TOLERANCE_SYNCHRONISED,
            false => TOLERANCE,
        };
        if now.shows_pause_since(&before, tolerance) {
            let moved = set(&rtc).map_err(message)?;
            crate::say(&format!("the clock was set forward by {moved} ms after a pause"));
        }
        before = Sample::take(&rtc).map_err(message)?;
    }
}

/// Sets the system's clock from the real-time clock; by how many milliseconds forward.
///
/// # Errors
/// See [`Error`].
pub(crate) fn set_now() -> Result<i64, Error> {
    set(&find().ok_or(Error::NoClock)?)
}

fn set(rtc: &Path) -> Result<i64, Error> {
    // Right after its second has changed it is exact.
    let (start, first) = (Instant::now(), seconds(rtc)?);
    let mut exact = first;
    while exact == first && start.elapsed() < EDGE {
        thread::sleep(EDGE_STEP);
        exact = seconds(rtc)?;
    }
    let before = now(ClockId::Realtime);
    let tv_sec = i64::try_from(exact.as_secs()).unwrap_or(i64::MAX);
    clock_settime(ClockId::Realtime, Timespec { tv_sec, tv_nsec: 0 })
        .map_err(|error| Error::Set(error.into()))?;
    let moved = exact.abs_diff(before).as_millis();
    let moved = i64::try_from(moved).unwrap_or(i64::MAX);
    Ok(if exact < before { -moved } else { moved })
}

/// The PL031, which is the host's time. Any other clock may be wrong.
fn find() -> Option<PathBuf> {
    let clocks = fs::read_dir("/sys/class/rtc").ok()?.filter_map(Result::ok);
    let mut folders = clocks.map(|clock| clock.path());
    folders.find(|folder| {
        // The name is that of the driver, then that of the device.
        fs::read_to_string(folder.join("name")).is_ok_and(|name| name.contains("pl031"))
    })
}

/// What the real-time clock shows (Documentation/ABI/testing/rtc-class).
fn seconds(rtc: &Path) -> Result<Duration, Error> {
    let text = fs::read_to_string(rtc.join("since_epoch")).map_err(Error::Read)?;
    let seconds =
        text.trim().parse().map_err(|_| Error::Read(io::ErrorKind::InvalidData.into()))?;
    Ok(Duration::from_secs(seconds))
}

fn now(clock: ClockId) -> Duration {
    let time = clock_gettime(clock);
    // Before 1970 it is wrong anyway.
    let seconds = u64::try_from(time.tv_sec).unwrap_or(0);
    Duration::new(seconds, u32::try_from(time.tv_nsec).unwrap_or(0))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    fn sample(hardware: u64, monotonic: f64, system: f64) -> Sample {
        let (monotonic, system) =
            (Duration::from_secs_f64(monotonic), Duration::from_secs_f64(system));
        Sample { hardware: Duration::from_secs(hardware), monotonic, system }
    }

    #[test]
    fn a_pause_is_a_jump_of_the_real_time_clock() {
        let before = sample(1000, 50.0, 1000.4);

        for (now, pause) in [
            // No pause; the second has just changed, or is about to.
            (sample(1005, 55.0, 1005.4), false),
            (sample(1006, 55.0, 1005.4), false),
            (sample(1004, 55.0, 1005.4), false),
            // Of an hour, and of five seconds.
            (sample(4605, 55.0, 1005.4), true),
            (sample(1010, 55.0, 1005.4), true),
            // The kernel, or a daemon, has corrected it already.
            (sample(4605, 55.0, 4605.2), false),
            // It was set on purpose, forward or back, without a pause.
            (sample(1005, 55.0, 9000.0), false),
            (sample(1005, 55.0, 10.0), false),
            // The real-time clock was set back.
            (sample(900, 55.0, 1005.4), false),
        ] {
            assert_eq!(now.shows_pause_since(&before, TOLERANCE), pause, "{now:?}");
        }
    }

    #[test]
    fn a_clock_that_was_another_time_before_the_pause_stays_so() {
        let before = sample(1000, 50.0, 500_000.0);

        assert!(!sample(4605, 55.0, 500_005.0).shows_pause_since(&before, TOLERANCE));
    }

    #[test]
    fn small_jumps_are_the_ntp_clients() {
        let before = sample(1000, 50.0, 1000.4);
        let pause_of_20_s = sample(1025, 55.0, 1005.4);

        assert!(pause_of_20_s.shows_pause_since(&before, TOLERANCE));
        assert!(!pause_of_20_s.shows_pause_since(&before, TOLERANCE_SYNCHRONISED));
    }

    #[test]
    fn seconds_are_read_or_an_error() {
        let folder = tempfile::tempdir().unwrap();
        let write = |text| fs::write(folder.path().join("since_epoch"), text).unwrap();

        write("1700000000\n");
        assert_eq!(seconds(folder.path()).unwrap(), Duration::from_secs(1_700_000_000));
        write("-5\n");
        assert!(seconds(folder.path()).is_err());
        assert!(seconds(Path::new("/nonexistent")).is_err());
    }
}
