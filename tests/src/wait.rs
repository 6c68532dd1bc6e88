//! Waiting for a condition, with a deadline.

use std::time::{Duration, Instant};

/// How long anything may take that a test waits for: an emulated host on a busy machine is slow.
pub const PATIENCE: Duration = Duration::from_secs(300);

/// How many times as long what changes all the time may take: a test has its own limit, which names nothing.
pub const TURNS: u32 = 3;

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
    while_changing(what, || condition().ok_or(()))
}

/// Waits until `look` gives a value. The deadline starts anew each time that `look` sees something else, so that slow
/// progress does not fail.
///
/// # Panics
/// When nothing has changed for as long as [`until`] waits, or it has changed for [`TURNS`] times as long, naming `what`.
pub fn while_changing<T, S: PartialEq>(what: &str, mut look: impl FnMut() -> Result<T, S>) -> T {
    let mut last = None;
    let began = Instant::now();
    let mut start = began;
    loop {
        match look() {
            Ok(value) => return value,
            Err(seen) if last.as_ref() == Some(&seen) => {}
            Err(seen) => (last, start) = (Some(seen), Instant::now()),
        }
        let waited = start.elapsed();
        assert!(waited < PATIENCE, "waited {PATIENCE:?} in vain for {what}");
        assert!(
            began.elapsed() < PATIENCE * TURNS,
            "waited too long for {what}, which still changes"
        );
        std::thread::sleep((waited / LATE).clamp(LOOK_EVERY, LOOK_SELDOM));
    }
}
