//! `count[,MILLISECONDS]`: a tick every so many milliseconds (100), for tests of pausing.

use std::thread;
use std::time::Duration;

use serde_json::json;

use super::{After, number};
use crate::{report, system};

pub(super) const NAME: &str = "count";

pub(super) fn run(argument: Option<&str>) -> Result<After, String> {
    let interval = Duration::from_millis(number(argument, 100)?.max(1));
    let started = system::monotonic_ns();
    let step = u64::try_from(interval.as_nanos()).unwrap_or(u64::MAX);
    for tick in 0u64.. {
        let now = system::monotonic_ns();
        report::send(NAME, "tick", json!({ "tick": tick, "monotonic_ns": now }));
        // By the clock, not by the end of the last sleep: delays do not add up.
        let next = started.saturating_add(step.saturating_mul(tick.saturating_add(1)));
        thread::sleep(Duration::from_nanos(next.saturating_sub(system::monotonic_ns())));
    }
    Ok(After::PowerOff)
}
