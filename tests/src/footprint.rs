//! What a guest costs its host, as the VMM tells it, and how that changes.

use std::fmt;
use std::time::{Duration, Instant};

use serde_json::Value;
use tesseractl::client::{Client, Error};

use crate::guest::Guest;
use crate::wait::{PATIENCE, TURNS, until};

/// How often a curve has a point, and a footprint is waited for: its pages are counted, each time.
const STEP: Duration = Duration::from_millis(500);

/// A guest's driver waits 2 s between two looks at its free memory (mm/page_reporting.c): what has stood
/// still for three of them will stand still.
const QUIET: Duration = Duration::from_secs(6);

/// What still counts as standing still: a guest that idles takes a page now and then.
const STILL: u64 = 1 << 20;

/// So many looks at least say that it stands still.
const LOOKS: usize = 4;

/// `GET /footprint`, in bytes.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Footprint {
    /// The guest's memory.
    pub guest: u64,
    /// Present on the host.
    pub resident: u64,
    /// Present in huge pages.
    pub huge: u64,
    /// With tags in use, where the host says so.
    pub tagged: Option<u64>,
    /// Reported free by the guest since its start.
    pub reported: u64,
    /// Given back to the host since the start.
    pub discarded: u64,
    /// What the host did not take back.
    pub failed: u64,
    /// Reported and kept, as reporting was switched off.
    pub kept: u64,
    /// In the balloon now.
    pub inflated: u64,
}

/// What the VMM answers when it is asked for its footprint: again, for as long as it still counts (503).
///
/// # Panics
/// When it refuses otherwise, or counts for too long.
pub fn measured(client: &mut Client) -> Value {
    until("pages to be counted", || match client.get("/footprint") {
        Err(Error::Refused { status: 503, .. }) => None,
        answer => Some(answer.unwrap()),
    })
}

impl Footprint {
    /// Waits until a guest's is `so`.
    ///
    /// # Panics
    /// When it is not by the deadline.
    pub fn wait(guest: &Guest, what: &str, so: impl Fn(&Self) -> bool) {
        let mut client = guest.client();
        until(what, || {
            let now = Self::of(&mut client);
            if so(&now) {
                return Some(());
            }
            std::thread::sleep(STEP);
            None
        });
    }

    /// Asks the VMM.
    ///
    /// # Panics
    /// When it does not answer, or leaves a figure out.
    pub fn of(client: &mut Client) -> Self {
        let body = measured(client);
        let bytes = |name: &str| {
            body[name].as_u64().unwrap_or_else(|| panic!("no {name} in the footprint: {body}"))
        };
        Self {
            guest: bytes("guest_bytes"),
            resident: bytes("resident_bytes"),
            huge: bytes("huge_bytes"),
            tagged: body["tagged_bytes"].as_u64(),
            reported: bytes("reported_bytes"),
            discarded: bytes("discarded_bytes"),
            failed: bytes("failed_bytes"),
            kept: bytes("kept_bytes"),
            inflated: bytes("inflated_bytes"),
        }
    }
}

/// Resident memory over time.
#[derive(Clone, Debug, Default)]
pub struct Curve(Vec<(Duration, u64)>);

impl Curve {
    /// Looks at the guest until it is `done`.
    ///
    /// # Panics
    /// When it is not by the deadline; the message has the curve.
    pub fn record(guest: &Guest, what: &str, mut done: impl FnMut(&Self) -> bool) -> Self {
        let mut client = guest.client();
        let start = Instant::now();
        let mut curve = Self::default();
        let mut changed = (start, 0);
        loop {
            let resident = Footprint::of(&mut client).resident;
            curve.0.push((start.elapsed(), resident));
            if done(&curve) {
                return curve;
            }
            if resident.abs_diff(changed.1) > STILL {
                changed = (Instant::now(), resident);
            }
            // Slow progress does not fail.
            assert!(
                changed.0.elapsed() < PATIENCE && start.elapsed() < PATIENCE * TURNS,
                "waited {:?} in vain for {what}: {:?}\n{curve}",
                start.elapsed(),
                Footprint::of(&mut client)
            );
            std::thread::sleep(STEP);
        }
    }

    /// Looks at the guest until its memory stands still.
    ///
    /// # Panics
    /// When it does not by the deadline.
    pub fn until_still(guest: &Guest) -> Self {
        Self::record(guest, "memory that stands still", Self::is_still)
    }

    /// The last value, in bytes.
    pub fn last(&self) -> u64 {
        self.0.last().map_or(0, |point| point.1)
    }

    /// Whether the end of the curve is level.
    pub fn is_still(&self) -> bool {
        let Some((now, _)) = self.0.last() else { return false };
        let Some(from) = now.checked_sub(QUIET) else { return false };
        let tail = || self.0.iter().filter(|point| point.0 >= from).map(|point| point.1);
        let (low, high) = (tail().min().unwrap_or(0), tail().max().unwrap_or(0));
        // Where a look takes long, few are in the time: the guest may not have run between two of them.
        tail().count() >= LOOKS && high - low <= STILL
    }
}

/// One line for each second and each larger change: a table, and a plot on its side.
impl fmt::Display for Curve {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let highest = self.0.iter().map(|point| point.1).max().unwrap_or(0).max(1);
        let mut shown: Option<(Duration, u64)> = None;
        for (number, (time, resident)) in self.0.iter().enumerate() {
            let due = shown.is_none_or(|(last, level)| {
                time.saturating_sub(last) >= Duration::from_secs(1)
                    || resident.abs_diff(level) > highest / 50
            });
            if !due && number + 1 < self.0.len() {
                continue;
            }
            shown = Some((*time, *resident));
            let bar = "#".repeat((resident * 60 / highest) as usize);
            writeln!(f, "{:>7.2} s {:>7.1} MiB {bar}", time.as_secs_f64(), mib(*resident))?;
        }
        Ok(())
    }
}

/// Bytes as MiB, for people.
pub fn mib(bytes: u64) -> f64 {
    bytes as f64 / f64::from(1 << 20)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn curve(points: &[(u64, u64)]) -> Curve {
        Curve(points.iter().map(|(s, mib)| (Duration::from_secs(*s), mib << 20)).collect())
    }

    #[test]
    fn a_curve_is_still_once_it_has_been_level_for_long() {
        assert!(!curve(&[]).is_still());
        assert!(!curve(&[(0, 50), (5, 50)]).is_still());
        assert!(curve(&[(0, 90), (3, 50), (5, 50), (6, 51), (9, 50)]).is_still());
        assert!(!curve(&[(0, 90), (3, 60), (5, 50), (6, 51), (9, 50)]).is_still());
        // Few looks, far apart.
        assert!(!curve(&[(0, 50), (9, 50), (18, 50)]).is_still());
    }

    #[test]
    fn a_curve_is_shown_by_lines() {
        let text = curve(&[(0, 100), (1, 50)]).to_string();

        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines.len(), 2, "{text}");
        assert!(lines[0].contains("100.0 MiB") && lines[0].ends_with(&"#".repeat(60)), "{text}");
        assert!(lines[1].contains("50.0 MiB") && !lines[1].contains(&"#".repeat(31)), "{text}");
    }
}
