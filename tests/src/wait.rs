//! Waiting for a condition, with a deadline.

use std::time::{Duration, Instant};

/// How long anything may take that a test waits for: an emulated host on a busy machine is slow.
pub const PATIENCE: Duration = Duration::from_secs(120);

/// How often a condition is looked at that announces itself in no other way, and how seldom once it has been waited
/// for long: a look takes an emulated processor some milliseconds, which what is waited for may need.
const LOOK_EVERY: Duration = Duration::from_millis(10);
const LOOK_SELDOM: Duration = Duration::from_millis(200);

/// A wait is longer by this part of it at most than it need be.
const LATE: u32 = 8;

/// Waits until `condition` gives a value.
///
/// # Panics
/// When it has not by the deadline, naming `what`.
pub fn until<T>(what: &str, mut condition: impl FnMut() -> Option<T>) -> T {
    let start = Instant::now();
    loop {
        if let Some(value) = condition() {
            return value;
        }
        let waited = start.elapsed();
        assert!(waited < PATIENCE, "waited {PATIENCE:?} in vain for {what}");
        std::thread::sleep((waited / LATE).clamp(LOOK_EVERY, LOOK_SELDOM));
    }
}
