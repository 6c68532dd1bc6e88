//! `alarm`: sets the alarm of the real-time clock, so many seconds ahead, and waits for its interrupt.

use std::fs;
use std::thread::sleep;
use std::time::Duration;

use serde_json::json;

use super::{After, number};
use crate::{machine, report, system};

pub(super) const NAME: &str = "alarm";

/// Holds the alarm's time until it has gone off (Linux `drivers/rtc/sysfs.c`).
const WAKEALARM: &str = "/sys/class/rtc/rtc0/wakealarm";
/// How long an alarm is waited for: far longer than a slow machine needs.
const PATIENCE_NS: u64 = 120_000_000_000;

pub(super) fn run(argument: Option<&str>) -> Result<After, String> {
    let seconds = number(argument, 2)?;
    let start = system::monotonic_ns();
    fs::write(WAKEALARM, format!("+{seconds}")).map_err(|error| format!("{WAKEALARM}: {error}"))?;
    let waited = || system::monotonic_ns().saturating_sub(start);
    while !machine::text(WAKEALARM).is_empty() && waited() < PATIENCE_NS {
        sleep(Duration::from_millis(20));
    }
    report::send(
        NAME,
        "alarm",
        json!({
            "gone_off": machine::text(WAKEALARM).is_empty(),
            "waited_ns": waited(),
            "interrupts": interrupts(&machine::text("/proc/interrupts"), "rtc-pl031"),
        }),
    );
    Ok(After::PowerOff)
}

/// How often the interrupt of a device came, over all CPUs.
fn interrupts(table: &str, device: &str) -> Option<u64> {
    let line = table.lines().find(|line| line.trim_end().ends_with(device))?;
    let counts = line.split_whitespace().skip(1).map_while(|count| count.parse::<u64>().ok());
    Some(counts.sum())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn interrupts_are_counted_over_all_cpus() {
        let table = "           CPU0       CPU1\n \
                     11:        523        411     GICv3  27 Level     arch_timer\n \
                     14:          1          2     GICv3  33 Level     rtc-pl031\n";

        assert_eq!(interrupts(table, "rtc-pl031"), Some(3));
        assert_eq!(interrupts(table, "arch_timer"), Some(934));
        assert_eq!(interrupts(table, "gone"), None);
    }
}
